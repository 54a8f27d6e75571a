"""Performing: one command in, one outcome out.

Rules:

1. Each kind of command has one handler, here, in `entering` or in `feeding`. User code is called
   through `calls`, but for sources (`stream`) and for `state_dict` (`checkpoint`).
2. What user code raises becomes an outcome. Cancellation does not: it passes through, unless
   nobody cancelled the run and a stage let an asyncio `CancelledError` of its own escape.
3. Before user code runs, the items of the loops around it are there, from the log if need be.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from kitchen.errors import KitchenError, NotResumableWarning, ResourceError, WorkflowError
from kitchen.machine import commands as C
from kitchen.machine.commands import Command
from kitchen.machine.events import Address, Failure
from kitchen.runner import checkpoint
from kitchen.runner.attempt import Attempt
from kitchen.runner.calls import Calls
from kitchen.runner.entering import Entering
from kitchen.runner.failure import balanced, being_cancelled, describe
from kitchen.runner.feeding import Feeding
from kitchen.runner.outcome import Performed
from kitchen.runner.scope import Scope
from kitchen.runner.surroundings import Surroundings
from kitchen.workflow.ir import ResourceNode, StageNode


class Performer:
    """Performs the commands of one execution. `raised`: the exceptions behind failures."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.calls = Calls(scope)
        self.surroundings = Surroundings(scope, self.calls)
        self.feeding = Feeding(scope, self.calls, self.surroundings)
        entering = Entering(scope, self.calls, self.surroundings)
        self.raised: list[tuple[Failure, BaseException]] = []
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            C.RunStage: self._run_stage,
            C.OpenLoop: entering.open_loop,
            C.OpenBranches: entering.open_branches,
            C.JoinBranches: entering.join,
            C.PullItem: self.feeding.pull,
            C.Produce: self.feeding.produce,
            C.EvaluateCondition: self._evaluate,
            C.OpenResource: self._open_resource,
            C.CloseResources: self._close,
            C.SaveCheckpoint: self._save,
        }

    def on(self, kind: type[Any], handler: Callable[[Any], Any]) -> None:
        """Have a kind of command performed by somebody else."""
        self._handlers[kind] = handler

    async def perform(self, command: Command) -> Performed:
        """Carry the command out; what came of it."""
        try:
            return await self._handlers[type(command)](command)
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            return Performed(C.CommandFailed(command.address, self.told(error)), {})

    def told(self, error: BaseException) -> Failure:
        """The exception as a `Failure`; which it was is kept for whoever called."""
        failure = describe(error)
        self.raised.append((failure, error))
        return failure

    async def _run_stage(self, command: C.RunStage) -> Performed:
        address, number = command
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, StageNode)
        attempt = self.calls.attempt(address, number, writes=node.writes)
        attempt.touched |= await self.surroundings.ensure(address)
        self.calls.running[address] = attempt
        try:
            options = self.calls.options(node)
            await self.calls.call(address.path, attempt, options, thread=node.thread)
            effects = attempt.finish()
            self.calls.check_config()
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            discarded = _discarded(attempt)
            touched = tuple(attempt.touched)
            raised = C.StageRaised(address, number, self.told(error), discarded, touched)
            return Performed(raised, {})
        finally:
            attempt.seal()
            del self.calls.running[address]
        touched, flushed = tuple(attempt.touched), tuple(attempt.flushed)
        looked = attempt.looked
        return Performed(
            C.StageSucceeded(address, number, effects, touched, flushed, looked), attempt.blobs
        )

    async def _evaluate(self, command: C.EvaluateCondition) -> Performed:
        address = command.address
        attempt = self.calls.attempt(address, 0, "predicate")
        attempt.touched |= await self.surroundings.ensure(address)
        answer = await self.calls.ask(address.path, attempt, thread=False)
        if answer is None:
            raise WorkflowError(
                f"the predicate of {address} returned None",
                hint="return True or False; is a `return` missing?",
            )
        touched = tuple(attempt.touched)
        return Performed(C.ConditionAnswered(address, bool(answer), touched, attempt.looked), {})

    # --- resources ---

    async def _open_resource(self, command: C.OpenResource) -> Performed:
        address, name = command
        attempt = self.calls.attempt(address, 0, "factory")
        attempt.touched |= await self.surroundings.ensure(address)
        stateful = await self.open(name, address, attempt)
        lost = () if stateful else self._lost(name)
        touched = tuple(attempt.touched)
        return Performed(C.ResourceReady(address, stateful, touched, lost, attempt.looked), {})

    async def open(self, name: str, address: Address, attempt: Attempt) -> bool:
        """Call the factory and take what it gives; whether it is stateful."""
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, ResourceNode)
        try:
            made = await self.calls.call(address.path, attempt, awaited=False)
            if inspect.isawaitable(made):
                made = balanced(made)
            live = await self._scope.live.open(name, made, node.stateful)
            self._scope.live.tie(name, attempt.touched | attempt.peeked)
            self.calls.check_untouched(attempt)
        except KitchenError:
            raise
        except Exception as error:
            raise ResourceError(
                f"the factory of resource {name!r} failed: {type(error).__name__}: {error}",
                hint="mend the cause, then resume the run: it goes on here",
            ) from error
        finally:
            attempt.seal()
        return live.stateful

    def _lost(self, name: str) -> tuple[str, ...]:
        """What a resource without a state of its own was made from and cannot be had again."""
        live, state = self._scope.live, self._scope.journal.state
        looked = [other for other in live.reach([name]) if other != name]
        stateful = state.stateful(looked)
        names = [n for n in stateful if live.get(n).worked]
        names += [n for n in looked if n not in stateful and state.core.resources[n].lost]
        if names:
            warnings.warn(
                f"resource {name!r} has no state of its own and was made from {', '.join(names)}, "
                "touched since the last checkpoint. Should it hold a copy, it could not be made "
                "again: while it is open, a crash goes back to before it was opened. Put a "
                "checkpoint before it, or give it state_dict() and load_state_dict().",
                NotResumableWarning,
                stacklevel=2,
            )
        return tuple(names)

    async def _close(self, command: C.CloseResources) -> Performed:
        reach = self._scope.live.reach(self._scope.live.managed(command.names))
        self._scope.live.mark_worked(reach)
        await self._scope.live.close(command.names)
        return Performed(C.BlockClosed(command.address, reach), {})

    async def _save(self, command: C.SaveCheckpoint) -> Performed:
        return Performed(C.CheckpointWritten(command.address, await self.save()), {})

    async def save(self) -> Any:
        """Save what is unsaved; the manifests."""
        scope = self._scope
        names = scope.journal.state.unsaved
        if not names:
            return {}
        saved = await self.calls.in_thread(
            lambda: checkpoint.save(names, scope.live, scope.journal)
        )
        scope.live.mark_worked(names, worked=False)
        return saved


def _discarded(attempt: Attempt) -> tuple[Any, ...]:
    try:
        return attempt.finish()
    except Exception:  # what made the stage fail may make this fail too, and is told already
        return ()

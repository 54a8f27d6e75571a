"""Performing: one command in, one outcome out.

Rules:

1. Each kind of command has one handler, here, in `staging`, `entering` or `feeding`. User code is
   called through `calls`, but for sources (`stream`) and for `state_dict` (`checkpoint`).
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

from kitchen.errors import (
    KitchenError,
    NotResumableWarning,
    ResourceError,
    StoreError,
    WorkflowError,
)
from kitchen.machine import commands as C
from kitchen.machine.commands import Command, Input
from kitchen.machine.events import Address, Failure
from kitchen.runner import checkpoint
from kitchen.runner.attempt import Attempt
from kitchen.runner.calls import Calls
from kitchen.runner.entering import Entering
from kitchen.runner.failure import balanced, being_cancelled, describe
from kitchen.runner.feeding.feeding import Feeding
from kitchen.runner.outcome import Performed
from kitchen.runner.scope import Scope
from kitchen.runner.staging import Staging
from kitchen.runner.surroundings import Surroundings
from kitchen.workflow.ir import ResourceNode

_KEPT = 16


class Performer:
    """Performs the commands of one execution. `raised`: the exceptions behind the latest failures,
    and behind those that wait to be told.

    `cut_short`: the resources that were touched by what was stopped before its end, or came too
    late. `unclaimed`: those that were opened by such, and where.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.calls = Calls(scope)
        self.surroundings = Surroundings(scope, self.calls)
        self.feeding = Feeding(scope, self.calls, self.surroundings)
        self.staging = Staging(scope, self.calls, self.surroundings, self.told, self.know)
        entering = Entering(scope, self.calls, self.surroundings)
        self.cut_short: set[str] = set()
        self.unclaimed: dict[str, Address] = {}
        self.raised: list[tuple[Failure, BaseException]] = []
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            C.RunStage: self.staging.run,
            C.AwaitRetry: self.staging.await_retry,
            C.RollBack: self.staging.roll_back,
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
        ended = False
        try:
            done = await self._handlers[type(command)](command)
            ended = True
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            if isinstance(command, C.SaveCheckpoint) and isinstance(error, StoreError):
                raise  # no handler's business: nothing can be recorded any more, that included
            ended = True
            attempt = self.calls.open.get(command.address)
            touched = tuple(sorted(attempt.touched)) if attempt is not None else ()
            failed = C.CommandFailed(command.address, self.told(error), touched=touched)
            return Performed(failed, {})
        else:
            return done
        finally:
            attempt = self.calls.open.pop(command.address, None)
            if attempt is not None and not ended:
                self.cut_short |= attempt.touched

    def drop(self, command: Command, outcome: Input) -> None:
        """Nobody wants this outcome any more; what was used for it is not what it was."""
        self.cut_short.update(getattr(outcome, "touched", ()))
        if isinstance(command, C.OpenResource) and isinstance(outcome, C.ResourceReady):
            self.unclaimed[command.name] = command.address

    def exception(self, failure: Failure | None) -> BaseException | None:
        """The exception behind a failure, if it was raised in this process."""
        return next((error for told, error in self.raised if told == failure), None)

    def know(self, failure: Failure, error: BaseException) -> None:
        """Keep the exception behind a failure, for whoever called."""
        if len(self.raised) >= _KEPT:  # each keeps frames alive, and all that they hold
            control = self._scope.journal.state.core.control
            wanted = [
                each.failure for each in (*control.halted.values(), *control.failing.values())
            ]
            wanted += [made.failure for feed in control.feeds.values() for made in feed.made]
            old, new = self.raised[: -_KEPT // 2], self.raised[-_KEPT // 2 :]
            self.raised = [known for known in old if known[0] in wanted] + new
        self.raised.append((failure, error))

    def told(self, error: BaseException) -> Failure:
        """The exception as a `Failure`; which it was is kept for whoever called."""
        failure = describe(error)
        self.know(failure, error)
        return failure

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
        try:
            await self._scope.live.close(command.names)
        except BaseException:  # what they hold may be half closed
            self.cut_short.update(reach)
            raise
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
        self.cut_short.difference_update(names)
        return saved

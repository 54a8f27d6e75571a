"""Performing: one command in, one outcome out.

Rules:

1. Here, and in nothing else of the runner, user code is called.
2. What user code raises becomes an outcome. Cancellation does not: it passes through, unless
   nobody cancelled the run and a stage let an asyncio `CancelledError` of its own escape.
3. A sync stage body runs in a worker thread unless it was declared `thread=False`; so do `over`
   and factories. A predicate runs inline: it is asked often and should look, not work.
4. Before user code runs, the items of the loops around it are there, from the log if need be.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from anyio import to_thread

from kitchen.errors import (
    ItemsError,
    KitchenError,
    NotResumableWarning,
    ResourceError,
    WorkflowError,
)
from kitchen.machine import commands as C
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.commands import Command, Input
from kitchen.machine.events import Address, LoopEntered, RefItems
from kitchen.machine.state import Cell
from kitchen.runner import checkpoint, items, randomness
from kitchen.runner.attempt import Attempt
from kitchen.runner.context import Context
from kitchen.runner.failure import being_cancelled, describe
from kitchen.runner.scope import Scope, config_untouched
from kitchen.workflow.ir import ResourceNode, StageNode
from kitchen.workflow.stage import Stage

FEW = 1_000
_PLAIN = Codec()


class Performed(NamedTuple):
    """An outcome, and the blobs that its events will name."""

    outcome: Input
    blobs: Mapping[str, bytes]


class Performer:
    """Performs the commands of one execution."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.running: Attempt | None = None
        self.failed: BaseException | None = None
        self._async: dict[str, bool] = {}
        self._frozen_options: dict[int, Mapping[str, Any]] = {}
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            C.RunStage: self._run_stage,
            C.OpenLoop: self._open_loop,
            C.EvaluateCondition: self._evaluate,
            C.OpenResource: self._open_resource,
            C.CloseResources: self._close,
            C.SaveCheckpoint: self._save,
        }

    async def perform(self, command: Command) -> Performed:
        """Carry the command out; what came of it."""
        try:
            return await self._handlers[type(command)](command)
        except (Exception, SystemExit) as error:
            self.failed = error
            return Performed(C.CommandFailed(command.address, describe(error)), {})

    async def _run_stage(self, command: C.RunStage) -> Performed:
        address, number = command
        attempt = self._attempt(address, number)
        attempt.touched |= await self.ensure_items(address)
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, StageNode)
        self.running = attempt
        try:
            await self._call(address.path, attempt, self._options(node), thread=node.thread)
            effects = attempt.finish()
            self._check_config()
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            self.failed = error
            discarded = _discarded(attempt)
            return Performed(C.StageRaised(address, number, describe(error), discarded), {})
        finally:
            attempt.seal()
            self.running = None
        touched, flushed = tuple(attempt.touched), tuple(attempt.flushed)
        return Performed(
            C.StageSucceeded(address, number, effects, touched, flushed), attempt.blobs
        )

    async def _evaluate(self, command: C.EvaluateCondition) -> Performed:
        address = command.address
        attempt = self._attempt(address, 0, "predicate")
        attempt.touched |= await self.ensure_items(address)
        answer = await self._sealed(address.path, attempt, thread=False)
        if answer is None:
            raise WorkflowError(
                f"the predicate of {address} returned None",
                hint="return True or False; is a `return` missing?",
            )
        touched = tuple(attempt.touched)
        return Performed(C.ConditionAnswered(address, bool(answer), touched), {})

    async def _open_loop(self, command: C.OpenLoop) -> Performed:
        address = command.address
        attempt = self._attempt(address, 0, "`over`")
        attempt.touched |= await self.ensure_items(address)
        collection = await self._ask_over(address, attempt)
        looked = self._scope.journal.state.stateful(attempt.touched | attempt.peeked)
        record = partial(items.record, collection, self._scope.codec, address, keep=bool(looked))
        few = isinstance(collection, range) or len(collection) < FEW
        recorded = record() if few else await to_thread.run_sync(record)
        self._scope.items[address] = recorded.items
        touched = tuple(attempt.touched)
        if not recorded.checkable and looked:
            raise ItemsError(
                f"the items of the loop {address} cannot be encoded, and `over` used "
                f"{', '.join(looked)}: after a crash they could not be had again exactly",
                hint="give items that can be kept, or draw them in the body",
            )
        return Performed(C.CollectionOpened(address, recorded.collection, touched), recorded.blobs)

    async def _open_resource(self, command: C.OpenResource) -> Performed:
        address, name = command
        attempt = self._attempt(address, 0, "factory")
        attempt.touched |= await self.ensure_items(address)
        stateful = await self.open(name, address, attempt)
        lost = () if stateful else self._lost(name)
        return Performed(C.ResourceReady(address, stateful, tuple(attempt.touched), lost), {})

    async def open(self, name: str, address: Address, attempt: Attempt) -> bool:
        """Call the factory and take what it gives; whether it is stateful."""
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, ResourceNode)
        try:
            made = await self._call(address.path, attempt, {}, thread=True, awaited=False)
            if inspect.isawaitable(made):
                made = _balanced(made)
            live = await self._scope.live.open(name, made, node.stateful)
            self._scope.live.tie(name, attempt.touched | attempt.peeked)
            self._check_untouched(attempt)
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
        saved = await to_thread.run_sync(checkpoint.save, names, scope.live, scope.journal)
        scope.live.mark_worked(names, worked=False)
        return saved

    def _options(self, node: StageNode) -> Mapping[str, Any]:
        """A stage's options, frozen: the program that they come from serves other runs too."""
        if not node.options:
            return node.options
        known = self._frozen_options.get(id(node))
        if known is None:
            text = _PLAIN.encode(node.options, where="options").json
            known = self._frozen_options[id(node)] = _PLAIN.decode(text, no_blobs, key="options")
        return known

    # --- calling user code ---

    def _attempt(
        self,
        address: Address,
        number: int,
        kind: str = "stage",
        data: Mapping[str, Cell] | None = None,
    ) -> Attempt:
        scope = self._scope
        seen = scope.journal.state.core.data if data is None else data
        return Attempt(address, number, seen, scope.codec, scope.journal.fetch, kind)

    def past_attempt(self, address: Address, data: Mapping[str, Cell], kind: str) -> Attempt:
        """An attempt that sees the state as it was."""
        return self._attempt(address, 0, kind, data)

    async def _sealed(self, path: str, attempt: Attempt, *, thread: bool) -> Any:
        try:
            result = await self._call(path, attempt, {}, thread=thread)
            self._check_untouched(attempt)
            return result
        finally:
            attempt.seal()

    async def _call(
        self,
        path: str,
        attempt: Attempt,
        options: Mapping[str, Any],
        *,
        thread: bool,
        awaited: bool = True,
    ) -> Any:
        binding = self._scope.binding(path)
        body: Any = binding.execute if isinstance(binding, Stage) else binding
        ctx: Context[Any, Any] = Context(self._scope, attempt, options)
        is_async = self._async.get(path)
        if is_async is None:
            is_async = self._async[path] = _is_async(body)
        if self._scope.workflow.ir.seed_globals:
            randomness.seed_globals(randomness.derive(self._scope.seed, attempt.address))
        if is_async and awaited:
            return await _balanced(body(ctx))
        if thread and not is_async:  # in a tuple: trio lets no awaitable out of a thread
            (result,) = await to_thread.run_sync(lambda: (body(ctx),))
        else:
            result = body(ctx)
        return await _balanced(result) if awaited and inspect.isawaitable(result) else result

    async def _ask_over(self, address: Address, attempt: Attempt) -> Any:
        try:
            given = await self._call(address.path, attempt, {}, thread=True)
            if hasattr(given, "__aiter__"):
                raise ItemsError(
                    f"the loop {address} got an async iterator",
                    hint="`loop` takes a finite collection; gather it first: "
                    "[item async for item in …]",
                )
            if isinstance(given, range | list | tuple):
                taken = items.materialise(given, address)
            else:  # a generator's body runs here, so the attempt is still open
                taken = await to_thread.run_sync(items.materialise, given, address)
            self._check_untouched(attempt)
            return taken
        finally:
            attempt.seal()

    def _check_untouched(self, attempt: Attempt) -> None:
        """Raises where what may only look has changed the config, or an object of the state."""
        attempt.finish()
        self._check_config()

    def _check_config(self) -> None:
        if not config_untouched(self._scope):
            raise WorkflowError(
                "the config was changed in place",
                hint="the config is a run's immutable input; what changes belongs into ctx.state",
            )

    # --- the items of the loops around ---

    async def ensure_items(self, address: Address) -> set[str]:
        """Have the items of every loop around an address; what asking for them touched."""
        scope = self._scope
        touched: set[str] = set()
        loops = scope.journal.program.loops.get(address.path, ())
        for depth, path in enumerate(loops[: len(address.visit)]):
            loop = Address(path, address.visit[:depth])
            if loop not in scope.items:
                scope.items[loop] = await self._recorded(loop, touched)
        return touched

    async def _recorded(self, loop: Address, touched: set[str]) -> Any:
        scope = self._scope
        entered = scope.journal.state.core.control.frames[loop].entered
        (fact,) = scope.journal.facts(entered - 1, entered + 1)
        assert isinstance(fact.event, LoopEntered)
        collection = fact.event.items
        kept = items.recorded_items(collection, scope.journal, scope.codec)
        if kept is not None:
            return kept
        assert isinstance(collection, RefItems)
        seen = scope.journal.state_at(entered - 1).core.data
        attempt = self.past_attempt(loop, seen, "`over`")
        again = await self._ask_over(loop, attempt)
        items.check_again(again, collection, scope.journal, scope.codec, loop)
        touched |= attempt.touched
        return items.ByReference(again, scope.codec)


def _discarded(attempt: Attempt) -> tuple[Any, ...]:
    try:
        return attempt.finish()
    except Exception:  # what made the stage fail may make this fail too, and is told already
        return ()


async def _balanced(work: Awaitable[Any]) -> Any:
    """Await user code; what it left of its own cancellations is taken back.

    Python 3.11's `asyncio.TaskGroup` cancels its parent task when a child fails while it is left,
    and does not say that this is over; the next cancel scope would take it for a cancellation.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # another event loop than asyncio's
        return await work
    before = task.cancelling() if task is not None else 0
    try:
        return await work
    except asyncio.CancelledError:
        before = None
        raise
    finally:
        while task is not None and before is not None and task.cancelling() > before:
            task.uncancel()


def _is_async(body: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(body, "func", body)) or inspect.iscoroutinefunction(
        getattr(body, "__call__", None)  # noqa: B004  (an object whose __call__ is async)
    )

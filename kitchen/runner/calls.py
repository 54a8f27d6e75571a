"""Calls: where user code is called, and with what.

Rules:

1. User code gets a context of its own, over the state as it may see it from where it stands.
2. A sync stage body runs in a worker thread unless it was declared `thread=False`; so do `over`,
   producers and factories. A predicate runs inline: it is asked often and should look, not work.
   A thread whose call is cancelled has `patience` seconds to end, and none where its time is over,
   or that of a block around it; then it is left behind.
3. How many threads run is the kernel's business (branches, producers), so no limit is set here.
4. Global generators are seeded before what runs alone; side by side, nobody could tell whose
   numbers are whose.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from kitchen.errors import WorkflowError
from kitchen.machine import lanes
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, spell
from kitchen.machine.outstanding import within
from kitchen.machine.state import Cell, Core
from kitchen.runner import randomness
from kitchen.runner.attempt import Attempt
from kitchen.runner.context import Context
from kitchen.runner.failure import balanced, being_cancelled
from kitchen.runner.scope import Scope, config_untouched
from kitchen.runner.threads import Threads
from kitchen.workflow.ir import StageNode
from kitchen.workflow.stage import Stage

_logger = logging.getLogger("kitchen.run")

_PLAIN = Codec()
_NONE: Mapping[str, Any] = {}


class Calls:
    """Calls the user code of one execution. `running`: the attempts of stages, by address.

    `open`: the attempts of what is being performed. `patience`: how many seconds a thread that is
    wanted no more may take to end.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.running: dict[Address, Attempt] = {}
        self._async: dict[str, bool] = {}
        self._frozen_options: dict[int, Mapping[str, Any]] = {}
        self.open: dict[Address, Attempt] = {}
        self.patience = 30.0
        self.threads = Threads()

    def attempt(
        self,
        address: Address,
        number: int = 0,
        kind: str = "stage",
        data: Mapping[str, Cell] | None = None,
        writes: tuple[str, ...] | None = None,
        *,
        kept: bool = True,
    ) -> Attempt:
        """An attempt at an address, over the state as it is seen from there now, or over `data`.

        `kept`: it is the one whose touches count if what is being performed comes to nothing.
        """
        scope = self._scope
        seen = self.view(scope.journal.state.core, address) if data is None else data
        made = Attempt(address, number, seen, scope.codec, scope.journal.fetch, kind, writes)
        if kept:
            self.open[address] = made
        return made

    def view(self, core: Core, address: Address) -> Mapping[str, Cell]:
        """The state as it is, or was, seen from an address."""
        return lanes.view(self._scope.journal.program, core, address)

    async def call(
        self,
        key: str,
        attempt: Attempt,
        options: Mapping[str, Any] = _NONE,
        *,
        thread: bool = True,
        awaited: bool = True,
        abandon: bool = False,
        hook: str = "execute",
        more: tuple[Any, ...] = (),
    ) -> Any:
        """Call what is bound to a key. `abandon`: its thread is not waited for if the call is
        cancelled. `hook`: which method, if it is a `Stage`. `more`: what it is given beside ctx."""
        scope = attempt.past or self._scope
        binding = scope.binding(key)
        body: Any = getattr(binding, hook) if isinstance(binding, Stage) else binding
        ctx: Context[Any, Any] = Context(scope, attempt, options)
        known = key if hook == "execute" else f"{key}?{hook}"
        is_async = self._async.get(known)
        if is_async is None:
            is_async = self._async[known] = _is_async(body)
        if scope.workflow.ir.seed_globals and self._alone(attempt.address):
            randomness.seed_globals(ctx.seed)
        if is_async and awaited:
            return await self._awaited(body(ctx, *more), attempt)
        if thread and not is_async:  # in a tuple: trio lets no awaitable out of a thread
            (result,) = await self.threads.run(
                lambda: (body(ctx, *more),),
                patience=0 if abandon else partial(self._patience, attempt),
                abandoned=partial(self._left_behind, attempt),
            )
        else:
            result = body(ctx, *more)
        if awaited and inspect.isawaitable(result):
            return await self._awaited(result, attempt)
        return result

    async def _awaited(self, work: Awaitable[Any], attempt: Attempt) -> Any:
        """Await user code. What it raises while it is being stopped is no outcome of its own: many
        a client makes an error of its cancellation, and a run would fail by being interrupted."""
        try:
            return await balanced(work)
        except BaseException as error:
            timed_out = attempt.limit is not None and attempt.limit.cancel_called
            if not timed_out and being_cancelled():
                if isinstance(error, Exception):
                    where = spell(*attempt.address)
                    _logger.warning(
                        "run %s: %s raised while it was stopped: %r",
                        self._scope.run_id,
                        where,
                        error,
                    )
                await anyio.lowlevel.checkpoint_if_cancelled()
            raise

    async def in_thread(self, work: Any) -> Any:
        """Do something of our own in a worker thread, to its end."""
        return await self.threads.run(work)

    def _patience(self, attempt: Attempt) -> float:
        """How long to wait for a thread that is wanted no more."""
        known = self.open.get(attempt.address, attempt)  # a validation has its stage's time
        late = known.late or (known.limit is not None and known.limit.cancel_called)
        return 0.0 if late else self.patience

    def hurry(self, block: Address) -> None:
        """The time limit of a block has passed: no thread in it is waited for any more."""
        for attempt in self.open.values():
            attempt.late = attempt.late or within(attempt.address, block)

    def _left_behind(self, attempt: Attempt) -> None:
        attempt.leave_behind()
        if attempt.kind == "producer" and not self._scope.journal.state.stateful(attempt.touched):
            return  # it is wanted no more, and owns nothing
        self._scope.live.lost |= attempt.touched | attempt.peeked
        _logger.warning(
            "run %s: the thread of %s could not be stopped and is left behind; it gets at "
            "nothing of the run any more",
            self._scope.run_id,
            spell(*attempt.address),
        )

    async def ask(self, key: str, attempt: Attempt, *, thread: bool) -> Any:
        """Call what may only look, and end the attempt."""
        try:
            result = await self.call(key, attempt, thread=thread)
            self.check_untouched(attempt)
            return result
        finally:
            attempt.seal()

    def check_untouched(self, attempt: Attempt) -> None:
        """Raises where what may only look has changed the config, or an object of the state."""
        attempt.finish()
        self.check_config()

    def check_config(self) -> None:
        """Raises `WorkflowError` where user code has changed the config."""
        if not config_untouched(self._scope):
            raise WorkflowError(
                "the config was changed in place",
                hint="the config is a run's immutable input; what changes belongs into ctx.state",
            )

    def options(self, node: StageNode) -> Mapping[str, Any]:
        """A stage's options, frozen: the program that they come from serves other runs too."""
        if not node.options:
            return node.options
        known = self._frozen_options.get(id(node))
        if known is None:
            text = _PLAIN.encode(node.options, where="options").json
            known = self._frozen_options[id(node)] = _PLAIN.decode(text, no_blobs, key="options")
        return known

    def _alone(self, address: Address) -> bool:
        return address.path not in self._scope.journal.program.lanes


def _is_async(body: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(body, "func", body)) or inspect.iscoroutinefunction(
        getattr(body, "__call__", None)  # noqa: B004  (an object whose __call__ is async)
    )

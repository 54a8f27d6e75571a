"""The items of the loops around a place.

Rules:

1. Before user code runs, the items of the loops around it are there, from the log if need be.
2. Items that the log holds only by digest are asked for again, with the state, the seed and the
   config as of entry. A factory is called again with those of then, but for the config: what is
   built from it is built as it was edited since.
3. The items of a stream are had by taking its source to where it was; those of an async loop lie
   in the log, each with the event of its production.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from kitchen.errors import ItemsError
from kitchen.machine.events import (
    Address,
    BranchesStarted,
    ItemProduced,
    LoopEntered,
    RefItems,
)
from kitchen.runner import config as configs
from kitchen.runner import items
from kitchen.runner.attempt import Attempt
from kitchen.runner.calls import Calls
from kitchen.runner.scope import Scope
from kitchen.workflow.ir import PRODUCER, StreamLoopNode


class Surroundings:
    """The loops around, as this process knows them. `stream`: takes a stream to where it was."""

    def __init__(self, scope: Scope, calls: Calls) -> None:
        self._scope = scope
        self._calls = calls
        self.stream: Callable[[Address], Awaitable[None]] | None = None

    async def ensure(self, address: Address) -> set[str]:
        """Have the items of every loop around an address; what asking for them touched."""
        scope = self._scope
        touched: set[str] = set()
        loops = scope.journal.program.loops.get(address.path, ())
        for depth, path in enumerate(loops[: len(address.visit)]):
            if address.path == f"{path}/{PRODUCER}":
                continue  # its item is being made
            loop, number = Address(path, address.visit[:depth]), address.visit[depth]
            if loop in scope.journal.state.core.control.feeds:
                self._ensure_made(loop, number)
            elif loop not in scope.items:
                await self._have(loop, touched)
        return touched

    async def _have(self, loop: Address, touched: set[str]) -> None:
        if isinstance(self._scope.journal.program.nodes[loop.path], StreamLoopNode):
            assert self.stream is not None
            await self.stream(loop)
        else:
            self._scope.items[loop] = await self._recorded(loop, touched)

    def _ensure_made(self, loop: Address, number: int) -> None:
        """Have one item of an async loop's buffer."""
        scope = self._scope
        known = scope.items.setdefault(loop, {})
        if number in known:
            return
        feed = scope.journal.state.core.control.feeds[loop]
        made = next(each for each in feed.made if each.number == number)
        event = self._event(made.seq)
        assert isinstance(event, ItemProduced)
        known[number] = scope.codec.decode(event.value, scope.journal.fetch)

    async def _recorded(self, loop: Address, touched: set[str]) -> Any:
        scope = self._scope
        control = scope.journal.state.core.control
        frame = control.frames.get(loop) or control.forks[loop]
        event = self._event(frame.entered)
        assert isinstance(event, LoopEntered | BranchesStarted)
        collection = event.items
        assert collection is not None
        kept = items.recorded_items(collection, scope.journal, scope.codec)
        if kept is not None:
            return kept
        assert isinstance(collection, RefItems)
        attempt = self.past_attempt(loop, frame.entered - 1, "`over`", configured=True)
        again = await self.ask_over(loop, attempt)
        items.check_again(again, collection, scope.journal, scope.codec, loop)
        touched |= attempt.touched
        return items.ByReference(again, scope.codec)

    def past_attempt(
        self, address: Address, seq: int, kind: str, *, configured: bool = False
    ) -> Attempt:
        """An attempt that sees the state, and draws, as at `seq`; with `configured`, the config that
        held then as well."""
        scope = self._scope
        then = scope.journal.state_at(seq)
        attempt = self._calls.attempt(address, 0, kind, self._calls.view(then.core, address))
        now, begun = scope.journal.state.started, then.started
        if now is not None and begun is not None and now != begun:
            attempt.past = replace(scope, seed=begun.seed)
            if configured and now.config != begun.config:
                declared = scope.workflow.config_type
                attempt.past.config = configs.unlocked(begun.config, declared, scope.config)
        return attempt

    async def ask_over(self, address: Address, attempt: Attempt) -> Any:
        """All items of an `over`, and the end of its attempt."""
        try:
            given = await self._calls.call(address.path, attempt)
            if hasattr(given, "__aiter__"):
                raise ItemsError(
                    f"the loop {address} got an async iterator",
                    hint="`loop` takes a finite collection; make it a wf.stream_loop, or gather it "
                    "first: [item async for item in …]",
                )
            if isinstance(given, range | list | tuple):
                taken = items.materialise(given, address)
            else:  # a generator's body runs here, so the attempt is still open
                taken = await self._calls.in_thread(partial(items.materialise, given, address))
            self._calls.check_untouched(attempt)
            return taken
        finally:
            attempt.seal()

    def _event(self, seq: int) -> Any:
        (fact,) = self._scope.journal.facts(seq - 1, seq + 1)
        return fact.event

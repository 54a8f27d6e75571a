"""The streams of a replay: pulled item by item as the run pulled them, and compared.

Rules:

1. A source that gave another item goes on: the next one is compared as well. One that raised, or
   ended early, is not asked again; what follows goes by the items that the log holds.
2. Where only some paths are wanted, a stream is opened when an item of it is needed, and then
   followed: to put it back for each item would take longer every time.
"""

from __future__ import annotations

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.events import Address, Fact
from kitchen.runner.perform import Performer
from kitchen.runner.replaying.report import Report
from kitchen.runner.replaying.restored import Restored
from kitchen.runner.replaying.values import Difference, difference, shown
from kitchen.runner.scope import Scope
from kitchen.workflow.ir import StreamLoopNode


class Streams:
    """The open streams of a replay."""

    def __init__(
        self,
        scope: Scope,
        performer: Performer,
        resources: Restored,
        report: Report,
        tolerance: float,
    ) -> None:
        self._scope = scope
        self._performer = performer
        self._resources = resources
        self._report = report
        self._tolerance = tolerance
        self._ended: set[Address] = set()

    def is_one(self, path: str) -> bool:
        """Whether there is a stream_loop at a path."""
        return isinstance(self._scope.journal.program.nodes[path], StreamLoopNode)

    async def follow(self, seq: int, fact: Fact) -> None:
        """Move a stream that is open on, or leave it."""
        if not self.is_one(fact.path):
            return
        if isinstance(fact.event, E.LoopExited):
            await self._leave(seq, Address(fact.path, fact.visit))
        elif self._performer.feeding.is_open(Address(fact.path, fact.visit[:-1])):
            await self.take(seq, fact, compared=False)

    async def take(self, seq: int, fact: Fact, *, compared: bool) -> None:
        """Pull the item of `ItemTaken`."""
        event = fact.event
        assert isinstance(event, E.ItemTaken)
        at, loop, number = Address(*fact[1:3]), Address(fact.path, fact.visit[:-1]), fact.visit[-1]
        if loop in self._ended:
            return self._put(loop, number, event)
        if not self._performer.feeding.is_open(loop):
            await self._resources.ready(seq)
        outcome = (await self._performer.perform(C.PullItem(loop, number))).outcome
        if isinstance(outcome, C.ItemPulled) and outcome.item is not None:
            apart = self._apart(event, outcome.item, loop, number)
            if apart is None:
                return None
        else:
            self._ended.add(loop)
            apart = Difference("", self._shown(event), "the end")
        self._put(loop, number, event)
        if isinstance(outcome, C.CommandFailed):
            self._report.raised(seq, at, apart.recorded, outcome.failure)
        elif compared:
            self._report.differs(seq, at, "item", apart)
        return None

    async def exit(self, seq: int, fact: Fact, *, compared: bool) -> None:
        """See whether a stream ends where it ended."""
        loop = Address(fact.path, fact.visit)
        frame = self._scope.journal.state.core.control.frames[loop]
        if not frame.stop and loop not in self._ended:
            if not self._performer.feeding.is_open(loop):
                await self._resources.ready(seq)
            asked = C.PullItem(loop, frame.current + 1)
            outcome = (await self._performer.perform(asked)).outcome
            ended = f"the end after {frame.current + 1} items"
            if isinstance(outcome, C.CommandFailed):
                self._report.raised(seq, loop, ended, outcome.failure)
            elif isinstance(outcome, C.ItemPulled) and outcome.item is not None and compared:
                told = f"another: {self._shown(outcome.item)}"
                self._report.differs(seq, loop, "items", Difference("", ended, told))
        await self._leave(seq, loop)

    async def leave_all(self, seq: int, block: Address) -> None:
        """Close the sources of all streams in a block that has failed."""
        try:
            await self._performer.feeding.leave_all(block)
        except Exception as error:  # a source is the user's
            failure = self._performer.told(error)
            self._report.raised(seq, block, "a stream that was closed", failure)

    async def _leave(self, seq: int, loop: Address) -> None:
        self._ended.discard(loop)
        try:
            await self._performer.feeding.leave(loop)
        except Exception as error:  # a source is the user's
            self._report.raised(seq, loop, "closed", self._performer.told(error))

    def _apart(
        self, was: E.ItemTaken, now: E.ItemTaken, loop: Address, number: int
    ) -> Difference | None:
        if was.digest == now.digest:
            return None
        if not bytes(was.value):
            return Difference("", was.digest or "an item", now.digest or "an item")
        found = self._scope.items[loop][number]
        return difference(self._read(was), found, self._tolerance)

    def _put(self, loop: Address, number: int, event: E.ItemTaken) -> None:
        """Have the body see what is recorded, where the log holds it."""
        if bytes(event.value):
            self._scope.items[loop] = {number: self._read(event)}

    def _read(self, event: E.ItemTaken) -> object:
        return self._scope.codec.decode(event.value, self._scope.journal.fetch)

    def _shown(self, event: E.ItemTaken) -> str:
        return shown(self._read(event)) if bytes(event.value) else (event.digest or "an item")

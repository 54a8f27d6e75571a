"""Feeding loops whose items come one at a time: streams, and the producers of async loops.

Rules:

1. A stream belongs to its loop: opened when its first item is asked for, in a task of its own,
   closed when the loop is left. After a crash it is opened again, with the state, the seed and the
   config as of its first item, and moved on to where the body is.
2. A stream's `over` may not reach stateful resources, not even by a peek: it reads ahead, at a pace
   that nobody knows. Nor may a resource be a source.
3. A production sees the state that its number says, a copy of which is kept for it.
4. An item that is produced must last: what cannot be encoded is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import anyio.lowlevel
from msgspec import Raw

from kitchen.errors import ItemsError, UnencodableValue, WorkflowError
from kitchen.log.live import live
from kitchen.machine import commands as C
from kitchen.machine import feeds
from kitchen.machine.events import Address, ItemTaken, Manifest, spell
from kitchen.machine.outstanding import within
from kitchen.machine.state import Cell
from kitchen.runner.attempt import Attempt
from kitchen.runner.calls import Calls
from kitchen.runner.feeding.pulled import is_large
from kitchen.runner.feeding.stream import Past, Stream
from kitchen.runner.outcome import Performed
from kitchen.runner.scope import Scope
from kitchen.runner.surroundings import Surroundings
from kitchen.workflow.ir import StreamLoopNode


class Feeding:
    """The open streams and the productions of one execution. `host`: has a task go on
    beside, to pull a stream."""

    def __init__(self, scope: Scope, calls: Calls, surroundings: Surroundings) -> None:
        self._scope = scope
        self._calls = calls
        self._surroundings = surroundings
        self._streams: dict[Address, tuple[Stream, Attempt]] = {}
        self._seen: dict[tuple[Address, int], Mapping[str, Cell]] = {}
        self.producing: dict[Address, Attempt] = {}
        self.host: Callable[[Callable[[], Awaitable[None]]], Any]
        surroundings.stream = self._have_current

    # --- streams ---

    def ready(self, loop: Address) -> bool:
        """Whether an item could be had without waiting for long."""
        found = self._streams.get(loop)
        return found is not None and found[0].ready

    def is_open(self, loop: Address) -> bool:
        """Whether the stream has been opened, and has not come to its end."""
        return loop in self._streams

    async def pull(self, command: C.PullItem) -> Performed:
        """The next item of a stream."""
        loop, number = command.address, command.number
        stream = await self._stream(loop)
        pulled = await stream.take(number)
        if pulled is None:
            self._forget(loop)
            return Performed(C.ItemPulled(loop, number, None), {})
        self._scope.items[loop] = {number: pulled.item}
        return Performed(C.ItemPulled(loop, number, pulled.event), pulled.blobs)

    async def leave(self, loop: Address) -> None:
        """Close a stream's source."""
        found = self._streams.get(loop)
        if found is not None:
            self._forget(loop)
            await found[0].leave()

    async def leave_all(self, block: Address) -> None:
        """Close the sources of all streams in a block."""
        for loop in [loop for loop in self._streams if within(loop, block)]:
            await self.leave(loop)

    def forget_all(self) -> None:
        """The run is rewound: nothing of what was open, or kept for productions, serves any more."""
        for loop in list(self._streams):
            self._forget(loop)
        self._seen.clear()

    async def _have_current(self, loop: Address) -> None:
        """After a crash: have the item that the body is busy with."""
        stream = await self._stream(loop)
        number = self._scope.journal.state.core.control.frames[loop].current
        pulled = await stream.take(number)
        if pulled is None:
            raise ItemsError(f"the stream {spell(*loop)} ended before its item {number}")
        self._scope.items[loop] = {number: pulled.item}

    async def _stream(self, loop: Address) -> Stream:
        found = self._streams.get(loop)
        if found is not None:
            return found[0]
        scope, journal = self._scope, self._scope.journal
        frame = journal.state.core.control.frames[loop]
        if frame.current >= 0:  # another process has taken items
            past, first = self._past(loop, frame.entered, frame.current)
            # Behind the entry the state may have been edited before the first was asked for.
            attempt = self._surroundings.past_attempt(loop, first - 1, "stream", configured=True)
        else:
            seen = dict(self._calls.view(journal.state.core, loop))
            past, attempt = Past(), self._calls.attempt(loop, 0, "stream", seen)
        touched = await self._surroundings.ensure(loop)
        assert not touched or not scope.journal.state.stateful(touched)
        node = journal.program.nodes[loop.path]
        assert isinstance(node, StreamLoopNode)
        stream = Stream(loop, node.prefetch, scope.codec, journal, past)
        self._streams[loop] = stream, attempt
        self.host(partial(stream.run, partial(self._open, loop, attempt)))
        return stream

    async def _open(self, loop: Address, attempt: Attempt) -> Any:
        source = await self._calls.call(loop.path, attempt)
        for name in self._scope.live.holding(source):
            raise ItemsError(
                f"the source of the stream {spell(*loop)} is the resource {name!r}",
                hint="a stream's source belongs to its loop, which saves where it is: make it in "
                "over= itself, and leave the resource out",
            )
        return source

    def _past(self, loop: Address, entered: int, current: int) -> tuple[Past, int]:
        """What the log knows of the items that were taken since the loop was entered, and the seq
        of the first."""
        digests = [""] * (current + 1)
        states: dict[int, Manifest] = {}
        first, depth, journal = 0, len(loop.visit), self._scope.journal
        counting = live(journal.store, journal.run, journal.state.seq)
        facts = journal.facts(entered, journal.state.seq + 1)
        for seq, (event, path, visit, _) in enumerate(facts, start=entered + 1):
            if not isinstance(event, ItemTaken) or path != loop.path or not counting.counts(seq):
                continue
            if visit[:depth] == loop.visit and visit[depth] <= current:
                first = first or seq
                digests[visit[depth]] = event.digest
                if event.source is not None and visit[depth] < current:
                    states[visit[depth]] = event.source
        at = max(states, default=-1)
        return Past(digests, states.get(at), at), first

    def _forget(self, loop: Address) -> None:
        _, attempt = self._streams.pop(loop)
        attempt.seal()

    # --- productions ---

    def note(self, after: int) -> None:
        """Keep the state as a turn behind seq `after` has left it, for productions to see.

        To be called at once: what comes later in the log may have changed the state again.
        """
        state = self._scope.journal.state
        for loop, feed in state.core.control.feeds.items():
            seq = feed.ended[-1][0] if feed.ended else feed.entered
            if seq <= after:
                continue
            self._seen[loop, seq] = dict(self._calls.view(state.core, loop))
            oldest = feed.ended[0][0] if feed.turn > len(feed.ended) else feed.entered
            for known in [k for k in self._seen if k[0] == loop and k[1] < oldest]:
                del self._seen[known]
            made = self._scope.items.get(loop, {})
            for number in [number for number in made if number < feed.turn]:
                del made[number]

    def forget_notes(self, loop: Address) -> None:
        """Drop what was kept for the productions of a loop that was left."""
        for known in [key for key in self._seen if key[0] == loop]:
            del self._seen[known]

    async def produce(self, command: C.Produce) -> Performed:
        """Have a producer make an item."""
        scope, address = self._scope, command.address
        state = scope.journal.state
        loop = feeds.loop_of(address)
        node = feeds.node_of(scope.journal.program, loop.path)
        seen = feeds.seen(node, state.core.control.feeds[loop], address.visit[-1])
        attempt = self._calls.attempt(address, 0, "producer", self._data(loop, seen.seq))
        self.producing[address] = attempt
        try:
            attempt.touched |= await self._surroundings.ensure(address)
            try:
                item = await self._calls.call(address.path, attempt, abandon=True)
            finally:
                if attempt.left_behind:  # stopped: what it gives or raises now is nobody's
                    await anyio.lowlevel.checkpoint()
            self._calls.check_untouched(attempt)
            settle = partial(self._settled, item, address)
            large = is_large(item)  # then the event loop must not wait for it
            text, blobs, copy = await self._calls.in_thread(settle) if large else settle()
        finally:
            attempt.seal()
            self.producing.pop(address, None)
        made = scope.items.setdefault(loop, {})
        made[address.visit[-1]] = copy
        touched = tuple(attempt.touched)
        return Performed(
            C.ItemMade(address, Raw(text), seen.version, touched, attempt.looked), blobs
        )

    def _data(self, loop: Address, seq: int | None) -> Mapping[str, Cell]:
        """The state that a production sees; None: as it is now."""
        if seq is None:
            return dict(self._calls.view(self._scope.journal.state.core, loop))
        known = self._seen.get((loop, seq))
        if known is None:
            known = dict(self._calls.view(self._scope.journal.state_at(seq).core, loop))
            self._seen[loop, seq] = known
        return known

    def _settled(self, item: Any, address: Address) -> tuple[bytes, Mapping[str, bytes], Any]:
        """An item as it goes into the log, and as the body will see it."""
        text, blobs = self._encoded(item, address)
        return text, blobs, self._scope.codec.decode(text, blobs.__getitem__)

    def _encoded(self, item: Any, address: Address) -> tuple[bytes, Mapping[str, bytes]]:
        where = spell(*address)
        if item is None:
            raise WorkflowError(
                f"the producer {where} returned None",
                hint="return the item; is a `return` missing?",
            )
        try:
            return self._scope.codec.encode(item, where=f"the item of {where}")
        except UnencodableValue as error:
            raise ItemsError(
                f"an item that is produced must outlast a crash: {error.message}",
                hint=error.hint or "return plain data or arrays, not live objects",
            ) from error

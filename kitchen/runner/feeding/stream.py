"""The source of one `stream_loop`, pulled beside the body: lazily, in order, a little ahead.

Rules:

1. At most `prefetch` items are pulled and not yet taken. Nobody polls: who waits is woken.
2. A sync source is begun, pulled and closed by one worker thread, held as long as the stream
   lives: a hop between threads for every item would cost more than most items do, and what a
   generator opens (a database, a file) may be bound to its thread. An async source is begun,
   pulled and closed by the host task, as its cancel scopes want it.
3. What the source raises is told by `take`, behind the items before it. An error in an item that
   nobody takes is none: whether it was pulled at all is a matter of time.
4. What the body sees is a decoded copy: what it does to an item changes nothing elsewhere.
5. Behind a crash the source is moved on: put back where its recorded state says, or from its
   begin, then skipped to the last item that had been taken, which can be taken again. Each skipped
   item is compared with its digest.
6. The source is closed before the end is told. One that does not return is left behind, with a
   warning: its thread closes it when it does.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from anyio import to_thread

from kitchen.errors import ItemsError
from kitchen.log.journal import Journal
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address
from kitchen.runner.failure import balanced, being_cancelled
from kitchen.runner.feeding.pulled import Past, Pulled, Taken, is_large
from kitchen.runner.feeding.source import Source
from kitchen.runner.outside import outside
from kitchen.runner.threads import Wake, in_own_thread, waker

__all__ = ["Past", "Pulled", "Stream"]

_logger = logging.getLogger("kitchen.run")

EVERY = 32  # items between two recordings of a source's state
LEAVE_SECONDS = 10.0  # for a source to come back from a pull, or to close
ABANDON_SECONDS = 0.2  # the same, once the host task was cancelled
YIELD_SECONDS = 0.02
_END: Any = object()


class Stream:
    """The items of one visit of a stream_loop. `run` is a task beside those that `take`."""

    def __init__(
        self, address: Address, prefetch: int, codec: Codec, journal: Journal, past: Past
    ) -> None:
        self._where = str(address)
        self._prefetch = max(prefetch, 1)
        self._journal = journal
        self._past = past
        self._taken = Taken(self._where, codec, past.digests, put_back=past.source is not None)
        self._ready: deque[tuple[int, Pulled]] = deque()
        self._room = threading.Condition()  # its lock is over all that both sides change
        self._free: anyio.Event | None = None  # the host task waits for room
        self._wanted: anyio.Event | None = None  # a taker waits for an item
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._started = self._leaving = self._in_thread = self._abandoned = False
        self._outside = outside()
        self._resting = False  # the thread waits for room, and whoever watches was told so
        self._cancellable = True  # what the host task waits for may be cancelled to leave
        self._error: BaseException | None = None
        self._closing: BaseException | None = None

    # --- the side of the body ---

    async def take(self, index: int) -> Pulled | None:
        """The item with that index, once it is there; None at the end. Earlier ones are dropped.

        Raises what `over` or the source raised; `ItemsError` where the items are not those that
        were recorded, or the stream was left; `ResourceError` where a state cannot be had or used.
        """
        while True:
            with self._room:
                pulled = self._next(index)
                over = self._ended.is_set()
                if pulled is None and not over:
                    self._wanted = wanted = anyio.Event()
                else:
                    wanted = None
            if pulled is not None:
                return pulled
            if wanted is None:
                break
            await wanted.wait()
        if self._error is not None:
            raise self._error
        self._tell_closing()
        if self._leaving:
            raise ItemsError(f"the stream {self._where} was left before its item {index}")
        return None

    @property
    def ready(self) -> bool:
        """Whether an item is there to be taken, or the end."""
        return bool(self._ready) or self._ended.is_set()

    async def leave(self) -> None:
        """End the host task and wait until the source is closed; raises what closing raised."""
        with self._room:
            self._leave()
            if self._cancellable:
                self._scope.cancel()
        if not self._started:  # then it will not begin either
            return
        if self._in_thread:
            with anyio.move_on_after(LEAVE_SECONDS):
                await self._ended.wait()
            if not self._ended.is_set():
                self._scope.cancel()
        await self._ended.wait()
        self._tell_closing()

    def _next(self, index: int) -> Pulled | None:
        while self._ready and self._ready[0][0] <= index:
            at, pulled = self._ready.popleft()
            self._go_on()
            if self._free is not None:
                self._free.set()
            if at == index:
                return pulled
        if self._ready:
            raise ItemsError(
                f"item {index} of the stream {self._where} is gone: the source stands before item "
                f"{self._ready[0][0]}"
            )
        return None

    def _tell_closing(self) -> None:
        closing, self._closing = self._closing, None
        if closing is not None:
            raise closing

    # --- the host task ---

    async def run(self, open_source: Callable[[], Awaitable[Any]]) -> None:
        """Pull until the end, until asked to leave or cancelled, and close the source.

        What `open_source` or the source raises is for `take`; cancellation passes through, and so
        does what means the end of the process.
        """
        self._started = True
        try:
            with self._scope:
                if not self._leaving:
                    source = Source(await open_source(), self._where, self._journal)
                    await (self._host(source) if source.is_async else self._beside(source))
        except BaseException as error:
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            if isinstance(error, Exception | SystemExit) or (cancelled and not being_cancelled()):
                self._fail(error)
            else:
                self._error = self._error or (None if cancelled else error)
                self._leave()
                raise
        finally:
            with self._room:
                if self._leaving:
                    self._ready.clear()
                self._ended.set()
                if self._wanted is not None:
                    self._wanted.set()

    def _leave(self) -> None:
        with self._room:
            self._leaving = True
            self._go_on()
            if self._free is not None:
                self._free.set()

    def _go_on(self) -> None:
        """Have the thread look again whether to pull."""
        if self._resting:
            self._resting = False
            self._outside.more()
        self._room.notify()

    def _fail(self, error: BaseException) -> None:
        """Keep what the source raised for whoever takes."""
        if self._leaving or self._error is not None:
            _logger.info("stream %s: not waited for: %r", self._where, error)
        elif isinstance(error, Exception | SystemExit) and not isinstance(error, StopIteration):
            self._error = error
        else:  # a coroutine cannot raise the one, and the other would look like a cancellation
            told = f"the source of the stream {self._where} raised {type(error).__name__}"
            self._error = ItemsError(told)
            self._error.__cause__ = error

    def _fail_closing(self, error: BaseException) -> None:
        if self._abandoned or self._error is not None:
            _logger.warning("stream %s: its source did not close: %r", self._where, error)
        else:
            self._closing = error

    def _give(self, index: int, pulled: Pulled, wake: Wake) -> None:
        with self._room:
            if self._leaving:
                return
            self._ready.append((index, pulled))
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                wake(wanted.set)

    # --- a sync source, in its thread ---

    async def _beside(self, source: Source) -> None:
        closed, wake = anyio.Event(), waker()
        self._in_thread, self._cancellable = True, False
        begun = False
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            begun = True
            await in_own_thread(partial(self._pump, source, wake, closed))
        except anyio.get_cancelled_exc_class():
            self._leave()
            if not begun:  # no thread will close it
                with anyio.move_on_after(ABANDON_SECONDS, shield=True):
                    await in_own_thread(partial(self._close, source, wake, closed))
            with anyio.move_on_after(ABANDON_SECONDS, shield=True), outside():
                await closed.wait()
            if not closed.is_set():
                self._abandoned = True
                _logger.warning(
                    "stream %s: its source does not come back from a pull, and is left behind",
                    self._where,
                )
            raise

    def _pump(self, source: Source, wake: Wake, closed: anyio.Event) -> None:
        try:
            self._pull(source, wake)
        except (Exception, SystemExit) as error:
            self._fail(error)
        finally:
            self._close(source, wake, closed)

    def _close(self, source: Source, wake: Wake, closed: anyio.Event) -> None:
        try:
            source.close()
        except (Exception, SystemExit) as error:
            self._fail_closing(error)
        with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
            wake(closed.set)

    def _pull(self, source: Source, wake: Wake) -> None:
        manifest = self._past.source
        saved = None if manifest is None else (source.unpack(manifest),)
        index = first = self._past.at + 1 if source.begin(saved) else 0
        iterator = source.iterator
        while self._wait_for_room(wake):
            item = next(iterator, _END)
            if item is _END:
                self._taken.check_ended(index, first)
                return
            pulled = self._taken.seen(index, item)
            if pulled and self._is_due(source, index):
                pulled = pulled.with_source(source.pack(source.state()))
            del item
            if pulled is not None:
                self._give(index, pulled, wake)
            index += 1

    def _wait_for_room(self, wake: Wake) -> bool:
        """Whether to pull one more."""
        with self._room:
            while not self._leaving and len(self._ready) >= self._prefetch:
                if self._outside.watched and not self._resting:
                    self._resting = True
                    wake(self._outside.less)
                self._room.wait()
            return not self._leaving

    # --- an async source, in the host task ---

    async def _host(self, source: Source) -> None:
        try:
            await self._pull_async(source)
        except (Exception, SystemExit) as error:
            self._fail(error)
        finally:
            # No new scope where none is needed: the source may close one that it has opened.
            scope, self._cancellable = self._scope, False
            if scope.cancel_called:
                scope = anyio.CancelScope(shield=True)
                with scope:
                    await self._close_in_time(source, scope)
            else:
                scope.shield = True
                await self._close_in_time(source, scope)

    async def _close_in_time(self, source: Source, scope: anyio.CancelScope) -> None:
        scope.deadline = anyio.current_time() + LEAVE_SECONDS
        try:
            await source.aclose()
        except (Exception, SystemExit) as error:
            self._fail_closing(error)
        finally:
            if scope.cancel_called:
                _logger.warning("stream %s: closing its source took too long", self._where)

    async def _pull_async(self, source: Source) -> None:
        recorded, saved = self._past.source, None
        if recorded is not None:
            with outside():
                saved = await to_thread.run_sync(lambda: (source.unpack(recorded),))
        index = first = self._past.at + 1 if source.begin(saved) else 0
        iterator, slow = source.iterator, False
        self._cancellable = False
        yielded = time.monotonic()
        while await self._room_is_there():
            self._cancellable = True
            try:
                item = await balanced(iterator.__anext__())
            except StopAsyncIteration:
                self._taken.check_ended(index, first)
                return
            finally:
                self._cancellable = False
            if slow or is_large(item):
                with outside():
                    pulled, slow = await to_thread.run_sync(self._taken.timed, index, item)
            else:
                pulled, slow = self._taken.timed(index, item)
            if pulled and self._is_due(source, index):
                state = source.state()
                with outside():
                    manifest = await to_thread.run_sync(source.pack, state)
                pulled = pulled.with_source(manifest)
            del item
            if pulled is not None:
                self._give(index, pulled, _now)
            index += 1
            if time.monotonic() - yielded > YIELD_SECONDS:  # a source may never really wait
                await anyio.lowlevel.checkpoint()
                yielded = time.monotonic()

    async def _room_is_there(self) -> bool:
        """Whether to pull one more."""
        while True:
            with self._room:
                if self._leaving or len(self._ready) < self._prefetch:
                    return not self._leaving
                self._free = free = anyio.Event()
            await free.wait()

    def _is_due(self, source: Source, index: int) -> bool:
        """Whether the source's state is recorded with this item, which is not recorded yet."""
        due = index >= self._taken.count and (index + 1) % EVERY == 0
        return due and source.stateful and not self._leaving


def _now(call: Callable[[], None]) -> None:
    call()

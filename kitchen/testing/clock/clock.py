"""The virtual clock: real time, and what was skipped of it.

Rules:

1. Time goes on as it does. Only when an event loop would wait for its next timer, and nothing that it
   waits for is at work outside it (`kitchen.runner.outside`), the clock jumps there.
2. So while a thread computes, or a process, time is real: who computes for a moment under a timeout of
   an hour is not timed out. A thread that is in `sleep` is not at work, and the clock jumps to its end
   as to any timer.
3. Only the thread of the event loop jumps, in `wait`, which is what it asks before it waits. There is
   one event loop at a time; one after another, they share the time.
4. Who sleeps in a thread that was left behind is woken at once, with an error: nobody waits for it,
   and so for nobody's sake does its time pass.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kitchen.errors import ArgumentError, KitchenError, StaleContext
from kitchen.runner.outside import HERE, outside
from kitchen.testing.clock.sleeping import AWAITED, Awaited, Sleeper

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore
    from kitchen.testing.clock.loop_time import LoopTime

_BACKENDS = ("asyncio", "trio")


class VirtualClock:
    """A clock for tests, on which hours pass at once where a run would only wait.

        clock = VirtualClock()
        run = run_workflow(training, clock=clock)
        assert clock.elapsed >= 3600

    Retries, timeouts, `anyio.sleep`, `asyncio.sleep` and whatever else has a deadline of the event
    loop is on it. In sync bodies, which run in threads, use `clock.sleep` where the code that is
    tested would `time.sleep`. What runs in a process of its own (`process=True`) takes real time.

    What an async body waits for that is no timer, such as a socket, a subprocess, or a thread of its
    own by `anyio.to_thread`, the clock cannot see: it would skip to the next timer meanwhile. Put
    `with clock.outside():` around the `await`, and time is real there. (asyncio's own executor,
    `asyncio.to_thread`, is seen.) And a sync body that waits in its turn, for a lock, for threads it
    has started or by `anyio.from_thread`, is at work all the while: what they sleep is real.

    Without the fixture: `anyio.run(main, backend="trio", backend_options=clock.backend_options("trio"))`,
    and `store=clock.store(store)`, so that the times in the log are this clock's.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._skipped = 0.0  # seconds; written under the lock
        self._lock = threading.Lock()
        self._sleepers: list[Sleeper] = []
        self._loop: LoopTime | None = None  # of the event loop that runs now

    # --- for tests ---

    @property
    def elapsed(self) -> float:
        """Seconds that have passed on it since it was made, those that were skipped included."""
        return self.now() - self._began

    def time_ns(self) -> int:
        """The wall clock, in nanoseconds since the epoch: with what was skipped of it."""
        return time.time_ns() + int(self._skipped * 1e9)

    def sleep(self, seconds: float) -> None:
        """Sleep, in a thread: `time.sleep` on this clock.

        Where no event loop runs on it, the time has passed at once. Raises `KitchenError` in the
        thread of the event loop, which must not be held up; `StaleContext` where the stage has been
        left behind, as after its timeout.
        """
        _check(seconds)
        work = HERE.work or AWAITED.get()
        with self._lock:
            if work is not None and work.abandoned:
                raise _left_behind()
            loop = self._loop
            if loop is None:
                self._skipped += seconds
                return
            if loop.is_here:
                raise KitchenError(
                    "clock.sleep() would hold up the event loop, in whose thread it was called",
                    hint="await anyio.sleep(seconds) in what is async; a sync stage sleeps in its "
                    "thread, unless it has thread=False",
                )
            sleeper = Sleeper(self.now() + seconds, work)
            self._sleepers.append(sleeper)
        loop.call(sleeper.heard)
        sleeper.woken.wait()
        if sleeper.lost:
            raise _left_behind()

    def advance(self, seconds: float) -> None:
        """Let so much time pass at once, for everybody: between a crash and its resume, say."""
        _check(seconds)
        with self._lock:
            self._skipped += seconds
            loop = self._loop
        if loop is not None:
            loop.call(_nothing)

    @contextmanager
    def outside(self) -> Generator[None]:
        """Around an `await` of what the clock cannot see; time is real there, unless it is in
        `clock.sleep` (in a thread that has this context, as those of anyio have)."""
        with outside() as loop, Awaited(loop) as awaited:
            token = AWAITED.set(awaited)
            try:
                yield
            finally:
                AWAITED.reset(token)

    def backend_options(self, backend: str = "asyncio") -> dict[str, Any]:
        """What to give `anyio.run` as `backend_options=`, for an event loop on this clock.

        Raises `ArgumentError` for an unknown backend, `KitchenError` where an event loop runs on it.
        """
        self._check_free(None)
        if backend == "asyncio":
            from kitchen.testing.clock.asyncio_loop import VirtualLoop

            return {"loop_factory": lambda: VirtualLoop(self)}
        if backend == "trio":
            from kitchen.testing.clock.trio_clock import trio_options

            return trio_options(self)
        raise ArgumentError(f"backend is one of {', '.join(_BACKENDS)}, not {backend!r}")

    def store(self, event_store: EventStore) -> EventStore:
        """The same store, in which what is appended from now on has the times of this clock."""
        from kitchen.testing.clock.stamped import Stamped

        return Stamped(event_store, self)  # type: ignore[return-value]

    # --- for event loops, and for what is sync and called by them ---

    def now(self) -> float:
        """Seconds, from no particular moment on."""
        return time.monotonic() + self._skipped

    def stand_still(self, seconds: float) -> None:
        """Be busy for so long: who is in the event loop's thread holds it up, as real work would."""
        loop = self._loop
        if loop is not None and loop.is_here:
            self.advance(seconds)
        else:
            self.sleep(seconds)

    def started(self, loop: LoopTime) -> None:
        """An event loop begins to run, in this thread. Raises `KitchenError` where another does."""
        with self._lock:
            self._check_free(loop)
            self._loop = loop

    def stopped(self) -> None:
        """It runs no more; who still sleeps in a thread is left behind."""
        with self._lock:
            self._loop = None
            sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.wake(lost=True)

    def wait(self, timeout: float | None) -> float | None:
        """How many seconds an event loop is to wait, whose next timer is due in `timeout` seconds
        (None: it has none). Jumps there if nothing is at work."""
        loop = self._loop
        assert loop is not None
        with self._lock:
            now = self.now()
            self._drop_lost()
            due = math.inf if timeout is None else now + timeout
            due = min(due, *(sleeper.due for sleeper in self._sleepers), math.inf)
            asleep = {each.work for each in self._sleepers if each.is_asleep_in(loop)}
            jumps = loop.count <= len(asleep) and due < math.inf
            if jumps:
                self._skipped += max(due - now, 0.0)
                now = max(due, now)
            woken = [sleeper for sleeper in self._sleepers if sleeper.due <= now]
            self._sleepers = [sleeper for sleeper in self._sleepers if sleeper.due > now]
        for sleeper in woken:
            sleeper.wake()
        if loop.end_pauses(now) or jumps or woken:
            return 0.0
        due = min(due, loop.next_pause)
        return None if due == math.inf else max(due - now, 0.0)

    def _check_free(self, loop: LoopTime | None) -> None:
        if self._loop not in (None, loop):
            raise KitchenError(
                "this virtual clock is that of another event loop, which runs now",
                hint="make a VirtualClock for each; they have times of their own",
            )

    def _drop_lost(self) -> None:
        """Wake those whose threads are waited for no more."""
        for sleeper in [each for each in self._sleepers if each.is_lost]:
            self._sleepers.remove(sleeper)
            sleeper.wake(lost=True)


def _check(seconds: object) -> None:
    if (
        isinstance(seconds, int | float)
        and not isinstance(seconds, bool)
        and 0 <= seconds < math.inf
    ):
        return
    raise ArgumentError(f"expected seconds, from 0 on, got {seconds!r}")


def _nothing() -> None:
    """For who only wants the event loop to ask the clock again."""


def _left_behind() -> StaleContext:
    return StaleContext(
        "slept on a virtual clock in a thread that is waited for no more",
        hint="the stage has timed out, or its run has ended, while it slept",
    )

"""What a virtual clock knows of an event loop: what is outside it, and the pauses in it.

Rule: a pause ends when it is late enough, and the clock does not jump for it. So what is done every
half second, such as writing the metrics of long stages, is done once a jump, however far that goes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from kitchen.runner.outside import HERE, Outside
from kitchen.runner.threads import Wake

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock


class LoopTime(Outside):
    """One event loop on a virtual clock.

    `wake` has the event loop call something, from any thread, in the order in which it was told.
    """

    watched = True

    def __init__(self, clock: VirtualClock, wake: Wake) -> None:
        super().__init__()
        self._clock = clock
        self._wake = wake
        self._thread = 0
        self._pauses: list[tuple[float, anyio.Event]] = []
        self._before = HERE.outside

    @property
    def is_here(self) -> bool:
        """Whether this is the thread of the event loop."""
        return threading.get_ident() == self._thread

    def begin(self) -> None:
        """The event loop begins to run, in this thread."""
        self._clock.started(self)
        self._thread, self._before, HERE.outside = threading.get_ident(), HERE.outside, self

    def end(self) -> None:
        """It runs no more."""
        HERE.outside = self._before
        self._clock.stopped()

    def call(self, what: Callable[[], None]) -> None:
        """Have the event loop call this, behind what it was told before, and ask the clock again."""
        with suppress(RuntimeError):  # it has ended meanwhile, and who sleeps was told so
            self._wake(what)

    async def pause(self, seconds: float) -> None:
        """Until the clock says that it is so late, or later: it does not jump for this."""
        entry = self._clock.now() + seconds, anyio.Event()
        self._pauses.append(entry)
        try:
            await entry[1].wait()
        finally:
            if entry in self._pauses:
                self._pauses.remove(entry)

    @property
    def next_pause(self) -> float:
        """When the next pause ends."""
        return min((due for due, _ in self._pauses), default=math.inf)

    def end_pauses(self, now: float) -> bool:
        """End those that are due; whether there were any."""
        ended = [entry for entry in self._pauses if entry[0] <= now]
        for entry in ended:
            self._pauses.remove(entry)
            entry[1].set()
        return bool(ended)

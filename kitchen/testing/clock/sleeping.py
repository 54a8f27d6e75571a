"""Threads that sleep on a virtual clock, and for whom they are at work.

Rules:

1. A thread that an event loop waits for is counted there as at work; who sleeps in it is not, and so
   the clock needs to know what of the count is asleep.
2. It is asleep once the event loop has heard so, in its turn: what the thread had told it before (an
   item of a stream, say) has then been heard too, and whoever waits for that was woken.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from kitchen.runner.outside import Outside

if TYPE_CHECKING:
    from kitchen.testing.clock.loop_time import LoopTime


class Awaited:
    """What a thread does that an event loop waits for, where it is not the runner that does."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self.abandoned = False

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *told: object) -> None:
        self.abandoned = True


AWAITED: ContextVar[Awaited | None] = ContextVar("kitchen_awaited", default=None)


class Sleeper:
    """A thread that sleeps; `work` is what it does for an event loop, if it does."""

    __slots__ = ("due", "is_heard_of", "lost", "woken", "work")

    def __init__(self, due: float, work: Any) -> None:
        self.due = due
        self.work = work
        self.woken = threading.Event()
        self.lost = False
        self.is_heard_of = False

    def heard(self) -> None:
        """The event loop has heard of it."""
        self.is_heard_of = True

    @property
    def is_lost(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.work is not None and self.work.abandoned

    def is_asleep_in(self, loop: LoopTime) -> bool:
        """Whether it is counted there as at work, though it is not."""
        return self.is_heard_of and self.work is not None and self.work.outside is loop

    def wake(self, *, lost: bool = False) -> None:
        """Have it go on."""
        self.lost = lost
        self.woken.set()

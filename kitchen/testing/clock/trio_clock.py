"""trio on a virtual clock: it asks its clock how long to wait once nothing is runnable.

Rule: what has arrived from outside and was not read yet is of no account: who waits for a thread is
counted until trio has woken it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio

from kitchen.testing.clock.loop_time import LoopTime

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock


def trio_options(clock: VirtualClock) -> dict[str, Any]:
    """What `trio.run` is to be given."""
    time = _Time(clock)
    return {"clock": time, "instruments": [time]}


class _Time(trio.abc.Clock, trio.abc.Instrument):
    """The clock as trio sees it; as an instrument, it is told when the event loop has ended."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._outside: LoopTime | None = None

    def start_clock(self) -> None:
        """The event loop begins."""
        token = trio.lowlevel.current_trio_token()
        outside = LoopTime(self._clock, token.run_sync_soon)
        outside.begin()
        self._outside = outside

    def after_run(self) -> None:
        """The event loop has ended."""
        if self._outside is not None:
            self._outside.end()

    def current_time(self) -> float:
        """The clock's time."""
        return self._clock.now()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How many seconds to wait, where the next timer is due at `deadline`."""
        timeout = None if deadline == math.inf else max(deadline - self._clock.now(), 0.0)
        seconds = self._clock.wait(timeout)
        return math.inf if seconds is None else seconds

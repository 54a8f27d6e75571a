"""Time limits of blocks: told to the kernel when they have passed.

Rules:

1. What counts is executing time. Between a crash and its resume none passes: a limit that is taken
   up again has used what the times of the log tell of the processes that ran under it. A retry in
   the block counts. What a crash makes the run do again does not, nor does a retry behind the
   block: neither a kill nor what comes later may spend the time of a block that keeps to it.
2. Which limits there are is in the state. Nothing here decides anything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from kitchen.log.journal import Journal
from kitchen.log.reader import fact_of
from kitchen.machine.events import Address
from kitchen.machine.state import Limit
from kitchen.ports.event_store import Record


class TimeLimits:
    """The limits that are running. `passed`: those that have passed, and were not told yet."""

    def __init__(
        self,
        journal: Journal,
        host: Callable[[Callable[[], Awaitable[None]]], anyio.CancelScope],
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._host = host
        self._wake = wake
        self._running: dict[Address, tuple[Limit, anyio.CancelScope]] = {}
        self.passed: list[Address] = []

    def look(self) -> None:
        """Have those limits running that are in the state, and no others."""
        wanted = self._journal.state.core.control.limits
        for address, (limit, scope) in list(self._running.items()):
            if wanted.get(address) != limit:
                scope.cancel()
                del self._running[address]
        for address, limit in wanted.items():
            if address not in self._running:
                left = max(limit.seconds - executed(self._journal, limit.entered, address), 0.0)
                scope = self._host(partial(self._wait, address, limit, left))
                self._running[address] = limit, scope

    def stop(self) -> None:
        """Have none running."""
        for _, scope in self._running.values():
            scope.cancel()
        self._running.clear()
        self.passed.clear()

    def due(self) -> list[Address]:
        """Those that have passed and are still in the state, the outermost first; each once."""
        passed, self.passed = self.passed, []
        wanted = self._journal.state.core.control.limits
        return sorted((a for a in passed if a in wanted), key=lambda a: len(a.path))

    async def _wait(self, address: Address, limit: Limit, left: float) -> None:
        await anyio.sleep(left)
        if self._journal.state.core.control.limits.get(address) == limit:
            self.passed.append(address)
            self._wake()


def executed(journal: Journal, since: int, address: Address) -> float:
    """For how many seconds the block there was executed since an event, as far as the log tells."""
    if since >= journal.state.seq:
        return 0.0
    before, seqs, totals = 0, [since - 1], [0]
    resumed = ended = False
    for record in journal.store.read(journal.run, after=since - 1):
        total, kind = totals[-1], record.type
        if kind == "RunRewound":
            if resumed or ended:  # a kill must not spend its time, nor what came behind it
                kept = max(bisect_right(seqs, to_of(record)), 1)
                del seqs[kept:], totals[kept:]
                total, ended = totals[-1], False
        elif before and kind != "RunResumed" and not ended:
            total += max(record.at - before, 0)
        if kind == "TimeLimitEnded" and (record.path, record.visit) == address:
            ended = True
        resumed = kind in _COMING_BACK and (resumed or kind == "RunResumed")
        before = record.at
        seqs.append(record.seq)
        totals.append(total)
    return totals[-1] / 1e9


_COMING_BACK = ("RunResumed", "StageInterrupted")  # until the rewind that a crash makes necessary


def to_of(record: Record) -> int:
    """The seq that a rewind goes back to."""
    event: Any = fact_of(record).event
    return event.to

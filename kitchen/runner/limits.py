"""Time limits of blocks: told to the kernel when they have passed.

Rules:

1. What counts is executing time. Between a crash and its resume none passes: a limit that is taken
   up again has used what the times of the log tell of the processes that ran under it.
2. Which limits there are is in the state. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from kitchen.log.journal import Journal
from kitchen.machine.events import Address
from kitchen.machine.state import Limit


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
                left = max(limit.seconds - executed(self._journal, limit.entered), 0.0)
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


def executed(journal: Journal, since: int) -> float:
    """For how many seconds the run was executed since an event, as far as the log tells."""
    if since >= journal.state.seq:
        return 0.0
    total, before = 0, 0
    for record in journal.store.read(journal.run, after=since - 1):
        told: Any = record
        if before and told.type != "RunResumed":
            total += max(told.at - before, 0)
        before = told.at
    return total / 1e9

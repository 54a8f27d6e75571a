"""A store whose events have the times of a virtual clock.

Rule: what comes with a time of its own keeps it. `time_ns` says what time it is here, for who counts
from the times in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore, NewEvent
    from kitchen.testing.clock.clock import VirtualClock


class Stamped:
    """An event store on a virtual clock. Everything else is handed through."""

    def __init__(self, store: EventStore, clock: VirtualClock) -> None:
        self._store = store
        self.time_ns = clock.time_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __enter__(self) -> Stamped:
        return self

    def __exit__(self, *told: object) -> None:
        self._store.close()

    def create_run(
        self, run: str, name: str, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """As the store inside does."""
        return self._store.create_run(run, name, events, self._at(at))

    def fork_run(
        self,
        run: str,
        name: str,
        parent: str,
        seq: int,
        events: Sequence[NewEvent],
        at: int | None = None,
    ) -> int:
        """As the store inside does."""
        return self._store.fork_run(run, name, parent, seq, events, self._at(at))

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """As the store inside does."""
        return self._store.append(run, expected, events, self._at(at))

    def _at(self, at: int | None) -> int:
        return self.time_ns() if at is None else at

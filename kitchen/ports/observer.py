"""What watches a run while it goes on: progress displays, metrics stores, telemetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kitchen.machine.events import Address, Fact
    from kitchen.machine.state import State


class RunObserver(Protocol):
    """Is told what has been appended, after it was. Nothing it does reaches the run.

    To count nothing twice, key what you keep by (path, visit, `state.incarnation`) and drop on
    `RunRewound` what came after its `to`. A metric counts once its attempt is committed.
    """

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """These facts were appended; the last has the seq `state.seq`. Treat both as read-only."""
        ...

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """A running stage said how far it is. Not in the log; may come from a worker thread."""
        ...

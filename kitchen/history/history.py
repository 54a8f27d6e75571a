"""`History`: what a run's log says, without any code of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from kitchen.errors import HistoryError
from kitchen.history import metrics
from kitchen.history.metrics import Point
from kitchen.log.reader import LogReader, fact_of, recorded_ir, started
from kitchen.machine import cells
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Event, RunStarted, Visit
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore
from kitchen.workflow.ir import WorkflowIR

LIFE = ("RunStarted", "RunResumed", "RunInterrupted", "RunCompleted", "RunFailed")
_STATUS = {
    "RunStarted": "running",
    "RunResumed": "running",
    "RunInterrupted": "interrupted",
    "RunCompleted": "completed",
    "RunFailed": "failed",
}


class Recorded(NamedTuple):
    """An event as the log has it. `at` is in nanoseconds since the epoch.

    `counts` is False for what a rewind has superseded.
    """

    seq: int
    at: int
    type: str
    path: str
    visit: Visit
    attempt: int
    event: Event
    counts: bool


def status_of(store: EventStore, run: str) -> str:
    """ "running", "crashed", "interrupted", "completed" or "failed", from the run's last turn.

    A run that nobody holds and that says it is running has crashed.
    """
    last = store.latest(run, LIFE)
    status = _STATUS[last.type] if last is not None else "empty"
    if status == "running" and store.run(run).owner is None:
        return "crashed"
    return status


class History:
    """A run's log, read only. `store` must stay open while it is used."""

    def __init__(self, store: EventStore, run: str) -> None:
        self.store = store
        self.run_id = run
        store.run(run)

    @cached_property
    def ir(self) -> WorkflowIR:
        """The workflow as it was last recorded."""
        return recorded_ir(self.store, self.run_id)

    @cached_property
    def _reader(self) -> LogReader:
        return LogReader(self.store, self.run_id, compile_workflow(self.ir))

    @property
    def loops(self) -> dict[str, tuple[str, ...]]:
        """The paths of the loops around each node, for spelling addresses."""
        return self._reader.program.loops

    @property
    def status(self) -> str:
        """ "running", "crashed", "interrupted", "completed" or "failed"."""
        return status_of(self.store, self.run_id)

    @cached_property
    def started(self) -> RunStarted:
        """The run's first event. Raises `HistoryError` where it is another."""
        return started(self.store, self.run_id)

    @property
    def config(self) -> Any:
        """The config, as built-ins."""
        return Codec().decode(self.started.config, self._reader.fetch)

    @property
    def events(self) -> list[Recorded]:
        """Every event, superseded ones included."""
        return list(self.tail(0))

    def tail(self, after: int) -> Iterator[Recorded]:
        """The events behind a seq."""
        superseded = self.superseded
        for record in self.store.read(self.run_id, after=after):
            _, path, visit, attempt = fact = fact_of(record)
            yield Recorded(
                record.seq, record.at, record.type, path, visit, attempt, fact.event,
                not any(low < record.seq < high for low, high in superseded),
            )  # fmt: skip

    @property
    def superseded(self) -> list[tuple[int, int]]:
        """The stretches that no longer count: (last seq kept, seq of the rewind)."""
        stretches: list[tuple[int, int]] = []
        for record in self.store.read(self.run_id, types=["RunRewound"]):
            event: Any = fact_of(record).event
            stretches.append((event.to, record.seq))
        return stretches

    def folded(self, seq: int | None = None) -> State:
        """The kernel's state at a seq (None: the head).

        Raises `HistoryError` where there is no such seq.
        """
        head = self.store.head(self.run_id)
        if seq is not None and not 0 < seq <= head:
            raise HistoryError(f"run {self.run_id!r} has the events 1 to {head}, not {seq}")
        return self._reader.state_at(seq)

    def state_at(self, seq: int | None = None) -> dict[str, Any]:
        """The user's state at a seq (None: the head), decoded without any declared type."""
        codec = Codec()
        data = self.folded(seq).core.data
        return {k: cells.read(cell, codec, self._reader.fetch, k) for k, cell in data.items()}

    def metrics(self, name: str) -> list[Point]:
        """A metric's points that count, in the order of their commits."""
        return metrics.series(self.store, self.run_id, name).get(name, [])

    @property
    def all_metrics(self) -> dict[str, list[Point]]:
        """Every metric's points that count."""
        return metrics.series(self.store, self.run_id)

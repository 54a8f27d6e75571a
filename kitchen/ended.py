"""What a verb gives back once a run has ended here: the `Run`, or the exception that carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from kitchen.errors import RunCancelled, RunError, RunInterrupted
from kitchen.history.metrics import Point, series
from kitchen.log.journal import Journal
from kitchen.log.reader import fact_of, recorded_ir
from kitchen.machine import cells
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.codec.frozen import FrozenDict
from kitchen.machine.events import Failure, spell
from kitchen.ports.event_store import EventStore
from kitchen.runner import config as configs
from kitchen.runner.start import Ended
from kitchen.workflow.definition import Workflow

C = TypeVar("C")
S = TypeVar("S")


class RunState(FrozenDict):
    """The final state: a read-only mapping whose keys are attributes too."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"the state has no {key!r}") from None


class Run(Generic[C, S]):
    """A run as it stood when this process was done with it.

    `status`: "completed", "failed", "interrupted" or "cancelled". `metrics`: the points that count, by name.
    """

    def __init__(
        self,
        id: str,  # noqa: A002  (pinned by the design)
        status: str,
        state: S,
        config: C,
        metrics: Mapping[str, Sequence[Point]],
        failure: Failure | None = None,
    ) -> None:
        self.id = id
        self.status = status
        self.state = state
        self.config = config
        self.metrics = metrics
        self.failure = failure

    def __repr__(self) -> str:
        return f"<Run {self.id!r}: {self.status}>"


def ended_run(ended: Ended, workflow: Workflow[C, S]) -> Run[C, S]:
    """The run, or the exception that carries it."""
    journal = ended.journal
    made = _run(journal, workflow.config_type, workflow.state_type)
    if made.status == "failed":
        assert made.failure is not None
        where = _failed_at(journal)
        told = f"{made.failure.type}: {made.failure.message}"
        todo = f"kitchen show {made.id}, then kitchen resume {made.id}"
        if journal.state.is_taken_back:
            todo = "its completed stages were rolled back: start another run, under another id"
        raise RunError(
            f"run {made.id!r} failed at {where}\n  {told}", run=made, hint=made.failure.hint or todo
        ) from ended.cause
    if made.status == "cancelled":
        raise RunCancelled(
            f"run {made.id!r} was cancelled at seq {journal.state.seq} by "
            f"{_last(journal, 'RunCancelled').by or 'somebody'}",
            run=made,
            hint="a cancelled run is over; start another",
        )
    if made.status == "interrupted":
        raise RunInterrupted(
            f"run {made.id!r} was interrupted at seq {journal.state.seq}",
            run=made,
            signal=_last(journal, "RunInterrupted").signal,
            hint=f"kitchen resume {made.id}",
        )
    return made


def _run(journal: Journal, config_type: Any, declared: Any) -> Run[Any, Any]:
    begun = journal.state.started
    assert begun is not None
    codec = Codec.for_types(*([declared] if declared is not None else []))
    data = journal.state.core.data
    values = {key: cells.read(cell, codec, journal.fetch, key) for key, cell in data.items()}
    failed = journal.state.status == "failed"
    return Run(
        id=journal.run,
        status=journal.state.status,
        state=RunState(values),
        config=configs.restore(begun.config, config_type),
        metrics=series(journal.store, journal.run),
        failure=_last(journal, "RunFailed").failure if failed else None,
    )


def untyped(events: EventStore, run_id: str) -> Run[Any, Any]:
    """A completed run whose code is not to be found: config and state are mappings."""
    journal = Journal(events, run_id, compile_workflow(recorded_ir(events, run_id)))
    journal.load()
    return _run(journal, None, None)


def _last(journal: Journal, type_name: str) -> Any:
    record = journal.store.latest(journal.run, [type_name])
    assert record is not None
    return fact_of(record).event


def _failed_at(journal: Journal) -> str:
    record = journal.store.latest(journal.run, ["RunFailed"])
    assert record is not None
    loops = journal.program.loops.get(record.path)
    return spell(record.path, record.visit, loops) or "its start or its end"

"""`History`: what a run's log says, without any code of the user's.

Rules: the store may have been made by anybody. What in it does not read is a `KitchenError` that
names the run and the event, and nothing that it names is imported or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, cast

from kitchen.errors import CorruptValue, HistoryError, KitchenError
from kitchen.history import metrics
from kitchen.history.metrics import Point
from kitchen.log.reader import LogReader, blamed, fact_of, recorded_ir, started
from kitchen.machine import cells
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Event, RunStarted, Visit, spell
from kitchen.machine.outstanding import undecided
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore
from kitchen.workflow.ir import StageNode, WorkflowIR, walk

LIFE = (
    "RunStarted", "RunResumed", "RunInterrupted", "RunCancelled", "RunCompleted", "RunFailed",
)  # fmt: skip
_CHANGES = ("StatePut", "StateAppended", "StateIncremented", "StateMerged")
_STATUS = {
    "RunStarted": "running",
    "RunResumed": "running",
    "RunInterrupted": "interrupted",
    "RunCancelled": "cancelled",
    "RunCompleted": "completed",
    "RunFailed": "failed",
}
_STOPPED = frozenset({"crashed", "interrupted", "failed"})


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
    """ "running", "crashed", "interrupted", "undecided", "completed", "failed" or "cancelled", from
    the run's last turn.

    A run that nobody holds and that says it is running has crashed. One that has stopped, and does
    not go on before somebody has decided something, is undecided.
    """
    last = store.latest(run, LIFE)
    status = _STATUS[last.type] if last is not None else "empty"
    if status == "running" and store.run(run).owner is None:
        status = "crashed"
    return "undecided" if status in _STOPPED and undecided_of(store, run) else status


def undecided_of(store: EventStore, run: str) -> tuple[str, ...]:
    """Where a run that nobody executes waits for a decision, by path and visit; none where its log
    is damaged, which is told by whoever reads it."""
    try:
        ir = recorded_ir(store, run)
        if not any(isinstance(node, StageNode) and node.effect == "once" for _, node in walk(ir)):
            return ()  # as nearly always, and folding takes longer
        program = compile_workflow(ir)
        waiting = undecided(program, LogReader(store, run, program).state_at(None))
    except KitchenError:
        return ()
    return tuple(spell(*at, program.loops.get(at.path)) for at in waiting)


def is_taken_back(store: EventStore, run: str) -> bool:
    """Whether a run failed and rolled its completed stages back: there is nothing to go on from."""
    if status_of(store, run) != "failed" or store.latest(run, ["StageRolledBack"]) is None:
        return False
    try:
        ir = recorded_ir(store, run)
        return LogReader(store, run, compile_workflow(ir)).state_at(None).is_taken_back
    except KitchenError:
        return False


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
    def program(self) -> Program:
        """That workflow, compiled."""
        return self._reader.program

    @property
    def loops(self) -> dict[str, tuple[str, ...]]:
        """The paths of the loops around each node, for spelling addresses."""
        return self.program.loops

    @property
    def status(self) -> str:
        """ "running", "crashed", "interrupted", "undecided", "completed", "failed" or "cancelled"."""
        return status_of(self.store, self.run_id)

    @property
    def undecided(self) -> tuple[str, ...]:
        """The stages of which somebody has to say whether they have happened, by path and visit."""
        return undecided_of(self.store, self.run_id) if self.status == "undecided" else ()

    def fetch(self, digest: str) -> bytes:
        """A blob. Raises `BlobLost`, and `CorruptValue` for what is no digest."""
        return self._reader.fetch(digest)

    @cached_property
    def started(self) -> RunStarted:
        """The run's first event. Raises `HistoryError` where it is another."""
        return started(self.store, self.run_id)

    @property
    def config(self) -> Any:
        """The config, as built-ins. Raises `CorruptValue` where it is none."""
        text = self.started.config
        try:
            found = Codec().decode(text, self._reader.fetch)
        except CorruptValue as error:
            raise self._blaming(error, 1) from None
        if not isinstance(found, Mapping):
            wrong = CorruptValue(f"the recorded config is a {type(found).__name__}")
            raise self._blaming(wrong, 1)
        return cast("Mapping[Any, Any]", found)

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
        """The user's state at a seq (None: the head), decoded without any declared type.

        Raises `CorruptValue` where a value does not decode.
        """
        codec = Codec()
        folded = self.folded(seq)
        values: dict[str, Any] = {}
        for key, cell in folded.core.data.items():
            try:
                values[key] = cells.read(cell, codec, self._reader.fetch, key)
            except CorruptValue as error:
                error.message = f"state[{key[:80]!r}]: {error.message}"
                raise self._blaming(error, self._changed_at(key, folded.seq)) from None
        return values

    def _changed_at(self, key: str, until: int) -> int:
        """The seq of the last event at or before `until` that changed a key and counts."""
        superseded = [(low, high) for low, high in self.superseded if high <= until]
        last = 1
        for record in self.store.read(self.run_id, until=until, types=_CHANGES):
            event: Any = fact_of(record).event
            if event.key == key and not any(low < record.seq < high for low, high in superseded):
                last = record.seq
        return last

    def _blaming(self, error: CorruptValue, seq: int) -> KitchenError:
        for record in self.store.read(self.run_id, after=seq - 1, until=seq):
            return blamed(error, record)
        return error

    def metrics(self, name: str) -> list[Point]:
        """A metric's points that count, in the order of their commits."""
        return metrics.series(self.store, self.run_id, name).get(name, [])

    @property
    def all_metrics(self) -> dict[str, list[Point]]:
        """Every metric's points that count."""
        return metrics.series(self.store, self.run_id)

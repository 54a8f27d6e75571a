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
from kitchen.history.patterns import EVERYTHING, Patterns
from kitchen.history.places import places
from kitchen.history.trace import TURNS, Hide, Teller, turn
from kitchen.history.tree import TreeNode, tree_of
from kitchen.log.live import begun, live
from kitchen.log.reader import LogReader, blamed, fact_of, recorded_ir, started
from kitchen.machine import cells
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Event, Failure, RunFailed, RunStarted, Visit, spell
from kitchen.machine.outstanding import undecided
from kitchen.machine.state import Control, State
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow.ir import StageNode, WorkflowIR, walk

LIFE = (
    "RunStarted", "RunForked", "RunResumed", "RunInterrupted", "RunCancelled", "RunCompleted",
    "RunFailed",
)  # fmt: skip
_CHANGES = ("StatePut", "StateAppended", "StateIncremented", "StateMerged")
_STATUS = {
    "RunStarted": "running",
    "RunForked": "forked",
    "RunResumed": "running",
    "RunInterrupted": "interrupted",
    "RunCancelled": "cancelled",
    "RunCompleted": "completed",
    "RunFailed": "failed",
}
_STOPPED = frozenset({"crashed", "interrupted", "failed", "forked"})
_RUN = ""  # the path of what happens to the run as a whole


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
    """ "running", "crashed", "interrupted", "undecided", "completed", "failed", "cancelled" or
    "forked", from the run's last turn.

    A run that nobody holds and that says it is running has crashed. One that has stopped, and does
    not go on before somebody has decided something, is undecided. A fork is forked until it is
    taken up.
    """
    last = last_turn(store, run)
    status = _STATUS[last.type] if last is not None else "empty"
    if status == "running" and store.run(run).owner is None:
        status = "crashed"
    return "undecided" if status in _STOPPED and undecided_of(store, run) else status


def last_turn(store: EventStore, run: str) -> Record | None:
    """The last event that says whether the run goes on; None where the log is empty."""
    # A failure has the path of what failed, and ends the log. The others have an index.
    ending = store.latest(run)
    if ending is not None and ending.type == RunFailed.__name__:
        return ending
    return store.latest(run, LIFE, path=_RUN)


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
    if status_of(store, run) != "failed":
        return False
    try:
        ir = recorded_ir(store, run)
        if not ir.compensate:  # as nearly always, and folding takes longer
            return False
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
        """What `status_of` says."""
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
    def begun(self) -> RunStarted:
        """The same, with the config and the seed as somebody has edited them since."""
        return begun(self.store, self.run_id)

    @property
    def config(self) -> Any:
        """The config as it was edited, as built-ins. Raises `CorruptValue` where it is none."""
        try:
            found = Codec().decode(self.begun.config, self._reader.fetch)
        except CorruptValue as error:
            raise self._blaming(error, self._configured_at()) from None
        if not isinstance(found, Mapping):
            wrong = CorruptValue(f"the recorded config is a {type(found).__name__}")
            raise self._blaming(wrong, self._configured_at())
        return cast("Mapping[Any, Any]", found)

    def _configured_at(self) -> int:
        """The seq of the event that holds the config."""
        for record in self.store.read(self.run_id, types=["RunEdited"], path=_RUN):
            event: Any = fact_of(record).event
            if event.config == self.begun.config:
                return record.seq
        return 1

    @property
    def events(self) -> list[Recorded]:
        """Every event, superseded ones included."""
        return list(self.tail(0))

    def tail(self, after: int) -> Iterator[Recorded]:
        """The events behind a seq."""
        counting = live(self.store, self.run_id)
        for record in self.store.read(self.run_id, after=after):
            _, path, visit, attempt = fact = fact_of(record)
            yield Recorded(
                record.seq, record.at, record.type, path, visit, attempt, fact.event,
                counting.counts(record.seq),
            )  # fmt: skip

    @property
    def superseded(self) -> list[tuple[int, int]]:
        """The stretches that no longer count: (last seq kept, seq of the rewind)."""
        return live(self.store, self.run_id).superseded

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
        counting = live(self.store, self.run_id, until)
        last = 1
        for record in self.store.read(self.run_id, until=until, types=_CHANGES):
            event: Any = fact_of(record).event
            if event.key == key and counting.counts(record.seq):
                last = record.seq
        return last

    def _blaming(self, error: CorruptValue, seq: int) -> KitchenError:
        for record in self.store.read(self.run_id, after=seq - 1, until=seq):
            return blamed(error, record)
        return error

    @cached_property
    def failed(self) -> tuple[str, Failure | None]:
        """Where the run has failed, spelled, and of what; nothing where it has not."""
        last = last_turn(self.store, self.run_id)
        if last is None or last.type != RunFailed.__name__:
            return "", None
        event: Any = fact_of(last).event
        path = self._reader.renaming.path(last.seq, last.path)
        return spell(path, last.visit, self.loops.get(path)), event.failure

    def tree(self) -> TreeNode:
        """The tree of what counts: loops, their visits, and the stages, in the order of the program.

        Raises `HistoryError` and `CorruptStore` where the log does not read.
        """
        root = places(self.store, self.run_id, self.program)
        status = self.status
        control = Control() if status == "completed" else self.folded().core.control
        return tree_of(root, self.program, control, status)

    def trace(
        self,
        level: str = "events",
        *,
        digits: int | None = None,
        life: bool = False,
        patterns: Patterns = EVERYTHING,
        hide: Hide | None = None,
    ) -> str:
        """The run as stable text, the same for runs that did the same.

        `level`: "stages" (a line for each that was committed), "state" (those, with what each
        changed) or "events". `digits`: floats are rounded to so many significant ones. `life`:
        crashes, rewinds and failed attempts are told as well. `patterns`: what is told at all. `hide`
        is given each text in a value or a failure, and what it gives back is told. Raises
        `ArgumentError` for another level.
        """
        teller = Teller(level, self.loops, digits=digits, life=life, patterns=patterns, hide=hide)
        try:
            lines = list(teller.beginning(self.begun))
        except CorruptValue as error:
            raise self._blaming(error, 1) from None
        lines += teller.lines(places(self.store, self.run_id, self.program))
        if life:
            turns = self.store.read(self.run_id, types=TURNS, path=_RUN)
            lines += [turn(fact_of(record).event) for record in turns]
        return "\n".join([*lines, teller.ending(self.status, *self.failed), ""])

    def metrics(self, name: str) -> list[Point]:
        """A metric's points that count, in the order of their commits."""
        return metrics.series(self.store, self.run_id, name).get(name, [])

    @property
    def all_metrics(self) -> dict[str, list[Point]]:
        """Every metric's points that count."""
        return metrics.series(self.store, self.run_id)

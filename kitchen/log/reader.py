"""Reading a run's log: as facts, and folded to the state at any seq.

Rules:

1. Reading appends nothing, needs no user code and imports nothing that the log names: the
   workflow is the recorded IR.
2. Snapshots are a cache, keyed by the fingerprint of the program that folded them. One that does
   not read is passed over.
3. A record that does not read is a `HistoryError` that names its seq.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kitchen.errors import CorruptStore, HistoryError, NotResumable
from kitchen.machine import snapshot
from kitchen.machine.chart import Program
from kitchen.machine.events import Fact, RunStarted, from_json
from kitchen.machine.fold import apply
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow import ir as IR
from kitchen.workflow.ir import WorkflowIR


def fact_of(record: Record) -> Fact:
    """The fact in a record.

    Raises `HistoryError` that names the record.
    """
    try:
        event = from_json(record.type, record.payload)
    except HistoryError as error:
        raise HistoryError(f"event {record.seq}: {error.message}", hint=error.hint) from None
    return Fact(event, record.path, record.visit, record.attempt)


def recorded_ir(store: EventStore, run: str) -> WorkflowIR:
    """The workflow as the run last recorded it.

    Raises `NotResumable` where the log is empty, `HistoryError` where it does not read.
    """
    record = store.latest(run, ["RunStarted", "WorkflowChanged"])
    if record is None:
        store.run(run)  # an unknown run is told as such
        raise NotResumable(f"the log of run {run!r} is empty: it was never started")
    event: Any = fact_of(record).event
    try:
        return IR.from_json(event.ir)
    except ValueError as error:
        raise HistoryError(
            f"event {record.seq}: the recorded workflow does not read: {error}"
        ) from None


def started(store: EventStore, run: str) -> RunStarted:
    """A run's first event.

    Raises `HistoryError` where it is another.
    """
    for record in store.read(run, until=1):
        event = fact_of(record).event
        if isinstance(event, RunStarted):
            return event
    raise HistoryError(f"the log of run {run!r} does not begin with RunStarted")


def snapshot_key(program: Program) -> str:
    """What a snapshot must have been folded by to serve: this workflow, this layout."""
    return f"{program.fingerprint}/{snapshot.LAYOUT}"


class LogReader:
    """One run's log, folded on `program`. It is the `Recall` of rewinds."""

    def __init__(self, store: EventStore, run: str, program: Program) -> None:
        self.store = store
        self.run = run
        self.program = program

    def state_at(self, seq: int | None) -> State:
        """The state folded up to and including `seq` (None: the head).

        Raises `IllegalEvent` where the log is not legal on the program, `CorruptStore` where an
        event is missing.
        """
        return self.folded(self.nearest(seq), seq)

    def folded(self, state: State, seq: int | None) -> State:
        """The state brought further, up to and including `seq`; it is changed.

        Raises what `state_at` raises.
        """
        for record in self.store.read(self.run, after=state.seq, until=seq):
            if record.seq != state.seq + 1:
                raise CorruptStore(
                    f"run {self.run!r} has no event {state.seq + 1}: the next is {record.seq}",
                    hint="kitchen verify tells what else is wrong; restore the store from a copy",
                )
            apply(self.program, state, fact_of(record), self)
        return state

    def facts(self, after: int, until: int) -> Iterable[Fact]:
        """The events with `after` < seq < `until`."""
        return map(fact_of, self.store.read(self.run, after=after, until=until - 1))

    def fetch(self, digest: str) -> bytes:
        """A blob.

        Raises `BlobLost`.
        """
        return self.store.blobs.get(digest)

    def nearest(self, seq: int | None) -> State:
        """The state of the latest snapshot at or before `seq`; an empty one where none serves."""
        at_most = seq if seq is not None else self.store.head(self.run)
        found = self.store.snapshot(self.run, at_most, snapshot_key(self.program))
        if found is not None:
            try:
                return snapshot.load(found[1])
            except HistoryError:
                pass
        return State()

"""Reading a run's log: as facts, and folded to the state at any seq.

Rules:

1. Reading appends nothing, needs no user code and imports nothing that the log names: the
   workflow is the recorded IR.
2. Snapshots are a cache, keyed by the fingerprint of the program that folded them. One that does
   not read, or does not fit the program, is passed over.
3. The store may have been made by anybody. A record that does not read, or cannot follow, is a
   `HistoryError` that names its run, seq and type, whatever it is that Python says of it.
4. Facts have the paths that nodes have on the program: those that were renamed since, the new one.
5. What a rewind goes back to is kept while the log is folded: rewinds that go back behind each
   other would else double the work, each of them.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from kitchen.errors import (
    CorruptStore,
    CorruptValue,
    HistoryError,
    IllegalEvent,
    KitchenError,
    NotResumable,
    StoreError,
)
from kitchen.log.recorded import read_ir
from kitchen.log.renaming import Names, Renamed, Renaming
from kitchen.machine import snapshot
from kitchen.machine.chart import Program
from kitchen.machine.events import Fact, RunStarted, from_json
from kitchen.machine.fold import apply
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow.ir import WorkflowIR

_LONGEST = 2_000  # characters of a message: what it tells of may be of any size
_MOST_KEPT = 2_000_000  # entries of the states that are kept, about 100 MB


def fact_of(record: Record) -> Fact:
    """The fact in a record.

    Raises `HistoryError` that names the record.
    """
    try:
        event = from_json(record.type, record.payload)
    except HistoryError as error:
        raise blamed(error, record) from None
    except Exception as error:  # text that is no Unicode, and what else the decoder meets
        fault = f"the payload of a {record.type} does not fit its type: {error}"
        raise blamed(HistoryError(fault), record) from None
    return Fact(event, record.path, record.visit, record.attempt)


def blamed(error: Exception, record: Record) -> KitchenError:
    """What was raised over a record, as an error that names the record."""
    known = isinstance(error, KitchenError)
    found = error if known else IllegalEvent(f"{type(error).__name__}: {error}")
    message, place = found.message, f"event {record.seq}"
    if not message.startswith((f"{place} ", f"{place}:")):
        message = f"{place}: {message}"
    if record.type not in message:
        message = f"{place} ({record.type}){message.removeprefix(place)}"
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    if f"(run {record.run!r})" not in message:
        message = f"{message} (run {record.run!r})"
    found.message = message
    return found


def check(store: EventStore, run: str, after: int, until: int | None = None) -> None:
    """Whether the log behind `after` is whole: its chain, no gaps, no tail that was cut off.

    `until`: how far to look; None: up to the head.

    Raises `CorruptStore`.
    """
    damage = store.check(run, after=after, until=until)
    if damage:
        raise CorruptStore(
            f"the log of run {run!r} is damaged: {damage[0]}",
            hint="kitchen verify tells all that is wrong; restore the store from a copy",
        )


def recorded_ir(store: EventStore, run: str) -> WorkflowIR:
    """The workflow as the run last recorded it.

    Raises `NotResumable` where the log is empty, `CorruptStore` where it was not or where the event
    is damaged, `HistoryError` where it does not read.
    """
    record = store.latest(run, ["RunStarted", "WorkflowChanged"], path="")
    if record is None:
        store.run(run)  # an unknown run is told as such
        check(store, run, 0)
        raise NotResumable(f"the log of run {run!r} is empty: it was never started")
    check(store, run, record.seq - 1, record.seq)
    event: Any = fact_of(record).event
    try:
        return read_ir(event.ir)
    except HistoryError as error:
        raise blamed(error, record) from None


def started(store: EventStore, run: str) -> RunStarted:
    """A run's first event.

    Raises `HistoryError` where it is another, `CorruptStore` where it is damaged.
    """
    check(store, run, 0, 1)
    found = "there is none"
    for record in store.read(run, until=1):
        event = fact_of(record).event
        if isinstance(event, RunStarted):
            return event
        found = f"event 1 is {record.type}"
    raise HistoryError(f"the log of run {run!r} does not begin with RunStarted: {found}")


def recorded_renaming(store: EventStore, run: str, *pending: Renamed) -> Renaming:
    """How the names of nodes have changed, and change now."""
    changes: list[Renamed] = []
    if run_exists(store, run):
        for record in store.read(run, types=["WorkflowChanged"], path=""):
            event: Any = fact_of(record).event
            if event.renamed:
                changes.append(Renamed(record.seq, event.renamed))
    return Renaming((*changes, *pending))


def run_exists(store: EventStore, run: str) -> bool:
    """Whether there is a run of that id."""
    try:
        store.run(run)
    except LookupError:  # UnknownRun, as a store that was not adapted raises it too
        return False
    return True


def snapshot_key(program: Program) -> str:
    """What a snapshot must have been folded by to serve: this workflow, this layout."""
    return f"{program.fingerprint}/{snapshot.LAYOUT}"


class LogReader:
    """One run's log, folded on `program`. It is the `Recall` of rewinds."""

    def __init__(self, store: EventStore, run: str, program: Program) -> None:
        self.store = store
        self.run = run
        self.program = program
        self._folding = 0
        self._kept: dict[int, State] = {}
        self._seqs: list[int] = []  # of those kept, sorted
        self._entries = 0

    @cached_property
    def renaming(self) -> Renaming:
        """How the names of nodes have changed."""
        return recorded_renaming(self.store, self.run)

    def rename(self, names: Names) -> None:
        """Have the events of now with other names: the program has these already."""
        told = recorded_renaming(
            self.store, self.run, Renamed(self.store.head(self.run) + 1, names)
        )
        self.renaming = told

    def state_at(self, seq: int | None) -> State:
        """The state folded up to and including `seq` (None: the head).

        Raises `CorruptStore` where what is folded is damaged, `IllegalEvent` where it is not legal
        on the program.
        """
        state = self.nearest(seq)
        if not self._folding:
            check(self.store, self.run, state.seq, seq)
        self.folded(state, seq)
        if self._folding and seq is not None:
            self._keep(seq, state)
        return state

    def folded(self, state: State, seq: int | None) -> State:
        """The state brought further, up to and including `seq`; it is changed.

        Raises `IllegalEvent` where the log is not legal on the program, `CorruptStore` where an
        event is missing.
        """
        self._folding += 1
        try:
            for record in self.store.read(self.run, after=state.seq, until=seq):
                if record.seq != state.seq + 1:
                    raise self._gap(state.seq + 1, record.seq)
                fact = self.renaming.fact(record.seq, fact_of(record))
                try:
                    apply(self.program, state, fact, self)
                except StoreError:
                    raise
                except Exception as error:
                    # The machine takes for granted what it writes itself; here, anything may stand.
                    known = isinstance(error, KitchenError)
                    raise blamed(error, record) from error.__cause__ if known else error
        finally:
            self._folding -= 1
            if not self._folding:
                self._kept.clear()
                self._seqs.clear()
                self._entries = 0
        return state

    def _gap(self, missing: int, found: int) -> CorruptStore:
        return CorruptStore(
            f"run {self.run!r} has no event {missing}: the next is {found}",
            hint="kitchen verify tells what else is wrong; restore the store from a copy",
        )

    def _keep(self, seq: int, state: State) -> None:
        """Keep what a rewind went back to."""
        if seq in self._kept:
            return
        core = state.core
        self._entries += len(core.data) + len(core.control.active) + len(state.memo) + 10
        if self._entries > _MOST_KEPT:
            raise HistoryError("the log goes back too often, over too large a state")
        self._kept[seq] = state.copy()
        insort(self._seqs, seq)

    def facts(self, after: int, until: int) -> Iterable[Fact]:
        """The events with `after` < seq < `until`."""
        for record in self.store.read(self.run, after=after, until=until - 1):
            yield self.renaming.fact(record.seq, fact_of(record))

    def fetch(self, digest: str) -> bytes:
        """A blob.

        Raises `BlobLost`, and `CorruptValue` for what is no digest.
        """
        try:
            return self.store.blobs.get(digest)
        except ValueError:
            raise CorruptValue(f"{str(digest)[:80]!r} is not the hash of a blob") from None

    def nearest(self, seq: int | None) -> State:
        """The latest state that is kept, or in a snapshot, at or before `seq`; else an empty one."""
        at_most = seq if seq is not None else self.store.head(self.run)
        before = bisect_right(self._seqs, at_most)
        kept = self._seqs[before - 1] if before else 0
        found = self.store.snapshot(self.run, at_most, snapshot_key(self.program))
        if found is not None and found[0] > kept:
            try:
                state = snapshot.load(found[1])
                snapshot.check(state, self.program, found[0])
            except HistoryError:
                pass
            else:
                return state
        return self._kept[kept].copy() if kept else State()

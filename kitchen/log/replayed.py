"""What a replay finds, and folding a log one event at a time.

Rules:

1. A divergence says where what was recorded and what was found part, both as short texts.
2. The events are seen in their order, superseded ones included: each before it is applied, and
   applied before the next.
3. A log that does not read, or is not legal, is told by its first such event, and ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kitchen.errors import CorruptStore, HistoryError, KitchenError, StoreError
from kitchen.log.reader import LogReader, blamed, fact_of
from kitchen.machine.events import Address, Fact, Visit, spell
from kitchen.machine.fold import apply
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore, Record

EVENT = "event"
RUN = Address("")


class Divergence(NamedTuple):
    """A difference between a log and what comes out when it is replayed.

    `key` says of what: "state.loss", "metric.acc", "answer", "item", "resource.model: weights",
    "raised", "node"; "event" where the log itself is not right.
    """

    seq: int
    path: str
    visit: Visit
    key: str
    recorded: str
    found: str
    message: str


class Replay(NamedTuple):
    """A log replayed up to `until`. `events`: how many were read. `visits`: how many committed
    visits of stages were looked at, `executed` how many bodies were called for that; `skipped`: how
    many were not, by reason. `seconds`: how long it took."""

    run: str
    until: int
    events: int
    visits: int
    executed: int
    skipped: Mapping[str, int]
    divergences: tuple[Divergence, ...]
    seconds: float

    @property
    def first(self) -> Divergence | None:
        """The first difference, in the order of the log."""
        return self.divergences[0] if self.divergences else None

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.divergences


def broken_at(seq: int, error: Exception, at: Address = RUN) -> Divergence:
    """The divergence that an event is which does not read, or cannot follow."""
    told = error.message if isinstance(error, KitchenError) else str(error)
    where = f"{spell(*at)}: " if at.path else ""
    message = f"{where}the log does not hold at event {seq}: {told}"
    return Divergence(seq, *at, EVENT, "an event that can follow", told, message)


def last_event(store: EventStore, run: str, until: int | None) -> int:
    """How far to replay (None: to the head).

    Raises `UnknownRun`, and `HistoryError` where there is no such seq.
    """
    head = store.run(run).head
    if until is not None and not 0 < until <= head:
        raise HistoryError(f"run {run!r} has the events 1 to {head}, not {until}")
    return head if until is None else until


class Stepping(LogReader):
    """A log that is folded one event at a time."""

    def steps(
        self, state: State, until: int, broken: Callable[[Divergence], None]
    ) -> Iterator[tuple[Record, Fact]]:
        """Each event, before it is applied to the state; the first that is wrong is told."""
        for record in self.store.read(self.run, after=state.seq, until=until):
            at = Address(record.path, record.visit)
            try:
                if record.seq != state.seq + 1:
                    raise CorruptStore(f"there is no event {state.seq + 1}")
                fact = self.renaming.fact(record.seq, fact_of(record))
            except KitchenError as error:
                broken(broken_at(record.seq, error, at))
                return
            yield record, fact
            try:
                self._apply_one(state, fact)
            except StoreError:
                raise
            except Exception as error:
                broken(broken_at(record.seq, blamed(error, record), at))
                return

    def _apply_one(self, state: State, fact: Fact) -> None:
        self._folding += 1  # what a rewind went back to is kept for the next one
        try:
            apply(self.program, state, fact, self)
        finally:
            self._folding -= 1

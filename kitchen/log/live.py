"""Which events of a log count, and what a run was begun with as it stands.

Rules:

1. A rewind goes back to an event. What lies between that one and the rewind is *superseded*: it
   stays readable and does not count. Walking back from an event over the rewinds tells what counts
   there; a run may be sent back into what was superseded, and then that counts again.
2. Rewinds themselves count. An edit of config and seed holds until somebody sends the run back to
   before it; a rewind that nobody asked for leaves it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from kitchen.log.reader import fact_of, started
from kitchen.machine.events import RunRewound, RunStarted
from kitchen.machine.rewinding import edit
from kitchen.ports.event_store import EventStore

_RUN = ""  # the path of what happens to the run as a whole


class Live(NamedTuple):
    """The stretches of seqs that count, first and last included, in order."""

    stretches: tuple[tuple[int, int], ...]

    def counts(self, seq: int) -> bool:
        """Whether an event counts."""
        after = bisect_right(self.stretches, seq, key=lambda each: each[0])
        return after > 0 and seq <= self.stretches[after - 1][1]

    @property
    def superseded(self) -> list[tuple[int, int]]:
        """The gaps between them: (last seq before, first seq behind)."""
        pairs = zip(self.stretches, self.stretches[1:], strict=False)
        return [(before[1], behind[0]) for before, behind in pairs]


def live(store: EventStore, run: str, until: int | None = None) -> Live:
    """What counts at a seq (None: the head)."""
    last = store.head(run) if until is None else until
    return of_rewinds([(seq, event.to) for seq, event in _rewinds(store, run, last)], last)


def _rewinds(store: EventStore, run: str, until: int) -> Iterator[tuple[int, RunRewound]]:
    for record in store.read(run, until=until, types=["RunRewound"], path=_RUN):
        event: Any = fact_of(record).event
        yield record.seq, event


def of_rewinds(backs: list[tuple[int, int]], last: int) -> Live:
    """What counts at `last`, after rewinds told as (seq, the seq that was gone back to), in order."""
    stretches: list[tuple[int, int]] = []
    for seq, to in reversed(backs):
        if seq <= last:
            stretches.append((seq, last))
            last = to
    if last > 0:
        stretches.append((1, last))
    return Live(tuple(reversed(stretches)))


def begun(store: EventStore, run: str) -> RunStarted:
    """What the run was begun with, its config and seed as they were edited since.

    Raises `HistoryError` where it does not read, `CorruptStore` where it is damaged.
    """
    found = started(store, run)
    edits = list(store.read(run, types=["RunEdited"], path=_RUN))
    if edits:
        head = store.head(run)
        asked = [(seq, back.to) for seq, back in _rewinds(store, run, head) if back.asked]
        now = of_rewinds(asked, head)
        for record in edits:
            event: Any = fact_of(record).event
            if now.counts(record.seq):
                found = edit(found, event)
    return found

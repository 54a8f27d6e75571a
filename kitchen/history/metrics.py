"""Metrics as series, from the log.

Rules:

1. A metric counts once the attempt that recorded it is committed.
2. What a rewind superseded does not count, so nothing is counted twice.
3. The order is that of the commits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kitchen.log.reader import fact_of
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import MetricRecorded, RunRewound, StageCompleted, Visit
from kitchen.ports.event_store import EventStore, Record

TYPES = ("MetricRecorded", "StageCompleted", "RunRewound")
_NUMBERS = Codec()


class Point(NamedTuple):
    """A recorded number. `seq` is the event's; `at` is in nanoseconds since the epoch."""

    value: Any
    step: int | None
    seq: int
    at: int
    path: str
    visit: Visit


def series(store: EventStore, run: str, name: str | None = None) -> dict[str, list[Point]]:
    """The points that count, by metric; only those of `name` if given."""
    return collect(store.read(run, types=TYPES), name)


def collect(records: Iterable[Record], name: str | None = None) -> dict[str, list[Point]]:
    """The points that count among these records, which begin with the run's first."""
    pending: dict[tuple[str, Visit, int], list[tuple[str, Point]]] = {}
    counted: list[tuple[int, str, Point]] = []
    for record in records:
        key = (record.path, record.visit, record.attempt)
        if record.type == "MetricRecorded":
            event: Any = fact_of(record).event
            assert isinstance(event, MetricRecorded)
            if name is None or event.name == name:
                value = _NUMBERS.decode(event.value, no_blobs)
                point = Point(value, event.step, record.seq, record.at, record.path, record.visit)
                pending.setdefault(key, []).append((event.name, point))
        elif record.type == StageCompleted.__name__:
            counted += [(record.seq, label, point) for label, point in pending.pop(key, ())]
        else:
            rewound: Any = fact_of(record).event
            assert isinstance(rewound, RunRewound)
            while counted and counted[-1][0] > rewound.to:
                counted.pop()
            pending.clear()
    found: dict[str, list[Point]] = {}
    for _, label, point in counted:
        found.setdefault(label, []).append(point)
    return found

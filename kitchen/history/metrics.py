"""Metrics as series, from the log.

Rules:

1. A metric counts once the attempt that recorded it is committed.
2. What a rewind superseded does not count, so nothing is counted twice.
3. The order is that of the program, whatever ran beside each other and finished first: by the
   place of the stage in the workflow and the indices of its loops, level by level. So a run that
   was killed tells the same series as one that was not. Within a visit, it is the order of
   recording.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kitchen.log.reader import fact_of, recorded_ir
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import MetricRecorded, RunRewound, StageCompleted, Visit
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow.ir import ParallelNode, ParallelOverNode, WorkflowIR, program_order, walk

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
    found = collect(store.read(run, types=TYPES), name)
    return in_order(found, recorded_ir(store, run)) if found else found


def collect(records: Iterable[Record], name: str | None = None) -> dict[str, list[Point]]:
    """The points that count among these records, which begin with the run's first, in the order
    of their commits."""
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


def in_order(found: dict[str, list[Point]], ir: WorkflowIR) -> dict[str, list[Point]]:
    """The same points, and the metrics themselves, in the order of the program.

    Only what ran side by side was committed in another. A path that the workflow does not have
    (any more) leaves all as it is.
    """
    if not any(isinstance(node, ParallelNode | ParallelOverNode) for _, node in walk(ir)):
        return found
    order = program_order(ir)

    def key(point: Point) -> tuple[tuple[int, ...], int]:
        return order(point.path, point.visit), point.seq

    try:
        sorted_ones = {name: sorted(points, key=key) for name, points in found.items()}
    except KeyError:
        return found
    by_first = sorted(sorted_ones.items(), key=lambda each: key(each[1][0]))
    return dict(by_first)

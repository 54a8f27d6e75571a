"""Metrics as series, from the log.

Rules:

1. A metric counts once the attempt that recorded it is committed.
2. What a rewind superseded does not count, so nothing is counted twice. Nor does what the branches
   of a parallel recorded that failed, where the failure was handled: they leave nothing.
3. The order is that of the program, whatever ran beside each other and finished first: by the
   place of the stage in the workflow and the indices of its loops, level by level. So a run that
   was killed tells the same series as one that was not. Within a visit, it is the order of
   recording.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kitchen.errors import CorruptValue
from kitchen.log.reader import blamed, fact_of, recorded_ir
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import (
    Address,
    BlockFailed,
    FailureHandled,
    MetricRecorded,
    RunRewound,
    StageCompleted,
    Visit,
)
from kitchen.machine.outstanding import within
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow.ir import ParallelNode, ParallelOverNode, WorkflowIR, program_order, walk

TYPES = ("MetricRecorded", "StageCompleted", "RunRewound", "BlockFailed", "FailureHandled")
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
    stood: dict[Address, Address] = {}
    for record in records:
        key = (record.path, record.visit, record.attempt)
        if record.type == "MetricRecorded":
            event: Any = fact_of(record).event
            assert isinstance(event, MetricRecorded)
            if name is None or event.name == name:
                point = Point(
                    _number(event, record),
                    event.step,
                    record.seq,
                    record.at,
                    record.path,
                    record.visit,
                )
                pending.setdefault(key, []).append((event.name, point))
        elif record.type == StageCompleted.__name__:
            counted += [(record.seq, label, point) for label, point in pending.pop(key, ())]
        elif record.type == BlockFailed.__name__:
            failed: Any = fact_of(record).event
            stood[Address(record.path, record.visit)] = failed.stood
        elif record.type == FailureHandled.__name__:
            at = stood.pop(Address(record.path, record.visit), None)
            counted = [p for p in counted if not at or not at.path or not _in(p[2], at)]
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


def _in(point: Point, block: Address) -> bool:
    return within(Address(point.path, point.visit), block)


def _number(event: MetricRecorded, record: Record) -> Any:
    try:
        return _NUMBERS.decode(event.value, no_blobs)
    except CorruptValue as error:
        raise blamed(error, record) from None


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

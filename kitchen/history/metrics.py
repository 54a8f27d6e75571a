"""Metrics as series, from the log.

Rules:

1. A metric counts once the attempt that recorded it is committed.
2. What a rewind superseded does not count, so nothing is counted twice. Nor does what the branches
   of a parallel recorded that failed, where the failure was handled: they leave nothing. What an
   attempt had recorded that a rewind or a fork cut off does not count with the next.
3. The order is that of the program, whatever ran beside each other and finished first: by the
   place of the stage in the workflow and the indices of its loops, level by level. So a run that
   was killed tells the same series as one that was not. Within a visit, it is the order of
   recording.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kitchen.errors import CorruptValue
from kitchen.history.counted import counted
from kitchen.log.reader import blamed, fact_of, recorded_ir, recorded_renaming
from kitchen.log.renaming import Renaming
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import (
    Address,
    BlockFailed,
    FailureHandled,
    MetricRecorded,
    StageCompleted,
    Visit,
)
from kitchen.machine.outstanding import within
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow.ir import ParallelNode, ParallelOverNode, WorkflowIR, program_order, walk

TYPES = (
    "MetricRecorded", "StageCompleted", "RunRewound", "RunForked", "BlockFailed", "FailureHandled",
)  # fmt: skip
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
    renaming = recorded_renaming(store, run)
    found = collect(counted(store, run, renaming, TYPES), renaming, name)
    return in_order(found, recorded_ir(store, run)) if found else found


def collect(
    records: Iterable[Record], renaming: Renaming, name: str | None = None
) -> dict[str, list[Point]]:
    """The points among these records, all of which count, in the order of their commits."""
    pending: dict[tuple[str, Visit, int], list[tuple[str, Point]]] = {}
    committed: list[tuple[str, Point]] = []
    stood: dict[Address, Address] = {}
    for record in records:
        key = (record.path, record.visit, record.attempt)
        if record.type == MetricRecorded.__name__:
            event: Any = fact_of(record).event
            if name is None or event.name == name:
                point = Point(_number(event, record), event.step, record.seq, record.at, *key[:2])
                pending.setdefault(key, []).append((event.name, point))
        elif record.type == StageCompleted.__name__:
            committed += pending.pop(key, ())
        elif record.type == BlockFailed.__name__:
            failed: Any = fact_of(record).event
            path, visit = failed.stood
            stood[Address(*key[:2])] = Address(renaming.path(record.seq, path), visit)
        elif record.type == FailureHandled.__name__:
            at = stood.pop(Address(*key[:2]), None)
            committed = [p for p in committed if not at or not at.path or not _in(p[1], at)]
        else:
            pending.clear()
    found: dict[str, list[Point]] = {}
    for label, point in committed:
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

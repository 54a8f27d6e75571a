"""A run as memory holds it: its records whole, its snapshots by key and seq.

Rules: a fork has records of its own for what it shares, as they bear its name; snapshots of what it
shares lie with the run that owns their seq.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from store.lineage import MASK, Lineage, Part
from store.records import Record, fits, genesis, link, spell_visit
from store.verify import RawEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from store.records import NewEvent


def _no_records() -> list[Record]:
    return []


class Snapshot(NamedTuple):
    """A folded state; `digest` ties it to the history that it was folded from."""

    body: bytes
    pinned: bool
    digest: bytes


def _no_snapshots() -> dict[tuple[str, int], Snapshot]:
    return {}


@dataclass(slots=True)
class Run:
    """One run; its name is the last of `line`."""

    name: str
    created_at: int
    line: Lineage
    records: list[Record] = field(default_factory=_no_records)
    # by key and seq; those of its own part
    snapshots: dict[tuple[str, int], Snapshot] = field(default_factory=_no_snapshots)

    def chain(self, seq: int) -> bytes | None:
        """The chain at a seq, that of the beginning at 0."""
        if seq == 0:
            return genesis(self.line.root)
        return self.records[seq - 1].chain if 0 < seq <= len(self.records) else None

    def fits(self, key: str, seq: int, snapshot: Snapshot) -> bool:
        body, _, digest = snapshot
        return fits(self.line.root, seq, self.chain(seq), key, body, digest)


def alone(run: str) -> Lineage:
    """The parts of a run that is no fork."""
    return Lineage((Part(0, run, 0, MASK),))


def timed(at: int, events: Iterable[NewEvent]) -> Iterator[tuple[int, NewEvent]]:
    """Events that all have one time."""
    return ((at, event) for event in events)


def chained(
    run: str, seq: int, chain: bytes, events: Iterable[tuple[int, NewEvent]]
) -> list[Record]:
    """Events as records behind `seq`, the first of them chained to `chain`."""
    records: list[Record] = []
    for at, (type_, path, visit, attempt, payload) in events:
        seq += 1
        chain = link(chain, seq, type_, path, spell_visit(visit), attempt, payload)
        records.append(Record(run, seq, at, type_, path, visit, attempt, payload, chain))
    return records


def raw(record: Record) -> RawEvent:
    """A record as `verify` takes it."""
    return RawEvent(
        record.seq,
        record.type,
        record.path,
        spell_visit(record.visit),
        record.attempt,
        record.payload,
        record.chain,
    )

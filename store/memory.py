"""The memory twin: the same store without a file, fast enough for thousands of crash points.

Rules: it behaves as `SqliteStore` does, and one contract suite holds both to it. Copies share the
records, which never change, and nothing else; leases are not copied, as a copy is another store.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self
from uuid import uuid4

from store.blobs import MemoryBlobs
from store.errors import HeadMoved, RunExists, RunLocked, StoreClosed, UnknownRun
from store.lease import Lease, this_process
from store.records import (
    Owner,
    Record,
    RunInfo,
    durability_of,
    fits,
    genesis,
    link,
    spell_visit,
    tie,
)
from store.verify import RawEvent, RawSnapshot, Sealed, Verifier, follow

if TYPE_CHECKING:
    from types import TracebackType

    from store.records import Durability, Finding, NewEvent

_WHERE = "this memory store"


def _no_records() -> list[Record]:
    return []


class _Snapshot(NamedTuple):
    body: bytes
    pinned: bool
    digest: bytes


def _no_snapshots() -> dict[tuple[str, int], _Snapshot]:
    return {}


@dataclass(slots=True)
class _Run:
    name: str
    created_at: int
    records: list[Record] = field(default_factory=_no_records)
    # by key and seq
    snapshots: dict[tuple[str, int], _Snapshot] = field(default_factory=_no_snapshots)

    def chain(self, run: str, seq: int) -> bytes | None:
        """The chain at a seq, that of the beginning at 0."""
        if seq == 0:
            return genesis(run)
        return self.records[seq - 1].chain if 0 < seq <= len(self.records) else None

    def fits(self, run: str, key: str, seq: int) -> bool:
        body, _, digest = self.snapshots[key, seq]
        return fits(run, seq, self.chain(run, seq), key, body, digest)


class MemoryStore:
    """An event store that dies with its process."""

    path: None = None

    def __init__(self) -> None:
        self.uuid = str(uuid4())
        self.blobs = MemoryBlobs()
        self._runs: dict[str, _Run] = {}
        self._owners: dict[str, Owner] = {}
        self._closed = False
        self._durability: Durability = "process"

    @property
    def durability(self) -> Durability:
        return self._durability

    def use(self, durability: Durability) -> None:
        """Remembered, and without effect: nothing here survives anything."""
        durability = durability_of(durability)
        self._check()
        self._durability = durability

    def create_run(
        self, run: str, name: str, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """A new run with its first events; its head."""
        self._check()
        if not run:
            raise ValueError("a run needs a name that is not empty")
        if run in self._runs:
            raise RunExists(run, _WHERE)
        at = time.time_ns() if at is None else at
        records = _chained(run, 0, genesis(run), events, at)
        self._runs[run] = _Run(name, at, records)
        return len(records)

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """Append events behind seq `expected`, all or none; the new head."""
        records = self._run(run).records
        if len(records) != expected:
            raise HeadMoved(run, expected, len(records))
        chain = records[-1].chain if records else genesis(run)
        records += _chained(run, expected, chain, events, time.time_ns() if at is None else at)
        return len(records)

    def read(
        self,
        run: str,
        *,
        after: int = 0,
        until: int | None = None,
        types: Collection[str] | None = None,
        path: str | None = None,
    ) -> Iterator[Record]:
        """The events behind `after`, up to and with `until`, in order; filtered if asked."""
        records = self._run(run).records
        last = len(records) if until is None else max(0, until)
        found = records[max(0, after) : last]
        if types is None and path is None:
            return iter(found)
        wanted = None if types is None else frozenset(types)
        return (
            record
            for record in found
            if (wanted is None or record.type in wanted) and (path is None or record.path == path)
        )

    def latest(self, run: str, types: Collection[str] | None = None) -> Record | None:
        """The run's last event, or the last of these types."""
        for record in reversed(self._run(run).records):
            if types is None or record.type in types:
                return record
        return None

    def head(self, run: str) -> int:
        return len(self._run(run).records)

    def run(self, run: str) -> RunInfo:
        found = self._run(run)
        return RunInfo(run, found.name, found.created_at, len(found.records), self._owners.get(run))

    def runs(self) -> list[RunInfo]:
        """Every run, the newest first."""
        self._check()
        infos = [self.run(run) for run in reversed(self._runs)]
        return sorted(infos, key=lambda info: info.created_at, reverse=True)

    def save_snapshot(
        self, run: str, seq: int, key: str, body: bytes, pinned: bool = False
    ) -> None:
        """Keep a folded state of `seq` under the caller's compatibility key."""
        kept = self._run(run)
        before = kept.snapshots.pop((key, seq), None)
        body, chain = bytes(body), kept.chain(run, seq)
        digest = b"" if chain is None else tie(chain, key, body)
        pinned = pinned or (before is not None and before.pinned)
        kept.snapshots[key, seq] = _Snapshot(body, pinned, digest)

    def snapshot(self, run: str, at_most: int, key: str) -> tuple[int, bytes] | None:
        """The latest snapshot with this key at or before seq `at_most` that fits the log."""
        kept = self._run(run)
        seqs = [seq for other, seq in kept.snapshots if other == key and seq <= at_most]
        for seq in sorted(seqs, reverse=True):
            if kept.fits(run, key, seq):
                return seq, kept.snapshots[key, seq].body
        return None

    def prune_snapshots(self, run: str, keep: int = 3) -> int:
        """Drop all but the pinned and the newest `keep` others; how many went."""
        snapshots = self._run(run).snapshots
        loose = [place for place, kept in snapshots.items() if not kept.pinned]
        loose.sort(key=lambda place: place[1])
        doomed = loose[: max(0, len(loose) - keep)]
        for place in doomed:
            del snapshots[place]
        return len(doomed)

    def lease(self, run: str, note: str = "") -> Lease:
        """Own the run, which need not exist yet; RunLocked names the owner if there is one."""
        self._check()
        if run in self._owners:
            raise RunLocked(run, self._owners[run], _WHERE)
        owner = self._owners[run] = this_process(note)
        return Lease(run, owner, lambda: self._give_back(run, owner))

    def _give_back(self, run: str, owner: Owner) -> None:
        if self._owners.get(run) is owner:
            del self._owners[run]

    def check(self, run: str, after: int = 0, until: int | None = None) -> list[Finding]:
        """Whether the run may be continued from seq `after`: a part of `verify`, and fast."""
        kept, after = self._run(run), max(0, after)
        return list(
            follow(
                run,
                (_raw(record) for record in kept.records[after:until]),
                after=after,
                start=kept.chain(run, after),
                head=len(kept.records),
                sealed=Sealed(0, b"", 0),
                until=until,
            )
        )

    def verify(self, run: str | None = None) -> list[Finding]:
        """Everything that is wrong with one run, or with all."""
        self._check()
        chosen = {run: self._run(run)} if run is not None else self._runs
        verifier = Verifier(self.blobs)
        findings: list[Finding] = []
        for name, kept in chosen.items():
            newest = max((seq for _, seq in kept.snapshots), default=0)
            events = (_raw(record) for record in kept.records)
            snapshots = [
                RawSnapshot(seq, kept.chain(name, seq), key, snapshot.body, snapshot.digest)
                for (key, seq), snapshot in kept.snapshots.items()
            ]
            findings += verifier.check(name, events, Sealed(0, b"", newest), snapshots)
        return findings

    def copy(self) -> MemoryStore:
        """An independent store that holds the same."""
        twin = MemoryStore()
        twin.uuid = self.uuid
        twin.blobs = self.blobs.copy()
        twin._runs = {
            name: _Run(run.name, run.created_at, run.records[:], dict(run.snapshots))
            for name, run in self._runs.items()
        }
        return twin

    def truncated(self, run: str, head: int) -> MemoryStore:
        """A copy in which `run` holds only its first `head` events and snapshots of those."""
        self._run(run)
        twin = self.copy()
        kept = twin._runs[run]
        del kept.records[max(0, head) :]
        kept.snapshots = {
            place: value for place, value in kept.snapshots.items() if place[1] <= head
        }
        return twin

    def close(self) -> None:
        self._closed = True
        self._owners.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed("this memory store is closed; make a copy before closing to keep it")

    def _run(self, run: str) -> _Run:
        self._check()
        try:
            return self._runs[run]
        except KeyError:
            raise UnknownRun(run, reversed(self._runs), _WHERE) from None


def _chained(run: str, seq: int, chain: bytes, events: Sequence[NewEvent], at: int) -> list[Record]:
    records: list[Record] = []
    for type_, path, visit, attempt, payload in events:
        seq += 1
        chain = link(chain, seq, type_, path, spell_visit(visit), attempt, payload)
        records.append(Record(run, seq, at, type_, path, visit, attempt, payload, chain))
    return records


def _raw(record: Record) -> RawEvent:
    return RawEvent(
        record.seq,
        record.type,
        record.path,
        spell_visit(record.visit),
        record.attempt,
        record.payload,
        record.chain,
    )

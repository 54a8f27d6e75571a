"""The memory twin: the same store without a file, fast enough for thousands of crash points.

Rules: it behaves as `SqliteStore` does, and one contract suite holds both to it. Copies share the
records, which never change, and nothing else; leases are not copied, as a copy is another store.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from store.blobs import MemoryBlobs
from store.errors import (
    HeadMoved,
    RunExists,
    RunForked,
    RunLocked,
    StoreClosed,
    UnknownRun,
    UnknownSeq,
)
from store.lease import Lease, this_process
from store.lineage import MASK, Lineage, Part
from store.memory_run import Run, Snapshot, alone, chained, raw, timed
from store.records import (
    Owner,
    Record,
    Removed,
    RunInfo,
    durability_of,
    genesis,
    graft,
    tie,
)
from store.references import reached
from store.verify import RawSnapshot, Sealed, Verifier, follow

if TYPE_CHECKING:
    from types import TracebackType

    from store.records import Durability, Finding, NewEvent

_WHERE = "this memory store"


class MemoryStore:
    """An event store that dies with its process."""

    path: None = None

    def __init__(self) -> None:
        self.uuid = str(uuid4())
        self.blobs = MemoryBlobs()
        self._runs: dict[str, Run] = {}
        self._parents: dict[str, str] = {}
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
        self._refuse_known(run)
        at = time.time_ns() if at is None else at
        return self._add(run, name, at, alone(run), [], timed(at, events))

    def fork_run(
        self,
        run: str,
        name: str,
        parent: str,
        seq: int,
        events: Sequence[NewEvent],
        at: int | None = None,
    ) -> int:
        """A new run whose events 1 to `seq` are the parent's, and these its first own; its head."""
        self._check()
        if not events:
            raise ValueError("a fork needs at least one event of its own")
        source = self._run(parent)
        self._refuse_known(run)
        if not 0 < seq <= len(source.records):
            raise UnknownSeq(parent, seq, len(source.records), _WHERE)
        at = time.time_ns() if at is None else at
        before = [part for part in source.line.parts if part.after < seq]
        before[-1] = before[-1]._replace(until=seq)
        line = Lineage((*before, Part(0, run, seq, MASK)))
        shared = [record._replace(run=run) for record in source.records[:seq]]
        head = self._add(run, name, at, line, shared, timed(at, events))
        self._parents[run] = parent
        return head

    def adopt_run(
        self, run: str, name: str, created_at: int, events: Iterable[tuple[int, NewEvent]]
    ) -> int:
        """A new run of events that come with their times, in ns since the epoch; its head."""
        self._check()
        self._refuse_known(run)
        return self._add(run, name, created_at, alone(run), [], events)

    def _refuse_known(self, run: str) -> None:
        if not run:
            raise ValueError("a run needs a name that is not empty")
        if run in self._runs:
            raise RunExists(run, _WHERE)

    def _add(
        self,
        run: str,
        name: str,
        created_at: int,
        line: Lineage,
        records: list[Record],
        events: Iterable[tuple[int, NewEvent]],
    ) -> int:
        after = len(records)
        chain = graft(records[-1].chain, run) if records else genesis(run)
        records += chained(run, after, chain, events)
        self._runs[run] = Run(name, created_at, line, records)
        return len(records)

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """Append events behind seq `expected`, all or none; the new head."""
        records = self._run(run).records
        if len(records) != expected:
            raise HeadMoved(run, expected, len(records))
        chain = records[-1].chain if records else genesis(run)
        at = time.time_ns() if at is None else at
        records += chained(run, expected, chain, timed(at, events))
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

    def latest(
        self, run: str, types: Collection[str] | None = None, path: str | None = None
    ) -> Record | None:
        """The run's last event, or the last of these types, or at this path."""
        for record in reversed(self._run(run).records):
            if (types is None or record.type in types) and (path is None or record.path == path):
                return record
        return None

    def head(self, run: str) -> int:
        return len(self._run(run).records)

    def run(self, run: str) -> RunInfo:
        found, owner = self._run(run), self._owners.get(run)
        parent, forked_at = self._parents.get(run), found.line.own.after
        head = len(found.records)
        return RunInfo(run, found.name, found.created_at, head, owner, parent, forked_at)

    def runs(self) -> list[RunInfo]:
        """Every run, the newest first."""
        self._check()
        infos = [self.run(run) for run in reversed(self._runs)]
        return sorted(infos, key=lambda info: info.created_at, reverse=True)

    def named_blobs(self, run: str | None = None) -> Iterator[str]:
        """The blobs that a run needs, or that all do, each once, in no order."""
        self._check()
        chosen = [self._run(run)] if run is not None else list(self._runs.values())
        payloads = (record.payload for kept in chosen for record in kept.records)
        return reached(payloads, self.blobs.document)

    def save_snapshot(
        self, run: str, seq: int, key: str, body: bytes, pinned: bool = False
    ) -> None:
        """Keep a folded state of `seq` under the caller's compatibility key."""
        line, chain = self._run(run).line, self._run(run).chain(seq)
        kept = self._runs[line.owner(seq).run]
        before = kept.snapshots.pop((key, seq), None)
        body = bytes(body)
        digest = b"" if chain is None else tie(chain, key, body)
        pinned = pinned or (before is not None and before.pinned)
        kept.snapshots[key, seq] = Snapshot(body, pinned, digest)

    def snapshot(self, run: str, at_most: int, key: str) -> tuple[int, bytes] | None:
        """The latest snapshot with this key at or before seq `at_most` that fits the log."""
        kept = self._run(run)
        found = [
            (seq, snapshot)
            for part in kept.line.parts
            for (other, seq), snapshot in self._runs[part.run].snapshots.items()
            if other == key and seq <= min(at_most, part.until)
        ]
        for seq, snapshot in sorted(found, reverse=True):
            if kept.fits(key, seq, snapshot):
                return seq, snapshot.body
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
                kept.line,
                (raw(record) for record in kept.records[after:until]),
                after=after,
                start=kept.chain(after),
                head=len(kept.records),
                sealed=Sealed(0, b"", 0),
                until=until,
            )
        )

    def verify(self, run: str | None = None) -> list[Finding]:
        """Everything that is wrong with one run, or with all."""
        self._check()
        limits = dict.fromkeys(self._runs, MASK)
        if run is not None:
            limits = {part.run: part.until for part in self._run(run).line.parts}
        verifier = Verifier(self.blobs)
        findings: list[Finding] = []
        for name, until in limits.items():
            kept = self._runs[name]
            own = kept.line.own.after
            start = kept.chain(own)
            events = (raw(record) for record in kept.records[own:until])
            snapshots = [
                RawSnapshot(seq, kept.chain(seq), key, snapshot.body, snapshot.digest)
                for (key, seq), snapshot in kept.snapshots.items()
                if seq <= until
            ]
            newest = max((snapshot.seq for snapshot in snapshots), default=0)
            findings += verifier.check(
                kept.line,
                start if start is None else kept.line.grafted(own, start),
                events,
                Sealed(0, b"", newest),
                snapshots,
            )
        return findings

    def remove_runs(self, runs: Collection[str]) -> Removed:
        """Remove whole runs, all or none; how much went. Blobs stay."""
        chosen = {run: self._run(run) for run in sorted(set(runs))}
        for run in chosen:
            if run in self._owners:
                raise RunLocked(run, self._owners[run], _WHERE)
        needed: dict[str, list[str]] = {}
        for fork, parent in self._parents.items():
            if parent in chosen and fork not in chosen:
                needed.setdefault(parent, []).append(fork)
        if needed:
            raise RunForked(needed, _WHERE)
        for run in chosen:
            del self._runs[run]
            self._parents.pop(run, None)
        return Removed(
            len(chosen),
            sum(len(kept.records) - kept.line.own.after for kept in chosen.values()),
            sum(len(kept.snapshots) for kept in chosen.values()),
        )

    def compact(self) -> None:
        """Nothing: what was removed from memory is gone."""
        self._check()

    def copy(self) -> MemoryStore:
        """An independent store that holds the same."""
        twin = MemoryStore()
        twin.uuid = self.uuid
        twin.blobs = self.blobs.copy()
        twin._runs = {
            name: replace(run, records=run.records[:], snapshots=dict(run.snapshots))
            for name, run in self._runs.items()
        }
        twin._parents = dict(self._parents)
        return twin

    def truncated(self, run: str, head: int) -> MemoryStore:
        """A copy in which `run` holds only its first `head` events and snapshots of those.

        A fork keeps at least one event of its own.
        """
        after = self._run(run).line.own.after
        if head <= after and after:
            raise ValueError(f"run {run!r} is a fork: its own events begin at seq {after + 1}")
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

    def _run(self, run: str) -> Run:
        self._check()
        try:
            return self._runs[run]
        except KeyError:
            raise UnknownRun(run, reversed(self._runs), _WHERE) from None

"""The log in a SQLite file: appending, and the doors to all else.

Rules: one append is one INSERT, hence one transaction, whole or absent. It names the head that it
expects. The head and the chain of runs that this process appends to are remembered, and the INSERT
itself proves that they still hold: the next key must be free, and the head's own row must be
there, or it fails as a whole and HeadMoved is raised. What is remembered is forgotten whenever an
append fails. A new run comes with its first events or not at all.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from store import snapshots
from store.blobs import FileBlobs
from store.connection import Gate, open_gate
from store.errors import SQL_ERRORS, CorruptLog, HeadMoved, RunExists, StoreError, UnknownSeq
from store.interning import Names
from store.reading import Reader
from store.records import Removed, RunInfo, genesis, graft
from store.references import MARK, reached
from store.removing import remove
from store.rows import MOST_ROWS, Encoder, Head, insert, insert_sql
from store.tenancy import Tenancy

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
    from types import TracebackType

    from store.lease import Lease
    from store.records import Durability, Finding, NewEvent, Record

_INFO = "SELECT no, run, name, created_at, NULL, 0 FROM runs r"
_INFO_WITH_FORKS = (
    "SELECT r.no, r.run, r.name, r.created_at, p.run, coalesce(f.seq, 0) FROM runs r "
    "LEFT JOIN forks f ON f.no = r.no LEFT JOIN runs p ON p.no = f.parent"
)
_INFO_TYPES = ([int, str, str, int, type(None), int], [int, str, str, int, str, int])


def open_store(
    path: str | os.PathLike[str],
    *,
    durability: Durability = "process",
    create: bool = True,
    read_only: bool = False,
    busy_timeout: float = 30.0,
) -> SqliteStore:
    """Open the store at `path`; an absent or empty file becomes one unless `create` is False.

    "process" survives the death of the process at any moment, "power" that of the machine too.
    """
    real = Path(os.path.realpath(path))
    gate = open_gate(
        real, durability=durability, create=create, read_only=read_only, timeout=busy_timeout
    )
    try:
        return SqliteStore(gate)
    except BaseException:
        gate.close()
        raise


class SqliteStore:
    """An event store in one file. Made by `open_store`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._types = Names(gate, "types")
        self._paths = Names(gate, "paths")
        self._reader = Reader(gate, self._types, self._paths)
        self._encoder = Encoder(self._types, self._paths)
        self._heads: dict[str, Head] = {}
        self.path = gate.path
        self.uuid = self._read_uuid()
        self.blobs = FileBlobs(
            gate.path.with_name(gate.path.name + ".blobs"), read_only=gate.read_only
        )
        self._tenancy = Tenancy(gate, self.uuid)

    @property
    def durability(self) -> Durability:
        return self._gate.durability

    def use(self, durability: Durability) -> None:
        """Change the durability from here on; the next append carries earlier ones with it."""
        self._gate.use(durability)

    def create_run(
        self, run: str, name: str, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """A new run with its first events, in one transaction; its head."""
        at = time.time_ns() if at is None else at
        with self._new_run(run, name, at) as (raw, no):
            head = self._first(raw, Head(no, 0, genesis(run)), events, at)
        self._heads[run] = head
        return head.seq

    def fork_run(
        self,
        run: str,
        name: str,
        parent: str,
        seq: int,
        events: Sequence[NewEvent],
        at: int | None = None,
    ) -> int:
        """A new run whose events 1 to `seq` are the parent's, and these its first own; its head.

        Raises `UnknownRun` and `UnknownSeq` of the parent, `RunExists` of the fork.
        """
        if not events:
            raise ValueError("a fork needs at least one event of its own")
        at = time.time_ns() if at is None else at
        self._reader.lines.number(parent)  # no run is its own parent
        with self._new_run(run, name, at) as (raw, no):
            line = self._reader.lines.confirm(parent)
            row = None
            if 0 < seq <= self._reader.head(parent)[1]:
                sql = "SELECT chain FROM events WHERE id = ?"
                row = raw.execute(sql, (line.owner(seq).key(seq),)).fetchone()
            if row is None:
                raise UnknownSeq(parent, seq, self.head(parent), str(self.path))
            sql = "INSERT INTO forks (no, parent, seq) VALUES (?, ?, ?)"
            raw.execute(sql, (no, line.own.no, seq))
            head = self._first(raw, Head(no, seq, graft(row[0], run)), events, at)
        self._heads[run] = head
        return head.seq

    def adopt_run(
        self, run: str, name: str, created_at: int, events: Iterable[tuple[int, NewEvent]]
    ) -> int:
        """A new run of events that come with their times, in ns since the epoch; its head.

        They may be many: they are taken as they come, in one transaction, for whose length no
        other process can write to the store. Whatever `events` raises leaves no run behind.
        """
        with self._new_run(run, name, created_at) as (raw, no):
            head = self._encoder.take_in(raw, Head(no, 0, genesis(run)), events)
        self._heads[run] = head
        return head.seq

    @contextmanager
    def _new_run(self, run: str, name: str, at: int) -> Generator[tuple[sqlite3.Connection, int]]:
        """A transaction with the row of a new run, and its number."""
        if not run:
            raise ValueError("a run needs a name that is not empty")
        try:
            with self._gate.writing() as raw:
                sql = "INSERT INTO runs (run, name, created_at) VALUES (?, ?, ?)"
                try:
                    no = raw.execute(sql, (run, name, at)).lastrowid
                except sqlite3.IntegrityError:
                    raise RunExists(run, str(self.path)) from None
                assert no is not None
                yield raw, no
        except BaseException:
            self._types.forget()
            self._paths.forget()
            raise

    def _first(
        self, raw: sqlite3.Connection, head: Head, events: Sequence[NewEvent], at: int
    ) -> Head:
        values, chain = self._encoder.encode(head, events, at)
        insert(raw, values, len(events), fresh=True)
        return Head(head.no, head.seq + len(events), chain)

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        """Append events behind seq `expected`, all or none; the new head."""
        gate = self._gate
        with gate.lock:
            gate.check(writing=True)
            head = self._heads.get(run)
            if head is None or head.seq != expected or not events:
                head = self._find_head(run)
                if head.seq != expected:
                    raise HeadMoved(run, expected, head.seq)
                if not events:
                    return expected
            at = time.time_ns() if at is None else at
            values, chain = self._encoder.encode(head, events, at)
            count = len(events)
            try:
                if count <= MOST_ROWS:
                    gate.raw.execute(insert_sql(count, expected == 0), values)
                else:
                    with gate.writing() as raw:
                        insert(raw, values, count, fresh=expected == 0)
            except BaseException as error:
                self._heads.pop(run, None)
                cause = error.__cause__  # of what `writing` has put in other words
                if isinstance(cause, sqlite3.IntegrityError):
                    raise self._refusal(cause, run, head) from cause
                if isinstance(error, SQL_ERRORS):
                    raise self._refusal(error, run, head) from error
                raise
            self._heads[run] = Head(head.no, expected + count, chain)
            return expected + count

    def _refusal(
        self, error: sqlite3.Error | UnicodeDecodeError, run: str, expected: Head
    ) -> Exception:
        if isinstance(error, sqlite3.IntegrityError):
            found = self._find_head(run)
            if found[:2] != expected[:2]:
                return HeadMoved(run, expected.seq, found.seq)
            return ValueError(f"an event for run {run!r} cannot be stored: {error}")
        translated = self._gate.translated(error)
        if translated is error:
            return StoreError(f"SQLite refused an append to run {run!r} in {self.path}: {error}")
        return translated

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
        return self._reader.read(run, after, until, types, path)

    def latest(
        self, run: str, types: Collection[str] | None = None, path: str | None = None
    ) -> Record | None:
        """The run's last event, or the last of these types, or at this path."""
        return self._reader.latest(run, types, path)

    def head(self, run: str) -> int:
        return self._find_head(run).seq

    def run(self, run: str) -> RunInfo:
        infos = self._infos("WHERE r.no = ?", self._reader.lines.number(run))
        if not infos:
            raise CorruptLog(f"the row of run {run!r} is damaged", where=str(self.path))
        return infos[0]

    def runs(self) -> list[RunInfo]:
        """Every run, the newest first."""
        return self._infos("ORDER BY r.created_at DESC, r.no DESC")

    def _infos(self, which: str, *args: int) -> list[RunInfo]:
        owners = self._tenancy.owners()
        infos: list[RunInfo] = []
        sql = _INFO_WITH_FORKS if self._reader.lines.has_forks() else _INFO
        for row in self._gate.rows(f"{sql} {which}", args):
            no, run, name, created_at, parent, forked_at = row
            if list(map(type, row)) not in _INFO_TYPES:
                raise CorruptLog(f"the row of run number {no} is damaged", where=str(self.path))
            head = self._reader.last(no)[0] or forked_at
            infos.append(RunInfo(run, name, created_at, head, owners.get(run), parent, forked_at))
        return infos

    def named_blobs(self, run: str | None = None) -> Iterator[str]:
        """The blobs that a run needs, or that all do, each once, in no order.

        Those that events name, and those that such a blob names where it is JSON text: it is read
        for that. One that is missing names none.
        """
        return reached(self._reader.payloads(run, MARK), self.blobs.document)

    def save_snapshot(
        self, run: str, seq: int, key: str, body: bytes, pinned: bool = False
    ) -> None:
        """Keep a folded state of `seq` under the caller's compatibility key."""
        with self._gate.writing() as raw:
            snapshots.save(raw, self._reader.lines.confirm(run), seq, key, body, pinned)
            self._seal(raw, run)

    def snapshot(self, run: str, at_most: int, key: str) -> tuple[int, bytes] | None:
        """The latest snapshot with this key at or before seq `at_most` that fits the log.

        Those of a fork's parent, as far as they share, are the fork's too.
        """
        lines = self._reader.lines
        return lines.settled(run, lambda line: snapshots.find(self._gate, line, at_most, key))

    def prune_snapshots(self, run: str, keep: int = 3) -> int:
        """Drop all but the pinned and the newest `keep` others of its own; how many went."""
        return snapshots.prune(self._gate, self._reader.lines.number(run), keep)

    def remove_runs(self, runs: Collection[str]) -> Removed:
        """Remove whole runs, all or none; how much went. Blobs stay.

        Raises `UnknownRun`, `RunLocked` where somebody holds one, and `RunForked` where one has a
        fork that would stay. The file does not shrink: what is free in it is used again.
        """
        chosen = sorted(set(runs))
        lines = self._reader.lines
        self._gate.check(writing=True)
        with ExitStack() as leases:
            for run in chosen:
                lines.number(run)
                leases.enter_context(self.lease(run, "removing the run"))
            with self._gate.writing() as raw:
                numbers = {run: lines.number(run) for run in chosen}
                removed = remove(raw, numbers, str(self.path))
            for run in chosen:
                self._heads.pop(run, None)
                lines.forget(run)
        return removed

    def compact(self) -> None:
        """Give the space of what was removed back to the file system: SQLite's VACUUM.

        It writes the whole file anew, which takes seconds per GB, as much free space again in the
        folder for temporary files, and again beside the store. No other process can write
        meanwhile; one that holds the file for longer than the busy timeout is `StoreBusy`.
        """
        self._gate.vacuum()

    def lease(self, run: str, note: str = "") -> Lease:
        """Own the run, which need not exist yet; RunLocked names the owner if there is one."""
        return self._tenancy.lease(run, note, before_release=self._seal)

    def check(self, run: str, after: int = 0, until: int | None = None) -> list[Finding]:
        """Whether the run may be continued from seq `after`: a part of `verify`, and fast.

        Nothing before `after` is read, and nothing behind `until` (None: the head). The log reaches
        `until`, or what was sealed; what lies in between is gapless and chained to `after`.
        """
        from store.inspection import follow

        return follow(self._gate, self._reader.lines, run, after, until)

    def verify(self, run: str | None = None) -> list[Finding]:
        """Everything that is wrong with one run, or with the whole file."""
        from store.inspection import inspect

        lines = self._reader.lines
        if run is not None:
            lines.number(run)
        return inspect(self._gate, lines, self.blobs, run)

    def close(self) -> None:
        """Give back what is leased and close the file; a second time does nothing."""
        gate = self._gate
        with gate.lock:
            if gate.closed:
                return
            self._tenancy.release_all()
            if self._heads and not gate.read_only and gate.pid == os.getpid():
                try:
                    with gate.writing() as raw:
                        for run in self._heads:
                            self._seal(raw, run)
                except StoreError:
                    pass  # a seal is a help for verify, not a fact
            gate.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _seal(self, raw: sqlite3.Connection, run: str) -> None:
        head = self._heads.get(run)
        if head is not None:
            raw.execute(
                "UPDATE runs SET sealed_seq = ?, sealed_chain = ? WHERE no = ? AND sealed_seq < ?",
                (head.seq, head.chain, head.no, head.seq),
            )

    def _find_head(self, run: str) -> Head:
        own, seq, chain = self._reader.head(run)
        return Head(own.no, seq, chain)

    def _read_uuid(self) -> str:
        rows = self._gate.rows("SELECT value FROM meta WHERE key = 'uuid'")
        if not rows or not isinstance(rows[0][0], str):
            raise CorruptLog("the row with the store's UUID is gone", where=str(self.path))
        return rows[0][0]

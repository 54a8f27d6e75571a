"""The log in a SQLite file: appending, and the doors to all else.

Rules: one append is one INSERT, hence one transaction, whole or absent. It names the head that it
expects. The head and the chain of runs that this process appends to are remembered, and the INSERT
itself proves that they still hold: the next key must be free, and the head's own row must be
there, or it fails as a whole and HeadMoved is raised. What is remembered is forgotten whenever an
append fails.
"""

from __future__ import annotations

import os
import sqlite3
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from store import snapshots
from store.blobs import FileBlobs
from store.connection import Gate, open_gate
from store.errors import SQL_ERRORS, CorruptLog, HeadMoved, RunExists, StoreError
from store.interning import Names
from store.reading import COLUMNS, SHIFT, Reader
from store.records import RunInfo, genesis, link, spell_visit
from store.tenancy import Tenancy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from types import TracebackType

    from store.lease import Lease
    from store.records import Durability, Finding, NewEvent, Record

_MOST_ROWS = 64  # of one INSERT; more go row by row in a transaction
_WIDTH = 6  # columns of a row that differ from the next
_MOST_VISITS = 20_000


class _Head(NamedTuple):
    no: int
    seq: int
    chain: bytes


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
        self._heads: dict[str, _Head] = {}
        self._visits: dict[tuple[int, ...], str] = {}
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
        if not run:
            raise ValueError("a run needs a name that is not empty")
        at = time.time_ns() if at is None else at
        with self._gate.lock:
            self._gate.check(writing=True)
            values, chain = self._encode(_Head(0, 0, genesis(run)), events, at)
            with self._gate.writing() as raw:
                sql = "INSERT INTO runs (run, name, created_at) VALUES (?, ?, ?)"
                try:
                    no = raw.execute(sql, (run, name, at)).lastrowid
                except sqlite3.IntegrityError:
                    raise RunExists(run, str(self.path)) from None
                assert no is not None
                values[0] = no << SHIFT
                _insert(raw, values, len(events), fresh=True)
            self._reader.numbers[run] = no
            self._heads[run] = _Head(no, len(events), chain)
            return len(events)

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
            values, chain = self._encode(head, events, time.time_ns() if at is None else at)
            count = len(events)
            try:
                if count <= _MOST_ROWS:
                    gate.raw.execute(_insert_sql(count, expected == 0), values)
                else:
                    with gate.writing() as raw:
                        _insert(raw, values, count, fresh=expected == 0)
            except BaseException as error:
                self._heads.pop(run, None)
                if isinstance(error, SQL_ERRORS):
                    raise self._refusal(error, run, expected) from error
                raise
            self._heads[run] = _Head(head.no, expected + count, chain)
            return expected + count

    def _refusal(
        self, error: sqlite3.Error | UnicodeDecodeError, run: str, expected: int
    ) -> Exception:
        if isinstance(error, sqlite3.IntegrityError):
            found = self._find_head(run).seq
            if found != expected:
                return HeadMoved(run, expected, found)
            return ValueError(f"an event for run {run!r} cannot be stored: {error}")
        translated = self._gate.translated(error)
        if translated is error:
            return StoreError(f"SQLite refused an append to run {run!r} in {self.path}: {error}")
        return translated

    def _encode(self, head: _Head, events: Sequence[NewEvent], at: int) -> tuple[list[Any], bytes]:
        """The values of an INSERT: what its rows share, then six a row; and the last chain."""
        types, paths, visits = self._types.ids, self._paths.ids, self._visits
        _, seq, chain = head
        values: list[Any] = [head.no << SHIFT | seq, at]
        for type_, path, visit, attempt, payload in events:
            seq += 1
            type_no = types.get(type_) or self._types.intern(type_)
            path_no = paths.get(path) or self._paths.intern(path)
            spelled = visits.get(visit)
            if spelled is None:
                spelled = self._spell(visit)
            chain = link(chain, seq, type_, path, spelled, attempt, payload)
            values += (type_no, path_no, spelled, attempt, payload, chain)
        return values, chain

    def _spell(self, visit: tuple[int, ...]) -> str:
        if len(self._visits) >= _MOST_VISITS:
            self._visits.clear()
        spelled = self._visits[visit] = spell_visit(visit)
        return spelled

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

    def latest(self, run: str, types: Collection[str] | None = None) -> Record | None:
        """The run's last event, or the last of these types."""
        return self._reader.latest(run, types)

    def head(self, run: str) -> int:
        return self._find_head(run).seq

    def run(self, run: str) -> RunInfo:
        return self._infos([self._reader.number(run)])[0]

    def runs(self) -> list[RunInfo]:
        """Every run, the newest first."""
        rows = self._gate.rows("SELECT no FROM runs ORDER BY created_at DESC, no DESC")
        return self._infos([row[0] for row in rows])

    def _infos(self, numbers: list[int]) -> list[RunInfo]:
        owners = self._tenancy.owners()
        infos: list[RunInfo] = []
        for no in numbers:
            sql = "SELECT run, name, created_at FROM runs WHERE no = ?"
            rows = self._gate.rows(sql, (no,))
            if not rows or list(map(type, rows[0])) != [str, str, int]:
                raise CorruptLog(f"the row of run number {no} is damaged", where=str(self.path))
            run, name, created_at = rows[0]
            infos.append(RunInfo(run, name, created_at, self._reader.last(no)[0], owners.get(run)))
        return infos

    def save_snapshot(
        self, run: str, seq: int, key: str, body: bytes, pinned: bool = False
    ) -> None:
        """Keep a folded state of `seq` under the caller's compatibility key."""
        no = self._reader.number(run)
        with self._gate.writing() as raw:
            snapshots.save(raw, no, run, seq, key, body, pinned)
            self._seal(raw, run)

    def snapshot(self, run: str, at_most: int, key: str) -> tuple[int, bytes] | None:
        """The latest snapshot with this key at or before seq `at_most` that fits the log."""
        return snapshots.find(self._gate, self._reader.number(run), run, at_most, key)

    def prune_snapshots(self, run: str, keep: int = 3) -> int:
        """Drop all but the pinned and the newest `keep` others; how many went."""
        return snapshots.prune(self._gate, self._reader.number(run), keep)

    def lease(self, run: str, note: str = "") -> Lease:
        """Own the run, which need not exist yet; RunLocked names the owner if there is one."""
        return self._tenancy.lease(run, note, before_release=self._seal)

    def check(self, run: str, after: int = 0, until: int | None = None) -> list[Finding]:
        """Whether the run may be continued from seq `after`: a part of `verify`, and fast.

        Nothing before `after` is read, and nothing behind `until` (None: the head). The log reaches
        `until`, or what was sealed; what lies in between is gapless and chained to `after`.
        """
        from store.inspection import follow

        return follow(self._gate, self._reader.number(run), run, after, until)

    def verify(self, run: str | None = None) -> list[Finding]:
        """Everything that is wrong with one run, or with the whole file."""
        from store.inspection import inspect

        if run is not None:
            self._reader.number(run)
        return inspect(self._gate, self.blobs, run)

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
                "UPDATE runs SET sealed_seq = ?1, sealed_chain = ?2 "
                "WHERE no = ?3 AND sealed_seq < ?1",
                (head.seq, head.chain, head.no),
            )

    def _find_head(self, run: str) -> _Head:
        no = self._reader.number(run)
        seq, chain = self._reader.last(no)
        return _Head(no, seq, chain if seq else genesis(run))

    def _read_uuid(self) -> str:
        rows = self._gate.rows("SELECT value FROM meta WHERE key = 'uuid'")
        if not rows or not isinstance(rows[0][0], str):
            raise CorruptLog("the row with the store's UUID is gone", where=str(self.path))
        return rows[0][0]


@lru_cache(maxsize=2 * _MOST_ROWS)
def _insert_sql(count: int, fresh: bool) -> str:
    """One INSERT of `count` rows behind key ?1; it fails unless the row of that key is there."""
    rows: list[str] = []
    for row in range(count):
        # no row of the head: the time is NULL, which its column refuses
        at = "?2" if row or fresh else "(SELECT ?2 FROM events WHERE id = ?1)"
        first = 3 + _WIDTH * row
        rest = ", ".join(f"?{number}" for number in range(first, first + _WIDTH))
        rows.append(f"(?1 + {row + 1}, {at}, {rest})")
    return f"INSERT INTO events ({COLUMNS}) VALUES {', '.join(rows)}"  # noqa: S608


def _insert(raw: sqlite3.Connection, values: list[Any], count: int, *, fresh: bool) -> None:
    """The same inside a transaction, for any number of rows."""
    base, at = values[0], values[1]
    done = 0
    while done < count:
        step = min(count - done, _MOST_ROWS)
        start = 2 + done * _WIDTH
        part = [base + done, at, *values[start : start + step * _WIDTH]]
        raw.execute(_insert_sql(step, fresh and not done), part)
        done += step

"""One SQLite connection, opened with care and used behind one lock.

Rules: the database file is opened by SQLite only. (Opening and closing it by hand would drop every
POSIX lock that SQLite holds on it in this process.) Transactions are explicit and IMMEDIATE,
because a deferred one fails at once when another process has written. No cursor stays open between
calls, so that a write never meets a stale read of its own connection. A connection is never used
in a forked child. Raw SQLite errors are translated here.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import contextmanager, suppress
from threading import RLock
from typing import TYPE_CHECKING, Any

from store.errors import (
    SQL_ERRORS,
    StoreClosed,
    StoreError,
    StoreMissing,
    StoreUnwritable,
    UnfitFilesystem,
    from_sqlite,
)
from store.filesystem import refuse_network
from store.records import durability_of
from store.schema import VERSION, migrate, refuse_views, version_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from store.records import Durability

_SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}
_RETRY_SECONDS = 0.003


class Gate:
    """The connection, its lock, and the translation of its errors."""

    def __init__(
        self,
        raw: sqlite3.Connection,
        path: Path,
        *,
        durability: Durability,
        read_only: bool,
        timeout: float,
    ) -> None:
        self.raw = raw
        self.path = path
        self.durability: Durability = durability
        self.read_only = read_only
        self.timeout = timeout
        self.pid = os.getpid()
        self.closed = False
        self.lock = RLock()

    def check(self, *, writing: bool = False) -> None:
        if self.closed:
            raise StoreClosed(f"The store {self.path} is closed; open it again to use it.")
        if os.getpid() != self.pid:
            raise StoreClosed(
                f"The store {self.path} was opened by process {self.pid} and is now used by its "
                f"forked child {os.getpid()}; a child must open the store anew."
            )
        if writing and self.read_only:
            raise StoreUnwritable(self.path, "it was opened with read_only=True")

    def rows(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        with self.lock:
            self.check()
            try:
                return self.raw.execute(sql, args).fetchall()
            except SQL_ERRORS as error:
                raise self.translated(error) from error

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """An immediate transaction: committed at the end of the block, or never begun.

        A block within another one is a part of its transaction.
        """
        with self.lock:
            self.check(writing=True)
            if self.raw.in_transaction:
                yield self.raw
                return
            try:
                self.raw.execute("BEGIN IMMEDIATE")
                try:
                    yield self.raw
                    self.raw.execute("COMMIT")
                except BaseException:
                    self.rollback()
                    raise
            except SQL_ERRORS as error:
                raise self.translated(error) from error

    def vacuum(self) -> None:
        """Write the file anew without what is free in it, and give the space back."""
        with self.lock:
            self.check(writing=True)
            try:
                self.raw.execute("VACUUM")
                self.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except SQL_ERRORS as error:
                raise self.translated(error) from error

    def use(self, durability: Durability) -> None:
        durability = durability_of(durability)
        with self.lock:
            self.check()
            try:
                _set_durability(self.raw, durability)
            except SQL_ERRORS as error:
                raise self.translated(error) from error
            self.durability = durability

    def rollback(self) -> None:
        # SQLite has already rolled back after a full disk; a failing rollback hides the cause
        with suppress(sqlite3.Error):
            if self.raw.in_transaction:
                self.raw.execute("ROLLBACK")

    def translated(self, error: sqlite3.Error | UnicodeDecodeError) -> Exception:
        return from_sqlite(error, self.path, timeout=self.timeout)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            # in a forked child, closing could checkpoint under the parent's feet
            if os.getpid() == self.pid:
                self.raw.close()


def open_gate(
    path: Path, *, durability: Durability, create: bool, read_only: bool, timeout: float
) -> Gate:
    """Open `path` (absolute and real), creating or migrating it where that is needed."""
    durability = durability_of(durability)
    _look_before(path, create=create and not read_only, read_only=read_only)
    mode = _reading_mode(path) if read_only else "rwc" if create else "rw"
    if mode == "rwc" and not path.exists():
        import sqlite_utils  # noqa: F401  # pyright: ignore[reportUnusedImport]  (slow: before there is a file, which would be empty so long)
    raw = _connect(path, mode, timeout)
    try:
        if read_only:
            raw = _readable(raw, path, timeout)
            raw.execute("PRAGMA query_only = ON")
        else:
            _make_current(raw, path, timeout)
            _set_durability(raw, durability)
        raw.execute("PRAGMA trusted_schema = OFF")
        refuse_views(raw, path)
    except SQL_ERRORS as error:
        raw.close()
        raise from_sqlite(error, path, timeout=timeout) from error
    except BaseException:
        raw.close()
        raise
    return Gate(raw, path, durability=durability, read_only=read_only, timeout=timeout)


def _set_durability(raw: sqlite3.Connection, durability: Durability) -> None:
    raw.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")


def _look_before(path: Path, *, create: bool, read_only: bool) -> None:
    """Say what SQLite would only call 'unable to open', and what it would not notice yet."""
    folder = path.parent
    if path.is_dir():
        raise StoreUnwritable(path, "it is a folder, and a store is a file")
    if not path.exists():
        if not create:
            raise StoreMissing(path)
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "does not exist"
            raise StoreUnwritable(path, f"{folder} {what}")
    if read_only:
        return
    refuse_network(path)
    for place in (path, folder):
        # SQLite opens a protected file for reading without a word, and fails at the first write
        if place.exists() and not os.access(place, os.W_OK, effective_ids=_EFFECTIVE):
            raise StoreUnwritable(path, f"{place} is not writable for this process")


_EFFECTIVE = os.access in os.supports_effective_ids


def _reading_mode(path: Path) -> str:
    """How to open a store for reading only.

    A connection that cannot write leaves the -wal and -shm behind that reading has made. One that
    can takes them away when it is closed; but it would see to what a crash has left there before.
    An empty -wal is what another reader has made, or left when it was killed.
    """
    closed = not any(map(_holds, (path.with_name(path.name + end) for end in ("-wal", "-journal"))))
    mine = all(os.access(at, os.W_OK, effective_ids=_EFFECTIVE) for at in (path, path.parent))
    return "rw" if closed and mine else "ro"


def _holds(file: Path) -> bool:
    """Whether it is there, and not empty."""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _connect(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    try:
        return sqlite3.connect(
            f"{path.as_uri()}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
    except SQL_ERRORS as error:
        raise from_sqlite(error, path, timeout=timeout) from error


def _make_current(raw: sqlite3.Connection, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            current = version_of(raw, path) == VERSION
            if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                mode = raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    raise UnfitFilesystem(path, f"SQLite stays in {mode} mode there", final=True)
            if not current:
                migrate(raw, path)
        except sqlite3.OperationalError as error:
            # turning WAL on does not wait by the busy timeout when several processes create a file
            busy = _code(error) == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _code(error: sqlite3.Error) -> int:
    # Python's own errors have none; the extended code's low byte is the primary one
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _readable(raw: sqlite3.Connection, path: Path, timeout: float) -> sqlite3.Connection:
    """The connection, or one without WAL where the folder allows none and none is needed."""
    try:
        version = version_of(raw, path)
    except sqlite3.OperationalError as error:
        wal = path.with_name(path.name + "-wal")
        code = _code(error)
        cold = not wal.exists() or wal.stat().st_size == 0
        if code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not cold:
            raise StoreError(
                f"The store {path} was not closed, and its last events are in {wal.name} beside "
                "it. Reading those needs a file -shm, which this process cannot make there: copy "
                "the store, its -wal and its folder of blobs to where you may write, and read "
                "them there."
            ) from error
        raw.close()
        raw = _connect(path, "ro&immutable=1", timeout)
        try:
            version = version_of(raw, path)
        except BaseException:
            raw.close()
            raise
    if not version:
        raw.close()
        raise StoreError(
            f"The store {path} is empty or of an older format, and opening it for reading changes "
            "nothing. Open it once for writing, which brings it up to date."
        )
    return raw

"""Every exception of the event store.

Rules: an error says what happened, where (file, run, seq), what was expected and what was found,
and what to do next. Each one derives from `StoreError` and from the built-in that fits, so that
`except LookupError` and `except OSError` mean what they always meant. No bare `sqlite3.Error` and
no bare `OSError` of ours leaves the package: `from_sqlite` and `from_os` translate them. What tells
of a mistake in a call (`ProgrammingError`, `InterfaceError`) is none of a store's, and stays.

    StoreError (Exception)
    ├── UnknownRun (LookupError)              no run of that name in this store
    ├── RunExists (ValueError)                a run of that name is there already
    ├── UnknownSeq (LookupError)              a run has no event with that seq
    ├── RunForked (RuntimeError)              runs that are not to be removed share its events
    ├── HeadMoved (RuntimeError)              the log is not where the appender believed it to be
    ├── RunLocked (RuntimeError)              another owner holds the run
    ├── StoreMissing (FileNotFoundError)      no file there, and none was to be created
    ├── NotAStore (ValueError)                the file is not ours, or not SQLite at all
    ├── StoreTooNew (RuntimeError)            written by a later version of this package
    ├── StoreClosed (ValueError)              used after close(), or in a forked child
    ├── CorruptLog (ValueError)               the log contradicts itself
    ├── BlobMissing (FileNotFoundError)       a blob that the log names is not there
    ├── BlobCorrupt (ValueError)              a blob's bytes are not what its name says
    ├── StoreUnwritable (OSError)             read-only, no permission, no space
    ├── StoreBusy (TimeoutError)              another writer held the file for too long
    └── UnfitFilesystem (OSError)             locks or WAL do not work on this file system
"""

from __future__ import annotations

import errno
import sqlite3
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from store.holding import told, writer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from store.records import Owner


class StoreError(Exception):
    """Anything that an event store refuses or fails to do."""


class UnknownRun(StoreError, LookupError):
    def __init__(self, run: str, known: Iterable[str], where: str) -> None:
        self.run = run
        names = list(known)
        near = get_close_matches(run, names, n=3, cutoff=0.5)
        if near:
            hint = "Did you mean " + " or ".join(repr(name) for name in near) + "?"
        elif names:
            hint = "It holds " + _listing(names) + "."
        else:
            hint = "It holds no runs at all: is this the store that you meant?"
        super().__init__(f"There is no run {run!r} in {where}. {hint}")


class RunExists(StoreError, ValueError):
    def __init__(self, run: str, where: str) -> None:
        self.run = run
        super().__init__(
            f"A run {run!r} exists already in {where}; a run's name is never used twice. "
            "Choose another name, or go on with that run."
        )


class UnknownSeq(StoreError, LookupError):
    def __init__(self, run: str, seq: int, head: int, where: str) -> None:
        self.run, self.seq, self.head = run, seq, head
        super().__init__(
            f"Run {run!r} in {where} has no event with seq {seq}: its last one is {head}. "
            "Name a seq that it has."
        )


class RunForked(StoreError, RuntimeError):
    def __init__(self, forks: dict[str, list[str]], where: str) -> None:
        self.forks = forks
        which = "; ".join(f"run {run!r} to {_listing(names)}" for run, names in forks.items())
        super().__init__(
            f"Nothing was removed from {where}: forks need the events of what they were forked of "
            f"({which}). Remove the forks as well, or keep both."
        )


class HeadMoved(StoreError, RuntimeError):
    def __init__(self, run: str, expected: int, found: int) -> None:
        self.run, self.expected, self.found = run, expected, found
        if found > expected:
            why = (
                "another process has appended: this one no longer owns the run. "
                "Stop here, and resume the run from what the log holds now"
            )
        elif found == expected:
            why = "that is another run of the same name, made after this one was removed. Stop here"
        else:
            why = (
                "events that this process had seen are gone from the file: it was replaced by an "
                "older copy or edited. Verify the store before going on"
            )
        super().__init__(
            f"Nothing was appended to run {run!r}: its head was expected at seq {expected} "
            f"and found at seq {found}; {why}."
        )


class RunLocked(StoreError, RuntimeError):
    def __init__(self, run: str, owner: Owner | None, where: str) -> None:
        self.run, self.owner = run, owner
        if owner is None:
            who = "another process, which has not yet said who it is,"
        else:
            since = ""
            if owner.since:
                moment = datetime.fromtimestamp(owner.since // 1_000_000_000, UTC)
                since = f" since {moment:%Y-%m-%d %H:%M:%S} UTC"
            note = f" ({owner.note})" if owner.note else ""
            who = f"process {owner.pid} on {owner.host}{since}{note}"
        super().__init__(
            f"Run {run!r} in {where} is held by {who}. A run has one owner at a time: wait for it "
            "to end, or end it; the lock goes with the process, so there is nothing to clean up."
        )


class StoreMissing(StoreError, FileNotFoundError):
    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"There is no store at {path}. Check the path, or start a run there to create one."
        )


class NotAStore(StoreError, ValueError):
    def __init__(self, path: Path, found: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is not an event store: {found}. It was left untouched; name another file."
        )


class StoreTooNew(StoreError, RuntimeError):
    def __init__(self, path: Path, found: int, known: int) -> None:
        self.path, self.found, self.known = path, found, known
        super().__init__(
            f"The store {path} has format {found}, and this version reads up to format {known}. "
            "It was left untouched; upgrade the package to open it."
        )


class StoreClosed(StoreError, ValueError):
    pass


class CorruptLog(StoreError, ValueError):
    def __init__(self, what: str, *, where: str, run: str | None = None, seq: int | None = None):
        self.what, self.run, self.seq = what, run, seq
        place = "" if run is None else f", run {run!r}" + ("" if seq is None else f", seq {seq}")
        super().__init__(
            f"The log in {where}{place} is damaged: {what}. Verify the store to see what is wrong "
            "where it still opens, and restore it from a copy; SQLite's shell command .recover "
            "saves what can still be read."
        )


class BlobMissing(StoreError, FileNotFoundError):
    def __init__(self, digest: str, path: Path | None, named_by: str = "") -> None:
        self.digest, self.path, self.named_by = digest, path, named_by
        place = f" at {path}" if path is not None else ""
        who = f", which {named_by} names," if named_by else ""
        super().__init__(
            f"Blob {digest}{who} is missing{place}. The folder of blobs belongs to the store file "
            "and must be moved and copied with it; bring it back beside the store."
        )


class BlobCorrupt(StoreError, ValueError):
    def __init__(self, digest: str, path: Path | None, found: str, named_by: str = "") -> None:
        self.digest, self.path, self.found, self.named_by = digest, path, found, named_by
        place = f" at {path}" if path is not None else ""
        who = f", which {named_by} names," if named_by else ""
        super().__init__(
            f"Blob {digest}{who} is damaged{place}: its bytes hash to {found}. "
            "Restore it from a copy; nothing was loaded."
        )


class StoreUnwritable(StoreError, OSError):
    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(
            f"Cannot write the store at {path}: {why}. Nothing of this was recorded; free some "
            "space, change the permissions, or name a store elsewhere."
        )


class StoreBusy(StoreError, TimeoutError):
    def __init__(self, path: Path, seconds: float, holder: int | None = None) -> None:
        self.path, self.holder = path, holder
        if holder is None:
            who = "See which process has it open (a shell with an open transaction, a backup)"
        else:
            who = f"It is held by {told(holder)}: wait for that to end, or end it"
        super().__init__(
            f"The store {path} was held by another writer for more than {seconds:g} s, and "
            f"nothing was written. {who}, and try again."
        )


class UnfitFilesystem(StoreError, OSError):
    def __init__(self, path: Path, why: str, *, final: bool = False) -> None:
        self.path = path
        insist = (
            ""
            if final
            else " If you know that only one machine ever uses it, set KITCHEN_ALLOW_NETWORK_FS=1."
        )
        super().__init__(
            f"The store {path} lies on a file system that cannot keep it safe: {why}. "
            f"Put it on a local disk, and copy it from there when the run has ended.{insist}"
        )


_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# an SQLITE_ERROR is a schema that is not ours any more: our statements are fixed, and were right
_CORRUPT = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_MISMATCH,
}
# Python's reader decodes text, that of SQLite's own messages too, and fails with either of these
SQL_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_UNDECODABLE = "Could not decode to UTF-8"
_UNWRITABLE = {
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_CANTOPEN: "SQLite is unable to open the file or a file beside it",
    sqlite3.SQLITE_IOERR: "the disk reported an error",
    sqlite3.SQLITE_PERM: "permission is denied",
    sqlite3.SQLITE_AUTH: "permission is denied",
}
_OS_UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.ENOENT,
}


def from_sqlite(
    error: sqlite3.Error | UnicodeDecodeError, path: Path, *, timeout: float
) -> Exception:
    """What a raw SQLite error means here; a mistake in the call comes back as it is."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return CorruptLog(error.object.decode(errors="replace"), where=str(path))
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in text:
        return StoreClosed(f"The store {path} is closed; open it again to use it.")
    # the extended code's low byte is the primary one
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return StoreBusy(path, timeout, writer_of(path))
    if code == sqlite3.SQLITE_NOTADB:
        return NotAStore(path, "it is no SQLite database")
    if code == sqlite3.SQLITE_PROTOCOL:
        return UnfitFilesystem(path, "SQLite's file locks do not work there")
    if code in _CORRUPT or text.startswith(_UNDECODABLE):
        return CorruptLog(text, where=str(path))
    if code in _UNWRITABLE:
        return StoreUnwritable(path, f"{_UNWRITABLE[code]} ({text})")
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return error
    return StoreError(f"SQLite refused to work on the store {path}: {text}")


def from_os(error: OSError, path: Path) -> Exception:
    """What an operating system's error means for a file of the store."""
    if error.errno in _OS_UNWRITABLE:
        return StoreUnwritable(path, error.strerror or str(error))
    return error


def _listing(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

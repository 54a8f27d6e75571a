"""Large values as files, each under the sha256 of its bytes: `<store>.blobs/ab/cdef…`.

Rules: a blob is complete or absent. Bytes go to a temporary name, are synced, and are renamed, so
that a crash leaves at worst a temporary file, which the next opening removes once it is a day old.
When `put` returns, the name is as durable as the bytes: the blob's folder, the one above it and the
store's own are synced. That holds for what was present too, whose writer may have died before it
synced them; a folder that has not changed since it was synced is not synced again. What is present
is not written again, but its time is renewed, so that a collector that spares young blobs cannot
take one which is about to be named. `get` always checks the hash. A digest is checked before it
becomes part of a path.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import BlobCorrupt, BlobMissing, from_os
from store.references import may_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_TEMPORARY = ".tmp-"
_STALE_SECONDS = 24 * 3600.0
# what a file system says that does not sync folders, or lets us pass through one but not open it
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EROFS})


def digest_of(data: bytes | bytearray | memoryview) -> str:
    return sha256(data).hexdigest()


def checked(digest: str) -> str:
    if not _DIGEST.match(digest):
        raise ValueError(f"{digest!r} is no blob digest: expected 64 lower-case hex digits")
    return digest


class FileBlobs:
    """Blobs in a folder; nothing is created before the first `put`."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root = root
        self._numbers = itertools.count(1)  # of several threads
        # folder -> when it had last changed, as of a moment before it was synced
        self._synced: dict[Path, int] = {}
        if not read_only:
            self._sweep()

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would lie."""
        checked(digest)
        return self.root / digest[:2] / digest[2:]

    def put(self, data: bytes | bytearray | memoryview) -> str:
        digest = digest_of(data)
        target = self.path(digest)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        try:
            # a wrong size is a file that something else cut short: write it again
            if target.stat().st_size == size:
                os.utime(target)
                self._sync(target.parent)
                return digest
        except FileNotFoundError:
            pass
        except OSError as error:
            raise from_os(error, target) from error
        self._write(target, data)
        return digest

    def _write(self, target: Path, data: bytes | bytearray | memoryview) -> None:
        number = next(self._numbers)
        temporary = target.parent / f"{_TEMPORARY}{os.getpid()}-{id(self):x}-{number}"
        try:
            if not target.parent.is_dir():
                if target.parent in self._synced:
                    # somebody has removed it since: what we knew of it and those above is void
                    self._synced.clear()
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            self._sync(target.parent)
        except OSError as error:
            raise from_os(error, target) from error

    def _sync(self, folder: Path) -> None:
        """Make durable what lies in the folder, and that the folder is there."""
        changed = folder.stat().st_mtime_ns
        before = self._synced.get(folder)
        if before == changed:
            return
        _sync_folder(folder)
        if before is None:
            _sync_folder(self.root)
            if not self._synced:
                _sync_folder(self.root.parent)
        self._synced[folder] = changed

    def get(self, digest: str, *, named_by: str = "") -> bytes:
        path = self.path(digest)
        try:
            data = _read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BlobMissing(digest, path, named_by) from None
        if data is None:
            raise BlobCorrupt(digest, path, "something that is no file of its own", named_by)
        found = digest_of(data)
        if found != digest:
            raise BlobCorrupt(digest, path, found, named_by)
        return data

    def document(self, digest: str) -> bytes:
        """What a blob holds if it may name others, unchecked; else, or where it is gone, nothing.

        Of most blobs only the beginning is read.
        """
        path = self.path(digest)
        try:
            return _read_file(path, may_name) or b""
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            raise from_os(error, path) from error

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        path = self.path(digest)
        try:
            return path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise BlobMissing(digest, path) from None

    def digests(self) -> Iterator[str]:
        """Every blob present, named in the log or not."""
        for file in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            digest = file.parent.name + file.name
            if _DIGEST.match(digest):
                yield digest

    def remove(self, digest: str, *, older_than: float = 0.0, dry_run: bool = False) -> bool:
        """Remove a blob unless it was put within the last `older_than` seconds; whether it goes."""
        path = self.path(digest)
        try:
            if older_than and time.time() - path.stat().st_mtime < older_than:
                return False
            if dry_run:
                return path.is_file()
            # Whoever puts it from here on finds no file, and writes it; who has just put it shows.
            aside = path.parent / f"{_TEMPORARY}{os.getpid()}-{id(self):x}-{next(self._numbers)}"
            path.rename(aside)
            if older_than and time.time() - aside.stat().st_mtime < older_than:
                aside.rename(path)
                return False
            aside.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise from_os(error, path) from error
        return True

    def _sweep(self) -> None:
        for file in self.root.glob(f"[0-9a-f][0-9a-f]/{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                    file.unlink()


class MemoryBlobs:
    """The same in a dict."""

    def __init__(self, blobs: dict[str, bytes] | None = None) -> None:
        self._blobs: dict[str, bytes] = {} if blobs is None else blobs

    def put(self, data: bytes | bytearray | memoryview) -> str:
        digest = digest_of(data)
        self._blobs.setdefault(digest, bytes(data))
        return digest

    def get(self, digest: str, *, named_by: str = "") -> bytes:
        data = self._blobs.get(checked(digest))
        if data is None:
            raise BlobMissing(digest, None, named_by)
        found = digest_of(data)
        if found != digest:
            raise BlobCorrupt(digest, None, found, named_by)
        return data

    def document(self, digest: str) -> bytes:
        """What a blob holds, unchecked; nothing where it is gone."""
        return self._blobs.get(checked(digest), b"")

    def has(self, digest: str) -> bool:
        return checked(digest) in self._blobs

    def size(self, digest: str) -> int:
        if checked(digest) not in self._blobs:
            raise BlobMissing(digest, None)
        return len(self._blobs[digest])

    def digests(self) -> Iterator[str]:
        yield from sorted(self._blobs)

    def remove(self, digest: str, *, older_than: float = 0.0, dry_run: bool = False) -> bool:
        """Remove a blob; nothing in memory has an age, so `older_than` above 0 keeps it."""
        if older_than or dry_run:
            return not older_than and checked(digest) in self._blobs
        return self._blobs.pop(checked(digest), None) is not None

    def copy(self) -> MemoryBlobs:
        return MemoryBlobs(dict(self._blobs))


def _read_file(path: Path, wanted: Callable[[bytes], bool] | None = None) -> bytes | None:
    """What a plain file holds; None for a link, a device or a pipe, which might never end.

    None also where its beginning is not `wanted`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or (wanted and not wanted(file.peek(1))):
            return None
        return file.read()


def _sync_folder(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise

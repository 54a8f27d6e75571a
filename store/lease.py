"""Who owns a run: a lock of the operating system that dies with its process.

Rules: a lease is one byte of the file `<store>.lock`, locked by POSIX `fcntl`; which byte follows
from the store's UUID, its real path and the run. Such locks go when the process goes, however it
goes, and a forked child does not inherit them, so that a worker that outlives a killed parent
keeps nothing locked. They also go when *any* descriptor of that file is closed in the process:
therefore this module opens one per lock file and never closes it, and nobody else may open one.
Within a process such locks do not exclude each other: a registry does. Nothing beats or expires.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
import time
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING, Self

from store.errors import UnfitFilesystem, from_os
from store.records import Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

_guard = Lock()
_files: dict[str, tuple[int, bool]] = {}  # lock file -> its descriptor, and whether it can lock
_held: dict[tuple[str, int], int] = {}  # (lock file, byte) held by this process -> through which


def _after_fork() -> None:
    # the child holds none of its parent's locks, and the guard may have been taken in the parent
    global _guard  # noqa: PLW0603
    _guard = Lock()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


class Lease:
    """Ownership of one run until `release`, the end of a `with` block, or the process's end."""

    def __init__(self, run: str, owner: Owner, release: Callable[[], None]) -> None:
        self.run = run
        self.owner = owner
        self._release: Callable[[], None] | None = release
        self._pid = os.getpid()

    @property
    def held(self) -> bool:
        return self._release is not None and os.getpid() == self._pid

    def release(self) -> None:
        """Give the run back; a second time, or in a forked child, it does nothing."""
        if self._release is not None and os.getpid() == self._pid:
            release, self._release = self._release, None
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease of {self.run!r}, {'held' if self.held else 'released'}>"


def this_process(note: str) -> Owner:
    return Owner(os.getpid(), socket.gethostname(), time.time_ns(), note)


def place_of(uuid: str, path: Path, run: str) -> int:
    """Which byte of the lock file stands for this run of this store."""
    key = "\0".join((uuid, str(path), run)).encode(errors="surrogateescape")
    return int.from_bytes(blake2b(key, digest_size=8).digest()) >> 2


def take(lock_file: Path, place: int) -> bool:
    """Take the lock now or not at all; False where somebody holds it, this process included."""
    name = str(lock_file)
    with _guard:
        if (name, place) in _held:
            return False
        fd = _descriptor(lock_file, locking=True)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise UnfitFilesystem(
                lock_file, f"locking a file failed with {error.strerror}", final=True
            ) from error
        _held[name, place] = fd
        return True


def give_back(lock_file: Path, place: int) -> None:
    with _guard:
        fd = _held.pop((str(lock_file), place), None)
        if fd is not None:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, place)


def holder(lock_file: Path, place: int) -> int | None:
    """The pid of the living process that holds the lock; 0 where it cannot be told."""
    with _guard:
        if (str(lock_file), place) in _held:
            return os.getpid()
        try:
            fd = _descriptor(lock_file, locking=False)
        except OSError:
            return None  # no lock file, no lock
        return _ask(fd, place)


def _ask(fd: int, place: int) -> int | None:
    # Python's lockf cannot ask without taking; the layout of struct flock is the system's
    if sys.platform == "darwin":
        request = struct.pack("@qqihh", place, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = struct.unpack("@qqihh", fcntl.fcntl(fd, fcntl.F_GETLK, request))
    else:
        request = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        kind, _, _, _, pid = struct.unpack("@hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, request))
    if kind == fcntl.F_UNLCK:
        return None
    return max(pid, 0)  # a holder in another pid namespace has no number here


def _descriptor(lock_file: Path, *, locking: bool) -> int:
    """This process's descriptor of the lock file; none is ever closed, as that would unlock."""
    name = str(lock_file)
    fd, can_lock = _files.get(name, (-1, False))
    if fd >= 0 and (can_lock or not locking) and _is_open_on(fd, lock_file):
        return fd
    flags = os.O_RDWR | os.O_CREAT if locking else os.O_RDONLY
    try:
        fd = os.open(lock_file, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise from_os(error, lock_file) from error
    _files[name] = fd, locking
    return fd


def _is_open_on(fd: int, lock_file: Path) -> bool:
    # somebody may have deleted the file, and somebody else may have made a new one
    try:
        there = lock_file.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

"""Which process holds a store's write lock, as far as the system tells.

Rules: nothing is opened, as closing a file would drop the locks that SQLite holds on it in this
process. What is told is a help for whoever reads an error, never a fact to act on: the lock may
have changed hands since. Where it cannot be known (another system, another pid namespace, this
process itself), nothing is told.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOCKS = Path("/proc/locks")
_WRITE_BYTE = 120  # of the -shm file: SQLite's lock for the one writer of a WAL


def writer_of(path: Path, locks: str | None = None) -> int | None:
    """The pid of another process that writes the database at `path` now."""
    try:
        shared = path.with_name(path.name + "-shm").stat()
        locks = _LOCKS.read_text() if locks is None else locks
    except OSError:
        return None
    place = f"{os.major(shared.st_dev):02x}:{os.minor(shared.st_dev):02x}:{shared.st_ino}"
    for line in locks.splitlines():
        # "7: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120"; what waits has "->" behind the number
        fields = line.split()
        if len(fields) != 8 or fields[3] != "WRITE" or fields[5] != place:
            continue
        pid, first, last = fields[4], fields[6], fields[7]
        if last == "EOF" or int(first) <= _WRITE_BYTE <= int(last):
            return int(pid) if int(pid) > 0 and int(pid) != os.getpid() else None
    return None


def told(pid: int) -> str:
    """A process in words: its number and, where the system says so, its command."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    command = " ".join(" ".join(words).split())
    if len(command) > 80:
        command = f"{command[:77]}..."
    return f"process {pid} ({command})" if command and command.isprintable() else f"process {pid}"

"""The leases of one store: the lock that decides, and the row that says who.

Rules: the lock is taken first, then the row is written; the row goes first, then the lock. So a
row may be stale, and is believed only while the lock is held by the pid that it names. The lock
works before the run has its row in `runs`.
"""

from __future__ import annotations

import socket
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from store.errors import RunLocked, StoreError
from store.lease import Lease, give_back, holder, place_of, take, this_process
from store.records import Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from store.connection import Gate

_TRIES = 3
_COLUMNS: list[type] = [int, str, int, str]  # as they are unless the file is damaged
_SAVE = (
    "INSERT INTO leases (run, pid, host, since, note) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (run) DO UPDATE SET "
    "pid = excluded.pid, host = excluded.host, since = excluded.since, note = excluded.note"
)


class Tenancy:
    """Takes and gives back leases, and tells who holds them."""

    def __init__(self, gate: Gate, uuid: str) -> None:
        self._gate = gate
        self._uuid = uuid
        self._lock_file: Path = gate.path.with_name(gate.path.name + ".lock")
        self._leases: list[Lease] = []

    def lease(
        self, run: str, note: str, before_release: Callable[[sqlite3.Connection, str], None]
    ) -> Lease:
        self._gate.check(writing=True)
        place = place_of(self._uuid, self._gate.path, run)
        for _ in range(_TRIES):
            if take(self._lock_file, place):
                break
            owner = self._owner(run, place)
            if owner is not None:
                raise RunLocked(run, owner, str(self._gate.path))
            # whoever held it has just gone
        else:
            raise RunLocked(run, None, str(self._gate.path))
        owner = this_process(note)
        try:
            with self._gate.writing() as raw:
                raw.execute(_SAVE, (run, *owner))
        except BaseException:
            give_back(self._lock_file, place)
            raise
        lease = Lease(run, owner, lambda: self._release(run, owner, place, before_release))
        self._leases = [other for other in self._leases if other.held] + [lease]
        return lease

    def _release(
        self,
        run: str,
        owner: Owner,
        place: int,
        before_release: Callable[[sqlite3.Connection, str], None],
    ) -> None:
        try:
            # the lock must go even where the row cannot
            with suppress(StoreError), self._gate.writing() as raw:
                before_release(raw, run)
                raw.execute(
                    "DELETE FROM leases WHERE run = ? AND pid = ? AND since = ?",
                    (run, owner.pid, owner.since),
                )
        finally:
            give_back(self._lock_file, place)

    def release_all(self) -> None:
        for lease in self._leases:
            lease.release()
        self._leases.clear()

    def owners(self) -> dict[str, Owner]:
        """The living owner of every run that has one."""
        living: dict[str, Owner] = {}
        for (run,) in self._gate.rows("SELECT run FROM leases WHERE typeof(run) = 'text'"):
            owner = self._owner(run, place_of(self._uuid, self._gate.path, run))
            if owner is not None:
                living[run] = owner
        return living

    def _owner(self, run: str, place: int) -> Owner | None:
        pid = holder(self._lock_file, place)
        if pid is None:
            return None
        rows = self._gate.rows("SELECT pid, host, since, note FROM leases WHERE run = ?", (run,))
        # pid 0: the holder lives in another pid namespace, and only its row knows its number
        if rows and pid in (0, rows[0][0]) and list(map(type, rows[0])) == _COLUMNS:
            return Owner(*rows[0])
        return Owner(pid, socket.gethostname(), 0, "")

"""Removing whole runs: the one place that deletes events.

Rules: all of the runs go, or none. Nothing is removed that somebody holds, which the caller's
leases prove, or that a fork needs which stays. The triggers that refuse a deletion are lifted and
restored in the transaction that deletes, so that no other process ever finds them gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from store.errors import RunForked
from store.lineage import MASK, SHIFT
from store.records import Removed
from store.schema import statements

if TYPE_CHECKING:
    import sqlite3

_LIFTED = ("events_refuse_delete", "forks_refuse_delete", "runs_refuse_delete")
_FORKS = (
    "SELECT f.parent, coalesce(r.run, 'run number ' || f.no), f.no "
    "FROM forks f LEFT JOIN runs r ON r.no = f.no ORDER BY f.no"
)


def remove(raw: sqlite3.Connection, numbers: dict[str, int], where: str) -> Removed:
    """Delete the runs with these names and numbers; to be called inside a transaction."""
    _refuse_forked(raw, numbers, where)
    triggers = statements(2, None)
    for trigger in _LIFTED:
        raw.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    events = snapshots = 0
    for no in numbers.values():
        sql = "DELETE FROM events WHERE id > ? AND id <= ?"
        events += raw.execute(sql, (no << SHIFT, no << SHIFT | MASK)).rowcount
        snapshots += raw.execute("DELETE FROM snapshots WHERE run = ?", (no,)).rowcount
        raw.execute("DELETE FROM forks WHERE no = ?", (no,))
        raw.execute("DELETE FROM runs WHERE no = ?", (no,))
    for trigger in _LIFTED:
        raw.execute(triggers[trigger])
    return Removed(len(numbers), events, snapshots)


def _refuse_forked(raw: sqlite3.Connection, numbers: dict[str, int], where: str) -> None:
    names = {no: run for run, no in numbers.items()}
    needed: dict[str, list[str]] = {}
    for parent, fork, no in raw.execute(_FORKS).fetchall():
        if parent in names and no not in names:
            needed.setdefault(names[parent], []).append(fork)
    if needed:
        raise RunForked(needed, where)

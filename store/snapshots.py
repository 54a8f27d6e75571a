"""Folded states, cached at a seq: always deletable, never the truth.

Rules: a snapshot is found by its run, its caller's compatibility key and the latest seq at or
before the one asked for. Pinned ones outlive pruning. Saving one again replaces it and keeps the
pin. Saving also seals the run's head, as it is a write anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from store.connection import Gate

_SAVE = (
    "INSERT INTO snapshots (run, seq, key, pinned, body) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (run, key, seq) DO UPDATE SET "
    "body = excluded.body, pinned = max(pinned, excluded.pinned)"
)
_FIND = (
    "SELECT seq, body FROM snapshots WHERE run = ? AND key = ? AND seq <= ? "
    "ORDER BY seq DESC LIMIT 1"
)
_PRUNE = (
    "DELETE FROM snapshots WHERE run = ?1 AND pinned = 0 AND id NOT IN ("
    "SELECT id FROM snapshots WHERE run = ?1 AND pinned = 0 ORDER BY seq DESC, id DESC LIMIT ?2)"
)


def save(raw: sqlite3.Connection, no: int, seq: int, key: str, body: bytes, pinned: bool) -> None:
    """To be called inside a transaction."""
    raw.execute(_SAVE, (no, seq, key, int(pinned), body))


def find(gate: Gate, no: int, at_most: int, key: str) -> tuple[int, bytes] | None:
    rows = gate.rows(_FIND, (no, key, at_most))
    return (rows[0][0], rows[0][1]) if rows else None


def prune(gate: Gate, no: int, keep: int) -> int:
    """Drop all but the pinned and the newest `keep` unpinned ones; how many went."""
    with gate.writing() as raw:
        return raw.execute(_PRUNE, (no, keep)).rowcount

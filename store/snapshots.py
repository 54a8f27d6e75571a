"""Folded states, cached at a seq: always deletable, never the truth.

Rules: a snapshot is found by its run, its caller's compatibility key and the latest seq at or
before the one asked for. It is tied to what it was made of by a digest over the chain of its seq,
its key and its body: one that does not fit the log as it stands is passed over, as a log that was
put back or edited would otherwise be continued from a state that it never had. It is kept under the
run that owns its seq, so that those of a parent serve its forks. Pinned ones outlive pruning.
Saving one again replaces it and keeps the pin. Saving also seals the run's head, as it is a write
anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from store.records import fits, genesis, tie

if TYPE_CHECKING:
    import sqlite3

    from store.connection import Gate
    from store.lineage import Lineage

_CHAIN = "SELECT chain FROM events WHERE id = ? << 32 | ?"
_SAVE = (
    "INSERT INTO snapshots (run, seq, key, pinned, body, digest) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (run, key, seq) DO UPDATE SET "
    "body = excluded.body, digest = excluded.digest, pinned = max(pinned, excluded.pinned)"
)
_FIND = (
    "SELECT s.seq, s.body, s.digest, e.chain FROM snapshots s "
    "LEFT JOIN events e ON e.id = (s.run << 32 | s.seq) AND s.seq > 0 "
    "WHERE s.run = ? AND s.key = ? AND s.seq > ? AND s.seq <= ? ORDER BY s.seq DESC LIMIT 1"
)
_PRUNE = (
    "DELETE FROM snapshots WHERE run = ? AND pinned = 0 AND id NOT IN ("
    "SELECT id FROM snapshots WHERE run = ? AND pinned = 0 ORDER BY seq DESC, id DESC LIMIT ?)"
)


def save(
    raw: sqlite3.Connection, line: Lineage, seq: int, key: str, body: bytes, pinned: bool
) -> None:
    """To be called inside a transaction. What is saved for a seq that is not there never fits."""
    no = line.owner(seq).no
    row = (genesis(line.root),) if seq == 0 else raw.execute(_CHAIN, (no, seq)).fetchone()
    digest = tie(row[0], key, body) if row else b""
    raw.execute(_SAVE, (no, seq, key, int(pinned), body, digest))


def find(gate: Gate, line: Lineage, at_most: int, key: str) -> tuple[int, bytes] | None:
    for part in reversed(line.parts):
        last = min(at_most, part.until)
        behind = part.after or -1  # seq 0 is before a run's first event
        while rows := gate.rows(_FIND, (part.no, key, behind, last)):
            seq, body, digest, chain = rows[0]
            if fits(line.root, seq, chain, key, body, digest):
                return seq, body
            last = seq - 1
    return None


def prune(gate: Gate, no: int, keep: int) -> int:
    """Drop all but the pinned and the newest `keep` unpinned ones; how many went."""
    with gate.writing() as raw:
        return raw.execute(_PRUNE, (no, no, keep)).rowcount

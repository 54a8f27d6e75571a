"""Events as rows of a file: their keys, numbers and chains, and the INSERTs that take them.

Rules: one INSERT takes all rows of an append, so that it is whole or absent without a transaction
around it. It proves that what it goes on from is there: the head's own row, or, for a run without
events of its own, the run's.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from store.lineage import SHIFT
from store.reading import COLUMNS
from store.records import link, spell_visit

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from store.interning import Names
    from store.records import NewEvent

MOST_ROWS = 64  # of one INSERT; more go step by step in a transaction
_WIDTH = 6  # columns of a row that differ from the next
_MOST_VISITS = 20_000
_BATCH = 1000
_ONE = f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608


class Head(NamedTuple):
    """Where a run's next event goes: behind `seq` under number `no`, chained to `chain`."""

    no: int
    seq: int
    chain: bytes


class Encoder:
    """Makes rows of events."""

    def __init__(self, types: Names, paths: Names) -> None:
        self._types = types
        self._paths = paths
        self._visits: dict[tuple[int, ...], str] = {}

    def encode(self, head: Head, events: Sequence[NewEvent], at: int) -> tuple[list[Any], bytes]:
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

    def take_in(
        self, raw: sqlite3.Connection, head: Head, events: Iterable[tuple[int, NewEvent]]
    ) -> Head:
        """Insert events with times of their own, a batch at a time, inside a transaction."""
        coming = iter(events)
        while batch := list(islice(coming, _BATCH)):
            values, chain = self.encode(head, [event for _, event in batch], 0)
            rows = [
                (values[0] + n + 1, at, *values[2 + n * _WIDTH : 2 + (n + 1) * _WIDTH])
                for n, (at, _) in enumerate(batch)
            ]
            raw.executemany(_ONE, rows)
            head = Head(head.no, head.seq + len(batch), chain)
        return head


@lru_cache(maxsize=2 * MOST_ROWS)
def insert_sql(count: int, fresh: bool) -> str:
    """One INSERT of `count` rows behind a key, which fails unless the row of that key is there. Its
    values: the key, the time, then six a row.

    `fresh`: the run has no events of its own yet, and its row in `runs` must be there.
    """
    proof = "runs WHERE no = base >> 32" if fresh else "events WHERE id = base"
    rest = ", ".join("?" * _WIDTH)
    rows: list[str] = []
    for row in range(count):
        # no row there: the time is NULL, which its column refuses
        moment = "now" if row else f"(SELECT now FROM {proof})"  # noqa: S608
        rows.append(f"SELECT base + {row + 1}, {moment}, {rest} FROM behind")  # noqa: S608
    # Numbered parameters would say the two but once, and Python 3.12 warns of them up to 3.12.3.
    shared = "WITH behind (base, now) AS (SELECT ?, ?)"
    return f"{shared} INSERT INTO events ({COLUMNS}) {' UNION ALL '.join(rows)}"


def insert(raw: sqlite3.Connection, values: list[Any], count: int, *, fresh: bool) -> None:
    """The same inside a transaction, for any number of rows."""
    base, at = values[0], values[1]
    done = 0
    while done < count:
        step = min(count - done, MOST_ROWS)
        start = 2 + done * _WIDTH
        part = [base + done, at, *values[start : start + step * _WIDTH]]
        raw.execute(insert_sql(step, fresh and not done), part)
        done += step

"""Reading a log: in order, filtered, fast.

Rules: reading goes in chunks, each a statement of its own, so that no cursor stays open while the
caller thinks; as nothing in a log is ever changed, the chunks fit together. A filter by names that
the file has never seen finds nothing. Names and visits are spelled from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from store.errors import CorruptLog, UnknownRun
from store.records import Record, parse_visit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from store.connection import Gate
    from store.interning import Names

SHIFT = 32
MASK = (1 << SHIFT) - 1
COLUMNS = "id, at, type, path, visit, attempt, payload, chain"
_SMALL_CHUNK, _LARGE_CHUNK = 128, 2048
_MOST_VISITS = 20_000

# twice as fast as Record(...), which goes through Python
_make = cast("Callable[[type[Record], tuple[object, ...]], Record]", vars(tuple)["__new__"])


class Reader:
    """The reading half of a store."""

    def __init__(self, gate: Gate, types: Names, paths: Names) -> None:
        self._gate = gate
        self._types = types
        self._paths = paths
        self._parsed: dict[str, tuple[int, ...]] = {}
        self.numbers: dict[str, int] = {}

    def read(
        self,
        run: str,
        after: int,
        until: int | None,
        types: Collection[str] | None,
        path: str | None,
    ) -> Iterator[Record]:
        base = self.number(run) << SHIFT
        filters, chosen = self._filters(types, path)
        if filters is None:
            return iter(())
        last = MASK if until is None else max(0, min(until, MASK))
        sql = (
            f"SELECT {COLUMNS} FROM events WHERE id > ? AND id <= ?{filters} "  # noqa: S608
            "ORDER BY id LIMIT ?"
        )
        return self._stream(run, sql, base | max(0, min(after, MASK)), base | last, chosen)

    def latest(self, run: str, types: Collection[str] | None) -> Record | None:
        base = self.number(run) << SHIFT
        filters, chosen = self._filters(types, None)
        if filters is None:
            return None
        sql = (
            f"SELECT {COLUMNS} FROM events WHERE id > ? AND id <= ?{filters} "  # noqa: S608
            "ORDER BY id DESC LIMIT 1"
        )
        rows = self._gate.rows(sql, (base, base | MASK, *chosen))
        return self._spelled(run, rows)[0] if rows else None

    def number(self, run: str) -> int:
        no = self.numbers.get(run)
        if no is None:
            rows = self._gate.rows("SELECT no FROM runs WHERE run = ?", (run,))
            if not rows:
                known = self._gate.rows("SELECT run FROM runs ORDER BY no DESC")
                raise UnknownRun(run, [row[0] for row in known], str(self._gate.path))
            no = self.numbers[run] = rows[0][0]
        return no

    def last(self, no: int) -> tuple[int, bytes]:
        """The last seq of a run and its chain; (0, b"") where there is none."""
        sql = "SELECT id, chain FROM events WHERE id > ? AND id <= ? ORDER BY id DESC LIMIT 1"
        rows = self._gate.rows(sql, (no << SHIFT, no << SHIFT | MASK))
        if not rows:
            return 0, b""
        id_, chain = rows[0]
        if type(chain) is not bytes:
            what = f"event {id_ & MASK} of run number {no} has no chain"
            raise CorruptLog(what, where=str(self._gate.path))
        return id_ & MASK, chain

    def _stream(
        self, run: str, sql: str, low: int, high: int, chosen: list[int]
    ) -> Iterator[Record]:
        size = _SMALL_CHUNK
        while True:
            rows = self._gate.rows(sql, (low, high, *chosen, size))
            yield from self._spelled(run, rows)
            if len(rows) < size:
                return
            low, size = rows[-1][0], min(size * 4, _LARGE_CHUNK)

    def _spelled(self, run: str, rows: list[Any]) -> list[Record]:
        types, paths, parsed = self._types.spelled, self._paths.spelled, self._parsed
        found: list[Record] = []
        for id_, at, type_no, path_no, visit, attempt, payload, chain in rows:
            type_ = types.get(type_no)
            if type_ is None:
                type_ = self._types.spell(type_no)
            path = paths.get(path_no)
            if path is None:
                path = self._paths.spell(path_no)
            indices = parsed.get(visit)
            if indices is None:
                indices = self._parse(run, id_ & MASK, visit)
            if not (
                type(payload) is str
                and type(attempt) is int
                and type(at) is int
                and type(chain) is bytes
            ):
                what = "a column of it holds what none can hold"
                raise CorruptLog(what, where=str(self._gate.path), run=run, seq=id_ & MASK)
            record = run, id_ & MASK, at, type_, path, indices, attempt, payload, chain
            found.append(_make(Record, record))
        return found

    def _parse(self, run: str, seq: int, visit: str) -> tuple[int, ...]:
        if len(self._parsed) >= _MOST_VISITS:
            self._parsed.clear()
        try:
            indices = self._parsed[visit] = parse_visit(visit)
        except (ValueError, AttributeError):  # no text is damage too
            what = f"its visit reads {visit!r}"
            raise CorruptLog(what, where=str(self._gate.path), run=run, seq=seq) from None
        return indices

    def _filters(
        self, types: Collection[str] | None, path: str | None
    ) -> tuple[str | None, list[int]]:
        sql, chosen = "", list[int]()
        if types is not None:
            chosen = self._types.known(types)
            if not chosen:
                return None, []
            sql = f" AND type IN ({', '.join('?' * len(chosen))})"
        if path is not None:
            number = self._paths.known([path])
            if not number:
                return None, []
            sql += " AND path = ?"
            chosen += number
        return sql, chosen

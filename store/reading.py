"""Reading a log: in order, filtered, fast.

Rules: reading goes in chunks, each a statement of its own, so that no cursor stays open while the
caller thinks; as nothing in a log is ever changed, the chunks fit together. A filter by names that
the file has never seen finds nothing. Names and visits are spelled from memory. A run is read part
by part (see `store.lineage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from store.errors import CorruptLog, StoreError
from store.lineage import MASK, SHIFT, Lineages
from store.records import Record, genesis, parse_visit
from store.schema import RUN_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from store.connection import Gate
    from store.interning import Names
    from store.lineage import Lineage, Part

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
        self.lines = Lineages(gate)

    def read(
        self,
        run: str,
        after: int,
        until: int | None,
        types: Collection[str] | None,
        path: str | None,
    ) -> Iterator[Record]:
        line = self.lines.find(run)
        filters, chosen = self._filters(types, path)
        if filters is None:
            return iter(())
        sql = (
            f"SELECT {COLUMNS} FROM events WHERE id > ? AND id <= ?{filters} "  # noqa: S608
            "ORDER BY id LIMIT ?"
        )
        return self._stream(run, line, (max(0, after), until), sql, chosen)

    def latest(self, run: str, types: Collection[str] | None, path: str | None) -> Record | None:
        filters, chosen = self._filters(types, path)
        if filters is None:
            self.lines.confirm(run)
            return None
        sql = (
            f"SELECT {COLUMNS} FROM events WHERE id > ? AND id <= ?{filters} "  # noqa: S608
            "ORDER BY id DESC LIMIT 1"
        )

        def look(line: Lineage) -> list[Any] | None:
            for keys in reversed(line.between(0, None)):
                if rows := self._gate.rows(sql, (*keys, *chosen)):
                    return rows
            return None

        rows = self.lines.settled(run, look)
        return self._spelled(run, rows)[0] if rows else None

    def head(self, run: str) -> tuple[Part, int, bytes]:
        """The run's own part, its last seq and the chain there."""

        def look(line: Lineage) -> tuple[Part, int, bytes] | None:
            seq, chain = self.last(line.own.no)
            return (line.own, seq, chain) if seq else None

        found = self.lines.settled(run, look)
        if found is None:
            own = self.lines.confirm(run).own
            if own.after:
                what = f"nothing is left behind seq {own.after}, where it was forked"
                raise CorruptLog(what, where=str(self._gate.path), run=run)
            return own, 0, genesis(run)
        return found

    def last(self, no: int) -> tuple[int, bytes]:
        """The last seq under a run's number and its chain; (0, b"") where there is none."""
        sql = "SELECT id, chain FROM events WHERE id > ? AND id <= ? ORDER BY id DESC LIMIT 1"
        rows = self._gate.rows(sql, (no << SHIFT, no << SHIFT | MASK))
        if not rows:
            return 0, b""
        id_, chain = rows[0]
        if type(chain) is not bytes:
            what = f"event {id_ & MASK} of run number {no} has no chain"
            raise CorruptLog(what, where=str(self._gate.path))
        return id_ & MASK, chain

    def payloads(self, run: str | None, text: str) -> Iterator[str]:
        """The payloads of a run, or of all, that contain a text."""
        ranges: list[tuple[int, int]] = [(0, (1 << 63) - 1)]
        if run is not None:
            ranges = self.lines.confirm(run).between(0, None)
        return self._payloads(ranges, text)

    def _payloads(self, ranges: list[tuple[int, int]], text: str) -> Iterator[str]:
        sql = (
            "SELECT id, payload FROM events WHERE id > ? AND id <= ? AND instr(payload, ?) "
            "ORDER BY id LIMIT ?"
        )
        for low, high in ranges:
            rows: list[Any] = [(low, "")]
            while rows:
                rows = self._gate.rows(sql, (rows[-1][0], high, text, _SMALL_CHUNK))
                for id_, payload in rows:
                    if type(payload) is not str:
                        what = f"the payload of event {id_ & MASK} of run number {id_ >> SHIFT}"
                        raise CorruptLog(f"{what} is no text", where=str(self._gate.path))
                    yield payload

    def _stream(
        self, run: str, line: Lineage, place: tuple[int, int | None], sql: str, chosen: list[int]
    ) -> Iterator[Record]:
        size = _SMALL_CHUNK
        begun = False
        own = line.own.no
        for first, high in line.between(*place):
            low = first
            while True:
                rows = self._gate.rows(sql, (low, high, *chosen, size))
                if not rows and high >> SHIFT == own and self.lines.confirm(run) != line:
                    if begun:
                        raise StoreError(f"Run {run!r} was replaced while it was read; read anew.")
                    # removed and made again since it was last looked at
                    yield from self._stream(run, self.lines.confirm(run), place, sql, chosen)
                    return
                begun = True
                yield from self._spelled(run, rows)
                if len(rows) < size:
                    break
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
            if path == RUN_PATH:
                sql += f" AND path = {number[0]}"  # literally, as the index for these is partial
            else:
                sql += " AND path = ?"
                chosen += number
        return sql, chosen

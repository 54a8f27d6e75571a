"""Names that recur, as small integers: the types and the paths of events.

Rules: a name is interned in a transaction of its own before the append that first uses it. It is
no fact about a run, so that one which no event uses is harmless, and a failed append leaves this
cache right. Where a whole run comes in one transaction its names come with it, and if that fails
the cache is emptied. Names are never changed, so that what was read once stays true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from store.errors import CorruptLog

if TYPE_CHECKING:
    from collections.abc import Collection

    from store.connection import Gate


class Names:
    """One interning table, both ways."""

    def __init__(self, gate: Gate, table: Literal["types", "paths"]) -> None:
        self._gate = gate
        self._table = table
        self.ids: dict[str, int] = {}
        self.spelled: dict[int, str] = {}

    def intern(self, name: str) -> int:
        """The number of a name, given now if it has none."""
        if name not in self.ids:
            self._load()
        if name not in self.ids:
            with self._gate.writing() as raw:
                sql = f"INSERT OR IGNORE INTO {self._table} (name) VALUES (?)"  # noqa: S608
                raw.execute(sql, (name,))
            self._load()
        if name not in self.ids:
            # the index says that it is there, and the table that it is not
            raise CorruptLog(
                f"the name {name!r} cannot be found again in table {self._table}",
                where=str(self._gate.path),
            )
        return self.ids[name]

    def known(self, names: Collection[str]) -> list[int]:
        """The numbers of those names that have one."""
        with self._gate.lock:
            if not all(name in self.ids for name in names):
                self._load()
            return [self.ids[name] for name in names if name in self.ids]

    def spell(self, number: int) -> str:
        with self._gate.lock:
            if number not in self.spelled:
                self._load()
            try:
                return self.spelled[number]
            except KeyError:
                raise CorruptLog(
                    f"an event refers to number {number} in table {self._table}, which is not "
                    "there",
                    where=str(self._gate.path),
                ) from None

    def forget(self) -> None:
        """Know no name: some may have been given in a transaction that has failed."""
        with self._gate.lock:
            self.ids.clear()
            self.spelled.clear()

    def _load(self) -> None:
        last = max(self.spelled, default=0)
        sql = f"SELECT id, name FROM {self._table} WHERE id > ?"  # noqa: S608
        for number, name in self._gate.rows(sql, (last,)):
            if not isinstance(name, str):
                continue  # damage, which is told when an event has that number
            self.ids[name] = number
            self.spelled[number] = name

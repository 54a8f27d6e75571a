"""A value of the user in a run's state.

Rules: it is the JSON text that was put, and the deltas since. A cell never changes: a delta makes a
new one in constant time, and copies of the state share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from msgspec import Raw

_OBJECT = b'"struct"'  # the codec's mark of a declared object, also on texts that are in a blob


class Delta(NamedTuple):
    """A change to a list ("append", a JSON array) or a mapping ("merge", an encoded mapping)."""

    kind: str
    values: Raw


_Link: TypeAlias = "tuple[_Link | None, Delta]"


class Cell:
    """A value: encoded base, and the deltas since as a linked list, the newest first.

    `cache` is the reader's: how many deltas are in the decoded value, and that value.
    """

    __slots__ = ("_length", "_newest", "_objects", "base", "cache")

    def __init__(self, base: Raw, deltas: Iterable[Delta] = ()) -> None:
        self.base = base
        self._newest: _Link | None = None
        self._length = 0
        for delta in deltas:
            self._newest = (self._newest, delta)
            self._length += 1
        self.cache: tuple[int, Any] | None = None
        self._objects: bool | None = None  # not yet looked

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """What was appended or merged since the base was put."""
        return self.deltas_from(0)

    def deltas_from(self, start: int) -> tuple[Delta, ...]:
        """The deltas but the first `start`, at the cost of those that are given."""
        found: list[Delta] = []
        link = self._newest
        for _ in range(self._length - start):
            assert link is not None
            link, delta = link
            found.append(delta)
        return tuple(reversed(found))

    def with_delta(self, delta: Delta) -> Cell:
        """The cell after one more delta, in constant time; this one is as it was."""
        cell = Cell(self.base)
        cell._newest = (self._newest, delta)
        cell._length = self._length + 1
        cell.cache = self.cache
        if self._objects is not None:
            cell._objects = self._objects or _OBJECT in bytes(delta.values)
        return cell

    def newest_kind(self) -> str | None:
        """ "append" or "merge" if there are deltas: then the value is a list, or a mapping."""
        return None if self._newest is None else self._newest[1].kind

    def holds_objects(self) -> bool:
        """Whether there are objects of declared types in the value."""
        if self._objects is None:
            texts = (self.base, *(delta.values for delta in self.deltas))
            self._objects = any(_OBJECT in bytes(text) for text in texts)
        return self._objects

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cell):
            return NotImplemented
        return self.base == other.base and self.deltas == other.deltas

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Cell({bytes(self.base)!r}, {self.deltas!r})"

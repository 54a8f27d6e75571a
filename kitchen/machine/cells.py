"""Reading and changing cells: what the deltas of a value mean.

Rules:

1. A number is added up at once, so a counter stays one small text however often it grows.
2. Items appended to a list and entries merged into a mapping are kept as deltas, and applied
   when the value is read: appending costs the same at any length.
3. What is read is cached on the cell. Read values are frozen, so the cache can be handed out.
4. Branches read in threads of their own. A cache is one tuple, looked at once and replaced whole:
   two that read at the same time do the work twice, and either's result serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Raw

from kitchen.errors import CorruptValue
from kitchen.machine.codec import Codec
from kitchen.machine.codec.frozen import FrozenDict, FrozenList
from kitchen.machine.state import Cell, Delta

Fetch = Callable[[str], bytes]

_NUMBERS = Codec()


def no_blobs(digest: str) -> bytes:
    """A `fetch` for values that cannot be blobs."""
    raise CorruptValue(f"a number cannot be in a blob ({digest})")


def increment(cell: Cell, by: Raw) -> Cell:
    """The cell after a number was added.

    Raises `CorruptValue` where either is no number.
    """
    base: Any = _NUMBERS.decode(cell.base, no_blobs)
    step: Any = _NUMBERS.decode(by, no_blobs)
    if not isinstance(base, int | float) or not isinstance(step, int | float):
        raise CorruptValue(f"cannot add a {type(step).__name__} to a {type(base).__name__}")
    try:
        return Cell(Raw(_NUMBERS.encode(base + step).json))
    except ArithmeticError as error:
        raise CorruptValue(f"cannot add numbers as large as these: {error}") from None


def read(cell: Cell, codec: Codec, fetch: Fetch, key: str | None = None) -> Any:
    """The value, decoded and frozen.

    Raises `CorruptValue` where a text does not decode, or a delta does not fit its base.
    """
    cached = cell.cache  # once: another thread may set it between two looks
    done, value = (0, codec.decode(cell.base, fetch, key=key)) if cached is None else cached
    pending = cell.deltas_from(done)
    if pending:
        value = _changed(value, pending, codec, fetch, key)
    cell.cache = (done + len(pending), value)
    return value


def _changed(
    value: Any, deltas: tuple[Delta, ...], codec: Codec, fetch: Fetch, key: str | None
) -> Any:
    """A new frozen value with the deltas applied; the old one may be in somebody's hands."""
    kind = deltas[0].kind
    fitting = FrozenList if kind == "append" else FrozenDict
    grown: Any = [] if kind == "append" else {}
    # Its own kind and no other: a range that is written in ten letters has any number of items.
    for change, more in ((kind, value), *((d.kind, codec.decode(d.values, fetch)) for d in deltas)):
        if change != kind or type(more) is not fitting:
            raise CorruptValue(
                f"state[{key!r}] is a {type(value).__name__}; the log would {change} a "
                f"{type(more).__name__} to it"
            )
        grown.extend(more) if kind == "append" else grown.update(more)
    return FrozenList(grown, key) if kind == "append" else FrozenDict(grown, key)

"""Values and times as people read them: one line, and never more than there is room for."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from kitchen.cli.inert import inert, one_line
from kitchen.machine.codec.frozen import Opaque
from kitchen.machine.events import Visit, spell

_PLAIN = (str, int, bool, type(None))


def age(nanoseconds: int, *, now: int | None = None) -> str:
    """How long ago: `3s`, `12m`, `5h`, `2d`."""
    return span(((time.time_ns() if now is None else now) - nanoseconds) / 1e9)


def span(seconds: float) -> str:
    """A stretch of time in its largest unit."""
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size * 2:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def seconds(length: float) -> str:
    """A wait: `3.2 s`, `45 s`, `12 min`, `5h`."""
    if not math.isfinite(length):
        return "for ever"
    if length < 10:
        return f"{max(0.0, length):.1f} s"
    if length < 120:
        return f"{length:.0f} s"
    return f"{length / 60:.0f} min" if length < 7_200 else span(length)


def took(length: float) -> str:
    """How long something took: `12 ms`, `3.2 s`, `41 s`, `3 min 20 s`, `2 h 5 min`."""
    from kitchen.runner.planning import spelled

    return f"{max(0.0, length) * 1000:.0f} ms" if length < 1 else spelled(length)


def moment(nanoseconds: int) -> str:
    """A time of day where the reader is, to the second."""
    return f"{datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def local(text: str) -> str:
    """A time that `iso` wrote, as `moment` tells it."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def iso(nanoseconds: int) -> str:
    """A time for programs: UTC, to the microsecond."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="microseconds")


_LONG = 4_000  # bits
_WIDEST = 300  # characters of a cell


def place(path: str, visit: Visit, loops: Mapping[str, tuple[str, ...]]) -> str:
    """`epochs[2]/batches[17]/step`."""
    return spell(path, visit, loops.get(path))


def number(value: Any) -> str:
    """A metric's value."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def preview(value: Any, width: int = 60) -> str:
    """A value on one line, cut to `width`."""
    if _is_array(value):
        text = f"{value.dtype}{list(value.shape)}"
    elif isinstance(value, list | tuple | set | frozenset | dict) and len(value) > 200:  # pyright: ignore[reportUnknownArgumentType]
        sized = cast("Sequence[Any]", value)
        text = f"{_kind(sized)} of {len(sized)}"
    else:
        text = " ".join(str(jsoned(value)).split())
    return text if len(text) <= width else text[: max(1, width - 3)] + "..."


def jsoned(value: Any) -> str:
    """A value as JSON text, harmless for a terminal."""
    return inert(json.dumps(builtin(value), ensure_ascii=False))


def builtin(value: Any) -> Any:
    """A value as what JSON can say. What it cannot is told by an object that names the type.

    Tuples and sets become lists; numbers that are not finite, dates and the like their texts.
    """
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Opaque):
        return {"type": value.type_name, "fields": _object(value)}
    if isinstance(value, Mapping):
        return _object(cast("Mapping[Any, Any]", value))
    if isinstance(value, set | frozenset):
        return sorted((builtin(item) for item in cast("Iterable[Any]", value)), key=repr)
    if isinstance(value, list | tuple):
        return [builtin(item) for item in cast("Iterable[Any]", value)]
    if isinstance(value, bytes | bytearray):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"complex": [builtin(value.real), builtin(value.imag)]}
    if _is_array(value):
        return _array(value)
    return _told(value)


def _told(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to write very long numbers in decimals
        return f"a {_kind(value)} of very long numbers"


def _number(value: float) -> Any:
    if isinstance(value, int):  # Python refuses to write very long ones in decimals
        return hex(value) if value.bit_length() > _LONG else value
    return value if math.isfinite(value) else str(value)


def _object(entries: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in entries):
        return {key: builtin(entry) for key, entry in entries.items()}
    return {"entries": [[builtin(key), builtin(entry)] for key, entry in entries.items()]}


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _array(value: Any) -> Any:
    if value.shape == () and hasattr(value, "item") and not hasattr(value, "numpy"):
        return builtin(value.item())
    told: dict[str, Any] = {"dtype": str(value.dtype), "shape": list(value.shape)}
    if hasattr(value, "tobytes"):
        told["sha256"] = hashlib.sha256(value.tobytes()).hexdigest()
    return told


def _kind(value: Any) -> str:
    names = {"FrozenList": "list", "FrozenDict": "dict", "FrozenSet": "set"}
    return names.get(type(value).__name__, type(value).__name__)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns lined up. One endless cell must not widen all rows."""
    rows = [[one_line(cell, _WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]

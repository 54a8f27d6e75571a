"""Recorded values, told shortly and compared, without building them.

Rules:

1. A value is looked at as the tree that its JSON text is; nothing that it names is imported, and
   arrays stay the bytes that they are.
2. What is told of a value fits in a line, and is the same text wherever the value is the same: what
   is left out of it is told by a digest.
3. NaN equals NaN, whatever its bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, cast

import msgspec

from kitchen.errors import KitchenError
from kitchen.machine.cells import Fetch
from kitchen.machine.codec.bounds import check_depth
from kitchen.machine.codec.untagging import parse

_LONGEST = 60  # characters of a text, and of all that is told of a container
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_BRACKETS = {"tuple": "()", "set": "{}", "frozenset": "{}"}


def tree_of(text: bytes | msgspec.Raw) -> Any:
    """The tree of a recorded value.

    Raises `CorruptValue`.
    """
    tree = parse(bytes(text))
    check_depth(tree)
    return tree


def opened(tree: Any, fetch: Fetch) -> Any:
    """The tree itself of a value whose text stands in a blob; as it is where that is lost."""
    if _tag(tree) != "blob":
        return tree
    try:
        return tree_of(fetch(str(tree.get("blob"))))
    except KitchenError:
        return tree


def hidden(tree: Any, hide: Callable[[str], str]) -> Any:
    """The tree with `hide` of each text in it; tags, and the bytes of values, stay as they are."""
    if isinstance(tree, str):
        return hide(tree)
    if isinstance(tree, list):
        return [hidden(each, hide) for each in cast("list[Any]", tree)]
    if not isinstance(tree, dict):
        return tree
    entries = cast("dict[str, Any]", tree)
    if _tag(entries) is None:
        return {hide(key): hidden(value, hide) for key, value in entries.items()}
    inner = entries.get("v")
    if not isinstance(inner, list | dict):
        return entries
    return {**entries, "v": hidden(inner, hide)}


# --- told -----------------------------------------------------------------------------------------


def short(tree: Any, digits: int | None = None) -> str:
    """A value in a line. `digits`: floats are rounded to so many significant ones; None: exact."""
    text = _told(tree, digits)
    if len(text) <= _LONGEST:
        return text
    if isinstance(tree, str):
        return f"{text[: _LONGEST - 20]}… {len(tree)} characters #{_digest(text)}"
    return f"{text[: _LONGEST - 20]}… {_size(tree)}#{_digest(text)}"


def _told(tree: Any, digits: int | None) -> str:
    if isinstance(tree, float):
        return repr(tree) if digits is None else f"{tree:.{digits}g}"
    if isinstance(tree, list):
        return f"[{_joined(cast('list[Any]', tree), digits)}]"
    if isinstance(tree, dict):
        entries = cast("dict[Any, Any]", tree)
        tag = _tag(entries)
        if tag is not None:
            return _tagged(tag, entries, digits)
        inner = (f"{key!r}: {_told(v, digits)}" for key, v in entries.items())
        return f"{{{', '.join(inner)}}}"
    return repr(tree)


def _joined(trees: list[Any], digits: int | None) -> str:
    return ", ".join(_told(tree, digits) for tree in trees)


def _tagged(tag: str, tree: dict[Any, Any], digits: int | None) -> str:
    value = tree.get("v")
    if tag in ("ndarray", "tensor"):
        shape = ", ".join(map(str, tree.get("shape") or ()))
        return f"{tree.get('dtype')}[{shape}]{_bulk(tree)}"
    if tag in ("bytes", "str"):
        return f"{tag}{_bulk(tree)}"
    if tag == "blob":
        return f"{tree.get('size')} bytes of text{_bulk(tree)}"
    if tag == "float":
        return str(value)
    if isinstance(value, list) and tag in _BRACKETS:
        left, right = _BRACKETS[tag]
        values = cast("list[Any]", value)
        comma = "," if tag == "tuple" and len(values) == 1 else ""
        return f"{left}{_joined(values, digits)}{comma}{right}"
    if isinstance(value, list) and tag == "dict":
        flat = cast("list[Any]", value)
        pairs = zip(flat[::2], flat[1::2], strict=False)
        told = (f"{_told(k, digits)}: {_told(v, digits)}" for k, v in pairs)
        return f"{{{', '.join(told)}}}"
    if tag == "struct":
        return f"{tree.get('type')}{_told(value, digits)}"
    return f"{tag}({'' if value is None else _told(value, digits)}{_bulk(tree)})"


def _bulk(tree: dict[Any, Any]) -> str:
    """What tells the bytes of a value: their hash."""
    arrays = tree.get("tensors")  # of a state_dict: the arrays in it only have numbers there
    where = cast("dict[Any, Any]", arrays if isinstance(arrays, dict) else tree).get("blob")
    if isinstance(where, str):
        return f" #{where[:8]}"
    inline = tree.get("b64")
    return f" #{_digest(str(inline))}" if inline is not None else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _size(tree: Any) -> str:
    tag = _tag(tree)
    inner: Any = tree.get("v") if tag is not None else tree
    if not isinstance(inner, list | dict):
        return ""
    count = len(cast("list[Any]", inner))
    return f"{count // 2 if tag == 'dict' else count} items "


# --- compared -------------------------------------------------------------------------------------


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two trees are the same value.

    `tolerance`: what floats may differ by, absolutely and as a share of the larger one.
    """
    one, other = number(a), number(b)
    if one is not None and other is not None:
        floats = isinstance(one, float) + isinstance(other, float)
        if floats == 0 or (floats == 1 and not tolerance):
            return floats == 0 and one == other
        return close(one, other, tolerance)
    if isinstance(a, list) and isinstance(b, list):
        these, those = cast("list[Any]", a), cast("list[Any]", b)
        pairs = zip(these, those, strict=False)
        return len(these) == len(those) and all(same(x, y, tolerance) for x, y in pairs)
    if isinstance(a, dict) and isinstance(b, dict):
        here, there = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        return here.keys() == there.keys() and all(
            same(value, there[key], tolerance) for key, value in here.items()
        )
    return type(cast("Any", a)) is type(b) and a == b


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers are the same."""
    if a == b:
        return tolerance > 0 or math.copysign(1, a) == math.copysign(1, b)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    if math.isinf(a) or math.isinf(b):
        return False
    return abs(a - b) <= tolerance + tolerance * max(abs(a), abs(b))


def number(tree: Any) -> float | int | None:
    """The number that a tree is; None for what is none."""
    if isinstance(tree, float | int):
        return None if isinstance(tree, bool) else tree
    if _tag(tree) != "float":
        return None
    told = str(tree["v"])
    return _FLOATS.get(told, math.nan if told.startswith("nan") else None)


def _tag(tree: Any) -> str | None:
    if not isinstance(tree, dict):
        return None
    found: Any = cast("dict[Any, Any]", tree).get("$")
    return found if isinstance(found, str) else None

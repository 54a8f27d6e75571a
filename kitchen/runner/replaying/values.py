"""Values compared: where two of them part first, in a few words.

Rules:

1. Without a tolerance, values are equal if they are so in every bit: types, the sign of zero, dtypes,
   shapes. NaN is equal to NaN. The order of a mapping's keys is no difference.
2. A tolerance is for numbers and arrays of floats, relative and absolute at once; numbers of two
   types are then compared as numbers. It is not for what is counted: bools and the lengths of lists.
3. Nothing of the user's is called but `==` and `repr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from kitchen.errors import KitchenError
from kitchen.machine.codec.arrays import pack_state

_LONGEST = 80  # characters of a value that are shown
_SHOWN = 8  # elements of an array that are


class Difference(NamedTuple):
    """Where in two values they part ("" for the whole), and what each has there."""

    place: str
    recorded: str
    found: str


def difference(was: Any, now: Any, tolerance: float = 0.0, place: str = "") -> Difference | None:
    """The first place at which two decoded values differ; None where they are equal."""
    if is_array(was) and is_array(now):
        return _of_arrays(was, now, tolerance, place)
    for kind, compare in _CONTAINERS:
        if isinstance(was, kind) and isinstance(now, kind):
            return compare(was, now, tolerance, place)
    names = _fields(was) if type(was) is type(now) else None
    if names is not None:
        pairs = [(name, getattr(was, name, None), getattr(now, name, None)) for name in names]
        inner = (difference(a, b, tolerance, _attribute(place, name)) for name, a, b in pairs)
        return next((found for found in inner if found is not None), None)
    if _is_same(was, now, tolerance):
        return None
    return Difference(place, shown(was), shown(now))


def is_array(value: Any) -> bool:
    """Whether it is an array or a tensor."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def shown(value: Any) -> str:
    """A value in a few words."""
    if is_array(value):
        return _shown_array(value)
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # an object of the user's may fail at that
        text = f"a {type(value).__name__} ({type(error).__name__} in its repr)"
    return shortened(text)


def shortened(text: str) -> str:
    """A text as far as it is shown."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _shown_array(value: Any) -> str:
    kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if math.prod(value.shape) > _SHOWN:
        return kind
    return f"{kind} {shortened(repr(value.tolist()))}"


def _fields(value: Any) -> tuple[str, ...] | None:
    """The names of an object's fields, if it is of a declared kind."""
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    fields: Any = getattr(value, "__dataclass_fields__", None)
    return None if fields is None else tuple(fields)


def _attribute(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _is_same(was: Any, now: Any, tolerance: float) -> bool:
    numbers = isinstance(was, int | float) and isinstance(now, int | float)
    if numbers and not isinstance(was, bool) and not isinstance(now, bool):
        return _is_same_number(was, now, tolerance)
    if type(was) is not type(now):
        return False
    if isinstance(was, complex):
        pairs = ((was.real, now.real), (was.imag, now.imag))
        return all(_is_same_number(one, other, tolerance) for one, other in pairs)
    try:
        return bool(was == now)
    except Exception:  # what cannot be compared is not equal
        return False


def _is_same_number(was: float, now: float, tolerance: float) -> bool:
    if was != was and now != now:  # noqa: PLR0124  (NaN)
        return True
    if tolerance > 0:
        return math.isclose(was, now, rel_tol=tolerance, abs_tol=tolerance)
    signs = isinstance(was, int) or math.copysign(1, was) == math.copysign(1, now)
    return type(was) is type(now) and was == now and signs


def _of_mappings(
    was: Mapping[Any, Any], now: Mapping[Any, Any], tolerance: float, place: str
) -> Difference | None:
    for key in [*was, *(key for key in now if key not in was)]:
        inner = _attribute(place, key) if isinstance(key, str) else f"{place}[{key!r}]"
        if key not in now:
            return Difference(inner, shown(was[key]), "not there")
        if key not in was:
            return Difference(inner, "not there", shown(now[key]))
        found = difference(was[key], now[key], tolerance, inner)
        if found is not None:
            return found
    return None


def _of_sequences(was: Any, now: Any, tolerance: float, place: str) -> Difference | None:
    for index, (one, other) in enumerate(zip(was, now, strict=False)):
        found = difference(one, other, tolerance, f"{place}[{index}]")
        if found is not None:
            return found
    if len(was) != len(now):
        return Difference(place, f"{len(was)} items", f"{len(now)} items")
    return None


_CONTAINERS: tuple[tuple[type[Any], Callable[..., Difference | None]], ...] = (
    (Mapping, _of_mappings), (list, _of_sequences), (tuple, _of_sequences),
)  # fmt: skip


# --- arrays ---------------------------------------------------------------------------------------


def _of_arrays(was: Any, now: Any, tolerance: float, place: str) -> Difference | None:
    kinds = str(was.dtype), str(now.dtype)
    shapes = tuple(was.shape), tuple(now.shape)
    if kinds[0] != kinds[1] or shapes[0] != shapes[1]:
        return Difference(place, shown(was), shown(now))
    try:
        if pack_state(was).tree == pack_state(now).tree:
            return None
    except KitchenError:  # an array of objects, say: by its values, then
        pass
    largest = _largest_distance(was, now, tolerance)
    if largest == 0.0:
        return None
    told = "" if largest is None else f", at most {largest:.6g} apart"
    return Difference(place, shown(was), shown(now) + told)


def _largest_distance(was: Any, now: Any, tolerance: float) -> float | None:
    """The largest absolute difference; 0 where all lies within the tolerance, None where the
    elements are no numbers."""
    try:
        import numpy as np

        one, other = (np.asarray(_plain(value)) for value in (was, now))
        kind: Any = np.complex128 if one.dtype.kind == "c" else np.float64
        one, other = one.astype(kind), other.astype(kind)
    except (ImportError, TypeError, ValueError, RuntimeError):
        return None
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(same, 0.0, np.abs(one - other))
        bound = tolerance * np.maximum(1.0, np.maximum(np.abs(one), np.abs(other)))
    if tolerance > 0 and bool(np.all(same | (distance <= bound))):
        return 0.0
    if tolerance == 0 and not distance.any():
        return 0.0 if _has_only_nans_apart(one, other) else None
    return float(distance.max())


def _has_only_nans_apart(one: Any, other: Any) -> bool:
    """Whether equal arrays differ in the bits of NaNs alone, and not in the sign of a zero."""
    import numpy as np

    return bool(np.all(np.isnan(one) | (np.signbit(one.real) == np.signbit(other.real))))


def _plain(value: Any) -> Any:
    """A tensor as what NumPy takes."""
    if not hasattr(value, "detach"):
        return value
    dense = value.detach().cpu()
    return dense.double() if dense.is_floating_point() else dense

"""What becomes of a state key that several branches of a `parallel` wrote: its reducer's answer.

Rules:

1. A reducer sees the value at the fork and what each branch made of it, in branch order, whatever
   finished first. The same values give the same answer, to the last bit.
2. `sum` adds up what each branch added. `max` and `min` choose among the values and the one
   before; a NaN wins. `extend` appends what each branch appended. `union` takes every entry that
   a branch added, changed or removed; two that disagree about one are refused.
3. What does not fit is a `StateError` that names the key and the branch. A deleted key has no
   value to reduce.
4. What was read from state is frozen; what is returned is plain.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from kitchen.errors import StateError
from kitchen.machine.codec.frozen import FrozenDict, FrozenList, FrozenSet
from kitchen.machine.codec.refusals import kind_of


class Missing(enum.Enum):
    """No value: the key was not there at the fork, or a branch deleted it."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING

Written: TypeAlias = list[tuple[str, Any]]

_ORDERED = (int, float, str, decimal.Decimal, fractions.Fraction, dt.date, dt.time, dt.timedelta)


def reduce(
    name: str,
    function: Callable[[Any, list[Any]], Any] | None,
    key: str,
    before: Any,
    values: Written,
) -> Any:
    """The one value of `key` after the join.

    `before`: the value at the fork, or `MISSING`. `values`: what each branch that wrote the key
    left there, with the branch's name, in branch order. `function` is the user's reducer; without
    one, `name` is one of ours.

    Raises `StateError`, and what `function` raises.
    """
    for branch, value in values:
        if value is MISSING:
            raise StateError(
                f"state[{key!r}] cannot be merged by {name!r}: the branch {branch!r} deleted it",
                hint="let it assign an empty value instead, or write another key",
            )
    if function is not None:
        given = None if before is MISSING else before
        try:
            return function(given, [value for _, value in values])
        except Exception as error:
            error.add_note(f"(in the reducer {name!r} of state[{key!r}])")
            raise
    return _REDUCERS[name](_Merge(name, key), before, values)


class _Merge:
    """How to tell that something does not fit."""

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key

    def misfit(self, branch: str | None, expected: str, found: Any) -> StateError:
        """`branch` None: the value at the fork."""
        whose = "at the fork it is" if branch is None else f"the branch {branch!r} left"
        return StateError(
            f"state[{self.key!r}] cannot be merged by {self.name!r}, which takes {expected}: "
            f"{whose} {_told(found)}",
            hint="merge it by another reducer, or by a function of (before, values)",
        )

    def failed(self, branch: str, error: Exception) -> StateError:
        """What went wrong with the value of a branch."""
        return StateError(
            f"state[{self.key!r}] cannot be merged by {self.name!r}: with what the branch "
            f"{branch!r} left, {type(error).__name__}: {error}"
        )

    def check(
        self, fits: Callable[[Any], bool], expected: str, before: Any, values: Written
    ) -> None:
        """Raises where the value before, or a branch's, is none of the kind expected."""
        if before is not MISSING and not fits(before):
            raise self.misfit(None, expected, before)
        for branch, value in values:
            if not fits(value):
                raise self.misfit(branch, expected, value)


def _sum(merge: _Merge, before: Any, values: Written) -> Any:
    merge.check(_is_addable, "numbers, or arrays of numbers", before, values)
    if len(values) == 1:  # exactly what it wrote, where adding a difference would round
        return values[0][1]
    base = values[0][1] if before is MISSING else before
    total = base
    for branch, value in values[1:] if before is MISSING else values:
        shape, found = getattr(base, "shape", ()), getattr(value, "shape", ())
        if shape != found:
            raise merge.misfit(branch, f"one shape, here {tuple(shape)}", tuple(found))
        try:
            total = total + (value if before is MISSING else value - before)
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise merge.failed(branch, error) from error
    if kind_of(base).__name__ == "ndarray":  # arrays without dimensions add up to scalars
        return sys.modules["numpy"].asarray(total)
    return total


def _max(merge: _Merge, before: Any, values: Written) -> Any:
    return _best(merge, before, values, lambda one, other: one > other)


def _min(merge: _Merge, before: Any, values: Written) -> Any:
    return _best(merge, before, values, lambda one, other: one < other)


def _best(merge: _Merge, before: Any, values: Written, better: Callable[[Any, Any], Any]) -> Any:
    merge.check(_is_ordered, "numbers, text or dates", before, values)
    best = before
    for branch, value in values:
        if best is MISSING:
            best = value
            continue
        try:
            wins = better(value, best)
            if _is_nan(value) is not _is_nan(best):  # no comparison with a NaN is true
                wins = _is_nan(value)
        except (TypeError, ArithmeticError) as error:
            raise merge.failed(branch, error) from error
        best = value if wins else best
    return best


def _extend(merge: _Merge, before: Any, values: Written) -> list[Any]:
    merge.check(lambda value: isinstance(value, list), "lists", before, values)
    begin: list[Any] = [] if before is MISSING else list(before)
    merged = list(begin)
    for branch, value in values:
        if len(value) < len(begin) or not all(map(_same, begin, value)):
            raise StateError(
                f"state[{merge.key!r}] cannot be merged by 'extend': what the branch {branch!r} "
                f"left ({len(value)} items) does not begin with the {len(begin)} items at the "
                "fork, so it was replaced, not extended",
                hint=f"ctx.append({merge.key!r}, x) or ctx.extend({merge.key!r}, [...]) in the "
                "branch; or merge by a function of (before, values)",
            )
        merged += value[len(begin) :]
    return merged


def _union(merge: _Merge, before: Any, values: Written) -> Any:
    merge.check(
        lambda value: isinstance(value, dict | set | frozenset), "mappings or sets", before, values
    )
    first = values[0][1] if before is MISSING else before
    mapping = isinstance(first, dict)
    for branch, value in values:
        if isinstance(value, dict) is not mapping:
            raise merge.misfit(branch, "mappings" if mapping else "sets", value)
    if mapping:
        return _union_of_mappings(merge, {} if before is MISSING else dict(before), values)
    old: set[Any] = set() if before is MISSING else set(before)
    merged = set(old)
    for _, value in values:
        merged |= value
    for _, value in values:
        merged -= old.difference(value)
    return frozenset(merged) if isinstance(first, frozenset) else merged


def _union_of_mappings(merge: _Merge, old: dict[Any, Any], values: Written) -> dict[Any, Any]:
    merged = dict(old)
    changed: dict[Any, tuple[str, Any]] = {}  # by whom, and to what
    for branch, value in values:
        entries = cast("Mapping[Any, Any]", value)
        news: dict[Any, Any] = {
            entry: new for entry, new in entries.items() if not _same(old.get(entry, MISSING), new)
        }
        news.update((entry, MISSING) for entry in old if entry not in entries)
        for entry, new in news.items():
            first, known = changed.setdefault(entry, (branch, new))
            if not _same(known, new):
                raise StateError(
                    f"state[{merge.key!r}] cannot be merged by 'union': the branches {first!r} and "
                    f"{branch!r} disagree about its entry {entry!r}: {_what(known)}, and "
                    f"{_what(new)}",
                    hint="write different entries, or merge by a function of (before, values)",
                )
            if new is MISSING:
                merged.pop(entry, None)
            else:
                merged[entry] = known
    return merged


_REDUCERS: dict[str, Callable[[_Merge, Any, Written], Any]] = {
    "sum": _sum,
    "max": _max,
    "min": _min,
    "extend": _extend,
    "union": _union,
}


# --- what a value is ---


def _is_number(value: Any) -> bool:
    kind = kind_of(value)
    return kind is int or kind is float


def _is_addable(value: Any) -> bool:
    """A number, or an array, tensor or scalar of numbers. (No bool, whatever its library.)"""
    if _is_number(value) or isinstance(value, decimal.Decimal | fractions.Fraction):
        return True
    dtype = getattr(value, "dtype", None)
    if dtype is None or getattr(kind_of(value), "__module__", "").split(".")[0] not in _ARRAYS:
        return False
    kind = getattr(dtype, "kind", None)
    return str(dtype) != "torch.bool" if kind is None else kind in "iufc"


_ARRAYS = ("numpy", "torch")


def _is_ordered(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is not None:  # a scalar of numpy; an array has no order
        return getattr(value, "ndim", None) == 0 and getattr(dtype, "kind", "") in "iuf"
    return isinstance(value, _ORDERED) and not isinstance(value, bool)


def _is_nan(value: Any) -> bool:
    return bool(value != value)  # noqa: PLR0124 - true of NaN alone


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same, in type and in every element."""
    if one is other:
        return True
    kind = _THAWED.get(kind_of(one), kind_of(one))
    if kind is not _THAWED.get(kind_of(other), kind_of(other)):
        return False
    if kind is list or kind is tuple:
        return len(one) == len(other) and all(map(_same, one, other))
    if kind is dict:
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if hasattr(one, "dtype"):
        return _same_arrays(one, other)
    fields: Any = getattr(kind, "__struct_fields__", None)
    if fields is None:
        fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        return all(_same(getattr(one, name), getattr(other, name)) for name in fields)
    return bool(one == other) or (_is_nan(one) and _is_nan(other))


_THAWED: dict[type, type] = {FrozenList: list, FrozenDict: dict, FrozenSet: set}


def _same_arrays(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124


def _what(value: Any) -> str:
    return "removed" if value is MISSING else f"changed to {_told(value)}"


def _told(value: Any) -> str:
    """The value as an error shows it: its kind, and itself where it is short."""
    kind = type(value).__name__.removeprefix("Frozen").lower()
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than repr writes
        return f"a {kind}"
    return f"a {kind}, {text}" if len(text) <= 60 else f"a {kind}"

"""Containers read from a run's state: what the log holds, and therefore read-only.

Rules:

1. They are subclasses of the builtins, so `isinstance`, `==`, `json` and iteration work.
2. Whatever would change one in place raises `FrozenValue`, which says what to do instead.
3. Whatever makes a new object makes a plain, mutable one: slices, `+`, `|`, `copy`,
   `deepcopy` and pickle.
4. `Opaque` stands for a recorded object of a class that the reader does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, cast

from kitchen.errors import FrozenValue


class FrozenList(list[Any]):
    """A list that was read from state; `list(x)` is a mutable copy."""

    __slots__ = ("_key",)

    def __init__(self, items: Iterable[Any] = (), key: str | None = None) -> None:
        super().__init__(items)
        self._key = key

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[list[Any]]]:
        return list, (list(self),)


class FrozenDict(dict[Any, Any]):
    """A dict that was read from state; `dict(x)` is a mutable copy."""

    __slots__ = ("_key",)

    def __init__(self, items: Mapping[Any, Any] | None = None, key: str | None = None) -> None:
        super().__init__(items or ())
        self._key = key

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[dict[Any, Any]]]:
        return dict, (dict(self),)

    @classmethod
    def fromkeys(cls, iterable: Iterable[Any], value: Any = None, /) -> dict[Any, Any]:
        return dict.fromkeys(iterable, value)


class FrozenSet(set[Any]):
    """A set that was read from state; `set(x)` is a mutable copy."""

    __slots__ = ("_key",)

    def __init__(self, items: Iterable[Any] = (), key: str | None = None) -> None:
        super().__init__(items)
        self._key = key

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[set[Any]]]:
        return set, (set(self),)

    def copy(self) -> set[Any]:
        return set(self)


class Opaque(Mapping[str, Any]):
    """The fields of a recorded object whose class was not declared to the reader.

    It encodes to the text that it was decoded from, so a value can be carried along by
    code that does not know its class.
    """

    __slots__ = ("_fields", "_type_name")

    def __init__(self, type_name: str, fields: Mapping[str, Any]) -> None:
        self._type_name = type_name
        self._fields = FrozenDict(fields)

    @property
    def type_name(self) -> str:
        """The qualified name of the class, as it was recorded."""
        return self._type_name

    def __getitem__(self, key: str) -> Any:
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Opaque):
            return NotImplemented
        return self._type_name == other._type_name and self._fields == other._fields

    def __hash__(self) -> int:
        # Recorded objects may be dict keys and set elements, so their stand-ins must be too.
        fields = frozenset((name, _hash_of(value)) for name, value in self._fields.items())
        return hash((self._type_name, fields))

    def __repr__(self) -> str:
        return f"<{self._type_name} {dict(self._fields)!r}>"


_HASHED = (str, bytes, int, float, complex, type(None), Opaque)


def _hash_of(value: Any) -> int:
    """A hash for what may have none; values that are equal, of whatever kind, have the same."""
    if isinstance(value, tuple):
        return hash(tuple(map(_hash_of, cast("tuple[Any, ...]", value))))
    return hash(value) if isinstance(value, _HASHED) else 0


def frozen_list(items: list[Any], key: str | None) -> FrozenList:
    """`FrozenList(items, key)`, in half the time: state is read often."""
    made = _new_list(FrozenList)
    _extend(made, items)
    made._key = key  # pyright: ignore[reportPrivateUsage]
    return made


def frozen_dict(items: dict[Any, Any], key: str | None) -> FrozenDict:
    """`FrozenDict(items, key)`, in half the time."""
    made = _new_dict(FrozenDict)
    _update(made, items)
    made._key = key  # pyright: ignore[reportPrivateUsage]
    return made


_new_list, _extend = list[Any].__new__, list[Any].extend
_new_dict, _update = dict[Any, Any].__new__, dict[Any, Any].update


def _instead(value: object, key: str | None) -> str:
    name = repr(key) if key is not None else "key"
    if isinstance(value, list):
        delta = f"ctx.append({name}, x) or ctx.extend({name}, [...])"
        fresh = "[...]"
    elif isinstance(value, dict):
        delta = f"ctx.merge({name}, {{...}})"
        fresh = "{...}"
    else:
        return f"assign a new value: ctx.state[{name}] = {{*ctx.state[{name}], x}}"
    return f"{delta}, or assign a new value: ctx.state[{name}] = {fresh}"


def _refuser(method: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *_args: Any, **_kwargs: Any) -> NoReturn:
        key: str | None = self._key
        place = "ctx.state" if key is None else f"ctx.state[{key!r}]"
        raise FrozenValue(
            f"{method} would change in place what was read from {place}, which is a copy of "
            f"what the log holds: the change would be lost",
            hint=_instead(self, key),
        )

    refuse.__name__ = refuse.__qualname__ = method
    return refuse


_LIST = "append clear extend insert pop remove reverse sort __iadd__ __imul__"
_DICT = "clear pop popitem setdefault update __ior__"
_SET = (
    "add clear difference_update discard intersection_update pop remove "
    "symmetric_difference_update update __iand__ __ior__ __isub__ __ixor__"
)
# Set here rather than written out: each says the same, and none has its parent's signature.
for _kind, _methods in (
    (FrozenList, f"{_LIST} __setitem__ __delitem__"),
    (FrozenDict, f"{_DICT} __setitem__ __delitem__"),
    (FrozenSet, _SET),
):
    for _method in _methods.split():
        setattr(_kind, _method, _refuser(_method))

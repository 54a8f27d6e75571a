"""The classes that a codec may encode and build: those in the user's annotations.

Rules:

1. Only Structs and dataclasses, found by walking annotations from the declared roots.
2. A class is recorded by its `__qualname__`, so two of one name cannot both be declared.
3. A class that is also a container or a scalar is refused: its fields are not all of it.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, cast

import msgspec

from kitchen.errors import UnencodableValue

_BUILTINS = (str, bytes, int, float, complex, tuple, list, dict, set, frozenset)


def is_record(cls: object) -> bool:
    """Whether this is a Struct class or a dataclass (the class, not an instance)."""
    if not isinstance(cls, type):
        return False
    known = cast("type[Any]", cls)
    return (
        issubclass(known, msgspec.Struct) and known is not msgspec.Struct
    ) or dataclasses.is_dataclass(known)


def check_declarable(cls: Any) -> None:
    """Refuse a class whose instances are more than their fields."""
    if not is_record(cls):
        raise UnencodableValue(f"{cls!r} is neither a msgspec.Struct nor a dataclass")
    if issubclass(cls, _BUILTINS):
        raise UnencodableValue(
            f"{cls.__module__}.{cls.__qualname__} is a dataclass and a built-in at once, so its "
            f"fields are not all of it",
            hint="hold the built-in in a field",
        )


def reachable(*roots: Any) -> dict[str, type]:
    """Every Struct and dataclass that the annotations of `roots` lead to, by qualified name."""
    found: dict[str, type] = {}
    seen: dict[int, Any] = {}  # holds what it has seen, so that no id is used again
    waiting: list[Any] = list(roots)
    while waiting:
        hint = waiting.pop()
        if id(hint) in seen:
            continue
        seen[id(hint)] = hint
        waiting.extend(_inside(hint))
        # Box[int] is declared as Box: its instances are of that class.
        origin = typing.get_origin(hint) or hint
        if not is_record(origin):
            continue
        check_declarable(origin)
        known = found.setdefault(origin.__qualname__, origin)
        if known is not origin:
            raise UnencodableValue(
                f"{known.__module__}.{known.__qualname__} and "
                f"{origin.__module__}.{origin.__qualname__} are both declared, and a recorded "
                f"{origin.__qualname__!r} could be either",
                hint="rename one of them",
            )
    return dict(sorted(found.items()))


def _inside(hint: Any) -> list[Any]:
    inside: list[Any] = list(typing.get_args(hint))
    origin = typing.get_origin(hint)
    if origin is not None:
        inside.append(origin)
    elif is_record(hint):
        try:
            inside += typing.get_type_hints(hint, include_extras=True).values()
        except (NameError, TypeError) as error:
            raise UnencodableValue(
                f"the annotations of {hint.__module__}.{hint.__qualname__} do not resolve: {error}",
                hint="import what they name at run time too, not under TYPE_CHECKING alone",
            ) from error
    for attribute in ("__supertype__", "__value__"):  # NewType, and the `type` statement
        if hasattr(hint, attribute):
            inside.append(getattr(hint, attribute))
    return inside


@functools.lru_cache(maxsize=1024)
def field_names(cls: type[Any]) -> tuple[str, ...]:
    """The fields of a Struct or dataclass, in order."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    return tuple(field.name for field in dataclasses.fields(cls))

"""Declared types: what a config's or a state's class says of its fields.

Rules:

1. What msgspec can check is checked, and named by its path; a type that it does not know is taken
   as `Any`. An unknown name is an error with the near match, nested ones included.
2. A state's defaults are recorded when the run starts; a field without one is absent until it is
   put. NumPy scalars go into fields of Python numbers as Python numbers.
3. A field that could never be read through `ctx.state` is refused when the run starts.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, MutableMapping
from difflib import get_close_matches
from typing import Any, cast

import msgspec
from msgspec import Raw, inspect

from kitchen.errors import ConfigError, KitchenError, StateError, WorkflowError
from kitchen.machine.codec import Codec

NESTED = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)
_NUMBERS = (int, float, bool, complex)


def suggest(name: object, known: Any) -> str:
    """The near matches of what was given as a name, or what there is."""
    names = [str(key) for key in known]
    near = get_close_matches(str(name), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(names) or 'none'}"


def field_names(declared: type[Any]) -> list[str]:
    """The fields of a Struct or a dataclass, as attributes, whatever they are renamed to in JSON."""
    if issubclass(declared, msgspec.Struct):
        return list(declared.__struct_fields__)
    return [field.name for field in dataclasses.fields(declared)]


# --- shapes: what msgspec knows of a type ---------------------------------------------------------


def shape_of(declared: type[Any] | None) -> inspect.Type | None:
    """What is known of a type; None where there is none, or msgspec cannot tell."""
    if declared is None:
        return None
    try:
        return inspect.type_info(declared)
    except NameError as error:
        raise WorkflowError(
            f"the annotations of {declared.__qualname__} do not resolve: {error}",
            hint="define the types that they name at the top of a module",
        ) from None
    except TypeError:
        return None


def kinds_of(expected: inspect.Type | None) -> tuple[inspect.Type, ...]:
    """The members of a union, or the type itself."""
    if isinstance(expected, inspect.UnionType):
        return expected.types
    return () if expected is None else (expected,)


def inner_shape(expected: inspect.Type | None, part: str) -> inspect.Type | None:
    """The shape of a field."""
    for kind in kinds_of(expected):
        if isinstance(kind, NESTED):
            for field in kind.fields:
                if field.encode_name == part:
                    return field.type
        if isinstance(kind, inspect.DictType):
            return kind.value_type
    return None


def check_names(given: Mapping[str, Any], shape: inspect.Type | None, where: str = "") -> None:
    """Whether every name in a config is a field's, nested ones included.

    Raises `ConfigError` with the near match.
    """
    kinds = kinds_of(shape)
    if len([kind for kind in kinds if isinstance(kind, (*NESTED, inspect.DictType))]) != 1:
        return  # which of several is meant is msgspec's to say
    for kind in kinds:
        if not isinstance(kind, NESTED):
            continue
        known = {field.encode_name: field.type for field in kind.fields}
        tag: Any = getattr(kind, "tag_field", None)
        for name, value in given.items():
            if name == tag:
                continue
            if name not in known:
                raise ConfigError(
                    f"the config has no field {where + str(name)!r}", hint=suggest(name, known)
                )
            if isinstance(value, Mapping):
                check_names(cast("Mapping[str, Any]", value), known[name], f"{where}{name}.")


# --- state ----------------------------------------------------------------------------------------


def state_fields(declared: type[Any] | None, reserved: Mapping[str, object]) -> dict[str, Any]:
    """The fields of a declared state and their types; `Any` where msgspec cannot check one.

    Raises `WorkflowError` for a field that `ctx.state` could not give: one named like a method of
    mappings, or like a loop variable (`reserved`).
    """
    if declared is None:
        return {}
    hints = typing.get_type_hints(declared)  # they resolve: the codec has seen them before
    fields = {name: _checkable(hints.get(name, Any)) for name in field_names(declared)}
    for name in fields:
        if hasattr(MutableMapping, name) or name in reserved:
            what = "a loop variable" if name in reserved else "a method, as ctx.state is a mapping"
            raise WorkflowError(
                f"{declared.__name__} has a field {name!r}, but ctx.state.{name} is {what}",
                hint="give the field another name",
            )
    return fields


def fit(key: str, value: Any, declared: Any) -> Any:
    """A value for a field, or what is added to one; a NumPy scalar as the number it stands for.

    Raises `StateError` naming the path of what does not fit.
    """
    if declared in _NUMBERS and hasattr(value, "dtype") and hasattr(value, "item"):
        value = value.item()
    try:
        msgspec.convert(value, declared)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        place = f"state.{key}{where.rstrip('`')}"
        raise StateError(f"{place}: {what[:1].lower()}{what[1:]}") from None
    return value


def initial_state(declared: type[Any] | None, codec: Codec) -> dict[str, Raw]:
    """The defaults of a declared state, encoded."""
    state: dict[str, Raw] = {}
    for name, value in _defaults(declared).items() if declared is not None else ():
        encoded = codec.encode(value, where=f"state[{name!r}]")
        if encoded.blobs:
            raise KitchenError(f"the default of state field {name!r} is larger than 64 KiB")
        state[name] = Raw(encoded.json)
    return state


def _checkable(hint: Any) -> Any:
    try:
        known = inspect.type_info(hint)
    except Exception:  # msgspec raises what it likes at types it does not know
        return Any
    custom = isinstance(known, inspect.CustomType) or "CustomType" in repr(known)
    return Any if custom else hint


def _defaults(declared: type[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if issubclass(declared, msgspec.Struct):
        for field in msgspec.structs.fields(declared):
            if field.default is not msgspec.NODEFAULT:
                found[field.name] = field.default
            elif field.default_factory is not msgspec.NODEFAULT:
                found[field.name] = field.default_factory()
    else:
        for item in dataclasses.fields(declared):
            if item.default is not dataclasses.MISSING:
                found[item.name] = item.default
            elif item.default_factory is not dataclasses.MISSING:
                found[item.name] = item.default_factory()
    return found

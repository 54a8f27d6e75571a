"""Config: a run's immutable inputs, converted, checked and recorded.

Rules:

1. With a declared type, msgspec converts and checks; what is wrong is named by its path, and an
   unknown field is an error with the near match. Without one, `ConfigMap` reads a mapping.
2. What is recorded has all defaults filled in, and reading the record back gives an equal config;
   a config for which that does not hold is refused at the start, not at the resume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from kitchen.errors import ConfigError, UnencodableValue, UnknownKey
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec

_CODEC = Codec()


class ConfigMap(Mapping[str, Any]):
    """A read-only mapping whose entries read as attributes too, nested ones included."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_entries", dict(entries))

    if TYPE_CHECKING:
        _entries: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        try:
            value = self._entries[key]
        except KeyError:
            raise UnknownKey(
                f"the config has no {key!r}", hint=suggest(key, self._entries)
            ) from None
        return ConfigMap(cast("dict[str, Any]", value)) if isinstance(value, dict) else value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return self[key]

    def __setattr__(self, key: str, value: object) -> None:
        raise ConfigError(
            f"the config cannot be changed: config.{key} = {value!r}",
            hint="what changes while a run goes on belongs into ctx.state",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigMap, (self._entries,)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ConfigMap):
            return self._entries == other._entries
        if not isinstance(other, Mapping):
            return NotImplemented
        return self._entries == dict(cast("Mapping[str, Any]", other))

    __hash__ = None

    def __repr__(self) -> str:
        return f"ConfigMap({self._entries!r})"


def suggest(name: str, known: Any) -> str:
    """The near matches of a name, or what there is."""
    names = [str(key) for key in known]
    near = get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(names) or 'none'}"


def convert(given: Any, declared: type[Any] | None, *, strict: bool = True) -> Any:
    """What the user gave, as the declared type or as a `ConfigMap`.

    `strict=False` is for texts from a command line. Raises `ConfigError`.
    """
    if given is None:
        given = {}
    if declared is None:
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"the config is a {type(given).__name__}, but this workflow declares no config type",
                hint="pass a mapping, or declare @kitchen.workflow(config=YourStruct)",
            )
        return ConfigMap(cast("Mapping[str, Any]", given))
    if isinstance(given, declared):
        given = _builtins(given)
    elif not isinstance(given, Mapping):
        raise ConfigError(
            f"the config is a {type(given).__name__}; expected {declared.__name__} or a mapping"
        )
    entries = cast("Mapping[str, Any]", given)
    known = field_names(declared)
    for key in entries:
        if key not in known:
            raise ConfigError(
                f"{declared.__name__} has no field {key!r}", hint=suggest(str(key), known)
            )
    try:
        return msgspec.convert(dict(entries), declared, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(error, declared)) from None


def _located(error: msgspec.ValidationError, declared: type[Any]) -> str:
    """`Expected int, got str - at $.epochs` as `config.epochs: expected int, got str`."""
    what, _, where = str(error).partition(" - at `")
    path = where.rstrip("`").removeprefix("$").lstrip(".")
    place = f"config.{path}" if path else f"config ({declared.__name__})"
    return f"{place}: {what[:1].lower()}{what[1:]}"


def field_names(declared: type[Any]) -> list[str]:
    """The fields of a Struct or a dataclass."""
    if issubclass(declared, msgspec.Struct):
        return [field.encode_name for field in msgspec.structs.fields(declared)]
    return [field.name for field in dataclasses.fields(declared)]


# What the codec keeps exactly is left as it is; the rest (enums, paths…) becomes built-ins.
_EXACT: tuple[type, ...] = (bytes,)


def record(config: Any) -> Raw:
    """The config as it is recorded.

    Raises `ConfigError` where reading it back would not give the same.
    """
    declared = None if isinstance(config, ConfigMap) else cast("type[Any]", type(config))
    entries: Any = _plain(config) if declared is None else _builtins(config)
    try:
        encoded = _CODEC.encode(entries, where="config")
    except UnencodableValue as error:
        raise ConfigError(f"the config cannot be recorded: {error.message}") from None
    if encoded.blobs:
        raise ConfigError(
            "the config is larger than 64 KiB",
            hint="load large data in a stage; keep its path here",
        )
    raw = Raw(encoded.json)
    again = restore(raw, declared)
    if not same(again, config):
        raise ConfigError(
            f"reading the config back gives {again!r}, not {config!r}",
            hint="use field types that survive a trip through JSON",
        )
    return raw


def same(one: Any, other: Any) -> bool:
    """Whether two configs, or two values in them, are equal; NaN is equal to itself here."""
    if type(one) is float and type(other) is float:
        return one == other or (one != one and other != other)  # noqa: PLR0124
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        before, after = cast("Mapping[Any, Any]", one), cast("Mapping[Any, Any]", other)
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    for kind in (list, tuple):
        if isinstance(one, kind) and isinstance(other, kind):
            firsts, seconds = cast("list[Any]", one), cast("list[Any]", other)
            return len(firsts) == len(seconds) and all(map(same, firsts, seconds))
    first, second = cast("tuple[Any, Any]", (one, other))
    kept: Any = getattr(first, "__struct_fields__", None)
    names: Any = kept if kept is not None else getattr(first, "__dataclass_fields__", None)
    if names is not None and type(first) is type(second):
        return all(same(getattr(first, name), getattr(second, name)) for name in names)
    try:
        return bool(first == second)
    except ValueError:
        raise ConfigError(
            f"a {type(first).__name__} does not belong into a config",
            hint="load large data in a stage; keep its path here",
        ) from None


def _builtins(config: Any) -> Any:
    try:
        return msgspec.to_builtins(config, builtin_types=_EXACT)
    except TypeError as error:
        raise ConfigError(
            f"the config cannot be recorded: {error}",
            hint="use field types that msgspec knows; a path, for one, as a str",
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        return {key: _plain(entry) for key, entry in entries.items()}
    return value


def restore(raw: Raw, declared: type[Any] | None) -> Any:
    """The config that was recorded, as the declared type.

    Raises `ConfigError` where the type has changed so that it does not fit any more.
    """
    entries: Any = _thawed(_CODEC.decode(raw, no_blobs))
    if declared is None:
        return ConfigMap(entries)
    try:
        return msgspec.convert(entries, declared)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the recorded config does not fit {declared.__name__} any more: "
            f"{_located(error, declared)}"
        ) from None


def _thawed(value: Any) -> Any:
    return _CODEC.decode(_CODEC.encode(value).json, no_blobs, frozen=False)

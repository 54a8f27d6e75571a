"""Config: a run's immutable inputs, converted, checked and recorded.

Rules:

1. With a declared type, msgspec converts and checks; what is wrong is named by its path, and an
   unknown field is an error with the near match. Without one, `ConfigMap` reads a mapping.
2. What is recorded has all defaults filled in, and reading the record back gives an equal config;
   a config for which that does not hold is refused at the start, not at the resume.
3. Of a secret only its mark is recorded (see `hidden.py`). `restore` gives it without a value, for
   those who read; `begun` and `unlocked` with it, for those who execute, or refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from kitchen.errors import ConfigError, UnencodableValue, UnknownKey
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.runner import hidden
from kitchen.runner.declared import check_names, shape_of, suggest
from kitchen.runner.secret import Secret, indistinct

_CODEC = Codec()


class ConfigMap(Mapping[str, Any]):
    """A read-only mapping whose entries read as attributes too, nested ones included."""

    __slots__ = ("_entries", "_subject")
    if TYPE_CHECKING:
        _entries: dict[str, Any]
        _subject: str

    def __init__(self, entries: Mapping[str, Any], subject: str = "the config has") -> None:
        object.__setattr__(self, "_entries", dict(entries))
        object.__setattr__(self, "_subject", subject)

    def plain(self) -> dict[str, Any]:
        """The entries as a dict of one's own."""
        return {key: _plain(value) for key, value in self._entries.items()}

    def __getitem__(self, key: str) -> Any:
        try:
            value = self._entries[key]
        except KeyError:
            raise UnknownKey(
                f"{self._subject} no {key!r}", hint=suggest(key, self._entries)
            ) from None
        if isinstance(value, dict):
            return ConfigMap(cast("dict[str, Any]", value), self._subject)
        return value

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
        return ConfigMap(hidden.unmarked(given))
    if isinstance(given, declared):
        given = _builtins(given)
    elif not isinstance(given, Mapping):
        raise ConfigError(
            f"the config is a {type(given).__name__}; expected {declared.__name__} or a mapping"
        )
    entries = dict(cast("Mapping[str, Any]", hidden.unmarked(given)))
    check_names(entries, shape_of(declared))
    try:
        return msgspec.convert(entries, declared, strict=strict, dec_hook=hidden.taken)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(error, declared)) from None


def _located(error: msgspec.ValidationError, declared: type[Any]) -> str:
    """`Expected int, got str - at $.epochs` as `config.epochs: expected int, got str`."""
    what, _, where = str(error).partition(" - at `")
    path = where.rstrip("`").removeprefix("$").lstrip(".")
    place = f"config.{path}" if path else f"config ({declared.__name__})"
    return f"{place}: {what[:1].lower()}{what[1:]}"


# What the codec keeps exactly is left as it is; the rest (enums, paths…) becomes built-ins.
_EXACT: tuple[type, ...] = (bytes, Secret)


def begun(given: Any, declared: type[Any] | None) -> tuple[Raw, Any]:
    """What the user gave for a new run: as it is recorded, and as user code sees it.

    Raises `ConfigError`, also where a secret is missing.
    """
    asked = convert(given, declared)
    raw = record(asked)
    return raw, unlocked(raw, declared, asked)


def unlocked(raw: Raw, declared: type[Any] | None, asked: Any = None) -> Any:
    """The config of a run that is to be executed; the secrets of the config `asked` come first.

    Raises `ConfigError` where a secret is missing, and what `restore` raises.
    """
    tree = None if asked is None else _tree(asked)
    return _restored(raw, declared, lambda entries: hidden.unlocked(entries, tree))


def changed(raw: Raw, declared: type[Any] | None, changes: Any, *, strict: bool = True) -> Any:
    """A recorded config with some of its fields changed, and the secrets that `changes` hold. It is
    a mapping, nested where the config is, or a whole config of the declared type.

    Raises `ConfigError`, also for a field that is not there.
    """
    if declared is not None and isinstance(changes, declared):
        return convert(changes, declared)
    if not isinstance(changes, Mapping):
        raise ConfigError(f"the config is edited by a mapping, not by a {type(changes).__name__}")
    before = _tree(restore(raw, declared))
    if declared is None:
        check_known(before, cast("Mapping[Any, Any]", changes))
    return convert(_merged(before, changes), declared, strict=strict)


def texts_in(config: Any) -> list[str]:
    """The places of secrets that were given as a text, which ends with this process."""
    return hidden.texts(_tree(config))


def check_known(before: Mapping[Any, Any], changes: Mapping[Any, Any], where: str = "") -> None:
    """Raises `ConfigError` for what is changed and is not there."""
    for name, value in changes.items():
        if name not in before:
            raise ConfigError(f"the config has no {where}{name!s}", hint=suggest(str(name), before))
        if isinstance(value, Mapping) and isinstance(before[name], Mapping):
            check_known(before[name], cast("Mapping[Any, Any]", value), f"{where}{name}.")


def _merged(before: Any, changes: Any) -> Any:
    if not isinstance(before, Mapping) or not isinstance(changes, Mapping):
        return changes
    old, new = cast("Mapping[Any, Any]", before), cast("Mapping[Any, Any]", changes)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def check_secrets(config: Any) -> None:
    """Raises `ConfigError` naming the secrets of a config that have no value here."""
    hidden.require(_tree(config))


def record(config: Any) -> Raw:
    """The config as it is recorded.

    Raises `ConfigError` where reading it back would not give the same.
    """
    declared = None if isinstance(config, ConfigMap) else cast("type[Any]", type(config))
    entries: Any = hidden.marked(_tree(config))
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
    """Whether two configs, or two values in them, are equal; NaN is equal to itself here, and what
    a log says of a secret to any secret."""
    if isinstance(one, Secret) and isinstance(other, Secret):
        return indistinct(one, other)
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


def _tree(config: Any) -> Any:
    """A config as built-ins, but for its secrets."""
    return _plain(config) if isinstance(config, ConfigMap) else _builtins(config)


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
    """The config that was recorded, as the declared type; its secrets have no values.

    Raises `ConfigError` where the type has changed so that it does not fit any more.
    """
    return _restored(raw, declared, hidden.unmarked)


def _restored(raw: Raw, declared: type[Any] | None, put: Callable[[Any], Any]) -> Any:
    entries: Any = put(_thawed(_CODEC.decode(raw, no_blobs)))
    if declared is None:
        return ConfigMap(entries)
    try:
        check_names(entries, shape_of(declared))
        return msgspec.convert(entries, declared, dec_hook=hidden.taken)
    except (msgspec.ValidationError, ConfigError) as error:
        told = error.message if isinstance(error, ConfigError) else _located(error, declared)
        raise ConfigError(
            f"the recorded config does not fit {declared.__name__} any more: {told}",
            hint="resume with the type that it was started with, or start a new run",
        ) from None


def _thawed(value: Any) -> Any:
    return _CODEC.decode(_CODEC.encode(value).json, no_blobs, frozen=False)

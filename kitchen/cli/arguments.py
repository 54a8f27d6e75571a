"""The config on the command line: a TOML file, and `name=value` on top of it.

Rules:

1. `a.b=3` reaches into a nested table. Later ones win; a name that is a value and a table at
   once is an error.
2. Where the workflow declares a config type, a text goes to a field as it is, and msgspec
   converts it to the field's type; only what is written as a list or a table, for a field that
   can be one, is parsed first. Without a type, a value is read as JSON, then as TOML, and is
   otherwise a str.
3. Nothing is passed over: an unknown name is an error with the near match, nested ones included.
4. `name=env:VARIABLE` is the secret in that variable, where the field is a secret or has no type.
   A secret that is missing is told before a store is made. No error shows what follows a `=`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import inspect

from kitchen.errors import ConfigError
from kitchen.runner.config import check_secrets, convert
from kitchen.runner.declared import inner_shape, kinds_of, shape_of
from kitchen.runner.hidden import from_text, names_variable
from kitchen.runner.secret import Secret

_OVERRIDE = re.compile(r"([^\W\d][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)


def config_from(words: Sequence[str], declared: type | None) -> Any:
    """The config that the words after `module:workflow` make.

    Raises `ConfigError`.
    """
    file, overrides = _sorted_out(words)
    given = _given(read_toml(file) if file is not None else {}, overrides, declared)
    config = convert(given, declared, strict=False)
    check_secrets(config)
    return config


def edits_from(words: Sequence[str], declared: type | None) -> dict[str, Any]:
    """The fields that words edit in the config of a run that is there, not yet converted.

    Raises `ConfigError`.
    """
    file, overrides = _sorted_out(words)
    if file is not None:
        raise ConfigError(f"{file} is a whole config", hint="edit single fields: name=value")
    return _given({}, overrides, declared)


def _given(
    given: dict[str, Any], overrides: Sequence[tuple[str, str]], declared: type | None
) -> dict[str, Any]:
    shape = shape_of(declared)
    for name, text in overrides:
        _put(given, name.split("."), _value(text, name, shape))
    return given


def read_toml(file: str) -> dict[str, Any]:
    """What a TOML file says.

    Raises `ConfigError` where it is not there, not readable or not TOML.
    """
    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}", hint=f"looked in {Path.cwd()}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None


def _sorted_out(words: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    files: list[str] = []
    overrides: list[tuple[str, str]] = []
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if match is not None:
            overrides.append((match[1], match[2]))
        elif word.endswith(".toml"):
            files.append(word)
        else:
            shown = f"{word.partition('=')[0]}=…" if "=" in word else word  # it may be a secret
            raise ConfigError(
                f"{shown!r} is neither name=value nor a .toml file",
                hint="write name=value; a .toml file is for kitchen run",
            )
    if len(files) > 1:
        raise ConfigError(
            f"one config file is taken, and there are {len(files)}: {', '.join(files)}"
        )
    return (files[0] if files else None), overrides


def _put(given: dict[str, Any], parts: list[str], value: Any) -> None:
    table = given
    for depth, part in enumerate(parts[:-1], 1):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            name = ".".join(parts)
            raise ConfigError(f"{name} is given, and {'.'.join(parts[:depth])} is a value already")
        table = cast("dict[str, Any]", inner)
    if isinstance(table.get(parts[-1]), dict) and not isinstance(value, dict):
        # A text would replace a whole table without a word.
        raise ConfigError(f"{'.'.join(parts)} is given a value, and it is a table already")
    table[parts[-1]] = value


def _value(text: str, name: str, shape: inspect.Type | None) -> Any:
    expected = shape
    for part in name.split("."):
        expected = inner_shape(expected, part)
    kinds = kinds_of(expected)
    if not kinds or any(isinstance(kind, inspect.AnyType) for kind in kinds):
        return from_text(text) if names_variable(text) else parse(text)
    if any(isinstance(kind, inspect.CustomType) and kind.cls is Secret for kind in kinds):
        return None if text == "null" and len(kinds) > 1 else text
    if text[:1] in ("[", "{") and not all(isinstance(kind, inspect.StrType) for kind in kinds):
        return parse(text)
    return text


def parse(text: str) -> Any:
    """A value without a type: JSON, else TOML, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text

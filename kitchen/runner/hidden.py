"""The secrets of a config: found by their place, marked in the log, and put back.

Rules:

1. In the log a secret is `{"$secret": VARIABLE}`: that there is one, and where a resume finds it.
   One that was given as a text gets the variable `KITCHEN_SECRET_` and its place in capitals. In
   what a user gives, the same mark means the same.
2. What a caller gives wins over the variable. What is missing is told at once, all of it, before
   anything runs; who only reads a run needs none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from kitchen.errors import ConfigError
from kitchen.machine.codec.refusals import kind_of
from kitchen.runner.secret import (
    CONVENTION,
    Secret,
    bound,
    is_missing,
    is_variable,
    told_missing,
    without_value,
)

MARK = "$secret"
_ENV = "env:"
_DEEPEST = 100  # as the codec: what is nested deeper, or in itself, is its to refuse

Swap = Callable[[Secret, str], Any]


def taken(kind: type[Any], value: Any) -> Any:
    """For msgspec: what was given, as a secret where the field is one."""
    if kind is not Secret or isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected a text for a secret, got a {type(value).__name__}")
    try:
        return from_text(value)
    except ConfigError as error:
        raise ValueError(error.message) from None


def from_text(text: str) -> Secret:
    """`env:NAME` as the secret in that variable, any other text as the value itself.

    Raises `ConfigError`.
    """
    if not text.startswith(_ENV):
        return Secret(text)
    if not names_variable(text):
        raise ConfigError(f"{_ENV} is followed by the name of a variable")
    return Secret(env=text.removeprefix(_ENV))


def names_variable(text: str) -> bool:
    """Whether a text is `env:NAME`."""
    return text.startswith(_ENV) and is_variable(text.removeprefix(_ENV))


def marked(tree: Any) -> Any:
    """A config of built-ins and secrets, as it is recorded.

    Raises `ConfigError` where two secrets would be looked for in one variable.
    """
    places: dict[str, str] = {}

    def mark(secret: Secret, place: str) -> dict[str, str]:
        if secret.env is not None:
            return {MARK: secret.env}
        variable = _conventional(place)
        other = places.setdefault(variable, place)
        if other != place:
            raise ConfigError(
                f"the secrets {other} and {place} would both be looked for in {variable}",
                hint='name the variable of one: Secret(env="…")',
            )
        return {MARK: variable}

    return _swapped(tree, mark)


def unmarked(tree: Any) -> Any:
    """The tree with secrets in the place of marks."""
    return _swapped(tree, lambda secret, _place: secret)


def unlocked(tree: Any, asked: Any) -> Any:
    """A recorded tree with secrets that can be revealed; those in the tree `asked` come first.

    Raises `ConfigError` naming all that are missing.
    """
    given: dict[str, Secret] = {}
    _swapped(asked, lambda secret, place: given.setdefault(place, secret))

    def put(secret: Secret, place: str) -> Secret:
        return bound(given.get(place, secret), place, secret.env or _conventional(place))

    found = _swapped(tree, put)
    require(found)
    return found


def require(tree: Any) -> None:
    """Raises `ConfigError` naming the secrets of a tree that have no value here."""
    missing: list[tuple[str, str]] = []

    def look(secret: Secret, place: str) -> Secret:
        if is_missing(secret):
            missing.append(told_missing(bound(secret, place, _conventional(place))))
        return secret

    _swapped(tree, look)
    if missing:
        whats, remedies = zip(*missing, strict=True)
        raise ConfigError("\n  ".join(whats), hint="\n  ".join(remedies))


def texts(tree: Any) -> list[str]:
    """The places of the secrets in a tree whose values are in no variable."""
    found: list[str] = []

    def look(secret: Secret, place: str) -> Secret:
        if secret.env is None:
            found.append(place)
        return secret

    _swapped(tree, look)
    return found


def _conventional(place: str) -> str:
    """`config.keys[0]` is looked for in KITCHEN_SECRET_KEYS_0."""
    name = re.sub(r"[^A-Z0-9]+", "_", place.removeprefix("config").upper())
    return CONVENTION + name.strip("_")


def _swapped(value: Any, swap: Swap, place: str = "config", around: tuple[int, ...] = ()) -> Any:
    """A tree of dicts, lists and tuples with its secrets and marks swapped; what has none is left."""
    if isinstance(value, Secret):
        return swap(value, place)
    if id(value) in around or len(around) > _DEEPEST:
        return value
    inside = (*around, id(value))
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        if around and len(entries) == 1 and is_variable(entries.get(MARK)):
            return swap(without_value(entries[MARK], place, logged=True), place)
        made = {key: _swapped(v, swap, f"{place}.{key}", inside) for key, v in entries.items()}
        return made if any(made[key] is not v for key, v in entries.items()) else entries
    kind = kind_of(value)
    if kind is list or kind is tuple:  # no subclass: the codec has its own mind about them
        inner = cast("list[Any]", value)
        each = [_swapped(v, swap, f"{place}[{i}]", inside) for i, v in enumerate(inner)]
        if any(one is not other for one, other in zip(each, inner, strict=True)):
            return each if kind is list else tuple(each)
    return value

"""Secrets: texts that a run needs, and that nobody may find in its log.

Rules:

1. A `Secret` shows no value to whatever prints, formats, encodes, copies, compares or pickles it;
   `reveal()` alone gives it. The text is kept in a closure, so that what walks over attributes
   finds a function.
2. A pickle carries the name of the variable and never the value, since pickles end up in files
   that nobody looks into. A process that it is sent to reads the variable, which it has inherited.
   (Workers of our own are told the value, through a socket that nobody else can read.)
3. Each value that was given or read is known to this process until it ends. `redacted` replaces it
   in a text, as it is and as Python, JSON and URLs write it. One of fewer than `SHORTEST`
   characters is left: it is in any text, and the stars would tell what it is.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, cast, final
from urllib.parse import quote, quote_plus

from kitchen.errors import ConfigError

SHORTEST = 4
STARS = "***"
CONVENTION = "KITCHEN_SECRET_"
"""What the variable of a secret that was given as a text begins with."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Parts(NamedTuple):
    """What a secret is made of. `logged`: it is what a log says of one."""

    given: Callable[[], str | None]
    variable: str | None
    field: str
    logged: bool


@final
class Secret:
    """A text that is in no log: given as it is, or as the name of an environment variable.

    `Secret("sk-…")` or `Secret(env="OPENAI_API_KEY")`; the variable is read when the secret is
    revealed. Raises `ConfigError` for anything else.
    """

    __slots__ = ("_parts",)
    _parts: _Parts

    def __init__(self, value: str | None = None, *, env: str | None = None) -> None:
        if (value is None) == (env is None):
            raise ConfigError(
                "a secret is a text or the name of a variable, one of the two",
                hint='Secret("…") or Secret(env="OPENAI_API_KEY")',
            )
        if env is not None:
            if not is_variable(env):
                raise ConfigError("env= is the name of an environment variable")
            _fill(self, None, env)
            return
        if type(cast("object", value)) is not str:
            raise ConfigError(f"a secret is a text, not a {type(value).__name__}")
        if not value:
            raise ConfigError("a secret is an empty text", hint="leave it out: Secret | None")
        _fill(self, value, None)

    @property
    def env(self) -> str | None:
        """The variable that the value is read from; None for one that was given as a text."""
        return self._parts.variable if self._parts.given() is None else None

    def reveal(self) -> str:
        """The value. Raises `ConfigError` where its variable is not set."""
        value = _value(self)
        if value is None:
            what, remedy = told_missing(self)
            raise ConfigError(what, hint=remedy)
        return value

    def __repr__(self) -> str:
        return f"Secret({STARS!r})" if self.env is None else f"Secret(env={self.env!r})"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        one, two = self._parts.given(), other._parts.given()
        if one is None or two is None:
            return one is two and self._parts.variable == other._parts.variable
        return hmac.compare_digest(_bytes(one), _bytes(two))

    def __hash__(self) -> int:
        return 0x5EC2E7  # the same for all: one of the value could be tried out against

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __getstate__(self) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return without_value, (self._parts.variable, self._parts.field)


def without_value(variable: str | None, field: str = "", *, logged: bool = False) -> Secret:
    """A secret whose value only the environment has. `logged`: it is what a log says of one."""
    return _fill(object.__new__(Secret), None, variable, field, logged=logged)


def bound(secret: Secret, field: str, variable: str) -> Secret:
    """The secret of a field of a config; where its value does not go along, it is in `variable`."""
    value = _parts(secret).given()
    return _fill(object.__new__(Secret), value, secret.env or variable, field)


def indistinct(one: Secret, other: Secret) -> bool:
    """Whether two secrets need not differ: what a log says of one fits any."""
    return _parts(one).logged or _parts(other).logged or one == other


def is_variable(name: object) -> bool:
    """Whether this can be the name of an environment variable."""
    return isinstance(name, str) and _VARIABLE.fullmatch(name) is not None


def is_missing(secret: Secret) -> bool:
    """Whether there is no value to be revealed."""
    return _value(secret) is None


def told_missing(secret: Secret) -> tuple[str, str]:
    """What is missing, and what to do."""
    _, variable, field, _ = _parts(secret)
    field = field or "a secret"
    if variable is None:
        return (
            f"{field} was pickled, and a pickle does not carry its value",
            'use Secret(env="…"): a worker process reads the variable',
        )
    hint = f"set {variable}, which has the value; the log has not"
    if variable.startswith(CONVENTION):
        hint = f"set {variable}: the value was given as a text, and the log does not have it"
    return f"{field} is a secret, and the variable {variable} is not set", hint


def _parts(secret: Secret) -> _Parts:
    return secret._parts  # pyright: ignore[reportPrivateUsage]


def _fill(
    secret: Secret,
    value: str | None,
    variable: str | None,
    field: str = "",
    *,
    logged: bool = False,
) -> Secret:
    object.__setattr__(secret, "_parts", _Parts(lambda: value, variable, field, logged))
    if value is not None:
        _known.add(value)
    return secret


def _value(secret: Secret) -> str | None:
    """The value, if there is one. An empty variable is taken as one that is not set."""
    given, variable, _, _ = _parts(secret)
    value = given()
    if value is None and variable is not None:
        value = os.environ.get(variable) or None
        if value is not None:
            _known.add(value)
    return value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# --- texts that may hold one ----------------------------------------------------------------------


class _Known:
    """The values that this process has seen, and what finds them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: set[str] = set()
        self._forms: set[str] = set()
        self.search: re.Pattern[str] | None = None

    def add(self, value: str) -> None:
        if value in self._values:
            return
        with self._lock:
            self._forms |= {form for form in _forms(value) if len(form) >= SHORTEST}
            longest_first = sorted(self._forms, key=len, reverse=True)
            if longest_first:
                self.search = re.compile("|".join(map(re.escape, longest_first)))
            self._values.add(value)


def _forms(value: str) -> Iterator[str]:
    """How a value may stand in a text. Of one with many lines each counts: tracebacks indent."""
    if len(value) < SHORTEST:
        return
    stripped = value.strip()
    yield from (value, stripped, *map(str.strip, value.splitlines()))
    for text in (value, stripped):
        quoted = f"{text}'\""  # then repr escapes the one kind of quotes
        yield from (repr(text)[1:-1], repr(quoted)[1:-4], ascii(text)[1:-1])
        yield repr(_bytes(text))[2:-1]
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        yield from (quote(_bytes(text), safe=""), quote(_bytes(text)), quote_plus(_bytes(text)))


_known = _Known()


def redacted(text: str) -> str:
    """A text in which each known value is replaced by stars."""
    search = _known.search
    return search.sub(STARS, text) if search is not None else text


class Redacting(logging.Filter):
    """Takes known secrets out of what kitchen itself logs, tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record pass, without secrets."""
        text = record.getMessage()
        if redacted(text) != text:
            record.msg, record.args = redacted(text), ()
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            if redacted(trace) != trace:
                record.exc_text, record.exc_info = redacted(trace), None
        return True

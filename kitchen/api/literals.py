"""Values as the Python that makes them, for a test that is written from a log.

Rules:

1. Evaluated with the modules in `imports` at hand, the text gives an equal value of the same type.
   What cannot be written so is refused, with its place. (Of NaN only that it is one is kept.)
2. The values may be anybody's. Text gets in through `repr` alone, which leaves no quote, line end or
   invisible mark as it is; no name that a value has becomes code.
3. It is laid out as formatters do it: double quotes, and a line an entry where one line is too long.
"""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import math
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from kitchen.errors import ConfigError
from kitchen.machine.codec.refusals import kind_of
from kitchen.machine.codec.tagging import PLAIN_INT
from kitchen.runner.secret import Secret

WIDTH = 88  # columns of a line
_NUMBERS = (bool, int, float, complex)


class Group(NamedTuple):
    """Brackets, with what stands between them."""

    opening: str
    entries: list[tuple[str, Code]]  # a prefix, "key=" say, and what it is of
    closing: str
    alone: str = ""  # behind an entry that is the only one


Code: TypeAlias = str | Group


class Literals:
    """Writes values. `imports`: the modules that the code needs. `variables`: those of the
    environment in which its secrets are looked for, in order."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.variables: list[str] = []

    def code(self, value: Any, where: str) -> Code:
        """The code of a value. Raises `ConfigError` that names the place, for what has none."""
        write = _WRITERS.get(kind_of(value))
        if write is not None:
            return write(self, value, where)
        number = self._numpy(value)
        if number is None:
            raise ConfigError(
                f"{where} cannot be written as Python: it is of the type {type(value).__name__}",
                hint="write the test by hand: assert run_workflow(…) == golden",
            )
        return number

    def _numpy(self, value: Any) -> str | None:
        """A number of NumPy's, by name, as it need not be installed; None for anything else."""
        kind = kind_of(value)
        if kind.__module__ != "numpy" or kind.__name__ == "ndarray" or not hasattr(value, "item"):
            return None
        number = value.item()
        if type(number) not in _NUMBERS:
            return None
        self.imports.add("numpy")
        name = "bool_" if type(number) is bool else kind.__name__
        return f"numpy.{name}({laid(self.code(number, ''))})"

    def group(self, opening: str, values: Iterable[Any], where: str, closing: str) -> Group:
        """Values in a row."""
        entries = [("", self.code(v, f"{where}[{at}]")) for at, v in enumerate(values)]
        return Group(opening, entries, closing)

    def of_module(self, value: Any, *more: str) -> str:
        """What `repr` writes with the module's name before it."""
        self.imports |= {type(value).__module__, *more}
        return repr(value)


def call(function: str, arguments: Iterable[tuple[str, Code]]) -> Group:
    """A call; an argument's name is empty where it goes by place."""
    named = [(f"{name}=" if name else "", code) for name, code in arguments]
    return Group(f"{function}(", named, ")")


def laid(code: Code, indent: int = 0, used: int = 0) -> str:
    """The text of code that begins at column `indent + used`, a line's indentation being `indent`."""
    if isinstance(code, str):
        return code
    flat = _flat(code)
    if indent + used + len(flat) <= WIDTH or not code.entries:
        return flat
    inner = indent + 4
    lines = [
        f"{' ' * inner}{prefix}{laid(entry, inner, len(prefix) + 1)},"
        for prefix, entry in code.entries
    ]
    return "\n".join([code.opening, *lines, f"{' ' * indent}{code.closing}"])


def _flat(code: Code) -> str:
    if isinstance(code, str):
        return code
    inner = ", ".join(f"{prefix}{_flat(entry)}" for prefix, entry in code.entries)
    comma = code.alone if len(code.entries) == 1 else ""
    return f"{code.opening}{inner}{comma}{code.closing}"


def text(value: str) -> str:
    """A text, in double quotes where that needs no escaping."""
    return _quoted(repr(value))


def _quoted(told: str) -> str:
    # Python takes single quotes where the text has none, or has double quotes.
    return f'"{told[1:-1]}"' if told[0] == "'" and '"' not in told else told


def _float(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _complex(value: complex) -> str:
    return f"complex({_float(value.real)}, {_float(value.imag)})"


def _int(value: int) -> str:
    # Of larger ones, Python reads and writes no decimal digits.
    return repr(value) if -PLAIN_INT < value < PLAIN_INT else hex(value)


def _dict(self: Literals, value: Mapping[Any, Any], where: str) -> Code:
    entries: list[tuple[str, Code]] = []
    for key, inner in value.items():
        named = _flat(self.code(key, f"{where} (in a key)"))
        place = f"{where}.{key}" if isinstance(key, str) and key.isidentifier() else None
        entries.append((f"{named}: ", self.code(inner, place or f"{where}[{named}]")))
    return Group("{", entries, "}")


def _tuple(self: Literals, value: tuple[Any, ...], where: str) -> Code:
    return self.group("(", value, where, ")")._replace(alone=",")


def _set(self: Literals, value: set[Any] | frozenset[Any], where: str) -> Code:
    name = "frozenset" if type(cast("Any", value)) is frozenset else ""
    if not value:
        return f"{name or 'set'}()"
    found = self.group(f"{name}({{" if name else "{", value, where, "})" if name else "}")
    found.entries.sort(key=lambda entry: _flat(entry[1]))  # a set has no order of its own
    return found


def _clock(self: Literals, value: dt.datetime | dt.time, _where: str) -> Code:
    more = ("zoneinfo",) if isinstance(value.tzinfo, zoneinfo.ZoneInfo) else ()
    return self.of_module(value, *more)


def _secret(self: Literals, value: Secret, where: str) -> Code:
    if value.env is None:
        raise ConfigError(f"{where} is a secret without a variable")
    self.imports.add("kitchen")
    if value.env not in self.variables:
        self.variables.append(value.env)
    return f"kitchen.Secret(env={text(value.env)})"


def _numbered(self: Literals, value: decimal.Decimal | uuid.UUID, _where: str) -> Code:
    """What its text makes again."""
    self.imports.add(type(value).__module__)
    return f"{type(value).__module__}.{type(value).__name__}({text(str(value))})"


def _fraction(self: Literals, value: fractions.Fraction, _where: str) -> Code:
    self.imports.add("fractions")
    return f"fractions.Fraction({_int(value.numerator)}, {_int(value.denominator)})"


def _dated(self: Literals, value: Any, _where: str) -> Code:
    return self.of_module(value)


_WRITERS: dict[type, Callable[[Literals, Any, str], Code]] = {
    type(None): lambda _s, _v, _w: "None",
    bool: lambda _s, value, _w: repr(value),
    int: lambda _s, value, _w: _int(value),
    float: lambda _s, value, _w: _float(value),
    complex: lambda _s, value, _w: _complex(value),
    str: lambda _s, value, _w: text(value),
    bytes: lambda _s, value, _w: f"b{_quoted(repr(value)[1:])}",
    range: lambda _s, v, _w: f"range({_int(v.start)}, {_int(v.stop)}, {_int(v.step)})",
    list: lambda self, value, where: self.group("[", value, where, "]"),
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    dict: _dict,
    Secret: _secret,
    decimal.Decimal: _numbered,
    uuid.UUID: _numbered,
    fractions.Fraction: _fraction,
    dt.datetime: _clock,
    dt.time: _clock,
    dt.date: _dated,
    dt.timedelta: _dated,
}

"""What cannot be kept exactly: where it is, and what to store instead.

Rules:

1. A refusal bubbles up from the value, and each level adds its step to the path.
2. Nothing here calls a method of a refused object, nor its `repr`: it may be anything.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import msgspec

kind_of: Callable[[object], type[object]] = type  # what pyright makes of type(Any) is unknown
_HIDDEN = "kitchen.runner.secret.Secret"  # by name, as it lives floors above


class Refused(Exception):
    """Bubbles up from what cannot be kept; each level adds its step to the path."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.path: list[str] = []


def type_name(value: object) -> str:
    """The class of a value, as an error names it."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def show_key(key: Any) -> str:
    """A key of a dict (which has been found to be plain), cut short."""
    try:
        text = repr(key)
    except ValueError:  # an int of more digits than repr writes
        return "..."
    return text if len(text) <= 60 else f"{text[:57]}..."


def hint_for(value: object) -> str | None:
    """What to store instead of a value that cannot be kept."""
    kind: type[Any] = type(value)
    for kinds, hint in _HINTS:
        if isinstance(value, kinds):
            return hint
    if type_name(value) == _HIDDEN or hasattr(kind, "get_secret_value"):
        return (
            "a secret belongs into no log: leave it in the config, and reveal it where it is used"
        )
    if hasattr(kind, "__fspath__"):
        return "store str(...)"
    if hasattr(kind, "requires_grad"):
        return "store x.detach().clone(): its class holds more than its elements"
    if hasattr(kind, "state_dict"):
        return "make it a Resource: a checkpoint saves it by its state_dict()"
    if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
        return "name the class in the annotations of the workflow's state= (or config=) class"
    for base in (str, int, float, tuple, list, dict, set, bytes, frozenset, complex):
        if issubclass(kind, base):
            return f"only the exact type comes back exactly: store {base.__name__}(...)"
    return "store plain data that it can be made from again, or make it a Resource"


_HINTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (enum.Enum, "store its .value"),
    ((bytearray, memoryview), "it can change in place: store bytes(...)"),
    (io.IOBase, "store the file's path or its content, or make it a Resource"),
    ((Generator, Iterator), "it can be read once only: store list(...)"),
    ((types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, type),
     "code cannot be kept: store a name, and look it up where it is called"),
    (types.ModuleType, "store its name"),
    (OrderedDict, "store dict(...)"),
    (deque, "store list(...)"),
)  # fmt: skip

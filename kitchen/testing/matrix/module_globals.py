"""Which globals of the user's modules change while a workflow runs.

Rules: those of the modules that its stages, loops and factories stand in: variables, attributes of
classes and of functions. What the caller handed over as an adapter is none. Looking changes nothing;
what cannot be looked into, and remembers something by its nature, is named.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from types import FunctionType, ModuleType
from typing import Any, cast

from kitchen.testing.matrix.contents import contents
from kitchen.workflow.definition import Workflow

_OPAQUE = (threading.local, ContextVar, Iterator)


def globals_of(workflow: Workflow[Any, Any], known: Collection[int]) -> dict[str, str]:
    """What they hold, by name: `COUNT`, `Model.made`, `train.calls`. `known`: ids of no interest."""
    found: dict[str, str] = {}
    for module, name, value in _variables(workflow):
        if id(value) not in known:
            for inner, text in _told(value, module, known):
                found[f"{name}{inner}"] = text
    return found


def opaque(workflow: Workflow[Any, Any]) -> list[str]:
    """The globals that remember something nobody can look at, of those that the functions of the
    workflow name themselves: `CACHE (local)`, `NUMBERS (generator)`."""
    codes = (getattr(each, "__code__", None) for each in workflow.bindings.values())
    used = {name for code in codes if code is not None for name in code.co_names}
    found: dict[str, None] = {}
    for _, name, value in _variables(workflow):
        kind = cast("type[Any]", type(value))
        if name in used and issubclass(kind, _OPAQUE) and not contents(value):
            found[f"{name} ({kind.__name__.lstrip('_')})"] = None
    return list(found)


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The names whose contents differ."""
    return [name for name in before if name in after and before[name] != after[name]]


def _variables(workflow: Workflow[Any, Any]) -> Iterator[tuple[str, str, Any]]:
    """The module, the name and the value of each."""
    for module in _modules(workflow):
        for name, value in list(vars(module).items()):
            if not name.startswith("__") and not isinstance(value, Workflow | ModuleType):
                yield module.__name__, name, value


def _modules(workflow: Workflow[Any, Any]) -> list[ModuleType]:
    names = dict.fromkeys(
        str(getattr(each, "__module__", None) or type(each).__module__)
        for each in workflow.bindings.values()
    )
    return [sys.modules[name] for name in names if name in sys.modules]


def _told(value: Any, module: str, known: Collection[int]) -> Iterator[tuple[str, str]]:
    if isinstance(value, type) and value.__module__ != module:
        return
    if isinstance(value, type | FunctionType):
        for name, each in _held(value):
            if id(each) not in known:
                yield from ((f".{name}{k}", v) for k, v in contents(each, known).items())
    elif hasattr(value, "cache_info"):
        yield ".cache_info()", str(value.cache_info())
    else:
        yield from contents(value, known).items()


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of a class, and of a function those and what it is a closure over."""
    held: dict[str, Any] = {**vars(value)}
    for name, each in held.items():
        if not name.startswith("__") and not callable(each):
            yield name, each
    if isinstance(value, FunctionType):
        nonlocals: Mapping[str, Any] = inspect.getclosurevars(value).nonlocals
        yield from ((name, each) for name, each in nonlocals.items() if not callable(each))

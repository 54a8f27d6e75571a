"""The mistakes that can be told when a workflow is built.

Rules:

1. A mistake is told at the line of the call that made it (`where.fault`), at once if it
   can be known at once.
2. A check returns what it let through, and lets through nothing that would fail or be
   ignored in the middle of a run.
3. What cannot be known (the signature of a built-in) is let through.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from kitchen.workflow.ir import OTHERWISE
from kitchen.workflow.provenance import simple_name
from kitchen.workflow.where import Site, fault

_NAME = re.compile(r"\w[\w.-]*")
_NAMED = {
    "stage": "wf.stage('train', train)",
    "loop": "wf.loop('epochs', over=epochs)",
    "stream_loop": "wf.stream_loop('batches', over=batches)",
    "async_loop": "wf.async_loop('off_policy', producer=collect, stop_when=done)",
    "parallel": "wf.parallel('evals', over=splits)",
    "branch": "wf.branch('validation')",
    "include": "wf.include(evaluation, name='eval')",
    "conditional": "wf.conditional(should_eval, name='evaluation')",
    "resource": "Resource('session', open_session), or wf.resource('session', open_session)",
    "checkpoint": "wf.checkpoint('after_epoch')",
    "timeout": "wf.timeout(3600, name='training')",
    "on_error": "wf.on_error('evaluation_failed')",
    "workflow": "@kitchen.workflow(name='nightly')",
}
_NAMED_BY_KEYWORD = ("conditional", "parallel", "include", "timeout", "on_error")


def name(value: object, what: str, site: Site) -> str:
    """A name that can be a part of a path; of an enum's member, its text. Raises `WorkflowError`."""
    if not isinstance(value, str):
        raise fault(
            site,
            f"the name of {_one(what)} must be a str, not {told(value)}",
            _NAMED[what],
        )
    if value == OTHERWISE:
        raise fault(
            site, f"'{OTHERWISE}' is a reserved name", f"choose another name for the {what}"
        )
    if not _NAME.fullmatch(value):
        raise fault(
            site,
            f"{value!r} cannot be the name of {_one(what)}",
            "use letters, digits, '_', '-' and '.', and begin with a letter, a digit or '_'",
        )
    return str.__str__(value)


def name_of_items(value: object, what: str, site: Site) -> str:
    """A name that ctx.item is given, and that must be said. Raises `WorkflowError`."""
    if value is None:
        raise fault(
            site,
            f"a {what} with over= needs a name: ctx.item(name) is how its items are read",
            _NAMED[what],
        )
    return name(value, what, site)


def unique(wanted: str, what: str, taken: Mapping[str, Site], site: Site) -> None:
    """Whether a name is still free in its block. Raises `WorkflowError`."""
    if wanted in taken:
        named = " with name=" if what in _NAMED_BY_KEYWORD else ""
        line = taken[wanted].seen_from(site)
        raise fault(
            site,
            f"{what} {wanted!r}: the name is taken in this block by {line}",
            f"give one of the two another name{named}",
        )


def predicate(
    value: object, site: Site, what: str = "the predicate of a conditional"
) -> Callable[[Any], Any]:
    """A function that answers yes or no. Raises `WorkflowError`."""
    asked = of_context(value, what, site)
    no_generator(asked, f"{what}, {simple_name(asked)},", "return True or False", site)
    return asked


def over(value: object, what: str, loop: object, site: Site) -> Callable[[Any], Any]:
    """A function that gives a loop its items. Raises `WorkflowError`."""
    what = f"over= of the {what} {loop!r}"
    if not callable(value) and not isinstance(value, str) and hasattr(value, "__iter__"):
        raise fault(
            site,
            f"{what} must be a function of ctx, not {told(value)}",
            "write over=lambda ctx: ..., so that it is asked when the block is entered",
        )
    return of_context(value, what, site)


def factory(value: object, resource: object, site: Site) -> Callable[[Any], Any]:
    """A function that opens a resource. Raises `WorkflowError`."""
    what = f"the factory of the resource {resource!r}"
    found = of_context(value, what, site)
    hint = "put @contextlib.contextmanager (or asynccontextmanager) above it"
    no_generator(found, what, hint, site)
    return found


def body(value: object, stage: str, site: Site) -> Callable[[Any], Any]:
    """A function that can be a stage's work. Raises `WorkflowError`."""
    what = f"the body of the stage {stage!r}"
    found = of_context(value, what, site)
    hint = "a stage is called once and awaited: return instead of yield, or make it a wf.loop"
    no_generator(found, what, hint, site)
    return found


def stateful(value: object, site: Site) -> bool | None:
    """True, False or None. Raises `WorkflowError`."""
    if value is None or isinstance(value, bool):
        return value
    raise fault(
        site,
        f"stateful= must be True, False or None, not {told(value)}",
        "leave it out to let the object decide",
    )


def flag(value: object, keyword: str, site: Site) -> bool:
    """True or False. Raises `WorkflowError`."""
    if isinstance(value, bool):
        return value
    raise fault(site, f"{keyword}= must be True or False, not {told(value)}", f"{keyword}=True")


def declared_type(value: object, keyword: str, site: Site) -> type[Any] | None:
    """The type of a config or a state. Raises `WorkflowError`."""
    if value is None:
        return None
    if isinstance(value, type):
        kind = cast("type[object]", value)
        if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
            return kind
    raise fault(
        site,
        f"{keyword}= must be a msgspec.Struct class or a dataclass, not {told(value)}",
        f"class {keyword.capitalize()}(msgspec.Struct): ...; or leave {keyword}= out for a mapping",
    )


def adapters(value: object, site: Site) -> Callable[..., Any] | None:
    """A provider of adapters, a function of nothing or of the config. Raises `WorkflowError`."""
    if value is None:
        return None
    if not callable(value):
        raise fault(
            site,
            f"adapters= must be a function that makes them, not {told(value)}",
            "def adapters(config): return {...}; it is called anew in every process",
        )
    if not accepts(value, 0) and not accepts(value, 1):
        raise fault(
            site,
            f"adapters= is called with the config or with nothing; {simple_name(value)} "
            f"takes {inspect.signature(value)}",
            "def adapters(config): return {...}",
        )
    return value


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with `count` positional arguments, as far as is known."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def takes_config(provider: Callable[..., Any]) -> bool:
    """Whether a provider of adapters asks for the config: it has to be given something, or
    its first parameter is called `config`."""
    try:
        parameters = list(inspect.signature(provider).parameters.values())
    except (ValueError, TypeError):
        return False
    return bool(parameters) and (not accepts(provider, 0) or parameters[0].name == "config")


def of_context(value: object, what: str, site: Site) -> Callable[[Any], Any]:
    """A function that can be called with ctx alone. Raises `WorkflowError`."""
    if not callable(value):
        what_it_is = told(value)
        if inspect.iscoroutine(value):
            value.close()  # else Python warns later, elsewhere, that it was never awaited
        hint = (
            "pass the function itself, not its name"
            if isinstance(value, str)
            else "pass the function itself, without calling it"
        )
        raise fault(site, f"{what} must be a function of ctx, not {what_it_is}", hint)
    if not accepts(value, 1):
        raise fault(
            site,
            f"{what} is called with ctx alone, but {simple_name(value)} takes "
            f"{inspect.signature(value)}",
            "def f(ctx): ...; functools.partial fixes further arguments",
        )
    return value


def no_generator(function: Callable[..., Any], what: str, hint: str, site: Site) -> None:
    """Refuses what yields where it is called for a value."""
    for called in (function, getattr(function, "__call__", None)):  # noqa: B004 - an object's own
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise fault(site, f"{what} is a generator function, whose body would not run", hint)


def told(value: object) -> str:
    """A value as a message tells it: itself if it is short, else its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        plain = type(value) in (type(None), bool, int, float, str)
        if plain and len(text) <= 40:
            return text
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return _one(f"{module}{kind.__qualname__}")


def _one(what: str) -> str:
    return f"{'an' if what[0] in 'aeiouAEIO' else 'a'} {what}"

"""What may be the arguments of stream_loop, async_loop and parallel, and what a stage writes.

Rules:

1. As in `check`: a check returns what it let through, and raises at the line of the call.
2. A count is an int that the log can hold; True is not 1.
3. A reducer is known by its name, or is a plain function of the value before and the branches'
   values. The built-ins sum, max and min are the reducers of these names.
4. What is let through is in an order that every process agrees on.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from kitchen.workflow import check
from kitchen.workflow.definition import Binding, reducer_key
from kitchen.workflow.ir import Reducer
from kitchen.workflow.provenance import code_ref, simple_name
from kitchen.workflow.where import fault

if TYPE_CHECKING:
    from kitchen.workflow.where import Site

PACINGS = ("paced", "free")
ON_ERROR = ("cancel", "finish")
REDUCERS = ("sum", "extend", "union", "max", "min")
_BUILT_IN: tuple[tuple[object, str], ...] = ((sum, "sum"), (max, "max"), (min, "min"))


def count(value: object, keyword: str, site: Site, least: int = 1) -> int:
    """An int from `least` on. Raises `WorkflowError`."""
    if type(value) is int and least <= value < 2**63:
        return value
    raise fault(
        site,
        f"{keyword}= must be an int of at least {least}, not {check.told(value)}",
        f"{keyword}={max(least, 4)}",
    )


def choice(value: object, known: tuple[str, ...], keyword: str, site: Site) -> str:
    """One of a few words. Raises `WorkflowError`."""
    if isinstance(value, str) and value in known:
        return str.__str__(value)
    near = difflib.get_close_matches(value, known, n=1) if isinstance(value, str) else []
    either = " or ".join(repr(word) for word in known)
    raise fault(
        site,
        f"{keyword}= must be {either}, not {check.told(value)}",
        f"did you mean {near[0]!r}?" if near else f"{keyword}={known[0]!r} is what holds without",
    )


def ahead(buffer_size: object, producers: object, site: Site) -> tuple[int, int]:
    """How many items are made ahead, and by how many producers. Raises `WorkflowError`."""
    size = count(buffer_size, "buffer_size", site)
    makers = count(producers, "producers", site)
    if makers > size:
        raise fault(
            site,
            f"producers={makers}, but buffer_size={size} lets only {size} items be made ahead",
            f"buffer_size={makers}, or fewer producers",
        )
    return size, makers


def producer(value: object, loop: str, site: Site) -> Callable[[Any], Any]:
    """A function that makes one item for an async_loop. Raises `WorkflowError`."""
    what = f"producer= of the async_loop {loop!r}"
    made = check.of_context(value, what, site)
    hint = "it is called anew for every item: return one; what yields items is a wf.stream_loop"
    check.no_generator(made, what, hint, site)
    return made


def limit(value: object, parallel: str, site: Site) -> int | Callable[[Any], Any] | None:
    """How many branches at a time: a number, or what is asked for one. Raises `WorkflowError`."""
    if value is None:
        return None
    if not callable(value):
        return count(value, "max_concurrency", site)
    what = f"max_concurrency= of the parallel {parallel!r}"
    asked = check.of_context(value, what, site)
    check.no_generator(asked, what, "return an int", site)
    return asked


def merge(
    value: object, parallel: str, site: Site
) -> tuple[dict[str, Reducer], dict[str, Binding]]:
    """The reducers by state key, and those that are user code. Raises `WorkflowError`."""
    if value is None:
        return {}, {}
    if not isinstance(value, Mapping):
        raise fault(
            site,
            f"merge= must be a mapping of state keys to reducers, not {check.told(value)}",
            "merge={'losses': 'extend'}",
        )
    reducers: dict[str, Reducer] = {}
    bindings: dict[str, Binding] = {}
    for key, given in cast("Mapping[object, object]", value).items():
        name = _key(key, "merge=", "merge={'losses': 'extend'}", site)
        what = f"merge={{{name!r}: ...}} of the parallel {parallel!r}"
        built_in = next((known for function, known in _BUILT_IN if function is given), None)
        if built_in is not None or isinstance(given, str):
            reducers[name] = Reducer(_known(built_in or given, what, site))
        else:
            code = _reducer(given, what, site)
            reducers[name] = Reducer(simple_name(code), code_ref(code))
            bindings[reducer_key("", name)] = code
    return reducers, bindings


def writes(value: object, stage: str, site: Site) -> tuple[str, ...] | None:
    """The state keys that a stage says it writes, each once. Raises `WorkflowError`."""
    if value is None:
        return None
    what, hint = f"writes= of the stage {stage!r}", "writes=['loss', 'global_step']"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise fault(site, f"{what} must be state keys, not {check.told(value)}", hint)
    given = [_key(key, what, hint, site) for key in cast("Iterable[object]", value)]
    # A set has another order in every process, and the order is part of the fingerprint.
    ordered = sorted(given) if isinstance(value, (set, frozenset)) else given
    return tuple(dict.fromkeys(ordered))


def _key(value: object, what: str, hint: str, site: Site) -> str:
    if type(value) is not str:
        raise fault(site, f"{what} names a state key that is no str: {check.told(value)}", hint)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise fault(site, f"{what} names {value!r}, which JSON cannot hold", hint)
    return value


def _known(value: object, what: str, site: Site) -> str:
    if isinstance(value, str) and value in REDUCERS:
        return value
    near = difflib.get_close_matches(str(value), REDUCERS, n=1)
    known = f"there are {', '.join(REDUCERS)}, and functions of (before, values)"
    raise fault(
        site,
        f"{what}: there is no reducer {value!r}",
        f"did you mean {near[0]!r}?" if near else known,
    )


def _reducer(value: object, what: str, site: Site) -> Callable[..., Any]:
    hint = f"def merged(before, values): ...; or one of {', '.join(REDUCERS)}"
    if not callable(value):
        raise fault(site, f"{what} must be a reducer, not {check.told(value)}", hint)
    if not check.accepts(value, 2):
        raise fault(
            site,
            f"{what} is called with (before, values), but {simple_name(value)} takes "
            f"{inspect.signature(value)}",
            hint,
        )
    check.no_generator(value, what, "return the value that the key has after the join", site)
    for called in (value, getattr(value, "__call__", None)):  # noqa: B004 - an object's own
        if inspect.iscoroutinefunction(called):
            raise fault(site, f"{what} is an async function; a join waits for nothing", hint)
    return value

"""What a stage and a block say of failing: how long they may take, what follows, how they run.

Rules:

1. As in `check`: a check returns what it let through, and raises at the line of the call.
2. What cannot be stopped gets no timeout. A worker thread can be left behind, a worker process can
   be killed; a sync body in the event loop's own thread can only be waited for.
3. What a worker process runs, it has to find by itself: by module and name, so that what it finds
   is what was passed here.
"""

from __future__ import annotations

import inspect
import math
import sys
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from kitchen.workflow import check
from kitchen.workflow.concurrent import choice
from kitchen.workflow.provenance import simple_name
from kitchen.workflow.retry import as_float
from kitchen.workflow.stage import Stage
from kitchen.workflow.where import fault

if TYPE_CHECKING:
    from kitchen.workflow.definition import Binding
    from kitchen.workflow.where import Site

EFFECTS = ("repeatable", "once")
ON_ERROR = ("fail", "skip")


def terms(
    body: Binding,
    stage: str,
    site: Site,
    *,
    timeout: object,
    effect: object,
    thread: bool,
    process: object,
    on_error: object,
) -> dict[str, Any]:
    """The fields of a stage's node that these arguments are. Raises `WorkflowError`."""
    worker = check.flag(process, "process", site)
    if worker:
        _refuse_process(body, stage, thread, site)
    limit = None if timeout is None else seconds(timeout, "timeout=", "timeout=600", site)
    if limit is not None and not thread and not _is_async(body):
        raise fault(
            site,
            f"timeout= of the stage {stage!r}: its body is sync and has thread=False, so it runs "
            "in the thread of the event loop, where nothing could stop it",
            "leave thread=False out, or make the body async",
        )
    return {
        "timeout": limit,
        "effect": choice(effect, EFFECTS, "effect", site),
        "process": worker,
        "on_error": choice(on_error, ON_ERROR, "on_error", site),
        "rollback": isinstance(body, Stage) and _overrides(body, "rollback"),
    }


def seconds(value: object, what: str, example: str, site: Site) -> float:
    """A finite time above 0; a timedelta is one too. Raises `WorkflowError`."""
    given = value.total_seconds() if isinstance(value, timedelta) else value
    if type(given) in (int, float):
        found = as_float(cast("float", given))
        if math.isfinite(found) and found > 0:
            return found
    told = f"timedelta {value}" if isinstance(value, timedelta) else check.told(value)
    raise fault(site, f"{what} must be a number of seconds above 0, not {told}", example)


def hooks(stage: Stage, name: str, site: Site) -> None:
    """Refuses a `Stage` whose hooks could not be called. Raises `WorkflowError`."""
    for hook, count, wanted in (
        ("validate", 1, "def validate(self, ctx): ..."),
        ("rollback", 2, "async def rollback(self, ctx, error): ..."),
    ):
        if not _overrides(stage, hook):
            continue
        what = f"{hook} of the stage {name!r}"
        function: Any = getattr(stage, hook)
        if not callable(function):
            raise fault(site, f"{what} must be a method, not {check.told(function)}", wanted)
        if not check.accepts(function, count):
            given = "ctx alone" if count == 1 else "(ctx, error)"
            takes = inspect.signature(function)
            message = f"{what} is called with {given}, but {simple_name(function)} takes {takes}"
            raise fault(site, message, wanted)
        check.no_generator(function, what, "a hook is called once: leave the yield out", site)


def _overrides(stage: Stage, hook: str) -> bool:
    """Whether a stage has this hook of its own: by its class, or set on the instance."""
    return getattr(getattr(stage, hook), "__func__", None) is not getattr(Stage, hook)


def _is_async(body: Binding) -> bool:
    called: Any = body.execute if isinstance(body, Stage) else body
    while isinstance(called, partial):
        called = cast("partial[Any]", called).func
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(
        getattr(called, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


def _refuse_process(body: Binding, stage: str, thread: bool, site: Site) -> None:
    if not thread:
        raise fault(
            site,
            f"the stage {stage!r} says process=True and thread=False: a worker process, and the "
            "thread of the event loop",
            "leave thread=False out",
        )
    problem = _not_importable(body)
    if problem:
        raise fault(
            site,
            f"the body of the stage {stage!r} with process=True is {problem}; a worker process "
            "has to import it",
            "def f(ctx): ... at the top level of a module; what it needs are ctx.options, "
            "ctx.config and ctx.state",
        )


def _not_importable(body: Binding) -> str | None:
    """Why a worker process could not find this; None if it could."""
    if isinstance(body, Stage):
        return f"the stage class {type(body).__name__}"
    if isinstance(body, partial):
        return "a functools.partial"
    if _is_async(body):
        return "an async function"
    if inspect.ismethod(body):
        return f"the bound method {body.__qualname__}"
    if not inspect.isroutine(body):
        return check.told(body)
    if "<lambda>" in body.__qualname__:
        return "a lambda"
    if "<locals>" in body.__qualname__:
        return f"{body.__qualname__}, a function made inside another"
    return None if _found(body) is body else f"not what {_told(body)} is there"


def _found(body: Any) -> object:
    """What an import of the body's module and name gives, without importing anything anew."""
    found: object = sys.modules.get(body.__module__ or "")
    for name in body.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


def _told(body: Any) -> str:
    return f"{body.__module__}:{body.__qualname__}"

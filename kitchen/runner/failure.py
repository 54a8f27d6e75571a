"""Failures as text: what an exception was, without keeping the exception. And cancellations that
are none: what user code leaves behind of its own.

Rules: frames of kitchen and of the event loop are left out, files in the project are named
relative to the current folder, chained causes and groups are kept, and nothing is pickled. Secrets
that this process knows are replaced in all of the text.
"""

from __future__ import annotations

import asyncio
import math
import os
import traceback
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import anyio

from kitchen.errors import KitchenError
from kitchen.machine.events import Failure
from kitchen.runner.secret import redacted

_OURS = str(Path(__file__).resolve().parent.parent) + os.sep
_ANYIO = str(Path(anyio.__file__).resolve().parent) + os.sep
_LIMIT = 16_000


def describe(error: BaseException) -> Failure:
    """The exception as a `Failure`."""
    told = traceback.TracebackException.from_exception(error)
    _clean(told)
    text = _told("".join(told.format()))
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    if isinstance(error, KitchenError):
        name, hint = name.removeprefix("kitchen.errors."), _told(error.hint or "")
        return Failure(name, _told(error.message), text, hint)
    return Failure(name, _told(_message(error)), text)


def _told(text: str) -> str:
    """A text as a log can hold it: without secrets, of valid Unicode, and not too long."""
    text = redacted(text)  # before it is cut: half a secret is not found
    text = text.encode("utf-8", "backslashreplace").decode()  # a file's name, say
    if len(text) > _LIMIT:
        left = f"… {len(text) - _LIMIT} characters left out …"
        text = f"{text[: _LIMIT // 2]}\n{left}\n{text[-_LIMIT // 2 :]}"
    return text


def _message(error: BaseException) -> str:
    """What it says; an exception of the user's may fail at that too."""
    try:
        return str(error)
    except Exception as fault:
        return f"(its text cannot be had: {type(fault).__name__})"


def being_cancelled() -> bool:
    """Whether the current task, on whatever event loop, has been asked to stop."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:  # another event loop than asyncio's
        return False
    return task is not None and task.cancelling() > 0


def ends_process(error: BaseException) -> bool:
    """Whether it is neither an error nor a cancellation, but the end: `SystemExit`, Ctrl-C."""
    return not isinstance(error, (Exception, anyio.get_cancelled_exc_class()))


async def balanced(work: Awaitable[Any]) -> Any:
    """Await user code; what it left of its own cancellations is taken back.

    Python 3.11's `asyncio.TaskGroup` cancels its parent task when a child fails while it is left,
    and does not say that this is over; the next cancel scope would take it for a cancellation.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # another event loop than asyncio's
        return await work
    before = task.cancelling() if task is not None else 0
    cancelled = False
    try:
        return await work
    except asyncio.CancelledError:
        cancelled = True
        raise
    finally:
        while task is not None and not cancelled and task.cancelling() > before:
            task.uncancel()


def _clean(told: traceback.TracebackException) -> None:
    here = os.getcwd() + os.sep
    frames = [f for f in told.stack if not f.filename.startswith((_OURS, _ANYIO))]
    for frame in frames:
        frame.filename = frame.filename.removeprefix(here)
    told.stack = traceback.StackSummary.from_list(frames)
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            _clean(other)

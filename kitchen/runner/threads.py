"""Threads that nobody has to wait for.

Rule: a producer or a source that never returns must keep neither the run from ending nor the
process from exiting. So it gets a daemon thread of its own; the event loop's worker threads are
joined when the interpreter exits.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")

Wake: TypeAlias = Callable[[Callable[[], None]], Any]


async def in_own_thread(work: Callable[[], T]) -> T:
    """Do the work in a thread of its own, which is left behind if this is cancelled."""
    done, wake = anyio.Event(), waker()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
                wake(done.set)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True, name="kitchen").start()
    await done.wait()
    if errors:
        raise errors[0]
    return results[0]


def waker() -> Wake:
    """What has a call made by this event loop soon, from another thread, and does not wait."""
    token: Any = anyio.lowlevel.current_token()
    native = getattr(token, "native_token", token)  # anyio before 4.11 gives the native one
    return getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon

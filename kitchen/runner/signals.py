"""Ctrl-C, SIGTERM and SIGUSR1: asking a run to stop, or to save what it has.

Rules: the first SIGINT or SIGTERM asks the run to stop at the next boundary, within the grace period,
the second ends it; SIGUSR1, the warning of a batch system, asks for a checkpoint, and the run goes
on. Only the main thread of the main interpreter can listen; elsewhere the host's own handling
stays. The handlers are the interpreter's and not the event loop's, so that the second signal is
heard while a stage keeps the loop busy; the host's are put back afterwards. Ending at once is
safe, whatever was going on: the log is what counts.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from kitchen.runner.loop import Execution

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def can_listen() -> bool:
    """Whether this thread can handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def listening(execution: Execution, *, quiet: bool = False) -> Generator[None]:
    """Handle signals while inside."""
    requests = execution.requests

    def say(text: str) -> None:
        if not quiet:  # not through sys.stderr: a handler may interrupt a write to it
            with suppress(OSError):
                os.write(2, f"\n{text}\n".encode())

    def heard(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if requests.signal is not None:
            say(f"{name}: ended at once")
            os._exit(EXIT_CODES[name])
        requests.signal = name
        finite = 0 < requests.grace < math.inf
        wait = f" (for {requests.grace:g} s at most)" if finite else ""
        say(f"{name}: stopping after the running stage{wait}; once more to end at once")

    def warned(_number: int, _frame: object) -> None:
        requests.checkpoint = True
        say("SIGUSR1: saving a checkpoint as soon as nothing runs, then going on")

    handlers = {signal.SIGINT: heard, signal.SIGTERM: heard, signal.SIGUSR1: warned}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

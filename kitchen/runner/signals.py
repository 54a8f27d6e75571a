"""Ctrl-C and SIGTERM: the first asks the run to stop at the next boundary, the second ends it.

Rules: only the main thread of the main interpreter can listen; elsewhere the host's own handling
stays. The handlers are the interpreter's and not the event loop's, so that the second signal is
heard while a stage keeps the loop busy; the host's are put back afterwards. Ending at once is
safe, whatever was going on: the log is what counts.
"""

from __future__ import annotations

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

    def heard(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if execution.stop_signal is not None:
            if not quiet:
                with suppress(OSError):
                    os.write(2, f"\n{name}: ended at once\n".encode())
            os._exit(EXIT_CODES[name])
        execution.stop_signal = name
        if not quiet:  # not through sys.stderr: a handler may interrupt a write to it
            told = f"\n{name}: stopping after the running stage; once more to end at once\n"
            with suppress(OSError):
                os.write(2, told.encode())

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

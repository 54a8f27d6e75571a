"""Ctrl-C and SIGTERM: the first asks the run to stop at the next boundary, the second ends it.

Rules: only the main thread of the main interpreter can listen; elsewhere the host's own handling
stays. Ending at once is safe, whatever was going on: the log is what counts.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import anyio

from kitchen.runner.loop import Execution

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def can_listen() -> bool:
    """Whether this thread can handle signals."""
    return threading.current_thread() is threading.main_thread()


async def listen(execution: Execution, *, quiet: bool = False) -> None:
    """Handle signals until cancelled."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async for number in received:
            name = signal.Signals(number).name
            if execution.stop_signal is not None:
                os._exit(EXIT_CODES[name])
            execution.stop_signal = name
            if not quiet:
                sys.stderr.write(
                    f"\n{name}: stopping after the running stage; once more to end at once\n"
                )
                sys.stderr.flush()

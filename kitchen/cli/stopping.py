"""That a run was asked to stop, or to save, as the live display shows it.

Rules:

1. The runner's own signal handlers do the work. This stands before them, notes what came and when,
   and hands it on; when the runner puts the host's handlers back, it is gone with them.
2. What a signal handler may do is little: nothing is drawn here. Only the end at once is written,
   since nothing is drawn after it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from kitchen.cli import render

_SHOWN = 10.0  # seconds: where nothing has changed, nothing is saved, and nothing says so


class Asked:
    """What was asked of a run by signals. `grace`: how many seconds what runs may take to end."""

    def __init__(self, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._listening = False
        self._signal: str | None = None
        self._since = 0.0
        self._saving: float | None = None

    def listen(self) -> None:
        """Stand before the handlers that are there; once, and in the main thread only."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            return
        self._listening = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            before = signal.getsignal(number)
            if callable(before):
                signal.signal(number, self._before(before))

    def saved(self) -> None:
        """What was asked for is saved."""
        self._saving = None

    @property
    def told(self) -> str | None:
        """What the display says of it, now."""
        if self._signal is not None:
            left = self._grace - (self._clock() - self._since)
            wait = f" (for {render.seconds(left)} at most)" if left > 0 else ""
            told = f"{self._signal}: stopping after the running stage{wait}"
            if left <= 0:
                told = f"{self._signal}: the grace period is over, what runs is being stopped"
            return f"{told}; once more to end at once"
        if self._saving is not None and self._clock() - self._saving < _SHOWN:
            return "SIGUSR1: saving what has changed as soon as nothing runs, then going on"
        return None

    def _before(self, handler: Callable[[int, FrameType | None], Any]) -> Callable[..., None]:
        def heard(number: int, frame: FrameType | None) -> None:
            name = signal.Signals(number).name
            if number == signal.SIGUSR1:
                self._saving = self._clock()
            elif self._signal is None:
                self._signal, self._since = name, self._clock()
            else:
                with suppress(OSError):  # not through sys.stderr, which it may have interrupted
                    os.write(2, f"\n{name}: ended at once\n".encode())
            handler(number, frame)

        return heard

"""What is printed and logged in a worker process, on its way to the run's.

Rules:

1. What is written to `sys.stdout` and `sys.stderr` is sent line by line and written to what these
   are in the run's process. Native code and child processes write where the run's process does.
2. Log records are handled by the loggers of the run's process: the handlers that a user's module
   has set up while it was imported here are taken away.
3. A process that was forked from a worker writes to the files behind the streams.
"""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import sys
from typing import Any, Protocol


class Sender(Protocol):
    """What sends messages to the run's process. `open`: whether it still does."""

    open: bool

    def tell(self, *message: Any) -> None:
        """Send one. Raises what pickling raises."""


def send_prints(channel: Sender) -> None:
    """Have what is printed sent to the run's process."""
    sys.stdout = _stream("stdout", 1, channel)
    sys.stderr = _stream("stderr", 2, channel)


def _stream(name: str, number: int, channel: Sender) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Raw(name, number, channel))
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)


class _Raw(io.RawIOBase):
    """A stream to the run's process; in a forked process, to the file that is behind it."""

    def __init__(self, name: str, number: int, channel: Sender) -> None:
        self.name = name
        self._number = number
        self._channel = channel

    def write(self, data: Any, /) -> int:
        if not self._channel.open:
            return os.write(self._number, data)
        text = bytes(data)
        self._channel.tell("text", self.name, text)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)


class _Handler(logging.handlers.QueueHandler):
    """Sends records on; what is in them is text by then."""

    def __init__(self, channel: Sender) -> None:
        super().__init__(channel)  # type: ignore[arg-type]
        self._channel = channel

    def enqueue(self, record: logging.LogRecord) -> None:
        if not self._channel.open:
            if logging.lastResort is not None:
                logging.lastResort.handle(record)
            return
        try:
            self._channel.tell("record", record.__dict__)
        except Exception:  # something of the user's in `extra` that does not pickle
            plain = {key: _plain(value) for key, value in record.__dict__.items()}
            self._channel.tell("record", plain)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else repr(value)


def send_records(channel: Sender, levels: dict[str, int]) -> None:
    """Once the user's modules are imported, which may have set up logging: leave it to the run."""
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.root.handlers[:] = [_Handler(channel)]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)

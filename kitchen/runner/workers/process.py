"""One worker process, and the talk with it, as the run's process has it.

Rules:

1. The thread that starts a worker talks with it until it is gone: Linux kills a worker when that
   thread ends, and so when the run's process does.
2. A worker that dies by itself is a `WorkerLost`, which says how it ended. Its death is noticed also
   where what it has started holds its files open.
3. It has a process group of its own: what is killed is all of it, and Ctrl-C in a terminal reaches
   the run alone, which decides.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from msgspec import Raw

from kitchen.errors import KitchenError, StaleContext, WorkerLost
from kitchen.machine.events import MetricRecorded
from kitchen.runner.attempt import Attempt
from kitchen.runner.scope import Scope
from kitchen.runner.workers.messages import CLOSED, Reply

_BOOT = """\
import pickle, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
parent = int(sys.argv[2])
sys.path[:], sys.argv[:] = pickle.loads(connection.recv_bytes())
from kitchen.runner.workers.side import main
main(connection, parent)
"""
LAST_SECONDS = 10.0  # for a process that was killed, or has closed its connection, to be gone
_CLOSED_HINT = "does the stage, or a library, close files that it has not opened?"


class Worker:
    """One worker process, and the talk with it. `gone` is set when nothing is left of it."""

    def __init__(self, scope: Scope, attempt: Attempt, fill: Callable[[], bytes]) -> None:
        self.gone = threading.Event()
        self._scope = scope
        self._attempt = attempt
        self._fill = fill
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        new = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: new("replace") for name in ("stdout", "stderr")}

    def kill(self) -> None:
        """End it now, with all that it has started; it need not have begun."""
        with self._lock:
            self._killed = True
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def serve(self) -> Reply:
        """Start it, and talk with it until it has answered. Raises `WorkerLost`."""
        try:
            text = self._fill()
            ours, theirs = Pipe()
            with ours:
                process = self._start(theirs)
                try:
                    reply = self._talk(ours, process, text)
                except Exception:
                    self.kill()
                    raise
                finally:
                    process.wait()
            return reply
        finally:
            self.gone.set()

    def _start(self, theirs: Connection[Any, Any]) -> subprocess.Popen[bytes]:
        optimised = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
        warned = [f"-W{each}" for each in sys.warnoptions]
        handle = theirs.fileno()
        command = [sys.executable, "-P", *optimised, *warned, "-c", _BOOT, str(handle)]
        with theirs, self._lock:
            if self._killed:
                raise self._lost("was cancelled before it had begun")
            try:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(handle,),
                    process_group=0,  # so that all of it can be killed, and Ctrl-C is the run's
                )
            except OSError as error:
                raise self._lost(f"could not be started: {error}") from error
            return self._process

    def _talk(
        self, ours: Connection[Any, Any], process: subprocess.Popen[bytes], text: bytes
    ) -> Reply:
        with _death_of(process) as death:
            try:
                ours.send_bytes(pickle.dumps((sys.path, sys.argv)))
                ours.send_bytes(text)
                while True:
                    kind, *told = _next(ours, death)
                    if kind == "reply":
                        return told[0]
                    if kind == "blob":
                        ours.send(self._blob(*told))
                    else:
                        self._take(kind, told)
            except (EOFError, OSError) as error:
                raise self._ended(process) from (None if isinstance(error, EOFError) else error)

    def _blob(self, digest: str) -> Any:
        try:
            return self._scope.journal.fetch(digest)
        except KitchenError as error:
            return error

    def _take(self, kind: str, told: list[Any]) -> None:
        match kind:
            case "metric":
                name, value, step = told
                self._attempt.metrics.append(MetricRecorded(name, Raw(value), step))
            case "progress":
                with contextlib.suppress(StaleContext):
                    self._attempt.check_live()
                    if self._scope.on_progress is not None:
                        self._scope.on_progress(self._attempt.address, *told)
            case "text":
                name, text = told
                stream: Any = getattr(sys, name)
                with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
                    stream.write(self._decoders[name].decode(text))
                    stream.flush()
            case _:
                record = logging.makeLogRecord(told[0])
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)

    def _ended(self, process: subprocess.Popen[bytes]) -> WorkerLost:
        """Why there is no answer."""
        try:
            code = process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return self._lost("has closed its connection", _CLOSED_HINT)
        if code == CLOSED:
            return self._lost("has closed its connection", _CLOSED_HINT)
        if code >= 0:
            hint = "does the stage, or a library, call os._exit()? stderr may say more"
            return self._lost(f"ended with code {code} before it had answered", hint)
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = (
            "out of memory? the kernel's log (dmesg) says so"
            if name == "SIGKILL"
            else "native code crashed? PYTHONFAULTHANDLER=1 in the environment shows where"
        )
        return self._lost(f"was killed by {name}", hint)

    def _lost(self, what: str, hint: str | None = None) -> WorkerLost:
        return WorkerLost(f"the worker process of {self._attempt.address} {what}", hint=hint)


def _next(ours: Connection[Any, Any], death: list[int]) -> tuple[Any, ...]:
    """The next message. Raises `EOFError` where there will be none."""
    if death and ours not in wait([ours, *death]):
        raise EOFError
    return ours.recv()


@contextlib.contextmanager
def _death_of(process: subprocess.Popen[bytes]) -> Generator[list[int]]:
    """What becomes readable when the process dies, where the system has such a thing."""
    open_it = getattr(os, "pidfd_open", None)
    try:
        handle = None if open_it is None else cast("int", open_it(process.pid))
    except OSError:  # an old kernel, or a sandbox
        handle = None
    try:
        yield [] if handle is None else [handle]
    finally:
        if handle is not None:
            os.close(handle)

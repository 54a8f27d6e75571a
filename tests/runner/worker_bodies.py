"""Bodies of stages for worker processes, which find them here by name.

Rules: nothing here imports pytest, so that a worker starts quickly.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import sniffio

from kitchen import Stage
from kitchen.runner.secret import Secret

MARK = {"calls": 0}


class Point(msgspec.Struct):
    x: int
    y: int = 0


class State(msgspec.Struct):
    total: int = 0
    losses: list[float] = []
    best: dict[str, float] = {}
    point: Point = msgspec.field(default_factory=lambda: Point(1))
    weights: Any = None


class Config(msgspec.Struct):
    rate: float = 0.5
    names: list[str] = []
    key: Secret | None = None


def work(ctx: Any) -> None:
    """A bit of everything."""
    ctx.state.total += 2
    ctx.append("losses", ctx.config.rate)
    ctx.extend("losses", [float("inf"), float("nan")])
    ctx.merge("best", {"loss": 0.25})
    ctx.increment("total")
    ctx.state.point.x = 7
    ctx.record_metric("loss", np.float32(0.5), step=3)
    ctx.record_metrics({"a": 1, "b": 2.5})
    ctx.progress(1, 2)


def seen(ctx: Any) -> None:
    """What a stage can see of where it is, put into the state."""
    ctx.state["seen"] = {
        "item": ctx.item("epochs"),
        "index": ctx.index("epochs"),
        "variable": ctx.state["epochs_current"],
        "options": ctx.options.scale,
        "rate": ctx.config.rate,
        "run": (ctx.run_id, ctx.path, ctx.visit, ctx.attempt, ctx.incarnation),
        "key": ctx.idempotency_key,
        "logger": ctx.logger.name,
        "seed": ctx.seed,
        "rng": ctx.rng.random(),
        "numpy": ctx.numpy_rng().random(),
        "keys": list(ctx.state),
        "repr": repr(ctx),
    }
    ctx.stop_loop()


def refused(ctx: Any) -> None:
    """Everything that is not to be had, by the text of its refusal."""
    found: dict[str, str] = {}
    attempts: dict[str, Any] = {
        "adapters": lambda: ctx.adapters["x"],
        "resources": lambda: ctx.resources["x"],
        "peek": lambda: ctx.resources.peek("x"),
        "unknown": lambda: ctx.state["nothing"],
        "loop": ctx.item,
        "frozen": lambda: ctx.state["list"].append(1),
        "option": lambda: ctx.options.nothing,
        "writes": lambda: ctx.write_state("other", 1),
        "unencodable": lambda: ctx.write_state("found", lambda: 1),
        "stop": ctx.stop_loop,
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    ctx.state["found"] = found


async def asynchronous(ctx: Any) -> None:
    await anyio.lowlevel.checkpoint()
    ctx.state["library"] = sniffio.current_async_library()


class Adding(Stage):
    def __init__(self, by: int) -> None:
        self.by = by

    def execute(self, ctx: Any) -> None:
        ctx.state["sum"] = self.by


def plus(by: int, ctx: Any) -> None:
    ctx.state["sum"] = by


def blobs(ctx: Any) -> None:
    ctx.state["out"] = ctx.state["in"] * 2


def global_numbers(ctx: Any) -> None:
    import random

    ctx.state["numbers"] = [random.random(), float(np.random.random())]


def counts_calls(ctx: Any) -> None:
    MARK["calls"] += 1
    ctx.state["calls"] = MARK["calls"]


def secret(ctx: Any) -> None:
    ctx.state["length"] = len(ctx.config.key.reveal())
    raise ValueError(f"refused: {ctx.config.key.reveal()}")


def changes_config(ctx: Any) -> None:
    ctx.config.names.append("b")


# --- failures -------------------------------------------------------------------------------------


class Own(Exception):
    """One that pickles, with what it has."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Stubborn(Exception):
    """One that does not come back from a pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fails(ctx: Any) -> None:
    ctx.state["half"] = 1
    ctx.record_metric("before", 1)
    try:
        {}["missing"]
    except KeyError as error:
        raise Own(7) from error


def fails_stubbornly(ctx: Any) -> None:
    raise Stubborn(1, 2)


def fails_over_something_stubborn(ctx: Any) -> None:
    raise ValueError("outer") from Stubborn(1, 2)


def exits(ctx: Any) -> None:
    sys.exit(3)


def dies(ctx: Any) -> None:
    ctx.record_metric("before", 1)
    print("last words")
    os._exit(5)


def is_killed(ctx: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_while_a_child_lives(ctx: Any) -> None:
    """Its child was forked past Python, so that it has all files."""
    import ctypes

    if ctypes.CDLL(None).fork() == 0:
        signal.alarm(20)  # nobody else ends it
        signal.pause()
    os._exit(6)


def _files() -> list[int]:
    """What is open beside the standard streams, whatever its numbers."""
    open_now = [int(name) for name in os.listdir("/dev/fd") if int(name) > 2]
    return [number for number in open_now if os.path.exists(f"/dev/fd/{number}")]


def closes_everything(ctx: Any) -> None:
    for number in _files():
        os.close(number)


def goes_silent(ctx: Any) -> None:
    """Ends all sockets in one direction, and stays."""
    for number in _files():
        try:
            socket.socket(fileno=os.dup(number)).shutdown(socket.SHUT_WR)
        except OSError:
            continue
    signal.pause()


def signals_itself(ctx: Any) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), each)
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    child.terminate()
    ctx.state["child"] = child.wait(30)


def leaves_a_thread(ctx: Any) -> None:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    ctx.state["left"] = True


# --- what is written ------------------------------------------------------------------------------


def talks(ctx: Any) -> None:
    print("printed: grüße")
    print("to stderr", file=sys.stderr)
    sys.stdout.buffer.write(b"by bytes\n")
    sys.stdout.flush()
    ctx.logger.warning("logged %s", 1)
    logging.getLogger("elsewhere").info("quiet")
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("elsewhere").exception("trouble", extra={"thing": lambda: 1})
    warnings.warn("warned", stacklevel=1)


def writes_garbage(ctx: Any) -> None:
    os.write(1, b"\x80\x04garbage\n" * 10)
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    pid = os.fork()
    if pid == 0:
        print("from a fork")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    ctx.state["fine"] = True


def waits(ctx: Any) -> None:
    """Says who it is, and who its child is, then is there for ever."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    ctx.progress(os.getpid(), child.pid)
    signal.pause()


def waits_in_a_file(ctx: Any) -> None:
    Path(ctx.options["file"]).write_text(f"{os.getpid()}\n")
    signal.pause()

"""A folder with a workflow in it, and `kitchen` called there.

Rules: what can be called in this process is, through click's runner; real processes are started
only where one must be killed, piped or given a terminal. Nothing sleeps to wait: `until` looks
again and again, with a deadline.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from kitchen.cli import cli

DEADLINE = 30.0

WORKFLOW = """
import os
import time
from typing import Any

import msgspec

import kitchen
from kitchen import Resource


class Model(msgspec.Struct, frozen=True):
    width: int = 8


class Config(msgspec.Struct):
    epochs: int = 2
    batches: int = 3
    rate: float = 0.1
    fail_at: int = -1
    names: list[str] = []
    label: str | None = None
    model: Model = Model()


class Net:
    def __init__(self):
        self.weight = 0.0

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, saved):
        self.weight = saved["weight"]


NET = Resource("net", lambda ctx: Net())


def step(ctx):
    net = ctx.resources[NET]
    n = ctx.state.get("n", 0) + 1
    if n - 1 == ctx.config.fail_at and not os.path.exists("mended"):
        raise ValueError("the loss is gone")
    if os.path.exists("slow"):
        time.sleep(0.02)
    net.weight += ctx.config.rate * ctx.rng.random()
    ctx.progress(1, 2)
    ctx.state["n"] = n
    ctx.state["raw"] = b"\\x00\\xff"
    ctx.record_metric("loss", net.weight, step=n)


@kitchen.workflow(config=Config)
def training(wf):
    wf.resource(NET)
    with wf.loop("epochs", over=lambda ctx: range(ctx.config.epochs)):
        with wf.loop("batches", over=lambda ctx: range(ctx.config.batches)):
            wf.stage("step", step)
        wf.checkpoint("save")


def look(ctx):
    ctx.state["config"] = [ctx.config.a, ctx.config.b.c, ctx.config.d]


@kitchen.workflow
def untyped(wf):
    wf.stage("look", look)
"""

_names = itertools.count()


class Kitchen:
    """`kitchen`, called in a folder of its own whose module `self.module` has workflows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = f"job_{os.getpid()}_{next(_names)}"
        self.target = f"{self.module}:training"
        (folder / f"{self.module}.py").write_text(WORKFLOW)

    def __call__(self, *words: str, code: int = 0, input: str | None = None) -> Result:  # noqa: A002
        """Call it in this process; the exit code must be `code`, and no traceback be seen."""
        result = CliRunner().invoke(cli, list(words), input=input, prog_name="kitchen")
        assert result.exit_code == code, f"{words}: {result.output}\n{result.exception!r}"
        assert "Traceback" not in result.stderr
        return result

    def json(self, *words: str) -> Any:
        """What a command prints with `--json`."""
        return msgspec.json.decode(self(*words, "--json").stdout)

    def variant(self, *changes: tuple[str, str]) -> str:
        """Another module with the same workflows, but for these changes; its `training`."""
        text = WORKFLOW
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        module = f"job_{os.getpid()}_{next(_names)}"
        (self.folder / f"{module}.py").write_text(text)
        return f"{module}:training"

    def forget(self) -> None:
        """The user's code is gone."""
        (self.folder / f"{self.module}.py").unlink()
        sys.modules.pop(self.module, None)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start it as a process of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [sys.executable, "-m", "kitchen", *words]
        return subprocess.Popen(command, cwd=self.folder, **options)

    def slow_run(self, run: str) -> subprocess.Popen[str]:
        """A process that executes a run, caught in the middle of its second epoch."""
        (self.folder / "slow").touch()
        process = self.start("run", self.target, "epochs=4", "batches=20", "--id", run)
        until(lambda: self.head(run) > 150)
        return process

    def head(self, run: str) -> int:
        """How many events a run has; 0 while it is not there."""
        if not (self.folder / "kitchen.db").exists():
            return 0
        result = CliRunner().invoke(cli, ["runs", "--json"])
        if result.exit_code != 0:
            return 0  # the file is just being made
        return next((r["events"] for r in msgspec.json.decode(result.stdout) if r["id"] == run), 0)

    def outcome(self, run: str) -> tuple[Any, Any]:
        """What must not depend on whether a run was killed: its state and its metrics."""
        return self.json("state", run), self.json("show", run)["metrics"]


def until(fulfilled: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    deadline = time.monotonic() + DEADLINE
    while not fulfilled():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE)

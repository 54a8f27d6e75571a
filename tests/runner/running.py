"""What the runner's tests share: small workflows, a stateful box, a look into the log.

A process that dies is a `Killed` raised by user code: it is no `Exception`, so the runner records
nothing of it, and what the log then holds is what a SIGKILL would have left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

import kitchen
from kitchen import Workflow, WorkflowBuilder
from kitchen.history.history import History, Recorded
from store import MemoryStore

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """Called again and again, it dies at the calls that were named (the first is 0)."""

    def __init__(self, *at: int) -> None:
        self.at = set(at)
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls - 1 in self.at:
            raise Killed


class Box:
    """A stateful thing: a number, and how often it was changed."""

    def __init__(self, value: float = 0) -> None:
        self.value = value
        self.changes = 0

    def add(self, by: float = 1) -> float:
        self.value = self.value * 0.5 + by
        self.changes += 1
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "changes": self.changes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.changes = state["value"], state["changes"]


def flow(build: Callable[[WorkflowBuilder], Any], **declared: Any) -> Workflow[Any, Any]:
    """A workflow named `w`."""

    def author(wf: WorkflowBuilder) -> None:
        build(wf)

    return kitchen.workflow(name="w", **declared)(author)


def single(body: Any, *, options: Any = None, thread: bool = True, **declared: Any) -> Any:
    """A workflow of the one stage `s`."""
    return flow(lambda wf: wf.stage("s", body, options=options, thread=thread), **declared)


def done(workflow: Any, config: Any = None, *, store: Any = None, **given: Any) -> Any:
    """Run it, as the run `r`."""
    return kitchen.run(
        workflow, config, store=MemoryStore() if store is None else store, run_id="r", **given
    )


async def done_async(workflow: Any, config: Any = None, *, store: Any = None, **given: Any) -> Any:
    """The same, on the event loop of the test."""
    return await kitchen.run_async(
        workflow, config, store=MemoryStore() if store is None else store, run_id="r", **given
    )


def failure(workflow: Any, config: Any = None, **given: Any) -> Any:
    """What a run failed with: the `Failure`, as it is in the log."""
    try:
        done(workflow, config, **given)
    except kitchen.RunError as error:
        return error.run.failure
    raise AssertionError("the run did not fail")


def log(store: Any, run: str = "r") -> list[Recorded]:
    return History(store, run).events


def types(store: Any, run: str = "r") -> list[str]:
    return [record.type for record in log(store, run)]


def of_type(store: Any, *names: str, run: str = "r") -> list[Recorded]:
    return [record for record in log(store, run) if record.type in names]


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Let the others work until it holds."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.lowlevel.checkpoint()


def script(folder: Path, text: str, name: str = "script.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def python(
    arguments: Sequence[Any], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A Python process in a folder, whose pipes are ours."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, arguments)],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})},
    )

"""What the tests of the machine's faults share: a workflow that writes all that a store can hold,
a look at what a run came to, small disks, and child processes.

Rules: `HOOK` is called in the middle of every step, by user code, so that a fault comes at a known
place of a run. A mount goes with its test; where none can be made, the test is skipped and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

import kitchen
from kitchen import Context, WorkflowBuilder
from kitchen.adapters.event_store import opened
from kitchen.history.history import History
from kitchen.machine.events import to_json
from tests.runner.running import python

HOOK: list[Callable[[Any], None]] = []


class Config(msgspec.Struct):
    epochs: int = 4


class Model:
    """Weights of 96 kB: a checkpoint of it is a blob."""

    def __init__(self, rng: Any) -> None:
        self.weights = rng.random(12_000)
        self.steps = 0

    def update(self, rng: Any) -> float:
        self.weights = self.weights * 0.99 + rng.normal(size=12_000)
        self.steps += 1
        return float(self.weights.sum())

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.weights.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.weights = state["steps"], state["weights"].copy()


def begin(ctx: Context) -> None:
    ctx.state.update(losses=[], steps=0, names={}, table=bytes(range(256)) * 400, word="é∂ text")


def train(ctx: Context) -> None:
    loss = ctx.resources["model"].update(ctx.numpy_rng())
    ctx.append("losses", loss)
    ctx.increment("steps")
    ctx.merge("names", {f"b{ctx.state['steps']}": ctx.index()})
    ctx.record_metric("loss", loss, step=ctx.state["steps"])
    for hook in HOOK:
        hook(ctx)


def grow(ctx: Context) -> None:
    """A value for a blob, and one that stays in its event."""
    ctx.state["large"] = ctx.rng.randbytes(90_000)
    ctx.state["small"] = ctx.rng.randbytes(20_000)


def end(ctx: Context) -> None:
    model = ctx.resources["model"]
    ctx.state.update(weights=model.weights.tobytes(), model_steps=model.steps)


def is_even(ctx: Context) -> bool:
    return ctx.index() % 2 == 0


@kitchen.workflow(config=Config)
def trained(wf: WorkflowBuilder) -> None:
    wf.stage("begin", begin)
    wf.resource("model", lambda ctx: Model(ctx.numpy_rng()))
    with wf.loop("epochs", over=lambda ctx: range(ctx.config.epochs)):
        with wf.loop("batches", over=lambda ctx: [ctx.rng.random() for _ in range(6)]):
            wf.stage("train", train)
            with wf.conditional(is_even):
                wf.stage("note", lambda ctx: ctx.state.update(noted=ctx.index()))
        wf.stage("grow", grow)
        wf.checkpoint()
    wf.stage("end", end)


def _come_to(status: str, state: Any, metrics: Any) -> Any:
    points = {name: [tuple(point)[:2] for point in series] for name, series in metrics.items()}
    return status, json.dumps(dict(state), default=lambda data: sha256(data).hexdigest()), points


def essence(store: Any, run: str = "r") -> Any:
    """Status, state and metrics, as the log has them; no clock times."""
    with opened(store, read_only=True) as events:
        past = History(events, run)
        return _come_to(past.status, past.state_at(), past.all_metrics)


def told(store: Any, run: str) -> Any:
    """All that can be read of a run, every event with it."""
    with opened(store, read_only=True) as events:
        past = History(events, run)
        whole = [
            (e.seq, e.type, e.path, e.visit, e.attempt, to_json(e.event), e.counts)
            for e in past.events
        ]
        return _come_to(past.status, past.state_at(), past.all_metrics), whole


def ended(run: Any) -> Any:
    """What a verb gave back, as `essence` tells it."""
    return _come_to(run.status, run.state, run.metrics)


def findings(store: Any) -> list[Any]:
    with opened(store, read_only=True) as events:
        return events.verify()


def at_step(step: int, deed: Callable[[], None]) -> Callable[[Any], None]:
    """A hook that does something in one step of a run."""

    def hook(ctx: Any) -> None:
        if ctx.state["steps"] == step:
            deed()

    return hook


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(store: Path, run: str = "r", *, kill_at: int = 0) -> subprocess.Popen[str]:
    """A process that runs `trained`, and kills itself in that step."""
    code = (
        "import sys; from tests.crash import faults\n"
        f"if {kill_at}: faults.HOOK.append(faults.at_step({kill_at}, faults.die))\n"
        f"faults.kitchen.run(faults.trained, store=sys.argv[1], run_id={run!r}, seed=1,"
        " if_exists='resume')"
    )
    return python(["-c", code, store], store.parent)


def killed(store: Path, step: int, run: str = "r") -> None:
    """Have a process run until it is killed in that step."""
    process = child(store, run, kill_at=step)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors


def fold_wal(store: Path) -> None:
    """Bring what is in the WAL into the file."""
    db = sqlite3.connect(store)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def copied(store: Path, to: Path, *, sides: bool = False) -> Path:
    """A store with its blobs (and, if asked, its WAL) under another name."""
    shutil.copyfile(store, to)
    if sides:
        for side in ("-wal", "-shm"):
            shutil.copyfile(f"{store}{side}", f"{to}{side}")
    shutil.copytree(f"{store}.blobs", f"{to}.blobs")
    return to


def _mount(*arguments: object) -> None:
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


def _unmount(place: Path) -> None:
    # lazily: the file with the locks stays open as long as this process lives
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def small_disk(place: Path, megabytes: int) -> Generator[Path]:
    """A file system of that size."""
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("needs Linux and mount(8)")
    place.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place)
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def read_only(folder: Path, place: Path) -> Generator[Path]:
    """The folder, seen through a mount that cannot be written, whoever asks."""
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("needs Linux and mount(8)")
    place.mkdir(exist_ok=True)
    _mount("--bind", folder, place)
    try:
        _mount("-o", "remount,ro,bind", place)
        yield place
    finally:
        _unmount(place)

"""Asking a run to stop: the first signal stops it at a boundary, the second ends it at once.

The processes are real, and tell on their output where they are; nothing sleeps.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.history.history import History
from store import MemoryStore, open_store
from tests.runner.running import Box, done, flow, of_type, python, script, single, types

SCRIPT = """
import sys
import kitchen

class Box:
    def __init__(self):
        self.value = 0
    def state_dict(self):
        return {"value": self.value}
    def load_state_dict(self, state):
        self.value = state["value"]

def wait(ctx):
    ctx.resources["box"].value += 1
    print("waiting", flush=True)
    sys.stdin.readline()
    ctx.state["value"] = ctx.resources["box"].value

def spin(ctx):
    print("spinning", flush=True)
    while True:
        pass

@kitchen.workflow
def waiting(wf):
    wf.resource("box", lambda ctx: Box())
    with wf.loop("turns", over=lambda ctx: range(3)):
        wf.stage("wait", wait)

@kitchen.workflow
def spinning(wf):
    wf.stage("spin", spin, thread=False)

if __name__ == "__main__":
    try:
        kitchen.run(globals()[sys.argv[1]], store="k.db", run_id="r", if_exists="resume")
    except kitchen.RunInterrupted as error:
        print("told", error.signal, error.run.status, flush=True)
        raise SystemExit({"SIGINT": 130, "SIGTERM": 143}[error.signal])
"""


def started(folder: Path, name: str) -> subprocess.Popen[str]:
    process = python([script(folder, SCRIPT), name], folder)
    assert process.stdout is not None
    assert process.stdout.readline() in ("waiting\n", "spinning\n")
    return process


def signalled(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send it, and go on when it says that it has heard."""
    process.send_signal(number)
    assert process.stderr is not None
    told = process.stderr.readline() + process.stderr.readline()
    assert told.startswith(f"\n{number.name}: stopping after the running stage")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_the_stage_end_and_saves(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = started(tmp_path, "waiting")
    signalled(process, number)
    out, errors = process.communicate("\n")
    assert (process.returncode, errors) == (code, "")
    assert out == f"told {number.name} interrupted\n"
    with open_store(tmp_path / "k.db") as store:
        told = [kind for kind in types(store) if kind != "StageInterrupted"]
        assert told[-2:] == ["CheckpointSaved", "RunInterrupted"]
        assert History(store, "r").status == "interrupted"
        assert len(of_type(store, "StageCompleted")) == 1
    again = started(tmp_path, "waiting")
    assert again.communicate("\n\n\n")[1] == ""
    assert again.returncode == 0
    with open_store(tmp_path / "k.db") as store:
        past = History(store, "r")
        assert past.state_at() == {"value": 3}
        assert not of_type(store, "RunRewound")
        assert of_type(store, "RunResumed")[0].event.after == "interruption"  # type: ignore[attr-defined]
        assert store.verify() == []


@pytest.mark.parametrize("name", ["waiting", "spinning"])
@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_it_at_once(
    tmp_path: Path, name: str, second: signal.Signals, code: int
) -> None:
    """Whatever keeps it busy: a thread that waits, or a body that holds the event loop."""
    process = started(tmp_path, name)
    try:
        signalled(process, signal.SIGINT)
        process.send_signal(second)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.communicate()
    with open_store(tmp_path / "k.db") as store:
        assert store.verify() == []
        assert History(store, "r").status == "crashed"


def stopping(number: int = signal.SIGINT) -> Any:
    """A stage in which the signal arrives."""
    return lambda ctx: os.kill(os.getpid(), number)


def test_nothing_touched_saves_nothing() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("stop", stopping())
        wf.stage("after", lambda ctx: ctx.state.update(done=1))

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(kitchen.RunInterrupted, match="interrupted at seq") as caught:
        done(workflow, store=store)
    assert "kitchen resume r" in str(caught.value)
    assert caught.value.run.status == "interrupted"
    assert not of_type(store, "CheckpointSaved")
    assert kitchen.resume("r", workflow, store=store).state == {"done": 1}


def test_in_the_last_stage_the_run_is_simply_completed() -> None:
    assert done(single(stopping())).status == "completed"


def test_a_failing_stage_beats_the_signal() -> None:
    def body(ctx: Any) -> None:
        stopping()(ctx)
        raise ValueError("no")

    with pytest.raises(kitchen.RunError, match="ValueError: no"):
        done(single(body))


class Unsavable(Box):
    def state_dict(self) -> Any:
        raise RuntimeError("on fire")


def test_what_cannot_be_saved_is_told_and_the_run_is_interrupted_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop_once(ctx: Any) -> None:
        if not ctx.incarnation:
            stopping()(ctx)

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Unsavable())
        wf.stage("use", lambda ctx: ctx.state.update(v=ctx.resources["box"].add()))
        wf.stage("stop", stop_once)
        wf.stage("after", lambda ctx: None)

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store)
    assert "on fire" in caplog.text
    assert History(store, "r").status == "interrupted"
    assert kitchen.resume("r", workflow, store=store).state == {"v": 1}
    assert of_type(store, "RunRewound")


def test_the_hosts_own_handlers_are_put_back() -> None:
    def mine(*_: object) -> None: ...

    before = {n: signal.signal(n, mine) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        done(single(lambda ctx: None))
        assert signal.getsignal(signal.SIGINT) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.anyio
async def test_the_twin_leaves_signals_to_its_host() -> None:
    seen: list[Any] = []
    before = signal.getsignal(signal.SIGTERM)
    body = single(lambda ctx: seen.append(signal.getsignal(signal.SIGTERM)))
    await kitchen.run_async(body, store=MemoryStore(), run_id="r")
    assert seen == [before]

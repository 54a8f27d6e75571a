"""Real kills: processes that die of SIGKILL, again and again, and runs that end as if none had.

Nothing here sleeps. A process tells where it is on its output, and is killed after so many lines
as a seeded generator says; what it does meanwhile is up to the machine, which is the point.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.history.history import History
from store import open_store
from tests.runner.running import of_type, python, script

TRAINING = """
import json, sys
import numpy as np
import kitchen

class Model:
    def __init__(self, rng):
        self.weights = [rng.random(12_000) for _ in range(4)]
        self.steps = 0

    def update(self, rng):
        for weights in self.weights:
            weights *= 0.99
            weights += rng.normal(size=weights.shape)
        self.steps += 1
        return float(self.weights[0].sum())

    def state_dict(self):
        print("saving", flush=True)
        return {"steps": self.steps, "weights": {i: w.copy() for i, w in enumerate(self.weights)}}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.weights = [state["weights"][i].copy() for i in range(4)]

def train(ctx):
    loss = ctx.resources["model"].update(ctx.numpy_rng())
    ctx.append("losses", loss)
    ctx.increment("steps")
    ctx.record_metric("loss", loss, step=ctx.state["steps"])
    print("trained", flush=True)

def digest(ctx):
    import hashlib
    model = ctx.resources["model"]
    told = hashlib.sha256(b"".join(w.tobytes() for w in model.weights)).hexdigest()
    ctx.state["weights"] = told
    ctx.state["model_steps"] = model.steps

@kitchen.workflow
def training(wf):
    wf.resource("model", lambda ctx: Model(ctx.numpy_rng()))
    with wf.loop("epochs", over=lambda ctx: range(4)):
        with wf.loop("batches", over=lambda ctx: [ctx.rng.random() for _ in range(4)]):
            wf.stage("train", train)
        wf.checkpoint()
    wf.stage("digest", digest)

if __name__ == "__main__":
    kitchen.run(training, store=sys.argv[1], run_id="r", seed=3, if_exists="resume")
    print("done", flush=True)
"""

HOLDING = """
import os, sys
import kitchen

def hold(ctx):
    print(os.getpid(), flush=True)
    sys.stdin.readline()

def fork(ctx):
    child = os.fork()
    if child:
        print(child, flush=True)
    sys.stdin.readline()  # both wait here
    if not child:
        os._exit(0)

@kitchen.workflow
def holding(wf):
    wf.stage("hold", hold)

@kitchen.workflow
def forking(wf):
    wf.stage("fork", fork, thread=False)

if __name__ == "__main__":
    kitchen.run(globals()[sys.argv[2]], store=sys.argv[1], run_id="r")
"""


def essence(store: Path) -> Any:
    """State and metrics, as the log has them."""
    with open_store(store) as opened:
        past = History(opened, "r")
        metrics = {
            name: [(repr(p.value), p.step, p.path, p.visit) for p in points]
            for name, points in past.all_metrics.items()
        }
        return past.status, json.dumps(past.state_at(), sort_keys=True), metrics


def kill_after(process: subprocess.Popen[str], lines: int, word: str = "") -> bool:
    """Kill it after so many lines (with the word in them); False where it ended by itself."""
    assert process.stdout is not None
    for line in process.stdout:
        lines -= word in line
        if lines <= 0:
            process.kill()
            break
    errors = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    process = python([script(folder, TRAINING), "k.db"], folder)
    assert process.communicate()[0].endswith("done\n")
    return essence(folder / "k.db")


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "word"), [(1, ""), (2, "saving")])
def test_killed_again_and_again(tmp_path: Path, whole: Any, seed: int, word: str) -> None:
    """`saving` is told when state is handed out: what is killed then is the writing of blobs."""
    rng = random.Random(seed)
    kills = 0
    # One stage is committed at least between two kills of the first kind; a checkpoint that is
    # killed while it is written has to get through at some time, so those are killed early only.
    while True:
        lines = rng.randint(2, 9) if not word else rng.randint(1, 2)
        word = word if kills < 4 else ""
        process = python([script(tmp_path, TRAINING), "k.db"], tmp_path)
        if not kill_after(process, lines, word):
            break
        kills += 1
        if (tmp_path / "k.db").exists():
            with open_store(tmp_path / "k.db") as store:
                assert store.verify() == []
        assert kills < 40
    assert kills >= 3
    assert essence(tmp_path / "k.db") == whole
    with open_store(tmp_path / "k.db") as store:
        assert of_type(store, "RunRewound"), "no kill came between a touch and its checkpoint"
        assert not of_type(store, "RewindDiverged")


@pytest.mark.slow
def test_the_second_of_two_processes_is_refused_before_any_work(tmp_path: Path) -> None:
    holder = python([script(tmp_path, HOLDING, "holds.py"), "k.db", "holding"], tmp_path)
    try:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert pid == holder.pid
        with open_store(tmp_path / "k.db") as store:
            before = store.head("r")
            factory_ran: list[str] = []

            @kitchen.workflow(adapters=lambda: factory_ran.append("adapters") or {})
            def holding(wf: Any) -> None:
                wf.stage("hold", lambda ctx: factory_ran.append("stage"))

            with pytest.raises(kitchen.RunHeld) as caught:
                kitchen.resume("r", holding, store=store)
            said = str(caught.value)
            assert str(pid) in said
            assert socket.gethostname() in said
            assert re.search(r"since|\d\d:\d\d", said)
            assert store.head("r") == before
            assert factory_ran == []
            assert History(store, "r").status == "running"
        assert holder.communicate("\n")[1] == ""
        assert holder.returncode == 0
        assert essence(tmp_path / "k.db")[0] == "completed"
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
def test_a_forked_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    parent = python([script(tmp_path, HOLDING, "holds.py"), "k.db", "forking"], tmp_path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it is alive

        @kitchen.workflow
        def forking(wf: Any) -> None:
            wf.stage("fork", lambda ctx: None)

        with open_store(tmp_path / "k.db") as store:
            assert History(store, "r").status == "crashed"
            assert kitchen.resume("r", forking, store=store).status == "completed"
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.communicate()

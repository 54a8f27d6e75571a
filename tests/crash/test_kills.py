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

BESIDE = """
import sys
import numpy as np
import kitchen

class Model:
    def __init__(self, rng):
        self.weights = rng.random(12_000)
        self.steps = 0

    def update(self, rng):
        self.weights = self.weights * 0.99 + rng.normal(size=12_000)
        self.steps += 1
        return float(self.weights.sum())

    def state_dict(self):
        print("saving", flush=True)
        return {"steps": self.steps, "weights": self.weights.copy()}

    def load_state_dict(self, state):
        self.steps, self.weights = state["steps"], state["weights"].copy()

def told(body):
    def telling(ctx):
        given = body(ctx)
        print(ctx.path, ctx.visit, flush=True)
        return given
    return telling

def train(name):
    def body(ctx):
        loss = ctx.resources[name].update(ctx.numpy_rng())
        ctx.record_metric("loss", loss)
        ctx.append(f"{name}_losses", loss)
    return told(body)

def batches(ctx):
    for number in range(6):
        yield ctx.numpy_rng().random(500) + number

def sample(ctx):
    return ctx.resources["sampler"].update(ctx.numpy_rng()) + ctx.state.get("learnt", 0)

def learn(ctx):
    ctx.increment("learnt", ctx.item() / ctx.resources["learner"].update(ctx.numpy_rng()))
    ctx.append("told", (ctx.index(), ctx.version(), ctx.staleness()))

def digest(ctx):
    import hashlib
    for name in ("reader", "learner", "sampler"):
        model = ctx.resources[name]
        ctx.state[name] = [hashlib.sha256(model.weights.tobytes()).hexdigest(), model.steps]

@kitchen.workflow
def beside(wf):
    for name in ("reader", "learner", "sampler"):
        wf.resource(name, lambda ctx: Model(ctx.numpy_rng()))
    with wf.loop("epochs", over=lambda ctx: range(2)):
        with wf.parallel("sides", max_concurrency=3, merge={"sums": "extend"}):
            with wf.branch("reads"):
                with wf.stream_loop("batches", over=batches, prefetch=2):
                    wf.stage("read", train("reader"))
            with wf.branch("evaluates"):
                with wf.parallel("models", over=lambda ctx: range(3), merge={"sums": "extend"}):
                    wf.resource("own", lambda ctx: Model(ctx.numpy_rng()))
                    wf.stage("fit", told(lambda ctx: ctx.append(
                        "sums", ctx.resources["own"].update(ctx.numpy_rng()))))
        wf.checkpoint("both")
        with wf.async_loop("off_policy", producer=told(sample), buffer_size=2,
                           stop_when=lambda ctx: ctx.index() == 5):
            wf.stage("learn", told(learn))
            with wf.conditional(lambda ctx: ctx.index() == 2, name="middle"):
                wf.checkpoint()
    wf.stage("digest", digest)

if __name__ == "__main__":
    kitchen.run(beside, store=sys.argv[1], run_id="r", seed=3, if_exists="resume")
    print("done", flush=True)
"""

SCRIPTS = {"training": TRAINING, "beside": BESIDE}
LINES = {"training": (2, 9), "beside": (9, 22)}  # a rewind has to come past its cut at some time

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
    """The runs that nobody killed, by script."""
    found: dict[str, Any] = {}
    for name, text in SCRIPTS.items():
        folder = tmp_path_factory.mktemp("whole")
        process = python([script(folder, text), "k.db"], folder)
        out, errors = process.communicate()
        assert out.endswith("done\n"), errors
        found[name] = essence(folder / "k.db")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed", "word"),
    [("training", 1, ""), ("training", 2, "saving"), ("beside", 3, ""), ("beside", 4, "saving")],
)
def test_killed_again_and_again(
    tmp_path: Path, whole: Any, name: str, seed: int, word: str
) -> None:
    """`saving` is told when state is handed out: what is killed then is the writing of blobs."""
    rng = random.Random(seed)
    kills = 0
    # One stage is committed at least between two kills of the first kind; a checkpoint that is
    # killed while it is written has to get through at some time, so those are killed early only.
    while True:
        lines = rng.randint(1, 2) if word else rng.randint(*LINES[name])
        word = word if kills < 3 else ""
        process = python([script(tmp_path, SCRIPTS[name]), "k.db"], tmp_path)
        if not kill_after(process, lines, word):
            break
        kills += 1
        if (tmp_path / "k.db").exists():
            with open_store(tmp_path / "k.db") as store:
                assert store.verify() == []
        assert kills < 40
    assert kills >= 3
    assert essence(tmp_path / "k.db") == whole[name]
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

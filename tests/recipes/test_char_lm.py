"""The recipe: it learns, it repeats itself bit for bit, and no kill can be seen in what it leaves."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import kitchen
from kitchen.machine.codec.arrays import unpack_state
from kitchen.recipes.char_lm import CharLMState, CorpusChanged, char_lm
from kitchen.runner.locate import workflow_at

SEED = 7
UPDATES = 24


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    rng = random.Random(1)
    words = ["loaf", "oven", "salt", "flour", "yeast", "and", "the", "warm"]
    path.write_text("\n".join(" ".join(rng.choices(words, k=12)) + "." for _ in range(40)))
    return path


def config(text: Path, **changes: Any) -> dict[str, Any]:
    sizes = {"batch_size": 32, "context": 4, "embedding": 6, "hidden": 16, "evaluate_on": 64}
    plan = {"epochs": 2, "batches": 12, "evaluate_every": 5, "checkpoint_every": 7, "warmup": 3}
    more = {"text": str(text), "prompt": "the loaf", "learning_rate": 0.02}
    return {**sizes, **plan, **more, **changes}


def train(store: Path, text: Path, run_id: str = "a") -> kitchen.Run[Any, CharLMState]:
    return kitchen.run(char_lm, config(text), store=store, run_id=run_id, seed=SEED)


def told(store: Path, run_id: str = "a") -> dict[str, str]:
    """All that a run leaves, to be compared by `==`: of floats, `repr` is exact."""
    past = kitchen.history(run_id, store=store)
    manifests: dict[str, Any] = {}
    for record in past.events:
        if record.counts and record.type == "CheckpointSaved":
            event: Any = record.event
            manifests |= event.resources
    session = unpack_state(manifests["session"].tree, past.store.blobs.get)
    series = {
        name: [(point.step, repr(point.value)) for point in points]
        for name, points in past.all_metrics.items()
    }
    assert past.store.verify("a") == []
    return {
        "status": past.status,
        "state": repr(past.state_at()),
        "metrics": repr(series),
        "session": repr(
            {k: v if not isinstance(v, dict) else _bits(v) for k, v in session.items()}
        ),
    }


def _bits(arrays: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (str(array.dtype), array.tobytes().hex()) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, str]:
    """What a run leaves that nobody killed."""
    store = tmp_path_factory.mktemp("alone") / "kitchen.db"
    train(store, text)
    return told(store)


# A process that kills itself, with SIGKILL: after an append, so that nothing behind it is done,
# or after an update of the weights, so that its stage is never committed.
CHILD = """
import json, os, signal, sys
import kitchen
from kitchen.adapters.training import NumpyCharSession
from kitchen.recipes.char_lm import char_lm

store, config, seed, what, count = json.loads(sys.argv[1])

def tick():
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)

class Observer:
    def on_facts(self, run_id, facts, state):
        if what == "append":
            tick()
    def on_progress(self, *_):
        pass

update = NumpyCharSession.optim_step

def optim_step(self, learning_rate):
    done = update(self, learning_rate)
    if what == "update":
        tick()
    return done

NumpyCharSession.optim_step = optim_step
kitchen.run(char_lm, config, store=store, run_id="a", seed=seed, if_exists="resume",
            observers=[Observer()])
"""


def killed(store: Path, text: Path, what: str, count: int) -> bool:
    """Run, or resume, in a process that may kill itself; whether it did."""
    given = json.dumps([str(store), config(text), SEED, what, count])
    made = subprocess.run(
        [sys.executable, "-c", CHILD, given], check=False, capture_output=True, timeout=60
    )
    assert made.returncode in (0, -signal.SIGKILL), made.stderr.decode()
    return made.returncode != 0


def test_it_learns_and_says_what_it_learned(tmp_path: Path, text: Path) -> None:
    run = train(tmp_path / "kitchen.db", text)
    assert (run.status, run.state.step) == ("completed", UPDATES)
    losses = [point.value for point in run.metrics["loss"]]
    assert [point.step for point in run.metrics["loss"]] == list(range(1, UPDATES + 1))
    assert fmean(losses[-6:]) < fmean(losses[:6]) - 0.3
    assert [point.step for point in run.metrics["validation_loss"]] == [5, 10, 15, 20]
    assert run.state.best_validation_loss == min(
        point.value for point in run.metrics["validation_loss"]
    )
    assert [len(sample) for sample in run.state.samples] == [68, 68, 328]
    assert all(sample.startswith("the loaf") for sample in run.state.samples)


def test_equal_runs_are_equal_bit_for_bit(
    tmp_path: Path, text: Path, alone: dict[str, str]
) -> None:
    train(tmp_path / "kitchen.db", text)
    assert told(tmp_path / "kitchen.db") == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "count"),
    [
        pytest.param("append", 2, id="before the corpus is open"),
        pytest.param("append", 9, id="before any checkpoint"),
        pytest.param("append", 31, id="among checkpoints"),
        pytest.param("update", 1, id="first update not committed"),
        pytest.param("update", 8, id="first update after a checkpoint not committed"),
        pytest.param("update", UPDATES, id="last update not committed"),
    ],
)
def test_a_kill_leaves_no_trace(
    tmp_path: Path, text: Path, alone: dict[str, str], what: str, count: int
) -> None:
    store = tmp_path / "kitchen.db"
    assert killed(store, text, what, count)
    assert kitchen.history("a", store=store).status == "crashed"
    kitchen.resume("a", store=store)
    assert told(store) == alone


@pytest.mark.slow
def test_kill_after_kill_it_gets_there(tmp_path: Path, text: Path, alone: dict[str, str]) -> None:
    store = tmp_path / "kitchen.db"
    kills = 0
    while killed(store, text, "update", 10):  # a checkpoint every 7: each process gets somewhere
        kills += 1
        assert kitchen.history("a", store=store).status == "crashed"
    assert kills >= 2
    assert told(store) == alone


def test_another_text_is_refused_and_the_old_one_taken_up_again(
    tmp_path: Path, text: Path, alone: dict[str, str]
) -> None:
    store, content = tmp_path / "kitchen.db", text.read_text()
    assert killed(store, text, "update", 9)
    try:
        text.write_text(content.replace("oven", "pan"))
        with pytest.raises(kitchen.RunError, match="is not the text that run 'a'") as caught:
            kitchen.resume("a", store=store)
    finally:
        text.write_text(content)
    assert CorpusChanged.__name__ in str(caught.value)
    assert "put the old text back and resume" in str(caught.value)
    assert text.name in str(caught.value)
    kitchen.resume("a", store=store)
    assert told(store) == alone


@pytest.mark.parametrize("field", ["epochs", "batches", "batch_size", "checkpoint_every"])
def test_counts_begin_with_one(tmp_path: Path, text: Path, field: str) -> None:
    given = config(text, **{field: 0})
    with pytest.raises(kitchen.ConfigError, match=field):
        kitchen.run(char_lm, given, store=tmp_path / "kitchen.db")


def test_a_prompt_that_the_text_cannot_say_is_told_before_any_training(
    tmp_path: Path, text: Path
) -> None:
    with pytest.raises(kitchen.RunError, match="failed at note_corpus") as caught:
        kitchen.run(char_lm, config(text, prompt="a ☕"), store=tmp_path / "kitchen.db")
    assert "'☕' at 2 is not in the vocabulary" in str(caught.value)


def test_it_is_found_by_its_name() -> None:
    assert workflow_at("kitchen.recipes.char_lm:char_lm") is char_lm

"""Stages with process=True, as a run has them: killed in time, tried again, told well."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen import Retry
from store import MemoryStore, open_store
from tests.runner import process_bodies as bodies
from tests.runner.running import done, flow, of_type

RATE = {"rate": 0.5}


def failed(workflow: Any, config: Any = None, *, store: Any = None) -> kitchen.RunError:
    with pytest.raises(kitchen.RunError) as caught:
        done(workflow, config, store=store)
    return caught.value


def learning(*, process: bool) -> Any:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("learn", bodies.learn, process=process)

    return flow(build)


def test_it_gives_what_the_same_body_gives_in_this_process(tmp_path: Path) -> None:
    with open_store(tmp_path / "k.db") as store:
        there = done(learning(process=True), RATE, store=store)
    here = done(learning(process=False), RATE)
    assert dict(there.state) == dict(here.state)
    points = [[(p.step, p.value) for p in run.metrics["loss"]] for run in (there, here)]
    assert points[0] == points[1] == [(0, 0.0), (1, 0.5), (2, 1.5)]


def test_one_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    def build(wf: Any) -> None:
        wf.stage("hang", bodies.hang, process=True, timeout=1.5)

    error = failed(flow(build), {"folder": str(tmp_path)})
    assert error.run.failure.type == "StageTimeout"
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_whose_process_dies_is_tried_again(tmp_path: Path) -> None:
    def build(wf: Any) -> None:
        wf.stage("die", bodies.die_once, process=True, retries=Retry(1, backoff=0))

    store = MemoryStore()
    assert done(flow(build), {"folder": str(tmp_path)}, store=store).state["lived"]
    (lost,) = of_type(store, "StageFailed")
    assert lost.event.failure.type == "WorkerLost"  # type: ignore[attr-defined]
    assert "ended with code 9" in lost.event.failure.message  # type: ignore[attr-defined]


def test_of_one_that_must_not_happen_twice_nobody_knows_then(tmp_path: Path) -> None:
    def build(wf: Any) -> None:
        wf.stage("die", bodies.die_once, process=True, effect="once", retries=3)

    store, workflow = MemoryStore(), flow(build)
    assert failed(workflow, {"folder": str(tmp_path)}, store=store).run.failure.type == (
        "EffectUndecided"
    )
    with pytest.raises(kitchen.EffectUndecided, match="die"):
        kitchen.resume("r", workflow, store=store)
    ended = kitchen.resume("r", workflow, store=store, decide={"die": {"lived": "there"}})
    assert ended.state["lived"] == "there"


def test_what_it_raises_comes_back_as_itself() -> None:
    def build(wf: Any) -> None:
        wf.stage("fail", bodies.fail, process=True)

    error = failed(flow(build))
    assert isinstance(error.__cause__, LookupError)
    assert error.run.failure.type == "LookupError"
    assert 'in fail\n    raise LookupError("not there")' in error.run.failure.traceback
    assert "never" not in error.run.state


def test_a_config_that_cannot_be_sent_is_told_before_anything_runs() -> None:

    store = MemoryStore()

    def build(wf: Any) -> None:
        wf.stage("learn", bodies.learn, process=True, retries=Retry(1, on=_local_error()))

    with pytest.raises(kitchen.WorkflowError, match="learn"):
        done(flow(build), RATE, store=store)
    assert not list(store.runs())


def _local_error() -> type[Exception]:
    class LocalError(Exception):
        pass

    return LocalError

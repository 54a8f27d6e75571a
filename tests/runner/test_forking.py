"""Forks: what they share, where they begin, and what becomes of their parents."""

from __future__ import annotations

from typing import Any

import pytest

import kitchen
from kitchen.log.live import begun
from store import MemoryStore
from tests.runner.running import done, flow
from tests.runner.test_turning import TYPED, behind, completed


def test_the_parent_stays_as_it_is_and_the_id_is_taken_once() -> None:
    store = completed()
    before = list(store.read("r"))
    assert kitchen.fork("r", store=store, at=3, new_run_id="f") == "f"
    for again in ("f", "r"):
        with pytest.raises(kitchen.RunExists):
            kitchen.fork("r", store=store, at=3, new_run_id=again)
    assert list(store.read("r")) == before
    with pytest.raises(kitchen.UnknownRun):
        kitchen.fork("nobody", store=store, at=3)


def test_no_code_is_needed_without_edits_nor_for_a_seed() -> None:
    """Its workflow cannot be found: it is local to a test."""
    store = completed()
    kitchen.fork("r", store=store, at=3)
    kitchen.fork("r", store=store, at=3, seed=5)
    with pytest.raises(kitchen.NotResumable, match="edits are checked against the types"):
        kitchen.fork("r", store=store, at=3, config={"steps": 5})


def test_undeclared_configs_and_states_are_edited_by_the_log_alone() -> None:
    workflow = flow(
        lambda wf: (
            wf.stage("a", lambda ctx: ctx.state.update(x=ctx.config.n)),
            wf.stage("b", lambda ctx: ctx.state.update(y=ctx.state["x"] + ctx.config.n)),
        )
    )
    store = MemoryStore()
    done(workflow, {"n": 1}, store=store)
    at = next(r.seq for r in kitchen.history("r", store=store).events if r.type == "StageCompleted")
    new = kitchen.fork("r", store=store, at=at, config={"n": 10}, state={"x": 100})
    assert dict(kitchen.resume(new, workflow, store=store).state) == {"x": 100, "y": 110}
    with pytest.raises(kitchen.ConfigError, match="has no m"):
        kitchen.fork("r", store=store, at=at, config={"m": 10})
    with pytest.raises(kitchen.UnknownKey, match="has no 'z'"):
        kitchen.fork("r", store=store, at=at, state={"z": 1})


def test_a_fork_that_is_there_is_taken_up_with_its_config_and_not_with_the_old_one() -> None:
    store = completed()
    kitchen.fork(
        "r", store=store, workflow=TYPED, at=3, config={"steps": 2}, seed=5, new_run_id="f"
    )
    assert begun(store, "f").seed == 5
    again: Any = {"store": store, "run_id": "f", "if_exists": "resume"}
    with pytest.raises(kitchen.RunMismatch, match="steps: recorded 2, asked for 3"):
        kitchen.run(TYPED, seed=5, **again)
    with pytest.raises(kitchen.RunMismatch, match="seed"):
        kitchen.run(TYPED, {"steps": 2}, **again)
    assert kitchen.run(TYPED, {"steps": 2}, seed=5, **again).status == "completed"


def test_a_fork_is_sent_back_into_what_it_shares() -> None:
    store = completed()
    whole = kitchen.history("r", store=store).state_at()
    kitchen.fork("r", store=store, at=behind(store, 1), seed=5, new_run_id="f")
    kitchen.resume("f", TYPED, store=store)
    assert kitchen.history("f", store=store).state_at() != whole
    kitchen.resume("f", TYPED, store=store, at=behind(store, 0), seed=0)
    assert kitchen.history("f", store=store).state_at() == whole


def test_a_fork_does_not_go_on_over_what_its_parent_has_rolled_back_since() -> None:
    failing = [True]

    class Make(kitchen.Stage):
        def execute(self, ctx: Any) -> None:
            ctx.state["made"] = True

        def rollback(self, ctx: Any, error: BaseException) -> None:
            pass

    def use(ctx: Any) -> None:
        if failing[0]:
            raise RuntimeError("no")

    @kitchen.workflow(compensate=True)
    def made(wf: Any) -> None:
        wf.stage("make", Make())
        wf.stage("use", use)

    store = MemoryStore()
    store_of_then = MemoryStore()
    for each in (store, store_of_then):
        with pytest.raises(kitchen.RunError):
            kitchen.run(made, store=each, run_id="r")
    completed_at = next(r.seq for r in store.read("r") if r.type == "StageCompleted")
    before = store.truncated("r", completed_at)  # as if the process had died there
    kitchen.fork("r", at=completed_at, new_run_id="f", store=before)
    kitchen.fork("f", at=completed_at, new_run_id="g", store=before)
    with pytest.raises(kitchen.RunError):
        kitchen.resume("r", made, store=before)
    failing[0] = False
    for fork in ("f", "g"):
        with pytest.raises(kitchen.NotResumable, match="'r' has failed, and the stages"):
            kitchen.resume(fork, made, store=before)
    with pytest.raises(kitchen.NotResumable, match="'r' has failed, and the stages"):
        kitchen.fork("g", at=completed_at, store=before)

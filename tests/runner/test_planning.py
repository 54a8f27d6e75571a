"""Plans: what a resume will do, told before it does it; and then it does that."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kitchen
from store import MemoryStore, open_store
from tests.crash import kitchens, side_by_side
from tests.crash.test_crash_matrix import Killed, Mortal
from tests.runner.running import Box, Dying, done, flow, of_type
from tests.runner.running import Killed as Gone
from tests.runner.test_turning import TYPED, behind, completed

SEQUENTIAL = [*kitchens.ALL, side_by_side.batches, side_by_side.learning]


@pytest.mark.parametrize("workflow", SEQUENTIAL, ids=lambda w: w.name)
@pytest.mark.parametrize("turn", [False, True], ids=["crashed", "turned"])
def test_what_is_planned_is_what_is_done(workflow: Any, turn: bool) -> None:
    """As many events are superseded, from the same cut; the stages that are said to run again do."""
    for left in range(2, 40, 5):
        store = MemoryStore()
        with contextlib.suppress(Killed):
            kitchen.run(workflow, store=Mortal(store, "after", left), run_id="r", seed=7)
        at = max(store.head("r") * 2 // 3, 1) if turn else None
        before = list(store.read("r"))
        told: list[Any] = []
        plan = kitchen.plan_resume("r", workflow, store=store, at=at)
        assert list(store.read("r")) == before
        kitchen.resume("r", workflow, store=store, at=at, on_plan=told.append)
        if plan.status == "completed" and not turn:
            assert told == []
            continue
        assert [each._replace(status="") for each in told] == [plan._replace(status="")]
        events = kitchen.history("r", store=store).events
        gone = [e for e in events if not e.counts and e.seq <= plan.head]
        assert len(gone) == plan.superseded
        assert all(e.seq > plan.cut for e in gone)
        ran = Counter(e.path for e in events if e.type == "StageCompleted" and e.seq > plan.head)
        for each in plan.again:
            assert ran[each.path] >= each.completed
        completed_before = Counter(e.path for e in gone if e.type == "StageCompleted")
        assert {e.path: e.completed for e in plan.again if e.completed} == completed_before


class Clock(MemoryStore):
    """A second passes before each append."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = itertools.count(1)

    def append(self, run: str, expected: int, events: Any, at: int | None = None) -> int:
        return super().append(run, expected, events, next(self.ticks) * 10**9)

    def create_run(self, run: str, name: str, events: Any, at: int | None = None) -> int:
        return super().create_run(run, name, events, 0)


def training(die: Dying) -> Any:
    def train(ctx: Any) -> None:
        ctx.resources["box"].add()
        die()

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("steps", over=lambda ctx: range(6)):
            wf.stage("train", train)
            with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
                wf.checkpoint()

    return flow(build)


def test_touches_visits_and_seconds() -> None:
    store, workflow = Clock(), training(Dying(4))
    with pytest.raises(Gone):
        done(workflow, store=store)
    plan = kitchen.plan_resume("r", workflow, store=store)
    saved = of_type(store, "CheckpointSaved")[-1]
    touched = next(r for r in of_type(store, "ResourceTouched") if r.seq > saved.seq)
    assert [tuple(each) for each in plan.touched] == [("box", "steps[2]/train", touched.seq)]
    assert saved.seq <= plan.cut < touched.seq
    ((path, completed, running, seconds),) = plan.again
    assert (path, completed, running) == ("steps/train", 2, 1)
    lost = [r for r in store.read("r") if r.seq > plan.cut]
    assert plan.superseded == len(lost)
    assert plan.lost == pytest.approx((lost[-1].at - lost[0].at) / 1e9)
    assert 0 < seconds <= plan.lost
    line = str(plan)
    assert {str(plan.cut), str(plan.head)} <= set(re.findall(r"\d+", line))
    assert "box was touched" in line
    assert re.search(r"\b3 stage", line)


def test_the_time_in_which_nobody_executed_it_is_not_lost() -> None:
    store, die = Clock(), Dying(3, 5)
    workflow = training(die)
    with pytest.raises(Gone):
        done(workflow, store=store)
    lost = kitchen.plan_resume("r", workflow, store=store, at=1).lost
    store.ticks = itertools.count(10_000)
    with pytest.raises(Gone):
        kitchen.resume("r", workflow, store=store)
    assert lost < kitchen.plan_resume("r", workflow, store=store, at=1).lost < lost + 60


def test_edits_and_changes_are_in_the_line() -> None:
    store = completed()
    at = behind(store, 1)
    plan = kitchen.plan_resume(
        "r", TYPED, store=store, at=at, seed=5, state={"offset": 3}, config={"steps": 9}
    )
    assert len(plan.edits) == 3
    for word in ("config", "seed", "offset"):
        assert any(word in each for each in plan.edits)
    assert str(at) in str(plan)


def test_missing_blobs_are_named_with_what_needs_them(tmp_path: Path) -> None:
    def put(ctx: Any) -> None:
        ctx.state["large"] = bytes(200_000)

    workflow = flow(lambda wf: (wf.stage("put", put), wf.stage("more", lambda ctx: None)))
    with open_store(tmp_path / "k.db") as store:
        done(workflow, store=store)
        at = behind_put = next(r.seq for r in of_type(store, "StageCompleted"))
        assert kitchen.plan_resume("r", workflow, store=store, at=at).missing == ()
        for file in (tmp_path / "k.db.blobs").rglob("*"):
            if file.is_file():
                file.unlink()
        plan = kitchen.plan_resume("r", workflow, store=store, at=behind_put)
    assert [each.needed_by for each in plan.missing] == ["state.large"]
    assert "missing" in str(plan)


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "k.db"
    with open_store(file) as store:
        done(TYPED, store=store)
        at = behind(store, 1)
    before = file.read_bytes()
    big = {"seen": [bytes(100_000)]}
    kitchen.plan_resume("r", TYPED, store=file, at=at, state=big)
    assert file.read_bytes() == before
    blobs = tmp_path / "k.db.blobs"
    assert not blobs.exists() or not [each for each in blobs.rglob("*") if each.is_file()]


def test_a_run_that_cannot_go_on_has_a_plan() -> None:
    def fails(ctx: Any) -> None:
        raise ValueError("no")

    class Held(kitchen.Stage):
        def execute(self, ctx: Any) -> None: ...
        def rollback(self, ctx: Any, error: Any) -> None: ...

    workflow = flow(lambda wf: (wf.stage("a", Held), wf.stage("b", fails)), compensate=True)
    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    plan = kitchen.plan_resume("r", workflow, store=store)
    assert "rolled back" in str(plan.refused)
    assert "rolled back" in str(plan)
    over = kitchen.plan_resume("r", TYPED, store=completed())
    assert "nothing to resume" in str(over)


def test_a_resume_without_the_blobs_of_its_cut_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    class Large(Box):
        def state_dict(self) -> dict[str, Any]:
            return {"values": np.zeros(50_000)}

        def load_state_dict(self, state: Any) -> None:
            pass

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Large())
        wf.stage("train", lambda ctx: ctx.resources["box"].add())
        wf.checkpoint()
        wf.stage("more", lambda ctx: None)

    workflow = flow(build)
    with open_store(tmp_path / "k.db") as store:
        done(workflow, store=store)
        saved = [r.seq for r in store.read("r") if r.type == "CheckpointSaved"]
        for blob in list(store.blobs.digests()):
            store.blobs.remove(blob)
        head = store.head("r")
        with pytest.raises(kitchen.BlobLost, match="the checkpoint of resource 'box'"):
            kitchen.resume("r", workflow, store=store, at=saved[-1])
        assert (store.head("r"), kitchen.history("r", store=store).status) == (head, "completed")


def test_what_a_turn_plans_of_effects_that_must_not_happen_twice() -> None:
    dying, store, paid = [True], MemoryStore(), list[str]()

    def pay(ctx: Any) -> None:
        paid.append(ctx.path)
        if ctx.path == "second" and dying[0]:
            raise Gone
        ctx.state[ctx.path] = True

    workflow = flow(
        lambda wf: (
            wf.stage("before", lambda ctx: None),
            wf.stage("first", pay, effect="once"),
            wf.stage("second", pay, effect="once"),
        )
    )
    with pytest.raises(Gone):
        kitchen.run(workflow, store=store, run_id="r")
    dying[0] = False
    plan = kitchen.plan_resume("r", workflow, store=store, at=2)
    assert plan.undecided == ("second",)
    assert [each.path for each in plan.again] == ["before", "second"]
    ended = kitchen.resume("r", workflow, store=store, at=2, decide={"second": "retry"})
    assert (ended.status, paid) == ("completed", ["first", "second", "second"])

"""What is told of a run that was forked, edited, sent back, or whose nodes were renamed."""

from __future__ import annotations

from typing import Any

import kitchen
from kitchen.history.diff import compare
from kitchen.history.history import History
from store import MemoryStore
from tests.runner.running import done, flow


def build(wf: Any, name: str = "l") -> None:
    with wf.loop(name, over=lambda ctx: range(4)):
        wf.stage("s", step)
    wf.stage("end", lambda ctx: None)


def step(ctx: Any) -> None:
    ctx.state["x"] = ctx.state.get("x", 0) + ctx.config["by"]
    ctx.record_metric("m", ctx.state["x"], step=ctx.index())


WORKFLOW = flow(build)


def begun() -> tuple[MemoryStore, int]:
    """A run, and the seq at which its second visit was committed."""
    store = MemoryStore()
    done(WORKFLOW, {"by": 1}, store=store)
    commits = [r.seq for r in store.read("r", types=["StageCompleted"])]
    return store, commits[1]


def values(past: History) -> list[Any]:
    return [point.value for point in past.metrics("m")]


def test_a_fork_that_nobody_has_taken_up() -> None:
    store, at = begun()
    kitchen.fork("r", at=at, config={"by": 10}, seed=9, new_run_id="f", store=store)
    past = History(store, "f")
    assert past.status == "forked"
    assert past.config == {"by": 10}
    assert (past.begun.seed, past.started.seed) == (9, 0)
    assert past.state_at() == {"x": 2}
    assert values(past) == [1, 2]
    assert past.tree().status == "forked"
    assert "run forked" in past.trace(life=True)


def test_a_fork_beside_its_parent() -> None:
    store, at = begun()
    kitchen.fork("r", at=at, config={"by": 10}, new_run_id="f", store=store)
    kitchen.resume("f", WORKFLOW, store=store)
    fork, parent = History(store, "f"), History(store, "r")
    assert values(fork) == [1, 2, 12, 22]
    found = compare(parent, fork)
    assert found.config == [("by", "1", "10")]
    assert [(d.kind, d.visits, d.visit) for d in found.paths["l/s"]] == [
        ("metric", 2, (2,)),
        ("state", 2, (2,)),
    ]
    assert found.state == [("x", "4", "22")]
    kitchen.fork("r", at=at, new_run_id="g", store=store)
    kitchen.resume("g", WORKFLOW, store=store)
    same = compare(parent, History(store, "g"))
    assert same.same
    assert parent.trace() == History(store, "g").trace()


def test_a_run_that_is_sent_back_into_what_it_had_left() -> None:
    store, at = begun()
    first = History(store, "r").trace()
    second = kitchen.resume("r", WORKFLOW, store=store, at=at, config={"by": 10})
    assert second.state == {"x": 22}
    past = History(store, "r")
    assert values(past) == [1, 2, 12, 22]
    assert past.config == {"by": 10}
    third = next(r.seq for r in past.events if r.type == "StageCompleted" and not r.counts)
    kitchen.resume("r", WORKFLOW, store=store, at=third)  # where it was with the first config
    past = History(store, "r")
    assert values(past) == [1, 2, 3, 4]
    assert past.config == {"by": 1}
    assert past.trace() == first
    assert [r.seq for r in past.events if r.counts and r.type == "StageCompleted"][2] == third


def test_nodes_that_were_renamed_have_one_name() -> None:
    store = MemoryStore()
    whole = flow(build)
    kitchen.run(whole, {"by": 1}, store=store, run_id="whole")
    at = [r.seq for r in store.read("whole", types=["StageCompleted"])][1]
    kitchen.fork("whole", at=at, new_run_id="r", store=store)
    kitchen.resume("r", flow(lambda wf: build(wf, "m")), store=store, rename={"l": "m"})
    past = History(store, "r")
    assert [(p.path, p.visit, p.value) for p in past.metrics("m")] == [
        ("m/s", (i,), i + 1) for i in range(4)
    ]
    assert [child.name for child in past.tree().children] == ["m", "end"]
    assert past.trace() == History(store, "whole").trace().replace("l[", "m[").replace("l: ", "m: ")

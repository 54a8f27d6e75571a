"""include in a run: the nodes of another workflow, as if they stood there."""

from __future__ import annotations

from typing import Any

import pytest

import kitchen
from store import MemoryStore
from tests.runner.running import Box, Dying, Killed, done, flow, of_type

DIE = Dying()


def work(ctx: Any) -> None:
    DIE()
    ctx.append("seen", (ctx.path, ctx.visit, ctx.rng.random()))
    ctx.record_metric("m", ctx.rng.random())


def train(ctx: Any) -> None:
    DIE()
    ctx.append("losses", ctx.resources["box"].add(ctx.rng.random()))


@kitchen.workflow
def inner(wf: Any) -> None:
    wf.stage("work", work)
    with wf.loop("rounds", over=lambda ctx: range(2)):
        wf.stage("train", train)
    with wf.parallel("p", merge={"seen": "extend"}):
        wf.stage("a", work)
        wf.stage("b", work)


def outer(wf: Any) -> None:
    wf.resource("box", lambda ctx: Box(ctx.rng.random()))
    wf.include(inner)
    with wf.loop("epochs", over=lambda ctx: range(2)):
        wf.include(inner, name="again")
        wf.checkpoint()
    wf.stage("note", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))


def test_it_shares_state_and_resources_under_a_path_of_its_own() -> None:
    run = done(flow(outer))
    paths = [path for path, _, _ in run.state["seen"]]
    again = ["epochs/again/work", "epochs/again/p/a", "epochs/again/p/b"]
    assert paths == ["inner/work", "inner/p/a", "inner/p/b", *again, *again]
    assert run.state["box"]["changes"] == 6
    drawn = [number for _, _, number in run.state["seen"]]
    assert len(set(drawn)) == len(drawn)  # every place has numbers of its own
    assert [point.path for point in run.metrics["m"]] == paths


@pytest.mark.parametrize("at", range(14))
def test_killed_anywhere_in_it(at: int) -> None:
    workflow, store = flow(outer), MemoryStore()
    expected = done(workflow).state
    DIE.at, DIE.calls = {at}, 0
    try:
        with pytest.raises(Killed):
            done(workflow, store=store)
    finally:
        DIE.at = set()
    run = kitchen.resume("r", workflow, store=store)
    assert run.state == expected
    assert store.verify() == []


def test_what_fails_in_it_is_told_with_its_path() -> None:
    @kitchen.workflow
    def failing(wf: Any) -> None:
        wf.stage("fails", lambda ctx: 1 / 0)

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.include(failing, name="part")

    store = MemoryStore()
    with pytest.raises(kitchen.RunError, match=r"failed at l\[0\]/part/fails"):
        done(flow(build), store=store)
    assert of_type(store, "StageFailed")[0].path == "l/part/fails"


def test_loops_around_it_are_seen_from_inside() -> None:
    @kitchen.workflow
    def part(wf: Any) -> None:
        wf.stage("look", lambda ctx: ctx.append("items", (ctx.item("l"), ctx.item())))

    def build(wf: Any) -> None:
        with wf.stream_loop("l", over=lambda ctx: ["x", "y"]):
            wf.include(part)

    assert done(flow(build)).state == {"items": [("x", "x"), ("y", "y")]}

"""What somebody said of an effect holds, whatever else comes out differently."""

from __future__ import annotations

from typing import Any

import pytest

import kitchen
from kitchen import Retry
from store import MemoryStore
from tests.runner.running import Box, done, flow, of_type


def test_what_was_decided_outlives_a_past_that_never_comes_out_the_same() -> None:
    drawn = iter(range(1_000))
    paid: list[int] = []

    def differ(ctx: Any) -> None:
        ctx.resources["box"].add()
        ctx.state["drawn"] = next(drawn)  # nothing that a rewind could have again

    def pay(ctx: Any) -> None:
        paid.append(1)
        ctx.state["receipt"] = "live"

    def flaky(ctx: Any) -> None:
        ctx.resources["box"].add()
        if ctx.attempt == 1:
            raise OSError("not now")

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("differ", differ)
        wf.stage("pay", pay, effect="once")
        wf.stage("flaky", flaky, retries=Retry(1, backoff=0))

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunError, match="EffectUndecided"):
        done(workflow, store=store)
    ended = kitchen.resume("r", workflow, store=store, decide={"pay": {"receipt": "found"}})
    assert ended.state["receipt"] == "found"
    assert len(of_type(store, "RewindDiverged")) > 1
    assert paid == [1]


def test_a_parallel_whose_failure_is_handled_leaves_no_metric() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=1):
            wf.stage("first", lambda ctx: ctx.record_metric("loss", 1.0))
            wf.stage("second", lambda ctx: 1 / 0)
        with wf.on_error("caught"):
            wf.stage("note", lambda ctx: ctx.record_metric("loss", 2.0))

    run = done(flow(build))
    assert [point.value for point in run.metrics["loss"]] == [2.0]

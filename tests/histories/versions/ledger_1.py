"""The first version of a workflow, whose runs are stored. It stays as it is: their logs hold it.

What goes wrong is told by the adapters: where the process dies, where a stage fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kitchen
from kitchen import Stage, WorkflowBuilder
from kitchen.machine.events import spell


class Killed(BaseException):
    """The process is gone."""


class Box:
    """A stateful thing: a number, and how often it was changed."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.changes = 0

    def add(self, by: float) -> float:
        self.value = self.value * 0.5 + by
        self.changes += 1
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "changes": self.changes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.changes = state["value"], state["changes"]


def open_box(ctx: Any) -> Box:
    return Box(ctx.rng.random())


def trouble(ctx: Any) -> None:
    """Behind what a stage does."""
    here = spell(ctx.path, ctx.visit)
    if here in ctx.adapters.get("die", ()):
        raise Killed
    if ctx.path in ctx.adapters.get("fail", ()):
        raise ConnectionError("broken")


def note(ctx: Any) -> None:
    if "log" not in ctx.state:
        ctx.state["log"] = []
    ctx.append("log", f"{ctx.path} {ctx.visit} {ctx.rng.random():.6f}")
    trouble(ctx)


def train(ctx: Any) -> None:
    value = ctx.resources["box"].add(ctx.rng.random())
    ctx.append("log", f"{ctx.path} {ctx.visit} {value:.6f}")
    ctx.record_metric("value", value, step=ctx.index())
    trouble(ctx)


def risky(ctx: Any) -> None:
    note(ctx)
    if ctx.visit[0] == 0:
        raise ValueError("the first time it always fails")


class Reserve(Stage):
    """With a rollback."""

    def execute(self, ctx: Any) -> None:
        note(ctx)

    def rollback(self, ctx: Any, error: Any) -> None:
        ctx.append("log", f"undone {ctx.path} {ctx.visit} {error.type}")


def epochs(ctx: Any) -> range:
    return range(3)


def is_first(ctx: Any) -> bool:
    return ctx.visit[0] == 0


def lines(ctx: Any) -> Iterator[float]:
    for _ in range(4):
        yield ctx.rng.random()


def produce(ctx: Any) -> float:
    return len(ctx.state["log"]) + ctx.rng.random()


def enough(ctx: Any) -> bool:
    return ctx.index() == 3


@kitchen.workflow
def evaluation(wf: WorkflowBuilder) -> None:
    wf.stage("score", note)
    wf.stage("judge", note)


def ledger_body(wf: Any) -> None:
    wf.resource("box", open_box)
    wf.stage("begin", note)
    with wf.loop("epochs", over=epochs):
        wf.stage("train", train)
        with wf.conditional(is_first, name="first"):
            wf.stage("celebrate", note)
        with wf.otherwise():
            wf.stage("mourn", note)
        with wf.timeout(600, name="careful"):
            wf.stage("reserve", Reserve)
            wf.stage("risky", risky)
        with wf.on_error("rescue"):
            wf.stage("mend", note)
        with wf.parallel("sides", merge={"log": "extend"}, max_concurrency=1, on_error="finish"):
            wf.stage("left", note)
            with wf.branch("right"):
                wf.stage("near", note)
                wf.stage("far", note)
        wf.include(evaluation, name="eval")
        wf.checkpoint("saved")
    with wf.stream_loop("lines", over=lines, prefetch=1):
        wf.stage("read", note)
    with wf.async_loop("made", producer=produce, stop_when=enough, buffer_size=2):
        wf.stage("consume", note)
    wf.stage("pay", note, effect="once")
    wf.stage("report", note, retries=1, options={"loud": True})


@kitchen.workflow
def ledger(wf: WorkflowBuilder) -> None:
    ledger_body(wf)


@kitchen.workflow(compensate=True)
def undone(wf: WorkflowBuilder) -> None:
    wf.stage("reserve", Reserve)
    wf.stage("pack", Reserve)
    wf.stage("ship", note)

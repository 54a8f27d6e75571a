"""The workflows of the crash matrix in which something runs beside something else.

What finishes first differs from run to run, and is shaken on purpose; what comes out may not.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

import kitchen
from kitchen import Context, Workflow, WorkflowBuilder
from tests.crash.kitchens import MODEL, Model, note_model, trace

CHANCE = random.Random()  # of its own, and never seeded: seeds are for what must come out equal


def shake() -> None:
    """A moment, sometimes."""
    if CHANCE.random() < 0.3:
        time.sleep(CHANCE.random() * 0.001)


async def shake_async() -> None:
    for _ in range(CHANCE.randrange(4)):
        await anyio.lowlevel.checkpoint()


def write(ctx: Context) -> None:
    """A key of its own, a number that only this visit draws, a metric."""
    trace(ctx)
    shake()
    key = ctx.path.rpartition("/")[2]
    ctx.state[key] = ctx.rng.random()
    ctx.record_metric("drawn", ctx.state[key], step=len(ctx.visit))


async def write_async(ctx: Context) -> None:
    await shake_async()
    write(ctx)
    await shake_async()


# --- branches: a static parallel with all that may be in a branch --------------------------------


def begin(ctx: Context) -> None:
    trace(ctx)
    ctx.state.update(total=100, log=["begun"], tags={"a": 1}, best=0.5, worst=0.5)


def give(ctx: Context) -> None:
    """To every key that is merged."""
    trace(ctx)
    shake()
    number = ctx.rng.randrange(1, 50)
    ctx.increment("total", number)
    ctx.append("log", (ctx.path, ctx.visit, number))
    ctx.merge("tags", {f"{ctx.path}{ctx.visit}": number})
    ctx.state["best"] = max(ctx.state["best"], ctx.rng.random())
    ctx.state["worst"] = min(ctx.state["worst"], ctx.rng.random())
    ctx.state["picked"] = number
    ctx.record_metric("given", number)


async def give_async(ctx: Context) -> None:
    await shake_async()
    give(ctx)


def pick(before: Any, values: list[Any]) -> Any:
    return (before, values)


def train_model(ctx: Context) -> None:
    trace(ctx)
    shake()
    loss = ctx.resources["model"].update(ctx.rng.random())
    ctx.record_metric("loss", loss)


def train_own(ctx: Context) -> None:
    trace(ctx)
    ctx.append("own_sums", ctx.resources["own"].update(ctx.rng.random()))


MERGE: Any = {
    "total": "sum",
    "log": "extend",
    "tags": "union",
    "best": "max",
    "worst": "min",
    "picked": pick,
}


@kitchen.workflow
def branches(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    wf.stage("begin", begin)
    with wf.parallel("wide", max_concurrency=3, merge=MERGE):
        wf.stage("quick", give)
        wf.stage("waits", give_async, thread=False)
        with wf.branch("inner"):
            with wf.parallel("nested", merge=MERGE):
                wf.stage("left", give)
                wf.stage("right", write_async)
                wf.stage("more", give_async)
            wf.stage("behind", give)
        with wf.branch("looping"):
            with wf.loop("rounds", over=lambda ctx: range(2)):
                with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
                    wf.stage("give_late", give)
                with wf.otherwise():
                    wf.stage("write_early", write)
        with wf.branch("owner"):
            wf.resource("own", lambda ctx: Model(ctx.rng.random()))
            wf.stage("train_own", train_own)
            wf.stage("train_own_again", train_own)
        with wf.branch("trainer"):
            wf.stage("train", train_model)
            wf.stage("train_again", train_model)
    wf.checkpoint()
    wf.stage("train_after", train_model)
    wf.stage("note_model", note_model)


# --- every: a parallel over items, with resources of their own -----------------------------------


@asynccontextmanager
async def open_helpers(ctx: Any) -> AsyncGenerator[dict[str, int]]:
    """A task group in a resource: its cancel scope must not be left in another's order."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        yield {"help": ctx.item("models")}
        tasks.cancel_scope.cancel()


def open_model(ctx: Any) -> Model:
    return Model(ctx.item("models") + ctx.rng.random())


async def improve(ctx: Context) -> None:
    trace(ctx)
    await shake_async()
    by = ctx.resources["helpers"]["help"] + ctx.item("rounds") + ctx.rng.random()
    ctx.record_metric("loss", ctx.resources["model"].update(by))


def hand_in(ctx: Context) -> None:
    trace(ctx)
    shake()
    ctx.append("models", (ctx.index("models"), ctx.resources["model"].state_dict()))
    ctx.increment("used", ctx.resources["model"].used)


@kitchen.workflow
def every(wf: WorkflowBuilder) -> None:
    merge: Any = {"models": "extend", "used": "sum"}
    over: Any = lambda ctx: [3, 1, 4, 1]  # noqa: E731
    with wf.parallel("models", over=over, max_concurrency=lambda ctx: 2, merge=merge):
        wf.resource("model", open_model)
        wf.resource("helpers", open_helpers, stateful=False)
        with wf.loop("rounds", over=lambda ctx: range(2)):
            wf.stage("improve", improve)
        wf.stage("hand_in", hand_in)
    wf.stage("after", write)


# --- streams: every kind of source ---------------------------------------------------------------


class Loader:
    """A source that tells where it is."""

    def __init__(self, seed: float, count: int) -> None:
        self.seed, self.count, self.at = seed, count, 0

    def __iter__(self) -> Iterator[float]:
        while self.at < self.count:
            self.at += 1
            yield self.seed * self.at

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def generate(ctx: Any) -> Generator[Any]:
    rng = ctx.rng
    for number in range(4):
        shake()
        yield {"number": number, "drawn": rng.random(), "large": bytes(3000)}


async def generate_async(ctx: Any) -> AsyncGenerator[int]:
    number = 0
    while True:
        await shake_async()
        yield number
        number += 1


def take(ctx: Context) -> None:
    trace(ctx)
    item: Any = ctx.item()
    ctx.append("taken", item["drawn"] if isinstance(item, dict) else item)


def take_some(ctx: Context) -> None:
    take(ctx)
    if ctx.item() == 4:
        ctx.stop_loop()


@kitchen.workflow
def streams(wf: WorkflowBuilder) -> None:
    with wf.stream_loop("listed", over=lambda ctx: ["a", "b", "c"], prefetch=1):
        wf.stage("take_listed", take)
    with wf.stream_loop("generated", over=generate, prefetch=3):
        wf.stage("take_generated", take, thread=False)
    with wf.stream_loop("endless", over=generate_async):
        wf.stage("take_some", take_some)
        wf.stage("behind", take, thread=False)
    with wf.stream_loop("none", over=lambda ctx: ()):
        wf.stage("unreached", take)
    with wf.stream_loop("loaded", over=lambda ctx: Loader(ctx.rng.random(), 70), prefetch=8):
        wf.stage("take_loaded", take, thread=False)


# --- batches: a stream of training data in every epoch, and cuts in the middle of it -------------


def train_batch(ctx: Context) -> None:
    trace(ctx)
    loss = ctx.resources[MODEL].update(ctx.item("batches") + ctx.rng.random())
    ctx.increment("step")
    ctx.append("losses", loss)
    ctx.record_metric("loss", loss, step=ctx.state["step"])


def open_batches(ctx: Any) -> Any:
    return Loader(ctx.rng.random() + ctx.state.get("step", 0), 5)


@kitchen.workflow
def batches(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    with wf.loop("epochs", over=lambda ctx: range(3)):
        with wf.stream_loop("batches", over=open_batches, prefetch=3):
            wf.stage("train_batch", train_batch)
            with wf.conditional(lambda ctx: ctx.index("batches") % 3 == 1, name="now"):
                wf.checkpoint()
    wf.stage("note_model", note_model)


# --- productions: async loops --------------------------------------------------------------------


def produce(ctx: Context) -> dict[str, Any]:
    shake()
    return {"from": ctx.state.get("step", 0), "drawn": ctx.rng.random(), "index": ctx.index()}


async def produce_async(ctx: Context) -> Any:
    await shake_async()
    return (ctx.state.get("step", 0), ctx.rng.random())


def sample(ctx: Context) -> float:
    """With a sampler of its own, which every production moves on."""
    shake()
    return ctx.resources["sampler"].update(ctx.rng.random() + ctx.state.get("step", 0))


def consume(ctx: Context) -> None:
    trace(ctx)
    shake()
    ctx.increment("step")
    ctx.append("got", (ctx.path, ctx.item(), ctx.version(), ctx.staleness()))
    ctx.record_metric("staleness", ctx.staleness(), step=ctx.state["step"])


def consume_some(ctx: Context) -> None:
    consume(ctx)
    if ctx.index() == 3:
        ctx.stop_loop()


def learn(ctx: Context) -> None:
    consume(ctx)
    loss = ctx.resources[MODEL].update(ctx.item())
    ctx.record_metric("loss", loss, step=ctx.state["step"])


def done_after(steps: int) -> Any:
    return lambda ctx: ctx.state["step"] >= steps


@kitchen.workflow
def productions(wf: WorkflowBuilder) -> None:
    with wf.async_loop("paced", producer=produce, stop_when=done_after(5), buffer_size=3):
        wf.stage("consume_paced", consume)
    with wf.async_loop(
        "two", producer=produce_async, stop_when=done_after(99), buffer_size=3, producers=2
    ):
        wf.stage("consume_some", consume_some)
        wf.stage("write", write_async)
    with wf.async_loop(
        "stale", producer=produce, stop_when=done_after(13), producers=2, max_staleness=2
    ):
        wf.stage("consume_fresh", consume, thread=False)


@kitchen.workflow
def learning(wf: WorkflowBuilder) -> None:
    """A model that is trained in the body, a sampler that belongs to the producer, and cuts."""
    wf.resource(MODEL)
    wf.resource("sampler", lambda ctx: Model(ctx.rng.random()))
    with wf.async_loop("policy", producer=sample, stop_when=done_after(8), buffer_size=2):
        wf.stage("learn", learn)
        with wf.conditional(lambda ctx: ctx.index("policy") in (2, 5), name="now"):
            wf.checkpoint()
    wf.stage("note_model", note_model)
    wf.stage("note", lambda ctx: ctx.state.update(sampler=ctx.resources["sampler"].state_dict()))


# --- nested: everything in everything ------------------------------------------------------------


@kitchen.workflow
def evaluation(wf: WorkflowBuilder) -> None:
    with wf.loop("cases", over=lambda ctx: ["x", "y"]):
        wf.stage("write_case", write)
        wf.stage("take_case", take)


def take_first(ctx: Context) -> None:
    trace(ctx)
    ctx.append("first", ctx.item())


@kitchen.workflow
def nested(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    with wf.parallel("sides"):
        with wf.branch("off"):
            with wf.async_loop("loop", producer=produce_async, stop_when=done_after(3)):
                wf.stage("consume", consume)
                with wf.parallel("checks"):
                    wf.stage("check", write_async)
                    wf.stage("train", train_model)
        with wf.branch("reads"):
            with wf.stream_loop("stream", over=generate, prefetch=1):
                wf.stage("take_first", take_first)
                with wf.parallel("each", over=lambda ctx: range(2), merge={"sum": "sum"}):
                    wf.stage("add", lambda ctx: ctx.increment("sum", 1 + ctx.item("each")))
        with wf.branch("included"):
            wf.include(evaluation)
    wf.include(evaluation, name="again")
    wf.stage("note_model", note_model)


ALL: list[Workflow[Any, Any]] = [
    branches, every, streams, batches, productions, learning, nested,
]  # fmt: skip

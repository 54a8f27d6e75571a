"""Workflows that come through every crash: with retries, time limits, failures, effects that must not
happen twice, adapters and generators of their own."""

from __future__ import annotations

import os
import time
from typing import Any

import anyio
import msgspec

import kitchen
from kitchen import Context, Retry, WorkflowBuilder


class Config(msgspec.Struct):
    rounds: int = 3
    rate: float = 0.5


class Price:
    """An adapter that remembers nothing."""

    def of(self, number: int) -> int:
        return number * 7


def make_adapters() -> dict[str, Any]:
    return {"price": Price()}


def ask_price(ctx: Context[Config, Any]) -> None:
    ctx.append("prices", ctx.adapters["price"].of(ctx.item()) * ctx.config.rate)
    ctx.record_metric("price", ctx.state["prices"][-1])


@kitchen.workflow(config=Config)
def priced(wf: WorkflowBuilder) -> None:
    with wf.loop("rounds", over=lambda ctx: range(ctx.config.rounds)):
        wf.stage("ask_price", ask_price)


async def fail_twice(ctx: Context) -> None:
    ctx.increment("tries")
    if ctx.attempt < 3:
        raise ConnectionError("not yet")
    await anyio.sleep(1800)
    ctx.state["done"] = True  # never ctx.attempt: a crash costs one


@kitchen.workflow
def patient(wf: WorkflowBuilder) -> None:
    """Hours of waiting, and a time limit that is kept."""
    with wf.timeout(5 * 86_400):
        wf.stage("fail_twice", fail_twice, retries=Retry(5, backoff=3600.0, max_delay=7200.0))
        wf.stage("after", lambda ctx: ctx.state.update(after=True))


def fail(ctx: Context) -> None:
    ctx.state["never"] = True
    raise ValueError(f"the data of {ctx.index()} are broken")


def note(ctx: Context) -> None:
    ctx.append("notes", ctx.rng.random())


@kitchen.workflow
def fails(wf: WorkflowBuilder) -> None:
    """It fails, and always in the same way."""
    with wf.loop("rounds", over=lambda ctx: range(3)):
        wf.stage("note", note)
        with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
            wf.stage("fail", fail)


def skipped(ctx: Context) -> None:
    raise RuntimeError("as it always does")


@kitchen.workflow
def handles(wf: WorkflowBuilder) -> None:
    wf.stage("note", note)
    wf.stage("skipped", skipped, on_error="skip")
    wf.stage("note_again", note)


def publish(ctx: Context) -> None:
    ctx.state["published"] = ctx.idempotency_key


@kitchen.workflow
def publishes(wf: WorkflowBuilder) -> None:
    wf.stage("note", note)
    with wf.loop("rounds", over=lambda ctx: range(2)):
        wf.stage("publish", publish, effect="once")


@kitchen.workflow
def free(wf: WorkflowBuilder) -> None:
    with wf.async_loop(
        "loop",
        producer=lambda ctx: (ctx.state.get("step", 0), os.urandom(4).hex()),
        stop_when=lambda ctx: ctx.state["step"] > 3,
        pacing="free",
    ):
        wf.stage("consume", lambda ctx: (ctx.increment("step"), ctx.append("got", ctx.item()))[0])


def hang(ctx: Context) -> None:
    """For a long time, but only in a process that the one named here has started."""
    if os.environ.get("KITCHEN_HANG") == str(os.getppid()):
        time.sleep(60)


@kitchen.workflow
def hangs(wf: WorkflowBuilder) -> None:
    wf.stage("first", lambda ctx: ctx.state.update(first=os.getpid() < 0))
    wf.stage("hang", hang)


class Once:
    """A resource that can be opened once only."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise KeyError("nothing fits")


def use(ctx: Context) -> None:
    ctx.resources["once"].count += 1


@kitchen.workflow
def refuses_to_load(wf: WorkflowBuilder) -> None:
    wf.resource("once", lambda ctx: Once())
    wf.stage("use", use)
    wf.checkpoint()
    wf.stage("note", note)

"""Workflows with a mistake planted in each that looks like another one: what the causes must tell apart.

Rules: each is told by its cause, and the cause that it is easily taken for is not the first.
"""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kitchen
from kitchen import Context, WorkflowBuilder

_OWN = Path(tempfile.gettempdir()) / f"kitchen-causes-{os.getpid()}"
CACHE = Path(os.environ.setdefault("KITCHEN_PLANTED_CAUSES", str(_OWN)))


def three(ctx: Any) -> range:
    return range(3)


# --- resources ------------------------------------------------------------------------------------


class Forgetful:
    """Stateful, and its state is empty."""

    def __init__(self) -> None:
        self.items: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def push(ctx: Context) -> None:
    ctx.resources["buffer"].items.append(ctx.index())


@kitchen.workflow
def empty_state(wf: WorkflowBuilder) -> None:
    wf.resource("buffer", lambda ctx: Forgetful())
    with wf.loop("rounds", over=three):
        wf.stage("push", push)
        wf.checkpoint()


class Average:
    def __init__(self) -> None:
        self.value = 1.0

    def update(self, by: float) -> float:
        self.value = 0.5 * self.value + by
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def update(ctx: Context) -> None:
    ctx.append("values", ctx.resources["average"].update(ctx.rng.random()))


@kitchen.workflow
def declared(wf: WorkflowBuilder) -> None:
    wf.resource("average", lambda ctx: Average(), stateful=False)
    with wf.loop("rounds", over=three):
        wf.stage("update", update)


def update_peeked(ctx: Context) -> None:
    ctx.append("values", ctx.resources.peek("average").update(ctx.rng.random()))


@kitchen.workflow
def peeks(wf: WorkflowBuilder) -> None:
    wf.resource("average", lambda ctx: Average())
    with wf.loop("rounds", over=three):
        wf.stage("update_peeked", update_peeked)


class Model:
    """It loads, and not in place: who had its dict before keeps the old one."""

    def __init__(self) -> None:
        self.params = {"w": np.zeros(3)}

    def state_dict(self) -> dict[str, Any]:
        return {"params": {"w": self.params["w"].copy()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.params = dict(state["params"])


class Optimizer:
    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.steps = 0

    def step(self, by: float) -> None:
        self.steps += 1
        self.params["w"] += by

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def train(ctx: Context) -> None:
    ctx.resources["optimizer"].step(ctx.rng.random())
    ctx.append("sums", float(ctx.resources["model"].params["w"].sum()))


@kitchen.workflow
def loads_not_in_place(wf: WorkflowBuilder) -> None:
    wf.resource("model", lambda ctx: Model())
    wf.resource("optimizer", lambda ctx: Optimizer(ctx.resources["model"].params))
    with wf.loop("rounds", over=three):
        wf.stage("train", train)
        wf.checkpoint()


class Counting(Average):
    """What it forgets is a mere count of calls, of which nothing depends."""

    calls = 0

    def update(self, by: float) -> float:
        self.calls += 1
        return super().update(by)


@kitchen.workflow
def counts_calls(wf: WorkflowBuilder) -> None:
    wf.resource("average", lambda ctx: Counting())
    with wf.loop("rounds", over=three):
        wf.stage("update", update)
        wf.checkpoint()


def numbers() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def take_next(ctx: Context) -> None:
    ctx.append("taken", next(ctx.resources["numbers"]))


@kitchen.workflow
def generator(wf: WorkflowBuilder) -> None:
    wf.resource("numbers", lambda ctx: numbers(), stateful=False)
    with wf.loop("rounds", over=three):
        wf.stage("take_next", take_next)


# --- adapters -------------------------------------------------------------------------------------


class Service:
    def __init__(self) -> None:
        self.calls = 0

    def call(self) -> int:
        self.calls += 1
        return self.calls


def services() -> dict[str, Any]:
    return {"service": Service()}


def call(ctx: Context) -> None:
    ctx.state["calls"] = ctx.adapters["service"].call()


@kitchen.workflow
def remembers(wf: WorkflowBuilder) -> None:
    with wf.loop("rounds", over=three):
        wf.stage("call", call)


@kitchen.workflow(adapters=services)
def remembers_provided(wf: WorkflowBuilder) -> None:
    with wf.loop("rounds", over=three):
        wf.stage("call", call)


# --- outside, and globals -------------------------------------------------------------------------


def make_or_read(ctx: Context) -> None:
    """What it makes is not what it reads back later: as text it is rounded."""
    value = 1 / 3
    if CACHE.exists():
        value = float(CACHE.read_text())
    else:
        CACHE.write_text(f"{value:.3f}")
    ctx.state["value"] = value


@kitchen.workflow
def caches_in_a_file(wf: WorkflowBuilder) -> None:
    wf.stage("make_or_read", make_or_read)


LOCAL = threading.local()


def count_in_thread(ctx: Context) -> None:
    LOCAL.count = getattr(LOCAL, "count", 0) + 1
    ctx.state["count"] = LOCAL.count


@kitchen.workflow
def thread_local(wf: WorkflowBuilder) -> None:
    with wf.loop("rounds", over=three):
        wf.stage("count_in_thread", count_in_thread)


def note_attempt(ctx: Context) -> None:
    ctx.state["attempt"] = ctx.attempt


@kitchen.workflow
def beside_a_thread_local(wf: WorkflowBuilder) -> None:
    """`LOCAL` is in its module too, and has nothing to do with it."""
    wf.stage("note_attempt", note_attempt)


RATE = 1


def note_rate(ctx: Context) -> None:
    ctx.state["rate"] = RATE


@kitchen.workflow
def patched(wf: WorkflowBuilder) -> None:
    wf.stage("note_rate", note_rate)


def note_run(ctx: Context) -> None:
    ctx.state["run"] = uuid.uuid4().hex


@kitchen.workflow
def own_chance(wf: WorkflowBuilder) -> None:
    wf.stage("note_run", note_run)


# --- streams --------------------------------------------------------------------------------------


class CountsLate:
    """It counts behind the yield: its state is one item behind."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < 40:
            yield self.at
            self.at += 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def take_item(ctx: Context) -> None:
    ctx.state["last"] = ctx.item("items")


@kitchen.workflow
def stream_put_back(wf: WorkflowBuilder) -> None:
    with wf.stream_loop("items", over=lambda ctx: CountsLate()):
        wf.stage("take_item", take_item)

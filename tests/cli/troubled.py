"""Workflows in which things go wrong, for the tests of what the command line tells of it.

Rules: what is there or not in the folder (`mended`, `dies`) decides how a stage ends; what waits,
waits for ever, so that no time is of any matter.
"""

from __future__ import annotations

import itertools
import os

import msgspec

from tests.cli.calling import Kitchen

SOURCE = """
import asyncio
import os
import signal

import kitchen
from kitchen import Resource, Retry


class Net:
    def __init__(self):
        self.weight = 0.0

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, saved):
        self.weight = saved["weight"]


NET = Resource("net", lambda ctx: Net())


def start(ctx):
    ctx.state["n"] = 0
    ctx.state["seen"] = [1]
    ctx.state["names"] = {}
    ctx.state["old"] = "x"


def inner():
    try:
        {}["k"]
    except KeyError as error:
        raise RuntimeError("no k") from error


def broken(ctx):
    ctx.state["n"] = 99
    ctx.append("seen", 2)
    ctx.merge("names", {"a": 1})
    if "old" in ctx.state:
        del ctx.state["old"]
    ctx.state["loss"] = float("nan")
    if os.path.exists("mended"):
        return
    try:
        inner()
    except RuntimeError as error:
        raise ExceptionGroup("both", [error, ValueError("and this")]) from None


@kitchen.workflow
def failing(wf):
    wf.stage("start", start)
    with wf.loop("steps", over=lambda ctx: range(2)):
        wf.stage("broken", broken, retries=Retry(2, backoff=0.002, jitter=0))


def flaky(ctx):
    ctx.resources[NET].weight += 1
    if ctx.index("steps") == 2 and ctx.attempt == 1:
        raise ConnectionError("the service is away")


def bad(ctx):
    raise ValueError("not today")


async def endless(ctx):
    await asyncio.Event().wait()


@kitchen.workflow
def recovering(wf):
    wf.resource(NET)
    with wf.loop("steps", over=lambda ctx: range(4)):
        wf.stage("flaky", flaky, retries=Retry(3, backoff=0))
    wf.stage("optional", bad, on_error="skip")
    with wf.timeout(0.01, name="limit"):
        wf.stage("slow", endless)
    with wf.on_error("recover"):
        wf.stage("note", lambda ctx: None)


class Made(kitchen.Stage):
    def __init__(self, name):
        self.name = name

    def execute(self, ctx):
        ctx.state[self.name] = True

    def rollback(self, ctx, error):
        if os.path.exists("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name == "kept":
            raise OSError("it is not mine")
        del ctx.state[self.name]


@kitchen.workflow(compensate=True)
def compensating(wf):
    wf.stage("gone", Made("gone"))
    wf.stage("kept", Made("kept"))
    wf.stage("bad", bad)


async def push(ctx):
    ctx.state["pushed"] = ctx.index("e")
    if os.path.exists("dies"):
        os.unlink("dies")
        os.kill(os.getpid(), signal.SIGKILL)
    if os.path.exists("hangs"):
        await asyncio.Event().wait()


@kitchen.workflow
def pushing(wf):
    with wf.loop("e", over=lambda ctx: [1, 2]):
        wf.stage("push", push, effect="once", timeout=2.0 if not os.path.exists("hangs") else 0.05)


@kitchen.workflow
def two_pushes(wf):
    with wf.parallel("both", max_concurrency=2):
        wf.stage("left", endless, effect="once")
        wf.stage("right", endless, effect="once")


@kitchen.workflow
def waiting(wf):
    with wf.timeout(5_000, name="limit"):
        wf.stage("bad", bad, retries=Retry(3, backoff=1_000, max_delay=1_000, jitter=0))


@kitchen.workflow
def hanging(wf):
    wf.stage("endless", endless, timeout=5_000)


def stubborn(ctx):
    while not os.path.exists("free"):
        pass


@kitchen.workflow
def held(wf):
    wf.stage("stubborn", stubborn)
    wf.stage("after", lambda ctx: None)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def mute(ctx):
    raise Mute


@kitchen.workflow
def wordless(wf):
    wf.stage("mute", mute)
"""

_names = itertools.count()


def write(kitchen: Kitchen) -> str:
    """Write the module; its name."""
    name = f"job_trouble_{os.getpid()}_{next(_names)}"
    (kitchen.folder / f"{name}.py").write_text(SOURCE)
    return name


def types(kitchen: Kitchen, run: str) -> list[str]:
    """The types of a run's events; none while it is not there."""
    if not kitchen.head(run):
        return []
    lines = kitchen("log", run, "--json").stdout.splitlines()
    return [msgspec.json.decode(line)["type"] for line in lines]

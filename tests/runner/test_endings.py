"""Nothing is left behind by many runs in one process, whatever way they end."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Retry, WorkflowBuilder
from store import MemoryStore, StoreError, open_store
from tests.runner.running import Box, Killed, done, done_async, flow
from tests.runner.test_leftovers import SECONDS, files, ours, tasks_alive

SOON = 0.02


@contextmanager
def opened(ctx: Any) -> Generator[Box]:
    yield Box()


def scene(how: str) -> Any:
    """Resources, a stream, a producer and branches, in the middle of which it ends."""

    async def end(ctx: Any) -> None:
        match how:
            case "failed" | "skipped" | "handled":
                raise ValueError("no")
            case "killed":
                raise Killed
            case "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            case "retried" if ctx.attempt == 1:
                ctx.resources["box"].add()
                raise ConnectionError
            case "timed out":
                await anyio.sleep_forever()
            case _:
                pass

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", opened)
        wf.stage("before", lambda ctx: ctx.state.update(v=ctx.resources["box"].add()))
        with wf.timeout(60, name="most"), wf.parallel("p"):
            with wf.branch("streams"), wf.stream_loop("l", over=lambda ctx: iter(range(3))):
                wf.stage("read", lambda ctx: None)
            with wf.branch("makes"):
                with wf.async_loop(
                    "m", producer=lambda ctx: 1, stop_when=lambda ctx: ctx.index() == 2
                ):
                    wf.stage("take", lambda ctx: None)
            with wf.branch("ends"):
                more: Any = {"on_error": "skip"} if how == "skipped" else {}
                more |= {"timeout": SOON} if how == "timed out" else {}
                retries = Retry(1, backoff=0, on=ConnectionError)
                wf.stage("end", end, retries=retries, **more)
        if how == "handled":
            with wf.on_error("handler"):
                wf.stage("note", lambda ctx: None)
        wf.stage("behind", lambda ctx: None)

    return flow(build)


RAISES: dict[str, Any] = {
    "completed": (),
    "skipped": (),
    "handled": (),
    "retried": (),
    "failed": kitchen.RunError,
    "timed out": kitchen.RunError,
    "interrupted": kitchen.RunInterrupted,
    "killed": Killed,
}


def played(how: str, store: Any) -> None:
    if RAISES[how] == ():
        assert done(scene(how), store=store).status == "completed"
    else:
        with pytest.raises(RAISES[how]):
            done(scene(how), store=store)


def settled(threads: set[threading.Thread]) -> None:
    """Wait for the threads that have been told to end."""
    for thread in ours() - threads:
        thread.join(SECONDS)


@pytest.mark.parametrize("how", RAISES)
def test_every_ending_leaves_no_file_and_no_thread(how: str, tmp_path: Path) -> None:
    with open_store(tmp_path / "warm.db"):
        pass
    before, threads = files(), ours()
    folder = tmp_path / "store"
    folder.mkdir()
    played(how, folder / "k.db")
    settled(threads)
    assert ours() <= threads
    assert files() == before
    told = {name.name for name in folder.iterdir()}
    assert not [name for name in told if "cancel" in name or "tmp" in name], told


@pytest.mark.anyio
@pytest.mark.parametrize("how", [how for how in RAISES if how != "interrupted"])
async def test_every_ending_leaves_no_task(how: str) -> None:
    before = tasks_alive()
    if RAISES[how] == ():
        await done_async(scene(how))
    else:
        with pytest.raises(RAISES[how]):
            await done_async(scene(how))
    with anyio.fail_after(SECONDS):
        while tasks_alive() > before:
            await anyio.lowlevel.checkpoint()


class Full(MemoryStore):
    """A store that takes so many appends."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def append(self, *given: Any, **more: Any) -> int:
        self.left -= 1
        if self.left < 0:
            raise StoreError("the disk is full")
        return super().append(*given, **more)


@pytest.mark.anyio
@pytest.mark.parametrize("left", range(0, 12, 2))
async def test_a_store_that_fails_leaves_nothing(left: int) -> None:
    before, threads = tasks_alive(), ours()
    with anyio.fail_after(SECONDS), pytest.raises(Exception, match="the disk is full"):
        await done_async(scene("retried"), store=Full(left))
    with anyio.fail_after(SECONDS):
        while tasks_alive() > before or ours() - threads:
            await anyio.lowlevel.checkpoint()


def test_two_hundred_runs_leak_nothing(tmp_path: Path) -> None:
    """Neither files nor threads nor what the runs had opened."""
    alive: list[weakref.ref[Box]] = []

    @contextmanager
    def opening(ctx: Any) -> Generator[Box]:
        box = Box()
        alive.append(weakref.ref(box))
        yield box

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", opening)
        wf.stage("s", lambda ctx: ctx.state.update(v=ctx.resources["box"].add()))

    workflow, threads = flow(build), ours()
    with open_store(tmp_path / "k.db") as store:
        kitchen.run(workflow, store=store)
        before = files()
        for _ in range(200):
            kitchen.run(workflow, store=store)
        settled(threads)
        assert ours() <= threads
        assert files() == before
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []


def test_exceptions_of_attempts_long_over_are_let_go() -> None:
    """A thousand skipped failures keep neither their frames nor what these hold."""
    held: list[weakref.ref[Box]] = []
    left: list[int] = []

    def body(ctx: Any) -> None:
        local = Box()
        held.append(weakref.ref(local))
        raise ValueError(local.value)

    def count(ctx: Any) -> None:
        gc.collect()
        left.append(sum(ref() is not None for ref in held))

    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("l", over=lambda ctx: range(60)):
            wf.stage("s", body, on_error="skip", thread=False)
        wf.stage("count", count)

    done(flow(build))
    assert len(held) == 60
    assert left[0] <= 16


def test_the_cause_of_a_failure_is_kept_over_many_others() -> None:
    """In a branch that failed first and waits for its siblings, of which each fails a little."""

    def first(ctx: Any) -> None:
        raise ValueError("the first")

    def build(wf: WorkflowBuilder) -> None:
        with wf.parallel("p", on_error="finish", max_concurrency=1):
            wf.stage("first", first)
            with wf.branch("b"), wf.loop("l", over=lambda ctx: range(40)):
                wf.stage("s", lambda ctx: 1 / 0, on_error="skip")

    with pytest.raises(kitchen.RunError) as caught:
        done(flow(build))
    assert isinstance(caught.value.__cause__, ValueError)

"""However a run ends: no task, thread or file is left, and what is open is closed in good order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import kitchen
from store import open_store
from tests.runner.running import Box, Killed, done, done_async, flow, until

SECONDS = 20


class Scene:
    """A workflow with everything open at once, which ends in one of the ways there are."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.log: list[str] = []
        self.scope: Any = None
        self.busy = threading.Event()

    @asynccontextmanager
    async def open_async(self, ctx: Any) -> AsyncGenerator[dict[str, Any]]:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                yield {}
                tasks.cancel_scope.cancel()
        finally:
            await anyio.lowlevel.checkpoint()
            self.log.append("async closed")

    @contextmanager
    def open_sync(self, ctx: Any) -> Generator[Box]:
        try:
            yield Box()
        finally:
            self.log.append("sync closed")

    def source(self, ctx: Any) -> Generator[int]:
        try:
            yield from range(100)
        finally:
            self.log.append("source closed")

    def produce(self, ctx: Any) -> int:
        return ctx.index()

    async def end(self, ctx: Any) -> None:
        """In the middle of all: end as told, once the others are at work."""
        if ctx.index() < 3 or not self.how:
            return
        await until(self.busy.is_set)
        if self.how == "failed":
            raise ValueError("no")
        if self.how == "killed":
            raise Killed
        if self.how == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        if self.how == "cancelled":
            self.scope.cancel()
            await anyio.lowlevel.checkpoint()

    def read(self, ctx: Any) -> None:
        if ctx.index() >= 2:
            self.busy.set()
        if ctx.index() == 5:
            ctx.stop_loop()

    def build(self, wf: Any) -> None:
        wf.resource("outer", self.open_async, stateful=False)
        with wf.parallel("p", max_concurrency=3):
            with wf.branch("streaming"):
                wf.resource("inner", self.open_async, stateful=False)
                wf.resource("box", self.open_sync)
                with wf.stream_loop("st", over=self.source, prefetch=3):
                    wf.stage("read", self.read)
            with wf.branch("producing"):
                with wf.async_loop(
                    "al", producer=self.produce, stop_when=lambda ctx: ctx.index() == 6, producers=2
                ):
                    wf.stage("end", self.end)
            with wf.branch("threads"):
                with wf.loop("l", over=lambda ctx: range(3)):
                    wf.stage("work", lambda ctx: ctx.increment("n"))

    async def play(self, store: Path) -> None:
        with anyio.fail_after(SECONDS), anyio.CancelScope() as self.scope:
            await done_async(flow(self.build), store=store)


ENDS: dict[str, Any] = {
    "": None,
    "failed": kitchen.RunError,
    "interrupted": kitchen.RunInterrupted,
    "killed": Killed,
    "cancelled": None,
}


def tasks_alive() -> int:
    """How many tasks the event loop has."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        return trio.lowlevel.current_statistics().tasks_living


def files() -> list[str]:
    """The open files, but for that of a store's locks, which stays open for good reason."""
    folder, found = "/proc/self/fd", list[str]()
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"{folder}/{name}"))
    return sorted(name for name in found if not name.endswith(".lock"))


def ours() -> set[threading.Thread]:
    """The threads but those that an event loop keeps for its next call."""
    idle = ("AnyIO worker thread", "Trio thread", "MainThread")
    return {t for t in threading.enumerate() if not t.name.startswith(idle)}


@pytest.mark.anyio
@pytest.mark.parametrize("how", [how for how in ENDS if how != "interrupted"])
async def test_nothing_is_left(tmp_path: Path, how: str) -> None:
    with open_store(tmp_path / "warm.db"):  # what is loaded once stays open
        pass
    before = tasks_alive(), ours(), files()
    scene = Scene(how)
    if ENDS[how] is None:
        await scene.play(tmp_path / "k.db")
    else:
        with pytest.raises(ENDS[how]):
            await scene.play(tmp_path / "k.db")
    with anyio.fail_after(SECONDS):
        while tasks_alive() > before[0] or ours() - before[1]:
            await anyio.lowlevel.checkpoint()
    assert files() == before[2]
    closed = ["async closed", "async closed", "source closed", "sync closed"]
    assert sorted(scene.log) == closed
    # the last opened first; the outermost after all
    assert scene.log.index("sync closed") < scene.log.index("async closed")
    assert scene.log[-1] == "async closed"
    with open_store(tmp_path / "k.db") as store:
        assert store.verify() == []


@pytest.mark.parametrize("how", [how for how in ENDS if how])
def test_no_thread_outlives_the_call(tmp_path: Path, how: str) -> None:
    """A run of its own ends with its event loop, whose idle threads go too."""

    before = threading.enumerate()  # other tests may have left some for good

    def alive() -> list[threading.Thread]:
        new = (thread for thread in threading.enumerate() if thread not in before)
        return [thread for thread in new if thread.name.startswith(("AnyIO", "kitchen"))]

    def play() -> None:
        scene, store = Scene(how), tmp_path / "k.db"
        if how == "interrupted":  # only `run` listens to signals
            done(flow(scene.build), store=store)
        else:
            anyio.run(scene.play, store)
        assert len(scene.log) == 4

    if ENDS[how] is None:
        play()
    else:
        with pytest.raises(ENDS[how]):
            play()
    for thread in alive():
        thread.join(SECONDS)
    assert alive() == []


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["in a branch", "around"])
async def test_a_cancelled_run_closes_what_nobody_uses_any_more(where: str) -> None:
    """A thread cannot be cancelled: what it uses stays open until it has ended."""
    log: list[str] = []
    entered, release = threading.Event(), threading.Event()

    @asynccontextmanager
    async def open_it(ctx: Any) -> AsyncGenerator[dict[str, Any]]:
        yield {}
        log.append("closing")
        await anyio.lowlevel.checkpoint()
        log.append("closed")

    def body(ctx: Any) -> None:
        assert ctx.resources["it"] == {}
        entered.set()
        assert release.wait(SECONDS)
        log.append("used")

    def build(wf: Any) -> None:
        if where == "around":
            wf.resource("it", open_it, stateful=False)
        with wf.parallel("p"):
            with wf.branch("a"):
                if where == "in a branch":
                    wf.resource("it", open_it, stateful=False)
                wf.stage("s", body)

    async def free() -> None:
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            release.set()

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(done_async, flow(build))
            await until(entered.is_set)
            tasks.start_soon(free)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert log == ["used", "closing", "closed"]


@pytest.mark.anyio
async def test_cancelled_while_it_closes() -> None:
    """The rest is closed all the same."""
    log: list[str] = []
    closing = anyio.Event()

    def opening(name: str, wait: bool) -> Any:
        @asynccontextmanager
        async def open_it(ctx: Any) -> AsyncGenerator[str]:
            try:
                yield name
            finally:
                if wait:
                    closing.set()
                    await anyio.sleep_forever()
                await anyio.lowlevel.checkpoint()
                log.append(name)

        return open_it

    def build(wf: Any) -> None:
        wf.resource("first", opening("first", wait=False), stateful=False)
        wf.resource("third", opening("third", wait=True), stateful=False)
        wf.stage("fails", lambda ctx: 1 / 0)

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(done_async, flow(build))
            await closing.wait()
            tasks.cancel_scope.cancel()
    assert log == ["first"]

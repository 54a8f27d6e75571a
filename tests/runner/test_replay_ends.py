"""How a replay ends: at its end, by what is wrong with the log, or because it is stopped; nothing
stays open, and user code that stops the process stops it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import ConfigError, HistoryError, NotResumable, UnknownRun
from kitchen.runner.replaying.rehearse import rehearse
from kitchen.runner.secret import Secret
from store import MemoryStore, NewEvent
from tests.runner.replaying_tools import keys, only_one, ran, rehearsed
from tests.runner.running import flow


@pytest.mark.parametrize("how", ["plain", "async"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_open_is_closed(how: str, raised: type[BaseException], backend: str) -> None:
    life: list[str] = []

    @contextmanager
    def open_plain(ctx: Any) -> Generator[Any]:
        life.append("open")
        try:
            yield object()
        finally:
            life.append("close")

    @asynccontextmanager
    async def open_async(ctx: Any) -> AsyncGenerator[Any]:
        with open_plain(ctx) as made:
            await anyio.lowlevel.checkpoint()
            yield made

    def build(*, ends: bool) -> Any:
        async def body(ctx: Any) -> None:
            if ends:
                raise raised

        def author(wf: Any) -> None:
            wf.resource("r", open_plain if how == "plain" else open_async, stateful=False)
            wf.stage("s", body)
            wf.stage("t", lambda ctx: life.append("t"))

        return author

    store = ran(build(ends=False))
    life.clear()
    if raised is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            rehearsed(build(ends=True), store, backend=backend)
        assert life == ["open", "close"]
    else:
        assert keys(rehearsed(build(ends=True), store, backend=backend)) == [("s", (), "raised")]
        assert life == ["open", "t", "close"]


@pytest.mark.anyio
async def test_one_that_is_cancelled_closes_what_is_open() -> None:
    life: list[str] = []
    waiting = anyio.Event()
    hangs = [False]

    @asynccontextmanager
    async def open_slowly(ctx: Any) -> AsyncGenerator[Any]:
        life.append("open")
        yield object()
        await anyio.lowlevel.checkpoint()
        life.append("close")

    async def body(ctx: Any) -> None:
        if hangs[0]:
            waiting.set()
            await anyio.sleep_forever()

    def build(wf: Any) -> None:
        wf.resource("r", open_slowly, stateful=False)
        with wf.stream_loop("l", over=lambda ctx: iter(range(3))):
            wf.stage("s", body)

    store = MemoryStore()
    await kitchen.run_async(flow(build), store=store, run_id="r")
    life.clear()
    hangs[0] = True
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(rehearse, flow(build), store, "r"))
            await waiting.wait()
            tasks.cancel_scope.cancel()
    assert life == ["open", "close"]


def test_a_body_that_takes_too_long_now() -> None:
    hangs = [False]

    async def body(ctx: Any) -> None:
        if hangs[0]:
            await anyio.sleep_forever()

    def build(wf: Any) -> None:
        wf.stage("s", body, timeout=0.05)
        wf.stage("t", lambda ctx: None)

    store = ran(build)
    hangs[0] = True
    replay = rehearsed(build, store)
    assert only_one(replay).found.startswith("StageTimeout: took longer")
    assert replay.executed == 2


def test_an_event_that_is_not_legal_ends_it_before() -> None:
    calls: list[str] = []

    def build(wf: Any) -> None:
        for name in "abc":
            wf.stage(name, lambda ctx: calls.append(ctx.path))

    store = ran(build)
    whole = list(store.read("r"))
    broken = MemoryStore()
    events = [as_new(record) for record in whole]
    (at,) = [i for i, r in enumerate(whole) if r.type == "StageStarted" and r.path == "b"]
    broken.create_run("r", "w", [*events[:at], *events[at + 1 :]])
    calls.clear()
    replay = rehearsed(build, broken)
    difference = only_one(replay)
    assert (difference.seq, difference.path, difference.key) == (at + 1, "b", "event")
    assert calls == ["a"]
    assert replay.events == at


def as_new(record: Any) -> NewEvent:
    return NewEvent(record.type, record.path, record.visit, record.attempt, record.payload)


def test_what_cannot_be_replayed_at_all() -> None:
    store = ran(lambda wf: wf.stage("s", lambda ctx: None))
    build: Any = lambda wf: wf.stage("s", lambda ctx: None)  # noqa: E731
    with opened(store) as events, pytest.raises(UnknownRun):
        anyio.run(partial(rehearse, flow(build), events, "other"))
    for until in (0, -1, 10**6):
        with pytest.raises(HistoryError, match="has the events 1 to"):
            rehearsed(build, store, until=until)
    empty = MemoryStore()
    empty.create_run("r", "w", [])
    with pytest.raises(NotResumable, match="empty"):
        rehearsed(build, empty)


def test_secrets_are_needed_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Any = lambda wf: wf.stage("s", leak)  # noqa: E731
    prefix = ["was "]

    def leak(ctx: Any) -> None:
        ctx.state["told"] = prefix[0]
        if prefix[0] != "was ":
            ctx.state["told"] = prefix[0] + ctx.config.key.reveal()

    store = MemoryStore()
    kitchen.run(flow(build), {"key": Secret("sk-1234567")}, store=store, run_id="r")
    with pytest.raises(ConfigError, match="key"):
        rehearsed(build, store)
    monkeypatch.setenv("KITCHEN_SECRET_KEY", "sk-1234567")
    assert rehearsed(build, store).ok
    prefix[0] = "is "
    difference = only_one(rehearsed(build, store))
    assert difference.found == "'is ***'"
    assert "sk-1234567" not in str(difference)


def test_progress_is_told_in_order() -> None:
    told: list[tuple[int, int]] = []

    async def slow(ctx: Any) -> None:
        with anyio.move_on_after(0.03):
            await anyio.sleep_forever()

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("s", slow)

    store = ran(build)
    rehearsed(build, store, progress=lambda seq, last: told.append((seq, last)))
    assert len(told) >= 3
    assert told == sorted(told)
    assert {last for _, last in told} == {store.head("r")}

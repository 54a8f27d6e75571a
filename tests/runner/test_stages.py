"""Stages: every kind of body, where it runs, what its errors become; and what its `ctx` is worth.

1. Sync bodies run in a worker thread, unless declared `thread=False`; async ones on the loop.
2. What a body raises, `sys.exit` included, fails the run, which can be resumed.
3. A `ctx` that is used after its attempt raises `StaleContext` and changes nothing.
4. Randomness follows from seed, path and visit, and from nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sys
import threading
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
import sniffio

import kitchen
from kitchen import Stage, StaleContext
from store import MemoryStore
from tests.runner.running import (
    Dying,
    Killed,
    done,
    done_async,
    failure,
    flow,
    of_type,
    single,
    types,
)

pytestmark = pytest.mark.anyio


# --- bodies ---------------------------------------------------------------------------------------


def thread_of(ctx: Any) -> str:
    ctx.state["thread"] = threading.get_ident()
    return "what a body returns is not looked at"


async def task_of(ctx: Any) -> None:
    await anyio.lowlevel.checkpoint()
    ctx.state["thread"] = threading.get_ident()
    ctx.state["loop"] = sniffio.current_async_library()


class Instance(Stage):
    def __init__(self, word: str = "class") -> None:
        self.word = word

    def execute(self, ctx: Any) -> None:
        ctx.state["word"] = self.word
        thread_of(ctx)


class Async(Stage):
    async def execute(self, ctx: Any) -> None:
        await task_of(ctx)


class Calls:
    def __call__(self, ctx: Any) -> None:
        thread_of(ctx)


class CallsAsync:
    async def __call__(self, ctx: Any) -> None:
        await task_of(ctx)

    def method(self, ctx: Any) -> None:
        thread_of(ctx)


def with_more(more: int, ctx: Any) -> None:
    thread_of(ctx)


async def async_with_more(ctx: Any, more: int) -> None:
    await task_of(ctx)


@pytest.mark.parametrize(
    "body",
    [
        thread_of,
        Instance,
        Instance("given"),
        Calls(),
        CallsAsync().method,
        functools.partial(with_more, 1),
    ],
)
async def test_sync_bodies_run_in_a_worker_thread(body: Any) -> None:
    assert (await done_async(single(body))).state["thread"] != threading.get_ident()
    inline = await done_async(single(body, thread=False))
    assert inline.state["thread"] == threading.get_ident()


@pytest.mark.parametrize(
    "body", [task_of, Async, CallsAsync(), functools.partial(async_with_more, more=1)]
)
async def test_async_bodies_run_on_the_loop(body: Any, anyio_backend_name: str) -> None:
    run = await done_async(single(body))
    assert run.state == {"thread": threading.get_ident(), "loop": anyio_backend_name}


async def test_a_lambda_around_an_async_function_is_awaited(anyio_backend_name: str) -> None:
    run = await done_async(single(lambda ctx: task_of(ctx)))  # noqa: PLW0108
    assert run.state["loop"] == anyio_backend_name


def test_a_stage_class_is_made_once_for_all_runs() -> None:
    made: list[int] = []

    class Counted(Stage):
        def __init__(self) -> None:
            made.append(1)

        def execute(self, ctx: Any) -> None: ...

    workflow = single(Counted)
    done(workflow)
    done(workflow)
    assert made == [1]


# --- what they raise ------------------------------------------------------------------------------


class OddError(Exception):
    pass


def raiser(error: BaseException) -> Any:
    def body(ctx: Any) -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), "ValueError"),
        (OddError("odd"), f"{__name__}.OddError"),
        (SystemExit(3), "SystemExit"),
        (StopIteration(), "RuntimeError"),
        (ExceptionGroup("two", [ValueError("a"), TypeError("b")]), "ExceptionGroup"),
        (OSError(2, "gone", "/tmp/\udcff"), "FileNotFoundError"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (kitchen.KitchenError("ours", hint="do this"), "KitchenError"),
    ],
)
@pytest.mark.parametrize("how", ["thread", "inline", "async"])
async def test_what_a_body_raises_fails_the_run(
    error: BaseException, kind: str, how: str, anyio_backend_name: str
) -> None:
    if isinstance(error, asyncio.CancelledError) and anyio_backend_name == "trio":
        return
    if isinstance(error, asyncio.CancelledError | StopIteration) and how == "thread":
        return  # asyncio itself cannot carry these out of a thread as they are

    async def in_a_task(ctx: Any) -> None:
        raise error

    body = in_a_task if how == "async" else raiser(error)
    store, workflow = MemoryStore(), single(body, thread=how == "thread")
    with pytest.raises(kitchen.RunError) as caught:
        await done_async(workflow, store=store)
    run = caught.value.run
    assert run.status == "failed"
    assert run.failure.type == kind
    assert types(store)[-2:] == ["StageFailed", "RunFailed"]
    assert of_type(store, "RunFailed")[0].path == "s"
    resumed = await kitchen.resume_async("r", single(lambda ctx: None), store=store)
    assert resumed.status == "completed"


def test_sys_exit_is_told_as_a_failure() -> None:
    told = failure(single(lambda ctx: sys.exit(3)))
    assert (told.type, told.message) == ("SystemExit", "3")


def test_the_traceback_begins_with_the_users_code() -> None:
    told = failure(single(raiser(ValueError("no")), thread=False))
    frames = [line for line in told.traceback.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert "test_stages.py" in frames[0]


# --- sealed contexts ------------------------------------------------------------------------------


USES: list[Any] = [
    lambda ctx: ctx.state.a,
    lambda ctx: ctx.state.get("a"),
    lambda ctx: "a" in ctx.state,
    lambda ctx: list(ctx.state),
    lambda ctx: ctx.state.update(a=2),
    lambda ctx: ctx.state.pop("a"),
    lambda ctx: ctx.append("xs", 1),
    lambda ctx: ctx.increment("a"),
    lambda ctx: ctx.merge("m", {}),
    lambda ctx: ctx.record_metric("m", 1),
    lambda ctx: ctx.record_metrics({"m": 1}),
    lambda ctx: ctx.progress(1),
    lambda ctx: ctx.item("l"),
    lambda ctx: ctx.index("l"),
    lambda ctx: ctx.rng,
    lambda ctx: ctx.numpy_rng(),
    lambda ctx: ctx.resources["r"],
    lambda ctx: ctx.resources.peek("r"),
]


@pytest.mark.parametrize("number", range(len(USES)))
async def test_a_ctx_that_was_kept_is_stale(number: int) -> None:
    kept: list[Any] = []

    def keep(ctx: Any) -> None:
        ctx.state.a = 1
        kept.append(ctx)

    def use(ctx: Any) -> None:
        with pytest.raises(StaleContext, match=r"ctx of l/s\[0\] \(attempt 1\) was used after"):
            USES[number](kept[0])

    def build(wf: Any) -> None:
        wf.resource("r", lambda ctx: 1, stateful=False)
        with wf.loop("l", over=lambda ctx: range(1)):
            wf.stage("s", keep)
            wf.stage("t", use)

    run = await done_async(flow(build))
    assert dict(run.state) == {"a": 1}


async def test_a_leaked_task_gets_stale_context() -> None:
    got: list[BaseException] = []
    go, ended = anyio.Event(), anyio.Event()

    async def leak(ctx: Any) -> None:
        await go.wait()
        try:
            ctx.state.late = 1
        except StaleContext as error:
            got.append(error)
        ended.set()

    state: Any = None
    async with anyio.create_task_group() as tasks:

        async def start(ctx: Any) -> None:
            tasks.start_soon(leak, ctx)

        async def after(ctx: Any) -> None:
            go.set()
            await ended.wait()

        def build(wf: Any) -> None:
            wf.stage("start", start)
            wf.stage("after", after)

        state = (await done_async(flow(build))).state
    assert "late" not in state
    assert len(got) == 1


async def test_a_leaked_thread_gets_stale_context() -> None:
    go, got = threading.Event(), list[BaseException]()
    threads: list[threading.Thread] = []

    def leak(ctx: Any) -> None:
        go.wait(20)
        try:
            ctx.append("late", 1)
        except StaleContext as error:
            got.append(error)

    def start(ctx: Any) -> None:
        threads.append(threading.Thread(target=leak, args=(ctx,)))
        threads[0].start()

    def after(ctx: Any) -> None:
        go.set()
        threads[0].join(20)

    def build(wf: Any) -> None:
        wf.stage("start", start)
        wf.stage("after", after)

    run = await done_async(flow(build))
    assert dict(run.state) == {}
    assert len(got) == 1


async def test_the_ctx_of_a_predicate_is_sealed_too() -> None:
    kept: list[Any] = []

    def build(wf: Any) -> None:
        with wf.conditional(lambda ctx: kept.append(ctx) or True, name="asks"):
            wf.stage("s", lambda ctx: kept[0].rng)

    with pytest.raises(kitchen.RunError, match="StaleContext"):
        await done_async(flow(build))


# --- seeds ----------------------------------------------------------------------------------------


def draws(ctx: Any) -> None:
    ctx.append("drawn", (ctx.rng.random(), float(ctx.numpy_rng().random()), ctx.seed))
    ctx.append("drawn", (ctx.rng.random(), float(ctx.numpy_rng().random()), ctx.seed))


def drawing(die: Dying | None = None) -> Any:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("a", draws)
            wf.stage("b", draws)
        wf.stage("die", lambda ctx: die and die())

    return flow(build)


def test_random_numbers_differ_by_path_visit_and_seed_and_are_the_same_again() -> None:
    one, again, other = (done(drawing(), seed=seed).state["drawn"] for seed in (1, 1, 2))
    assert one == again
    numbers = [number for draw in (*one, *other) for number in draw[:2]]
    assert len(set(numbers)) == len(numbers) == 32
    assert len({draw[2] for draw in (*one, *other)}) == 8


def test_random_numbers_are_the_same_on_every_attempt() -> None:
    seen: list[Any] = []
    die = Dying(0)

    def body(ctx: Any) -> None:
        seen.append((ctx.attempt, ctx.rng.random(), ctx.seed))
        die()

    workflow, store = single(body), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    kitchen.resume("r", workflow, store=store)
    assert [attempt for attempt, *_ in seen] == [1, 2]
    assert seen[0][1:] == seen[1][1:]


async def test_the_same_numbers_on_both_event_loops() -> None:
    run = await done_async(drawing(), seed=5)
    there = await anyio.to_thread.run_sync(lambda: done(drawing(), seed=5))
    assert run.state["drawn"] == there.state["drawn"]


@pytest.mark.parametrize("seeded", [True, False])
def test_seed_globals(seeded: bool) -> None:
    def body(ctx: Any) -> None:
        ctx.append("drawn", (random.random(), float(np.random.rand())))

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("s", body)

    before = random.getstate(), np.random.get_state()
    try:
        one, two = (done(flow(build, seed_globals=seeded)).state["drawn"] for _ in range(2))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    assert (one == two) is seeded
    assert len({number for draw in one for number in draw}) == 6


def test_adapters_come_from_the_call_or_from_the_provider() -> None:
    def provider(config: Any) -> dict[str, Any]:
        return {"word": config.word}

    workflow = single(lambda ctx: ctx.state.update(got=ctx.adapters["word"]), adapters=provider)
    assert done(workflow, {"word": "provided"}).state["got"] == "provided"
    assert done(workflow, {"word": "x"}, adapters={"word": "given"}).state["got"] == "given"


def test_what_a_ctx_says_of_its_place() -> None:
    told: list[Any] = []

    def body(ctx: Any) -> None:
        told.append((ctx.path, ctx.visit, ctx.attempt, ctx.incarnation, ctx.run_id))
        told.append((ctx.idempotency_key, ctx.logger.name, repr(ctx)))

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: ["ab"]):
            wf.stage("s", body)

    done(flow(build))
    assert told == [
        ("l/s", (0,), 1, 0, "r"),
        ("r/l[0]/s/0", "kitchen.run.l.s", "<Context of l/s[0], attempt 1>"),
    ]

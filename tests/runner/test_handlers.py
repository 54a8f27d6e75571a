"""`on_error`: what is skipped or handled goes on behind it, and nothing of what failed goes on.

Every kind of node that can fail is failed, on both event loops.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Stage, WorkflowBuilder
from store import MemoryStore
from tests.runner.running import Box, done, done_async, flow, of_type, types


def boom(ctx: Any) -> None:
    ctx.state["lost"] = True
    raise ValueError("boom")


async def boom_later(ctx: Any) -> None:
    await anyio.lowlevel.checkpoint()
    boom(ctx)


async def forever(ctx: Any) -> None:
    await anyio.sleep_forever()


def note(key: str) -> Any:
    return lambda ctx: ctx.state.update({key: True})


def _stage(wf: WorkflowBuilder) -> None:
    wf.stage("n", boom)


def _async_stage(wf: WorkflowBuilder) -> None:
    wf.stage("n", boom_later)


def _loop(wf: WorkflowBuilder) -> None:
    with wf.loop("n", over=lambda ctx: range(2)):
        wf.stage("s", boom)


def _loop_without_items(wf: WorkflowBuilder) -> None:
    with wf.loop("n", over=boom):
        wf.stage("s", boom)


def _stream(wf: WorkflowBuilder) -> None:
    with wf.stream_loop("n", over=lambda ctx: iter(range(9))):
        wf.stage("s", boom)


def _stream_that_breaks(wf: WorkflowBuilder) -> None:
    def source(ctx: Any) -> Generator[int]:
        yield 1
        raise ValueError("boom")

    with wf.stream_loop("n", over=source):
        wf.stage("s", lambda ctx: None)


def _async_loop(wf: WorkflowBuilder) -> None:
    with wf.async_loop("n", producer=lambda ctx: 1, stop_when=lambda ctx: False):
        wf.stage("s", boom)


def _producer(wf: WorkflowBuilder) -> None:
    with wf.async_loop("n", producer=boom, stop_when=lambda ctx: False):
        wf.stage("s", lambda ctx: None)


def _stop_when(wf: WorkflowBuilder) -> None:
    with wf.async_loop("n", producer=lambda ctx: 1, stop_when=boom):
        wf.stage("s", lambda ctx: None)


def _conditional(wf: WorkflowBuilder) -> None:
    with wf.conditional(lambda ctx: True, name="n"):
        wf.stage("s", boom)


def _predicate(wf: WorkflowBuilder) -> None:
    with wf.conditional(boom, name="n"):
        wf.stage("s", boom)


def _include(wf: WorkflowBuilder) -> None:
    wf.include(flow(_loop), name="n")


def _cancel(wf: WorkflowBuilder) -> None:
    with wf.parallel("n"):
        wf.stage("s", boom)
        wf.stage("t", forever)


def _finish(wf: WorkflowBuilder) -> None:
    with wf.parallel("n", on_error="finish"):
        wf.stage("s", boom)
        wf.stage("t", note("lost"))


def _over(wf: WorkflowBuilder) -> None:
    with wf.parallel("n", over=lambda ctx: [1, 2, 3], max_concurrency=2):
        wf.stage("s", boom_later)


def _clash(wf: WorkflowBuilder) -> None:
    with wf.parallel("n", over=lambda ctx: [1, 2]):
        wf.stage("s", note("lost"))


def _reducer(wf: WorkflowBuilder) -> None:
    with wf.parallel("n", merge={"lost": lambda before, values: boom({})}):
        wf.stage("s", note("lost"))
        wf.stage("t", note("lost"))


def _timeout(wf: WorkflowBuilder) -> None:
    with wf.timeout(0.05, name="n"):
        wf.stage("s", forever)


def _timeout_in_time(wf: WorkflowBuilder) -> None:
    with wf.timeout(60, name="n"):
        wf.stage("s", boom)


def _factory(wf: WorkflowBuilder) -> None:
    with wf.loop("n", over=lambda ctx: [1]):
        wf.resource("r", boom)
        wf.stage("s", note("lost"))


def _closing(wf: WorkflowBuilder) -> None:
    @contextlib.contextmanager
    def opened(ctx: Any) -> Generator[int]:
        yield 1
        raise ValueError("boom")

    with wf.loop("n", over=lambda ctx: [1]):
        wf.resource("r", opened, stateful=False)
        wf.stage("s", lambda ctx: None)


def _checkpoint(wf: WorkflowBuilder) -> None:
    class Unsavable(Box):
        def state_dict(self) -> Any:
            raise ValueError("boom")

    with wf.loop("n", over=lambda ctx: [1]):
        wf.resource("r", lambda ctx: Unsavable())
        wf.stage("s", lambda ctx: ctx.resources["r"].add())
        wf.checkpoint("c")


KINDS = [
    _stage, _async_stage, _loop, _loop_without_items, _stream, _stream_that_breaks, _async_loop,
    _producer, _stop_when, _conditional, _predicate, _include, _cancel, _finish, _over, _clash,
    _reducer, _timeout, _timeout_in_time, _factory, _closing, _checkpoint,
]  # fmt: skip


def handled(kind: Any) -> Any:
    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("before", lambda ctx: ctx.state.update(changes=ctx.resources["box"].add()))
        kind(wf)
        with wf.on_error("handler"):
            wf.stage("note", note("handled"))
        wf.stage("behind", lambda ctx: ctx.state.update(again=ctx.resources["box"].add()))

    return flow(build)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__.strip("_"))
async def test_a_failure_is_handled(kind: Any) -> None:
    """Where it stands alone, and on the other event loop the same."""
    store = MemoryStore()
    with anyio.fail_after(20):
        run = await done_async(handled(kind), store=store)
    assert run.state == {"changes": 1, "handled": True, "again": 1.5}
    assert store.verify() == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__.strip("_"))
def test_a_failure_that_nobody_handles_ends_the_run(kind: Any) -> None:
    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        done(flow(kind), store=store)
    assert types(store)[-1] == "RunFailed"
    assert store.verify() == []


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS[:-1], ids=lambda k: k.__name__.strip("_"))
async def test_a_failure_is_handled_in_a_branch_and_in_a_loop(kind: Any) -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("turns", over=lambda ctx: range(2)), wf.parallel("p"):
            with wf.branch("b"):
                kind(wf)
                with wf.on_error("handler"):
                    wf.stage("note", note("handled"))
            wf.stage("sibling", lambda ctx: ctx.append("turns", ctx.item("turns")))

    store = MemoryStore()
    with anyio.fail_after(20):
        run = await done_async(flow(build), store=store)
    assert run.state["turns"] == [0, 1]
    assert run.state["handled"] is True
    assert store.verify() == []


@pytest.mark.anyio
async def test_a_skipped_stage() -> None:
    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())

        def touch(ctx: Any) -> None:
            ctx.state["calls"] = ctx.resources["box"].add()
            raise ValueError("boom")

        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("plain", boom_later, on_error="skip")
            wf.stage("touch", touch, on_error="skip", retries=kitchen.Retry(1, backoff=0))
        wf.stage("end", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    store = MemoryStore()
    run = await done_async(flow(build), store=store)
    assert run.state == {"changes": 0}
    counted = [r for r in of_type(store, "StageSkipped") if r.counts]
    assert [(r.path, r.visit) for r in counted] == [
        (path, (i,)) for i in range(3) for path in ("l/plain", "l/touch")
    ]
    calls = [r for r in of_type(store, "StageFailed") if r.path == "l/touch"]
    assert len(calls) == 6  # each twice: behind a rewind none of them is run again


def test_nested_handlers_the_nearest_takes_it() -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("outer", over=lambda ctx: range(2)):
            with wf.conditional(lambda ctx: True, name="inner"):
                wf.stage("s", boom)
            with wf.on_error("near"):
                wf.stage("note", lambda ctx: ctx.append("near", ctx.item("outer")))
        with wf.on_error("far"):
            wf.stage("note", note("far"))

    assert done(flow(build)).state == {"near": [0, 1]}


def test_a_handler_that_fails_is_a_failure_further_out() -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("outer", over=lambda ctx: range(2)):
            wf.stage("s", boom)
            with wf.on_error("near"):
                wf.stage("also", boom)
            wf.stage("unreached", note("unreached"))
        with wf.on_error("far"):
            wf.stage("note", note("far"))

    assert done(flow(build)).state == {"far": True}


def test_a_handler_that_fails_and_nobody_takes_it() -> None:
    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", boom)
        with wf.on_error("near"):
            wf.stage("also", lambda ctx: 1 / 0)

    with pytest.raises(kitchen.RunError, match="failed at near/also\n  ZeroDivisionError"):
        done(flow(build))


def test_handlers_read_the_items_around_them() -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("letters", over=lambda ctx: ["a", "b"]):
            with wf.loop("n", over=lambda ctx: [1]):
                wf.stage("s", boom)
            with wf.on_error("handler"):
                wf.stage("note", lambda ctx: ctx.append("seen", (ctx.item("letters"), ctx.index())))

    assert done(flow(build)).state == {"seen": [("a", 0), ("b", 1)]}


def opening(told: list[Any]) -> Any:
    def build(wf: WorkflowBuilder) -> None:
        @contextlib.contextmanager
        def plain(ctx: Any) -> Generator[int]:
            try:
                yield 1
            except ValueError as error:
                told.append(("plain", str(error)))
                raise
            finally:
                told.append("plain closed")

        @contextlib.asynccontextmanager
        async def later(ctx: Any) -> AsyncGenerator[int]:
            try:
                yield 2
            except ValueError as error:
                told.append(("async", str(error)))
                raise
            finally:
                told.append("async closed")

        with wf.loop("l", over=lambda ctx: [1]):
            wf.resource("plain", plain, stateful=False)
            wf.resource("async", later, stateful=False)
            wf.stage("s", boom)
        with wf.on_error("handler"):
            wf.stage("note", lambda ctx: ctx.state.update(seen="plain" in ctx.resources))
        wf.stage("behind", lambda ctx: told.append("behind"))

    return flow(build)


@pytest.mark.anyio
async def test_what_was_opened_inside_is_closed_before_the_handler() -> None:
    """Context managers are told of the exception."""
    told: list[Any] = []
    run = await done_async(opening(told))
    assert told == [
        ("async", "boom"), "async closed", ("plain", "boom"), "plain closed", "behind",
    ]  # fmt: skip
    assert run.state == {"seen": False}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_streams_are_closed_and_producers_gone(kind: str) -> None:
    told: list[str] = []

    def source(ctx: Any) -> Generator[int]:
        try:
            while True:
                yield 1
        finally:
            told.append("stream closed")

    async def source_later(ctx: Any) -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            told.append("stream closed")

    producing: list[int] = []

    async def produce(ctx: Any) -> int:
        if ctx.index() == 0:
            return 0
        producing.append(1)
        try:
            await anyio.sleep_forever()
        finally:
            producing.pop()
        return 1

    def build(wf: WorkflowBuilder) -> None:
        with wf.stream_loop("l", over=source if kind == "sync" else source_later):
            with wf.async_loop("a", producer=produce, stop_when=lambda ctx: False):
                wf.stage("s", boom)
        with wf.on_error("handler"):
            wf.stage("note", lambda ctx: ctx.state.update(told=list(told), making=len(producing)))

    run = await done_async(flow(build))
    assert run.state == {"told": ["stream closed"], "making": 0}


def test_what_failed_had_touched_is_taken_back_before_the_handler() -> None:
    """And what it had done before, in stages that were completed, is kept."""

    def touch_and_fail(ctx: Any) -> None:
        ctx.resources["box"].add()
        raise ValueError("boom")

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("good", lambda ctx: ctx.state.update(good=ctx.resources["box"].add()))
            with wf.conditional(lambda ctx: ctx.index() == 1, name="c"):
                wf.stage("bad", touch_and_fail)
        with wf.on_error("handler"):
            wf.stage("note", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    store = MemoryStore()
    assert done(flow(build), store=store).state == {"good": 1.5, "changes": 2}
    assert types(store).count("RunRewound") == 1
    assert "RewindDiverged" not in types(store)


def test_a_parallel_that_failed_leaves_nothing() -> None:
    """What its branches had committed to the box is taken back too."""

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("before", lambda ctx: ctx.resources["box"].add())
        with wf.parallel("p", on_error="finish"):
            with wf.branch("trains"):
                wf.stage("train", lambda ctx: ctx.state.update(x=ctx.resources["box"].add()))
            wf.stage("fails", boom)
        with wf.on_error("handler"):
            wf.stage("note", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    assert done(flow(build)).state == {"changes": 1}


def test_an_empty_handler_just_goes_on() -> None:
    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", boom)
        with wf.on_error():
            pass
        wf.stage("behind", note("behind"))

    assert done(flow(build)).state == {"behind": True}


def test_a_rollback_comes_before_the_handler() -> None:
    class Undone(Stage):
        def execute(self, ctx: Any) -> None:
            raise ValueError("boom")

        def rollback(self, ctx: Any, error: Any) -> None:
            ctx.append("told", error.message)

    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", Undone)
        with wf.on_error("handler"):
            wf.stage("note", lambda ctx: ctx.append("told", "handler"))

    assert done(flow(build)).state == {"told": ["boom", "handler"]}

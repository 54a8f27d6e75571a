"""When a branch fails, or somebody asks the run to stop while branches run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import kitchen
from store import MemoryStore
from tests.runner.running import (
    Box,
    done,
    done_async,
    flow,
    of_type,
    types,
    until,
)

SECONDS = 20


class Boom(Exception):
    """What a branch fails with."""


def failing(what: str = "boom", before: Callable[[], Any] = lambda: None) -> Callable[[Any], None]:
    def body(ctx: Any) -> None:
        before()
        raise Boom(what)

    return body


def waits(event: threading.Event) -> None:
    assert event.wait(SECONDS)


# --- on_error="cancel" ----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_siblings_are_cancelled_where_they_wait() -> None:
    waiting = anyio.Event()
    told: list[str] = []

    async def waits_for_ever(ctx: Any) -> None:
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            told.append("cancelled")

    async def fails(ctx: Any) -> None:
        await waiting.wait()
        raise Boom("no")

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=2):
            wf.stage("waits", waits_for_ever)
            wf.stage("fails", fails)
            wf.stage("never", lambda ctx: told.append("never"))

    store = MemoryStore()
    with anyio.fail_after(SECONDS), pytest.raises(kitchen.RunError) as caught:
        await done_async(flow(build), store=store)
    assert told == ["cancelled"]
    assert isinstance(caught.value.__cause__, Boom)
    assert "failed at p/fails" in str(caught.value)
    assert types(store)[-3:] == ["StageFailed", "StageInterrupted", "RunFailed"]


def test_a_sibling_in_a_thread_is_awaited() -> None:
    """It cannot be cancelled; but when the run has ended, nothing works on."""
    failed, ended = threading.Event(), threading.Event()
    started = threading.Event()

    class Watching:
        def on_facts(self, run_id: str, facts: Any, state: Any) -> None:
            if state.status == "failed":
                failed.set()

        def on_progress(self, *_: Any) -> None: ...

    def sibling(ctx: Any) -> None:
        started.set()
        waits(failed)
        ctx.state["late"] = 1  # which nobody will commit
        ended.set()

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=2):
            wf.stage("sibling", sibling)
            wf.stage("fails", failing(before=lambda: waits(started)))

    with pytest.raises(kitchen.RunError) as caught:
        done(flow(build), observers=[Watching()])
    assert ended.is_set()
    assert caught.value.run.state == {}


def test_what_is_done_is_not_done_again() -> None:
    calls: list[str] = []
    broken = [True]

    def note(name: str) -> Any:
        def body(ctx: Any) -> None:
            calls.append(name)
            ctx.state[name] = ctx.rng.random()
            if name == "c2" and broken[0]:
                raise Boom

        return body

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=1):
            wf.stage("a", note("a"))
            with wf.branch("b"):
                wf.stage("b1", note("b1"))
                wf.stage("b2", note("b2"))
            with wf.branch("c"):
                wf.stage("c1", note("c1"))
                wf.stage("c2", note("c2"))
            wf.stage("d", note("d"))

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    assert calls == ["a", "b1", "b2", "c1", "c2"]
    calls.clear()
    broken[0] = False
    run = kitchen.resume("r", workflow, store=store)
    assert calls == ["c2", "d"]
    assert list(run.state) == ["a", "b1", "b2", "c1", "c2", "d"]
    assert run.state == done(workflow).state


# --- on_error="finish" ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 6])
def test_the_others_run_to_their_end(limit: int) -> None:
    """And the run tells the first failure in branch order, whichever came first."""
    later, calls = threading.Event(), list[str]()

    def build(wf: Any) -> None:
        with wf.parallel("p", on_error="finish", max_concurrency=limit):
            wf.stage("a", lambda ctx: calls.append("a"))
            with wf.branch("b"):
                wf.stage("b1", lambda ctx: calls.append("b1"))
                wf.stage("b2", failing("first", lambda: limit == 1 or waits(later)))
                wf.stage("b3", lambda ctx: calls.append("b3"))
            wf.stage("c", failing("second", later.set))
            with wf.branch("d"):
                wf.stage("d1", lambda ctx: calls.append("d1"))
                wf.stage("d2", lambda ctx: calls.append("d2"))
        wf.stage("after", lambda ctx: calls.append("after"))

    store = MemoryStore()
    with pytest.raises(kitchen.RunError, match="first") as caught:
        done(flow(build), store=store)
    assert str(caught.value.__cause__) == "first"
    assert sorted(calls) == ["a", "b1", "d1", "d2"]
    assert len(of_type(store, "BranchFailed")) == 2
    assert len(of_type(store, "BranchCompleted")) == 2


def test_resumed_only_what_failed_runs_again() -> None:
    calls: list[str] = []
    broken = {"b", "d"}

    def body(ctx: Any) -> None:
        name = ctx.item()
        calls.append(name)
        ctx.append("l", (name, ctx.rng.random()))
        if name in broken:
            raise Boom(name)

    def build(wf: Any) -> None:
        with wf.parallel(
            "p", over=lambda ctx: ["a", "b", "c", "d"], on_error="finish", merge={"l": "extend"}
        ):
            wf.stage("s", body)

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunError, match="b"):
        done(workflow, store=store)
    assert sorted(calls) == ["a", "b", "c", "d"]
    calls.clear()
    broken.clear()
    run = kitchen.resume("r", workflow, store=store)
    assert sorted(calls) == ["b", "d"]
    assert run.state == done(workflow).state


@pytest.mark.anyio
async def test_a_failure_in_a_nested_parallel() -> None:
    """Inside, siblings are cancelled; outside, they finish."""
    told: list[str] = []
    waiting = anyio.Event()

    async def cancelled(ctx: Any) -> None:
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            told.append("inner cancelled")

    async def fails(ctx: Any) -> None:
        await waiting.wait()
        raise Boom("deep")

    async def finishes(ctx: Any) -> None:
        await until(lambda: "inner cancelled" in told)
        told.append("outer finished")

    def build(wf: Any) -> None:
        with wf.parallel("outer", on_error="finish", max_concurrency=2):
            with wf.branch("one"):
                with wf.parallel("inner", max_concurrency=2):
                    wf.stage("waits", cancelled)
                    wf.stage("fails", fails)
            wf.stage("two", finishes)

    with pytest.raises(kitchen.RunError) as caught:
        await done_async(flow(build))
    assert str(caught.value.__cause__) == "deep"
    assert told == ["inner cancelled", "outer finished"]


def test_a_half_step_of_a_cancelled_branch_is_taken_back() -> None:
    """A stage had changed a stateful resource, and was cancelled."""
    broken = [True]

    async def half(ctx: Any) -> None:
        ctx.resources["box"].add(3)
        ready.set()
        if broken[0]:
            await anyio.sleep_forever()
        ctx.state["box"] = ctx.resources["box"].value

    async def fails(ctx: Any) -> None:
        await ready.wait()
        if broken[0]:
            raise Boom

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box(1))
        with wf.parallel("p", max_concurrency=2):
            wf.stage("half", half)
            wf.stage("fails", fails)

    store, workflow = MemoryStore(), flow(build)
    ready = anyio.Event()
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    broken[0] = False
    ready = anyio.Event()
    assert kitchen.resume("r", workflow, store=store).state == {"box": 3.5}


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_ctrl_c_lets_the_running_branches_end_and_no_other_begin() -> None:
    calls: list[int] = []
    both = threading.Barrier(2)
    broken = [True]

    def body(ctx: Any) -> None:
        calls.append(ctx.item())
        if broken[0]:
            both.wait(SECONDS)
            if ctx.item() == 0:
                os.kill(os.getpid(), signal.SIGINT)
            both.wait(SECONDS)
        ctx.append("l", ctx.item() + ctx.rng.random())
        ctx.record_metric("m", ctx.item())

    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: range(5), max_concurrency=2, merge=MERGE):
            wf.stage("s", body)
            wf.stage("t", lambda ctx: ctx.append("l", -1))

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store)
    assert sorted(calls) == [0, 1]
    assert len(of_type(store, "StageCompleted")) == 2
    calls.clear()
    broken[0] = False
    run = kitchen.resume("r", workflow, store=store)
    assert sorted(calls) == [2, 3, 4]
    whole = done(workflow)
    assert run.state == whole.state
    assert [p.value for p in run.metrics["m"]] == [0, 1, 2, 3, 4]


MERGE: Any = {"l": "extend"}


def test_ctrl_c_saves_what_a_branch_has_touched() -> None:
    def body(ctx: Any) -> None:
        ctx.resources["box"].add(ctx.item())
        if ctx.item() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.parallel("p", max_concurrency=2):
            with wf.branch("a"):
                with wf.loop("l", over=lambda ctx: range(4)):
                    wf.stage("s", body)
            wf.stage("b", lambda ctx: None)
        wf.stage("note", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store)
    assert types(store)[-1] == "RunInterrupted"
    assert "CheckpointSaved" in types(store)
    run = kitchen.resume("r", workflow, store=store)
    assert run.state["box"] == {"value": (0 * 0.5 + 1) * 0.25 + 2 * 0.5 + 3, "changes": 4}
    assert not of_type(store, "RunRewound")


# --- cancelled from outside -----------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_cancelled_run_leaves_no_task_and_can_be_resumed() -> None:
    waiting: list[int] = []
    held = True

    async def body(ctx: Any) -> None:
        waiting.append(ctx.item())
        if held and ctx.item() > 0:
            await anyio.sleep_forever()
        ctx.append("l", ctx.item())

    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: range(4), max_concurrency=3, merge=MERGE):
            wf.stage("s", body)

    store, workflow = MemoryStore(), flow(build)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: done_async(workflow, store=store))
            await until(lambda: len(waiting) == 4)
            tasks.cancel_scope.cancel()
    assert kitchen.history("r", store=store).status == "crashed"
    held = False
    waiting.clear()
    run = await kitchen.resume_async("r", workflow, store=store)
    assert run.state == {"l": [0, 1, 2, 3]}
    assert sorted(waiting) == [1, 2, 3]

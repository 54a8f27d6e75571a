"""Branches that fail, processes that die and people who stop them, all in one run.

However often and in whatever way it ends, once what was broken is mended the run comes to the
same end as one that never failed.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Context, Workflow, WorkflowBuilder
from store import MemoryStore
from tests.crash import kitchens, side_by_side
from tests.crash.kitchens import MODEL, Model, note_model, trace
from tests.crash.side_by_side import (
    MERGE,
    begin,
    consume,
    done_after,
    generate,
    give,
    give_async,
    produce_async,
    shake,
    take,
    train_model,
)
from tests.crash.test_crash_matrix import Killed, Mortal, Stopping, essence

BROKEN = [0]  # how often it will fail


def fail(ctx: Context) -> None:
    """It has changed a resource when it fails."""
    trace(ctx)
    shake()
    ctx.resources["own"].update(9.0)
    if BROKEN[0] > 0:
        BROKEN[0] -= 1
        raise ValueError("broken")
    ctx.append("log", ctx.resources["own"].update(ctx.rng.random()))


def failing(on_error: Any) -> Workflow[Any, Any]:
    def author(wf: WorkflowBuilder) -> None:
        wf.resource(MODEL)
        wf.stage("begin", begin)
        wf.stage("train_before", train_model)
        wf.checkpoint()
        with wf.parallel("p", max_concurrency=3, on_error=on_error, merge=MERGE):
            with wf.branch("fails"):
                wf.resource("own", lambda ctx: Model(ctx.rng.random()))
                wf.stage("before", give)
                wf.stage("fail", fail)
                wf.stage("behind", give)
            wf.stage("train", train_model)
            with wf.branch("reads"):
                with wf.stream_loop("stream", over=generate):
                    wf.stage("take", take)
            with wf.branch("produces"):
                with wf.async_loop("loop", producer=produce_async, stop_when=done_after(3)):
                    wf.stage("consume", consume)
            wf.stage("late", give_async)
        wf.stage("note_model", note_model)

    return kitchen.workflow(name="failing")(author)


@pytest.mark.parametrize("on_error", ["cancel", "finish"])
@pytest.mark.parametrize("when", ["before", "after", "stop"])
def test_failed_and_killed_and_stopped(on_error: Any, when: str) -> None:
    workflow = failing(on_error)
    BROKEN[0] = 0
    expected = essence(kitchen.run(workflow, store=MemoryStore(), run_id="r", seed=7))
    failed: list[str] = []
    for at in range(0, 26, 2):
        BROKEN[0] = 2
        store, run = MemoryStore(), None
        for turn in range(12):
            mortal = Mortal(store, when, (at, 7 * at % 13, 5)[turn]) if turn < 3 else store
            watching = [Stopping(at)] if when == "stop" and turn < 2 else []
            try:
                run = kitchen.run(
                    workflow,
                    store=mortal,
                    run_id="r",
                    seed=7,
                    if_exists="resume",
                    observers=watching,
                )
                break
            except kitchen.RunError as error:
                failed.append(error.run.failure.message)
            except (Killed, kitchen.RunInterrupted):
                pass
        assert run is not None, f"it never came to its end: {when} {at}"
        assert essence(run) == expected, f"{when} {at}"
        assert store.verify() == []
    assert len(failed) > 5
    assert set(failed) == {"broken"}


@pytest.mark.parametrize("when", ["before", "after", "stop"])
def test_free_productions_are_neither_lost_nor_doubled(when: str) -> None:
    """What they see is up to chance, and nothing else."""

    def produce(ctx: Context) -> int:
        shake()
        return ctx.index()

    @kitchen.workflow
    def free(wf: WorkflowBuilder) -> None:
        with wf.async_loop(
            "loop",
            producer=produce,
            stop_when=lambda ctx: ctx.index() == 8,
            pacing="free",
            producers=2,
            buffer_size=3,
        ):
            wf.stage("take", take)

    for at in range(0, 34, 2):
        store = MemoryStore()
        watching = [Stopping(at)] if when == "stop" else []
        try:
            run = kitchen.run(free, store=Mortal(store, when, at), run_id="r", observers=watching)
        except (Killed, kitchen.RunInterrupted):
            run = kitchen.run(free, store=store, run_id="r", if_exists="resume")
        assert run.state["taken"] == list(range(9))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("workflow", side_by_side.ALL, ids=lambda w: w.name)
def test_killed_on_one_event_loop_and_resumed_on_the_other(workflow: Any, backend: str) -> None:
    other = {"asyncio": "trio", "trio": "asyncio"}[backend]
    expected = essence(kitchen.run(workflow, store=MemoryStore(), run_id="r", seed=7))
    for at in range(1, 40, 9):
        kitchens.TRACE.clear()
        store = MemoryStore()

        async def turn(store: Any) -> Any:
            return await kitchen.run_async(
                workflow, store=store, run_id="r", seed=7, if_exists="resume"
            )

        try:
            run = anyio.run(turn, Mortal(store, "after", at), backend=backend)
        except Killed:
            run = anyio.run(turn, store, backend=other)
        assert essence(run) == expected, at

"""Time that runs out: of an attempt, and of a block.

What hangs waits for an event that the test sets when it is over, so no thread outlives it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Retry, Stage, WorkflowBuilder
from kitchen.runner import resources
from kitchen.runner.feeding import stream
from store import MemoryStore, open_store
from tests.runner.running import (
    Box,
    Killed,
    done,
    done_async,
    failure,
    flow,
    of_type,
    python,
    script,
    types,
)

SOON = 0.05
ENOUGH = 0.4  # for what hangs once, and then has to come to its end in time


class Hanging:
    """A thread that hangs until the test is over; then `after` is done, and `over` set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.over = threading.Event()
        self.raised: list[str] = []

    def __call__(self) -> None:
        self.release.wait(60)

    def tried(self, *actions: Any) -> None:
        """Note what each of these raises."""
        for action in actions:
            try:
                action()
            except Exception as error:
                self.raised.append(type(error).__name__)
            else:
                self.raised.append("nothing")
        self.over.set()


@pytest.fixture
def hang() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.release.set()


# --- an attempt -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_async_body_is_cancelled() -> None:
    told: list[str] = []

    async def body(ctx: Any) -> None:
        ctx.state["x"] = 1
        try:
            await anyio.sleep_forever()
        finally:
            told.append("left")

    store = MemoryStore()
    workflow = flow(lambda wf: wf.stage("s", body, timeout=SOON))
    with pytest.raises(kitchen.RunError, match=r"took longer than its timeout of 0.05 s") as caught:
        await done_async(workflow, store=store)
    assert told == ["left"]
    assert isinstance(caught.value.__cause__, kitchen.StageTimeout)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert caught.value.run.failure.type == "StageTimeout"
    assert "give it more time" in str(caught.value)
    assert caught.value.run.state == {}


@pytest.mark.anyio
async def test_a_thread_is_left_behind_and_gets_at_nothing(
    hang: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and nothing of what it does later is in the run."""
    boxes: list[Box] = []

    def open_box(ctx: Any) -> Box:
        boxes.append(Box(1))
        return boxes[-1]

    def body(ctx: Any) -> None:
        box = ctx.resources["box"]
        if ctx.attempt == 1:
            hang()
            hang.tried(
                lambda: ctx.state.update(x=1),
                lambda: ctx.record_metric("m", 1),
                lambda: ctx.resources["box"],
                lambda: ctx.resources.peek("box"),
                lambda: ctx.append("list", 1),
                box.add,
            )
        ctx.state["value"] = box.add()

    def after(ctx: Any) -> None:
        hang.release.set()
        assert hang.over.wait(20)
        ctx.state["seen"] = ctx.resources["box"].changes

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", open_box)
        wf.stage("s", body, timeout=ENOUGH, retries=Retry(1, backoff=0))
        wf.stage("after", after)

    store = MemoryStore()
    with caplog.at_level(logging.WARNING, "kitchen.run"):
        run = await done_async(flow(build), store=store)
    assert run.state == {"value": 1.5, "seen": 1}
    assert hang.raised == ["StaleContext"] * 5 + ["nothing"]
    assert len(boxes) == 2
    assert run.metrics == {}
    (failed,) = of_type(store, "StageFailed")
    assert "its thread could not be stopped and was left behind" in failed.event.failure.message  # type: ignore[attr-defined]
    assert "process=True" in failed.event.failure.hint  # type: ignore[attr-defined]
    assert any(
        "s could not be stopped and is left behind" in r.getMessage() for r in caplog.records
    )
    assert store.verify() == []


@pytest.mark.anyio
async def test_what_it_only_peeked_at_is_thrown_away_too(hang: Hanging) -> None:
    """And a client without state, and context managers of either kind, which are not waited for."""
    told: list[str] = []

    @contextlib.contextmanager
    def open_plain(ctx: Any) -> Generator[Box]:
        told.append("plain")
        yield Box()

    @contextlib.asynccontextmanager
    async def open_async(ctx: Any) -> AsyncGenerator[Box]:
        told.append("async")
        yield Box()

    def body(ctx: Any) -> None:
        ctx.resources.peek("plain")
        ctx.resources.peek("async")
        ctx.resources["client"].append(ctx.attempt)
        if ctx.attempt == 1:
            hang()
        ctx.state["client"] = ctx.resources["client"]

    def open_client(ctx: Any) -> list[int]:
        told.append("client")
        return []

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("plain", open_plain)
        wf.resource("async", open_async)
        wf.resource("client", open_client, stateful=False)
        wf.stage("s", body, timeout=ENOUGH, retries=Retry(1, backoff=0))

    with anyio.fail_after(20):
        run = await done_async(flow(build))
    assert run.state == {"client": [2]}
    assert told == ["plain", "async", "client"] * 2


def test_it_is_tried_again_and_counts(hang: Hanging) -> None:
    def body(ctx: Any) -> None:
        ctx.append("attempts", ctx.attempt)
        if ctx.attempt < 3:
            hang()

    store = MemoryStore()
    run = done(flow(lambda wf: wf.stage("s", body, timeout=ENOUGH, retries=Retry(2, backoff=0))))
    assert run.state == {"attempts": [3]}
    with pytest.raises(kitchen.RunError):
        done(
            flow(
                lambda wf: wf.stage(
                    "s", body, timeout=SOON, retries=Retry(5, backoff=0, on=ConnectionError)
                )
            ),
            store=store,
        )
    assert types(store).count("StageStarted") == 1


HANGS = """
import sys, time
import kitchen

def hang(ctx):
    print("hanging", flush=True)
    time.sleep(600)

@kitchen.workflow
def hanging(wf):
    wf.stage("hang", hang, timeout=0.05, on_error="skip")
    wf.stage("after", lambda ctx: print("after", flush=True))

kitchen.run(hanging, store="k.db", run_id="r")
print("done", flush=True)
"""


def test_a_thread_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    process = python([script(tmp_path, HANGS)], tmp_path)
    out, errors = process.communicate(timeout=60)
    assert out == "hanging\nafter\ndone\n", errors
    assert process.returncode == 0
    with open_store(tmp_path / "k.db") as store:
        assert "StageSkipped" in types(store)


@pytest.mark.anyio
async def test_a_body_that_swallows_its_cancellation_and_returns_is_committed() -> None:
    async def body(ctx: Any) -> None:
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        ctx.state["late"] = True

    run = await done_async(flow(lambda wf: wf.stage("s", body, timeout=SOON)))
    assert run.state == {"late": True}


@pytest.mark.anyio
async def test_a_timeout_of_its_own_is_no_timeout_of_the_stage() -> None:
    async def body(ctx: Any) -> None:
        with anyio.fail_after(0):
            await anyio.sleep_forever()

    with pytest.raises(kitchen.RunError) as caught:
        await done_async(flow(lambda wf: wf.stage("s", body, timeout=60)))
    assert caught.value.run.failure.type == "TimeoutError"


@pytest.mark.anyio
async def test_validation_has_the_time_of_the_stage() -> None:
    called: list[str] = []

    class Slow(Stage):
        async def validate(self, ctx: Any) -> None:
            await anyio.sleep_forever()

        def execute(self, ctx: Any) -> None:
            called.append("execute")

        def rollback(self, ctx: Any, error: Any) -> None:
            called.append("rollback")

    with pytest.raises(kitchen.RunError, match="validation took longer than its timeout"):
        await done_async(flow(lambda wf: wf.stage("s", Slow, timeout=SOON, retries=3)))
    assert called == []


# --- a block --------------------------------------------------------------------------------------


async def forever(ctx: Any) -> None:
    await anyio.sleep_forever()


def note(key: str) -> Any:
    return lambda ctx: ctx.state.update({key: True})


@pytest.mark.anyio
async def test_a_block_ends_what_runs_in_it() -> None:
    def build(wf: WorkflowBuilder) -> None:
        wf.stage("before", note("before"))
        with wf.timeout(SOON, name="most"):
            wf.stage("first", note("first"))
            wf.stage("s", forever)
            wf.stage("unreached", note("unreached"))

    store = MemoryStore()
    with pytest.raises(kitchen.RunError, match=r"the block most took longer than its 0.05 s"):
        await done_async(flow(build), store=store)
    assert "StageInterrupted" in types(store)


@pytest.mark.anyio
async def test_a_block_that_is_left_in_time_has_no_limit_any_more() -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.timeout(60, name="most"):
            wf.stage("s", note("s"))
        wf.stage("after", note("after"))

    store = MemoryStore()
    with anyio.fail_after(20):
        assert (await done_async(flow(build), store=store)).state == {"s": True, "after": True}
    assert "TimeLimitEnded" in types(store)


@pytest.mark.anyio
@pytest.mark.parametrize("inner", [True, False])
async def test_nested_the_one_that_passes_ends(inner: bool) -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.timeout(60 if inner else SOON, name="outer"):
            with wf.timeout(SOON if inner else 60, name="inner"):
                wf.stage("s", forever)
            with wf.on_error("inner_late"):
                wf.stage("note", note("inner"))
            wf.stage("behind", note("behind"))
        with wf.on_error("outer_late"):
            wf.stage("note", note("outer"))

    run = await done_async(flow(build))
    assert run.state == ({"inner": True, "behind": True} if inner else {"outer": True})


@pytest.mark.anyio
async def test_in_a_loop_each_turn_has_its_time() -> None:
    async def body(ctx: Any) -> None:
        if ctx.index() == 1:
            await anyio.sleep_forever()
        ctx.append("done", ctx.index())

    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            with wf.timeout(ENOUGH, name="turn"):
                wf.stage("s", body)
            with wf.on_error("late"):
                wf.stage("note", lambda ctx: ctx.append("late", ctx.index()))

    assert (await done_async(flow(build))).state == {"done": [0, 2], "late": [1]}


@pytest.mark.anyio
@pytest.mark.parametrize("on_error", ["cancel", "finish"])
async def test_in_a_branch(on_error: Any) -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.parallel("p", on_error=on_error):
            with wf.branch("b"):
                with wf.timeout(SOON, name="most"):
                    wf.stage("s", forever)
                with wf.on_error("late"):
                    wf.stage("note", note("late"))
            wf.stage("sibling", note("sibling"))

    assert (await done_async(flow(build))).state == {"late": True, "sibling": True}


@pytest.mark.anyio
async def test_around_a_parallel_all_branches_are_stopped(hang: Hanging) -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.timeout(SOON, name="most"), wf.parallel("p"):
            wf.stage("one", forever)
            wf.stage("two", lambda ctx: hang())
            wf.stage("quick", note("quick"))
        with wf.on_error("late"):
            wf.stage("note", note("late"))

    with anyio.fail_after(20):
        assert (await done_async(flow(build))).state == {"late": True}


@pytest.mark.anyio
async def test_a_thread_in_a_block_is_not_waited_for(
    hang: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the stage has a timeout of its own; what it holds is thrown away."""
    boxes: list[Box] = []

    def open_box(ctx: Any) -> Box:
        boxes.append(Box())
        return boxes[-1]

    def body(ctx: Any) -> None:
        ctx.resources["box"].add()
        hang()
        ctx.resources["box"].add()

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", open_box)
        with wf.timeout(SOON, name="most"):
            wf.stage("s", body)
        with wf.on_error("late"):
            wf.stage("note", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    with anyio.fail_after(20):
        assert (await done_async(flow(build))).state == {"changes": 0}
    assert len(boxes) == 2
    assert any("is left behind" in r.getMessage() for r in caplog.records)


@pytest.mark.anyio
async def test_a_client_that_it_may_still_use_is_opened_anew(hang: Hanging) -> None:
    """Though it has no state that could be half changed; and the new one is closed."""
    told: list[str] = []

    @contextlib.contextmanager
    def opened(ctx: Any) -> Generator[list[str]]:
        client: list[str] = []
        told.append("open")
        yield client
        told.append(f"closed after {client}")

    def body(ctx: Any) -> None:
        ctx.resources["client"].append("hanging")
        hang()

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("client", opened, stateful=False)
        with wf.timeout(SOON, name="most"):
            wf.stage("s", body)
        with wf.on_error("late"):
            wf.stage("use", lambda ctx: ctx.resources["client"].append("late"))

    with anyio.fail_after(20):
        await done_async(flow(build))
    assert told == ["open", "open", "closed after ['late']"]


def _hang_over(wf: WorkflowBuilder, hang: Any) -> None:
    with wf.loop("l", over=lambda ctx: hang() or range(2)):
        wf.stage("s", forever)


def _hang_stream(wf: WorkflowBuilder, hang: Any) -> None:
    def source(ctx: Any) -> Generator[int]:
        hang()
        yield 1

    with wf.stream_loop("l", over=source):
        wf.stage("s", forever)


def _hang_producer(wf: WorkflowBuilder, hang: Any) -> None:
    with wf.async_loop("l", producer=lambda ctx: hang() or 1, stop_when=lambda ctx: True):
        wf.stage("s", forever)


def _hang_factory(wf: WorkflowBuilder, hang: Any) -> None:
    wf.resource("r", lambda ctx: hang() or Box(), stateful=True)
    wf.stage("s", forever)


def _hang_async_factory(wf: WorkflowBuilder, hang: Any) -> None:
    wf.resource("r", forever, stateful=False)
    wf.stage("s", forever)


def _hang_entering(wf: WorkflowBuilder, hang: Any) -> None:
    @contextlib.asynccontextmanager
    async def opened(ctx: Any) -> AsyncGenerator[int]:
        await anyio.sleep_forever()
        yield 1

    wf.resource("r", opened, stateful=False)
    wf.stage("s", forever)


def _hang_entering_plain(wf: WorkflowBuilder, hang: Any) -> None:
    @contextlib.contextmanager
    def opened(ctx: Any) -> Generator[int]:
        hang()
        yield 1

    wf.resource("r", opened, stateful=False)
    wf.stage("s", forever)


def _hang_over_branches(wf: WorkflowBuilder, hang: Any) -> None:
    with wf.parallel("p", over=lambda ctx: hang() or [1, 2]):
        wf.stage("s", forever)


def _hang_predicate(wf: WorkflowBuilder, hang: Any) -> None:
    async def asked(ctx: Any) -> bool:
        await anyio.sleep_forever()
        return True

    with wf.conditional(asked, name="c"):
        wf.stage("s", forever)


def _wait_for_retry(wf: WorkflowBuilder, hang: Any) -> None:
    def fails(ctx: Any) -> None:
        raise ConnectionError

    wf.stage("s", fails, retries=Retry(3, backoff=60))


WHERE = [
    _hang_over,
    _hang_stream,
    _hang_producer,
    _hang_factory,
    _hang_async_factory,
    _hang_entering,
    _hang_entering_plain,
    _hang_over_branches,
    _hang_predicate,
    _wait_for_retry,
]


@pytest.mark.anyio
@pytest.mark.parametrize("where", WHERE, ids=lambda w: w.__name__.strip("_"))
async def test_it_passes_whatever_is_being_done(
    where: Any, hang: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LEAVE_SECONDS", SOON)
    monkeypatch.setattr(resources, "ENTER_SECONDS", SOON)

    def build(wf: WorkflowBuilder) -> None:
        with wf.timeout(SOON, name="most"):
            where(wf, hang)
        with wf.on_error("late"):
            wf.stage("note", note("late"))
        wf.stage("behind", note("behind"))

    store = MemoryStore()
    with anyio.fail_after(20):
        run = await done_async(flow(build), store=store)
    assert run.state == {"late": True, "behind": True}
    assert store.verify() == []


@pytest.mark.anyio
async def test_it_passes_while_a_checkpoint_is_saved() -> None:
    """Which is waited for, as half of it would be of no use; the failure comes right behind."""

    class Slow(Box):
        def state_dict(self) -> dict[str, Any]:
            time.sleep(SOON * 2)
            return super().state_dict()

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Slow())
        wf.stage("s", lambda ctx: ctx.resources["box"].add())
        with wf.timeout(SOON, name="most"):
            wf.checkpoint()
            wf.stage("unreached", forever)
        with wf.on_error("late"):
            wf.stage("note", lambda ctx: ctx.state.update(late=ctx.resources["box"].changes))

    with anyio.fail_after(20):
        assert (await done_async(flow(build))).state == {"late": 1}


# --- over a crash ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worked", "away", "fits"), [(40, 0, True), (40, 9999, True), (70, 0, False)]
)
def test_only_executing_time_counts(
    monkeypatch: pytest.MonkeyPatch, worked: float, away: float, fits: bool
) -> None:
    """A block with 60 s, in which so many had passed by the clock of the log when it crashed."""
    now = [1_700_000_000.0]
    left: list[float] = []
    sleep, die = anyio.sleep, [True]

    async def waited(seconds: float) -> None:
        if seconds != 0.5:  # not the one who flushes metrics
            left.append(round(seconds, 6))
        await sleep(seconds if seconds <= 0.5 else 60)

    monkeypatch.setattr(time, "time_ns", lambda: int(now[0] * 1e9))
    monkeypatch.setattr(anyio, "sleep", waited)

    def work(ctx: Any) -> None:
        now[0] += worked

    async def crash(ctx: Any) -> None:
        if die and die.pop():
            raise Killed
        await anyio.lowlevel.checkpoint()
        if not fits:
            await anyio.sleep_forever()

    def build(wf: WorkflowBuilder) -> None:
        with wf.timeout(60, name="most"):
            wf.stage("work", work)
            wf.stage("crash", crash)
        with wf.on_error("late"):
            wf.stage("note", note("late"))

    store = MemoryStore()
    with pytest.raises(Killed):
        done(flow(build), store=store)
    now[0] += away
    run = kitchen.resume("r", flow(build), store=store)
    assert left == [60, max(60 - worked, 0)]
    assert run.state == ({} if fits else {"late": True})


def test_a_rewind_gives_no_time_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was executed counts, though it is done again."""
    now = [1_700_000_000.0]
    left: list[float] = []
    sleep = anyio.sleep

    async def waited(seconds: float) -> None:
        if seconds != 0.5:
            left.append(round(seconds, 6))
        await sleep(seconds)

    monkeypatch.setattr(time, "time_ns", lambda: int(now[0] * 1e9))
    monkeypatch.setattr(anyio, "sleep", waited)

    def work(ctx: Any) -> None:
        now[0] += 10
        ctx.resources["box"].add()
        if ctx.attempt < 3:
            raise ConnectionError

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.timeout(60, name="most"):
            wf.stage("first", note("first"))
            wf.stage("work", work, retries=Retry(3, backoff=0))

    assert done(flow(build)).status == "completed"
    assert left == [60, 50, 40]


def test_the_log_tells_a_timeout_as_a_failure(hang: Hanging) -> None:
    told = failure(flow(lambda wf: wf.stage("s", lambda ctx: hang(), timeout=SOON)))
    assert told.type == "StageTimeout"
    assert told.traceback

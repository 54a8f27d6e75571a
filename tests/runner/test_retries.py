"""Further attempts: which failures get one, after what wait, and what of a failed one remains.

The clock is the tests'. A wait of more than 0.6 seconds is noted and over at once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Retry, WorkflowBuilder
from kitchen.machine.events import Address
from kitchen.machine.stages import delay
from store import MemoryStore
from tests.runner.running import Box, Killed, done, done_async, flow, log, of_type, types

HOUR = 3600.0
ONCE_MORE = Retry(1, backoff=100, max_delay=100, jitter=0)


class Failing:
    """A body that fails so many times, and then tells how often it was called."""

    def __init__(self, times: int, error: Any = ConnectionError) -> None:
        self.times = times
        self.error = error
        self.calls = 0

    def __call__(self, ctx: Any) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error(f"call {self.calls}")
        ctx.state["calls"] = self.calls


class Clock:
    """The time of day as the log sees it, and the long waits that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        self.waits: list[float] = []
        self.dies = False
        sleep = anyio.sleep

        async def waited(seconds: float) -> None:
            if seconds <= 0.6:
                return await sleep(seconds)
            self.waits.append(round(seconds, 3))
            if self.dies:
                raise Killed
            self.now += seconds
            return None

        monkeypatch.setattr(time, "time_ns", lambda: int(self.now * 1e9))
        monkeypatch.setattr(anyio, "sleep", waited)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def tried(body: Any, retries: Any, **more: Any) -> Any:
    return flow(lambda wf: wf.stage("s", body, retries=retries, **more))


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["sync", "async", "inline"])
async def test_it_is_tried_again_until_it_succeeds(how: str) -> None:
    fails, store = Failing(2), MemoryStore()

    async def later(ctx: Any) -> None:
        await anyio.lowlevel.checkpoint()
        fails(ctx)

    body = later if how == "async" else fails
    workflow = tried(body, Retry(2, backoff=0), thread=how != "inline")
    run = await done_async(workflow, store=store)
    assert run.state == {"calls": 3}
    assert [r.attempt for r in of_type(store, "StageStarted")] == [1, 2, 3]
    assert types(store).count("RetryScheduled") == 2
    assert store.verify() == []


def test_retries_as_a_number(clock: Clock) -> None:
    """Three further attempts, a second after the first failure, twice as long after each other."""
    with pytest.raises(kitchen.RunError, match="call 4"):
        done(tried(Failing(9), 3))
    assert [round(seconds) for seconds in clock.waits] == [1, 2, 4]


def test_the_waits_grow_up_to_the_largest(clock: Clock) -> None:
    fails = Failing(4)
    done(tried(fails, Retry(4, backoff=20, max_delay=50, jitter=0)))
    assert clock.waits == [20, 40, 50, 50]


def test_jitter_is_the_same_in_every_process(clock: Clock) -> None:
    retry = Retry(2, backoff=100, jitter=0.5)
    done(tried(Failing(2), retry), seed=11)
    expected = [delay(retry.ir, 11, Address("s"), failed) for failed in (1, 2)]
    assert clock.waits == [round(seconds, 3) for seconds in expected]
    assert expected[1] != 2 * expected[0]


@pytest.mark.parametrize(
    ("passed", "left"), [(0, 100), (40, 60), (100, None), (5 * HOUR, None), (-HOUR, 100)]
)
def test_a_crash_in_a_wait_resumes_what_is_left_of_it(
    clock: Clock, passed: float, left: float | None
) -> None:
    """And never more, though the clock went back."""
    fails, store = Failing(1), MemoryStore()
    workflow = tried(fails, ONCE_MORE)
    clock.dies = True
    with pytest.raises(Killed):
        done(workflow, store=store)
    clock.dies = False
    clock.now += passed
    run = kitchen.resume("r", workflow, store=store)
    assert clock.waits == [100] + ([] if left is None else [left])
    assert run.state == {"calls": 2}
    assert [r.attempt for r in of_type(store, "StageStarted")] == [1, 2]


def test_a_wait_is_kept_over_two_crashes(clock: Clock) -> None:
    fails, store = Failing(1), MemoryStore()
    workflow = tried(fails, ONCE_MORE)
    clock.dies = True
    with pytest.raises(Killed):
        done(workflow, store=store)
    for _ in range(2):
        clock.now += 30
        with pytest.raises(Killed):
            kitchen.resume("r", workflow, store=store)
    clock.dies = False
    kitchen.resume("r", workflow, store=store)
    assert clock.waits == [100, 70, 40, 40]


def test_a_wait_is_kept_behind_the_rewind_of_its_own_failure(clock: Clock) -> None:
    store = MemoryStore()

    def touch(ctx: Any) -> None:
        ctx.resources["box"].add()
        if ctx.attempt == 1:
            raise ConnectionError

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("before", lambda ctx: ctx.state.update(before=1))
        wf.stage("s", touch, retries=ONCE_MORE)

    clock.dies = True
    with pytest.raises(Killed):
        done(flow(build), store=store)
    clock.dies = False
    clock.now += 25
    kitchen.resume("r", flow(build), store=store)
    assert clock.waits == [100, 75]


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "on", "calls"),
    [
        (ConnectionError, (Exception,), 3),
        (ConnectionResetError, ConnectionError, 3),
        (Odd, ConnectionError, 1),
        (Odd, (ConnectionError, Odd), 3),
        (kitchen.Fatal, (Exception,), 1),
        (kitchen.StateError, (Exception,), 1),
        (SystemExit, (Exception,), 1),
        (lambda text: ExceptionGroup(text, [ConnectionError(), Odd()]), (ConnectionError, Odd), 3),
        (lambda text: ExceptionGroup(text, [ConnectionError(), Odd()]), ConnectionError, 1),
        (lambda text: ExceptionGroup(text, [Odd(), kitchen.Fatal("no")]), (Exception,), 1),
    ],
)
def test_which_failures_are_tried_again(error: Any, on: Any, calls: int) -> None:
    fails = Failing(9, error)
    with pytest.raises(kitchen.RunError):
        done(tried(fails, Retry(2, backoff=0, on=on)))
    assert fails.calls == calls


def test_of_a_failed_attempt_only_the_story_remains() -> None:
    store = MemoryStore()

    def body(ctx: Any) -> None:
        seen = dict(ctx.state)
        ctx.state["x"] = ctx.attempt
        ctx.append("list", ctx.attempt)
        ctx.record_metric("loss", ctx.attempt, step=1)
        if ctx.attempt < 3:
            raise ConnectionError
        ctx.state["seen"] = seen

    run = done(tried(body, Retry(2, backoff=0)), store=store)
    assert run.state == {"x": 3, "list": [3], "seen": {}}
    assert [point.value for point in run.metrics["loss"]] == [3]
    told = [b"".join(map(bytes, r.event.discarded)) for r in of_type(store, "StageFailed")]  # type: ignore[attr-defined]
    assert [b'"x"' in text and b'"loss"' in text for text in told] == [True, True]


def test_the_same_randomness_and_key_in_every_attempt() -> None:
    drawn: list[Any] = []

    def body(ctx: Any) -> None:
        drawn.append((ctx.rng.random(), ctx.idempotency_key))
        if len(drawn) < 3:
            raise ConnectionError

    done(tried(body, Retry(2, backoff=0)))
    assert len(set(drawn)) == 1


# --- resources ------------------------------------------------------------------------------------


class Optimiser:
    """What it steps is the box that it was made from."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.steps = 0

    def step(self, by: float) -> None:
        self.steps += 1
        self.box.add(by * self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def trained(failures: dict[tuple[int, ...], int], checkpoint: bool) -> Any:
    """A training whose steps fail so often after they have changed everything."""
    left = dict(failures)

    def step(ctx: Any) -> None:
        ctx.resources["optimiser"].step(ctx.rng.random())
        ctx.record_metric("value", ctx.resources["box"].value)
        ctx.append("values", ctx.resources["box"].value)
        if left.get(ctx.visit, 0) > 0:
            left[ctx.visit] -= 1
            raise ConnectionError

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box(ctx.rng.random()))
        wf.resource("optimiser", lambda ctx: Optimiser(ctx.resources["box"]))
        with wf.loop("steps", over=lambda ctx: range(4)):
            wf.stage("step", step, retries=Retry(2, backoff=0))
            if checkpoint:
                wf.checkpoint()
        wf.stage(
            "note",
            lambda ctx: ctx.state.update(
                {name: ctx.resources[name].state_dict() for name in ("box", "optimiser")}
            ),
        )

    return flow(build)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_update_is_never_applied_twice(checkpoint: bool) -> None:
    """Equal to the run in which nothing failed, though the failing ones had changed everything."""
    expected = done(trained({}, checkpoint))
    store = MemoryStore()
    run = done(trained({(1,): 1, (2,): 2, (3,): 1}, checkpoint), store=store)
    assert run.state == expected.state
    assert [p.value for p in run.metrics["value"]] == [p.value for p in expected.metrics["value"]]
    assert types(store).count("RunRewound") == 4
    assert "RewindDiverged" not in types(store)
    assert store.verify() == []


def test_it_says_once_how_this_gets_cheaper(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kitchen.run"):
        done(trained({(1,): 2, (3,): 1}, checkpoint=False))
    told = [r.getMessage() for r in caplog.records if "is done again" in r.getMessage()]
    assert len(told) == 3
    assert ["wf.checkpoint" in text for text in told] == [True, False, False]
    assert "steps[1]/step failed" in told[0]
    assert "box, optimiser" in told[0]


def test_resources_are_closed_and_opened_anew() -> None:
    """In reverse order, context managers with their own exits, those without state too."""
    told: list[str] = []

    @contextlib.contextmanager
    def open_plain(ctx: Any) -> Generator[list[int]]:
        told.append("open plain")
        yield []
        told.append("close plain")

    @contextlib.asynccontextmanager
    async def open_async(ctx: Any) -> AsyncGenerator[Box]:
        told.append("open async")
        yield Box(1)
        told.append("close async")

    def body(ctx: Any) -> None:
        ctx.resources["plain"].append(ctx.attempt)
        ctx.resources["async"].add()
        told.append(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            raise ConnectionError
        ctx.state["plain"] = ctx.resources["plain"]
        ctx.state["changes"] = ctx.resources["async"].changes

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("plain", open_plain, stateful=False)
        wf.resource("async", open_async)
        wf.stage("s", body, retries=Retry(1, backoff=0))

    run = done(flow(build))
    assert run.state == {"plain": [2], "changes": 1}
    opened = ["open plain", "open async"]
    closed = ["close async", "close plain"]
    assert told == [*opened, "attempt 1", *closed, *opened, "attempt 2", *closed]


def test_a_client_without_state_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    opened: list[int] = []

    def body(ctx: Any) -> None:
        ctx.resources["client"].append(1)
        if ctx.attempt == 1:
            raise ConnectionError

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("client", lambda ctx: opened, stateful=False)
        wf.stage("s", body, retries=Retry(1, backoff=0))

    store = MemoryStore()
    done(flow(build), store=store)
    assert opened == [1, 1]
    assert "RunRewound" not in types(store)
    assert not caplog.records


# --- wherever it stands ---------------------------------------------------------------------------


def test_in_branches_of_which_one_touches() -> None:
    """A branch that is taken back takes its siblings back; the end is the same."""

    def build(failures: int) -> Any:
        left = [failures]

        def touching(ctx: Any) -> None:
            ctx.state["box"] = ctx.resources["box"].add(ctx.rng.random())
            if left[0] > 0:
                left[0] -= 1
                raise ConnectionError

        def author(wf: WorkflowBuilder) -> None:
            wf.resource("box", lambda ctx: Box(1))
            wf.stage("before", lambda ctx: ctx.resources["box"].add())
            with wf.parallel("p", merge={"n": "sum"}):
                wf.stage("touching", touching, retries=Retry(3, backoff=0))
                wf.stage("plain", Failing(2 if failures else 0), retries=Retry(3, backoff=0))
                wf.stage("other", lambda ctx: ctx.increment("n", 2))

        return flow(author)

    expected = done(build(0)).state
    store = MemoryStore()
    run = done(build(2), store=store)
    assert {**run.state, "calls": 1} == expected
    assert types(store).count("RunRewound") == 2
    assert store.verify() == []


def test_a_wait_in_a_branch_keeps_nobody(clock: Clock) -> None:
    fails, store = Failing(1), MemoryStore()

    def build(wf: WorkflowBuilder) -> None:
        with wf.parallel("p"):
            wf.stage("fails", fails, retries=ONCE_MORE)
            with wf.branch("b"):
                wf.stage("one", lambda ctx: ctx.state.update(one=1))
                wf.stage("two", lambda ctx: ctx.state.update(two=2))

    assert done(flow(build), store=store).state == {"calls": 2, "one": 1, "two": 2}
    assert clock.waits == [100]


@pytest.mark.anyio
async def test_in_a_stream_whose_source_is_moved_on_again() -> None:
    """Behind a rewind too, which closes the source and opens it anew."""
    opened: list[int] = []

    def source(ctx: Any) -> Generator[int]:
        opened.append(1)
        yield from range(5)

    left = {1: 1, 3: 2}

    def body(ctx: Any) -> None:
        ctx.resources["box"].add(ctx.item())
        if left.get(ctx.index(), 0) > 0:
            left[ctx.index()] -= 1
            raise ConnectionError
        ctx.append("items", ctx.item())
        ctx.state["box"] = ctx.resources["box"].state_dict()

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.stream_loop("items", over=source):
            wf.stage("s", body, retries=Retry(2, backoff=0))
            with wf.conditional(lambda ctx: ctx.index() == 2, name="second"):
                wf.checkpoint()

    expected, again = await done_async(flow(build)), dict(left)
    assert again == {1: 0, 3: 0}
    assert expected.state["items"] == [0, 1, 2, 3, 4]
    assert expected.state["box"]["changes"] == 5
    assert len(opened) == 4
    assert (await done_async(flow(build))).state == expected.state


@pytest.mark.anyio
async def test_in_an_async_loop() -> None:
    def build(failures: int) -> Any:
        left = [failures]

        def consume(ctx: Any) -> None:
            ctx.increment("sum", ctx.item())
            ctx.state["box"] = ctx.resources["box"].add(ctx.item())
            if ctx.index() == 2 and left[0] > 0:
                left[0] -= 1
                raise ConnectionError

        async def produce(ctx: Any) -> int:
            await anyio.lowlevel.checkpoint()
            return ctx.index() + ctx.state.get("sum", 0)

        def author(wf: WorkflowBuilder) -> None:
            wf.resource("box", lambda ctx: Box())
            with wf.async_loop("l", producer=produce, stop_when=lambda ctx: ctx.index() == 4):
                wf.stage("s", consume, retries=Retry(2, backoff=0))

        return flow(author)

    expected = await done_async(build(0))
    assert (await done_async(build(2))).state == expected.state


# --- budgets --------------------------------------------------------------------------------------


def test_a_crash_spends_no_attempt_and_gives_none() -> None:
    """Two failures, a crash, two failures: with three further attempts that is one too many."""
    calls = [0]
    die = {2}

    def body(ctx: Any) -> None:
        calls[0] += 1
        if calls[0] - 1 in die:
            raise Killed
        raise ConnectionError

    store = MemoryStore()
    workflow = tried(body, Retry(3, backoff=0))
    with pytest.raises(Killed):
        done(workflow, store=store)
    with pytest.raises(kitchen.RunError):
        kitchen.resume("r", workflow, store=store)
    assert calls[0] == 5  # four that failed, and one that died
    assert [r.attempt for r in of_type(store, "StageStarted")] == [1, 2, 3, 4, 5]


def test_a_resumed_failed_run_has_a_fresh_budget() -> None:
    fails, store = Failing(5), MemoryStore()
    workflow = tried(fails, Retry(2, backoff=0))
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    assert fails.calls == 3
    assert kitchen.resume("r", workflow, store=store).state == {"calls": 6}


def test_each_visit_has_a_budget_of_its_own() -> None:
    left = {0: 2, 1: 2, 2: 2}

    def body(ctx: Any) -> None:
        if left[ctx.index()] > 0:
            left[ctx.index()] -= 1
            raise ConnectionError
        ctx.append("attempts", ctx.attempt)

    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("s", body, retries=Retry(2, backoff=0))

    assert done(flow(build)).state["attempts"] == [3, 3, 3]


def test_a_failed_attempts_ctx_is_sealed() -> None:
    kept: list[Any] = []

    def body(ctx: Any) -> None:
        kept.append(ctx)
        if ctx.attempt == 1:
            raise ConnectionError
        with pytest.raises(kitchen.StaleContext):
            kept[0].state["x"] = 1
        with pytest.raises(kitchen.StaleContext):
            kept[0].record_metric("m", 1)

    store = MemoryStore()
    assert done(tried(body, Retry(1, backoff=0)), store=store).status == "completed"
    assert "StatePut" not in [r.type for r in log(store)]

"""The virtual clock: what a run would only wait for is skipped, and what is at work is not."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

import kitchen
from kitchen.errors import ArgumentError, KitchenError, StaleContext
from kitchen.runner.threads import in_own_thread, waker
from kitchen.testing import FakeEventStore, SimulatedCrash, VirtualClock
from kitchen.testing.clock.sleeping import Sleeper
from store import MemoryStore

HOUR = 3600.0
BACKENDS = ["asyncio", "trio"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Kitchen:
    """Runs workflows on a clock, in a store that is stamped by it."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.clock = VirtualClock()
        self.store: Any = MemoryStore()
        self.told: list[str] = []

    def run(self, workflow: Any, **options: Any) -> Any:
        return self.on_clock(
            lambda: kitchen.run_async(
                workflow, store=self.clock.store(self.store), run_id="r", **options
            )
        )

    def resume(self, workflow: Any) -> Any:
        return self.on_clock(
            lambda: kitchen.resume_async("r", workflow, store=self.clock.store(self.store))
        )

    def on_clock(self, main: Any) -> Any:
        options = self.clock.backend_options(self.backend)
        return anyio.run(main, backend=self.backend, backend_options=options)

    def tell(self, what: str) -> None:
        """Note that something happened, and in which virtual hour."""
        self.told.append(f"{what} {self.clock.elapsed / HOUR:.1f}")


@pytest.fixture
def on(backend: str) -> Kitchen:
    return Kitchen(backend)


def stage(body: Any, **options: Any) -> kitchen.Workflow[Any, Any]:
    """A workflow of one stage."""

    @kitchen.workflow
    def single(wf: kitchen.WorkflowBuilder) -> None:
        wf.stage("stage", body, **options)

    return single


def wait_really() -> None:
    """Have something to do for a moment that is no sleep on the clock."""
    threading.Event().wait(0.02)


# --- retries and timeouts ---


def test_retries_wait_for_hours_that_pass_at_once(on: Kitchen) -> None:
    def flaky(ctx: Any) -> None:
        on.tell(f"attempt {ctx.attempt}")
        if ctx.attempt < 4:
            raise ConnectionError

    retry = kitchen.Retry(5, backoff=HOUR, max_delay=100 * HOUR, jitter=0)
    run = on.run(stage(flaky, retries=retry))
    assert run.status == "completed"
    assert on.told == ["attempt 1 0.0", "attempt 2 1.0", "attempt 3 3.0", "attempt 4 7.0"]
    at = [e.at for e in on.store.read("r") if e.type == "StageStarted"]
    assert [round((each - at[0]) / 1e9 / HOUR, 1) for each in at] == [0.0, 1.0, 3.0, 7.0]


def test_retries_wait_as_long_in_a_store_that_has_times_of_its_own(on: Kitchen) -> None:
    def flaky(ctx: Any) -> None:
        if ctx.attempt < 4:
            raise ConnectionError

    retry = kitchen.Retry(5, backoff=HOUR, max_delay=100 * HOUR, jitter=0)
    workflow = stage(flaky, retries=retry)
    on.on_clock(lambda: kitchen.run_async(workflow, store=on.store))
    assert 7 * HOUR <= on.clock.elapsed < 7 * HOUR + 60


@pytest.mark.parametrize("kind", ["async", "sync", "delay"])
def test_a_stage_that_sleeps_too_long_is_timed_out(kind: str, on: Kitchen) -> None:
    async def asleep(_: Any) -> None:
        await anyio.sleep(2 * HOUR)

    def asleep_in_a_thread(_: Any) -> None:
        on.clock.sleep(2 * HOUR)

    def often_asleep(_: Any) -> None:
        while True:
            on.clock.sleep(60)

    bodies = {"async": asleep, "sync": asleep_in_a_thread, "delay": often_asleep}
    with pytest.raises(kitchen.RunError, match="took longer than its timeout of 3600 s"):
        on.run(stage(bodies[kind], timeout=HOUR))
    assert HOUR <= on.clock.elapsed < 1.5 * HOUR


def test_a_thread_that_was_left_behind_in_its_sleep_is_woken_with_an_error(on: Kitchen) -> None:
    raised: list[BaseException] = []
    woken = threading.Event()

    def body(ctx: Any) -> None:
        if ctx.attempt > 1:
            assert woken.wait(10)
            return
        try:
            on.clock.sleep(2 * HOUR)
        except BaseException as error:
            raised.append(error)
            with pytest.raises(StaleContext):
                on.clock.sleep(1)
            woken.set()

    on.run(stage(body, timeout=HOUR, retries=kitchen.Retry(1, backoff=0)))
    assert [type(error) for error in raised] == [StaleContext]
    assert on.clock.elapsed < 1.5 * HOUR


def test_who_works_is_not_timed_out(on: Kitchen) -> None:
    def body(ctx: Any) -> None:
        wait_really()
        on.clock.sleep(0.9 * HOUR)
        wait_really()
        ctx.state["done"] = True

    run = on.run(stage(body, timeout=HOUR))
    assert run.state["done"]
    assert 0.9 * HOUR <= on.clock.elapsed < HOUR


def test_time_is_real_while_one_thread_works_and_another_sleeps(on: Kitchen) -> None:
    goes_on = threading.Event()

    def works(_: Any) -> None:
        assert goes_on.wait(10)
        on.tell("worked")

    def sleeps(_: Any) -> None:
        threading.Timer(0.02, goes_on.set).start()
        on.clock.sleep(HOUR)
        on.tell("slept")

    @kitchen.workflow
    def both(wf: kitchen.WorkflowBuilder) -> None:
        with wf.timeout(2 * HOUR), wf.parallel():
            wf.stage("works", works)
            wf.stage("sleeps", sleeps)

    on.run(both)
    assert on.told == ["worked 0.0", "slept 1.0"]


def test_a_block_has_its_time_and_no_more(on: Kitchen) -> None:
    async def asleep(ctx: Any) -> None:
        on.tell(ctx.path.rpartition("/")[2])
        await anyio.sleep(2 * HOUR)

    @kitchen.workflow
    def three(wf: kitchen.WorkflowBuilder) -> None:
        with wf.timeout(5 * HOUR):
            for name in ("one", "two", "three", "four"):
                wf.stage(name, asleep)

    with pytest.raises(kitchen.RunError, match="took longer than its 18000 s"):
        on.run(three)
    assert on.told == ["one 0.0", "two 2.0", "three 4.0"]
    assert 5 * HOUR <= on.clock.elapsed < 5 * HOUR + 60


def test_a_grace_period_is_skipped_where_a_thread_sleeps(on: Kitchen) -> None:
    workflow = stage(lambda _: on.clock.sleep(10 * HOUR))

    async def main() -> None:
        with anyio.move_on_after(HOUR):
            store = on.clock.store(on.store)
            await kitchen.run_async(workflow, store=store, run_id="r", grace=2 * HOUR)

    on.on_clock(main)
    assert 3 * HOUR <= on.clock.elapsed < 3.1 * HOUR
    assert on.store.latest("r").type == "StageStarted"  # as a process that was killed leaves it


# --- side by side ---


def test_branches_end_in_the_order_of_their_delays(on: Kitchen) -> None:
    @kitchen.workflow
    def branches(wf: kitchen.WorkflowBuilder) -> None:
        with wf.parallel(max_concurrency=6):
            for hours in (3, 1, 5):

                def in_thread(_: Any, hours: int = hours) -> None:
                    on.clock.sleep(hours * HOUR)
                    on.tell("thread")

                async def in_loop(_: Any, hours: int = hours) -> None:
                    await anyio.sleep((hours + 1) * HOUR)
                    on.tell("loop")

                wf.stage(f"thread{hours}", in_thread)
                wf.stage(f"loop{hours}", in_loop)

    on.run(branches)
    assert on.told == ["thread 1.0", "loop 2.0", "thread 3.0", "loop 4.0", "thread 5.0", "loop 6.0"]


@pytest.mark.parametrize("sync", [True, False])
def test_producers_take_their_time_beside_the_body(sync: bool, on: Kitchen) -> None:
    def produce(_: Any) -> int:
        on.clock.sleep(HOUR)
        return 1

    async def produce_async(_: Any) -> int:
        await anyio.sleep(HOUR)
        return 1

    async def body(ctx: Any) -> None:
        on.tell(f"item {ctx.index('items')}")
        await anyio.sleep(0.5 * HOUR)

    @kitchen.workflow
    def producing(wf: kitchen.WorkflowBuilder) -> None:
        with wf.async_loop(
            "items",
            producer=produce if sync else produce_async,
            stop_when=lambda ctx: ctx.index("items") >= 3,
            producers=2,
            buffer_size=2,
        ):
            wf.stage("body", body)

    on.run(producing)
    assert [each.rpartition(" ")[0] for each in on.told] == [
        f"item {n}" for n in range(len(on.told))
    ]
    assert on.told[:3] == ["item 0 1.0", "item 1 1.5", "item 2 2.5"]


@pytest.mark.parametrize("sync", [True, False])
def test_a_stream_is_pulled_beside_the_body(sync: bool, on: Kitchen) -> None:
    def source(_: Any) -> Iterator[int]:
        for number in range(4):
            on.clock.sleep(HOUR)
            yield number

    async def source_async(_: Any) -> AsyncIterator[int]:
        for number in range(4):
            await anyio.sleep(HOUR)
            yield number

    def body(ctx: Any) -> None:
        on.tell(f"item {ctx.item('items')}")
        on.clock.sleep(3 * HOUR)

    @kitchen.workflow
    def streaming(wf: kitchen.WorkflowBuilder) -> None:
        with wf.stream_loop("items", over=source if sync else source_async, prefetch=2):
            wf.stage("body", body, timeout=4 * HOUR)

    on.run(streaming)
    # The source is ahead: it waits for room, and holds nobody up.
    assert on.told == ["item 0 1.0", "item 1 4.0", "item 2 7.0", "item 3 10.0"]


def test_who_was_told_something_by_a_thread_that_then_sleeps_goes_first(
    on: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late the event loop comes to it: here it is held up until the thread is asleep."""
    asleep = threading.Event()

    class Told(Sleeper):
        def __init__(self, due: float, work: Any) -> None:
            super().__init__(due, work)
            self.woken = Woken()

    class Woken(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            asleep.set()
            return super().wait(timeout)

    monkeypatch.setattr("kitchen.testing.clock.clock.Sleeper", Told)

    async def main() -> None:
        told, wake, may = anyio.Event(), waker(), threading.Event()

        def work() -> None:
            assert may.wait(60)
            wake(told.set)
            on.clock.sleep(HOUR)

        async def hear() -> None:
            await told.wait()
            on.tell("heard")

        def hold_up() -> None:
            may.set()
            assert asleep.wait(60)

        async with anyio.create_task_group() as beside:
            beside.start_soon(hear)
            beside.start_soon(in_own_thread, work)
            await anyio.wait_all_tasks_blocked()
            hold_up()
        on.tell("over")

    on.on_clock(main)
    assert on.told == ["heard 0.0", "over 1.0"]


def test_a_source_that_is_slow_to_close_is_waited_for(on: Kitchen) -> None:
    def source(_: Any) -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            wait_really()
            on.tell("closed")

    @kitchen.workflow
    def streaming(wf: kitchen.WorkflowBuilder) -> None:
        with wf.stream_loop("items", over=source, prefetch=2):
            wf.stage("body", lambda ctx: ctx.stop_loop() if ctx.item("items") == 3 else None)

    assert on.run(streaming).status == "completed"
    assert on.told == ["closed 0.0"]


def test_a_resource_whose_state_takes_hours_to_load(on: Kitchen) -> None:
    class Slow:
        def __enter__(self) -> None:
            on.clock.sleep(HOUR)

        def __exit__(self, *told: object) -> None:
            on.clock.sleep(HOUR)

        def state_dict(self) -> dict[str, Any]:
            on.clock.sleep(HOUR)
            return {"n": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            on.clock.sleep(HOUR)
            on.tell("loaded")

    def body(ctx: Any) -> None:
        on.tell("body")
        assert ctx.resources["slow"]
        if ctx.incarnation == 0:
            raise SimulatedCrash

    @kitchen.workflow
    def slow(wf: kitchen.WorkflowBuilder) -> None:
        wf.resource("slow", lambda _: Slow())
        wf.checkpoint()
        wf.stage("touches", lambda ctx: ctx.resources["slow"] and None)
        wf.stage("body", body, timeout=HOUR)

    with pytest.raises(SimulatedCrash):
        on.run(slow)
    on.clock.advance(10 * HOUR)
    assert on.resume(slow).status == "completed"
    assert [told.split()[0] for told in on.told] == ["body", "loaded", "body"]
    assert 16 * HOUR <= on.clock.elapsed < 18 * HOUR


# --- what the clock cannot skip ---


def in_a_process(ctx: Any) -> None:
    VirtualClock().sleep(HOUR)  # one of its own, on which no event loop runs
    ctx.state["done"] = True


def test_a_process_takes_real_time_and_is_not_timed_out(on: Kitchen) -> None:
    run = on.run(stage(in_a_process, process=True, timeout=HOUR))
    assert run.state["done"]
    assert on.clock.elapsed < HOUR


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_thread_of_the_users_own_is_seen_where_it_is_said(sleeps: bool, on: Kitchen) -> None:
    def work() -> None:
        wait_really()
        if sleeps:
            on.clock.sleep(0.5 * HOUR)
        wait_really()

    async def body(ctx: Any) -> None:
        with on.clock.outside():
            await anyio.to_thread.run_sync(work)
        ctx.state["done"] = True

    assert on.run(stage(body, timeout=HOUR)).state["done"]
    assert (on.clock.elapsed > 0.5 * HOUR) == sleeps
    assert on.clock.elapsed < HOUR


def test_what_asyncio_has_done_by_its_executor_is_seen() -> None:
    import asyncio

    on = Kitchen("asyncio")

    def work() -> None:
        wait_really()
        on.clock.sleep(0.5 * HOUR)
        wait_really()

    async def body(ctx: Any) -> None:
        await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))
        ctx.state["done"] = True

    assert on.run(stage(body, timeout=HOUR)).state["done"]
    assert 0.5 * HOUR <= on.clock.elapsed < HOUR


# --- crashes ---


def test_a_crash_in_the_middle_of_a_retry_wait(on: Kitchen) -> None:
    retry = kitchen.Retry(1, backoff=10 * HOUR, max_delay=10 * HOUR, jitter=0)

    def flaky(ctx: Any) -> None:
        on.tell(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            raise ConnectionError

    async def interrupts(_: Any) -> None:
        await anyio.sleep(4 * HOUR)
        if crash.pop():
            raise SimulatedCrash

    @kitchen.workflow
    def both(wf: kitchen.WorkflowBuilder) -> None:
        with wf.parallel():
            wf.stage("flaky", flaky, retries=retry)
            wf.stage("interrupts", interrupts)

    crash = [False, True]
    with pytest.raises(SimulatedCrash):
        on.run(both)
    on.clock.advance(2 * HOUR)  # what passes while nobody executes it counts for a retry
    assert on.resume(both).status == "completed"
    assert on.told == ["attempt 1 0.0", "attempt 2 10.0"]


def test_a_block_uses_up_its_time_across_a_crash_but_not_while_nobody_executes_it(
    on: Kitchen,
) -> None:
    async def asleep(ctx: Any) -> None:
        await anyio.sleep(2 * HOUR)
        on.tell(ctx.path.rpartition("/")[2])

    @kitchen.workflow
    def three(wf: kitchen.WorkflowBuilder) -> None:
        with wf.timeout(5 * HOUR):
            for name in ("one", "two", "three"):
                wf.stage(name, asleep)

    on.store = FakeEventStore(crash_at="after:2")
    with pytest.raises(SimulatedCrash):
        on.run(three)
    on.store = on.store.inner
    on.clock.advance(100 * HOUR)
    with pytest.raises(kitchen.RunError, match="took longer than its 18000 s"):
        on.resume(three)
    assert on.told == ["one 2.0", "two 104.0"]
    assert 105 * HOUR <= on.clock.elapsed < 105.1 * HOUR


# --- the clock alone ---


def test_it_goes_on_as_time_does_and_stands_where_it_was_moved_to() -> None:
    clock = VirtualClock()
    clock.sleep(HOUR)
    clock.advance(HOUR)
    assert 2 * HOUR <= clock.elapsed < 2 * HOUR + 60
    assert 2 * HOUR - 1 < (clock.time_ns() - time.time_ns()) / 1e9 < 2 * HOUR + 60
    first = clock.elapsed
    wait_really()
    assert clock.elapsed > first


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", True])
def test_seconds_that_make_no_sense_are_refused(seconds: Any) -> None:
    for method in (VirtualClock().sleep, VirtualClock().advance):
        with pytest.raises(ArgumentError, match="expected seconds"):
            method(seconds)


def test_the_event_loop_is_not_held_up(on: Kitchen) -> None:
    async def body(_: Any) -> None:
        with pytest.raises(KitchenError, match="hold up the event loop"):
            on.clock.sleep(1)
        on.clock.advance(HOUR)
        await anyio.sleep(0.001)

    on.run(stage(body))
    assert HOUR <= on.clock.elapsed < 1.1 * HOUR


def test_other_backends_are_unknown() -> None:
    with pytest.raises(ArgumentError, match="asyncio, trio, not 'curio'"):
        VirtualClock().backend_options("curio")


def test_a_clock_serves_one_event_loop_at_a_time(on: Kitchen) -> None:
    def body(_: Any) -> None:
        other = Kitchen("asyncio")
        other.clock = on.clock
        with pytest.raises(KitchenError, match="another event loop"):
            other.run(stage(lambda _: None))

    on.run(stage(body))
    on.store = MemoryStore()
    assert on.run(stage(lambda _: None)).status == "completed"


def test_other_event_loops_of_the_thread_have_real_time_again(on: Kitchen) -> None:
    from kitchen.runner.outside import HERE

    before = HERE.outside
    on.run(stage(lambda _: on.clock.sleep(HOUR)))
    assert HERE.outside is before
    assert not before.watched


def test_ten_hours_of_sleep_are_few_wakeups(on: Kitchen) -> None:
    asked: list[float | None] = []
    wait = on.clock.wait

    def counting(timeout: float | None) -> float | None:
        asked.append(timeout)
        return wait(timeout)

    on.clock.wait = counting

    async def body(_: Any) -> None:
        for _ in range(10):
            await anyio.sleep(HOUR)

    on.run(stage(body))
    assert on.clock.elapsed >= 10 * HOUR
    assert len(asked) < 200  # not one for each half second


@pytest.mark.anyio
@pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param((name, VirtualClock().backend_options(name)), id=name) for name in BACKENDS],
)
async def test_the_event_loop_of_an_async_test_can_be_on_the_clock() -> None:
    before = anyio.current_time()
    await anyio.sleep(HOUR)
    with anyio.move_on_after(HOUR):
        await anyio.sleep(2 * HOUR)
    assert 2 * HOUR <= anyio.current_time() - before < 3 * HOUR


def test_metrics_of_a_long_stage_are_in_the_log_while_it_sleeps(on: Kitchen) -> None:
    seen: list[int] = []

    async def body(ctx: Any) -> None:
        ctx.record_metric("loss", 1.0)
        await anyio.sleep(HOUR)
        ctx.record_metric("loss", 2.0)
        await anyio.sleep(HOUR)
        seen.extend(e.at for e in on.store.read("r") if e.type == "MetricRecorded")

    on.run(stage(body))
    assert len(seen) >= 1

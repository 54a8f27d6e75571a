"""A simulated crash, wherever it comes from: out of the run as itself, nothing appended, resumable."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import kitchen
from kitchen.runner import loop
from kitchen.testing import FakeEventStore, SimulatedCrash
from store import MemoryStore

BACKENDS = ["asyncio", "trio"]
Die = Callable[[], None]
PLACES: dict[str, Callable[[kitchen.WorkflowBuilder, Die], None]] = {}


def place(build: Callable[[kitchen.WorkflowBuilder, Die], None]) -> None:
    PLACES[build.__name__] = build


def fine(ctx: Any) -> None:
    ctx.state[ctx.path] = 1


async def later(_: Any) -> None:
    await anyio.lowlevel.checkpoint()


@place
def a_sync_body_in_its_thread(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    wf.stage("dies", lambda _: die(), retries=3)


@place
def a_sync_body_inline(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    wf.stage("dies", lambda _: die(), thread=False)


@place
def an_async_body_with_a_timeout(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    async def body(_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        die()

    wf.stage("dies", body, timeout=60, retries=3)


@place
def a_task_group_in_a_body(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    async def task() -> None:
        die()

    async def body(_: Any) -> None:
        async with anyio.create_task_group() as outer:
            outer.start_soon(later, None)
            async with anyio.create_task_group() as inner:
                inner.start_soon(task)

    wf.stage("dies", body)


@place
def a_validation(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    class Checked(kitchen.Stage):
        def validate(self, ctx: Any) -> None:
            die()

        def execute(self, ctx: Any) -> None: ...

    wf.stage("dies", Checked())


@place
def a_predicate(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    with wf.conditional(lambda _: die() is None):
        wf.stage("inside", fine)


@place
def a_factory(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    wf.resource("thing", lambda _: (die(), object())[1], stateful=False)


@place
def a_resource_that_is_entered(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    class Entered:
        async def __aenter__(self) -> None:
            die()

        async def __aexit__(self, *told: object) -> None: ...

    wf.resource("thing", lambda _: Entered(), stateful=False)


@place
def a_resource_that_is_closed(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    class Closed:
        def __enter__(self) -> None: ...

        def __exit__(self, *told: object) -> None:
            die()

    wf.resource("thing", lambda _: Closed(), stateful=False)


@place
def a_state_dict(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    class Thing:
        def state_dict(self) -> dict[str, Any]:
            die()
            return {"n": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    wf.resource("thing", lambda _: Thing())
    wf.checkpoint()


@place
def the_items_of_a_loop(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    with wf.loop("items", over=lambda _: (die(), range(2))[1]):
        wf.stage("inside", fine)


@place
def a_branch_beside_others(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    with wf.parallel():
        wf.stage("quick", fine)
        wf.stage("dies", lambda _: die())
        wf.stage("later", later)


@place
def an_async_branch_beside_others(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    async def body(_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        die()

    async def cleans_up_badly(_: Any) -> None:
        try:
            await anyio.sleep(0.001)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                raise ValueError("while it was cancelled") from None
            raise

    with wf.parallel():
        wf.stage("dies", body)
        wf.stage("cleans_up_badly", cleans_up_badly)


@place
def a_merge(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    with wf.parallel(merge={"x": lambda *_: (die(), 1)[1]}):
        wf.stage("one", lambda ctx: ctx.state.update(x=1))
        wf.stage("two", lambda ctx: ctx.state.update(x=2))


@place
def a_stream(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    def source(_: Any) -> Iterator[int]:
        yield 0
        die()
        yield 1

    with wf.stream_loop("items", over=source):
        wf.stage("inside", fine)


@place
def an_async_stream(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    async def source(_: Any) -> AsyncIterator[int]:
        yield 0
        die()
        yield 1

    with wf.stream_loop("items", over=source):
        wf.stage("inside", fine)


@place
def a_producer(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    with wf.async_loop(
        "items", producer=lambda _: (die(), 1)[1], stop_when=lambda ctx: ctx.index("items") >= 1
    ):
        wf.stage("inside", fine)


@place
def an_async_producer_among_others(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    async def produce(_: Any) -> int:
        await anyio.lowlevel.checkpoint()
        die()
        return 1

    with wf.async_loop(
        "items", producer=produce, stop_when=lambda ctx: ctx.index("items") >= 1, producers=3
    ):
        wf.stage("inside", fine)


@place
def a_condition_to_stop(wf: kitchen.WorkflowBuilder, die: Die) -> None:
    with wf.async_loop("items", producer=lambda _: 1, stop_when=lambda _: die() is None):
        wf.stage("inside", fine)


def built(name: str, die: Die) -> kitchen.Workflow[Any, Any]:
    @kitchen.workflow
    def workflow(wf: kitchen.WorkflowBuilder) -> None:
        wf.stage("before", fine)
        PLACES[name](wf, die)
        wf.stage("behind", fine)

    return workflow


def run_on(backend: str, workflow: Any, store: Any) -> kitchen.Run[Any, Any]:
    async def main() -> Any:
        return await kitchen.run_async(workflow, store=store, run_id="r")

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLACES)
def test_a_crash_comes_out_as_itself_and_the_run_is_resumed(name: str, backend: str) -> None:
    dead: list[int] = []  # what was in the log when it died

    def die() -> None:
        if not dead:
            dead.append(store.head("r"))
            raise SimulatedCrash(name)

    store = MemoryStore()
    workflow = built(name, die)
    with pytest.raises(SimulatedCrash, match=f"^{name}$"):
        run_on(backend, workflow, store)
    told = list(store.read("r"))
    # What else was under way may have come to its end before the crash was noticed; but nothing
    # says that the run has failed, or was stopped.
    for event in told[dead[0] :]:
        assert not event.type.startswith("Run"), event
        assert not event.type.endswith(("Failed", "Interrupted", "Scheduled")), event
    assert store.run("r").owner is None
    run = kitchen.resume("r", workflow, store=store)
    assert run.status == "completed"
    assert run.state["behind"] == 1
    assert store.verify() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_flushed_while_the_dying_run_waits_for_its_threads(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushing = 0.001
    monkeypatch.setattr(loop, "FLUSH_SECONDS", flushing)
    recorded, goes_on = threading.Event(), threading.Event()

    def long(ctx: Any) -> None:
        recorded.set()
        assert goes_on.wait(10)
        ctx.record_metric("late", 1.0)  # in the log within a flush, if anybody flushed
        rest.wait(0.05)

    rest = threading.Event()

    def dies(_: Any) -> None:
        assert recorded.wait(10)
        threading.Timer(0.05, goes_on.set).start()
        raise SimulatedCrash

    @kitchen.workflow
    def workflow(wf: kitchen.WorkflowBuilder) -> None:
        with wf.parallel():
            wf.stage("long", long)
            wf.stage("dies", dies)

    store = MemoryStore()
    with pytest.raises(SimulatedCrash):
        run_on(backend, workflow, store)
    assert "MetricRecorded" not in [e.type for e in store.read("r")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crash_at_the_append_of_the_flusher_ends_the_run(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FLUSH_SECONDS", 0.001)
    die = [True]

    async def records(ctx: Any) -> None:
        ctx.record_metric("loss", 1.0)
        if die[0]:
            await anyio.sleep(60)

    @kitchen.workflow
    def workflow(wf: kitchen.WorkflowBuilder) -> None:
        wf.stage("records", records)

    for point, flushed in (("before:2", 0), ("after:2", 1)):
        die[0] = True
        store = FakeEventStore(crash_at=point)
        with pytest.raises(SimulatedCrash):
            run_on(backend, workflow, store)
        types = [e.type for e in store.inner.read("r")]
        assert types.count("MetricRecorded") == flushed
        assert types[-1] in ("StageStarted", "MetricRecorded")
        die[0] = False
        run = kitchen.resume("r", workflow, store=store.inner)
        assert [point.value for point in run.metrics["loss"]] == [1.0]


def crashes_in_its_process(_: Any) -> None:
    raise SimulatedCrash("there")


def test_a_crash_in_a_process_of_its_own_is_a_failure_of_the_stage() -> None:
    @kitchen.workflow
    def workflow(wf: kitchen.WorkflowBuilder) -> None:
        wf.stage("dies", crashes_in_its_process, process=True)

    with pytest.raises(kitchen.RunError, match="SimulatedCrash: there"):
        kitchen.run(workflow, store=MemoryStore())


def test_what_is_done_to_a_log_from_outside_counts_too() -> None:
    @kitchen.workflow
    def workflow(wf: kitchen.WorkflowBuilder) -> None:
        wf.stage("one", fine)
        wf.stage("two", fine)

    store = FakeEventStore()
    kitchen.run(workflow, store=store, run_id="r")
    before = store.calls["append"]
    assert kitchen.history("r", store=store).state_at() == {"one": 1, "two": 1}
    mortal = FakeEventStore(store.inner, crash_at="before:1")
    with pytest.raises(SimulatedCrash):
        kitchen.fork("r", at=4, new_run_id="f", store=mortal)
    assert [info.run for info in store.runs()] == ["r"]
    assert store.calls["append"] == before
    assert kitchen.fork("r", at=4, new_run_id="f", store=store)
    assert store.calls["append"] == before + 1

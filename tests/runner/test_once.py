"""Effects that must not happen twice: what is known holds, and what is not somebody decides."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import pytest

import kitchen
from kitchen import EffectUndecided, Retry, WorkflowBuilder
from store import MemoryStore
from tests.runner.running import Box, Killed, done, done_async, flow, of_type, types


class Paid:
    """A paid call, that dies, raises or returns as it is told; `calls` says how often it was made."""

    def __init__(self, *does: Any) -> None:
        self.does = list(does)
        self.calls = 0

    def __call__(self, ctx: Any) -> None:
        self.calls += 1
        todo = self.does.pop(0) if self.does else None
        if todo is not None:
            raise todo
        ctx.state["paid"] = self.calls
        ctx.record_metric("paid", self.calls)


def paying(body: Any, **more: Any) -> Any:
    def build(wf: WorkflowBuilder) -> None:
        wf.stage("before", lambda ctx: ctx.state.update(before=1))
        wf.stage("pay", body, effect="once", **more)
        wf.stage("behind", lambda ctx: ctx.state.update(behind=ctx.state.get("paid")))

    return flow(build)


def crashed(workflow: Any) -> MemoryStore:
    store = MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    return store


def test_in_flight_at_a_crash_it_is_undecided() -> None:
    paid = Paid(Killed())
    workflow = paying(paid)
    store = crashed(workflow)
    head = store.run("r").head
    with pytest.raises(EffectUndecided, match="must not happen twice:\n  pay") as caught:
        kitchen.resume("r", workflow, store=store)
    assert "pay=retry" in str(caught.value)
    with pytest.raises(EffectUndecided):
        done(workflow, store=store, if_exists="resume")
    assert store.run("r").head == head  # nothing was begun
    assert paid.calls == 1


@pytest.mark.parametrize(
    ("said", "state", "calls"),
    [
        ("retry", {"before": 1, "paid": 2, "behind": 2}, 2),
        ("skip", {"before": 1, "behind": None}, 1),
        ({"paid": 7}, {"before": 1, "paid": 7, "behind": 7}, 1),
    ],
)
def test_somebody_decides(said: Any, state: Any, calls: int) -> None:
    paid = Paid(Killed())
    workflow = paying(paid)
    store = crashed(workflow)
    run = kitchen.resume("r", workflow, store=store, decide={"pay": said})
    assert run.state == state
    assert paid.calls == calls
    assert len(run.metrics.get("paid", [])) == calls - 1
    (told,) = of_type(store, "EffectDecided")
    assert told.event.choice == ("retry" if said == "retry" else "skip")  # type: ignore[attr-defined]
    assert store.verify() == []


class Declared(msgspec.Struct):
    paid: int = 0


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"pya": "retry"}, kitchen.ArgumentError, "did you mean 'pay'"),
        ({"nothing": "skip"}, kitchen.ArgumentError, "is not an effect that is undecided"),
        ({"pay": "again"}, kitchen.ArgumentError, '"retry", by "skip", or by a mapping'),
        ({"pay": None}, kitchen.ArgumentError, "not by None"),
        ({"pay": {1: 2}}, kitchen.ArgumentError, "1 is no key of the state"),
        ({"pay": {"payed": 2}}, kitchen.UnknownKey, "the state has no field 'payed'"),
        ({"pay": {"paid": "much"}}, kitchen.KitchenError, "paid"),
        ({"pay": {"paid": object()}}, kitchen.KitchenError, "paid"),
        ({}, EffectUndecided, "it is not known whether this has happened"),
    ],
)
def test_what_cannot_be_decided_is_said_and_nothing_happens(
    given: Any, error: Any, says: str
) -> None:
    def body(ctx: Any) -> None:
        raise Killed

    workflow = flow(lambda wf: wf.stage("pay", body, effect="once"), state=Declared)
    store = crashed(workflow)
    head = store.run("r").head
    with pytest.raises(error) as caught:
        kitchen.resume("r", workflow, store=store, decide=given)
    assert says in str(caught.value)
    assert store.run("r").head == head


def test_nothing_is_undecided() -> None:
    die = [True]

    def body(ctx: Any) -> None:
        if die and die.pop():
            raise Killed

    workflow = flow(lambda wf: wf.stage("s", body))
    store = crashed(workflow)
    with pytest.raises(kitchen.ArgumentError, match="nothing is undecided"):
        kitchen.resume("r", workflow, store=store, decide={"s": "retry"})
    assert kitchen.resume("r", workflow, store=store).status == "completed"


def test_each_visit_is_an_effect_of_its_own() -> None:
    """Two at once, in branches; both have to be decided."""
    die = threading.Barrier(2)
    calls: list[Any] = []

    def body(ctx: Any) -> None:
        calls.append(ctx.visit)
        if len(calls) <= 2 and ctx.attempt == 1:
            die.wait(20)
            raise Killed
        ctx.append("paid", ctx.item("p"))

    def build(wf: WorkflowBuilder) -> None:
        with wf.parallel(
            "p", over=lambda ctx: ["a", "b"], max_concurrency=2, merge={"paid": "extend"}
        ):
            wf.stage("pay", body, effect="once")

    workflow = flow(build)
    store = crashed(workflow)
    with pytest.raises(kitchen.ArgumentError, match="may mean several effects"):
        kitchen.resume("r", workflow, store=store, decide={"p/pay": "retry"})
    with pytest.raises(EffectUndecided, match=r"twice:\n  p\[1\]/pay"):
        kitchen.resume("r", workflow, store=store, decide={"p[0]/pay": "retry"})
    said = {"p[0]/pay": "retry", "p[1]/pay": {"paid": ["mine"]}}
    assert kitchen.resume("r", workflow, store=store, decide=said).state == {"paid": ["a", "mine"]}


def test_raising_is_known_and_may_be_tried_again() -> None:
    paid = Paid(ConnectionError(), ConnectionError())
    assert done(paying(paid, retries=Retry(2, backoff=0))).state["paid"] == 3


def test_raising_for_good_is_known_too() -> None:
    paid = Paid(ConnectionError())
    workflow, store = paying(paid), MemoryStore()
    with pytest.raises(kitchen.RunError, match="ConnectionError"):
        done(workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).state["paid"] == 2


@pytest.mark.parametrize("how", ["async", "thread", "wrapped"])
@pytest.mark.anyio
async def test_timed_out_it_is_undecided_and_not_tried_again(how: str) -> None:
    """Also where the body makes another exception of its cancellation."""
    release = threading.Event()
    calls: list[int] = []

    async def later(ctx: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            ctx.state["paid"] = True
            return
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            if how == "wrapped":
                raise ConnectionError("aborted") from None
            raise

    def blocking(ctx: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            release.wait(60)
        ctx.state["paid"] = True

    body = blocking if how == "thread" else later
    workflow = flow(
        lambda wf: wf.stage("pay", body, effect="once", timeout=0.4, retries=Retry(3, backoff=0))
    )
    store = MemoryStore()
    try:
        with pytest.raises(kitchen.RunError, match="EffectUndecided") as caught:
            await done_async(workflow, store=store)
    finally:
        release.set()
    assert len(calls) == 1
    assert caught.value.run.failure.type == "EffectUndecided"
    with pytest.raises(EffectUndecided):
        await kitchen.resume_async("r", workflow, store=store)
    run = await kitchen.resume_async("r", workflow, store=store, decide={"pay": "retry"})
    assert run.state == {"paid": True}


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_stopped_by_ctrl_c_it_is_undecided(how: str, release: threading.Event) -> None:
    """Once the grace period is over; one that ends within it is committed."""

    def sync(ctx: Any) -> None:
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(60)
        ctx.state["paid"] = True

    async def later(ctx: Any) -> None:
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGINT)
            await anyio.sleep_forever()
        ctx.state["paid"] = True

    workflow, store = paying(sync if how == "sync" else later), MemoryStore()
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store, grace=0)
    with pytest.raises(EffectUndecided):
        kitchen.resume("r", workflow, store=store)
    run = kitchen.resume("r", workflow, store=store, decide={"pay": {"paid": 5}})
    assert run.state == {"before": 1, "paid": 5, "behind": 5}


def test_one_that_was_not_begun_is_simply_run() -> None:
    """The signal came before its turn."""

    def build(wf: WorkflowBuilder) -> None:
        wf.stage("stop", lambda ctx: os.kill(os.getpid(), signal.SIGINT))
        wf.stage("pay", lambda ctx: ctx.state.update(paid=True), effect="once")

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).state == {"paid": True}


def test_a_sibling_that_fails_leaves_it_undecided(release: threading.Event) -> None:
    begun = threading.Event()

    def pay(ctx: Any) -> None:
        if not begun.is_set():
            begun.set()
            release.wait(60)
        ctx.state["paid"] = True

    def fail(ctx: Any) -> None:
        assert begun.wait(20)
        if not release.is_set():
            release.set()
            raise ValueError("no")

    def build(wf: WorkflowBuilder) -> None:
        with wf.parallel("p"):
            wf.stage("pay", pay, effect="once")
            wf.stage("fail", fail)

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(kitchen.RunError, match="ValueError: no"):
        done(workflow, store=store)
    with pytest.raises(EffectUndecided, match="pay"):
        kitchen.resume("r", workflow, store=store)
    assert kitchen.resume("r", workflow, store=store, decide={"p/pay": "skip"}).state == {}


# --- behind a rewind ------------------------------------------------------------------------------


def rewinding(paid: Any, die: Any, differs: Any = None) -> Any:
    """A touch, then the effect, then a death: the resume goes back to before both."""

    def touch(ctx: Any) -> None:
        ctx.state["box"] = ctx.resources["box"].add()
        if differs is not None:
            ctx.state["run"] = differs()

    def dies(ctx: Any) -> None:
        die(ctx)

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("touch", touch)
        wf.stage("pay", paid, effect="once")
        wf.stage("dies", dies)
        wf.stage("end", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    return flow(build)


class Deaths:
    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, ctx: Any) -> None:
        self.times -= 1
        if self.times >= 0:
            raise Killed


@pytest.mark.parametrize("times", [1, 2, 3])
def test_behind_a_rewind_a_known_effect_is_taken_over(times: int) -> None:
    paid = Paid()
    workflow = rewinding(paid, Deaths(times))
    store = crashed(workflow)
    for _ in range(times - 1):
        with pytest.raises(Killed):
            kitchen.resume("r", workflow, store=store)
    run = kitchen.resume("r", workflow, store=store)
    assert paid.calls == 1
    assert run.state == {"box": 1, "paid": 1, "changes": 1}
    assert [p.value for p in run.metrics["paid"]] == [1]
    assert types(store).count("RunRewound") == times
    assert store.verify() == []


def test_behind_a_rewind_in_the_same_process_too() -> None:
    paid = Paid()
    left = [2]

    def fails(ctx: Any) -> None:
        ctx.resources["box"].add()
        if left[0]:
            left[0] -= 1
            raise ConnectionError

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("touch", lambda ctx: ctx.resources["box"].add())
        wf.stage("pay", paid, effect="once")
        wf.stage("fails", fails, retries=Retry(2, backoff=0))

    store = MemoryStore()
    assert done(flow(build), store=store).state == {"paid": 1}
    assert paid.calls == 1
    assert types(store).count("RunRewound") == 2


def test_where_the_past_comes_out_otherwise_it_is_undecided() -> None:
    paid, seen = Paid(), iter((0, 1, 1))
    workflow = rewinding(paid, Deaths(1), lambda: next(seen))
    store = crashed(workflow)
    with pytest.raises(kitchen.RunError, match="EffectUndecided"):
        kitchen.resume("r", workflow, store=store)
    assert "RewindDiverged" in types(store)
    assert paid.calls == 1
    run = kitchen.resume("r", workflow, store=store, decide={"pay": {"paid": 9}})
    assert paid.calls == 1
    assert run.state["paid"] == 9


@pytest.mark.parametrize("said", ["retry", "skip"])
def test_undecided_at_the_crash_and_then_a_rewind(said: Any) -> None:
    """It is decided before it is reached again, and a second crash on the way changes nothing."""
    paid = Paid(Killed())
    turns = [0]

    def slow(ctx: Any) -> None:
        turns[0] += 1
        if turns[0] == 2:
            raise Killed

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("touch", lambda ctx: ctx.resources["box"].add())
        wf.stage("slow", slow)
        wf.stage("pay", paid, effect="once")

    workflow = flow(build)
    store = crashed(workflow)
    with pytest.raises(Killed):
        kitchen.resume("r", workflow, store=store, decide={"pay": said})
    run = kitchen.resume("r", workflow, store=store)
    assert paid.calls == (2 if said == "retry" else 1)
    assert run.state == ({"paid": 2} if said == "retry" else {})


# --- resources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("touches", [True, False])
def test_it_may_only_peek_at_what_is_stateful(touches: bool) -> None:
    def pay(ctx: Any) -> None:
        ctx.resources["client"].append(1)
        box = ctx.resources["box"] if touches else ctx.resources.peek("box")
        ctx.state["seen"] = box.changes

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.resource("client", lambda ctx: [], stateful=False)
        wf.stage("pay", pay, effect="once")

    if touches:
        with pytest.raises(
            kitchen.RunError, match="has effect=\"once\" and may only look at 'box'"
        ):
            done(flow(build))
    else:
        assert done(flow(build)).state == {"seen": 0}

"""async_loop in a run: what producers see, how far ahead they are, and how it ends and resumes."""

from __future__ import annotations

import os
import random
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import kitchen
from store import MemoryStore
from tests.runner.running import (
    Box,
    Dying,
    Killed,
    done,
    done_async,
    failure,
    flow,
    of_type,
    types,
    until,
)

SECONDS = 20


def producing(producer: Any, stop: Any, body: Any, **options: Any) -> Any:
    def build(wf: Any) -> None:
        with wf.async_loop("al", producer=producer, stop_when=stop, **options):
            wf.stage("s", body)

    return flow(build)


def take(ctx: Any) -> None:
    ctx.increment("turn")
    ctx.append("taken", ctx.item())


def after(turns: int) -> Callable[[Any], bool]:
    return lambda ctx: ctx.state["turn"] >= turns


def number(ctx: Any) -> int:
    return ctx.index()


class Calls:
    """A producer that tells what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.changed = threading.Condition()

    def __call__(self, ctx: Any) -> int:
        with self.changed:
            self.asked.append(ctx.index())
            self.changed.notify_all()
        return ctx.index()

    def are(self, count: int) -> None:
        """Wait until so many were asked for."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, SECONDS)


# --- ahead ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pacing", ["paced", "free"])
@pytest.mark.parametrize(("size", "producers"), [(1, 1), (3, 1), (4, 2), (4, 4)])
def test_producers_are_ahead_and_no_further(pacing: Any, size: int, producers: int) -> None:
    calls = Calls()

    def body(ctx: Any) -> None:
        calls.are(ctx.index() + size)  # all that fits is made while this body works
        assert len(calls.asked) == ctx.index() + size
        take(ctx)

    run = done(
        producing(calls, after(10), body, buffer_size=size, producers=producers, pacing=pacing)
    )
    assert run.state["taken"] == list(range(10))
    assert sorted(calls.asked) == list(range(len(calls.asked)))


def test_as_many_producers_as_may() -> None:
    together = threading.Barrier(3)

    def producer(ctx: Any) -> int:
        if ctx.index() < 3:
            together.wait(SECONDS)
        return ctx.index()

    run = done(producing(producer, after(4), take, producers=3))
    assert run.state["taken"] == [0, 1, 2, 3]


# --- what a producer sees -------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "producers"), [(1, 1), (2, 1), (4, 1), (5, 3)])
async def test_paced_production_k_sees_what_turn_k_less_buffer_size_left(
    size: int, producers: int
) -> None:
    async def wait() -> None:
        for _ in range(chance.randrange(6)):
            await anyio.lowlevel.checkpoint()

    async def producer(ctx: Any) -> list[Any]:
        await wait()
        before = ctx.state.get("turn", 0)
        await wait()
        assert ctx.state.get("turn", 0) == before
        return [ctx.index(), before, ctx.rng.random()]

    async def body(ctx: Any) -> None:
        await wait()
        take(ctx)
        ctx.append("told", (ctx.version(), ctx.staleness(), ctx.version("al")))

    workflow = producing(producer, after(12), body, buffer_size=size, producers=producers)
    whole: Any = None
    for seed in range(8):
        chance = random.Random(seed)
        run = await done_async(workflow)
        taken = run.state["taken"]
        assert [item[:2] for item in taken] == [[k, max(0, k + 1 - size)] for k in range(12)]
        versions = [max(0, k + 1 - size) for k in range(12)]
        assert run.state["told"] == [(v, k - v, v) for k, v in enumerate(versions)]
        whole = whole or run.state
        assert run.state == whole


def test_free_sees_the_latest() -> None:
    entered = threading.Event()

    def producer(ctx: Any) -> int:
        if ctx.index() == 3:
            assert entered.wait(SECONDS)
        return ctx.state.get("turn", 0)

    def body(ctx: Any) -> None:
        take(ctx)
        if ctx.index() == 2:
            entered.set()

    run = done(producing(producer, after(5), body, buffer_size=1, pacing="free"))
    assert run.state["taken"] == [0, 1, 2, 3, 4]


def test_an_item_is_a_copy_and_cannot_be_changed() -> None:
    made: list[Any] = []

    def producer(ctx: Any) -> Any:
        made.append({"n": [ctx.index()]})
        return made[-1]

    def body(ctx: Any) -> None:
        made[ctx.index()]["n"].append("later")
        with pytest.raises(kitchen.FrozenValue):
            ctx.item()["n"].append(1)
        take(ctx)

    assert done(producing(producer, after(2), body)).state["taken"] == [{"n": [0]}, {"n": [1]}]


def test_what_a_producer_may_not() -> None:
    for act, said in [
        (lambda ctx: ctx.state.update(x=1), r"the producer at al/producer\[0\] may not change"),
        (lambda ctx: ctx.record_metric("m", 1), r"the producer at al/producer\[0\] may not record"),
        (lambda ctx: ctx.stop_loop(), r"the producer at al/producer\[0\] may not stop a loop"),
        (lambda ctx: ctx.item(), r"the item of al is what this producer makes"),
        (lambda ctx: ctx.version(), r"ctx.version and ctx.staleness are read in the body"),
    ]:
        with pytest.raises(kitchen.RunError, match=said):
            done(producing(act, after(1), take))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_a_producer_raises_fails_the_loop(asynchronous: bool) -> None:
    def sync_producer(ctx: Any) -> int:
        if ctx.index() == 2:
            raise LookupError("in the producer")
        return ctx.index()

    async def async_producer(ctx: Any) -> int:
        await anyio.lowlevel.checkpoint()
        return sync_producer(ctx)

    store = MemoryStore()
    workflow = producing(async_producer if asynchronous else sync_producer, after(9), take)
    with pytest.raises(kitchen.RunError, match=r"failed at al\[2\]/producer") as caught:
        done(workflow, store=store)
    cause = caught.value.__cause__
    assert isinstance(cause, LookupError)
    assert "in sync_producer" in "".join(traceback.format_tb(cause.__traceback__))
    assert types(store)[-1] == "RunFailed"


def test_a_failed_producer_goes_on_where_it_was_when_resumed() -> None:
    broken = [True]
    calls = Calls()

    def producer(ctx: Any) -> float:
        if ctx.index() == 3 and broken[0]:
            raise LookupError
        return calls(ctx) + ctx.rng.random()

    store, workflow = MemoryStore(), producing(producer, after(6), take)
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    broken[0] = False
    calls.asked.clear()
    run = kitchen.resume("r", workflow, store=store)
    assert run.state == done(workflow).state
    assert calls.asked[0] == 3


@pytest.mark.parametrize("slow", [False, True])
def test_an_item_that_nobody_consumes_may_fail(slow: bool) -> None:
    """Whether it was begun before the loop ended is chance."""
    begun = threading.Event()

    def producer(ctx: Any) -> int:
        if ctx.index() == 2:
            begun.set()
            raise LookupError
        return ctx.index()

    def body(ctx: Any) -> None:
        if not slow:
            assert begun.wait(20)
        ctx.append("taken", ctx.item())

    store = MemoryStore()
    run = done(producing(producer, lambda ctx: True, body), store=store)
    assert run.state == {"taken": [0]}


def test_a_producer_touches_from_its_first_item_on_or_never() -> None:
    def producer(ctx: Any) -> int:
        if ctx.index() == 1:
            ctx.resources["box"].add()
        return ctx.index()

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop("al", producer=producer, stop_when=after(4)):
            wf.stage("take", take)

    told = failure(flow(build))
    assert told.type == "BranchConflict"
    assert told.message == "the producer touches box now, and did not for its first item"
    assert "for every item" in told.hint


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (None, "the producer al/producer[0] returned None"),
        (object(), "an item that is produced must outlast a crash: "),
        ({"f": print}, "an item that is produced must outlast a crash: "),
    ],
)
def test_items_that_are_refused(item: Any, said: str) -> None:
    told = failure(producing(lambda ctx: item, after(1), take))
    assert told.message.startswith(said)
    assert told.hint


def test_one_resource_on_both_sides() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop("al", producer=both, stop_when=after(9), buffer_size=1):
            wf.stage("s", both)

    def both(ctx: Any) -> float:
        ctx.increment("turn") if ctx.path.endswith("s") else None
        return ctx.resources["box"].add()

    told = failure(flow(build))
    assert told.type == "BranchConflict"
    assert told.message == "the producer and the body of the loop 'al' touch 'box'"
    assert "a resource of its own" in told.hint


def test_several_producers_and_one_stateful_resource() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop(
            "al", producer=lambda ctx: ctx.resources["box"].add(), stop_when=after(9), producers=2
        ):
            wf.stage("s", take)

    told = failure(flow(build))
    assert told.message == "2 producers at a time touch box: in which order would be chance"


# --- its end --------------------------------------------------------------------------------------


def test_items_that_are_left_are_told() -> None:
    store, calls = MemoryStore(), Calls()

    def body(ctx: Any) -> None:
        calls.are(ctx.index() + 4)
        take(ctx)

    done(producing(calls, after(3), body), store=store)
    told = of_type(store, "ItemDiscarded")
    assert {record.event.reason for record in told} == {"left"}  # type: ignore[attr-defined]
    made = [record.visit for record in of_type(store, "ItemProduced")]
    taken = [record.visit for record in of_type(store, "ItemTaken")]
    assert taken == [(0,), (1,), (2,)]
    assert sorted(made) == sorted(taken + [record.visit for record in told])


def test_stop_loop_and_stop_when() -> None:
    """Whichever comes first; what follows in the visit still runs, and stop_when is not asked."""
    asked: list[int] = []

    def stop(ctx: Any) -> bool:
        asked.append(ctx.index())
        return False

    def body(ctx: Any) -> None:
        take(ctx)
        if ctx.index() == 3:
            ctx.stop_loop()

    def build(wf: Any) -> None:
        with wf.async_loop("al", producer=number, stop_when=stop):
            wf.stage("s", body)
            wf.stage("follows", lambda ctx: ctx.append("followed", ctx.index()))

    run = done(flow(build))
    assert run.state == {"turn": 4, "taken": [0, 1, 2, 3], "followed": [0, 1, 2, 3]}
    assert asked == [0, 1, 2]


def test_items_that_are_too_old() -> None:
    """Of four made from the state at entry, only those that are young enough are consumed."""
    store = MemoryStore()

    def body(ctx: Any) -> None:
        assert ctx.staleness() <= 1
        take(ctx)

    run = done(producing(number, after(6), body, max_staleness=1), store=store)
    stale = [
        record.visit[0]
        for record in of_type(store, "ItemDiscarded")
        if record.event.reason == "stale"  # type: ignore[attr-defined]
    ]
    assert run.state["taken"][:2] == [0, 1]
    assert stale[:2] == [2, 3]
    assert not set(stale) & set(run.state["taken"])
    again = done(producing(number, after(6), take, max_staleness=1))
    assert again.state == run.state


def test_a_producers_resource_is_used_the_same_number_of_times() -> None:
    """How far ahead a producer was when the loop ended must not show in what it owns."""

    def producer(ctx: Any) -> float:
        ready[ctx.index()].wait(0.01 if chance.random() < 0.5 else 0)
        return ctx.resources["box"].add(ctx.rng.random())

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop("al", producer=producer, stop_when=after(3), buffer_size=3):
            wf.stage("s", take)
        wf.stage("note", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))

    ready = [threading.Event() for _ in range(20)]
    chance = random.Random(5)
    states = [done(flow(build)).state for _ in range(10)]
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_ctrl_c_does_not_wait_for_a_slow_producer(asynchronous: bool) -> None:
    release = threading.Event()

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def slow(ctx: Any) -> int:
        if ctx.index() == 2 and not release.is_set():
            stop()
            release.wait(SECONDS)
        return ctx.index()

    async def slow_async(ctx: Any) -> int:
        if ctx.index() == 2 and not release.is_set():
            stop()
            await anyio.sleep_forever()
        return ctx.index()

    class Freeing:
        def on_facts(self, run_id: str, facts: Any, state: Any) -> None:
            if state.status == "interrupted":
                release.set()

        def on_progress(self, *_: Any) -> None: ...

    workflow = producing(slow_async if asynchronous else slow, after(5), take)
    store = MemoryStore()
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store, observers=[Freeing()])
    assert release.is_set()
    assert kitchen.resume("r", workflow, store=store).state["taken"] == [0, 1, 2, 3, 4]


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_slow_producer_does_not_hold_up_a_cancellation(asynchronous: bool) -> None:
    release, slow_one = threading.Event(), threading.Event()

    def slow(ctx: Any) -> int:
        if ctx.index() == 1:
            slow_one.set()
            release.wait(SECONDS)
        return ctx.index()

    async def slow_async(ctx: Any) -> int:
        if ctx.index() == 1:
            slow_one.set()
            await anyio.sleep_forever()
        return ctx.index()

    workflow = producing(slow_async if asynchronous else slow, after(5), take)
    try:
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: done_async(workflow))
                await until(slow_one.is_set)
                tasks.cancel_scope.cancel()
        assert not release.is_set()
    finally:
        release.set()


def test_an_abandoned_producer_gets_at_nothing_any_more() -> None:
    """Behind a stop, its thread lives on; what is saved then stays as it was saved."""
    waiting, release, ended = threading.Event(), threading.Event(), threading.Event()
    told: list[BaseException] = []
    box = Box()

    def producer(ctx: Any) -> float:
        if ctx.index() == 1 and not release.is_set():
            waiting.set()
            release.wait(SECONDS)
            try:
                ctx.resources["box"].add(100)
            except kitchen.StaleContext as error:
                told.append(error)
            ended.set()
        return ctx.resources["box"].add(1)

    def body(ctx: Any) -> None:
        take(ctx)
        if ctx.index() == 0 and not release.is_set():
            assert waiting.wait(SECONDS)
            os.kill(os.getpid(), signal.SIGINT)

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop("al", producer=producer, stop_when=after(3)):
            wf.stage("s", body)
        wf.stage("note", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store)
    release.set()
    assert ended.wait(SECONDS)
    assert len(told) == 1
    run = kitchen.resume("r", workflow, store=store)
    assert run.state == done(workflow).state
    assert not of_type(store, "RunRewound")
    assert box.changes == 0


# --- resumed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(5))
def test_what_was_made_is_taken_from_the_log(at: int) -> None:
    """With k produced and j consumed, k - j are had from the log, and k is asked for next."""
    calls, die = Calls(), Dying(at)

    def body(ctx: Any) -> None:
        if die.calls <= at:
            calls.are(ctx.index() + 3)
        die()
        take(ctx)

    store = MemoryStore()
    workflow = producing(calls, after(6), body, buffer_size=3)
    with pytest.raises(Killed):
        done(workflow, store=store)
    made = len(of_type(store, "ItemProduced"))
    assert len(of_type(store, "ItemTaken")) == at + 1
    assert made >= at + 1
    calls.asked.clear()
    run = kitchen.resume("r", workflow, store=store)
    assert run.state["taken"] == list(range(6))
    assert calls.asked[0] == made
    assert calls.asked == list(range(made, made + len(calls.asked)))


def test_large_items_are_had_again_from_blobs() -> None:
    die = Dying(2)

    def body(ctx: Any) -> None:
        die()
        ctx.increment("turn")
        ctx.append("sums", float(ctx.item().sum()))

    def producer(ctx: Any) -> Any:
        return ctx.numpy_rng().random(20_000) + ctx.state.get("turn", 0)

    workflow, store = producing(producer, after(5), body), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).state == done(workflow).state


def test_a_checkpoint_in_the_body_waits_for_the_producer() -> None:
    """It owns a resource: saved at an item boundary, it is neither ahead nor behind its items."""
    die, store = Dying(4), MemoryStore()

    def producer(ctx: Any) -> float:
        return ctx.resources["box"].add(ctx.rng.random() + ctx.state.get("turn", 0))

    def body(ctx: Any) -> None:
        # The first behind the cut has to be there: else nothing was touched, and nothing rewound.
        while ctx.index() == 4 and len(of_type(store, "ItemProduced")) < 7:
            threading.Event().wait(0.001)
        die()
        take(ctx)

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop("al", producer=producer, stop_when=after(7), buffer_size=3):
            wf.stage("s", body)
            with wf.conditional(lambda ctx: ctx.index() == 2, name="now"):
                wf.checkpoint()
        wf.stage("note", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))

    workflow = flow(build)
    with pytest.raises(Killed):
        done(workflow, store=store)
    run = kitchen.resume("r", workflow, store=store)
    assert of_type(store, "RunRewound")
    assert not of_type(store, "RewindDiverged")
    assert run.state == done(workflow).state


@pytest.mark.anyio
@pytest.mark.parametrize(("touches", "how"), [(True, "finished"), (False, "cancelled")])
async def test_a_free_loop_lets_a_production_end_that_has_touched_a_resource(
    touches: bool, how: str
) -> None:
    """Half a step would be left in there. One that has touched nothing is cancelled."""
    ended: list[str] = []
    under_way, release = anyio.Event(), anyio.Event()

    class Release:
        def on_facts(self, *told: Any, **_: Any) -> None:
            facts = told[1]
            if any(type(fact.event).__name__ == "ConditionEvaluated" for fact in facts):
                release.set()

        def on_progress(self, *_: Any, **__: Any) -> None: ...

    async def producer(ctx: Any) -> int:
        if touches:
            ctx.resources["box"].add()
        if ctx.index() > 0:
            under_way.set()
            try:
                await release.wait()
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class():
                ended.append("cancelled")
                raise
            ended.append("finished")
        return ctx.index()

    async def body(_ctx: Any) -> None:
        await under_way.wait()

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.async_loop(
            "al", producer=producer, stop_when=lambda ctx: True, buffer_size=2, pacing="free"
        ):
            wf.stage("take", body)

    with anyio.fail_after(20):
        run = await kitchen.run_async(flow(build), store=MemoryStore(), observers=[Release()])
    assert run.status == "completed"
    assert ended == [how]

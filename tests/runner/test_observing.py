"""What is told while a run goes on: metrics, facts to observers, and what fails on the way.

Metrics of a long stage are in the log within a second; the tests wait on the log, and would wait
twenty if they never came.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.from_thread
import numpy as np
import pytest

import kitchen
from kitchen.history.history import History
from kitchen.machine.events import Fact
from store import MemoryStore
from tests.runner.running import (
    Box,
    Dying,
    Killed,
    done,
    done_async,
    failure,
    flow,
    log,
    of_type,
    single,
    types,
    until,
)

# --- metrics --------------------------------------------------------------------------------------


def points(run: Any) -> dict[str, list[Any]]:
    return {name: [(p.value, p.step) for p in found] for name, found in run.metrics.items()}


def test_numbers_of_every_kind() -> None:
    def body(ctx: Any) -> None:
        ctx.record_metric("int", 1, step=4)
        ctx.record_metric("float", 0.5, step=np.int64(5))
        ctx.record_metrics(
            {"f32": np.float32(0.5), "i8": np.int8(3), "zero_d": np.array(2.5)}, step=1
        )
        ctx.record_metrics({"true": True, "np_true": np.bool_(True), "inf": float("-inf")})

    run = done(single(body))
    assert points(run) == {
        "int": [(1, 4)], "float": [(0.5, 5)], "f32": [(0.5, 1)], "i8": [(3, 1)],
        "zero_d": [(2.5, 1)], "true": [(1, None)], "np_true": [(1, None)],
        "inf": [(float("-inf"), None)],
    }  # fmt: skip
    kinds = {type(p.value) for found in run.metrics.values() for p in found}
    assert kinds == {int, float}


def test_nan_stays_nan() -> None:
    run = done(single(lambda ctx: ctx.record_metric("loss", np.float32("nan"))))
    (point,) = run.metrics["loss"]
    assert point.value != point.value


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (lambda ctx: ctx.record_metric("m", "0.5"), "metric 'm' is not a number: '0.5'"),
        (lambda ctx: ctx.record_metric("m", None), "metric 'm' is not a number: None"),
        (lambda ctx: ctx.record_metric("m", 1j), "metric 'm' is not a number: 1j"),
        (lambda ctx: ctx.record_metric("m", np.arange(2)), "metric 'm' is not a number"),
        (lambda ctx: ctx.record_metric("m", 1, step=0.5), "the step of metric 'm' is an int"),
        (lambda ctx: ctx.record_metric(3, 1), "a metric's name is a str that"),
        (lambda ctx: ctx.record_metric("\udcff", 1), "a metric's name is a str that"),
    ],
)
def test_what_is_no_number_is_refused_where_it_is_recorded(record: Any, said: str) -> None:
    told = failure(single(record))
    assert told.type == "StateError"
    assert said in told.message


def test_a_failed_attempt_does_not_count_but_can_be_read() -> None:
    die = [True]

    def body(ctx: Any) -> None:
        ctx.record_metric("m", ctx.attempt)
        if die:
            raise ValueError("no")

    workflow, store = single(body), MemoryStore()
    with pytest.raises(kitchen.RunError) as caught:
        done(workflow, store=store)
    assert caught.value.run.metrics == {}
    die.clear()
    assert points(kitchen.resume("r", workflow, store=store)) == {"m": [(2, None)]}
    assert b'"m"' in bytes(of_type(store, "StageFailed")[0].event.discarded[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["async", "thread"])
@pytest.mark.anyio
async def test_metrics_of_a_long_stage_are_in_the_log_before_it_ends(how: str) -> None:
    store = MemoryStore()

    def recorded() -> bool:
        return bool(store.runs()) and "MetricRecorded" in types(store)

    async def long(ctx: Any) -> None:
        ctx.record_metric("early", 1)
        await until(recorded)
        ctx.record_metric("late", 2)
        ctx.state.done = True

    token = anyio.lowlevel.current_token()

    def long_in_thread(ctx: Any) -> None:
        anyio.from_thread.run(long, ctx, token=token)

    run = await done_async(single(long if how == "async" else long_in_thread), store=store)
    assert points(run) == {"early": [(1, None)], "late": [(2, None)]}
    assert types(store).index("MetricRecorded") < types(store).index("StatePut")
    assert len(of_type(store, "MetricRecorded")) == 2


@pytest.mark.anyio
async def test_metrics_of_a_long_stage_that_dies_do_not_count() -> None:
    store, die = MemoryStore(), Dying(0)

    async def long(ctx: Any) -> None:
        ctx.record_metric("m", ctx.attempt)
        if ctx.attempt == 1:
            await until(lambda: "MetricRecorded" in types(store))
        die()

    with pytest.raises(Killed):
        await done_async(single(long), store=store)
    run = await kitchen.resume_async("r", single(long), store=store)
    assert points(run) == {"m": [(2, None)]}
    assert len(of_type(store, "MetricRecorded")) == 2


@pytest.mark.anyio
async def test_flushed_metrics_are_compared_behind_a_rewind() -> None:
    """Which metrics were flushed early is a matter of time, and no divergence."""
    store, die = MemoryStore(), Dying(0)

    async def long(ctx: Any) -> None:
        ctx.resources["box"].add()
        ctx.record_metric("m", 1)
        if not ctx.incarnation:
            await until(lambda: "MetricRecorded" in types(store))
        ctx.record_metric("m", 2)

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("long", long)
        wf.stage("die", lambda ctx: die())

    with pytest.raises(Killed):
        await done_async(flow(build), store=store)
    run = await kitchen.resume_async("r", flow(build), store=store)
    assert points(run) == {"m": [(1, None), (2, None)]}
    assert not of_type(store, "RewindDiverged")


# --- a full disk ----------------------------------------------------------------------------------


class Full:
    """A store on a disk that is full from the nth append on."""

    def __init__(self, store: MemoryStore, appends: int) -> None:
        self._store = store
        self._left = appends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, *args: Any) -> int:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._store.append(*args)


@pytest.mark.parametrize("appends", range(7))
@pytest.mark.anyio
async def test_a_full_disk_leaves_a_run_that_can_be_resumed(appends: int) -> None:
    def use(ctx: Any) -> None:
        ctx.increment("n", ctx.resources["box"].add())

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("use", use)
            wf.checkpoint()

    whole = await done_async(flow(build))
    store = MemoryStore()
    with pytest.raises(OSError, match="No space left"):
        await done_async(flow(build), store=Full(store, appends))
    assert store.verify() == []
    run = await kitchen.resume_async("r", flow(build), store=store)
    assert dict(run.state) == dict(whole.state)


@pytest.mark.anyio
async def test_a_disk_that_fills_up_while_metrics_are_flushed_ends_the_stage() -> None:
    store = MemoryStore()

    async def long(ctx: Any) -> None:
        ctx.record_metric("m", 1)
        await anyio.sleep_forever()

    with pytest.raises(OSError, match="No space left"):
        await done_async(single(long), store=Full(store, 0))
    run = await kitchen.resume_async("r", single(lambda ctx: None), store=store)
    assert run.status == "completed"


# --- observers ------------------------------------------------------------------------------------


class Watching:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, Fact]] = []
        self.progress: list[Any] = []

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: Any) -> None:
        first = state.seq - len(facts) + 1
        self.facts += [(first + place, fact) for place, fact in enumerate(facts)]

    def on_progress(self, run_id: str, address: Any, done: float, total: float | None) -> None:
        self.progress.append((run_id, str(address), done, total, threading.get_ident()))


def as_logged(store: Any) -> list[tuple[int, str, str, Any]]:
    return [(r.seq, r.type, r.path, r.visit) for r in log(store)]


def told_to(watching: Watching) -> list[tuple[int, str, str, Any]]:
    return [(seq, type(f.event).__name__, f.path, f.visit) for seq, f in watching.facts]


def test_observers_see_every_fact_once_in_order() -> None:
    """Over a crash, a changed workflow, a rewind and the end."""
    store, die, first, second = MemoryStore(), Dying(0), Watching(), Watching()

    def build(wf: Any, *, more: bool) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("use", lambda ctx: (ctx.resources["box"].add(), ctx.record_metric("m", 1))[1])
        wf.stage("die", lambda ctx: die())
        if more:
            wf.stage("more", lambda ctx: None)

    with pytest.raises(Killed):
        done(flow(lambda wf: build(wf, more=False)), store=store, observers=[first])
    head = store.head("r")
    kitchen.resume("r", flow(lambda wf: build(wf, more=True)), store=store, observers=[second])
    assert told_to(first) == as_logged(store)[:head]
    assert told_to(second) == as_logged(store)[head:]
    assert {"WorkflowChanged", "RunRewound"} <= {kind for _, kind, *_ in told_to(second)}


class Broken(Watching):
    def on_facts(self, *args: Any, **kwargs: Any) -> None:
        super().on_facts(*args, **kwargs)
        raise RuntimeError("the progress bar broke")

    def on_progress(self, *args: Any, **kwargs: Any) -> None:
        super().on_progress(*args, **kwargs)
        raise RuntimeError("the progress bar broke")


def test_an_observer_that_raises_is_dropped_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    broken, fine = Broken(), Watching()
    store = MemoryStore()
    with caplog.at_level(logging.ERROR, "kitchen.run"):
        run = done(single(lambda ctx: ctx.progress(1, 2)), store=store, observers=[broken, fine])
    assert run.status == "completed"
    assert len(broken.facts) == 2
    assert broken.progress == []
    assert told_to(fine) == as_logged(store)
    assert len(caplog.records) == 1
    assert "the progress bar broke" in caplog.text


def test_an_observer_that_raises_at_progress_does_not_fail_the_stage() -> None:
    class BrokenProgress(Broken):
        def on_facts(self, *args: Any, **kwargs: Any) -> None: ...

    assert (
        done(single(lambda ctx: ctx.progress(1)), observers=[BrokenProgress()]).status
        == "completed"
    )


def test_progress_is_told_and_not_recorded() -> None:
    watching, store = Watching(), MemoryStore()
    done(single(lambda ctx: ctx.progress(1, 4)), store=store, observers=[watching])
    ((run_id, address, now, total, thread),) = watching.progress
    assert (run_id, address, now, total) == ("r", "s", 1, 4)
    assert thread != threading.get_ident()
    assert len(log(store)) == 4


def test_what_an_observer_is_told_is_in_the_log_already() -> None:
    store = MemoryStore()
    heads: list[bool] = []

    class Checking(Watching):
        def on_facts(self, run_id: str, facts: Sequence[Fact], state: Any) -> None:
            heads.append(store.head("r") == state.seq)

    done(single(lambda ctx: None), store=store, observers=[Checking()])
    assert heads
    assert all(heads)
    assert History(store, "r").status == "completed"

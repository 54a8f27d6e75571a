"""Traces: the same text for runs that did the same, whatever became of their processes."""

from __future__ import annotations

import re
from typing import Any

import pytest

import kitchen
from kitchen import Retry, Secret
from kitchen.history.history import History
from kitchen.history.trace import LEVELS
from store import MemoryStore
from tests.crash import kitchens
from tests.crash.test_failures_matrix import BROKEN, ended, fed, handled
from tests.crash.test_failures_matrix import flow as failing
from tests.history.telling import ALL, killed, whole
from tests.runner.running import Box, done, flow


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_a_run_that_was_killed_four_times_is_told_as_one_that_was_not(workflow: Any) -> None:
    """Five times at one place would spend the budget, and chance decides what runs beside it."""
    one = whole(workflow)
    appends = one.store.head("r")
    for step in (4, max(6, appends // 9)):
        other = killed(workflow, *(step + turn for turn in range(4)))
        for level in LEVELS:
            assert one.trace(level) == other.trace(level)
        assert other.trace(life=True) != one.trace(life=True)
        assert "run resumed after crash" in other.trace(life=True)


def test_the_text_itself() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: ["a", "b"][: ctx.config["n"]]):
            wf.stage("work", work)
            with wf.conditional(lambda ctx: ctx.index() == 1, name="late"):
                wf.checkpoint()
        with wf.parallel("p"):
            wf.stage("x", lambda ctx: ctx.increment("k", 2))
            wf.stage("y", lambda ctx: None)

    def work(ctx: Any) -> None:
        ctx.append("xs", ctx.item()) if ctx.index() else ctx.state.update(xs=[0.1 + 0.2], k=1)
        ctx.record_metric("loss", 1 / 3, step=ctx.index())

    store = MemoryStore()
    done(flow(build), {"n": 2}, store=store, seed=4)
    past = History(store, "r")
    assert past.trace().splitlines() == [
        "workflow w, seed 4",
        "config.n = 2",
        "box: opened",
        "l: entered, 2 items, ['a', 'b']",
        "l[0]: item",
        "  l[0]/work: started",
        "    l[0]/work: metric loss = 0.3333333333333333 at step 0",
        "    l[0]/work: xs = [0.30000000000000004]",
        "    l[0]/work: k = 1",
        "  l[0]/work: completed",
        "  l[0]/late: no",
        "l[1]: item",
        "  l[1]/work: started",
        "    l[1]/work: metric loss = 0.3333333333333333 at step 1",
        "    l[1]/work: xs + ['b']",
        "  l[1]/work: completed",
        "  l[1]/late: yes",
        "    l[1]/late/checkpoint: saved",
        "l: exited",
        "p: 2 branches",
        "  p/x: started",
        "    p/x: k + 2",
        "  p/x: completed",
        "  p/x: branch completed",
        "  p/y: started",
        "  p/y: completed",
        "  p/y: branch completed",
        "p: joined",
        "run completed",
    ]
    assert past.trace("stages").splitlines() == [
        "workflow w, seed 4",
        "config.n = 2",
        "  l[0]/work: completed",
        "  l[1]/work: completed",
        "  p/x: completed",
        "  p/y: completed",
        "run completed",
    ]
    rounded = past.trace("state", digits=3)
    assert "l[0]/work: xs = [0.3]" in rounded
    assert "metric" not in rounded
    with pytest.raises(kitchen.ArgumentError, match="stages, events, state"):
        past.trace("everything")


@pytest.mark.parametrize("path", ["epochs/batches/train", "p/give", "made/consume"])
def test_attempts_that_failed_leave_no_mark(path: str) -> None:
    """Neither where the failure was recorded, nor where a crash took it away."""
    retried = failing(Retry(3, backoff=0))
    BROKEN.set("", "", 0)
    store = MemoryStore()
    ended(retried, store, [])
    expected = History(store, "r")
    for deaths in ([], [("after", 20), ("before", 5)], [("after", 33)]):
        BROKEN.set(path, "raise", 2)
        store = MemoryStore()
        ended(retried, store, deaths)
        past = History(store, "r")
        for level in LEVELS:
            assert past.trace(level) == expected.trace(level)
        assert " at attempt " in past.trace("stages", life=True)
    assert " at attempt " not in expected.trace("stages", life=True)


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (handled, "turns/most/p/give"),
        (handled, "turns/most/late"),
        (fed, "turns/stream/consume"),
        (fed, "turns/each/use"),
        (fed, "turns/train_on"),
    ],
)
def test_failures_that_were_handled_are_told_the_same_behind_crashes(build: Any, path: str) -> None:
    traces: set[str] = set()
    for deaths in ([], [("after", 24), ("after", 4)], [("before", 40), ("before", 9)]):
        BROKEN.set(path, "raise", 10**6)
        store = MemoryStore()
        ended(build(), store, deaths)
        traces.add(History(store, "r").trace())
    assert len(traces) == 1
    told = traces.pop()
    assert (
        "skipped, ConnectionError: broken" if path.endswith(("late", "on")) else "handled"
    ) in told


def test_how_a_run_failed() -> None:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("s", lambda ctx: ctx.state.update(x=1 // (1 - ctx.index())))

    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        done(flow(build), store=store)
    told = History(store, "r").trace()
    assert told.splitlines()[-1].startswith("run failed at l[1]/s: ZeroDivisionError: ")
    assert "l[1]/s: completed" not in told
    assert "Traceback" not in told
    assert ".py" not in told


def test_nothing_that_differs_from_day_to_day_is_told() -> None:
    first, second = whole(kitchens.training), whole(kitchens.training)
    assert first.trace(life=True) == second.trace(life=True)
    host = first.started.host
    for word in (str(host.pid), host.host, "/work", "tests.crash"):
        assert not re.search(rf"\b{re.escape(word)}\b", first.trace(life=True))


def test_secrets_are_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    done(flow(lambda wf: wf.stage("s", lambda ctx: None)), {"key": Secret("hunter2")}, store=store)
    told = History(store, "r").trace(life=True)
    assert "hunter2" not in told
    assert "config.key = {'$secret': 'KITCHEN_SECRET_KEY'}" in told

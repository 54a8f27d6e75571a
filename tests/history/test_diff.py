"""How two runs differ: nothing where nothing does, and what was planted where something was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kitchen
from kitchen import Retry
from kitchen.history.diff import Diff, compare
from kitchen.history.history import History
from store import MemoryStore, open_store
from tests.crash.test_failures_matrix import BROKEN, ended
from tests.crash.test_failures_matrix import flow as failing
from tests.history.telling import ALL, killed, whole
from tests.runner.running import Box, done, flow


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_a_run_does_not_differ_from_itself_nor_from_one_that_was_killed(workflow: Any) -> None:
    one = whole(workflow)
    itself = compare(one, one)
    assert itself.same
    assert (itself.paths, itself.first, itself.state, itself.config) == ({}, None, [], [])
    other = killed(workflow, 5, 9, 7, 11)
    for found in (compare(one, other), compare(other, one), compare(other, other)):
        assert found.same, found.first
    assert compare(one, other).interruptions[1] > 0


# --- planted differences --------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "visits": 3, "items": [1, 2], "answer": False, "number": 0.5, "metric": 1.0, "extra": False,
    "key": "k", "stop": False,
}  # fmt: skip


def planted(ctx: Any) -> None:
    at = ctx.visit == (1, 1)
    ctx.state["n"] = ctx.item("inner") * ctx.item("outer")
    ctx.state["x"] = PLAIN["number"] if not at else ctx.config["number"]
    ctx.state[ctx.config["key"]] = 0
    ctx.record_metric("m", 1.0 if not at else ctx.config["metric"], step=ctx.index())
    if at and ctx.config["stop"]:
        ctx.stop_loop()


def build(wf: Any) -> None:
    with wf.loop("outer", over=lambda ctx: range(ctx.config["visits"])):
        with wf.loop("inner", over=lambda ctx: list(ctx.config["items"])):
            wf.stage("work", planted)
        with wf.conditional(lambda ctx: ctx.index() == 2 and ctx.config["answer"], name="last"):
            wf.stage("extra", lambda ctx: None)
    wf.stage("end", lambda ctx: None)


def differing(**changed: Any) -> Diff:
    return compare(whole(flow(build), PLAIN), whole(flow(build), {**PLAIN, **changed}))


def kinds(found: Diff) -> dict[str, list[tuple[str, str, int]]]:
    return {path: [(d.kind, d.key, d.visits) for d in told] for path, told in found.paths.items()}


def test_a_field_of_the_config() -> None:
    found = differing(extra={"deep": [1]})
    assert found.config == [("extra", "False", "{'deep': [1]}")]
    assert not found.same
    assert not found.paths


def test_one_value_of_a_metric() -> None:
    found = differing(metric=1.25)
    assert kinds(found) == {"outer/inner/work": [("metric", "m", 1)]}
    told = found.paths["outer/inner/work"][0]
    assert (told.visit, told.a, told.b) == ((1, 1), "1.0 at step 1", "1.25 at step 1")
    assert told.largest == 0.25
    first = found.first
    assert first is not None
    assert (first.path, first.visit, first.key) == ("outer/inner/work", (1, 1), "m")
    assert "outer[1]/inner[1]/work: metric m is 1.0" in first.message
    assert first.seq_a == first.seq_b
    assert found.state == []


def test_a_tolerance_holds_for_all_numbers() -> None:
    planted_twice = {**PLAIN, "metric": 1.0 + 1e-7, "number": 0.5 + 1e-7}
    one, other = whole(flow(build), PLAIN), whole(flow(build), planted_twice)
    assert kinds(compare(one, other)) == {
        "outer/inner/work": [("metric", "m", 1), ("state", "x", 1)]
    }
    assert compare(one, other, tolerance=1e-6).paths == {}
    assert compare(one, other, tolerance=1e-9).paths != {}


def test_one_key_of_the_state() -> None:
    assert kinds(differing(number=0.75)) == {"outer/inner/work": [("state", "x", 1)]}
    found = differing(key="other")
    assert kinds(found) == {"outer/inner/work": [("state", "k", 6), ("state", "other", 6)]}
    assert found.state == [("k", "0", "nothing"), ("other", "nothing", "0")]


def test_a_decision_and_what_follows_from_it() -> None:
    found = differing(answer=True)
    assert kinds(found) == {
        "outer/last": [("decision", "answer", 1)],
        "outer/last/extra": [("visits", "", 1)],
    }
    assert found.first is not None
    assert (found.first.visit, found.first.a, found.first.b) == ((2,), "False", "True")
    alone = found.paths["outer/last/extra"][0]
    assert (alone.a, alone.b, alone.visit) == ("nothing", "entered", (2,))


def test_the_items_of_a_loop() -> None:
    found = differing(items=[1, 3])
    assert kinds(found)["outer/inner"] == [("decision", "items", 3)]
    assert found.first is not None
    assert (found.first.a, found.first.b) == ("[1, 2]", "[1, 3]")
    assert [(key, a, b) for key, a, b in found.state] == [("n", "4", "6")]


def test_one_visit_more() -> None:
    found = differing(visits=4)
    assert kinds(found) == {
        "outer": [("decision", "count", 1), ("visits", "", 1)],
        "outer/inner": [("visits", "", 3)],
        "outer/inner/work": [("visits", "", 2)],
        "outer/last": [("visits", "", 1)],
    }
    assert found.durations["outer/inner/work"].visits_a == 6
    assert found.durations["outer/inner/work"].visits_b == 8


def test_a_loop_that_was_asked_to_end() -> None:
    assert kinds(differing(stop=True)) == {"outer/inner/work": [("decision", "stop_loop", 1)]}


def test_a_node_that_is_not_there() -> None:
    def without(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: range(ctx.config["visits"])):
            with wf.loop("inner", over=lambda ctx: list(ctx.config["items"])):
                wf.stage("work", planted)
        wf.stage("end", lambda ctx: None)

    found = compare(whole(flow(build), PLAIN), whole(flow(without), PLAIN))
    assert {"removed: outer/last", "removed: outer/last/extra"} <= set(found.workflow)
    assert kinds(found) == {"outer/last": [("visits", "", 3)]}
    assert [(d.a, d.b) for d in found.paths["outer/last"]] == [("entered", "nothing")]


def test_another_seed_and_another_ending() -> None:
    def drawing(wf: Any) -> None:
        wf.stage("draw", lambda ctx: ctx.state.update(x=ctx.rng.random()))
        wf.stage("s", lambda ctx: 1 // ctx.config["by"])

    one = whole(flow(drawing), {"by": 1}, seed=1)
    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        done(flow(drawing), {"by": 0}, store=store, seed=2)
    found = compare(one, History(store, "r"))
    assert found.seed == (1, 2)
    assert found.status == ("completed", "failed")
    assert found.failure is not None
    assert found.failure[0] == ""
    assert found.failure[1].startswith("s: ZeroDivisionError")
    assert kinds(found) == {"draw": [("state", "x", 1)], "s": [("outcome", "", 1)]}
    assert [key for key, _, _ in found.state] == ["x"]


def test_attempts_are_a_difference_unless_a_crash_cost_them() -> None:
    retried = failing(Retry(3, backoff=0))

    def run(path: str, *deaths: tuple[str, int]) -> History:
        BROKEN.set(path, "raise", 2)
        store = MemoryStore()
        ended(retried, store, list(deaths))
        return History(store, "r")

    never, twice = run(""), run("stream/take")
    assert kinds(compare(never, twice)) == {"stream/take": [("attempts", "", 3)]}
    told = compare(never, twice).paths["stream/take"][0]
    assert (told.a, told.b) == ("1", "3")
    for at in range(10, 60, 7):
        assert compare(twice, run("stream/take", ("after", at), ("before", 5))).same
        assert compare(never, run("", ("after", at))).same


def test_large_values_are_compared_by_digest_and_told_by_shape() -> None:
    def arrays(wf: Any) -> None:
        wf.stage("s", lambda ctx: ctx.state.update(w=np.full(20_000, ctx.config["fill"])))

    found = compare(whole(flow(arrays), {"fill": 1.0}), whole(flow(arrays), {"fill": 2.0}))
    assert kinds(found) == {"s": [("state", "w", 1)]}
    (_, before, after) = found.state[0]
    assert before.startswith("<f8[20000] #")
    assert after.startswith("<f8[20000] #")
    assert before != after


def test_long_histories_are_compared_as_values_not_as_the_changes_that_made_them() -> None:
    def growing(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(4)):
            wf.stage("s", grow)

    def grow(ctx: Any) -> None:
        made = [ctx.index() + ctx.config["by"]] * 4_000
        if ctx.index() == 0 or not ctx.config["append"]:
            ctx.state["xs"] = [*ctx.state.get("xs", []), *made]
        else:
            ctx.extend("xs", made)

    one = whole(flow(growing), {"by": 0.25, "append": True})
    other = whole(flow(growing), {"by": 0.25, "append": False})
    assert compare(one, other).state == []
    near = whole(flow(growing), {"by": 0.25 + 1e-9, "append": True})
    assert [key for key, _, _ in compare(one, near).state] == ["xs"]
    assert compare(one, near, tolerance=1e-6).state == []
    assert compare(one, near, tolerance=1e-6).paths == {}


def test_of_two_stores(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as first, open_store(tmp_path / "b.db") as second:
        kitchen.run(flow(build), PLAIN, store=first, run_id="a")
        kitchen.run(flow(build), {**PLAIN, "metric": 2.0}, store=second, run_id="b")
        found = compare(History(first, "a"), History(second, "b"))
    assert (found.a, found.b) == ("a", "b")
    assert kinds(found) == {"outer/inner/work": [("metric", "m", 1)]}


def test_a_run_that_goes_on_is_compared_as_far_as_it_has_come() -> None:
    seen: list[Diff] = []
    store = MemoryStore()
    one = whole(flow(build), PLAIN)

    def look(wf: Any) -> None:
        build(wf)
        wf.stage("look", lambda ctx: seen.append(compare(one, History(store, "r"))))

    done(flow(look), PLAIN, store=store, seed=7)
    assert seen[0].status == ("completed", "running")
    assert kinds(seen[0]) == {"look": [("visits", "", 1)]}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_what_is_found_is_what_was_planted(one: list[int], other: list[int]) -> None:
    """Runs that record a number a visit differ in just the visits in which the numbers do."""

    def recording(wf: Any) -> None:
        with wf.stream_loop("l", over=lambda ctx: iter(ctx.config["numbers"])):
            wf.stage("s", lambda ctx: ctx.record_metric("m", ctx.item()), thread=False)

    workflow = flow(recording)
    found = compare(whole(workflow, {"numbers": one}), whole(workflow, {"numbers": other}))
    unequal = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    metrics = [d for d in found.paths.get("l/s", []) if d.kind == "metric"]
    assert [(d.visits, d.visit) for d in metrics] == (
        [(len(unequal), (unequal[0],))] if unequal else []
    )
    alone = [d.visits for d in found.paths.get("l/s", []) if d.kind == "visits"]
    assert alone == ([abs(len(one) - len(other))] if len(one) != len(other) else [])
    assert found.same == (one == other)


def test_what_only_the_second_run_came_to_is_told_at_its_place() -> None:
    def begun(wf: Any) -> None:
        wf.stage("begin", lambda ctx: None)
        build(wf)

    found = compare(whole(flow(build), PLAIN), whole(flow(begun), {**PLAIN, "metric": 2.0}))
    assert found.first is not None
    assert (found.first.path, found.first.a, found.first.b) == ("begin", "nothing", "entered")
    assert found.first.seq_a is None


def test_a_retry_that_a_crash_makes_again_is_no_difference() -> None:
    """The attempt that failed before the crash is made again behind its rewind."""
    left = {"die": 0, "fail": 0}

    class Box:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    class Gone(BaseException):
        pass

    def flaky(ctx: Any) -> None:
        if ctx.attempt < 2 + left["fail"]:
            raise RuntimeError("once")

    def die(ctx: Any) -> None:
        if left["die"]:
            left.update(die=0, fail=2)  # the new process counts its failures anew
            raise Gone

    @kitchen.workflow
    def retried(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("touch", lambda ctx: (ctx.resources["box"], None)[1])
        wf.stage("flaky", flaky, retries=Retry(5, backoff=0))
        wf.stage("die", die)

    store = MemoryStore()
    kitchen.run(retried, store=store, run_id="calm")
    left["die"] = 1
    with pytest.raises(Gone):
        kitchen.run(retried, store=store, run_id="killed")
    kitchen.resume("killed", retried, store=store)
    found = compare(History(store, "killed"), History(store, "calm"))
    assert found.interruptions == (1, 0)
    assert found.same


@pytest.mark.parametrize("attempt", [2, 3])
def test_where_the_run_was_saved_within_what_failed_is_no_difference(attempt: int) -> None:
    """A failed attempt that had touched something is gone behind its rewind, but for its beginning
    where the run was saved right behind that."""
    begun, saves = [0], [False]

    def begin(ctx: Any) -> None:
        ctx.resources["box"].add()
        begun[0] += 1
        if saves[0] and begun[0] == attempt:
            os.kill(os.getpid(), signal.SIGUSR1)

    def bad(ctx: Any) -> None:
        ctx.resources["box"].add()
        raise RuntimeError("bad")

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("begin", begin)
        with wf.conditional(lambda ctx: True, name="block"), wf.loop("l", over=lambda ctx: [1, 2]):
            wf.stage("bad", bad, retries=Retry(2, backoff=0))
        with wf.on_error("handled"):
            wf.stage("note", lambda ctx: ctx.append("notes", ctx.resources["box"].value))

    stores = MemoryStore(), MemoryStore()
    calm = done(flow(build), store=stores[0])
    assert begun == [4]
    begun[0], saves[0] = 0, True
    run = done(flow(build), store=stores[1])
    assert begun[0] < 4, "it was saved behind it"
    assert run.state == calm.state
    found = compare(*(History(store, "r") for store in stores))
    assert found.same, found.first

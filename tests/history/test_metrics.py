"""The order of a metric's points: that of the program, whatever ran beside what."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitchen.history.metrics import Point, in_order
from kitchen.workflow.ir import program_order, walk
from store import MemoryStore
from tests.runner.running import done, flow, of_type

SECONDS = 20


def nothing(ctx: Any) -> None: ...


def sample(wf: Any) -> None:
    wf.stage("first", nothing)
    with wf.loop("epochs", over=lambda ctx: range(2)):
        with wf.parallel("p"):
            wf.stage("z", nothing)
            with wf.branch("b"):
                with wf.stream_loop("st", over=lambda ctx: range(2)):
                    wf.stage("s", nothing)
                wf.stage("t", nothing)
            with wf.parallel("each", over=lambda ctx: range(11)):
                wf.stage("u", nothing)
        with wf.conditional(lambda ctx: True, name="c"):
            wf.stage("yes", nothing)
        with wf.otherwise():
            wf.stage("no", nothing)
        with wf.async_loop("al", producer=nothing, stop_when=lambda ctx: True):
            wf.stage("v", nothing)
    wf.stage("last", nothing)


def in_program_order() -> list[tuple[str, tuple[int, ...]]]:
    """The stages of the sample, as if its branches ran one after another."""
    found: list[tuple[str, tuple[int, ...]]] = [("first", ())]
    for epoch in range(2):
        found += [("epochs/p/z", (epoch,))]
        found += [("epochs/p/b/st/s", (epoch, item)) for item in range(2)]
        found += [("epochs/p/b/t", (epoch,))]
        found += [("epochs/p/each/u", (epoch, item)) for item in range(11)]
        found += [("epochs/c/yes", (epoch,)), ("epochs/c/otherwise/no", (epoch,))]
        found += [("epochs/al/v", (epoch, item)) for item in range(3)]
    return [*found, ("last", ())]


EXPECTED = in_program_order()


@given(st.permutations(EXPECTED))
def test_addresses_sort_as_if_branches_ran_one_after_another(
    shuffled: list[tuple[str, tuple[int, ...]]],
) -> None:
    order = program_order(flow(sample).ir)
    assert sorted(shuffled, key=lambda at: order(*at)) == EXPECTED


def test_every_path_has_a_place_of_its_own() -> None:
    ir = flow(sample).ir
    order = program_order(ir)
    paths = [path for path, _ in walk(ir)]
    places = [order(path, (0, 0)) for path in paths]
    assert len(set(places)) == len(paths)
    assert places == sorted(places)  # an outer node before what is in it
    with pytest.raises(KeyError):
        order("epochs/nowhere", (0,))


@given(st.permutations(EXPECTED))
def test_points_are_in_that_order_and_in_that_of_recording_within_a_visit(
    shuffled: list[tuple[str, tuple[int, ...]]],
) -> None:
    seqs = iter(range(1, 1_000))
    points = [
        Point(value, None, next(seqs), 0, path, visit)
        for path, visit in shuffled
        for value in (0, 1)
    ]
    found = in_order({"late": points[-1:], "m": points}, flow(sample).ir)
    assert [(p.path, p.visit, p.value) for p in found["m"]] == [
        (path, visit, value) for path, visit in EXPECTED for value in (0, 1)
    ]


def test_metrics_themselves_are_in_the_order_of_their_first_points() -> None:
    first, second = Point(1, None, 9, 0, "first", ()), Point(2, None, 3, 0, "last", ())
    found = in_order({"b": [second], "a": [first]}, flow(sample).ir)
    assert list(found) == ["a", "b"]


def test_what_the_workflow_has_no_more_leaves_all_as_it_was() -> None:
    points = [Point(1, None, 1, 0, "last", ()), Point(2, None, 2, 0, "gone", ())]
    assert in_order({"m": points}, flow(sample).ir) == {"m": points}


def test_a_run_whose_second_branch_is_first() -> None:
    committed = threading.Event()

    def late(ctx: Any) -> None:
        assert committed.wait(SECONDS)
        ctx.record_metric("m", "ab".index("a"))
        ctx.record_metric("only_late", 1)

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=2):
            wf.stage("a", late)
            with wf.branch("b"):
                wf.stage("b1", lambda ctx: ctx.record_metrics({"only_early": 1, "m": 1}))
                wf.stage("b2", lambda ctx: committed.set())

    store = MemoryStore()
    run = done(flow(build), store=store)
    assert [record.path for record in of_type(store, "MetricRecorded")][-1] == "p/a"
    assert [point.value for point in run.metrics["m"]] == [0, 1]
    assert list(run.metrics) == ["m", "only_late", "only_early"]

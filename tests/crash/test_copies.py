"""What was made from something that could not be had again.

A resource without a state of its own that copies from a model which was trained and not saved:
while it is open there is no cut, so a crash or a stop goes back to before it was opened. And
collections that depend on a resource: they are kept in the log, whatever their size.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import kitchen
from kitchen import Context, WorkflowBuilder
from kitchen.errors import StoreError
from kitchen.runner import items, loop
from store import MemoryStore, NewEvent
from tests.crash.kitchens import MODEL, note_model, trace
from tests.crash.test_crash_matrix import die_and_resume, essence, stop, whole_run

pytestmark = pytest.mark.filterwarnings("ignore::kitchen.NotResumableWarning")


def train(ctx: Context) -> None:
    trace(ctx)
    ctx.append("sums", ctx.resources[MODEL].update(ctx.rng.random()))


@contextmanager
def open_copy(ctx: Any) -> Generator[Any]:
    yield ctx.resources[MODEL].weights.copy()


def use_copy(ctx: Context) -> None:
    trace(ctx)
    ctx.append("sums", ctx.resources[MODEL].update(float(ctx.resources["copy"].sum())))


@kitchen.workflow
def never_saved(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    with wf.loop("rounds", over=lambda ctx: range(2)):
        wf.stage("train", train)
        wf.resource("copy", open_copy, stateful=False)
        wf.stage("use_copy", use_copy)
    wf.stage("note_model", note_model)


@kitchen.workflow
def saved_behind_the_opening(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    with wf.loop("rounds", over=lambda ctx: range(2)):
        wf.stage("train", train)
        wf.resource("copy", open_copy, stateful=False)
        wf.stage("use_copy", use_copy)
        wf.checkpoint("middle")
        wf.stage("use_copy_again", use_copy)
    wf.checkpoint("end")
    wf.stage("train_on", train)
    wf.stage("note_model", note_model)


def large_and_dependent(ctx: Context) -> Any:
    start = float(ctx.resources.peek(MODEL).weights[0])
    return [np.full(20_000, start + i) for i in range(3)]


def use_item(ctx: Context) -> None:
    trace(ctx)
    ctx.append("sums", ctx.resources[MODEL].update(float(ctx.item().mean())))


@kitchen.workflow
def dependent_items(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    wf.stage("train", train)
    with wf.loop("large", over=large_and_dependent):
        wf.stage("use_item", use_item)
        wf.checkpoint()
    wf.stage("note_model", note_model)


@pytest.mark.parametrize("workflow", [never_saved, saved_behind_the_opening, dependent_items])
def test_killed_or_stopped_anywhere(workflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "TOTAL_LIMIT", 10_000)
    whole, appends, _ = whole_run(workflow)
    expected = essence(whole)
    for when in ("before", "after"):
        for at in range(appends - 1):
            run, _ = die_and_resume(workflow, when, at)
            assert essence(run) == expected, f"killed {when} append {at}"
    for at in range(appends):
        store = MemoryStore()
        stop(workflow, store, at)
        run = kitchen.run(workflow, store=store, run_id="r", seed=7, if_exists="resume")
        assert essence(run) == expected, f"stopped behind append {at}"


def test_such_an_opening_warns() -> None:
    """That one behind a checkpoint does not is seen by `kitchens.references`, run under "error"."""
    with pytest.warns(kitchen.NotResumableWarning, match="made from model, touched since the last"):
        kitchen.run(never_saved, store=MemoryStore())


def test_items_that_cannot_be_kept_and_depend_on_a_resource_are_refused() -> None:
    @kitchen.workflow
    def opaque(wf: WorkflowBuilder) -> None:
        wf.resource(MODEL)
        with wf.loop("l", over=lambda ctx: [object(), ctx.resources.peek(MODEL)]):
            wf.stage("train", train)

    with pytest.raises(kitchen.RunError, match="could not be had again exactly"):
        kitchen.run(opaque, store=MemoryStore())


class Full(MemoryStore):
    """Its disk is full for the first append that holds nothing but metrics."""

    refused = 0

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        if not self.refused and {event.type for event in events} == {"MetricRecorded"}:
            self.refused += 1
            raise StoreError("no space left")
        return super().append(run, expected, events, at)


def test_metrics_that_could_not_be_written_early_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "FLUSH_SECONDS", 0.01)
    store = Full()

    def body(ctx: Any) -> None:
        ctx.record_metric("x", 1)
        until = time.monotonic() + 20
        while not store.refused and time.monotonic() < until:
            time.sleep(0.001)  # the flusher has its turn in the meantime
        ctx.record_metric("x", 2)

    @kitchen.workflow
    def flushed(wf: WorkflowBuilder) -> None:
        wf.stage("body", body)

    run = kitchen.run(flushed, store=store)
    assert store.refused == 1
    assert [point.value for point in run.metrics["x"]] == [1, 2]

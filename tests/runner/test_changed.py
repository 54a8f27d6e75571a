"""Runs that are taken up with another workflow than they were started with."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import kitchen
from store import MemoryStore


class Counts(msgspec.Struct):
    n: int = 0


def adding(by: int) -> Any:
    def body(ctx: Any) -> None:
        ctx.increment("n", by)

    return body


def fails(ctx: Any) -> None:
    if ctx.adapters.get("fail"):
        raise ValueError("not today")


def both(merge: dict[str, Any] | None, *, third: bool = True, name: str = "both") -> Any:
    @kitchen.workflow(name=name, state=Counts)
    def flow(wf: kitchen.WorkflowBuilder) -> None:
        with wf.parallel("p", merge=merge, on_error="finish", max_concurrency=1):
            wf.stage("a", adding(1))
            wf.stage("b", adding(5))
            if third:
                wf.stage("c", fails)

    return flow


def failed(workflow: Any) -> MemoryStore:
    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        kitchen.run(workflow, store=store, run_id="r", adapters={"fail": True})
    return store


def test_a_merge_that_was_taken_away_is_refused() -> None:
    """Without it the two branches are in conflict, though neither runs again."""
    store = failed(both({"n": "sum"}))
    with pytest.raises(kitchen.WorkflowChanged, match=r"write state\['n'\]: p/a and p/b") as caught:
        kitchen.resume("r", both(None), store=store)
    assert "changed: p (merge)" in caught.value.message
    assert kitchen.resume("r", both({"n": "sum"}), store=store).state == {"n": 6}


def test_another_reducer_for_what_is_not_joined_yet_is_taken() -> None:
    store = failed(both({"n": "sum"}))
    assert kitchen.resume("r", both({"n": "max"}), store=store).state == {"n": 5}


def test_a_branch_that_was_taken_away_is_refused() -> None:
    store = failed(both({"n": "sum"}))
    with pytest.raises(kitchen.WorkflowChanged, match="expected 2 branches"):
        kitchen.resume("r", both({"n": "sum"}, third=False), store=store)


@pytest.mark.parametrize("before", ["loop", "stream_loop"])
def test_a_loop_that_has_become_a_stream_or_the_other_way_is_refused(before: str) -> None:
    def looping(kind: str) -> Any:
        @kitchen.workflow(name="looping")
        def flow(wf: kitchen.WorkflowBuilder) -> None:
            with getattr(wf, kind)("l", over=lambda ctx: range(3)):
                wf.stage("s", fails)

        return flow

    store = failed(looping(before))
    after = {"loop": "stream_loop", "stream_loop": "loop"}[before]
    with pytest.raises(kitchen.WorkflowChanged, match="changed kind: l"):
        kitchen.resume("r", looping(after), store=store)
    assert kitchen.resume("r", looping(before), store=store).status == "completed"


def test_a_workflow_of_another_name_is_refused() -> None:
    store = failed(both({"n": "sum"}))
    with pytest.raises(kitchen.WorkflowChanged, match="is of the workflow 'both'") as caught:
        kitchen.resume("r", both({"n": "sum"}, name="other"), store=store)
    assert "@kitchen.workflow(name='both')" in str(caught.value.hint)


@pytest.mark.parametrize("reduced", ["text", 0.5])
def test_a_reducer_must_give_what_the_state_declares(reduced: Any) -> None:
    workflow = both({"n": lambda _before, _values: reduced})
    with pytest.raises(
        kitchen.RunError, match=r"failed at p\n  StateError: state.n: expected `int`"
    ):
        kitchen.run(workflow, store=MemoryStore(), run_id="r")

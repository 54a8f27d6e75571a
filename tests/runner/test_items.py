"""A loop's items: recorded at entry, the same behind every crash, refused where they cannot be.

Each collection is run twice: whole, and killed in the middle and resumed.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import numpy as np
import pytest

import kitchen
from kitchen.runner import items
from store import MemoryStore
from tests.runner.running import Dying, Killed, done, done_async, failure, flow, of_type


class Opaque:
    """Not encodable."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Opaque({self.value})"


def looping(over: Any, die: Dying) -> Any:
    def take(ctx: Any) -> None:
        ctx.append("taken", repr(ctx.item("l")))
        die()

    def build(wf: Any) -> None:
        wf.stage("before", lambda ctx: ctx.state.update(n=3))
        with wf.loop("l", over=over):
            wf.stage("take", take)

    return flow(build)


def drawn(ctx: Any) -> Any:
    for _ in range(ctx.state.n):
        yield ctx.rng.random()


async def gathered(ctx: Any) -> list[int]:
    return [1, 2, ctx.state.n]


@pytest.mark.parametrize(
    ("over", "count", "kind"),
    [
        (lambda ctx: range(2, 11, 3), 3, "RangeItems"),
        (lambda ctx: range(5, 0, -2), 3, "RangeItems"),
        (lambda ctx: range(0), 0, "RangeItems"),
        (lambda ctx: [], 0, "InlineItems"),
        (lambda ctx: ["a", ("b", 1), None, float("nan")], 4, "InlineItems"),
        (lambda ctx: {"a": 1, "b": 2}, 2, "InlineItems"),
        (lambda ctx: {"a": 1}.items(), 1, "InlineItems"),
        (lambda ctx: deque([1, 2]), 2, "InlineItems"),
        (lambda ctx: zip("ab", range(2), strict=True), 2, "InlineItems"),
        (drawn, 3, "InlineItems"),
        (gathered, 3, "InlineItems"),
        (lambda ctx: np.arange(3) * ctx.state.n, 3, "InlineItems"),
        (lambda ctx: ["x" * 900 for _ in range(8)], 8, "BlobItems"),
        (lambda ctx: [*range(4), "y" * 5_000], 5, "BlobItems"),
        (lambda ctx: [np.arange(20_000), np.arange(3)], 2, "BlobItems"),
        (lambda ctx: [1, Opaque(2), 3], 3, "RefItems"),
    ],
)
def test_items_come_back_behind_a_crash(over: Any, count: int, kind: str) -> None:
    store = MemoryStore()
    whole = done(looping(over, Dying()), store=store)
    assert len(whole.state.get("taken", [])) == count
    (entered,) = of_type(store, "LoopEntered")
    assert type(entered.event.items).__name__ == kind  # type: ignore[attr-defined]
    for at in range(count):
        store = MemoryStore()
        workflow = looping(over, Dying(at))
        with pytest.raises(Killed):
            done(workflow, store=store)
        assert dict(kitchen.resume("r", workflow, store=store).state) == dict(whole.state)
        assert len(of_type(store, "LoopEntered")) == 1
        assert [r.visit for r in of_type(store, "ItemTaken")] == [(i,) for i in range(count)]


@pytest.mark.anyio
async def test_on_both_event_loops() -> None:
    for over in (drawn, gathered):
        assert len((await done_async(looping(over, Dying()))).state["taken"]) == 3


def test_over_is_asked_once_at_entry() -> None:
    asked: list[int] = []

    def over(ctx: Any) -> list[int]:
        asked.append(1)
        return [1, 2, 3]

    store = MemoryStore()
    workflow = looping(over, Dying(1))
    with pytest.raises(Killed):
        done(workflow, store=store)
    kitchen.resume("r", workflow, store=store)
    assert asked == [1]


def test_what_the_caller_does_to_its_list_later_is_not_seen() -> None:
    mine = [1, 2, 3]

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: mine):
            wf.stage("s", lambda ctx: (mine.append(9), ctx.append("taken", ctx.item()))[1])

    assert done(flow(build)).state["taken"] == [1, 2, 3]


def test_an_item_cannot_be_changed_in_place() -> None:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: [[1]]):
            wf.stage("s", lambda ctx: ctx.item().append(2))

    assert failure(flow(build)).type == "FrozenValue"


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (lambda ctx: "text", "cannot go over a str"),
        (lambda ctx: b"bytes", "cannot go over a bytes"),
        (lambda ctx: None, "cannot go over a NoneType"),
        (lambda ctx: 3, "cannot go over a int"),
        (lambda ctx: itertools.count(), "an iterator of more than"),
    ],
)
def test_what_is_no_finite_collection_is_refused(
    over: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "UNSIZED_LIMIT", 1_000)
    told = failure(looping(over, Dying()))
    assert told.type == "ItemsError"
    assert said in told.message
    assert "the loop l " in told.message
    assert told.hint


def test_an_async_iterator_is_refused_with_a_way_out() -> None:
    async def numbers() -> Any:
        yield 1

    told = failure(looping(lambda ctx: numbers(), Dying()))
    assert told.type == "ItemsError"
    assert "async for" in told.hint


def test_an_over_that_raises_fails_the_run_at_the_loop() -> None:
    def over(ctx: Any) -> Any:
        yield 1
        raise OSError("disk gone")

    with pytest.raises(kitchen.RunError, match=r"failed at l\n\s+OSError: disk gone"):
        done(looping(over, Dying()))


def referenced(monkeypatch: pytest.MonkeyPatch, again: list[Any]) -> tuple[Any, MemoryStore]:
    """A run killed in a loop over items too large to keep; asked again, there are others."""
    monkeypatch.setattr(items, "TOTAL_LIMIT", 100)
    given = iter([[f"{i}" * 90 for i in range(4)], again])
    workflow, store = looping(lambda ctx: next(given), Dying(1)), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    return workflow, store


def test_items_by_reference_are_fetched_again_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, store = referenced(monkeypatch, [f"{i}" * 90 for i in range(4)])
    run = kitchen.resume("r", workflow, store=store)
    assert run.state["taken"] == [repr(f"{i}" * 90) for i in range(4)]


def test_another_item_is_named_by_index_and_both_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, store = referenced(monkeypatch, ["0" * 90, "1" * 90, "x" * 90, "3" * 90])
    with pytest.raises(kitchen.RunError) as caught:
        kitchen.resume("r", workflow, store=store)
    failed = caught.value.run.failure
    assert failed.type == "ItemsError"
    assert failed.message.startswith("item 2 of the loop l is not what it was: recorded ")
    first, second = failed.message.partition("recorded ")[2].split(", found ")
    assert len(first) == len(second) == 12
    assert first != second
    assert "ctx.rng" in failed.hint


def test_another_number_of_items_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, store = referenced(monkeypatch, ["0" * 90])
    with pytest.raises(kitchen.RunError, match="had 4 items; asked again, there are 1"):
        kitchen.resume("r", workflow, store=store)


def test_over_is_asked_again_with_the_state_as_of_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "TOTAL_LIMIT", 10)
    die = Dying(1)

    def take(ctx: Any) -> None:
        ctx.append("taken", ctx.item())
        ctx.increment("n")
        die()

    def build(wf: Any) -> None:
        wf.stage("before", lambda ctx: ctx.state.update(n=3))
        with wf.loop("l", over=lambda ctx: [f"{ctx.state.n}{ctx.rng.random()}"] * 3):
            wf.stage("take", take)

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    taken = kitchen.resume("r", workflow, store=store).state["taken"]
    assert len(taken) == 3
    assert len(set(taken)) == 1
    assert taken[0].startswith("30.")


def test_the_same_items_are_stored_once() -> None:
    def build(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: range(5)):
            with wf.loop("inner", over=lambda ctx: ["x" * 900 for _ in range(8)]):
                wf.stage("s", lambda ctx: None)

    store = MemoryStore()
    done(flow(build), store=store)
    assert len(list(store.blobs.digests())) == 1

"""What of a log counts: against a model that keeps, for every seq, the list of what counted there."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kitchen.log.live import begun, live, of_rewinds
from kitchen.machine.events import Event, RunEdited, RunRewound, RunStarted, StageStarted, to_json
from store import MemoryStore, NewEvent


@st.composite
def logs(draw: st.DrawFn) -> list[int]:
    """For each seq from 1, the seq that it goes back to, or 0 for another event."""
    seqs = range(2, draw(st.integers(2, 40)))
    return [0, *(draw(st.one_of(st.just(0), st.integers(1, seq - 1))) for seq in seqs)]


def model(backs: list[int]) -> list[list[int]]:
    """What counts at each seq from 0."""
    counted: list[list[int]] = [[]]
    for seq, to in enumerate(backs, 1):
        counted.append([*counted[to or seq - 1], seq])
    return counted


@given(logs())
def test_what_counts_at_every_seq(backs: list[int]) -> None:
    rewinds = [(seq, to) for seq, to in enumerate(backs, 1) if to]
    for last, expected in enumerate(model(backs)):
        now = of_rewinds(rewinds, last)
        assert [seq for seq in range(len(backs) + 2) if now.counts(seq)] == expected


@given(logs())
def test_the_gaps_are_what_does_not_count(backs: list[int]) -> None:
    now = of_rewinds([(seq, to) for seq, to in enumerate(backs, 1) if to], len(backs))
    gone = {seq for low, high in now.superseded for seq in range(low + 1, high)}
    assert gone == set(range(1, len(backs) + 1)) - set(model(backs)[-1])


def started(**given: Any) -> RunStarted:
    return RunStarted("w", Raw(b"{}"), "f", Raw(b'{"a":1}'), **given)


def stored(*events: Event) -> MemoryStore:
    store = MemoryStore()
    store.create_run("r", "w", [NewEvent(type(e).__name__, payload=to_json(e)) for e in events])
    return store


@given(logs())
def test_from_a_store_it_is_the_same(backs: list[int]) -> None:
    rest = [RunRewound(to) if to else StageStarted() for to in backs[1:]]
    store = stored(started(), *rest)
    counted = model(backs)
    for until in (None, len(backs) // 2, len(backs)):
        now = live(store, "r", until)
        expected = counted[len(backs) if until is None else until]
        assert [seq for seq in range(1, len(backs) + 1) if now.counts(seq)] == expected


def test_a_run_is_begun_with_what_it_was_edited_to() -> None:
    edits = RunEdited(Raw(b'{"a":2}')), RunEdited(seed=5), RunEdited(state={"k": Raw(b"1")})
    found = begun(stored(started(seed=3), *edits), "r")
    assert (bytes(found.config), found.seed, found.workflow) == (b'{"a":2}', 5, "w")
    untouched = begun(stored(started(seed=3)), "r")
    assert (bytes(untouched.config), untouched.seed) == (b'{"a":1}', 3)


def test_an_edit_that_a_rewind_superseded_does_not_hold_unless_gone_back_to() -> None:
    edited, back = RunEdited(Raw(b'{"a":2}'), 5), RunRewound(1, asked=True)
    assert begun(stored(started(), edited, back), "r").seed == 0
    again = stored(started(), edited, back, StageStarted(), RunRewound(2, asked=True))
    assert begun(again, "r").seed == 5

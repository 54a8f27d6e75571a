"""Reducers: what branches made of one key becomes one value, or an error that names key and branch.

What is read from state is frozen, so most values here are, as they are in a run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitchen.errors import StateError
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec, FrozenDict, FrozenList, FrozenSet
from kitchen.runner.merge import MISSING, reduce
from kitchen.workflow.concurrent import REDUCERS

NAN = float("nan")
CODEC = Codec()


def merged(name: str, before: Any, *values: Any) -> Any:
    named = [(f"b{i}", value) for i, value in enumerate(values)]
    return reduce(name, None, "k", before, named)


def read(value: Any) -> Any:
    """The value as it is read from state."""
    text, blobs = CODEC.encode(value)
    return CODEC.decode(text, blobs.__getitem__ if blobs else no_blobs)


@pytest.mark.parametrize(
    ("name", "before", "values", "result"),
    [
        ("sum", 10, (11, 13), 14),
        ("sum", 10, (10, 7), 7),
        ("sum", 0.5, (1.5, 2.5), 3.5),
        ("sum", 1, (2.5, 3), 4.5),
        ("sum", MISSING, (1, 2, 3), 6),
        ("sum", MISSING, (1,), 1),
        ("sum", 0.1, (0.3,), 0.3),
        ("max", 3, (1, 2), 3),
        ("max", 3, (1, 4, 2), 4),
        ("max", MISSING, (-2, -1), -1),
        ("max", MISSING, ("a", "b"), "b"),
        ("min", 3, (5, 4), 3),
        ("min", 3, (5, 1, 1.0), 1),
        ("min", MISSING, (2.5, np.float32(0.5)), np.float32(0.5)),
        ("extend", [1], ([1, 2, 3], [1], [1, 4]), [1, 2, 3, 4]),
        ("extend", MISSING, ([1], [2]), [1, 2]),
        ("extend", [], ([1], [2]), [1, 2]),
        ("extend", [NAN, [1]], ([NAN, [1], 2], [NAN, [1], 3]), [NAN, [1], 2, 3]),
        ("union", {"a": 1}, ({"a": 1, "b": 2}, {"a": 1, "c": 3}), {"a": 1, "b": 2, "c": 3}),
        ("union", {"a": 1, "b": 1}, ({"a": 1}, {"a": 1, "b": 1, "c": 1}), {"a": 1, "c": 1}),
        ("union", {"a": 1}, ({"a": 2}, {"a": 2}), {"a": 2}),
        ("union", {"a": 1}, ({}, {}), {}),
        ("union", {"a": NAN}, ({"a": NAN}, {"a": 1.0}), {"a": 1.0}),
        ("union", MISSING, ({"a": [1]}, {"b": 2}), {"a": [1], "b": 2}),
        ("union", {1, 2}, ({1, 3}, {1, 2, 4}), {1, 3, 4}),
        ("union", frozenset({1}), ({1, 2}, frozenset({1, 3})), frozenset({1, 2, 3})),
        ("union", MISSING, ({1}, {2}), {1, 2}),
    ],
)
def test_what_they_give(name: str, before: Any, values: tuple[Any, ...], result: Any) -> None:
    given_before = MISSING if before is MISSING else read(before)
    found = merged(name, given_before, *map(read, values))
    assert CODEC.encode(found) == CODEC.encode(result)
    assert type(found) not in (FrozenList, FrozenDict, FrozenSet)


def test_a_nan_wins() -> None:
    for name in ("max", "min"):
        for values in ((NAN, 1.0), (1.0, NAN)):
            assert math.isnan(merged(name, MISSING, *values))
            assert math.isnan(merged(name, values[0], values[1]))


def test_arrays_are_added_up() -> None:
    before = read(np.array([1.0, 2.0]))
    found = merged("sum", before, read(np.array([2.0, 2.0])), read(np.array([1.0, 5.0])))
    assert found.tolist() == [2.0, 5.0]
    flat = merged("sum", MISSING, np.array(1, np.uint8), np.array(2, np.uint8))
    assert type(flat) is np.ndarray
    assert (flat.dtype, flat.item()) == (np.uint8, 3)
    assert type(merged("sum", np.float32(1), np.float32(2), np.float32(3))) is np.float32


def test_lists_of_arrays_are_extended() -> None:
    before = read([np.arange(2), np.array([NAN])])
    longer = [*(read([np.arange(2), np.array([NAN])])), 5]
    assert merged("extend", before, longer, before)[2:] == [5]
    with pytest.raises(StateError, match="does not begin with"):
        merged("extend", before, [np.arange(3), 1])


@pytest.mark.parametrize(
    ("name", "before", "values", "told"),
    [
        ("sum", 1, (2, True), ["'b1'", "a bool, True", "numbers"]),
        ("sum", "x", ("xy",), ["at the fork", "a str, 'x'"]),
        ("sum", 1, ("xy", 2), ["'b0'", "'xy'"]),
        ("sum", 1, (2, [1]), ["'b1'", "a list, [1]"]),
        ("sum", MISSING, (np.zeros(2), np.zeros(3)), ["'b1'", "(3,)", "(2,)"]),
        ("sum", MISSING, (np.array([True]), np.array([True])), ["'b0'", "a ndarray"]),
        ("sum", 10**400, (10**400, 1.5), ["'b1'", "OverflowError"]),
        ("max", MISSING, (1, "a"), ["'b1'", "TypeError"]),
        ("max", None, (1, 2), ["at the fork", "None"]),
        ("min", MISSING, (True, 1), ["'b0'", "a bool"]),
        ("min", MISSING, ({1}, {2}), ["'b0'", "a set"]),
        ("max", MISSING, (np.zeros(2), np.zeros(2)), ["'b0'", "numbers"]),
        ("extend", [1, 2], ([1, 2, 3], [2, 3]), ["'b1'", "replaced", "2 items"]),
        ("extend", [1], ([True, 2], [1]), ["'b0'", "replaced"]),
        ("extend", [1], ([], [1]), ["'b0'", "replaced"]),
        ("extend", MISSING, ([1], (2,)), ["'b1'", "a tuple", "lists"]),
        ("extend", {}, ([1], [2]), ["at the fork", "a dict"]),
        ("union", {"a": 1}, ({"a": 2}, {"a": 3}), ["'b0'", "'b1'", "entry 'a'"]),
        ("union", {"a": 1}, ({"a": 2}, {}), ["'b0'", "'b1'", "entry 'a'", "removed"]),
        ("union", {}, ({"a": 1}, {"a": True}), ["'b0'", "'b1'", "entry 'a'"]),
        ("union", {"a": 1}, ({1}, {"a": 2}), ["'b0'", "a set", "mappings"]),
        ("union", MISSING, ({1}, {"a": 2}), ["'b1'", "a dict", "sets"]),
        ("union", [1], ({"a": 2}, {"a": 2}), ["at the fork", "a list"]),
        *((name, 1, (2, MISSING), ["'b1'", "deleted", f"{name!r}"]) for name in REDUCERS),
    ],
)
def test_what_they_refuse(name: str, before: Any, values: tuple[Any, ...], told: list[str]) -> None:
    with pytest.raises(StateError) as caught:
        merged(name, before, *values)
    assert [part for part in ["state['k']", *told] if part not in str(caught.value)] == []


def test_a_function_gets_the_value_before_and_the_branches() -> None:
    seen: list[Any] = []

    def mine(before: Any, values: list[Any]) -> Any:
        seen.append((before, values))
        return "merged"

    assert reduce("mine", mine, "k", 1, [("a", 2), ("b", 3)]) == "merged"
    assert reduce("mine", mine, "k", MISSING, [("a", 2)]) == "merged"
    assert seen == [(1, [2, 3]), (None, [2])]
    with pytest.raises(StateError, match="the branch 'b' deleted it"):
        reduce("mine", mine, "k", 1, [("a", 2), ("b", MISSING)])


def test_what_a_function_raises_says_which_key_it_was() -> None:
    def mine(before: Any, values: list[Any]) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        reduce("mine", mine, "k", 1, [("a", 2)])
    assert caught.value.__notes__ == ["(in the reducer 'mine' of state['k'])"]


integers = st.integers(-(10**30), 10**30)


@given(integers, st.lists(integers, min_size=1))
def test_a_sum_is_as_if_one_after_the_other_had_added(before: int, added: list[int]) -> None:
    found = merged("sum", before, *(before + each for each in added))
    assert type(found) is int
    assert found == before + sum(added)


@given(st.lists(st.integers()), st.lists(st.lists(st.integers()), min_size=1))
def test_extend_is_as_if_one_after_the_other_had_appended(
    before: list[int], added: list[list[int]]
) -> None:
    found = merged("extend", before, *(before + each for each in added))
    assert found == before + [item for each in added for item in each]


small = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))


@given(small, st.lists(small, min_size=1))
def test_union_does_what_every_branch_did_or_refuses(
    before: dict[str, int], after: list[dict[str, int]]
) -> None:
    try:
        found = merged("union", before, *after)
    except StateError:
        found = None
    wanted: dict[str, set[int | None]] = {}
    for value in after:
        for entry in {*before, *value}:
            if before.get(entry) != value.get(entry):
                wanted.setdefault(entry, set()).add(value.get(entry))
    if any(len(ends) > 1 for ends in wanted.values()):
        assert found is None
        return
    ends = {**before, **{entry: end for entry, (end,) in wanted.items()}}
    assert found == {entry: end for entry, end in ends.items() if end is not None}


@given(small)
def test_the_branches_of_a_union_may_agree(value: dict[str, int]) -> None:
    assert merged("union", {"a": 7}, value, value, value) == value

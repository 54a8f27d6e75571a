"""Recorded values, told shortly and compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitchen.errors import CorruptValue
from kitchen.history.values import close, opened, same, short, tree_of
from kitchen.machine.codec import Codec

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers())
    ),
    max_leaves=20,
)


def tree(value: Any) -> Any:
    return tree_of(Codec().encode(value).json)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.1, "0.1"),
        (3, "3"),
        (None, "None"),
        ("text", "'text'"),
        (float("nan"), "nan"),
        (-math.inf, "-inf"),
        ((1, 2.5), "(1, 2.5)"),
        ((1,), "(1,)"),
        ({"a": [1, True]}, "{'a': [1, True]}"),
        ({1: 2}, "{1: 2}"),
        ({3}, "{3}"),
        ({"$secret": "TOKEN"}, "{'$secret': 'TOKEN'}"),
    ],
)
def test_small_values_are_told_as_they_are(value: Any, told: str) -> None:
    assert short(tree(value)) == told


def test_large_values_are_told_by_shape_and_digest() -> None:
    array = short(tree(np.zeros((2, 3), dtype=np.float32)))
    assert array.startswith("<f4[2, 3] #")
    assert array != short(tree(np.ones((2, 3), dtype=np.float32)))
    many, more = list(range(1000)), [*range(999), -1]
    assert "1000 items #" in short(tree(many))
    assert short(tree(many)) != short(tree(more))
    assert len(short(tree("x" * 5000))) < 90
    assert short(tree(b"x" * 100_000)).startswith("bytes #")


def test_digits_round_floats_wherever_they_are() -> None:
    assert short(tree([1.23456, (0.1 + 0.2,)]), 3) == "[1.23, (0.3,)]"
    many = [i + 1e-12 for i in range(1, 101)]
    assert short(tree(many), 6) == short(tree([float(i) for i in range(1, 101)]), 6)
    assert short(tree(many)) != short(tree([float(i) for i in range(1, 101)]))


@given(VALUES)
def test_every_value_is_the_same_as_itself_and_can_be_told(value: Any) -> None:
    encoded = Codec().encode(value)
    found = opened(tree_of(encoded.json), lambda digest: encoded.blobs[digest])
    assert same(found, found)
    assert same(found, found, 1e-3)
    assert len(short(found)) < 120
    assert "\n" not in short(found)


@given(st.floats(), st.floats())
def test_without_tolerance_floats_are_the_same_to_the_bit(a: float, b: float) -> None:
    bits = np.float64(a).tobytes() == np.float64(b).tobytes()
    assert same(tree(a), tree(b)) == (bits or (math.isnan(a) and math.isnan(b)))


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 0.1))
def test_within_the_tolerance(a: float, tolerance: float) -> None:
    near, far = a + tolerance * 0.9, a + (tolerance + tolerance * abs(a)) * 3 + 1
    assert close(a, near, tolerance)
    assert not close(a, far, tolerance)
    assert same(tree([{"k": a}]), tree([{"k": near}]), tolerance)
    assert not same(tree([{"k": a}]), tree([{"k": far}]), tolerance)


def test_integers_texts_and_kinds_know_no_tolerance() -> None:
    assert not same(tree(10**9), tree(10**9 + 1), 0.5)
    assert not same(tree("a"), tree("b"), 9.0)
    assert not same(tree(True), tree(1), 9.0)
    assert not same(tree([1.0]), tree([1.0, 1.0]), 9.0)
    assert not same(tree(1), tree(1.0))
    assert same(tree(1), tree(1.0), 1e-9)
    assert not same(tree(math.inf), tree(1e300), 0.5)


def test_what_does_not_read() -> None:
    with pytest.raises(CorruptValue):
        tree_of(b"{")

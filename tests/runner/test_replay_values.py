"""Values compared, to the bit or within a tolerance: where they part, and what is said of it."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitchen.runner.replaying.values import difference, shown

NAN = float("nan")


@dataclass
class Point:
    x: float
    y: Any = None


class Odd:
    def __eq__(self, other: object) -> bool:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise ValueError("no")

    __hash__ = None  # type: ignore[assignment]


SAME: list[tuple[Any, Any]] = [
    (NAN, NAN),
    ([1, {"a": (2.5, NAN)}], [1, {"a": (2.5, NAN)}]),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (np.array([1.0, NAN]), np.array([1.0, NAN])),
    (np.array(["a", "b"]), np.array(["a", "b"])),
    (Point(1.0, [2]), Point(1.0, [2])),
    ({1, 2}, {2, 1}),
    (complex(1, NAN), complex(1, NAN)),
    (None, None),
]

APART: list[tuple[Any, Any, str, str, str]] = [
    (1, 2, "", "1", "2"),
    (1, 1.0, "", "1", "1.0"),
    (1, True, "", "1", "True"),
    (0.0, -0.0, "", "0.0", "-0.0"),
    (0.0, NAN, "", "0.0", "nan"),
    ([1, 2], [1, 3], "[1]", "2", "3"),
    ([1, 2], [1], "", "2 items", "1 items"),
    ([1], (1,), "", "[1]", "(1,)"),
    ({"a": {"b": [0]}}, {"a": {"b": [1]}}, "a.b[0]", "0", "1"),
    ({"a": 1}, {}, "a", "1", "not there"),
    ({}, {3: 1}, "[3]", "not there", "1"),
    (OrderedDict(w=1), {"w": 2}, "w", "1", "2"),
    (Point(1.0), Point(2.0), "x", "1.0", "2.0"),
    ("a" * 99, "b", "", "'" + "a" * 78 + "…", "'b'"),
    (np.zeros(2), np.zeros(3), "", "float64[2] [0.0, 0.0]", "float64[3] [0.0, 0.0, 0.0]"),
    (np.zeros(9, np.int8), np.zeros(9), "", "int8[9]", "float64[9]"),
    (np.zeros(9), np.ones(9) / 4, "", "float64[9]", "float64[9], at most 0.25 apart"),
    (np.array([0.0]), np.array([-0.0]), "", "float64[1] [0.0]", "float64[1] [-0.0]"),
    (np.array(["a"]), np.array(["b"]), "", "<U1[1] ['a']", "<U1[1] ['b']"),
    (np.array([1.0]), np.array([NAN]), "", "float64[1] [1.0]",
     "float64[1] [nan], at most nan apart"),
]  # fmt: skip


@pytest.mark.parametrize(("was", "now"), SAME)
def test_equal(was: Any, now: Any) -> None:
    assert difference(was, now) is None


@pytest.mark.parametrize(("was", "now", "place", "recorded", "found"), APART)
def test_apart(was: Any, now: Any, place: str, recorded: str, found: str) -> None:
    assert difference(was, now) == (place, recorded, found)


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        (1.0, 1.0009, True),
        (1.0, 1.002, False),
        (1e6, 1e6 + 900, True),
        (0.0, 0.0009, True),
        (1, 1.0, True),
        (True, 1.0, False),
        (np.array([1e6, 0.0]), np.array([1e6 + 900, 0.0009]), True),
        (np.array([1e6, 0.0]), np.array([1e6 + 900, 0.0019]), False),
        (np.array([NAN]), np.array([0.0]), False),
        ([0.0], [0.0009], True),
        ([0.0], [0.0, 0.0], False),
        (math.inf, 1e308, False),
        ("a", "b", False),
    ],
)
def test_tolerance(was: Any, now: Any, same: bool) -> None:
    assert (difference(was, now, 1e-3) is None) == same


def test_objects_that_cannot_be_compared_or_shown() -> None:
    assert difference(Odd(), Odd()) == ("", *["a Odd (ValueError in its repr)"] * 2)
    assert shown([1]) == "[1]"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(PLAIN)
def test_everything_equals_itself(value: Any) -> None:
    assert difference(value, value) is None
    assert difference([value, 1], [value, 2]) == ("[1]", "1", "2")


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    one = torch.ones(20, dtype=torch.bfloat16)
    assert difference({"w": one}, {"w": one.clone()}) is None
    assert difference({"w": one}, {"w": one * 2}) == (
        "w",
        "bfloat16[20]",
        "bfloat16[20], at most 1 apart",
    )

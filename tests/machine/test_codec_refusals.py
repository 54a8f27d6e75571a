"""What cannot come back exactly is refused; what was tampered with is called corrupt."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import enum
import pathlib
import random
import sys
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitchen.errors import CorruptValue, UnencodableValue
from kitchen.machine.codec import Codec
from kitchen.machine.codec.arrays import pack_state, unpack_state

CODEC = Codec()


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


class Pair(NamedTuple):
    a: int


class Elsewhere(dt.tzinfo):
    def utcoffset(self, when: Any) -> dt.timedelta:
        return dt.timedelta()


class Undeclared(msgspec.Struct):
    a: int = 1


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Colour.RED, r"\.value"),
        (Name("x"), r"str\(\.\.\.\)"),
        (Pair(1), r"tuple\(\.\.\.\)"),
        (collections.OrderedDict(), r"dict\(\.\.\.\)"),
        (collections.defaultdict(int), r"dict\(\.\.\.\)"),
        (pathlib.PurePath("x"), r"str\(\.\.\.\)"),
        (bytearray(b"x"), "bytes"),
        ((x for x in "ab"), "list"),
        (iter([1]), "list"),
        (len, "code"),
        (lambda: 1, "code"),
        (int, "code"),
        (sys, "name"),
        (object(), "Resource"),
        (Undeclared(), "annotations"),
        (dt.datetime(2020, 1, 1, tzinfo=Elsewhere()), "ZoneInfo"),
        pytest.param(2**70000, "bytes", id="int"),
        (np.array([object()]), "tolist"),
        (np.ma.masked_array([1]), "Resource"),
        (np.array([1], np.longdouble), "astype"),
        (np.str_("x"), r"item\(\)"),
        (np.array([(1, None)], [("a", "i4"), ("b", "O")]), "tolist"),
    ],
)
def test_refusals_say_what_to_store_instead(value: Any, hint: str) -> None:
    for wrapped, where in ((value, "state"), ([value], r"state\[0\]"), ({"k": (value,)}, "'k'")):
        with pytest.raises(UnencodableValue, match=rf"(?s){where}.*hint.*{hint}"):
            CODEC.encode(wrapped, where="state")


def test_the_path_inside_the_value_is_named() -> None:
    value = [0, 1, 2, {"model": print, "fine": 1}]
    with pytest.raises(UnencodableValue, match=r"^state\['history'\]\[3\]\['model'\]: cannot keep"):
        CODEC.encode(value, where="state['history']")
    with pytest.raises(UnencodableValue, match=r"^state\[5\]\[1\]: cannot keep"):
        CODEC.encode({(): 1, 5: (1, object())}, where="state")
    with pytest.raises(UnencodableValue, match=r"^state \(in a key\)\[0\]: cannot keep"):
        CODEC.encode({(object(),): 1}, where="state")


def test_a_value_that_contains_itself() -> None:
    value: list[Any] = [1]
    value.append({"again": value})
    with pytest.raises(UnencodableValue, match=r"value\[1\]\['again'\]: contains itself"):
        CODEC.encode(value)
    twice = [1]
    assert CODEC.decode(CODEC.encode([twice, twice]).json, bytes.fromhex) == [[1], [1]]


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {1: v}]
)
def test_depth_is_bounded_both_ways(wrap: Any) -> None:
    value: Any = 1
    for _ in range(100):
        value = wrap(value)
    assert CODEC.decode(CODEC.encode(value).json, bytes.fromhex) == value
    with pytest.raises(UnencodableValue, match="100 levels"):
        CODEC.encode(wrap(value))
    for text in (b"[" * 3000 + b"]" * 3000, b'{"$":"tuple","v":[' * 300 + b"]}" * 300):
        with pytest.raises(CorruptValue):
            CODEC.decode(text, bytes.fromhex)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[1", b"\xff", b"1" * 5000, b'{"$":"tuple","v":1}', b'{"$":"tuple"}', b'{"$":["x"]}',
        b'{"$":"pickle","v":"gASVAAAA"}', b'{"$":"set","v":[[1]]}', b'{"$":"set","v":[1,1]}',
        b'{"$":"dict","v":[1]}', b'{"$":"dict","v":[1,2,1,2]}', b'{"$":"dict","v":[[],1]}',
        b'{"$":"int","v":"0x' + b"f" * 20000 + b'"}', b'{"$":"int","v":"12"}', b'{"$":"int"}',
        b'{"$":"float","v":"nan:3ff0000000000000"}', b'{"$":"float","v":"1e5"}',
        b'{"$":"decimal","v":"' + b"1" * 20000 + b'"}', b'{"$":"bytes","b64":"*"}',
        b'{"$":"bytes"}', b'{"$":"bytes","blob":"../../etc/passwd","size":1}',
        b'{"$":"blob","blob":"' + b"0" * 64 + b'","size":-1}', b'{"$":"range","v":[0,1,0]}',
        b'{"$":"datetime","v":"2020-01-01","zone":"../../etc/passwd"}',
        b'{"$":"datetime","v":"2020-01-01","zone":"No/Where"}', b'{"$":"fraction","v":[1,0]}',
        b'{"$":"np","dtype":"|i1","v":300}', b'{"$":"np","dtype":"<f2","v":1e300}',
        b'{"$":"ndarray","dtype":"|O","shape":[1],"b64":"AAAAAAAAAAA="}',
        b'{"$":"ndarray","dtype":"<f8","shape":[1000000000000],"b64":""}',
        b'{"$":"ndarray","dtype":{"base":"<f8","shape":[0]},"shape":[1000000000],"b64":""}',
        b'{"$":"ndarray","dtype":"<U1","shape":[1],"b64":"/////w=="}',
        b'{"$":"ndarray","dtype":"<f8","shape":[0],"axes":[5],"b64":""}',
        b'{"$":"struct","type":1,"v":{}}', b'{"$":"struct","type":[],"v":{}}',
        b'{"$":"ordered","v":{}}', b'{"$":"ndarray","dtype":"<f8","shape":[0],"tensor":"0"}',
    ],
)  # fmt: skip
def test_hostile_texts_are_corrupt(text: bytes) -> None:
    with pytest.raises(CorruptValue):
        CODEC.decode(text, lambda _: b"")


SEEDS: list[Any] = [
    [float("nan"), -0.0, b"x", (1, [2]), {1, 2}, {1: {"$": 2}}, 2**5000, "\ud800", 1j, range(3)],
    [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.time(1), dt.date(2020, 1, 1), dt.timedelta(1)],
    [np.arange(6.0).reshape(2, 3).T, np.float32(1), np.array(["a"]), np.zeros(2, "i4,f8")],
]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["tuple", "set", "dict", "nan", "<f8", "|O", "struct", "blob", "0" * 64]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["$", "v", "b64", "blob", "size", "dtype", "shape"]), inner),
    max_leaves=5,
)  # fmt: skip


def mutated(tree: Any, junk: Any, rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return junk
    if isinstance(tree, list):
        return [mutated(item, junk, rng) for item in tree]
    if isinstance(tree, dict):
        return {name: mutated(item, junk, rng) for name, item in tree.items()}
    return tree


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SEEDS), JUNK, st.integers(), st.booleans())
def test_mutated_texts_decode_or_are_corrupt(
    value: Any, junk: Any, seed: int, structural: bool
) -> None:
    rng = random.Random(seed)
    packed = pack_state(value)
    for text, fetch, decode in (
        (CODEC.encode(value).json, lambda _: b"", CODEC.decode),
        (packed.tree, lambda digest: packed.blobs.get(digest, b""), unpack_state),
    ):
        if structural:
            changed = msgspec.json.encode(mutated(msgspec.json.decode(text), junk, rng))
        else:
            at = rng.randrange(len(text))
            changed = text[:at] + rng.randbytes(rng.randrange(3)) + text[at + rng.randrange(3) :]
        with contextlib.suppress(CorruptValue):
            decode(changed, fetch)

"""What is decoded is what was encoded, in every bit."""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import math
import struct
import uuid
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from kitchen.machine.codec import BLOB_LIMIT, Codec, Encoded, blob_digests
from kitchen.machine.codec.frozen import FrozenDict, FrozenList, FrozenSet

CODEC = Codec()
PLAIN: dict[type, type] = {FrozenList: list, FrozenDict: dict, FrozenSet: set}

nans = st.integers(1, 2**51 - 1).flatmap(
    lambda payload: st.sampled_from([0x7FF8 << 48, 0xFFF8 << 48]).map(
        lambda top: struct.unpack(">d", struct.pack(">Q", top | payload))[0]
    )
)
zones = st.one_of(
    st.none(),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]).map(zoneinfo.ZoneInfo),
    st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone),
    st.just(dt.timezone(dt.timedelta(hours=1), "CET")),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**700, -(2**9999)]),
    st.floats(),
    nans,
    st.sampled_from([-0.0, 5e-324, math.inf]),
    st.text(),
    st.sampled_from(["$", "blob", "null", "a" * 64, "\ud800", '"blob":"' + "a" * 64]),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.builds(range, st.integers(), st.integers(), st.integers(1)),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.times(timezones=zones),
    st.builds(lambda day: day.replace(fold=1), st.datetimes(timezones=zones)),
    st.dates(),
    st.timedeltas(),
    st.sampled_from([np.float64(0.1), np.float32("nan"), np.int8(-3), np.bool_(True)]),
    st.sampled_from([np.datetime64("2020-01-01T00", "h"), np.float64(-0.0), np.complex64(1j)]),
)
hashables = st.recursive(
    scalars.filter(lambda value: not (isinstance(value, decimal.Decimal) and value.is_snan())),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
untitled = st_np.array_dtypes(max_size=3).filter(
    lambda dtype: all(len(field) == 2 for field in (dtype.fields or {}).values())
)
arrays = st_np.arrays(
    st_np.scalar_dtypes() | st_np.unicode_string_dtypes() | untitled,
    st_np.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3),
)
shaped = arrays | arrays.map(np.transpose) | arrays.map(lambda a: a[::-1] if a.ndim else a)
keys = st.text(max_size=3) | st.sampled_from(["$", "blob"])
values = st.recursive(
    scalars | shaped,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=3),
        st.sets(hashables, max_size=3),
        st.frozensets(hashables, max_size=3),
    ),
    max_leaves=12,
)
relaxed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def same(a: Any, b: Any) -> bool:  # noqa: C901 - a case for each type is the point
    """Equality that sees types, NaN payloads, signs of zero, order and layout."""
    kind: type[object] = PLAIN.get(type(a), type(a))
    if kind is not PLAIN.get(type(b), type(b)):
        return False
    if kind is float:
        return struct.pack("d", a) == struct.pack("d", b)
    if kind is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if kind in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if kind is dict:
        return same(list(a.items()), list(b.items()))
    if kind in (set, frozenset):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if kind in (dt.datetime, dt.time):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None)
            and a.fold == b.fold
            and repr(a.tzinfo) == repr(b.tzinfo)
        )
    if kind is decimal.Decimal:
        return str(a) == str(b)
    if kind is np.ndarray:
        return (
            (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.dtype.isalignedstruct == b.dtype.isalignedstruct
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b


def back(encoded: Encoded, *, frozen: bool = True) -> Any:
    return CODEC.decode(encoded.json, encoded.blobs.__getitem__, frozen=frozen)


@relaxed
@given(values)
def test_every_value_comes_back_exactly(value: Any) -> None:
    encoded = CODEC.encode(value)
    for frozen in (True, False):
        assert same(back(encoded, frozen=frozen), value)
    assert CODEC.encode(value) == encoded, "the same value has the same text"
    assert CODEC.encode(back(encoded)) == encoded, "so has what was read back"
    assert blob_digests(encoded.json) == list(encoded.blobs)


@relaxed
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
                    lambda inner: st.lists(inner) | st.dictionaries(keys, inner)))  # fmt: skip
def test_the_fast_path_agrees_with_the_exact_one(value: Any) -> None:
    fast, exact = CODEC.encode(value), CODEC._encode_exactly(value, "value")
    assert fast == exact


def test_plain_json_stays_plain_json() -> None:
    value = {"loss": [0.5, 1, None, True], "name": "x", "nested": {"a": []}}
    assert CODEC.encode(value).json == (b'{"loss":[0.5,1,null,true],"name":"x","nested":{"a":[]}}')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, b'{"$":"float","v":"nan"}'),
        ([-math.inf], b'[{"$":"float","v":"-inf"}]'),
        ((1, "a"), b'{"$":"tuple","v":[1,"a"]}'),
        ({1: 2}, b'{"$":"dict","v":[1,2]}'),
        ({"$": 1}, b'{"$":"dict","v":["$",1]}'),
        (b"hi", b'{"$":"bytes","b64":"aGk="}'),
        (np.float64(0.1), b'{"$":"np","dtype":"<f8","v":0.1}'),
        (fractions.Fraction(1, 3), b'{"$":"fraction","v":[1,3]}'),
        (uuid.UUID(int=1), b'{"$":"uuid","v":"00000000-0000-0000-0000-000000000001"}'),
    ],
)
def test_the_recorded_form(value: Any, text: bytes) -> None:
    assert CODEC.encode(value).json == text


@given(st.lists(hashables, max_size=6), st.randoms())
def test_equal_sets_have_one_text(elements: list[Any], random: Any) -> None:
    shuffled = list(elements)
    random.shuffle(shuffled)
    first = {repr(item): item for item in elements}
    again = {repr(item): first[repr(item)] for item in shuffled}
    a, b = set(first.values()), set(again.values())
    if set(map(repr, a)) == set(map(repr, b)):  # (of 1 and True a set keeps what it met first)
        assert CODEC.encode(a) == CODEC.encode(b)


def test_dense_arrays_keep_the_order_of_their_axes() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    for axes in [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)]:
        assert back(CODEC.encode(array.transpose(axes))).strides == array.transpose(axes).strides


def test_decoded_arrays_are_read_only_unless_asked() -> None:
    encoded = CODEC.encode(np.arange(3))
    with pytest.raises(ValueError, match="read-only"):
        back(encoded)[0] = 9
    thawed = back(encoded, frozen=False)
    thawed[0] = 9
    assert back(encoded)[0] == 0


@pytest.mark.parametrize("size", [BLOB_LIMIT - 2, BLOB_LIMIT - 1])
def test_a_text_above_the_limit_becomes_a_blob(size: int) -> None:
    value = "x" * size
    encoded = CODEC.encode(value)
    assert len(encoded.blobs) == (size + 2 > BLOB_LIMIT)
    assert blob_digests(encoded.json) == list(encoded.blobs)
    assert back(encoded) == value


def test_a_large_text_names_the_blobs_that_it_refers_to() -> None:
    value = [np.zeros(10_000), b"b" * 70_000, list(range(30_000))]
    encoded = CODEC.encode(value)
    assert len(encoded.blobs) == 3
    assert set(blob_digests(encoded.json)) == set(encoded.blobs)
    assert len(encoded.json) < 1_000
    assert same(back(encoded), value)


def test_what_looks_like_a_reference_is_none() -> None:
    digest = "0" * 64
    for value in (
        {"blob": digest},
        [{"x": {"blob": digest}}],
        f'"blob":"{digest}"',
        ("blob", digest),
    ):
        encoded = CODEC.encode(value)
        assert blob_digests(encoded.json) == []
        assert same(back(encoded), value)


def test_a_lost_blob_is_told_by_the_one_who_fetches() -> None:
    encoded = CODEC.encode(b"x" * 100_000)
    with pytest.raises(KeyError):
        CODEC.decode(encoded.json, {}.__getitem__)

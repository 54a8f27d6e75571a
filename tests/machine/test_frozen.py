"""What is read from state is read-only, and says what to do instead."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from kitchen.errors import FrozenValue
from kitchen.machine.codec import Codec
from kitchen.machine.codec.frozen import FrozenDict, FrozenList, FrozenSet

CODEC = Codec()


def read(value: Any) -> Any:
    return CODEC.decode(CODEC.encode(value).json, bytes.fromhex, key="history")


def _set(x: Any) -> None:
    x[0] = 1


MUTATORS: list[tuple[Any, Callable[[Any], Any]]] = [
    ([2, 1], lambda x: x.append(1)),
    ([2, 1], lambda x: x.extend([1])),
    ([2, 1], lambda x: x.insert(0, 1)),
    ([2, 1], lambda x: x.pop()),
    ([2, 1], lambda x: x.remove(1)),
    ([2, 1], lambda x: x.clear()),
    ([2, 1], lambda x: x.reverse()),
    ([2, 1], lambda x: x.sort(key=lambda y: y)),
    ([2, 1], _set),
    ([2, 1], lambda x: operator.setitem(x, slice(0, 1), [])),
    ([2, 1], lambda x: operator.delitem(x, 0)),
    ([2, 1], lambda x: operator.iadd(x, [1])),
    ([2, 1], lambda x: operator.imul(x, 2)),
    ({"a": 1}, _set),
    ({"a": 1}, lambda x: operator.delitem(x, "a")),
    ({"a": 1}, lambda x: x.update(b=1)),
    ({"a": 1}, lambda x: x.setdefault("a", 1)),
    ({"a": 1}, lambda x: x.pop("a")),
    ({"a": 1}, lambda x: x.popitem()),
    ({"a": 1}, lambda x: x.clear()),
    ({"a": 1}, lambda x: operator.ior(x, {"b": 1})),
    ({1: 2}, _set),
    ({1}, lambda x: x.add(2)),
    ({1}, lambda x: x.discard(1)),
    ({1}, lambda x: x.remove(1)),
    ({1}, lambda x: x.pop()),
    ({1}, lambda x: x.clear()),
    ({1}, lambda x: x.update({2})),
    ({1}, lambda x: x.difference_update({2})),
    ({1}, lambda x: x.intersection_update({2})),
    ({1}, lambda x: x.symmetric_difference_update({2})),
    ({1}, lambda x: operator.ior(x, {2})),
    ({1}, lambda x: operator.iand(x, {2})),
    ({1}, lambda x: operator.isub(x, {1})),
    ({1}, lambda x: operator.ixor(x, {1})),
]


@pytest.mark.parametrize(("value", "mutate"), MUTATORS)
def test_no_change_in_place(value: Any, mutate: Callable[[Any], Any]) -> None:
    for frozen in (read(value), read([value])[0], read({"x": (value,)})["x"][0]):
        with pytest.raises(FrozenValue, match=r"(?s)ctx\.state\['history'\].*hint: .*assign"):
            mutate(frozen)
        assert frozen == value


def test_every_mutator_of_the_builtins_is_covered() -> None:
    for frozen, immutable in ((FrozenList, tuple), (FrozenSet, frozenset)):
        own = set(dir(frozen.__base__)) - set(dir(immutable)) - {"__reversed__", "copy"}
        assert own <= set(vars(frozen)), own - set(vars(frozen))
    readers = {"__reversed__", "__or__", "__ror__", "copy", "items", "keys", "values", "get"}
    own = set(dir(dict)) - set(dir(frozenset)) - readers - {"__class_getitem__", "__getitem__"}
    assert own <= set(vars(FrozenDict)), own - set(vars(FrozenDict))


def test_what_is_made_from_it_is_plain() -> None:
    numbers, table, members = read([[1], 2]), read({"a": [1]}), read({1})
    made: list[tuple[type, Any]] = [
        (list, numbers[:1]),
        (list, operator.add(numbers, [3])),
        (list, operator.add([3], numbers)),
        (list, numbers * 2),
        (list, numbers.copy()),
        (list, copy.copy(numbers)),
        (list, copy.deepcopy(numbers)),
        (list, copy.deepcopy(numbers)[0]),
        (list, pickle.loads(pickle.dumps(numbers))),
        (list, sorted(read([2, 1]))),
        (dict, table | {"b": 1}),
        (dict, {"b": 1} | table),
        (dict, table.copy()),
        (dict, copy.copy(table)),
        (list, copy.deepcopy(table)["a"]),
        (dict, pickle.loads(pickle.dumps(table))),
        (dict, FrozenDict.fromkeys("ab")),
        (set, members | {2}),
        (set, members - {2}),
        (set, members.copy()),
        (set, members.union({2})),
        (set, copy.deepcopy(members)),
        (set, pickle.loads(pickle.dumps(members))),
    ]
    for kind, value in made:
        assert type(value) is kind


def test_it_passes_for_the_builtin() -> None:
    value = {"a": [1, {"b": None}], "c": {}}
    frozen = read(value)
    assert frozen == value
    assert isinstance(frozen["a"], list)
    assert json.dumps(frozen) == json.dumps(value)
    assert repr(frozen) == repr(value)
    assert CODEC.encode(frozen) == CODEC.encode(value)
    assert CODEC.encode([read({1})]) == CODEC.encode([{1}])


def test_thawed_when_asked() -> None:
    encoded = CODEC.encode({"a": ([1], {2})})
    plain = CODEC.decode(encoded.json, bytes.fromhex, frozen=False)
    assert [type(plain), type(plain["a"][0]), type(plain["a"][1])] == [dict, list, set]

"""Structs and dataclasses: declared by the codec's maker, never found by their names."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Annotated, Any, Generic, NewType, TypeVar

import msgspec
import pytest

from kitchen.errors import CorruptValue, UnencodableValue
from kitchen.machine.codec import BLOB_LIMIT, Codec, FrozenList, Opaque, blob_digests

T = TypeVar("T")


class Leaf(msgspec.Struct, frozen=True):
    a: int = 0
    blob: str = ""


@dataclasses.dataclass
class Node:
    name: str
    leaves: list[Leaf]
    child: Node | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float


class Box(msgspec.Struct, Generic[T]):
    held: T


Alias = NewType("Alias", Point)


class State(msgspec.Struct):
    nodes: dict[str, Node] = {}
    best: Annotated[Box[int] | None, "note"] = None
    where: tuple[Alias, ...] = ()


class Strict(msgspec.Struct):
    a: Any
    made: list[int] = []

    def __post_init__(self) -> None:
        self.a = tuple(self.a)
        self.made = [1]


CODEC = Codec.for_types(State, Strict)


def back(value: Any, codec: Codec = CODEC, reader: Codec | None = None) -> Any:
    encoded = codec.encode(value)
    return (reader or codec).decode(encoded.json, encoded.blobs.__getitem__)


def test_annotations_are_walked() -> None:
    assert set(CODEC.types) == {"State", "Node", "Leaf", "Box", "Point", "Strict"}


def test_declared_objects_come_back_as_themselves() -> None:
    state = State(
        nodes={"n": Node("a", [Leaf(1), Leaf(2, "0" * 64)], Node("b", []))},
        best=Box(3),
        where=(Alias(Point(float("inf"))),),
    )
    again = back(state)
    assert again == state
    assert type(again.nodes) is dict
    assert type(again.nodes["n"].leaves) is list
    assert blob_digests(CODEC.encode(state).json) == []
    assert back({Leaf(1): [Leaf(1)]}) == {Leaf(1): [Leaf(1)]}
    assert type(back([Leaf(1)])) is FrozenList


def test_construction_changes_nothing() -> None:
    value = Strict([1])
    value.a, value.made = [3], []
    assert (back(value).a, back(value).made) == ([3], [])


def test_other_attributes_are_refused() -> None:
    node = Node("a", [])
    node.cache = 1  # type: ignore[attr-defined]
    with pytest.raises(UnencodableValue, match=r"value\[0\]: .*'cache'"):
        CODEC.encode([node])
    with pytest.raises(UnencodableValue, match=r"value\.leaves\[0\]: cannot keep"):
        CODEC.encode(Node("a", [object()]))  # type: ignore[list-item]


def test_undeclared_objects_are_opaque_and_can_be_carried_along() -> None:
    reader = Codec()
    opaque = back(Node("a", [Leaf(1)]), reader=reader)
    assert isinstance(opaque, Opaque)
    assert opaque.type_name == "Node"
    assert opaque["name"] == "a"
    assert opaque["leaves"][0].type_name == "Leaf"
    assert reader.encode(opaque) == CODEC.encode(Node("a", [Leaf(1)]))
    keyed = back({Leaf(1): 1, Leaf(2): 2}, reader=reader)
    assert len(keyed) == 2
    assert reader.encode(keyed) == CODEC.encode({Leaf(1): 1, Leaf(2): 2})


@pytest.mark.parametrize("name", ["os.system", "antigravity", "builtins.eval", "__main__", "Leaf"])
def test_recorded_names_lead_nowhere(name: str) -> None:
    before = set(sys.modules)
    text = msgspec.json.encode({"$": "struct", "type": name, "v": {"a": 1}})
    assert Codec().decode(text, bytes.fromhex).type_name == name
    assert set(sys.modules) == before


def test_a_class_that_changed_since() -> None:
    def recorded(**fields: Any) -> bytes:
        return msgspec.json.encode({"$": "struct", "type": "Node", "v": fields})

    assert CODEC.decode(recorded(name="a", leaves=[]), bytes.fromhex) == Node("a", [])
    with pytest.raises(CorruptValue, match="no field 'gone' any more"):
        CODEC.decode(recorded(name="a", leaves=[], gone=1), bytes.fromhex)
    with pytest.raises(CorruptValue, match="'leaves' of Node was not recorded"):
        CODEC.decode(recorded(name="a"), bytes.fromhex)


def test_one_name_for_two_classes_is_refused() -> None:
    other = msgspec.defstruct("Leaf", [("b", int)])
    holder = msgspec.defstruct("Holder", [("x", Leaf), ("y", other)])
    with pytest.raises(UnencodableValue, match="both declared"):
        Codec.for_types(holder)


def test_what_cannot_be_declared() -> None:
    @dataclasses.dataclass
    class Bag(dict[str, int]):
        size: int = 0

    with pytest.raises(UnencodableValue, match="built-in at once"):
        Codec.for_types(Bag)
    with pytest.raises(UnencodableValue, match="neither"):
        Codec({"int": int})
    module = types.ModuleType("elsewhere")
    sys.modules["elsewhere"] = module
    exec(  # a class whose annotation cannot be resolved
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Lost:\n    x: Missing\n",
        module.__dict__,
    )
    try:
        with pytest.raises(UnencodableValue, match="'Missing' is not defined"):
            Codec.for_types(module.Lost)
    finally:
        del sys.modules["elsewhere"]


def test_a_large_text_says_that_it_holds_objects() -> None:
    encoded = CODEC.encode([Leaf(n) for n in range(5000)])
    assert len(encoded.json) < BLOB_LIMIT
    assert b'"struct"' in encoded.json

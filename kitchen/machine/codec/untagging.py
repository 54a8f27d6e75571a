"""From tagged JSON to a value: the exact path back.

Rules:

1. The text is not trusted. Whatever is malformed raises `CorruptValue`, which names the tag.
2. Nothing is imported, looked up or called by a name from the text: tags and declared
   classes come from tables; a class that is not declared becomes `Opaque`.
3. Nothing is built whose size the text (or a blob) does not itself have.
4. What `fetch` raises passes through as it is: a lost blob is no corrupt value.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import fractions
import re
import struct
import uuid
import zoneinfo
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from kitchen.errors import CorruptValue
from kitchen.machine.codec.bounds import Blobs, check_spread, too_deep
from kitchen.machine.codec.declared import field_names
from kitchen.machine.codec.frozen import (
    FrozenDict,
    FrozenList,
    FrozenSet,
    Opaque,
    frozen_dict,
    frozen_list,
)
from kitchen.machine.codec.refusals import kind_of
from kitchen.machine.codec.tagging import (
    DECIMAL_DIGITS,
    INT_HEX_DIGITS,
    MAX_DEPTH,
    ZONE_KEY,
)
from kitchen.machine.codec.tensors import build_array, build_scalar, build_tensor

Fetch = Callable[[str], bytes]
load: Callable[[bytes], Any] = msgspec.json.Decoder().decode

_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"-?0x[0-9a-f]+")
_NESTED = frozenset((list, dict))
_TOLD = 200  # characters of what an error quotes


def parse(text: bytes) -> Any:
    """The JSON of a recorded value."""
    try:
        return load(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptValue(f"a recorded value is no JSON: {error}") from error
    except RecursionError:
        raise too_deep() from None


def inner_text(tree: Any, fetch: Fetch) -> bytes | None:
    """The text that was above the limit and stands in a blob, if this is such a value."""
    if kind_of(tree) is dict and tree.get("$") == "blob":
        return read_blob(tree, fetch)
    return None


def freeze(value: Any, key: str | None, level: int = 0) -> Any:
    """Read-only containers for the plain ones of `value`, which is used up."""
    kind = kind_of(value)
    if level > MAX_DEPTH:
        raise too_deep()
    if kind is list:
        for index, item in enumerate(value):
            if kind_of(item) in _NESTED:
                value[index] = freeze(item, key, level + 1)
        return frozen_list(value, key)
    if kind is dict:
        for name, item in value.items():
            if kind_of(item) in _NESTED:
                value[name] = freeze(item, key, level + 1)
        return frozen_dict(value, key)
    return value


class Untagger:
    """Builds the value of one tree.

    `types` are the declared classes by recorded name; `tensors` what the tree names from a
    state dict's blob, and None where there is none.
    """

    def __init__(
        self,
        types: Mapping[str, type],
        fetch: Fetch,
        *,
        frozen: bool,
        key: str | None = None,
        tensors: Mapping[str, bytes] | None = None,
    ) -> None:
        self.types = types
        self.blobs = Blobs(fetch)
        self.frozen = frozen
        self.key = key
        self.tensors = dict(tensors) if tensors is not None else None

    def run(self, tree: Any) -> Any:
        try:
            return self.untag(tree, 0)
        except RecursionError:
            raise too_deep() from None

    def untag(self, tree: Any, level: int) -> Any:
        """The value of a tree; `level` is that of the value, whose tags may take several of JSON."""
        kind = kind_of(tree)
        if kind is not dict and kind is not list:
            return tree
        if level > MAX_DEPTH:
            raise too_deep()
        if kind is list:
            items: list[Any] = []
            for item in tree:
                items.append(self.untag(item, level + 1))  # noqa: PERF401 - saves a frame a level
            return frozen_list(items, self.key) if self.frozen else items
        if "$" in tree:
            return self._tagged(tree, level)
        fields: dict[str, Any] = {}
        for name, item in tree.items():
            fields[name] = self.untag(item, level + 1)
        return frozen_dict(fields, self.key) if self.frozen else fields

    def _tagged(self, tree: dict[str, Any], level: int) -> Any:
        tag = tree["$"]
        builder = _BUILDERS.get(tag) if type(tag) is str else None
        if builder is None and self.tensors is not None:
            builder = _STATE_DICT_BUILDERS.get(tag) if type(tag) is str else None
        if builder is None:
            raise CorruptValue(
                f"a recorded value has the unknown tag {_short(tag)!r}",
                hint="it may have been written by a newer version of kitchen",
            )
        # What a declared object holds is its own business: its containers are plain.
        frozen = self.frozen
        name = tree.get("type")
        self.frozen = frozen and not (tag == "struct" and type(name) is str and name in self.types)
        tagged = tree.get("v")
        pair = (
            tag == "ordered" and type(tagged) is list
        )  # the items and the attributes of one value
        try:
            inner = self.untag(tagged, level - pair)
        finally:
            self.frozen = frozen
        data = self._data(tree)
        try:
            return builder(self, tree, inner, data)
        except (CorruptValue, ModuleNotFoundError):
            raise
        except RecursionError:
            raise too_deep() from None
        except Exception as error:
            # A builder meets whatever the text holds, so it may fail in any way.
            why = str(error)[:_TOLD]
            raise CorruptValue(f"a recorded {tag} does not decode: {why}") from error

    def _data(self, tree: dict[str, Any]) -> bytes | None:
        if "b64" in tree:
            try:
                return base64.b64decode(tree["b64"], validate=True)
            except (ValueError, TypeError) as error:
                raise CorruptValue(f"a recorded {tree['$']} is no base64: {error}") from error
        if "blob" in tree:
            copied = tree["$"] in ("str", "tensor") or not self.frozen
            return read_blob(tree, lambda digest: self.blobs.get(digest, copied=copied))
        if "tensor" in tree:
            name = tree["tensor"]
            # Each was named once; taken out, it cannot be copied again and again.
            data = self.tensors.pop(name, None) if self.tensors and type(name) is str else None
            if data is None:
                raise CorruptValue(f"a recorded {tree['$']} names a tensor that is not there")
            return data
        return None


def read_blob(tree: dict[str, Any], fetch: Fetch) -> bytes:
    """The bytes of the blob that a tag refers to."""
    digest = tree.get("blob")
    if type(digest) is not str or not _DIGEST.fullmatch(digest):
        raise CorruptValue(f"{_short(digest)!r} is not the hash of a blob")
    data = fetch(digest)
    if len(data) != tree.get("size"):
        raise CorruptValue(
            f"blob {digest[:12]} has {len(data)} bytes, and {_short(tree.get('size'))} were recorded"
        )
    return data


def _short(found: Any) -> str:
    return str(found)[:80] if type(found) in (str, int, float, bool) else type(found).__name__


def _need(data: bytes | None) -> bytes:
    if data is None:
        raise ValueError("its bytes are missing")
    return data


def _is_list(value: Any) -> Any:
    if type(value) not in (list, FrozenList):
        raise ValueError("its items are no list")
    return value


def _unique(made: Any, count: int) -> Any:
    if len(made) != count:
        raise ValueError("it has equal elements or keys")
    return made


def _set(self: Untagger, _t: Any, inner: Any, _d: Any) -> Any:
    check_spread(_is_list(inner), len(inner))
    made: set[Any] = FrozenSet(inner, self.key) if self.frozen else set(inner)
    return _unique(made, len(inner))


def _frozenset(_s: Any, _t: Any, inner: Any, _d: Any) -> Any:
    check_spread(_is_list(inner), len(inner))
    return _unique(frozenset(inner), len(inner))


def _dict(self: Untagger, _t: Any, inner: Any, _d: Any) -> Any:
    pairs = _is_list(inner)
    check_spread(pairs[::2], len(pairs) // 2)
    made = _unique(dict(zip(pairs[::2], pairs[1::2], strict=True)), len(pairs) // 2)
    return FrozenDict(made, self.key) if self.frozen else made


def _struct(self: Untagger, tree: Any, inner: Any, _d: Any) -> Any:
    name = tree["type"]
    if type(name) is not str or not isinstance(inner, dict):
        raise ValueError("it has no type or no fields")
    fields: dict[str, Any] = {**inner}
    cls = self.types.get(name)
    return Opaque(name, fields) if cls is None else _instance(cls, fields)


def _instance(cls: type[Any], fields: dict[str, Any]) -> Any:
    """An instance with exactly these fields; those added to the class since take defaults."""
    names = field_names(cls)
    gone = [name for name in fields if name not in names]
    if gone:
        raise ValueError(f"{cls.__qualname__} has no field {gone[0]!r} any more")
    # Set past `frozen`, converters and `__post_init__`: what was recorded had been through
    # those. (A Struct cannot be made without its `__init__`.)
    if issubclass(cls, msgspec.Struct):
        instance = cls(**fields)
        for name, value in fields.items():
            if getattr(instance, name) is not value:
                msgspec.structs.force_setattr(instance, name, value)
        return instance
    made = object.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name in fields:
            value = fields[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            raise ValueError(f"the field {field.name!r} of {cls.__qualname__} was not recorded")
        object.__setattr__(made, field.name, value)
    return made


def _float(_s: Any, _t: Any, inner: str, _d: Any) -> float:
    if inner in ("nan", "inf", "-inf"):
        return float(inner)
    value: float = struct.unpack(">d", bytes.fromhex(inner.removeprefix("nan:")))[0]
    if value == value:  # noqa: PLR0124 - true of all but NaN
        raise ValueError(f"{inner!r} is no special float")
    return value


def _int(_s: Any, _t: Any, inner: str, _d: Any) -> int:
    if len(inner) > INT_HEX_DIGITS or not _HEX.fullmatch(inner):
        raise ValueError("no hexadecimal number")
    return int(inner, 16)


def _decimal(_s: Any, _t: Any, inner: str, _d: Any) -> decimal.Decimal:
    if type(inner) is not str or len(inner) > DECIMAL_DIGITS:
        raise ValueError("no decimal number")
    return decimal.Decimal(inner)


def _numbers(inner: Any, kind: type, count: int) -> Any:
    if [type(number) for number in _is_list(inner)] != [kind] * count:
        raise ValueError(f"not {count} of {kind.__name__}")
    return inner


def _clock(kind: type[Any], tree: dict[str, Any], inner: str) -> Any:
    zone: dt.tzinfo | None = None
    if "zone" in tree:
        if not ZONE_KEY.fullmatch(tree["zone"]):
            raise ValueError(f"{tree['zone']!r} is no time zone")
        zone = zoneinfo.ZoneInfo(tree["zone"])
    elif "offset" in tree:
        name = (tree["name"],) if "name" in tree else ()
        zone = dt.timezone(dt.timedelta(microseconds=tree["offset"]), *name)
    value = kind.fromisoformat(inner)
    if value.tzinfo is not None:
        raise ValueError(f"{inner!r} has an offset of its own")
    return value.replace(tzinfo=zone, fold=tree.get("fold", 0))


def _array(self: Untagger, tree: Any, _i: Any, data: bytes | None) -> Any:
    try:
        if tree["$"] == "tensor":
            return build_tensor(tree, _need(data))
        if tree["$"] == "np":
            return build_scalar(tree, data)
        return build_array(tree, _need(data), frozen=self.frozen)
    except ModuleNotFoundError as error:
        if self.tensors is not None:
            raise  # a state dict is wanted for loading, where a stand-in is of no use
        fields = {name: tree[name] for name in ("dtype", "shape", "v") if name in tree}
        return Opaque(f"{error.name}.{tree['$']}", {**fields, "missing": error.name})


def _text(_s: Any, _t: Any, _i: Any, data: bytes | None) -> str:
    return _need(data).decode("utf-8", "surrogatepass")


def _ordered(_s: Any, _t: Any, inner: Any, _d: Any) -> OrderedDict[Any, Any]:
    parts: list[Any] = inner if kind_of(inner) is list else [inner, {}]
    items, attributes = parts
    made: OrderedDict[Any, Any] = OrderedDict(_is_dict(items))
    vars(made).update(_is_dict(attributes))
    return made


def _is_dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise ValueError("its items are no mapping")
    return cast("dict[Any, Any]", value)


_Builder = Callable[[Untagger, Any, Any, bytes | None], Any]
_BUILDERS: dict[str, _Builder] = {
    "float": _float,
    "int": _int,
    "str": _text,
    "bytes": lambda _s, _t, _i, data: _need(data),
    "tuple": lambda _s, _t, inner, _d: tuple(_is_list(inner)),
    "set": _set,
    "frozenset": _frozenset,
    "dict": _dict,
    "struct": _struct,
    "complex": lambda _s, _t, inner, _d: complex(*_numbers(inner, float, 2)),
    "range": lambda _s, _t, inner, _d: range(*_numbers(inner, int, 3)),
    "decimal": _decimal,
    "fraction": lambda _s, _t, inner, _d: fractions.Fraction(*_numbers(inner, int, 2)),
    "uuid": lambda _s, _t, inner, _d: uuid.UUID(inner),
    "datetime": lambda _s, tree, inner, _d: _clock(dt.datetime, tree, inner),
    "time": lambda _s, tree, inner, _d: _clock(dt.time, tree, inner),
    "date": lambda _s, _t, inner, _d: dt.date.fromisoformat(inner),
    "timedelta": lambda _s, _t, inner, _d: dt.timedelta(*_numbers(inner, int, 3)),
    "ndarray": _array,
    "np": _array,
    "tensor": _array,
}
_STATE_DICT_BUILDERS: dict[str, _Builder] = {
    "ordered": _ordered,
    "counter": lambda _s, _t, inner, _d: Counter(_is_dict(inner)),
    "deque": lambda _s, tree, inner, _d: deque(_is_list(inner), tree["maxlen"]),
}

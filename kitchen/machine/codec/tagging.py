"""From a value to tagged JSON: the exact path of the codec.

Rules:

1. Only exact types are taken. A subclass could hold more than what would be written, and
   would come back as its base.
2. What JSON cannot say becomes an object with the member "$": {"$": "tuple", "v": [...]}.
   A dict of the user that JSON, or a reader of tags or blob references, would misread is
   written as {"$": "dict", "v": [key, value, key, value, ...]}.
3. The same value gives the same bytes: dicts keep their order, sets are sorted by the text
   of their elements, nothing depends on hashes or on identity.
4. Bytes above `BLOB_LIMIT` leave the text, which then has a member "blob" with their hash.
5. What is refused is refused with the path inside the value, and with what to do instead.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import fractions
import hashlib
import math
import re
import struct
import uuid
import zoneinfo
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec

from kitchen.errors import UnencodableValue
from kitchen.machine.codec.declared import field_names
from kitchen.machine.codec.frozen import FrozenDict, FrozenList, FrozenSet, Opaque
from kitchen.machine.codec.refusals import Refused, hint_for, kind_of, show_key, type_name
from kitchen.machine.codec.tensors import Leaf, Unfit, leaf_of, scalar_of

BLOB_LIMIT = 64 * 1024
MAX_DEPTH = 100  # levels of containers; far below what the recursion limit lets decode
PLAIN_INT = 2**2048  # within the digits that every interpreter's int() takes from text
INT_HEX_DIGITS = 16 * 1024
DECIMAL_DIGITS = 16 * 1024
ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MICROSECOND = dt.timedelta(microseconds=1)
dump: Callable[[Any], bytes] = msgspec.json.Encoder().encode


class Tagger:
    """Turns one value into a tree that msgspec writes as it stands, and collects its blobs.

    `names` are the declared classes and their recorded names. With `sink`, arrays go there
    (it returns the tensor's name) and the containers of state dicts are taken too.
    """

    def __init__(
        self, names: Mapping[type, str], sink: Callable[[Leaf], str] | None = None
    ) -> None:
        self.names = names
        self.sink = sink
        self.blobs: dict[str, bytes] = {}
        self._open: set[int] = set()

    def run(self, value: Any, where: str) -> Any:
        """The tree of `value`, or `UnencodableValue` naming the place inside it."""
        try:
            return self.tag(value)
        except Refused as refused:
            place = where + "".join(reversed(refused.path))
            raise UnencodableValue(f"{place}: {refused.reason}", hint=refused.hint) from None
        except RecursionError:
            raise UnencodableValue(f"{where}: nested too deep for this call stack") from None

    def tag(self, value: Any) -> Any:
        kind = kind_of(value)
        if kind is bool or value is None:
            return value
        if kind is float:
            return value if math.isfinite(value) else _special_float(value)
        tagger = _CONTAINERS.get(kind)
        if tagger is None and self.sink is not None:
            tagger = _STATE_DICT_CONTAINERS.get(kind)
        if tagger is None:
            scalar = _SCALARS.get(kind)
            if scalar is not None:
                return scalar(self, value)
            if kind not in self.names:
                return self._array(value)
            tagger = Tagger.declared
        return self._nested(tagger, value)

    def _nested(self, tagger: Callable[[Tagger, Any], Any], value: Any) -> Any:
        identity = id(value)
        if identity in self._open:
            raise Refused("contains itself", "store a value without cycles")
        if len(self._open) >= MAX_DEPTH:
            raise Refused(f"nested more than {MAX_DEPTH} levels deep", "flatten it")
        self._open.add(identity)
        tree = tagger(self, value)
        self._open.discard(identity)
        return tree

    def items(self, values: Iterable[Any]) -> list[Any]:
        tree: list[Any] = []
        try:
            for item in values:
                tree.append(self.tag(item))  # noqa: PERF401 - a comprehension costs a frame a level
        except Refused as refused:
            refused.path.append(f"[{len(tree)}]")
            raise
        return tree

    def mapping(self, value: Mapping[Any, Any]) -> Any:
        pairs = not _reads_as_written(value)
        flat: list[Any] = []
        tree: dict[str, Any] = {}
        step = ""
        try:
            for key, item in value.items():
                step = " (in a key)"
                name = self.tag(key) if pairs else key
                step = f"[{show_key(key)}]"
                if pairs:
                    flat += (name, self.tag(item))
                else:
                    tree[name] = self.tag(item)
        except Refused as refused:
            refused.path.append(step)
            raise
        return {"$": "dict", "v": flat} if pairs else tree

    def declared(self, value: Any) -> Any:
        """The fields of a declared Struct or dataclass; it may have no other attributes."""
        cls = kind_of(value)
        names = field_names(cls)
        extra = [name for name in getattr(value, "__dict__", ()) if name not in names]
        if extra:
            raise Refused(
                f"{type_name(value)} has the attribute {extra[0]!r}, which is no field of it",
                "declare it as a field, or do not keep it on the instance",
            )
        fields: dict[str, Any] = {}
        for name in names:
            try:
                fields[name] = getattr(value, name)
            except AttributeError:
                raise Refused(f"the field {name!r} of {type_name(value)} is not set") from None
        try:
            tree = self.mapping(fields)
        except Refused as refused:
            # `.name`, as one would write it, where a dict has `['name']`.
            refused.path[-1] = "." + refused.path[-1][2:-2]
            raise
        return {"$": "struct", "type": self.names[cls], "v": tree}

    def text(self, value: str) -> Any:
        if not _is_utf8(value):
            return self.bulk({"$": "str"}, value.encode("utf-8", "surrogatepass"))
        if self.sink is not None and len(value) > BLOB_LIMIT // 4:
            data = value.encode()
            if len(data) > BLOB_LIMIT:
                return self.bulk({"$": "str"}, data)
        return value

    def bulk(self, members: dict[str, Any], data: bytes) -> dict[str, Any]:
        """`members` with the bytes: in the text while they are few, else as a blob."""
        if len(data) > BLOB_LIMIT:
            digest = hashlib.sha256(data).hexdigest()
            self.blobs[digest] = data
            return {**members, "blob": digest, "size": len(data)}
        return {**members, "b64": base64.b64encode(data).decode()}

    def _array(self, value: Any) -> Any:
        try:
            leaf = leaf_of(value)
            if leaf is not None:
                if self.sink is not None:
                    return {**leaf.members, "tensor": self.sink(leaf)}
                return self.bulk(leaf.members, leaf.data)
            scalar = scalar_of(value)
        except Unfit as unfit:
            raise Refused(
                f"cannot keep {type_name(value)} exactly: {unfit.reason}", unfit.hint
            ) from None
        if scalar is None:
            raise Refused(f"cannot keep {type_name(value)} exactly", hint_for(value))
        members, raw = scalar
        return members if raw is None else self.bulk(members, raw)


def over_limit(text: bytes, blobs: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    """A text above `BLOB_LIMIT`, made a blob; what it refers to is named beside it.

    (Whoever looks for the blobs of an event reads the event alone, not its blobs.)
    """
    digest = hashlib.sha256(text).hexdigest()
    outer: dict[str, Any] = {"$": "blob", "blob": digest, "size": len(text)}
    if b'"struct"' in text:
        outer["holds"] = "struct"  # whoever looks for objects reads the event alone, too
    if blobs:
        outer["refs"] = [{"blob": inner} for inner in blobs]
    return dump(outer), {**blobs, digest: text}


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reads_as_written(value: Mapping[Any, Any]) -> bool:
    if "$" in value or not all(type(key) is str and _is_utf8(key) for key in value):
        return False
    blob = value.get("blob")
    return type(blob) is not str or _DIGEST.fullmatch(blob) is None


def _list(tagger: Tagger, value: Any) -> Any:
    return tagger.items(value)


def _tuple(tagger: Tagger, value: Any) -> Any:
    return {"$": "tuple", "v": tagger.items(value)}


def _set(tagger: Tagger, value: Any) -> Any:
    kind = kind_of(value)
    name = "frozenset" if kind is frozenset else "set"
    return {"$": name, "v": sorted(tagger.items(value), key=dump)}


def _mapping(tagger: Tagger, value: Any) -> Any:
    return tagger.mapping(value)


def _opaque(tagger: Tagger, value: Opaque) -> Any:
    return {"$": "struct", "type": value.type_name, "v": tagger.mapping(value)}


def _ordered(tagger: Tagger, value: Any) -> Any:
    items = tagger.mapping(value)
    attributes = cast(
        "dict[str, Any]", vars(value)
    )  # torch keeps versions of modules in `_metadata`
    return {"$": "ordered", "v": [items, tagger.mapping(attributes)] if attributes else items}


def _counter(tagger: Tagger, value: Any) -> Any:
    return {"$": "counter", "v": tagger.mapping(value)}


def _deque(tagger: Tagger, value: Any) -> Any:
    return {"$": "deque", "maxlen": value.maxlen, "v": tagger.items(value)}


def _special_float(value: float) -> Any:
    if math.isinf(value):
        return {"$": "float", "v": "inf" if value > 0 else "-inf"}
    bits = struct.pack(">d", value).hex()
    return {"$": "float", "v": "nan" if bits == "7ff8000000000000" else f"nan:{bits}"}


def _int(_: Tagger, value: int) -> Any:
    if -PLAIN_INT < value < PLAIN_INT:
        return value
    text = hex(value)
    if len(text) > INT_HEX_DIGITS:
        raise Refused(f"an int of {value.bit_length()} bits is too long", "store its bytes")
    return {"$": "int", "v": text}


def _decimal(_: Tagger, value: decimal.Decimal) -> Any:
    text = str(value)
    if len(text) > DECIMAL_DIGITS:
        raise Refused(f"a Decimal of {len(text)} digits is too long", "store its text")
    return {"$": "decimal", "v": text}


def _fraction(tagger: Tagger, value: fractions.Fraction) -> Any:
    return {"$": "fraction", "v": tagger.items((value.numerator, value.denominator))}


def _complex(tagger: Tagger, value: complex) -> Any:
    return {"$": "complex", "v": tagger.items((value.real, value.imag))}


def _range(tagger: Tagger, value: range) -> Any:
    return {"$": "range", "v": tagger.items((value.start, value.stop, value.step))}


def _timedelta(_: Tagger, value: dt.timedelta) -> Any:
    return {"$": "timedelta", "v": [value.days, value.seconds, value.microseconds]}


def _clock(tag: str, value: dt.datetime | dt.time) -> Any:
    tree: dict[str, Any] = {"$": tag, "v": value.replace(tzinfo=None).isoformat()}
    if value.fold:
        tree["fold"] = 1
    zone = value.tzinfo
    if zone is None:
        return tree
    if type(zone) is zoneinfo.ZoneInfo and zone.key and ZONE_KEY.fullmatch(zone.key):
        return {**tree, "zone": zone.key}
    if type(zone) is dt.timezone:
        tree["offset"] = zone.utcoffset(None) // _MICROSECOND
        name = zone.tzname(None)
        if name != dt.timezone(zone.utcoffset(None)).tzname(None):
            tree["name"] = name
        return tree
    raise Refused(
        f"cannot keep the time zone {type_name(zone)} exactly",
        "use zoneinfo.ZoneInfo(key), or a fixed datetime.timezone",
    )


_CONTAINERS: dict[type, Callable[[Tagger, Any], Any]] = {
    list: _list,
    FrozenList: _list,
    dict: _mapping,
    FrozenDict: _mapping,
    tuple: _tuple,
    set: _set,
    FrozenSet: _set,
    frozenset: _set,
    Opaque: _opaque,
}
# Only in the state dicts of resources: what is read from state has to be read-only.
_STATE_DICT_CONTAINERS: dict[type, Callable[[Tagger, Any], Any]] = {
    OrderedDict: _ordered,
    Counter: _counter,
    deque: _deque,
}
_SCALARS: dict[type, Callable[[Tagger, Any], Any]] = {
    str: Tagger.text,
    int: _int,
    bytes: lambda tagger, value: tagger.bulk({"$": "bytes"}, value),
    complex: _complex,
    range: _range,
    decimal.Decimal: _decimal,
    fractions.Fraction: _fraction,
    uuid.UUID: lambda _, value: {"$": "uuid", "v": str(value)},
    dt.datetime: lambda _, value: _clock("datetime", value),
    dt.time: lambda _, value: _clock("time", value),
    dt.date: lambda _, value: {"$": "date", "v": value.isoformat()},
    dt.timedelta: _timedelta,
}

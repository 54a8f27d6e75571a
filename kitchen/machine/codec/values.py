"""Values to JSON text and back, exactly.

Rules:

1. What `decode` returns equals what `encode` was given in every bit: types, NaN payloads,
   the sign of zero, the order of dicts, dtypes, shapes. What cannot is refused.
2. Plain JSON stays plain JSON. Everything else is tagged (see `tagging.py`), so a text
   without a "$" is what it looks like.
3. Classes are declared by whoever makes the codec. A recorded name never leads to an import.
4. Pure: blobs are returned by `encode` and asked of `fetch` by `decode`. `fetch` answers for
   the digest; only the size is compared here.
5. Containers that are decoded are read-only, unless `frozen=False`. The fields of declared
   objects are plain either way: the object itself may be changed, and whoever keeps it
   compares encodings to notice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from kitchen.machine.codec.bounds import check_depth, too_deep
from kitchen.machine.codec.declared import check_declarable, reachable
from kitchen.machine.codec.frozen import (
    FrozenDict,
    FrozenList,
    frozen_dict,
    frozen_list,
)
from kitchen.machine.codec.refusals import kind_of
from kitchen.machine.codec.tagging import BLOB_LIMIT, MAX_DEPTH, PLAIN_INT, Tagger, dump, over_limit
from kitchen.machine.codec.untagging import Fetch, Untagger, freeze, inner_text, parse

_NO_BLOBS: Mapping[str, bytes] = MappingProxyType({})
_NO_TYPES: Mapping[str, type] = MappingProxyType({})
_REFERENCE = re.compile(rb'"blob"\s*:\s*"([0-9a-f]{64})"')

_NONE = type(None)
_DICTS = frozenset((dict, FrozenDict))
_CONTAINERS = frozenset((list, FrozenList, dict, FrozenDict))
_PLAIN = _CONTAINERS | {str, bool, int, float, _NONE}
_UNCHECKED = frozenset((str, bool, _NONE))
_STR = {str}


class Encoded(NamedTuple):
    """The JSON text of a value, and the blobs that it refers to, by sha256."""

    json: bytes
    blobs: Mapping[str, bytes]


class Codec:
    """Encodes and decodes; the declared classes are all that it knows beside the built-ins."""

    def __init__(self, types: Mapping[str, type] = _NO_TYPES) -> None:
        for cls in types.values():
            check_declarable(cls)
        self.types = dict(types)
        self._names = {cls: name for name, cls in self.types.items()}

    @classmethod
    def for_types(cls, *roots: Any) -> Codec:
        """A codec that knows every Struct and dataclass in the annotations of `roots`."""
        return cls(reachable(*roots))

    def encode(self, value: Any, *, where: str = "value") -> Encoded:
        """The text of `value`, or `UnencodableValue` naming the place inside `where`."""
        kind = kind_of(value)
        try:
            if kind is float:
                plain = isfinite(value)
            elif kind is int:
                plain = -PLAIN_INT < value < PLAIN_INT
            elif kind in _UNCHECKED:
                plain = True
            else:
                plain = kind in _CONTAINERS and _is_plain(value, 1)
            if plain:
                text = dump(value)
                if len(text) <= BLOB_LIMIT:
                    return Encoded(text, _NO_BLOBS)
                return Encoded(*over_limit(text, _NO_BLOBS))
        except (UnicodeEncodeError, RecursionError):
            pass  # the exact path writes lone surrogates, and says where what is too deep is
        return self._encode_exactly(value, where)

    def decode(
        self,
        json: bytes | msgspec.Raw,
        fetch: Fetch,
        *,
        frozen: bool = True,
        key: str | None = None,
    ) -> Any:
        """The value of a text. `key` is named by what a frozen container raises."""
        text = json if type(json) is bytes else bytes(json)
        if b"$" not in text:
            return _decode_plain(text, key, frozen=frozen)
        tree = parse(text)
        inner = inner_text(tree, fetch)
        if inner is not None:
            if b"$" not in inner:
                return _decode_plain(inner, key, frozen=frozen)
            tree = parse(inner)
        return Untagger(self.types, fetch, frozen=frozen, key=key).run(tree)

    def _encode_exactly(self, value: Any, where: str) -> Encoded:
        tagger = Tagger(self._names)
        text = dump(tagger.run(value, where))
        if len(text) > BLOB_LIMIT:
            return Encoded(*over_limit(text, tagger.blobs))
        return Encoded(text, tagger.blobs or _NO_BLOBS)


def blob_digests(json: bytes | msgspec.Raw) -> list[str]:
    """The blobs that a text needs, each once, in order; those needed by its blobs included."""
    text = json if type(json) is bytes else bytes(json)
    if b'"blob"' not in text:
        return []
    return list(dict.fromkeys(digest.decode() for digest in _REFERENCE.findall(text)))


def _is_plain(value: Any, depth: int) -> bool:
    """Whether msgspec writes this container exactly. All but the last loop runs in C."""
    if type(value) in _DICTS:
        # These two keys have a meaning in recorded JSON; the exact path escapes them.
        if "$" in value or "blob" in value or not set(map(type, value)) <= _STR:
            return False
        items = value.values()
    else:
        items = value
    kinds = set(map(type, items))
    if kinds <= _UNCHECKED:
        return True
    if not kinds <= _PLAIN or depth > MAX_DEPTH:
        return False
    if len(kinds) == 1:
        if float in kinds:
            # One that is not finite makes the sum so. (If the sum overflows, look closer.)
            return isfinite(sum(items)) or all(map(isfinite, items))
        if int in kinds:
            return max(items) < PLAIN_INT and min(items) > -PLAIN_INT
    return all(_is_plain_item(item, depth) for item in items)


def _is_plain_item(item: Any, depth: int) -> bool:
    kind = kind_of(item)
    if kind is float:
        return isfinite(item)
    if kind is int:
        return -PLAIN_INT < item < PLAIN_INT
    return kind not in _CONTAINERS or _is_plain(item, depth + 1)


def _decode_plain(text: bytes, key: str | None, *, frozen: bool) -> Any:
    value = parse(text)
    kind = kind_of(value)
    if kind is not list and kind is not dict:
        return value
    if not frozen:
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
            check_depth(value)
        return value
    if text.find(b"[", 1) < 0 and text.find(b"{", 1) < 0:
        return frozen_list(value, key) if kind is list else frozen_dict(value, key)
    try:
        return freeze(value, key)
    except RecursionError:
        raise too_deep() from None

"""Bounds: what building a recorded value may cost, whoever wrote it.

Rules: a small text must not become much work or much room. What the encoder writes is within
these bounds, but for what nobody keeps: thousands of keys of one hash, or hundreds of megabytes of
copies of one blob.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from kitchen.errors import CorruptValue
from kitchen.machine.codec.tagging import MAX_DEPTH

MOST_COMPARED = 4_000_000
MOST_COPIED = 256 * 1024 * 1024  # bytes, the first copy of each blob apart
_FEW = 1_000
_NESTED = frozenset((list, dict))


def too_deep() -> CorruptValue:
    """The error for what is nested deeper than anything that is encoded."""
    return CorruptValue("a recorded value is nested too deep")


def check_depth(value: Any) -> None:
    """Refuse plain JSON that is nested deeper than a value may be."""
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [each for each in layer if type(each) in _NESTED]
        if not containers:
            return
        layer = []
        for each in containers:
            layer += each.values() if type(each) is dict else each
    if any(type(each) in _NESTED for each in layer):
        raise too_deep()


def check_spread(items: Iterable[Any], count: int) -> None:
    """Refuse elements or keys whose hashes are chosen so that each is compared with all others."""
    if count <= _FEW:
        return
    hashes = list(map(hash, items))
    extra = count - len(set(hashes))  # nothing worth a closer look, nearly always
    if extra * extra > MOST_COMPARED and (
        sum(size * size for size in Counter(hashes).values()) > MOST_COMPARED + count
    ):
        raise ValueError("too many of its elements or keys have the same hash")


class Blobs:
    """The blobs of one value: each is fetched once, however often it is named."""

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        self._fetch = fetch
        self._known: dict[str, bytes] = {}
        self._copied = 0

    def get(self, digest: str, *, copied: bool) -> bytes:
        """The bytes; `copied` says that what is built of them does not share them."""
        data = self._known.get(digest)
        if data is None:
            data = self._known[digest] = self._fetch(digest)
        elif copied:
            self._copied += len(data)
            if self._copied > MOST_COPIED:
                raise CorruptValue(f"blob {digest[:12]} is named too often in one value")
        return data

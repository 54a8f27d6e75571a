"""Items of a stream: as they are given out, as they are recorded, and as they were before a crash.

Rules:

1. What a body sees is a decoded copy. Only what cannot be encoded is given out as it is.
2. An event keeps small items; of every item that can be encoded it keeps a digest.
3. What was taken before is compared by its digest, and not decoded unless it is wanted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Raw

from kitchen.errors import ItemsError, UnencodableValue
from kitchen.machine.codec import Codec
from kitchen.machine.codec.refusals import kind_of
from kitchen.machine.events import NOTHING, ItemTaken, Manifest

INLINE_LIMIT = 1024  # bytes of an item's text that is kept in its event
LARGE = 32 * 1024  # bytes, or elements, of an item that is encoded off the event loop
SLOW_SECONDS = 0.002
_OVER_HINT = (
    "`over` must give the same items again: draw what is random from ctx.rng, shuffle by seed"
)
_STATE_HINT = (
    "its state_dict() must say all that decides what comes next, and stand right behind the item "
    "that was given last: a loader counts before it gives an item, not after"
)
_NO_BLOBS: Mapping[str, bytes] = {}


class Past(NamedTuple):
    """What the log knows of the items already taken in this visit of the loop.

    `digests` by index, "" where an item could not be encoded; `source` the source's state once
    item `at` was out (-1: none). `at` lies before the last item, so that this can be had again.
    """

    digests: Sequence[str] = ()
    source: Manifest | None = None
    at: int = -1


class Pulled(NamedTuple):
    """An item: what the body sees, and the event that records it. (Events of items name no blob.)"""

    item: Any
    event: ItemTaken
    blobs: Mapping[str, bytes] = _NO_BLOBS

    def with_source(self, manifest: Manifest) -> Pulled:
        """The same, and the state of the source once it was out."""
        return self._replace(event=msgspec.structs.replace(self.event, source=manifest))


class Taken:
    """The items of a stream in the order of their indices; `digests` of those taken before."""

    def __init__(
        self, where: str, codec: Codec, digests: Sequence[str], *, put_back: bool = False
    ) -> None:
        """`put_back`: the source is put back by its state, and not asked from its begin."""
        self._put_back = put_back
        self.count = len(digests)
        self._where = where
        self._codec = codec
        self._digests = digests

    def seen(self, index: int, item: Any) -> Pulled | None:
        """The item as it is given out and recorded; None if it is only skipped.

        Raises `ItemsError` where it is not what was recorded.
        """
        recorded = ""
        if index < self.count:
            recorded = self._digests[index]
        elif self._digests:
            self._digests = ()  # there may be millions
        skipped = index < self.count - 1
        if skipped and not recorded:
            return None
        try:
            text, blobs = self._codec.encode(item)
        except UnencodableValue:
            return None if skipped else Pulled(item, ItemTaken())
        digest = blake2b(text, digest_size=8).hexdigest()
        if recorded and digest != recorded:
            raise ItemsError(
                f"item {index} of the stream {self._where} is not what it was: recorded "
                f"{recorded}, found {digest}",
                hint=_STATE_HINT if self._put_back else _OVER_HINT,
            )
        if skipped:
            return None
        value = Raw(text) if len(text) <= INLINE_LIMIT and not blobs else NOTHING
        copy = self._codec.decode(text, blobs.__getitem__)
        return Pulled(copy, ItemTaken(value, digest))

    def timed(self, index: int, item: Any) -> tuple[Pulled | None, bool]:
        """`seen`, and whether it took long."""
        began = time.perf_counter()
        return self.seen(index, item), time.perf_counter() - began > SLOW_SECONDS

    def check_ended(self, index: int, first: int) -> None:
        """Whether a source may end before item `index`; it was put back to item `first`.

        Raises `ItemsError`.
        """
        if index < self.count:
            begin = f", put back to item {first}," if first else ""
            raise ItemsError(
                f"{self.count} items of the stream {self._where} had been taken; asked again, its "
                f"source{begin} gave {index - first}",
                hint="`over` must give the same items again, from the state as the loop was "
                "entered; was something removed since?",
            )


def is_large(item: Any, depth: int = 2) -> bool:
    """Whether encoding it would keep an event loop waiting: a guess that looks at little of it."""
    if isinstance(item, str | bytes):
        return len(item) > LARGE
    if isinstance(item, list | tuple | dict | set | frozenset):
        many = cast("Any", item)
        if depth == 0 or len(many) > LARGE:
            return len(many) > LARGE
        inside = many.values() if isinstance(item, dict) else many
        return any(is_large(each, depth - 1) for each in itertools.islice(inside, 16))
    return _size(item) > LARGE


def _size(item: Any) -> int:
    """The bytes of an array or a tensor."""
    size = item.nbytes if hasattr(kind_of(item), "nbytes") else 0
    return size if isinstance(size, int) else 0

"""A loop's items: how they are recorded at entry, and how they are had again.

Rules:

1. A `range` is recorded as a range; few small items in the event; more in a blob, which the
   same items share however often they are looped over.
2. Items that are very large, or that cannot be encoded, are recorded by digest only. After a
   crash `over` is asked again, with the state as of entry, and every digest is compared. If `over`
   looked at a stateful resource it could not be asked again, so then the items are kept.
3. What a body sees is a decoded copy, frozen: a resumed body sees the same. Only what cannot be
   encoded is given out as it is.
4. `loop` takes its whole collection at entry. One without a length that does not end is refused.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Raw

from kitchen.errors import ItemsError, UnencodableValue
from kitchen.log.journal import Journal
from kitchen.machine.codec import Codec
from kitchen.machine.events import (
    Address,
    BlobItems,
    Collection,
    InlineItems,
    RangeItems,
    RefItems,
    spell,
)

INLINE_LIMIT = 4 * 1024
TOTAL_LIMIT = 16 * 1024 * 1024
UNSIZED_LIMIT = 1_000_000


class Recorded(NamedTuple):
    """A collection as it goes into the log, and as the body will see it.

    `checkable`: whether items that are asked for again can be compared with these.
    """

    collection: Collection
    items: Sequence[Any]
    blobs: dict[str, bytes]
    checkable: bool = True


class ByReference(Sequence[Any]):
    """Items that the log does not hold, each given out as a decoded copy where it can be encoded."""

    def __init__(self, items: Sequence[Any], codec: Codec) -> None:
        self.items = items
        self._codec = codec
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        known, item = self._last  # read once: branches share this
        if known != index:
            try:
                text, blobs = self._codec.encode(self.items[index])
            except UnencodableValue:
                return self.items[index]
            item = self._codec.decode(text, blobs.__getitem__)
            self._last = index, item
        return item


def materialise(given: Any, address: Address) -> Sequence[Any]:
    """All items of what `over` returned.

    Raises `ItemsError` where it is not iterable, or seems not to end.
    """
    where = spell(*address)
    if isinstance(given, range):
        return given
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise ItemsError(
            f"the loop {where} cannot go over a {type(given).__name__}",
            hint="`over` returns a range, a list or another finite iterable",
        )
    source = cast("Iterable[Any]", given)
    if isinstance(source, Sized):
        return list(source)
    items = list(itertools.islice(source, UNSIZED_LIMIT + 1))
    if len(items) > UNSIZED_LIMIT:
        raise ItemsError(
            f"the loop {where} got an iterator of more than {UNSIZED_LIMIT:,} items",
            hint="`loop` takes all its items at entry; give a list or a range, or draw the items "
            "in the body",
        )
    return items


def record(items: Sequence[Any], codec: Codec, address: Address, *, keep: bool = False) -> Recorded:
    """How to record these items; with `keep`, all that can be encoded, however large."""
    if isinstance(items, range):
        ranged = RangeItems(len(items), items.start, items.step)
        return Recorded(ranged, items, {})
    texts: list[bytes] = []
    blobs: dict[str, bytes] = {}
    total, exact = 0, True
    for index, item in enumerate(items):
        try:
            encoded = codec.encode(item, where=f"item {index} of the loop {spell(*address)}")
        except UnencodableValue:
            texts.append(b"")
            exact = False
            continue
        texts.append(encoded.json)
        total += len(encoded.json) + sum(map(len, encoded.blobs.values()))
        fits = keep or total <= TOTAL_LIMIT
        if fits and exact:
            blobs.update(encoded.blobs)
        elif blobs:
            blobs = {}
    if not exact or not (keep or total <= TOTAL_LIMIT):
        return _by_reference(items, texts, codec)
    text = b"[%b]" % b",".join(texts)
    kept = list(_decoded(text, codec, blobs.__getitem__))
    if len(text) <= INLINE_LIMIT and not blobs:
        return Recorded(InlineItems(len(texts), Raw(text)), kept, {})
    digest = hashlib.sha256(text).hexdigest()
    return Recorded(BlobItems(len(texts), digest), kept, {**blobs, digest: text})


def _by_reference(items: Sequence[Any], texts: list[bytes], codec: Codec) -> Recorded:
    digests = [hashlib.sha256(text).hexdigest() if text else "" for text in texts]
    body = msgspec.json.encode(digests)
    digest = hashlib.sha256(body).hexdigest()
    borrowed = ByReference(items, codec)
    return Recorded(RefItems(len(texts), digest), borrowed, {digest: body}, all(digests))


def recorded_items(collection: Collection, journal: Journal, codec: Codec) -> Sequence[Any] | None:
    """The items that the log holds; None where it holds only digests.

    Raises `BlobLost`, and `CorruptValue` where a text does not decode.
    """
    match collection:
        case RangeItems():
            stop = collection.start + collection.count * collection.step
            return range(collection.start, stop, collection.step)
        case InlineItems():
            return list(_decoded(bytes(collection.values), codec, journal.fetch))
        case BlobItems():
            return list(_decoded(journal.fetch(collection.blob), codec, journal.fetch))
        case _:
            return None


def check_again(
    items: Sequence[Any], collection: RefItems, journal: Journal, codec: Codec, address: Address
) -> None:
    """Compare items that were fetched again with the digests that were recorded.

    Raises `ItemsError` naming the index and both digests.
    """
    where = spell(*address)
    if len(items) != collection.count:
        raise ItemsError(
            f"the loop {where} had {collection.count} items; asked again, there are {len(items)}"
        )
    digests = msgspec.json.decode(journal.fetch(collection.blob), type=list[str])
    found = _digests(items, codec)
    for index, (was, now) in enumerate(zip(digests, found, strict=True)):
        if was != now:
            raise ItemsError(
                f"item {index} of the loop {where} is not what it was: recorded {was[:12]}, "
                f"found {now[:12]}",
                hint="`over` must give the same items when it is asked again; draw what is "
                "random from ctx.rng",
            )


def _digests(items: Sequence[Any], codec: Codec) -> Iterator[str]:
    """The digest of each item, "" where it cannot be encoded."""
    for item in items:
        try:
            yield hashlib.sha256(codec.encode(item).json).hexdigest()
        except UnencodableValue:
            yield ""


def _decoded(text: bytes, codec: Codec, fetch: Any) -> Iterator[Any]:
    for raw in msgspec.json.decode(text, type=list[Raw]):
        yield codec.decode(raw, fetch)

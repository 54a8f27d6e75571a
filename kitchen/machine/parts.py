"""What events are made of: addresses, failures, hosts, collections, manifests.

Rules: frozen data, read leniently as events are. A value of the user is `Raw`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

Visit: TypeAlias = tuple[int, ...]


class Address(NamedTuple):
    """A place in a run: a node's path and the loop indices under which it is entered."""

    path: str
    visit: Visit = ()

    def __str__(self) -> str:
        return spell(self.path, self.visit)


def spell(path: str, visit: Visit, loops: tuple[str, ...] | None = None) -> str:
    """`epochs[2]/batches[17]/step`. Without `loops` (their paths), the visit is put last.

    A visit with one index more than there are loops around is one of the node's own body.
    """
    if not visit:
        return path
    if loops is None:
        return f"{path}[{','.join(map(str, visit))}]"
    indices = dict(zip((*loops, path), visit, strict=False))
    parts: list[str] = []
    prefix = ""
    for name in path.split("/"):
        prefix = f"{prefix}/{name}" if prefix else name
        parts.append(f"{name}[{indices[prefix]}]" if prefix in indices else name)
    return "/".join(parts)


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """The base of all events."""


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception, told in text: it can be shown anywhere, and nothing is unpickled to do so."""

    type: str
    message: str = ""
    traceback: str = ""
    hint: str = ""


class Host(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a process ran, and on what."""

    pid: int = 0
    host: str = ""
    versions: dict[str, str] = {}


class Items(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="as"):
    """The base of the ways to record a loop's items; `count` is how many there are."""

    count: int


class RangeItems(Items, frozen=True, tag="range"):
    """A `range`."""

    start: int = 0
    step: int = 1


class InlineItems(Items, frozen=True, tag="inline"):
    """Few and small: a JSON array of encoded items."""

    values: Raw = Raw(b"[]")


class BlobItems(Items, frozen=True, tag="blob"):
    """A JSON array of encoded items, in a blob; the same items are stored once."""

    blob: str = ""


class RefItems(Items, frozen=True, tag="refs"):
    """Too large to keep: digests only ("" where none can be had), in a blob, as a JSON array.

    After a crash the items are asked for again, and checked.
    """

    blob: str = ""


class OpenItems(Items, frozen=True, tag="open"):
    """Given one at a time, by a stream or by a producer; nobody knows how many (-1)."""

    count: int = -1


Collection: TypeAlias = RangeItems | InlineItems | BlobItems | RefItems | OpenItems


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A saved state dict: its tree as JSON text, which names its blobs."""

    tree: Raw
    size: int = 0

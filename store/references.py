"""Which blobs a log names: in the payloads of events, and in blobs that are JSON text themselves.

Rules: a payload names a blob by a member `"blob"` with a digest. As a blob may also be a user's own
bytes, only what has the whole shape of a reference counts there: `"blob"` and `"size"` in one
object. Nothing else knows how a blob is named.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MARK = '"blob"'  # a payload without it names no blob

# inside a JSON string every quote is escaped, so that only a real member matches
_BLOB = re.compile(r'"blob"\s*:\s*"([0-9a-f]{64})"')
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_OPENERS = (b"[", b"{")


def in_payload(payload: str) -> list[str]:
    """The blobs that the payload of an event names."""
    return _BLOB.findall(payload)


def may_name(beginning: bytes) -> bool:
    """Whether a blob that begins so may name others; most are no JSON, and name none."""
    return beginning[:1] in _OPENERS


def in_blob(content: bytes) -> tuple[str, ...]:
    """The blobs that a blob names."""
    if not may_name(content) or b'"blob"' not in content or b'"size"' not in content:
        return ()
    try:
        tree = DECODER.decode(content.decode())
    except (ValueError, RecursionError):
        return ()
    names: list[str] = []
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            members = cast("dict[str, Any]", node)
            digest = members.get("blob")
            if type(members.get("size")) is int and type(digest) is str and _DIGEST.match(digest):
                names.append(digest)
            stack += reversed(members.values())
        elif isinstance(node, list):
            stack += reversed(cast("list[Any]", node))
    return tuple(names)


def reached(payloads: Iterable[str], document: Callable[[str], bytes]) -> Iterator[str]:
    """Every blob that payloads name, or blobs that they name, once each.

    `document` gives what a blob holds, or nothing where that can name no other.
    """
    seen: set[str] = set()
    for payload in payloads:
        stack = in_payload(payload)
        while stack:
            digest = stack.pop()
            if digest not in seen:
                seen.add(digest)
                yield digest
                stack += in_blob(document(digest))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


DECODER = json.JSONDecoder(parse_constant=_refuse)

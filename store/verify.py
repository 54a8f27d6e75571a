"""Is the log what was written? The checks, for a store of any kind.

Rules: `verify` reports and never raises for what it finds, and never stops at the first finding.
After a bad event the check goes on from what the file holds, so that one edit is one finding and
not a thousand. Of a blob that several events name, each naming is reported; its bytes are read
once. A tail that was cut off leaves a log that agrees with itself: it is noticed because a later
seq was sealed (at a snapshot, at the end of a lease, at close) or has a snapshot.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from store.errors import BlobCorrupt, BlobMissing, StoreError
from store.records import Finding, genesis, link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from store.protocol import BlobStore

# inside a JSON string every quote is escaped, so that only a real member matches
_BLOB = re.compile(r'"blob"\s*:\s*"([0-9a-f]{64})"')


class RawEvent(NamedTuple):
    """An event as it stands in the file; a type or path is None where its name is gone."""

    seq: int
    type: str | None
    path: str | None
    visit: str
    attempt: int
    payload: str
    chain: bytes


class Sealed(NamedTuple):
    """What an earlier, orderly moment said of a run: its head, its chain, its last snapshot."""

    seq: int
    chain: bytes
    snapshot: int


class Verifier:
    """Checks runs one after another; remembers which blobs it has read."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._read: dict[str, tuple[str, str] | None] = {}

    def check(self, run: str, events: Iterable[RawEvent], sealed: Sealed) -> Iterator[Finding]:
        last, chain = 0, genesis(run)
        known = True
        for event in events:
            if event.seq != last + 1:
                yield _gap(run, last, event.seq)
                known = False
            if known:
                yield from _chain(run, event, chain)
            yield from self._payload(run, event)
            if event.seq == sealed.seq and event.chain != sealed.chain:
                what = "the chain differs from the one sealed here: the run was rewritten"
                yield Finding("head", run, event.seq, what)
            last, chain, known = event.seq, event.chain, True
        yield from _tail(run, last, sealed)

    def _payload(self, run: str, event: RawEvent) -> Iterator[Finding]:
        fault = json_fault(event.payload)
        if fault is not None:
            yield Finding("payload", run, event.seq, f"the payload is no JSON: {fault}")
        if '"blob"' not in event.payload:
            return
        for digest in _BLOB.findall(event.payload):
            fault = self._blob(digest)
            if fault is not None:
                yield Finding(fault[0], run, event.seq, fault[1])

    def _blob(self, digest: str) -> tuple[str, str] | None:
        if digest not in self._read:
            fault = None
            try:
                self._blobs.get(digest)
            except BlobMissing:
                fault = "blob-missing", f"blob {digest} is missing"
            except BlobCorrupt as error:
                fault = "blob-corrupt", f"blob {digest} is damaged: it hashes to {error.found}"
            except (OSError, StoreError) as error:
                fault = "blob-corrupt", f"blob {digest} cannot be read: {error}"
            self._read[digest] = fault
        return self._read[digest]


def json_fault(text: str) -> str | None:
    """Why a text is no JSON; NaN and Infinity, which Python's reader accepts, are none."""
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _chain(run: str, event: RawEvent, before: bytes) -> Iterator[Finding]:
    if event.type is None or event.path is None:
        which = "type" if event.type is None else "path"
        yield Finding("chain", run, event.seq, f"the name of its {which} is gone from the file")
        return
    rest = event.type, event.path, event.visit, event.attempt, event.payload
    if link(before, event.seq, *rest) != event.chain:
        what = "the event or its chain was changed after it was written"
        yield Finding("chain", run, event.seq, what)


def _gap(run: str, last: int, found: int) -> Finding:
    missing = str(last + 1) if found == last + 2 else f"{last + 1} to {found - 1}"
    return Finding("gap", run, last + 1, f"missing from the log: seq {missing}")


def _tail(run: str, last: int, sealed: Sealed) -> Iterator[Finding]:
    if last < sealed.seq:
        what = f"the log ends at seq {last}, and had reached seq {sealed.seq}"
        yield Finding("head", run, last + 1, what)
    elif last < sealed.snapshot:
        what = f"the log ends at seq {last}, and there is a snapshot of seq {sealed.snapshot}"
        yield Finding("snapshot", run, last + 1, what)

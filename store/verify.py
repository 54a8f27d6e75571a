"""Is the log what was written? The checks, for a store of any kind.

Rules: `verify` reports and never raises for what it finds, and never stops at the first finding.
After a bad event the check goes on from what the file holds, so that one edit is one finding and
not a thousand. Of a blob that several events name, each naming is reported; its bytes are read
once. A tail that was cut off leaves a log that agrees with itself: it is noticed because a later
seq was sealed (at a snapshot, at the end of a lease, at close) or has a snapshot. Blobs that blobs
name are followed. What is wrong in a part that forks share is told of the run that owns it, and
once of each fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from store.errors import BlobCorrupt, BlobMissing, StoreError
from store.records import Finding, fits, link
from store.references import DECODER, MARK, in_blob, in_payload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from store.lineage import Lineage
    from store.protocol import BlobStore


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


class RawSnapshot(NamedTuple):
    """A snapshot as it stands; `chain` is that of the event at its seq, None where it is gone."""

    seq: int
    chain: bytes | None
    key: str
    body: bytes
    digest: bytes


class Verifier:
    """Checks runs one after another; remembers which blobs it has read, and what it has found."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        # digest -> what is wrong with it, and the blobs that it names
        self._read: dict[str, tuple[tuple[str, str] | None, tuple[str, ...]]] = {}
        self._found: dict[str, list[Finding]] = {}

    def check(
        self,
        line: Lineage,
        start: bytes | None,
        events: Iterable[RawEvent],
        sealed: Sealed,
        snapshots: Iterable[RawSnapshot],
    ) -> list[Finding]:
        """What is wrong with a run, whose parents must have been checked before.

        `events` and `snapshots` are its own; `start` is what the first is chained to, or None.
        """
        own = list(self._own(line, start, events, sealed, snapshots))
        self._found[line.own.run] = own
        return [*self._shared(line), *own]

    def _own(
        self,
        line: Lineage,
        start: bytes | None,
        events: Iterable[RawEvent],
        sealed: Sealed,
        snapshots: Iterable[RawSnapshot],
    ) -> Iterator[Finding]:
        run, last, chain = line.own.run, line.own.after, start
        if start is None:
            yield _gap(run, last - 1, last + 1)
        for event in events:
            if event.seq != last + 1:
                yield _gap(run, last, event.seq)
                chain = None
            if chain is not None:
                yield from _chain(run, event, chain)
            yield from self._payload(run, event)
            if event.seq == sealed.seq and event.chain != sealed.chain:
                yield _rewritten(run, event.seq)
            last, chain = event.seq, event.chain
        yield from _tail(run, last, sealed)
        for snapshot in snapshots:
            # one behind the end is told by the tail
            if snapshot.seq <= last and not fits(line.root, *snapshot):
                what = f"the snapshot {snapshot.key!r} was not made of the log as it stands here"
                yield Finding("snapshot", run, snapshot.seq, what)

    def _shared(self, line: Lineage) -> Iterator[Finding]:
        """The first thing that is wrong with what a fork shares with each of its parents."""
        for part in line.parts[:-1]:
            for kind, owner, seq, what in self._found.get(part.run, ()):
                if kind != "snapshot" and seq is not None and seq <= part.until:
                    shared = f"in the part that it shares with run {owner!r}: {what}"
                    yield Finding(kind, line.own.run, seq, shared)
                    break

    def _payload(self, run: str, event: RawEvent) -> Iterator[Finding]:
        fault = json_fault(event.payload)
        if fault is not None:
            yield Finding("payload", run, event.seq, f"the payload is no JSON: {fault}")
        if MARK not in event.payload:
            return
        for kind, what in self._blobs_of(in_payload(event.payload)):
            yield Finding(kind, run, event.seq, what)

    def _blobs_of(self, digests: list[str]) -> Iterator[tuple[str, str]]:
        """What is wrong with these blobs and those that they name, each told once."""
        seen: set[str] = set()
        stack = [(digest, "") for digest in reversed(digests)]
        while stack:
            digest, outer = stack.pop()
            if digest in seen:
                continue
            seen.add(digest)
            if digest not in self._read:
                self._read[digest] = self._look(digest)
            fault, inner = self._read[digest]
            if fault is not None:
                kind, what = fault
                yield kind, f"{what} (blob {outer} names it)" if outer else what
            stack += [(each, digest) for each in reversed(inner)]

    def _look(self, digest: str) -> tuple[tuple[str, str] | None, tuple[str, ...]]:
        try:
            return None, in_blob(self._blobs.get(digest))
        except BlobMissing:
            fault = "blob-missing", f"blob {digest} is missing"
        except BlobCorrupt as error:
            fault = "blob-corrupt", f"blob {digest} is damaged: it hashes to {error.found}"
        except (OSError, StoreError) as error:
            fault = "blob-corrupt", f"blob {digest} cannot be read: {error}"
        return fault, ()


def follow(
    line: Lineage,
    events: Iterable[RawEvent],
    *,
    after: int,
    start: bytes | None,
    head: int,
    sealed: Sealed,
    until: int | None = None,
) -> Iterator[Finding]:
    """Whether a run may be continued from seq `after`: `events` are those behind it, up to `until`.

    `start` is the chain at `after`, None where there is none. Payloads are not looked at.
    """
    run = line.own.run
    borders = {part.after for part in line.parts[1:]}
    stop = head if until is None else min(head, until)
    yield from _beginning(run, after, start, head, sealed, whole=until is None or until > head)
    if head < after:
        return
    last, chain = after, start if start is None else line.grafted(after, start)
    for event in events:
        seq, type_, path, visit, attempt, payload, own = event
        if seq != last + 1:
            yield _gap(run, last, seq)
        elif chain is not None and (
            type_ is None
            or path is None
            or link(chain, seq, type_, path, visit, attempt, payload) != own
        ):
            yield from _chain(run, event, chain)
        if seq == sealed.seq and own != sealed.chain:
            yield _rewritten(run, seq)
        last, chain = seq, line.grafted(seq, own) if seq in borders else own
    if last < stop:
        yield _gap(run, last, stop + 1)


def _beginning(
    run: str, after: int, start: bytes | None, head: int, sealed: Sealed, *, whole: bool
) -> Iterator[Finding]:
    if whole and head < sealed.seq:
        what = f"the log ends at seq {head}, but {sealed.seq} was sealed"
        yield Finding("head", run, head + 1, what)
    elif head < after:
        what = f"the log ends at seq {head}, and was to be continued from seq {after}"
        yield Finding("head", run, head + 1, what)
    if head < after:
        return
    if start is None:
        yield _gap(run, after - 1, after + 1)
    elif after and after == sealed.seq and start != sealed.chain:
        yield _rewritten(run, after)


def json_fault(text: str) -> str | None:
    """Why a text is no JSON; NaN and Infinity, which Python's reader accepts, are none."""
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _chain(run: str, event: RawEvent, before: bytes) -> Iterator[Finding]:
    if event.type is None or event.path is None:
        which = "type" if event.type is None else "path"
        yield Finding("chain", run, event.seq, f"the name of its {which} is gone from the file")
        return
    rest = event.type, event.path, event.visit, event.attempt, event.payload
    if link(before, event.seq, *rest) != event.chain:
        what = "the event or its chain was changed after it was written"
        yield Finding("chain", run, event.seq, what)


def _rewritten(run: str, seq: int) -> Finding:
    what = "the chain differs from the one sealed here: the run was rewritten"
    return Finding("head", run, seq, what)


def _gap(run: str, last: int, found: int) -> Finding:
    missing = str(last + 1) if found == last + 2 else f"{last + 1} to {found - 1}"
    return Finding("gap", run, last + 1, f"missing from the log: seq {missing}")


def _tail(run: str, last: int, sealed: Sealed) -> Iterator[Finding]:
    if sealed.chain and not sealed.seq:
        yield Finding("head", run, None, "a chain was sealed, and its seq is gone")
    if last < sealed.seq:
        what = f"the log ends at seq {last}, and had reached seq {sealed.seq}"
        yield Finding("head", run, last + 1, what)
    elif last < sealed.snapshot:
        what = f"the log ends at seq {last}, and there is a snapshot of seq {sealed.snapshot}"
        yield Finding("snapshot", run, last + 1, what)

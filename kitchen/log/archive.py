"""A run with its blobs as one file, to be kept or to be read into another store.

Rules:

1. A fork is written whole, and becomes a run of its own. Snapshots are a cache, and stay behind.
2. A damaged run is not written, nor one that lacks blobs. The file is whole or absent.
3. What is read may have been made by anybody: no more of it is unpacked than its `run.json` says,
   and nothing counts before all of it was checked. The run appears in one transaction. Blobs that
   were stored before a failure stay, until a collection takes what no run names.
4. Of events a batch is in memory at a time, of blobs one, however large the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import ZIP_DEFLATED, ZipFile

import msgspec

from kitchen.errors import (
    ArgumentError,
    BlobLost,
    CorruptStore,
    HistoryError,
    RunExists,
    StoreError,
)
from kitchen.log.container import (
    BLOB,
    BLOBS,
    EVENTS,
    FORMAT,
    LONGEST_LINE,
    MOST_BLOBS,
    RUN,
    Line,
    Told,
    damaged,
    member_of,
    opened,
    telling,
    writing,
)
from kitchen.log.reader import check
from kitchen.machine.codec.values import blob_digests
from kitchen.ports.event_store import EventStore, NewEvent, RunInfo

_BATCH = 1 << 20
_SHOWN = 3  # digests in a message


class Exported(NamedTuple):
    """What a file holds; `size` in bytes, that of the file."""

    path: Path
    run: str
    events: int
    blobs: int
    size: int


class _Written(NamedTuple):
    """What became of the events: their bytes, the hash over these, the last chain."""

    size: int
    sha256: str
    chain: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode
_look_over = msgspec.json.Decoder(msgspec.Raw).decode


# --- writing --------------------------------------------------------------------------------------


def export(store: EventStore, run: str, target: Path, *, replace: bool = False) -> Exported:
    """Write a run, up to its head as of now, and its blobs to one file. The run may be held.

    Raises `UnknownRun`, `ArgumentError` where the target exists and is not to be replaced,
    `CorruptStore` where the run is damaged, `BlobLost` where blobs are, `StoreError` where the file
    cannot be written.
    """
    info = store.run(run)
    target = Path(target)
    _refuse_target(target, replace=replace)
    if info.head == 0:
        raise HistoryError(f"the log of run {run!r} is empty: there is nothing to export")
    check(store, run, 0, info.head)
    digests = _blobs_of(store, run)
    with writing(target) as file, ZipFile(file, "w") as archive:
        events = _write_events(store, info, archive)
        size = 0
        for digest in digests:
            data = store.blobs.get(digest, named_by=f"run {run!r}")
            size += len(data)
            archive.writestr(member_of(BLOBS + digest), data)
        told = Told(
            FORMAT, run, info.name, info.created_at, info.head, events.chain, info.parent,
            info.forked_at, events.size, events.sha256, len(digests), size,
        )  # fmt: skip
        archive.writestr(member_of(RUN), msgspec.json.format(_encode(told)))
    return Exported(target, run, info.head, len(digests), target.stat().st_size)


def _refuse_target(target: Path, *, replace: bool) -> None:
    if target.is_dir():
        raise ArgumentError(f"{target} is a folder", hint="name a file in it")
    if target.exists() and not replace:
        raise ArgumentError(
            f"{target} exists already, and was left as it is",
            hint="name another file, or have it replaced (replace=True, --replace)",
        )


def _blobs_of(store: EventStore, run: str) -> list[str]:
    """The blobs that a run needs, all of which are there."""
    digests = sorted(store.named_blobs(run))
    if len(digests) > MOST_BLOBS:
        raise StoreError(
            f"run {run!r} names {len(digests)} blobs; an export holds up to {MOST_BLOBS}",
            hint="copy the whole store, with the folder of its blobs",
        )
    missing = [digest for digest in digests if not store.blobs.has(digest)]
    if missing:
        raise BlobLost(
            f"run {run!r} cannot be exported: {_listed(missing)} that it names are missing",
            hint="bring the folder of blobs back beside the store",
        )
    return digests


def _write_events(store: EventStore, info: RunInfo, archive: ZipFile) -> _Written:
    run, digest, size, count, chain = info.run, sha256(), 0, 0, b""
    batch = bytearray()
    with archive.open(member_of(EVENTS, ZIP_DEFLATED), "w", force_zip64=True) as member:
        for record in store.read(run, until=info.head):
            line = _encode(Line(*record[2:8]))
            if len(line) >= LONGEST_LINE:
                raise StoreError(f"event {record.seq} of run {run!r} is too large: {len(line)} B")
            batch += line
            batch += b"\n"
            if len(batch) >= _BATCH:
                digest.update(batch)
                size += member.write(batch)
                batch = bytearray()
            count, chain = count + 1, record.chain
        digest.update(batch)
        size += member.write(batch)
    if count != info.head:
        raise CorruptStore(f"run {run!r} has {count} events, and {info.head} were expected")
    return _Written(size, digest.hexdigest(), chain.hex())


# --- reading --------------------------------------------------------------------------------------


def import_run(store: EventStore, source: Path, *, run: str | None = None) -> str:
    """Read an exported run into a store, under its own id or another; the id.

    For as long as the events are taken in, no other process can write to the store.

    Raises `RunExists`, `ForeignStore` where the file is no export or that of a newer version,
    `CorruptStore` where it is damaged, `BlobLost` where it lacks a blob, `StoreError`.
    """
    source = Path(source)
    if run == "":
        raise ArgumentError("a run needs an id that is not empty")
    with opened(source) as (archive, told):
        name = told.run if run is None else run
        _refuse_known(store, name)
        held = _take_blobs(store, archive, told, source)
        events = _events(archive, told, held, source)
        store.adopt_run(name, told.workflow, told.created_at, events)
    if told.parent is None and name == told.run:
        _compare_chains(store, told, source)
    return name


def _refuse_known(store: EventStore, run: str) -> None:
    try:
        store.run(run)
    except LookupError:
        return
    raise RunExists(
        f"there is a run {run!r} already", hint="import it under another id: run_id=, or --id"
    )


def _compare_chains(store: EventStore, told: Told, source: Path) -> None:
    """Only a forged file has the right hash over its lines and another chain."""
    last = store.latest(told.run)
    if last is None or last.chain.hex() != told.chain:
        store.remove_runs([told.run])
        raise damaged(source, "its events do not lead to the chain that it tells of")


def _take_blobs(store: EventStore, archive: ZipFile, told: Told, source: Path) -> set[str]:
    """Store the blobs of a file; their digests."""
    held: set[str] = set()
    left = told.blobs_size
    for member in archive.infolist():
        match = BLOB.fullmatch(member.filename)
        if match is None:
            continue
        with telling(source), archive.open(member) as file:
            data = file.read(min(left, member.compress_size) + 1)
        left -= len(data)
        if left < 0:
            raise damaged(source, f"its blobs are larger than the {told.blobs_size} B it tells of")
        try:
            found = store.blobs.put(data)
        except StoreError as error:
            error.hint = "nothing was imported; import it again once there is space"
            raise
        if found != match[1]:
            raise damaged(source, f"the bytes of blob {match[1]} hash to {found}")
        held.add(found)
    if len(held) != told.blobs or left:
        raise damaged(source, f"it holds {len(held)} blobs and tells of {told.blobs}")
    return held


def _events(
    archive: ZipFile, told: Told, held: set[str], source: Path
) -> Iterator[tuple[int, NewEvent]]:
    """The events, which are right only if this comes to its end.

    Raises `CorruptStore`, and `BlobLost` where one names a blob that is not held.
    """
    digest, left, count = sha256(), told.events_size, 0
    with telling(source), archive.open(EVENTS) as member:
        file = BufferedReader(cast("Any", member), _BATCH)
        while line := file.readline(min(left, LONGEST_LINE) + 1):
            left -= len(line)
            count += 1
            if left < 0:
                what = f"its events are larger than the {told.events_size} B it tells of"
                raise damaged(source, what)
            digest.update(line)
            event = _event(line, count, source)
            if '"blob"' in event.payload:
                _refuse_missing(blob_digests(event.payload.encode()), held, count, source)
            yield event.at, NewEvent(*msgspec.structs.astuple(event)[1:])
    if count != told.head or left or digest.hexdigest() != told.events_sha256:
        raise damaged(source, f"its {count} events are not the {told.head} that it tells of")


def _event(line: bytes, seq: int, source: Path) -> Line:
    if not line.endswith(b"\n"):
        raise damaged(source, f"event {seq} is cut off, or too long")
    try:
        event = _decode(line)
        _look_over(event.payload)
    except (ValueError, RecursionError) as error:
        raise damaged(source, f"event {seq}: {error}") from None
    return event


def _refuse_missing(digests: list[str], held: set[str], seq: int, source: Path) -> None:
    missing = [digest for digest in digests if digest not in held]
    if missing:
        raise BlobLost(
            f"{source} lacks {_listed(missing)} that its event {seq} names; nothing was imported",
            hint="export the run anew from the store that has it",
        )


def _listed(digests: list[str]) -> str:
    more = f" and {len(digests) - _SHOWN} more" if len(digests) > _SHOWN else ""
    return f"blobs {', '.join(digests[:_SHOWN])}{more}"

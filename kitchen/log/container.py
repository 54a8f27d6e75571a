"""The zip file that an exported run is: written whole or not at all, read without trust.

Rules:

1. `run.json` says what the run is and how much the rest holds, `events.jsonl` has an event a line,
   `blobs/<sha256>` what they name. Nothing in it tells when or where it was written, so that a run
   always gives the same bytes.
2. Writing: to a temporary name beside the target, synced, renamed. A process that is killed leaves
   the temporary file; a later export to the same target takes it once it is a day old.
3. Reading: the file may have been made by anybody. No size in it is believed, no name in it becomes
   a path, and a directory that is larger than that of any export is not even read.
"""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Annotated
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import msgspec
from msgspec import Meta

from kitchen.errors import CorruptStore, ForeignStore, KitchenError, StoreError

FORMAT = 1
RUN, EVENTS, BLOBS = "run.json", "events.jsonl", "blobs/"
MOST_BLOBS = 200_000
LONGEST_LINE = 1 << 28  # bytes of an event

BLOB = re.compile(r"blobs/([0-9a-f]{64})")
_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_READABLE = 0o100644 << 16
_MOST_DIRECTORY = 160 * (MOST_BLOBS + 2)  # bytes; each member takes up to 144
_LONGEST_RUN = 1 << 16
_STALE = 24 * 3600.0
_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), 20
_UNREADABLE = (
    BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError,
)  # fmt: skip

_Index = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Name = Annotated[str, Meta(min_length=1, max_length=10_000)]


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """An event in `events.jsonl`; the payload is the exact text, as the chain is made of it."""

    at: _Time
    type: _Name
    path: str
    visit: tuple[_Index, ...]
    attempt: _Index
    payload: str


class Told(msgspec.Struct):
    """`run.json`. `head`: how many events; `chain`: that of the last, in hex; sizes in bytes."""

    format: int
    run: _Name
    workflow: str
    created_at: _Time
    head: _Index
    chain: str
    parent: str | None
    forked_at: int
    events_size: _Index
    events_sha256: str
    blobs: _Index
    blobs_size: _Index


class _Format(msgspec.Struct):
    """All that is read of a `run.json` before its format is known."""

    format: int


# --- writing --------------------------------------------------------------------------------------


def member_of(name: str, kind: int = ZIP_STORED) -> ZipInfo:
    """A member to be written."""
    member = ZipInfo(name, _NO_TIME)
    member.compress_type = kind
    member.external_attr = _READABLE
    return member


@contextmanager
def writing(target: Path) -> Generator[IO[bytes]]:
    """A file that becomes the target once it is whole.

    Raises `StoreError` where the system refuses.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{time.monotonic_ns():x}.partial")
    try:
        _sweep(target)
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        _sync(target.parent)
    except KitchenError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot write {target}: {error}",
            hint="free some space, or name a file elsewhere; nothing was left behind",
        ) from error


def _sweep(target: Path) -> None:
    for old in target.parent.glob(f".{escape(target.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE:
                old.unlink()


def _sync(folder: Path) -> None:
    with suppress(OSError):  # some file systems do not sync folders
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


# --- reading --------------------------------------------------------------------------------------


@contextmanager
def opened(source: Path) -> Generator[tuple[ZipFile, Told]]:
    """The file and its `run.json`; its members are those that an export writes, each once.

    Raises `ForeignStore` where it is something else, or of a newer format, `CorruptStore` where it
    is damaged, `StoreError` where it cannot be read.
    """
    if source.exists() and not source.is_file():
        raise StoreError(f"{source} is no plain file", hint="name an exported run")
    with ExitStack() as stack:
        with telling(source):
            file = stack.enter_context(source.open("rb"))
            size = _look_at_directory(file, source)
            archive = stack.enter_context(ZipFile(file))
            for member in archive.infolist():
                _refuse_member(member, size, source)
            told = _read_told(archive, source)
            _refuse_names(archive.namelist(), source)
        yield archive, told


def _refuse_names(names: list[str], source: Path) -> None:
    odd = [name for name in names if name not in (RUN, EVENTS) and not BLOB.fullmatch(name)]
    if odd:
        raise foreign(source, f"it holds {odd[0][:80]!r}")
    if EVENTS not in names:
        raise damaged(source, f"{EVENTS} is not there")
    if len(set(names)) != len(names):
        raise damaged(source, "a name is there more than once")


def _look_at_directory(file: IO[bytes], source: Path) -> int:
    """The size of the file, whose directory must be small enough to be held in memory."""
    size = file.seek(0, os.SEEK_END)
    end = size - _END.size
    file.seek(max(0, end))
    tail = file.read(_END.size)
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise foreign(source, "it is no zip, or cut off")
    length = _END.unpack(tail)[5]
    at = end - _LOCATOR_64 - _END_64.size
    if at >= 0:  # as `zipfile` does, which believes this one where it is there
        file.seek(at)
        large = _END_64.unpack(file.read(_END_64.size))
        if large[0] == b"PK\x06\x06" and file.read(4) == b"PK\x06\x07":
            length = large[8]
    if length > _MOST_DIRECTORY:
        raise foreign(source, f"its directory has {length} B, more than that of any export")
    return size


def _refuse_member(member: ZipInfo, size: int, source: Path) -> None:
    kinds = (ZIP_STORED, ZIP_DEFLATED) if member.filename == EVENTS else (ZIP_STORED,)
    if member.compress_type not in kinds or member.flag_bits & 1:
        raise foreign(source, f"{member.filename} is packed in a way that no export is")
    if member.compress_size > size:
        raise damaged(source, f"{member.filename} is larger than the file")


def _read_told(archive: ZipFile, source: Path) -> Told:
    if RUN not in archive.NameToInfo:
        raise foreign(source, f"{RUN} is not there")
    with archive.open(RUN) as member:
        text = member.read(_LONGEST_RUN)
    try:
        found = msgspec.json.decode(text, type=_Format).format
        if found > FORMAT:
            raise ForeignStore(
                f"{source} has format {found}, and this version reads up to format {FORMAT}",
                hint="upgrade crucible-kitchen to import it",
            )
        return msgspec.json.decode(text, type=Told)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise foreign(source, f"{RUN}: {error}") from None


@contextmanager
def telling(source: Path) -> Generator[None]:
    """What the system and `zipfile` raise over the file, in kitchen's words."""
    try:
        yield
    except KitchenError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {source}: {error}") from error
    except _UNREADABLE as error:
        raise damaged(source, str(error) or type(error).__name__) from error


def damaged(source: Path, what: str) -> CorruptStore:
    """The error over a file that is not whole."""
    return CorruptStore(
        f"{source} is damaged, and nothing was imported: {what}",
        hint="export the run anew from the store that has it",
    )


def foreign(source: Path, what: str) -> ForeignStore:
    """The error over a file that no export has written."""
    return ForeignStore(
        f"{source} is not a run that kitchen has exported: {what}",
        hint="name a file that `kitchen export` has written",
    )

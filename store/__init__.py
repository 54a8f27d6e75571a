"""An append-only event store: runs, their events, snapshots and blobs, in SQLite or in memory.

Rules: it knows nothing of who uses it. Importing it is cheap: sqlite-utils is imported only when a
file must be created or migrated.
"""

from store.blobs import FileBlobs, MemoryBlobs, digest_of
from store.errors import (
    BlobCorrupt,
    BlobMissing,
    CorruptLog,
    HeadMoved,
    NotAStore,
    RunExists,
    RunForked,
    RunLocked,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreMissing,
    StoreTooNew,
    StoreUnwritable,
    UnfitFilesystem,
    UnknownRun,
    UnknownSeq,
)
from store.lease import Lease
from store.log import SqliteStore, open_store
from store.memory import MemoryStore
from store.protocol import BlobStore, EventStore
from store.records import Durability, Finding, NewEvent, Owner, Record, Removed, RunInfo

__all__ = [
    "BlobCorrupt",
    "BlobMissing",
    "BlobStore",
    "CorruptLog",
    "Durability",
    "EventStore",
    "FileBlobs",
    "Finding",
    "HeadMoved",
    "Lease",
    "MemoryBlobs",
    "MemoryStore",
    "NewEvent",
    "NotAStore",
    "Owner",
    "Record",
    "Removed",
    "RunExists",
    "RunForked",
    "RunInfo",
    "RunLocked",
    "SqliteStore",
    "StoreBusy",
    "StoreClosed",
    "StoreError",
    "StoreMissing",
    "StoreTooNew",
    "StoreUnwritable",
    "UnfitFilesystem",
    "UnknownRun",
    "UnknownSeq",
    "digest_of",
    "open_store",
]

"""Opening an event store: the SQLite one of the package `store`, told in kitchen's words.

Rules:

1. `store=None` means `$KITCHEN_STORE`, or `kitchen.db` in the current folder.
2. No error of `store` leaves here: each becomes the `KitchenError` that fits, with its message.
3. A user's own `store.py` that stands in the way of ours is told by the port, which is imported first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from kitchen import errors
from kitchen.ports.event_store import EventStore

StoreLike: TypeAlias = "str | os.PathLike[str] | EventStore | None"

DEFAULT = "kitchen.db"
_WRAPPED = (
    "create_run", "fork_run", "adopt_run", "append", "latest", "head", "run", "runs",
    "save_snapshot", "snapshot", "prune_snapshots", "remove_runs", "compact", "lease", "verify",
    "check", "use",
)  # fmt: skip
_WRITING = frozenset({"create_run", "append", "put"})
_PASSING = frozenset({"StoreUnwritable", "StoreBusy"})


def default_path() -> str:
    """Where the store is when nobody says."""
    return os.environ.get("KITCHEN_STORE") or DEFAULT


def in_memory() -> EventStore:
    """A new store that dies with its process: for tests."""
    from store import MemoryStore

    return MemoryStore()


@contextmanager
def opened(
    where: StoreLike = None,
    *,
    durability: str = "process",
    create: bool = True,
    read_only: bool = False,
) -> Generator[EventStore]:
    """The store at `where`, closed afterwards; a store that is open already is left open.

    Raises `StoreError` and its kin. With `create=False` a store that is not there is an error.
    """
    if where is None or isinstance(where, str | os.PathLike):
        from store import open_store
        from store.records import durability_of

        path = Path(where if where is not None else default_path())
        with translated():
            store: Any = open_store(
                path, durability=durability_of(durability), create=create, read_only=read_only
            )
        try:
            yield Translating(store)  # type: ignore[misc]
        finally:
            store.close()
    else:
        yield where if isinstance(where, Translating) else Translating(where)  # type: ignore[misc]


class Translating:
    """An event store whose errors are kitchen's. Everything else is handed through."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.blobs: Any = _TranslatingBlobs(store.blobs)
        for name in _WRAPPED:
            setattr(self, name, _translating(getattr(store, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The records, as `EventStore.read` gives them."""
        with translated():
            yield from self._store.read(*args, **kwargs)

    def named_blobs(self, run: str | None = None) -> Iterator[str]:
        """The digests, as `EventStore.named_blobs` gives them."""
        with translated():
            yield from self._store.named_blobs(run)


class _TranslatingBlobs:
    def __init__(self, blobs: Any) -> None:
        self._blobs = blobs
        for name in ("put", "get", "has", "size", "remove"):
            setattr(self, name, _translating(getattr(blobs, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


def _translating(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            kitchen_error = _in_our_words(error)
            if kitchen_error is None:
                raise
            if type(error).__name__ in _PASSING and method.__name__ in _WRITING:
                kitchen_error.hint = "then resume the run: it stands whole where it was before this"
            raise kitchen_error from error

    return call


@contextmanager
def translated() -> Generator[None]:
    """Errors of the package `store` come out as kitchen's."""
    try:
        yield
    except Exception as error:
        kitchen_error = _in_our_words(error)
        if kitchen_error is None:
            raise
        raise kitchen_error from error


def _in_our_words(error: Exception) -> errors.KitchenError | None:
    from store import errors as theirs

    if not isinstance(error, theirs.StoreError):
        return None
    fitting: dict[type[Exception], type[errors.KitchenError]] = {
        theirs.UnknownRun: errors.UnknownRun,
        theirs.UnknownSeq: errors.ArgumentError,
        theirs.RunExists: errors.RunExists,
        theirs.RunForked: errors.RunInUse,
        theirs.HeadMoved: errors.RunLost,
        theirs.RunLocked: errors.RunHeld,
        theirs.NotAStore: errors.ForeignStore,
        theirs.StoreTooNew: errors.ForeignStore,
        theirs.CorruptLog: errors.CorruptStore,
        theirs.BlobMissing: errors.BlobLost,
        theirs.BlobCorrupt: errors.BlobLost,
    }
    return fitting.get(type(error), errors.StoreError)(str(error))

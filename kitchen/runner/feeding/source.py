"""What `over` of a stream_loop gave: how it is begun, put back, pulled and closed.

Rules:

1. Nothing here decides where it runs. What is sync belongs into the one thread that pulls the
   source, what is async into the one task: a source never sees two of them.
2. A source with `state_dict()` and `load_state_dict()` can be put back; if it has none, the
   iterator made of it may. Packing and blobs are as for checkpoints: no pickle, blobs first.
3. Only what the loop made is closed: the iterator, which is the source itself where that is one.
   A list, or any other collection of the caller's, is left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Iterable
from typing import Any, cast

from msgspec import Raw

from kitchen.errors import BlobLost, ItemsError, KitchenError, ResourceError
from kitchen.log.journal import Journal
from kitchen.machine.codec.arrays import pack_state, unpack_state
from kitchen.machine.events import Manifest
from kitchen.runner.failure import balanced


class Source:
    """One iteration over what `over` gave. `where` is how people are told which loop it is."""

    def __init__(self, given: Any, where: str, journal: Journal) -> None:
        """Raises `ItemsError` for what cannot be gone over."""
        self.is_async = isinstance(given, AsyncIterable)
        iterable = self.is_async or isinstance(given, Iterable)
        if not iterable or isinstance(given, str | bytes):
            raise ItemsError(
                f"the loop {where} cannot go over a {type(cast('Any', given)).__name__}",
                hint="`over` returns an iterator, a generator or another iterable, sync or async",
            )
        self.iterator: Any = None
        self._given: Any = given
        self._where = where
        self._journal = journal
        self._stateful: Any = given if _is_stateful(given) else None

    # --- its state ---

    @property
    def stateful(self) -> bool:
        """Whether its state can be had, once it has begun."""
        return self._stateful is not None

    def unpack(self, manifest: Manifest) -> Any:
        """The state that was recorded. Raises `ResourceError` where a blob is missing."""
        try:
            return unpack_state(manifest.tree, self._journal.fetch)
        except BlobLost as error:
            raise ResourceError(
                f"the recorded state of the source of {self._where} cannot be read: "
                f"{error.message}",
                hint=f"put the folder {self._journal.store.path}.blobs back beside the store "
                "(was the store moved without it?)",
            ) from error

    def begin(self, saved: tuple[Any] | None) -> bool:
        """Make the iterator, of the source as it was `saved`; whether that could be used.

        Raises `ResourceError` where the state is refused.
        """
        # Before `iter`: an iterator made earlier may hold the position of before, and what
        # follows PyTorch's StatefulDataLoader takes a state only for the iterator made next.
        if saved is not None and self._stateful is not None:
            self._load(saved[0])
        given = self._given
        iterator: Any = given.__aiter__() if self.is_async else iter(given)
        if self._stateful is None and _is_stateful(iterator):
            self._stateful = iterator
            if saved is not None:
                self._load(saved[0])
        self.iterator = iterator
        return saved is not None and self.stateful

    def _load(self, tree: Any) -> None:
        owner = self._stateful
        try:
            owner.load_state_dict(tree)
        except Exception as error:
            raise ResourceError(
                f"load_state_dict() of the source of {self._where} ({type(owner).__name__}) "
                f"failed: {_message(error)}",
                hint="has the class changed since the state was recorded? Resume with the code "
                "that recorded it",
            ) from error

    def state(self) -> Any:
        """What `state_dict()` gives now. Raises `ResourceError` where it fails."""
        owner = self._stateful
        try:
            return owner.state_dict()
        except Exception as error:
            raise ResourceError(
                f"state_dict() of the source of {self._where} ({type(owner).__name__}) failed: "
                f"{_message(error)}"
            ) from error

    def pack(self, tree: Any) -> Manifest:
        """Put a state into blobs. Raises `UnencodableValue` or `StoreError`."""
        packed = pack_state(tree, where=f"the source of {self._where}: state_dict()")
        for data in packed.blobs.values():
            self._journal.store.blobs.put(data)
        size = len(packed.tree) + sum(map(len, packed.blobs.values()))
        return Manifest(Raw(packed.tree), size)

    # --- its end ---

    def close(self) -> None:
        """Close a sync source; raises what its `close` raises."""
        close = getattr(self._ours(), "close", None)
        if callable(close):
            close()

    async def aclose(self) -> None:
        """Close an async source; raises what its `aclose`, or `close`, raises."""
        ours = self._ours()
        close = getattr(ours, "aclose", None) or getattr(ours, "close", None)
        if callable(close):
            closing = close()
            if inspect.isawaitable(closing):
                try:
                    await balanced(closing)
                except BaseExceptionGroup as group:
                    # A task group around a `yield` wraps what closes a generator.
                    rest = group.split(GeneratorExit)[1]
                    if rest is not None:
                        raise rest from None

    def _ours(self) -> Any:
        """What is to be closed: the iterator; where it could not be made, a source that is one."""
        if self.iterator is not None:
            return self.iterator
        name = "__anext__" if self.is_async else "__next__"
        return self._given if hasattr(self._given, name) else None


def _is_stateful(candidate: Any) -> bool:
    names = ("state_dict", "load_state_dict")
    return all(callable(getattr(candidate, name, None)) for name in names)


def _message(error: Exception) -> str:
    if isinstance(error, KitchenError):
        return error.message
    return f"{type(error).__name__}: {error}"

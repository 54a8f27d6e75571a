"""Saving and loading stateful resources.

Rules:

1. `state_dict()` is called and written in a worker thread: saving never blocks the event loop.
2. Everything is in blobs before `CheckpointSaved` is appended. A crash in between leaves blobs
   that nothing names, and the cut where it was.
3. No pickle: `kitchen.machine.codec.arrays` says what a state dict may hold.
4. What fails here is told with the resource's name and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from kitchen.errors import BlobLost, KitchenError, ResourceError
from kitchen.log.journal import Journal
from kitchen.machine.codec.arrays import pack_state, unpack_state
from kitchen.machine.codec.values import blob_digests
from kitchen.machine.events import Manifest
from kitchen.machine.state import State
from kitchen.runner.resources import LiveResources


def save(names: Iterable[str], live: LiveResources, journal: Journal) -> dict[str, Manifest]:
    """Write the state dicts of these resources to blobs; the manifests that name them.

    Raises `ResourceError`, `UnencodableValue` or `StoreError`.
    """
    return {name: _save(name, live.get(name).value, journal) for name in names}


def _save(name: str, value: Any, journal: Journal) -> Manifest:
    try:
        tree = value.state_dict()
    except Exception as error:
        raise ResourceError(
            f"state_dict() of resource {name!r} ({type(value).__name__}) failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    packed = pack_state(tree, where=f"resource {name!r}: state_dict()")
    for data in packed.blobs.values():
        journal.store.blobs.put(data)
    size = len(packed.tree) + sum(map(len, packed.blobs.values()))
    return Manifest(Raw(packed.tree), size)


def check_saved(state: State, journal: Journal) -> None:
    """Whether all is there that the open resources were saved as.

    Raises `BlobLost`.
    """
    for name, known in state.core.resources.items():
        for digest in blob_digests(known.manifest.tree) if known.manifest is not None else ():
            if not journal.store.blobs.has(digest):
                raise BlobLost(
                    f"the checkpoint of resource {name!r} at event {known.saved} cannot be read: the "
                    f"blob {digest} is missing",
                    hint=f"put the folder {journal.store.path}.blobs back beside the store (was the "
                    "store moved without it?), or that one file. Restore it from a copy",
                )


def load(name: str, value: Any, manifest: Manifest, journal: Journal) -> None:
    """Give a resource the state dict that was saved.

    Raises `ResourceError` where it refuses it, or a blob is missing.
    """
    try:
        tree = unpack_state(manifest.tree, journal.fetch)
    except BlobLost as error:
        raise ResourceError(
            f"the checkpoint of resource {name!r} cannot be read: {error.message}",
            hint=f"put the folder {journal.store.path}.blobs back beside the store "
            "(was the store moved without it?)",
        ) from error
    try:
        value.load_state_dict(tree)
    except Exception as error:
        if isinstance(error, KitchenError):
            message = error.message
        else:
            message = f"{type(error).__name__}: {error}"
        raise ResourceError(
            f"load_state_dict() of resource {name!r} ({type(value).__name__}) failed: {message}",
            hint="has the class changed since the checkpoint was saved? Resume with the code that "
            "saved it",
        ) from error

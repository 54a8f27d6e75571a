"""The sandbox: a run's log and state as they were at an event, for what is executed there again.

Rules:

1. What is read comes from the store; nothing is written to it. What would be is refused, but for
   blobs, which what is executed may make: those are taken, and forgotten.
2. The state is that of the event at which the replay stands, whatever is executed meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from kitchen.errors import IllegalOutcome
from kitchen.log.journal import Journal
from kitchen.log.replayed import Stepping
from kitchen.machine.chart import Program
from kitchen.machine.events import Fact
from kitchen.machine.state import Control
from kitchen.ports.event_store import BlobStore, EventStore
from kitchen.runner.scope import Scope

_READS = frozenset(
    {"uuid", "path", "durability", "read", "latest", "head", "run", "runs", "snapshot", "check"}
)


class Sandbox(Stepping, Journal):
    """The journal of a run that is not executed: it is folded, and refuses to append."""

    def __init__(self, store: EventStore, run: str, program: Program) -> None:
        super().__init__(cast("EventStore", _ReadStore(store)), run, program)

    def write(
        self,
        facts: Sequence[Fact],
        blobs: Mapping[str, bytes] | None = None,  # noqa: ARG002
        control: Control | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """Raises `IllegalOutcome`: nothing is appended by a replay."""
        raise _refused(f"{len(facts)} events")

    def stage(
        self,
        facts: Sequence[Fact],
        blobs: Mapping[str, bytes] | None = None,
        control: Control | None = None,
    ) -> NoReturn:
        """Raises `IllegalOutcome`."""
        self.write(facts, blobs, control)

    def commit(self) -> NoReturn:
        """Raises `IllegalOutcome`."""
        raise _refused("staged events")


@dataclass(slots=True)
class Past(Scope):
    """The scope of a run that is not executed. `called`: the run's name then."""

    called: str = ""

    @property
    def run_id(self) -> str:
        """The run's id, as it was: before a fork, that of the run that it was forked from."""
        return self.called or self.journal.run


class _ReadStore:
    """A store, for reading."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.blobs = _Blobs(store.blobs)

    def __getattr__(self, name: str) -> Any:
        if name not in _READS:
            raise _refused(f"what `{name}` does")
        return getattr(self._store, name)


class _Blobs:
    """Blobs: those of the store, and none that is put."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def put(self, data: bytes | bytearray | memoryview) -> str:
        """Its name; it is not kept: no event will ever name it."""
        return hashlib.sha256(data).hexdigest()

    def get(self, digest: str, *, named_by: str = "") -> bytes:
        """A blob of the store."""
        return self._blobs.get(digest, named_by=named_by)

    def has(self, digest: str) -> bool:
        """Whether the store has it."""
        return self._blobs.has(digest)

    def size(self, digest: str) -> int:
        """Its size in bytes."""
        return self._blobs.size(digest)

    def digests(self) -> Iterator[str]:
        """All that the store has."""
        return self._blobs.digests()


def _refused(what: str) -> IllegalOutcome:
    return IllegalOutcome(
        f"a replay writes nothing, and was to write {what}",
        hint="this is a fault of kitchen; please report it with the log",
    )

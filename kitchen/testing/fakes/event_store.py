"""A fake of the event store: one in memory, or around any other, whose appends fail on demand.

Rules:

1. What `create_run`, `fork_run`, `adopt_run` and `append` write is an append: together they are
   counted from 1, under the name "append".
2. Who has crashed is dead: whatever it would write afterwards is the same `SimulatedCrash`. What was
   written stays in `.inner`, where a resume finds it.
3. Leases of a process that has died are nobody's. (In one process they are given back by the run
   itself, on its way out.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

from kitchen.adapters.event_store import in_memory
from kitchen.testing.fakes.faults import (
    CrashAt,
    Delay,
    FailAt,
    Faults,
    Point,
    SimulatedCrash,
)

if TYPE_CHECKING:
    from typing import Self

    from kitchen.ports.event_store import EventStore
    from kitchen.testing.clock.clock import VirtualClock

APPEND, PUT = "append", "blobs.put"
_APPENDING = ("create_run", "fork_run", "adopt_run", "append")
_METHODS = (
    "read", "latest", "head", "run", "runs", "named_blobs", "save_snapshot", "snapshot",
    "prune_snapshots", "lease", "check", "verify", "remove_runs", "compact", "use", "close",
)  # fmt: skip
_BLOBS = ("put", "get", "has", "size", "digests", "remove")
_WRITING = frozenset(
    {APPEND, PUT, "save_snapshot", "prune_snapshots", "remove_runs", "blobs.remove"}
)


class _Dying:
    """The faults of a store; dead once a crash was simulated."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.dead = False

    def wrapped(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method with its faults."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead and name in _WRITING:
                raise SimulatedCrash(f"{name} after the crash")
            try:
                with self.faults(name):
                    return method(*args, **kwargs)
            except SimulatedCrash:
                self.dead = True
                raise

        return call


if TYPE_CHECKING:
    from store import MemoryStore as _Base
else:  # at run time its methods would hide those of the store inside
    _Base = object


class FakeEventStore(_Base):
    """An `EventStore` whose appends fail on demand; anything else is done by `inner`.

    `store`: the one around which it is, a new one in memory if left out. `crash_at="before:17"` (or
    `17`, or `(17, "before")`) dies before the 17th append has written anything, between a stage's
    effect and its commit; `"after:17"` when it is written, and nothing of it performed. `fail_at`,
    `delay` and `crash_at` also take a mapping by method, as `Faults` does: "append" for all that
    appends, "blobs.put" for a large value that is put, and any other method of a store.

    `.inner` is the store inside, `.calls` counts the calls, `.crashed` says whether it has died.
    """

    def __init__(
        self,
        store: EventStore | None = None,
        *,
        crash_at: Point | Collection[Point] | CrashAt | None = None,
        fail_at: int | Collection[int] | FailAt | None = None,
        delay: Delay | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self.inner: EventStore = in_memory() if store is None else store
        faults = Faults(
            fail_at=_by_method(fail_at), delay=delay, crash_at=_by_method(crash_at), clock=clock
        )
        blobs = [f"blobs.{name}" for name in _BLOBS]
        faults.check([APPEND, *_METHODS, *blobs], "a FakeEventStore")
        self.calls = faults.calls
        self._dying = _Dying(faults)
        for name in (*_APPENDING, *_METHODS):
            counted = APPEND if name in _APPENDING else name
            setattr(self, name, self._dying.wrapped(counted, getattr(self.inner, name)))
        self.blobs = cast("Any", _FakeBlobs(self.inner.blobs, self._dying))

    @property
    def crashed(self) -> bool:
        """Whether it has died: what would be written is a `SimulatedCrash`."""
        return self._dying.dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *told: object) -> None:
        self.close()


class _FakeBlobs:
    def __init__(self, blobs: Any, dying: _Dying) -> None:
        self._blobs = blobs
        for name in _BLOBS:
            setattr(self, name, dying.wrapped(f"blobs.{name}", getattr(blobs, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


def _by_method(given: Any) -> Any:
    """Faults by method: what names none is of the appends."""
    if given is None or isinstance(given, Mapping):
        return cast("Any", given)
    return {APPEND: given}

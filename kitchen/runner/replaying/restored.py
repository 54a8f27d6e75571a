"""The resources of a replay: opened, compared and had again as they were.

Rules:

1. Where the run had its resources back, at a resume or behind a rewind, the replay has them back as
   well; and at each checkpoint, as a resume from there would: opened anew and loaded as they were
   saved. So a difference shows once, and what a checkpoint forgets shows behind it. It is done when
   they are needed next.
2. What is saved is compared leaf by leaf with what was.
3. What only peeked at a resource that is clean may not have changed it: a resume would not know.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any

from anyio import to_thread

from kitchen.errors import KitchenError
from kitchen.machine.codec.arrays import Packed, pack_state
from kitchen.machine.events import Address, Fact
from kitchen.runner import checkpoint
from kitchen.runner.perform import Performer
from kitchen.runner.replaying.effects import states_apart
from kitchen.runner.replaying.report import Report
from kitchen.runner.replaying.values import Difference, shortened
from kitchen.runner.restoring import Restoring
from kitchen.runner.scope import Scope

_PEEKED = "; it was only peeked at, so a resume would not know of the change"


class Restored:
    """The live resources of a replay. `stale`: they are not what the record says, and are to be had
    again. `unsure`: nobody knows what these should be, until they are."""

    def __init__(
        self, scope: Scope, performer: Performer, report: Report, tolerance: float
    ) -> None:
        self._scope = scope
        self._performer = performer
        self._report = report
        self._tolerance = tolerance
        self._since = 0
        self.stale = False
        self.unsure: set[str] = set()

    async def ready(self, seq: int) -> None:
        """Have the resources as they were before an event."""
        if not self.stale:
            return
        self.stale, self._since = False, seq
        self.unsure.clear()
        restoring = Restoring(self._scope, self._performer)
        try:
            await self._scope.live.close()
            await restoring.everything()
        except (Exception, SystemExit) as error:
            failure = self._performer.told(error)
            self._report.raised(seq, restoring.at, "resources that can be had again", failure)

    def told(self, outcome: Any) -> str:
        """Since when the resources are there that an outcome used, if they were had again."""
        used = (*getattr(outcome, "touched", ()), *getattr(outcome, "looked", ()))
        if not used or not self._since:
            return ""
        return f"; {', '.join(sorted(set(used)))} had been had again, as at a resume"

    # --- checkpoints ---

    async def compare_saved(self, seq: int, fact: Fact, *, compared: bool) -> None:
        """Compare what the resources hold with what a checkpoint has saved of them."""
        event: Any = fact.event
        at = Address(fact.path, fact.visit)
        for name, manifest in event.resources.items():
            if name in self.unsure or not compared:
                continue
            try:
                packed = await to_thread.run_sync(self._packed, name)
                fetch = self._scope.journal.fetch
                apart = states_apart(manifest, packed, fetch, self._tolerance)
            except Exception as error:  # `state_dict` is the user's
                apart = Difference("", "saved", _told(error))
            if apart is not None:
                self._report.differs(seq, at, f"resource.{name}", apart)

    async def saved(self, seq: int, at: Address, fact: Fact) -> None:
        """A checkpoint has been saved: from here on the resources are as it has them."""
        event: Any = fact.event
        if self._scope.journal.state.core.cut is None:
            self.stale = True
            return
        for name, manifest in event.resources.items():  # there is nowhere to open them again
            try:
                value = self._scope.live.get(name).value
                load = checkpoint.load
                await to_thread.run_sync(load, name, value, manifest, self._scope.journal)
            except KitchenError as error:
                apart = Difference("", "loaded", _told(error))
                self._report.differs(seq, at, f"resource.{name}", apart)

    def _packed(self, name: str) -> Packed:
        tree = self._scope.live.get(name).value.state_dict()
        return pack_state(tree, where=f"resource {name!r}: state_dict()")

    # --- touches and peeks ---

    def check_touches(self, seq: int, at: Address, touched: Iterable[str]) -> None:
        """Tell what was touched and, by the record, was not."""
        state = self._scope.journal.state
        for name in state.stateful(touched):
            if not state.core.resources[name].touched:
                apart = Difference("", "not touched", "touched")
                self._report.differs(seq, at, f"resource.{name}", apart)

    @contextmanager
    def watching(self) -> Generator[Peeks]:
        """Notice what is peeked at meanwhile."""
        live = self._scope.live
        peeks = Peeks(self._clean, self._packed)
        live.watch = peeks.about_to
        try:
            yield peeks
        finally:
            live.watch = None

    def _clean(self, names: Iterable[str]) -> list[str]:
        state = self._scope.journal.state
        clean = [n for n in state.stateful(names) if not state.core.resources[n].touched]
        return [name for name in clean if name not in self.unsure]

    def tell_peeks(self, seq: int, at: Address, peeks: Peeks, outcome: Any) -> None:
        """Tell which of those that were only peeked at have changed."""
        touched = getattr(outcome, "touched", ())
        for name, before in peeks.before.items():
            if name in touched or name not in self._scope.live:
                continue
            with suppress(Exception):  # what its `state_dict` raises shows where it is saved
                fetch = self._scope.journal.fetch
                apart = states_apart(before, self._packed(name), fetch, 0.0)
                if apart is not None:
                    self._report.differs(seq, at, f"resource.{name}", apart, _PEEKED)

    # --- closing ---

    async def close_gone(self, seq: int, at: Address) -> None:
        """Close those that, by the record, are closed, and those that may not be used any more."""
        known, live = self._scope.journal.state.core.resources, self._scope.live
        await self._close([name for name in live if name not in known], seq, at)

    async def drop_lost(self, seq: int, at: Address) -> None:
        """Give up those that a thread which could not be stopped may still use."""
        if self._scope.live.lost:
            await self._close(list(self._scope.live.lost), seq, at)

    async def _close(self, names: list[str], seq: int, at: Address) -> None:
        try:
            await self._scope.live.close(names)
        except KitchenError as error:
            self._report.differs(seq, at, "closing", Difference("", "closed", _told(error)))


class Peeks:
    """What clean resources were right before something peeked at them, by name."""

    def __init__(self, clean: Any, packed: Any) -> None:
        self._clean = clean
        self._pack = packed
        self.before: dict[str, Packed] = {}

    def about_to(self, names: Iterable[str]) -> None:
        """Called by whoever peeks, before it gets the object."""
        for name in self._clean(names):
            if name not in self.before:
                with suppress(Exception):  # as where it is compared
                    self.before[name] = self._pack(name)


def _told(error: Exception) -> str:
    message = error.message if isinstance(error, KitchenError) else str(error)
    return shortened(" ".join(f"{type(error).__name__}: {message}".split()))

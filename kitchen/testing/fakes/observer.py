"""A fake of the observer: it remembers what it was told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kitchen.testing.fakes.faults import CrashAt, Delay, FailAt, Faults

if TYPE_CHECKING:
    from kitchen.machine.events import Address, Event, Fact
    from kitchen.machine.state import State
    from kitchen.testing.clock.clock import VirtualClock

_METHODS = ("on_facts", "on_progress")


class Told(NamedTuple):
    """A fact that was told, and of which run."""

    run_id: str
    fact: Fact


class Progress(NamedTuple):
    """How far a running stage said that it was."""

    run_id: str
    address: Address
    done: float
    total: float | None


class FakeObserver:
    """A `RunObserver` that remembers: `.events`, `.told` with run, path and visit, `.progress`.

    It may fail as `Faults` says, by "on_facts" and "on_progress". A run drops an observer that raises,
    and goes on; a crash at the nth `on_facts` comes right behind the nth append. `.calls` counts.
    """

    def __init__(
        self,
        *,
        fail_at: FailAt | None = None,
        delay: Delay | None = None,
        crash_at: CrashAt | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self._faults = Faults(fail_at=fail_at, delay=delay, crash_at=crash_at, clock=clock)
        self._faults.check(_METHODS, "a FakeObserver")
        self.told: list[Told] = []
        self.progress: list[Progress] = []

    @property
    def calls(self) -> Counter[str]:
        """How many calls each method has had, those that failed counted too."""
        return self._faults.calls

    @property
    def events(self) -> list[Event]:
        """The events that were told, of all runs, in their order."""
        return [told.fact.event for told in self.told]

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:  # noqa: ARG002
        """Remember them; the state is the run's own, and goes on changing."""
        with self._faults("on_facts"):
            self.told += [Told(run_id, fact) for fact in facts]

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """Remember it."""
        with self._faults("on_progress"):
            self.progress.append(Progress(run_id, address, done, total))

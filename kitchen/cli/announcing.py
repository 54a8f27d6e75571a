"""What every display says of an event, in one line, and of most events nothing.

Rules:

1. A failure is told with what comes of it: another attempt, a rewind and what that costs, a handler.
   What ends the run is not told here, but as the run's end.
2. What is told as a part of something else is not told again: a rewind at a resume by the plan of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kitchen.cli import render
from kitchen.cli.tracking import Tracker
from kitchen.machine import events as E
from kitchen.machine.events import Address, Event, Fact
from kitchen.machine.state import StageMemo, State

_WIDEST = 200


class Told(NamedTuple):
    """An event, those that were appended with it, and the state behind them."""

    tracker: Tracker
    run: str
    fact: Fact
    facts: Sequence[Fact]
    state: State

    @property
    def event(self) -> Any:
        """The event itself."""
        return self.fact.event

    @property
    def where(self) -> str:
        """Its place."""
        return self.tracker.spelled(Address(self.fact.path, self.fact.visit))

    def beside(self, kind: type[Event]) -> list[Any]:
        """The events of a kind that were appended with it."""
        return [fact for fact in self.facts if isinstance(fact.event, kind)]

    def places(self, facts: Sequence[Fact]) -> str:
        """Where these were."""
        return ", ".join(self.tracker.spelled(Address(f.path, f.visit)) for f in facts)


def announcement(
    tracker: Tracker, run: str, fact: Fact, facts: Sequence[Fact], state: State
) -> str | None:
    """What every display says of a fact; None where it says nothing, or something of its own."""
    tell = _TOLD.get(type(fact.event))
    return tell(Told(tracker, run, fact, facts, state)) if tell is not None else None


def gist(failure: E.Failure) -> str:
    """A failure in one line."""
    text = " ".join(f"{failure.type}: {failure.message}".split())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _started(told: Told) -> str:
    return f"run {told.run} started: {told.event.workflow}, seed {told.event.seed}"


def _diverged(told: Told) -> str:
    return f"what runs again differs from what was recorded: {told.where}, {told.event.key}"


def _retry(told: Told) -> str | None:
    if told.event.since:
        return None  # told when it failed, before the rewind
    address = Address(told.fact.path, told.fact.visit)
    delay = told.event.delay
    wait = f" in {render.seconds(delay)}" if delay else ""
    failed = [f.event for f in told.beside(E.StageFailed) if (f.path, f.visit) == address]
    why = f": {gist(failed[0].failure)}" if failed else ""
    return f"{told.where}: {told.tracker.attempt(address, told.state)}{wait}{why}"


def _rewound(told: Told) -> str | None:
    if told.beside(E.RunResumed):
        return None
    event = told.event
    lost = told.state.seq - len(told.facts) + told.facts.index(told.fact) - event.to
    cost = f"{lost} event{'s' if lost != 1 else ''} and {_stages(told.state)} are done again"
    names = ", ".join(event.touched)
    line = f"rewound to seq {event.to}, as {names} had been touched: {cost}"
    if told.state.incarnation == 1 and lost > 50:
        line += " (a wf.checkpoint right before what may fail makes this cheaper)"
    return line


def _stages(state: State) -> str:
    """How many stages a rewind has superseded, and are not yet done again."""
    again = sum(isinstance(known, StageMemo) for known in state.memo.values())
    return f"{again} stage{'' if again == 1 else 's'}"


def _skipped(told: Told) -> str:
    return f"{told.where} failed and is skipped: {gist(told.event.failure)}"


def _block_failed(told: Told) -> str | None:
    event, count = told.event, len(told.event.undo)
    if event.ends == "stage" and not count:
        return None  # the skip tells it
    line = f"{told.tracker.spelled(event.at)} failed: {gist(event.failure)}"
    if count:
        line += f"; rolling back {count} stage{'s' if count != 1 else ''}"
    return f"{line}; {told.where} ends, and its handler goes on" if event.ends == "block" else line


def _handled(told: Told) -> str:
    return f"{told.where} has ended; its failure is handled"


def _rolled_back(told: Told) -> str:
    failure = told.event.failure
    if failure is None:
        return f"{told.where} is rolled back"
    return f"{told.where} could not be rolled back: {gist(failure)}"


def _decided(told: Told) -> str:
    if told.event.choice == "retry":
        return f"{told.where} runs again, as was decided"
    keys = ", ".join(told.event.changes)
    return f"{told.where} is skipped, as was decided" + (f"; set: {keys}" if keys else "")


def _known(told: Told) -> str | None:
    if not told.event.known:
        return None
    return f"{told.where} must not happen twice: what it did holds, and it does not run again"


def _interrupted(told: Told) -> str | None:
    left: list[Any] = [f for f in told.beside(E.StageInterrupted) if f.event.begun]
    return f"stopped in the middle: {told.places(left)}" if left else None


def _branch_failed(told: Told) -> str:
    event = told.event
    return f"{told.tracker.spelled(event.at)} failed: {gist(event.failure)}; the others go on"


def _run_failed(told: Told) -> str | None:
    left = told.beside(E.StageInterrupted)
    if not left or told.beside(E.RunResumed):
        return None
    failure = gist(told.event.failure)
    return f"{told.where} failed: {failure}; waiting for {told.places(left)} to come back"


def _saved(told: Told) -> str | None:
    """That of a node is the display's own; one that was asked for has no path."""
    if told.fact.path:
        return None
    return f"checkpoint at seq {told.state.seq - len(told.facts) + told.facts.index(told.fact) + 1}"


def _edited(told: Told) -> str:
    event = told.event
    what = ["config"] if bytes(event.config) else []
    what += [f"seed {event.seed}"] if event.seed is not None else []
    return f"edited: {', '.join([*what, *(f'state.{key}' for key in event.state)])}"


_TOLD: dict[type[Event], Callable[[Told], str | None]] = {
    E.RunStarted: _started,
    E.RunRewound: _rewound,
    E.RunEdited: _edited,
    E.RewindDiverged: _diverged,
    E.RunInterrupted: _interrupted,
    E.RunFailed: _run_failed,
    E.RetryScheduled: _retry,
    E.StageCompleted: _known,
    E.StageSkipped: _skipped,
    E.StageRolledBack: _rolled_back,
    E.EffectDecided: _decided,
    E.BlockFailed: _block_failed,
    E.FailureHandled: _handled,
    E.BranchFailed: _branch_failed,
    E.CheckpointSaved: _saved,
}

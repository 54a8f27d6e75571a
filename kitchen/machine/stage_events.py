"""Events of stages, and of what their failures lead to.

Rules: those of `events`, which names them all. What an attempt changed counts once it is committed,
in the order of its events; a failed attempt's changes are told, and never count.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Raw

from kitchen.machine.parts import Address, Event, Failure

# --- attempts -----------------------------------------------------------------------------------


class StageStarted(Event, frozen=True):
    """An attempt began."""


class StageCompleted(Event, frozen=True):
    """The attempt is committed: its mutations and metrics count from here on.

    `looked`, here and elsewhere: the stateful resources that one of several sides peeked at.
    `known`: its body did not run, as what it had done before a rewind, or was decided, holds.
    """

    looked: tuple[str, ...] = ()
    known: bool = False


class StageFailed(Event, frozen=True):
    """The attempt raised, or took too long. `discarded` tells the mutations that it would have made.

    `undecided`: what it did outside is not known, and must not silently be done twice.
    """

    failure: Failure
    discarded: tuple[Raw, ...] = ()
    undecided: bool = False


class StageInterrupted(Event, frozen=True):
    """The attempt ended without an outcome: its process died, or it was stopped.

    `begun`: false where its body is known not to have been called.
    """

    begun: bool = True


class RetryScheduled(Event, frozen=True):
    """The attempt that failed will be followed by another, `delay` seconds after the event `since`
    (0: this one; behind a rewind, the one that was superseded)."""

    delay: float = 0.0
    since: int = 0


class StageSkipped(Event, frozen=True):
    """The stage has failed for good, and the run goes on behind it."""

    failure: Failure


class StageRolledBack(Event, frozen=True):
    """What the stage had done outside was taken back, as far as it could be. `failure`: why not."""

    failure: Failure | None = None


class EffectDecided(Event, frozen=True):
    """Somebody said what became of an effect that must not happen twice: "retry" or "skip".

    `changes`: for "skip", what the stage would have put into the state.
    """

    choice: str
    changes: dict[str, Raw] = {}


class StatePut(Event, frozen=True):
    """A key of the state got a value."""

    key: str
    value: Raw


class StateDeleted(Event, frozen=True):
    """A key left the state."""

    key: str


class StateAppended(Event, frozen=True):
    """Items were added to the end of a list. `values` is a JSON array."""

    key: str
    values: Raw


class StateIncremented(Event, frozen=True):
    """A number was added to a number."""

    key: str
    by: Raw


class StateMerged(Event, frozen=True):
    """Entries were put into a mapping. `values` is the encoded mapping of those entries."""

    key: str
    values: Raw


class MetricRecorded(Event, frozen=True):
    """A number worth watching. It counts once its attempt is committed."""

    name: str
    value: Raw
    step: int | None = None


class LoopStopped(Event, frozen=True):
    """A stage asked for the nearest loop around it to end with this visit."""


Mutation: TypeAlias = StatePut | StateDeleted | StateAppended | StateIncremented | StateMerged
Effect: TypeAlias = Mutation | MetricRecorded | LoopStopped


# --- failures of blocks, and time limits ----------------------------------------------------------


class BlockFailed(Event, frozen=True):
    """A failure at `at` ends what is around it: what runs there is stopped, stages are rolled back.

    `ends`: the "run" (the path is then empty), a "branch", a "block" or a "stage". `undo`: the
    stages to roll back, in that order. `touched`: the resources that the attempt used and that are
    not what they were. `stood`: where in it the run stood, in the words of the machine.
    """

    failure: Failure
    at: Address = Address("")
    ends: str = "run"
    undo: tuple[Address, ...] = ()
    touched: tuple[str, ...] = ()
    stood: Address = Address("")


class FailureHandled(Event, frozen=True):
    """All in the block has ended, and the run goes on with its handler. `closed`: its resources.
    `failure`: what ended the block; logs of before this was recorded have none."""

    closed: tuple[str, ...] = ()
    failure: Failure | None = None


class TimeLimitStarted(Event, frozen=True):
    """A block that may take so many seconds was entered."""

    seconds: float = 0.0


class TimeLimitEnded(Event, frozen=True):
    """The block ended in time."""

"""What the kernel asks the runner to do, and what it is told in return.

Rules:

1. A command names an address and says what kind of work is wanted there. It holds no callable.
2. Outstanding commands follow from the state alone (`outstanding.outstanding`), so a resumed process
   knows what to do without remembering anything; one that is outstanding no more is cancelled.
3. Every command that is not cancelled ends in exactly one input: its outcome, or `CommandFailed`.
4. What user code did with resources is told with its outcome: `touched`, and `looked` for those
   that it only peeked at.
5. An outcome names the address and, for stages, the attempt that it answers.
6. A time limit is no command: the runner tells when one that is in the state has passed.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from msgspec import Raw

from kitchen.machine.events import (
    Address,
    Collection,
    Effect,
    Failure,
    ItemTaken,
    Manifest,
    MetricRecorded,
)
from kitchen.machine.life_inputs import Cancel as Cancel
from kitchen.machine.life_inputs import Continue as Continue
from kitchen.machine.life_inputs import Decided as Decided
from kitchen.machine.life_inputs import Interrupt as Interrupt
from kitchen.machine.life_inputs import Preserved as Preserved
from kitchen.machine.life_inputs import Resume as Resume
from kitchen.machine.life_inputs import Start as Start
from kitchen.machine.life_inputs import Turn as Turn

# --- commands ---------------------------------------------------------------------------------


class RunStage(NamedTuple):
    """Run the stage's body."""

    address: Address
    attempt: int


class AwaitRetry(NamedTuple):
    """Wait until the next attempt of a stage is due (`State.tries`)."""

    address: Address
    attempt: int


class RollBack(NamedTuple):
    """Have a stage that has failed, or is to be compensated, take back what it did outside.

    `block`: what has failed, and for that ends.
    """

    address: Address
    block: Address


class LeaveBlock(NamedTuple):
    """See everything in a block that has failed off: commands, streams, resources."""

    address: Address


class OpenLoop(NamedTuple):
    """Ask a loop's `over` for its collection."""

    address: Address


class EvaluateCondition(NamedTuple):
    """Ask a predicate."""

    address: Address


class OpenBranches(NamedTuple):
    """Ask a parallel how many branches may run at a time, and its `over` for its collection."""

    address: Address


class JoinBranches(NamedTuple):
    """Have what the branches gave to the keys of `merge` reduced to one value each."""

    address: Address


class PullItem(NamedTuple):
    """Take the next item out of a stream."""

    address: Address
    number: int


class Produce(NamedTuple):
    """Have a producer make an item; what it sees is told by `feeds.seen`."""

    address: Address


class LeaveLoop(NamedTuple):
    """Close a stream's source, or see the last of an async loop's producers off."""

    address: Address


class OpenResource(NamedTuple):
    """Call a resource's factory."""

    address: Address
    name: str


class CloseResources(NamedTuple):
    """Close what a block opened, the last first. `address` is the block's."""

    address: Address
    names: tuple[str, ...]


class SaveCheckpoint(NamedTuple):
    """Save the stateful resources that were touched since, or never saved (`State.unsaved`)."""

    address: Address


Command: TypeAlias = (
    RunStage
    | AwaitRetry
    | RollBack
    | LeaveBlock
    | OpenLoop
    | EvaluateCondition
    | OpenBranches
    | JoinBranches
    | PullItem
    | Produce
    | LeaveLoop
    | OpenResource
    | CloseResources
    | SaveCheckpoint
)


# --- inputs -----------------------------------------------------------------------------------


class TimeUp(NamedTuple):
    """The time limit of a block has passed."""

    address: Address


class StageSucceeded(NamedTuple):
    """A body returned. `effects`: metrics first. `flushed`: those that are in the log already."""

    address: Address
    attempt: int
    effects: tuple[Effect, ...] = ()
    touched: tuple[str, ...] = ()
    flushed: tuple[MetricRecorded, ...] = ()
    looked: tuple[str, ...] = ()


class StageRaised(NamedTuple):
    """A body raised. `effects` are discarded, and told; what it touched is not what it was.

    `again`: whether the stage's `retries` are for such a failure. `stopped`: it did not raise by
    itself, so nobody knows what it did outside. `lost`: the resources that a thread which could
    not be stopped may still use.
    """

    address: Address
    attempt: int
    failure: Failure
    effects: tuple[Effect, ...] = ()
    touched: tuple[str, ...] = ()
    again: bool = False
    stopped: bool = False
    lost: tuple[str, ...] = ()


class RetryDue(NamedTuple):
    """The wait before the next attempt is over."""

    address: Address
    attempt: int


class RolledBack(NamedTuple):
    """A rollback hook has returned, or raised. `effects`: what it changed in the state."""

    address: Address
    block: Address
    effects: tuple[Effect, ...] = ()
    failure: Failure | None = None


class BlockLeft(NamedTuple):
    """Nothing goes on in the block any more, and what it had opened is closed.

    `touched`: what the attempts that were stopped used. `reached`: what closing may have changed.
    `lost`: what a thread that could not be stopped may still use.
    """

    address: Address
    touched: tuple[str, ...] = ()
    reached: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class MetricsFlushed(NamedTuple):
    """Metrics of an attempt that is still running."""

    address: Address
    attempt: int
    metrics: tuple[MetricRecorded, ...]


class CollectionOpened(NamedTuple):
    """A loop's `over` gave its collection."""

    address: Address
    items: Collection
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class ConditionAnswered(NamedTuple):
    """A predicate answered."""

    address: Address
    answer: bool
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class BranchesOpened(NamedTuple):
    """A parallel knows its limit, and its collection if it goes over one."""

    address: Address
    limit: int
    items: Collection | None = None
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class BranchesMerged(NamedTuple):
    """The reduced values, encoded, by state key."""

    address: Address
    merged: dict[str, Raw]


class ItemPulled(NamedTuple):
    """A stream gave an item; None: it has come to its end, and is closed."""

    address: Address
    number: int
    item: ItemTaken | None


class ItemMade(NamedTuple):
    """A producer made an item, from a state of that version."""

    address: Address
    value: Raw
    version: int = 0
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class LoopLeft(NamedTuple):
    """The source is closed, or no producer runs any more."""

    address: Address


class ResourceReady(NamedTuple):
    """A factory gave its object. `lost`: what it was made from and cannot be had again."""

    address: Address
    stateful: bool
    touched: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class BlockClosed(NamedTuple):
    """A block's resources are closed. `touched`: what they reach, as closing may change it."""

    address: Address
    touched: tuple[str, ...] = ()


class CheckpointWritten(NamedTuple):
    """The state dicts are in blobs. `address` is None for one that no node asked for."""

    address: Address | None
    resources: dict[str, Manifest]


class ResourceReturned(NamedTuple):
    """A resumed process opened a resource anew, and loaded it from `saved` if there was one."""

    name: str
    saved: int | None


class CommandFailed(NamedTuple):
    """A command other than `RunStage` could not be carried out.

    `everywhere`: it is the run that cannot go on, and not only what is around that address.
    """

    address: Address
    failure: Failure
    everywhere: bool = False
    touched: tuple[str, ...] = ()


Input: TypeAlias = (
    Start
    | Resume
    | Continue
    | Interrupt
    | Cancel
    | Preserved
    | TimeUp
    | StageSucceeded
    | StageRaised
    | RetryDue
    | RolledBack
    | BlockLeft
    | MetricsFlushed
    | CollectionOpened
    | ConditionAnswered
    | BranchesOpened
    | BranchesMerged
    | ItemPulled
    | ItemMade
    | LoopLeft
    | ResourceReady
    | BlockClosed
    | CheckpointWritten
    | ResourceReturned
    | CommandFailed
)

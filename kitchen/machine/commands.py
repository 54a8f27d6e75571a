"""What the kernel asks the runner to do, and what it is told in return.

Rules:

1. A command names an address and says what kind of work is wanted there. It holds no callable.
2. Outstanding commands follow from the state alone (`decide.outstanding`), so a resumed process
   knows what to do without remembering anything.
3. Every command ends in exactly one input: its outcome, or `CommandFailed`.
4. An outcome names the address and, for stages, the attempt that it answers.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from kitchen.machine.events import (
    Address,
    Collection,
    Effect,
    Failure,
    Host,
    Manifest,
    MetricRecorded,
    RunStarted,
    WorkflowChanged,
)

# --- commands ---------------------------------------------------------------------------------


class RunStage(NamedTuple):
    """Run the stage's body."""

    address: Address
    attempt: int


class OpenLoop(NamedTuple):
    """Ask a loop's `over` for its collection."""

    address: Address


class EvaluateCondition(NamedTuple):
    """Ask a predicate."""

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
    RunStage | OpenLoop | EvaluateCondition | OpenResource | CloseResources | SaveCheckpoint
)


# --- inputs -----------------------------------------------------------------------------------


class Start(NamedTuple):
    """Begin a new run."""

    started: RunStarted


class Resume(NamedTuple):
    """Take up a run that a process left, whatever way it left it.

    `changed`: how the workflow differs from the one that was recorded, if it does.
    """

    host: Host
    changed: WorkflowChanged | None = None


class Continue(NamedTuple):
    """The resources are back: go on from every active place."""


class Interrupt(NamedTuple):
    """Stop here; nothing is being performed."""

    signal: str


class StageSucceeded(NamedTuple):
    """A body returned. `effects`: metrics first. `flushed`: those that are in the log already."""

    address: Address
    attempt: int
    effects: tuple[Effect, ...] = ()
    touched: tuple[str, ...] = ()
    flushed: tuple[MetricRecorded, ...] = ()


class StageRaised(NamedTuple):
    """A body raised. `effects` are discarded, and told."""

    address: Address
    attempt: int
    failure: Failure
    effects: tuple[Effect, ...] = ()


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


class ConditionAnswered(NamedTuple):
    """A predicate answered."""

    address: Address
    answer: bool
    touched: tuple[str, ...] = ()


class ResourceReady(NamedTuple):
    """A factory gave its object. `lost`: what it was made from and cannot be had again."""

    address: Address
    stateful: bool
    touched: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


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
    """A command other than `RunStage` could not be carried out."""

    address: Address
    failure: Failure


Input: TypeAlias = (
    Start
    | Resume
    | Continue
    | Interrupt
    | StageSucceeded
    | StageRaised
    | MetricsFlushed
    | CollectionOpened
    | ConditionAnswered
    | ResourceReady
    | BlockClosed
    | CheckpointWritten
    | ResourceReturned
    | CommandFailed
)

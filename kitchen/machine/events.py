"""Events: what happened, in the past tense. The log is made of these and of nothing else.

Rules:

1. An event is frozen data. Its place (path, visit, attempt) is the `Fact`'s, which the store
   keeps in columns of its own; the event is the payload, as JSON text.
2. Reading is lenient, so that an old log opens in a new kitchen: every field added later has a
   default, and unknown fields are ignored.
3. Values of the user are `Raw`: JSON text made by the codec, carried and never looked into.
4. No event holds a wall-clock time, a duration or anything else that differs between a run and
   its resumed twin; times are the store's. `RunStarted` and `RunResumed` say where they ran.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from kitchen.errors import HistoryError
from kitchen.machine.parts import Address as Address
from kitchen.machine.parts import BlobItems as BlobItems
from kitchen.machine.parts import Collection as Collection
from kitchen.machine.parts import Event as Event
from kitchen.machine.parts import Failure as Failure
from kitchen.machine.parts import Host as Host
from kitchen.machine.parts import InlineItems as InlineItems
from kitchen.machine.parts import Items as Items
from kitchen.machine.parts import Manifest as Manifest
from kitchen.machine.parts import OpenItems as OpenItems
from kitchen.machine.parts import RangeItems as RangeItems
from kitchen.machine.parts import RefItems as RefItems
from kitchen.machine.parts import Visit as Visit
from kitchen.machine.parts import spell as spell
from kitchen.machine.stage_events import BlockFailed as BlockFailed
from kitchen.machine.stage_events import Effect as Effect
from kitchen.machine.stage_events import EffectDecided as EffectDecided
from kitchen.machine.stage_events import FailureHandled as FailureHandled
from kitchen.machine.stage_events import LoopStopped as LoopStopped
from kitchen.machine.stage_events import MetricRecorded as MetricRecorded
from kitchen.machine.stage_events import Mutation as Mutation
from kitchen.machine.stage_events import RetryScheduled as RetryScheduled
from kitchen.machine.stage_events import StageCompleted as StageCompleted
from kitchen.machine.stage_events import StageFailed as StageFailed
from kitchen.machine.stage_events import StageInterrupted as StageInterrupted
from kitchen.machine.stage_events import StageRolledBack as StageRolledBack
from kitchen.machine.stage_events import StageSkipped as StageSkipped
from kitchen.machine.stage_events import StageStarted as StageStarted
from kitchen.machine.stage_events import StateAppended as StateAppended
from kitchen.machine.stage_events import StateDeleted as StateDeleted
from kitchen.machine.stage_events import StateIncremented as StateIncremented
from kitchen.machine.stage_events import StateMerged as StateMerged
from kitchen.machine.stage_events import StatePut as StatePut
from kitchen.machine.stage_events import TimeLimitEnded as TimeLimitEnded
from kitchen.machine.stage_events import TimeLimitStarted as TimeLimitStarted
from kitchen.workflow.definition import Locator

NOTHING = Raw(b"")


class Fact(NamedTuple):
    """An event and where it happened."""

    event: Event
    path: str = ""
    visit: Visit = ()
    attempt: int = 0


# --- the run ----------------------------------------------------------------------------------


class RunStarted(Event, frozen=True):
    """A run began. `config` and each value of `state` are encoded by the codec."""

    workflow: str
    ir: Raw
    fingerprint: str
    config: Raw
    state: dict[str, Raw] = {}
    seed: int = 0
    durability: str = "process"
    locator: Locator | None = None
    host: Host = Host()


class RunForked(Event, frozen=True):
    """From here on the run is one of its own: all before this is the run `parent`'s as well.

    `parent`: the run's name at that time. It stands at a cut, and waits to be resumed.
    """

    parent: str
    host: Host = Host()


class RunResumed(Event, frozen=True):
    """A process took the run up again. `after`: "crash", "failure" or "interruption", or "rewind"
    where it was sent back."""

    after: str = "crash"
    host: Host = Host()


class RunRewound(Event, frozen=True):
    """The events after `to` no longer count. `touched`: the resources that made it necessary.

    `asked`: somebody wished the run to go another way from there, so that nothing of what had come
    behind is taken over but effects that must not happen twice.
    """

    to: int
    touched: tuple[str, ...] = ()
    reason: str = ""
    asked: bool = False


class RunEdited(Event, frozen=True):
    """Somebody changed what the run goes on with: the config, the seed, values of the state."""

    config: Raw = NOTHING
    seed: int | None = None
    state: dict[str, Raw] = {}


class RewindDiverged(Event, frozen=True):
    """What ran again behind a rewind was not what had been recorded, first here at `key`."""

    key: str
    recorded: str = ""
    found: str = ""


class WorkflowChanged(Event, frozen=True):
    """The run went on with another version of its workflow; all that was recorded is legal there.

    `state`: the defaults of fields that the state type has gained. `renamed`: new paths of nodes
    by their old ones, which the events before this have.
    """

    ir: Raw
    fingerprint: str
    differences: tuple[str, ...] = ()
    state: dict[str, Raw] = {}
    renamed: dict[str, str] = {}


class RunInterrupted(Event, frozen=True):
    """The run was asked to stop, and did, at a boundary."""

    signal: str = "SIGINT"


class RunCancelled(Event, frozen=True):
    """The run was ended for good, from outside. `by`: who asked for it."""

    by: str = ""


class RunCompleted(Event, frozen=True):
    """Everything is done."""


class RunFailed(Event, frozen=True):
    """The run ended by a failure; the path says where."""

    failure: Failure


# --- control flow -----------------------------------------------------------------------------


class ConditionEvaluated(Event, frozen=True):
    """A predicate answered. `touched`: the stateful resources that it looked at."""

    answer: bool
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class LoopEntered(Event, frozen=True):
    """A loop got its collection."""

    items: Collection
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class ItemTaken(Event, frozen=True):
    """A visit of a loop's body began; the visit's last number is the item's index.

    Of a stream: `value` is the item where it is small, `digest` tells what it was ("" where it
    cannot be encoded), `source` every so often the source's state once the item was out.
    """

    value: Raw = NOTHING
    digest: str = ""
    source: Manifest | None = None


class ItemProduced(Event, frozen=True):
    """A producer made an item; the visit's last number is the item's index.

    `version`: how many items had been consumed in the state that it was made from. `touched`: the
    stateful resources that making it used. `failure`: why there is none; told at its turn.
    """

    value: Raw = NOTHING
    version: int = 0
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()
    failure: Failure | None = None


class ItemDiscarded(Event, frozen=True):
    """An item will not be consumed. `reason`: "stale", or "left" where the loop was left."""

    reason: str = "stale"


class LoopExited(Event, frozen=True):
    """A loop has no more items, or was asked to end."""


# --- parallel ---------------------------------------------------------------------------------


class BranchesStarted(Event, frozen=True):
    """A parallel was entered: so many branches, at most `limit` of them at a time.

    `items`: what its `over` gave, if it has one.
    """

    count: int
    limit: int
    items: Collection | None = None
    touched: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class BranchStarted(Event, frozen=True):
    """A branch began: it sees the state as it was when the parallel was entered."""


class BranchCompleted(Event, frozen=True):
    """A branch has come to its end; what it wrote waits for the join."""


class BranchFailed(Event, frozen=True):
    """A branch failed, and its siblings go on (`on_error="finish"`). `at`: the place in it.

    `stood`: where in it the run stood, in the words of the machine.
    """

    failure: Failure
    at: Address = Address("")
    stood: Address = Address("")


class BranchesJoined(Event, frozen=True):
    """All branches are done: what they wrote counts, in branch order; `merged` in their place."""

    merged: dict[str, Raw] = {}


# --- resources --------------------------------------------------------------------------------


class ResourceOpened(Event, frozen=True):
    """A live object was made. `touched`: the stateful resources that its factory used.

    `lost`: those among them that had been touched before and were not saved, if the object has no
    state of its own: while it is open there is no cut.
    """

    name: str
    stateful: bool = False
    touched: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    looked: tuple[str, ...] = ()


class ResourceTouched(Event, frozen=True):
    """User code got at a stateful resource for the first time since it was saved or opened."""

    name: str


class ResourceRestored(Event, frozen=True):
    """A resumed process opened the resource anew; `saved`: the seq it was loaded from, if any."""

    name: str
    saved: int | None = None


class ResourcesClosed(Event, frozen=True):
    """A block ended, and what it had opened was closed."""

    names: tuple[str, ...] = ()


class CheckpointSaved(Event, frozen=True):
    """Every stateful resource is saved: a cut. Those untouched since they were saved are not
    saved again, and not named here."""

    resources: dict[str, Manifest] = {}


EVENTS: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        RunStarted, RunForked, RunResumed, RunRewound, RunEdited, RewindDiverged, WorkflowChanged,
        RunInterrupted, RunCancelled, RunCompleted, RunFailed,
        StageStarted, StageCompleted, StageFailed, StageInterrupted,
        RetryScheduled, StageSkipped, StageRolledBack, EffectDecided,
        BlockFailed, FailureHandled, TimeLimitStarted, TimeLimitEnded,
        StatePut, StateDeleted, StateAppended, StateIncremented, StateMerged, MetricRecorded,
        ConditionEvaluated, LoopEntered, ItemTaken, ItemProduced, ItemDiscarded, LoopStopped,
        LoopExited, BranchesStarted, BranchStarted, BranchCompleted, BranchFailed, BranchesJoined,
        ResourceOpened, ResourceTouched, ResourceRestored, ResourcesClosed, CheckpointSaved,
    )
}  # fmt: skip

_DECODERS: dict[str, Any] = {name: msgspec.json.Decoder(cls) for name, cls in EVENTS.items()}
_EMPTY = {name: cls() for name, cls in EVENTS.items() if not msgspec.structs.fields(cls)}
_ENCODER = msgspec.json.Encoder()


def to_json(event: Event) -> str:
    """The payload of an event: JSON text without the type, which has a column of its own."""
    return "{}" if type(event).__name__ in _EMPTY else _ENCODER.encode(event).decode()


def from_json(type_name: str, payload: str | bytes) -> Event:
    """The event of that type in that text.

    Raises `HistoryError` where the type is unknown or the text does not fit it.
    """
    try:
        if type_name in _EMPTY:
            return _EMPTY[type_name]
        return _DECODERS[type_name].decode(payload)
    except KeyError:
        raise HistoryError(
            f"unknown event type {type_name!r}",
            hint="the log was written by a newer kitchen; upgrade this one",
        ) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise HistoryError(f"the payload of a {type_name} does not fit its type: {error}") from None

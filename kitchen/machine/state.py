"""The state of a run: what folding its log gives.

Rules:

1. `State` follows from the log alone. Live and folded are equal after every event.
2. `Core` is what a rewind takes back: where control stands, the user's data, the resources.
   What outlives a rewind (incarnation, memo, crash counts, tries, verdicts) stands beside it.
3. A value of the user is a `Cell` (`value`), which never changes: a copy of the state shares it.
4. `cut` is None while the state is *clean*: no stateful resource was touched since it was saved
   or opened, so the head itself is the cut. The first touch fixes it at the seq before,
   or, for a stage, at the start of the attempt: its early metrics are superseded with it. Where
   several run side by side, the earliest of these counts.
5. A branch has an `overlay`: what it has put or deleted (None) since the parallel was entered.
   `claims` holds who was first, of the sides of a parallel or async loop, to write a key or touch
   a resource.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from msgspec import Raw

from kitchen.machine.events import (
    Address,
    BranchesStarted,
    ConditionEvaluated,
    Effect,
    Failure,
    ItemProduced,
    ItemTaken,
    LoopEntered,
    Manifest,
    RunStarted,
    Visit,
)
from kitchen.machine.value import Cell as Cell
from kitchen.machine.value import Delta as Delta

READY, ACTIVE = "ready", "running"


class Place(NamedTuple):
    """A token on a leaf. `open`: an attempt has started there, at `started`, and has not ended.

    `waits`: the next attempt is not due yet.
    """

    leaf: str
    visit: Visit
    attempt: int = 0
    open: bool = False
    started: int = 0
    waits: bool = False


class Frame(NamedTuple):
    """A loop or stream being run: how many items (-1: nobody knows), which is current (-1: none
    yet), entered at which seq. `stop`: it was asked to end after this visit."""

    total: int
    current: int
    entered: int
    stop: bool = False


class Fork(NamedTuple):
    """A parallel being run: how many branches, at most how many at a time, how many have been
    started and are done, entered at which seq."""

    total: int
    limit: int
    started: int
    done: int
    entered: int


class Made(NamedTuple):
    """An item in the buffer of an async loop: its number, the seq that holds it, the version; or
    why it could not be made."""

    number: int
    seq: int
    version: int
    failure: Failure | None = None


class Feed(NamedTuple):
    """An async loop being run.

    `turn`: the item that is being consumed, or is next. `consumed`: how many were. `made`: what
    lies in the buffer, the current one included, by number. `ended`: for the latest turns, the seq
    at which each ended and how many had been consumed. `hold`, `last`: no production from that
    index on, for a checkpoint's sake or because the loop ends. `owned`: whether a production has
    touched a stateful resource.
    """

    entered: int
    turn: int = 0
    consumed: int = 0
    made: tuple[Made, ...] = ()
    ended: tuple[tuple[int, int], ...] = ()
    hold: int | None = None
    last: int | None = None
    stop: bool = False
    owned: bool = False


class Limit(NamedTuple):
    """A block with a time limit in seconds, entered at which seq."""

    entered: int
    seconds: float


class Failing(NamedTuple):
    """What failed for good at `at`, and ends a "run", a "branch", a "block" or a "stage".

    `undo`: the stages that are still to be rolled back, the next first. `touched`: the resources
    that the attempt used and did not commit. `stood`: where the run stood.
    """

    failure: Failure
    at: Address
    ends: str
    undo: tuple[Address, ...] = ()
    touched: tuple[str, ...] = ()
    stood: Address = Address("")


class ResourceState(NamedTuple):
    """A resource that is open. `saved` and `manifest`: the last checkpoint that holds it.

    `lost`: it has no state of its own, and was made from what could not be had again.
    """

    path: str
    visit: Visit
    opened: int
    stateful: bool
    saved: int | None = None
    manifest: Manifest | None = None
    touched: bool = False
    lost: bool = False


class Halt(NamedTuple):
    """Why a branch does not go on, and where in it that was."""

    failure: Failure
    at: Address


@dataclass(slots=True)
class Control:
    """Where the run stands: tokens, and what is known of the loops and parallels around them.

    `halted`: the branches that failed while their siblings go on, and why. `parked`: those that had
    failed, and since a resume wait for a place among the ones that may run. `failing`: what a
    failure ends, until all in it has ended. `limits`: the blocks whose time is limited.
    """

    status: str = READY
    active: dict[Address, Place] = field(default_factory=dict[Address, Place])
    frames: dict[Address, Frame] = field(default_factory=dict[Address, Frame])
    forks: dict[Address, Fork] = field(default_factory=dict[Address, Fork])
    feeds: dict[Address, Feed] = field(default_factory=dict[Address, Feed])
    halted: dict[Address, Halt] = field(default_factory=dict[Address, Halt])
    parked: tuple[Address, ...] = ()
    failing: dict[Address, Failing] = field(default_factory=dict[Address, Failing])
    limits: dict[Address, Limit] = field(default_factory=dict[Address, Limit])

    def copy(self) -> Control:
        """A draft: changing it leaves this one as it is."""
        return Control(
            self.status,
            self.active.copy(),
            self.frames.copy(),
            self.forks.copy(),
            self.feeds.copy(),
            self.halted.copy(),
            self.parked,
            self.failing.copy(),
            self.limits.copy(),
        )


class Stain(NamedTuple):
    """A stretch of events, `first` <= seq < `until`, after which the state was not clean, and the
    cut that it had."""

    first: int
    until: int
    cut: int


Overlay: TypeAlias = dict[str, Cell | None]


@dataclass(slots=True)
class Core:
    """What a rewind takes back.

    `soiled`: the seq of the first touch since the state was clean. `stains`: while branches run,
    when it was not: an attempt that began there has its cut before.
    """

    control: Control = field(default_factory=Control)
    data: dict[str, Cell] = field(default_factory=dict[str, Cell])
    resources: dict[str, ResourceState] = field(default_factory=dict[str, ResourceState])
    cut: int | None = None
    overlays: dict[Address, Overlay] = field(default_factory=dict[Address, Overlay])
    claims: dict[Address, dict[str, Address]] = field(
        default_factory=dict[Address, dict[str, Address]]
    )
    soiled: int = 0
    stains: tuple[Stain, ...] = ()

    def copy(self) -> Core:
        """An independent copy that shares the values."""
        return Core(
            self.control.copy(),
            dict(self.data),
            dict(self.resources),
            self.cut,
            {address: dict(overlay) for address, overlay in self.overlays.items()},
            {address: dict(claims) for address, claims in self.claims.items()},
            self.soiled,
            self.stains,
        )


def cut_at(core: Core, seq: int) -> int:
    """The cut of what began at a seq; earlier than that where the state was not clean then."""
    return next((s.cut for s in core.stains if s.first <= seq < s.until), seq)


class StageMemo(NamedTuple):
    """What a superseded attempt had committed: a digest for each `state.<key>`, `metric.<name>`."""

    digests: dict[str, str]


class Once(NamedTuple):
    """What a stage whose effect must not happen twice had done: its changes and metrics, which
    hold; None: nobody knows, so it is *undecided*. `decided`: somebody has said what they are."""

    effects: tuple[Effect, ...] | None
    decided: bool = False

    def unsure(self) -> Once:
        """The same once the past did not come out again: only what somebody said still holds."""
        return self if self.decided else Once(None)


class Tried(NamedTuple):
    """The attempts at an address that failed: the number of the last, how many; after how many
    seconds since which seq the next is due (0: none was scheduled)."""

    attempt: int
    failed: int
    delay: float = 0.0
    since: int = 0


class Verdict(NamedTuple):
    """What failed for good at `at`, told at `seq`: behind a rewind it is not run again.

    It ended a "branch", a "block" or a "stage". `undo`: the stages that are then to be rolled back.
    `ahead`: a rewind has superseded it, and the run has not come there again.
    """

    failure: Failure
    at: Address
    seq: int
    ends: str
    block: Address
    undo: tuple[Address, ...] = ()
    ahead: bool = False


Remembered: TypeAlias = (
    StageMemo | Once | ConditionEvaluated | LoopEntered | BranchesStarted | ItemTaken | ItemProduced
)


@dataclass(slots=True)
class State:
    """A run, folded up to `seq`.

    `memo` is what is known of the superseded future; `rewound` the seq of the last rewind;
    `crashes` how often a process died at an address without what was asked there having ended
    (at the empty one: since anything had); `gained` the defaults of fields that the state type got
    since the run was started; `tries` what is known of attempts that failed, and `verdicts` where
    a failure took place that did not end the run: both hold behind a rewind too; `done` the
    stages that a failing run rolls back, once they were completed, rewinds or not, and
    `compensated` whether it has begun to; `mended` the seq
    at which the run was last taken up after it had failed.
    """

    seq: int = 0
    started: RunStarted | None = None
    core: Core = field(default_factory=Core)
    incarnation: int = 0
    rewound: int = 0
    memo: dict[Address, Remembered] = field(default_factory=dict[Address, Remembered])
    crashes: dict[Address, int] = field(default_factory=dict[Address, int])
    gained: dict[str, Raw] = field(default_factory=dict[str, Raw])
    tries: dict[Address, Tried] = field(default_factory=dict[Address, Tried])
    verdicts: dict[Address, Verdict] = field(default_factory=dict[Address, Verdict])
    mended: int = 0
    done: dict[Address, None] = field(default_factory=dict[Address, None])
    compensated: bool = False

    @property
    def status(self) -> str:
        """ "ready", "running", "completed", "failed", "interrupted" or "cancelled"."""
        return self.core.control.status

    @property
    def is_taken_back(self) -> bool:
        """Whether it has failed and rolled its completed stages back: nothing is there to go on from."""
        return self.compensated and self.status == "failed"

    @property
    def cut(self) -> int:
        """The latest seq at which every stateful resource can be had again."""
        return self.seq if self.core.cut is None else self.core.cut

    @property
    def dirty(self) -> tuple[str, ...]:
        """The resources that keep the head from being a cut, by name."""
        return tuple(sorted(n for n, r in self.core.resources.items() if r.touched or r.lost))

    def cut_before(self, seq: int) -> int:
        """The latest seq, not after this one, at which every stateful resource can be had again."""
        return min(self.cut, cut_at(self.core, seq))

    def stateful(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of these resources that are open and stateful, sorted."""
        known = self.core.resources
        return tuple(sorted(name for name in names if name in known and known[name].stateful))

    @property
    def unsaved(self) -> tuple[str, ...]:
        """The stateful resources that a checkpoint must save: touched since, or never saved."""
        open_now = self.core.resources.items()
        return tuple(n for n, r in open_now if r.stateful and (r.touched or r.saved is None))

    def copy(self) -> State:
        """An independent copy that shares the values."""
        return State(
            self.seq,
            self.started,
            self.core.copy(),
            self.incarnation,
            self.rewound,
            dict(self.memo),
            dict(self.crashes),
            dict(self.gained),
            dict(self.tries),
            dict(self.verdicts),
            self.mended,
            dict(self.done),
            self.compensated,
        )

"""What of a log is executed again, found by folding it once before anything is.

Rules:

1. Of events that do not count nothing is executed. An attempt is executed where it was committed
   and its effect may happen twice: an attempt that failed, or was stopped, is not.
2. An attempt is executed at the first event of its own behind its start: that it was started, and
   when its body was called, may lie far apart.
3. Where only some paths are wanted, what they need is executed too: if the state was not clean where
   one of them was asked for, all that came after its cut, since that made the resources what
   they were.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from kitchen.log.live import Live, live
from kitchen.log.reader import LogReader
from kitchen.log.replayed import Divergence, Stepping
from kitchen.machine.chart import Program
from kitchen.machine.events import (
    Address,
    BranchesJoined,
    BranchesStarted,
    CheckpointSaved,
    ConditionEvaluated,
    Fact,
    ItemProduced,
    ItemTaken,
    LoopEntered,
    LoopExited,
    MetricRecorded,
    ResourceOpened,
    ResourceTouched,
    RunForked,
    StageCompleted,
    StageStarted,
    Visit,
)
from kitchen.machine.stage_events import Mutation
from kitchen.machine.state import State
from kitchen.workflow.ir import StageNode

OWN = (Mutation, MetricRecorded, ResourceTouched, StageCompleted)
"""The events of an attempt behind its start, `LoopStopped` apart, which comes after them."""

_ASKED = frozenset(
    {
        BranchesJoined, BranchesStarted, CheckpointSaved, ConditionEvaluated, ItemProduced,
        ItemTaken, LoopEntered, LoopExited, ResourceOpened,
    }
)  # fmt: skip

Key = tuple[str, Visit, int]


def key_of(fact: Fact) -> Key:
    """Which attempt an event belongs to."""
    return fact.path, fact.visit, fact.attempt


def wanted(path: str, only: str | None) -> bool:
    """Whether a path is the one that was asked for, or lies below it."""
    return only is None or path == only or path.startswith(f"{only}/")


@dataclass
class Plan:
    """What to execute. `commits`: the seqs at which committed attempts were started.

    `stretches`: from which seq (exclusive) to which all is executed, in order, apart from each
    other. `counting`: which events count. `forks`: where the run became one of its own, and what it
    was called before. `broken`: what is wrong with the log itself.
    """

    last: int
    counting: Live
    commits: set[int] = field(default_factory=set[int])
    stretches: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    forks: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    broken: list[Divergence] = field(default_factory=list[Divergence])

    def name_at(self, seq: int, run: str) -> str:
        """What the run was called when an event happened."""
        return next((parent for fork, parent in self.forks if seq < fork), run)

    def within(self, seq: int) -> bool:
        """Whether an event lies in a stretch that is executed."""
        after = bisect_right(self.stretches, seq - 1, key=lambda each: each[0])
        return after > 0 and seq <= self.stretches[after - 1][1]

    def cover(self, cut: int, until: int) -> None:
        """Have all executed that came after a cut; earlier calls had an earlier `until`."""
        while self.stretches and self.stretches[-1][1] > cut:
            cut = min(cut, self.stretches.pop()[0])
        self.stretches.append((cut, until))


class _Attempt:
    """One that has begun: at which seq, and the cut at its first own event (-1: it was clean)."""

    def __init__(self, started: int) -> None:
        self.started = started
        self.cut: int | None = None


def planned(reader: LogReader, program: Program, last: int, only: str | None) -> Plan:
    """Fold the log up to `last`, and note what is to be executed."""
    plan = Plan(last, live(reader.store, reader.run, last))
    if only is None:
        plan.stretches.append((0, last))
    walker, state = Stepping(reader.store, reader.run, program), State()
    begun: dict[Key, _Attempt] = {}
    for record, fact in walker.steps(state, last, plan.broken.append):
        if plan.counting.counts(record.seq):
            _note(plan, program, begun, state, record.seq, fact, only)
    if plan.broken:
        plan.last = state.seq if state.seq < plan.broken[0].seq else plan.broken[0].seq - 1
    return plan


def _note(
    plan: Plan,
    program: Program,
    begun: dict[Key, _Attempt],
    state: State,
    seq: int,
    fact: Fact,
    only: str | None,
) -> None:
    event: Any = fact.event
    if isinstance(event, StageStarted):
        begun[key_of(fact)] = _Attempt(seq)
        return
    if isinstance(event, RunForked):
        plan.forks.append((seq, event.parent))
        return
    attempt = begun.get(key_of(fact)) if fact.attempt and isinstance(event, OWN) else None
    cut = -1 if state.core.cut is None else state.core.cut
    if attempt is not None:
        if attempt.cut is None:
            attempt.cut = cut
        cut = attempt.cut
        if not isinstance(event, StageCompleted):
            return
        del begun[key_of(fact)]
        node = program.nodes.get(fact.path)
        if event.known or (isinstance(node, StageNode) and node.effect == "once"):
            return
        plan.commits.add(attempt.started)
    elif type(event) not in _ASKED:
        return
    if only is not None and wanted(fact.path, only) and cut >= 0:
        plan.cover(cut, seq)


def start_of(state: State, fact: Fact) -> int:
    """The seq at which the attempt of an event began that is running there; 0: none is."""
    place = state.core.control.active.get(Address(fact.path, fact.visit))
    running = place is not None and place.open and place.attempt == fact.attempt
    return place.started if running and place is not None else 0

"""`apply` and `fold`: from events to the state of a run.

Rules:

1. Pure: no clock, no I/O, no user code. `apply` changes the state it is given and nothing else.
2. Where the run stands is `control.advance`'s; here is what events do to data, resources and memo.
3. A rewind needs the past: the state at the seq it goes to, and the events it supersedes. Both
   come through `Recall`; everything else is folded in one pass, superseded events included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds, lanes, rewinding
from kitchen.machine.cells import increment
from kitchen.machine.chart import Program
from kitchen.machine.control import CONTROL, advance, may_change
from kitchen.machine.events import Address, Event, Fact
from kitchen.machine.outstanding import outstanding, within
from kitchen.machine.state import (
    Cell,
    Delta,
    ResourceState,
    Stain,
    State,
    cut_at,
)
from kitchen.machine.tokens import illegal
from kitchen.workflow.ir import AsyncLoopNode


class Recall(Protocol):
    """The past of a run."""

    def state_at(self, seq: int) -> State:
        """The state folded up to and including `seq`; the caller may keep and change it."""
        ...

    def facts(self, after: int, until: int) -> Iterable[Fact]:
        """The events with `after` < seq < `until`, in order."""
        ...


class ListRecall:
    """The past, from a list of facts that starts at seq 1."""

    def __init__(self, program: Program, facts: Sequence[Fact]) -> None:
        self._program = program
        self._facts = facts

    def state_at(self, seq: int) -> State:
        return fold(self._program, self._facts[:seq])

    def facts(self, after: int, until: int) -> Iterable[Fact]:
        return self._facts[after : until - 1]


def fold(program: Program, facts: Sequence[Fact]) -> State:
    """The state after these facts, the first of which has seq 1.

    Raises `IllegalEvent`.
    """
    state = State()
    recall = ListRecall(program, facts)
    for fact in facts:
        apply(program, state, fact, recall)
    return state


def apply(
    program: Program, state: State, fact: Fact, recall: Recall, *, moved: bool = False
) -> None:
    """Bring the state one event further.

    `moved`: the control has been advanced by `decide`, and is put in by the caller. Raises
    `IllegalEvent` where the event cannot follow; the state is then not to be used.
    """
    state.seq += 1
    kind = type(fact.event)
    if not moved:
        if kind in CONTROL:
            advance(program, state.core.control, fact, state.seq)
        elif kind in _IN_ATTEMPTS:
            may_change(program, state.core.control, fact, state.seq)
        elif kind not in _HANDLERS and kind not in _SILENT:
            expected = "an event this kitchen knows"
            raise illegal(program, state.core.control, fact, state.seq, expected)
    if state.memo and kind in _REMEMBERED:
        rewinding.come_again(state, Address(fact.path, fact.visit))
    if state.crashes and kind in _PERFORMED:
        _forgive(state, fact)
    handler = _HANDLERS.get(kind)
    if handler is not None:
        handler(program, state, fact, recall)
    if kind in _LOOKING:
        event: Any = fact.event
        for name in event.looked:
            lanes.look(program, state.core, Address(fact.path, fact.visit), name)


def _forgive(state: State, fact: Fact) -> None:
    """What processes died of has come to its end."""
    state.crashes.pop(Address(fact.path, fact.visit), None)
    state.crashes.pop(Address(""), None)
    if type(fact.event) is E.ItemTaken:  # it was the loop that was asked
        state.crashes.pop(Address(fact.path, fact.visit[:-1]), None)


def _started(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    state.started = event
    state.core.data = {key: Cell(value) for key, value in event.state.items()}


def _resumed(program: Program, state: State, fact: Fact, recall: Recall) -> None:
    event: Any = fact.event
    if event.after == "crash":
        due = outstanding(program, state)
        asked = (
            c.address for c in due if not isinstance(c, C.AwaitRetry)
        )  # nobody dies of waiting
        for at in dict.fromkeys(
            (Address(""), *asked)
        ):  # each once: the root's block is closed at ""
            state.crashes[at] = state.crashes.get(at, 0) + 1
    rewinding.resumed(program, state, fact, recall)


def _workflow_changed(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    state.gained = {**state.gained, **event.state}
    rewinding.fill(state)


def _put(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    _write(program, state, fact, Cell(event.value))


def _deleted(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    _cell(program, state, fact)
    _write(program, state, fact, None)


def _delta(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    cell = _cell(program, state, fact)
    if isinstance(event, E.StateIncremented):
        _write(program, state, fact, increment(cell, event.by))
    else:
        kind = "append" if isinstance(event, E.StateAppended) else "merge"
        _write(program, state, fact, cell.with_delta(Delta(kind, event.values)))


def _cell(program: Program, state: State, fact: Fact) -> Cell:
    """The value that a change is made to."""
    event: Any = fact.event
    if state.core.overlays:
        cell = lanes.read(program, state.core, Address(fact.path, fact.visit), event.key)
    else:
        cell = state.core.data.get(event.key)
    if cell is None:
        raise illegal(program, state.core.control, fact, state.seq, f"a state key {event.key!r}")
    return cell


def _write(program: Program, state: State, fact: Fact, cell: Cell | None) -> None:
    event: Any = fact.event
    core = state.core
    if cell is not None and not core.overlays:  # the common case, without an address
        core.data[event.key] = cell
        return
    address = Address(fact.path, fact.visit)
    _refuse_clash(program, state, fact, address, [event.key])
    lanes.write(program, core, address, event.key, cell)


def _refuse_clash(
    program: Program, state: State, fact: Fact, address: Address, keys: Iterable[str]
) -> None:
    """What `decide` never lets happen, but a `merge` that was there when this was recorded did."""
    clash = lanes.conflict(program, state.core, address, keys)
    if clash is not None:
        expected = f"that {lanes.told(program, clash).message} does not happen"
        raise illegal(program, state.core.control, fact, state.seq, expected)


def _forked(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """What `over` touched is the parallel's, for one that fails leaves nothing."""
    event: Any = fact.event
    if event.touched:
        address = Address(fact.path, fact.visit)
        claims = state.core.claims.setdefault(address, {})
        claims.update((f"over {name}", address) for name in event.touched)


def _stopped(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """Who asked for a loop to end is known at each parallel around, which may fail and be caught."""
    address = Address(fact.path, fact.visit)
    for lane, at in lanes.around(program, address):
        if lane.data:
            claims = state.core.claims.setdefault(lanes.owner_of(lane, fact.visit), {})
            claims.setdefault("stop", at)


def _begun(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    state.core.overlays.setdefault(Address(fact.path, fact.visit), {})


def _joined(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    merged = {key: Cell(value) for key, value in event.merged.items()}
    address = Address(fact.path, fact.visit)
    written = [
        key for _, overlay in lanes.branches(program, state.core, address) for key in overlay
    ]
    _refuse_clash(program, state, fact, address, written)
    lanes.join(program, state.core, address, merged)
    if not state.core.overlays:
        state.core.stains = ()


def _exited(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    loop = Address(fact.path, fact.visit)
    if state.core.claims:
        state.core.claims.pop(loop, None)
    if state.memo and isinstance(program.nodes[fact.path], AsyncLoopNode):
        # What had been made ahead, and was not needed this time.
        left = [at for at in state.memo if at == feeds.production(loop, (at.visit or (0,))[-1])]
        for at in left:
            del state.memo[at]


def _handled(program: Program, state: State, fact: Fact, recall: Recall) -> None:
    """What a block had that failed: its resources, what its branches wrote, who claimed what."""
    core, block = state.core, Address(fact.path, fact.visit)
    for name, known in list(core.resources.items()):
        if within(Address(known.path, known.visit), block):
            del core.resources[name]
    _settle_cut(state)
    for at in [at for at in core.overlays if within(at, block)]:
        del core.overlays[at]
    for at in [at for at in core.claims if within(at, block)]:
        del core.claims[at]
    if not core.overlays:
        core.stains = ()
    rewinding.handled(program, state, fact, recall)


def _opened(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    if event.name in state.core.resources:
        raise illegal(program, state.core.control, fact, state.seq, "a resource not yet open")
    state.core.resources[event.name] = ResourceState(
        fact.path, fact.visit, state.seq, event.stateful, lost=bool(event.lost)
    )
    if event.lost:
        _cut_at(state, state.seq - 1)


def _touched(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    known = state.core.resources.get(event.name)
    if known is None or not known.stateful:
        raise illegal(program, state.core.control, fact, state.seq, "an open, stateful resource")
    address = Address(fact.path, fact.visit)
    place = state.core.control.active.get(address)
    _cut_at(state, place.started if place is not None and place.open else state.seq - 1)
    state.core.resources[event.name] = known._replace(touched=True)
    lanes.touch(program, state.core, address, event.name)


def _cut_at(state: State, seq: int) -> None:
    """There is no cut after this seq, nor there if the state was not clean then."""
    core = state.core
    seq = cut_at(core, seq)
    if core.cut is None:
        core.soiled = state.seq
    if core.cut is None or seq < core.cut:
        core.cut = seq


def _closed(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    for name in event.names:
        state.core.resources.pop(name, None)
    _settle_cut(state)


def _saved(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    resources = state.core.resources
    for name, manifest in event.resources.items():
        if name not in resources:
            raise illegal(program, state.core.control, fact, state.seq, f"an open {name!r}")
        resources[name] = resources[name]._replace(
            saved=state.seq, manifest=manifest, touched=False
        )
    _settle_cut(state)


def _settle_cut(state: State) -> None:
    core = state.core
    if core.cut is not None and not any(r.touched or r.lost for r in core.resources.values()):
        if core.overlays:  # attempts in other branches may have begun meanwhile
            core.stains = (*core.stains, Stain(core.soiled, state.seq, core.cut))
        core.cut = None


_REMEMBERED = frozenset(
    {
        E.StageCompleted,
        E.ConditionEvaluated,
        E.LoopEntered,
        E.BranchesStarted,
        E.ItemTaken,
        E.ItemProduced,
    }
)
_PERFORMED = frozenset(
    {
        E.StageCompleted,
        E.ConditionEvaluated,
        E.LoopEntered,
        E.LoopExited,
        E.ItemTaken,
        E.ItemProduced,
        E.BranchesStarted,
        E.BranchesJoined,
        E.ResourceOpened,
        E.ResourcesClosed,
        E.CheckpointSaved,
        E.StageSkipped,
        E.StageRolledBack,
        E.FailureHandled,
    }
)
_LOOKING = frozenset(
    {
        E.StageCompleted,
        E.ConditionEvaluated,
        E.LoopEntered,
        E.ItemProduced,
        E.BranchesStarted,
        E.ResourceOpened,
    }
)
_IN_ATTEMPTS = frozenset(
    {
        E.StatePut,
        E.StateDeleted,
        E.StateAppended,
        E.StateIncremented,
        E.StateMerged,
        E.MetricRecorded,
    }
)
_SILENT = frozenset({E.ResourceRestored})
_HANDLERS: dict[type[Event], Callable[[Program, State, Fact, Recall], None]] = {
    E.RunStarted: _started,
    E.RunResumed: _resumed,
    E.RunForked: rewinding.forked,
    E.RunRewound: rewinding.rewound,
    E.RunEdited: rewinding.edited,
    E.RewindDiverged: rewinding.diverged,
    E.StageCompleted: rewinding.completed,
    E.StageFailed: rewinding.failed,
    E.StageInterrupted: rewinding.interrupted,
    E.RetryScheduled: rewinding.scheduled,
    E.StageSkipped: rewinding.skipped,
    E.BlockFailed: rewinding.block_failed,
    E.BranchFailed: rewinding.branch_failed,
    E.EffectDecided: rewinding.effect_decided,
    E.FailureHandled: _handled,
    E.WorkflowChanged: _workflow_changed,
    E.StatePut: _put,
    E.StateDeleted: _deleted,
    E.StateAppended: _delta,
    E.StateIncremented: _delta,
    E.StateMerged: _delta,
    E.BranchesStarted: _forked,
    E.LoopStopped: _stopped,
    E.BranchStarted: _begun,
    E.BranchesJoined: _joined,
    E.LoopExited: _exited,
    E.ResourceOpened: _opened,
    E.ResourceTouched: _touched,
    E.ResourcesClosed: _closed,
    E.CheckpointSaved: _saved,
}

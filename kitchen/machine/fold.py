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

from kitchen.machine import events as E
from kitchen.machine.cells import increment
from kitchen.machine.chart import Program, Role
from kitchen.machine.control import CONTROL, advance, illegal, open_attempt
from kitchen.machine.events import Address, Event, Fact
from kitchen.machine.memo import remember
from kitchen.machine.state import (
    ACTIVE,
    Cell,
    Delta,
    Place,
    ResourceState,
    State,
)


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
            open_attempt(program, state.core.control, fact, state.seq)
        elif kind not in _HANDLERS and kind not in _SILENT:
            expected = "an event this kitchen knows"
            raise illegal(program, state.core.control, fact, state.seq, expected)
    if state.memo and kind in _REMEMBERED:
        state.memo.pop(Address(fact.path, fact.visit), None)
    if state.crashes and kind in _PERFORMED:
        state.crashes.pop(Address(fact.path, fact.visit), None)
        state.crashes.pop(Address(""), None)
    handler = _HANDLERS.get(kind)
    if handler is not None:
        handler(program, state, fact, recall)


def _started(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    state.started = event
    state.core.data = {key: Cell(value) for key, value in event.state.items()}


def _resumed(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    if event.after == "crash":
        state.crashes[Address("")] = state.crashes.get(Address(""), 0) + 1
        for address, place in state.core.control.active.items():
            if place.open or program.leaves[place.leaf].role is not Role.STAGE:
                state.crashes[address] = state.crashes.get(address, 0) + 1
    elif event.after == "failure":
        state.crashes = {}


def _workflow_changed(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    state.gained = {**state.gained, **event.state}
    _fill(state)


def _fill(state: State) -> None:
    """Fields that the state type has gained have their defaults, behind a rewind too."""
    for key, value in state.gained.items():
        state.core.data.setdefault(key, Cell(value))


def _rewound(program: Program, state: State, fact: Fact, recall: Recall) -> None:
    event: Any = fact.event
    seq = state.seq
    if not 0 < event.to < seq:
        raise illegal(program, state.core.control, fact, seq, "a rewind to an earlier event")
    superseded = remember(recall.facts(max(event.to, state.rewound), seq))
    core = recall.state_at(event.to).core.copy()
    core.control.status = ACTIVE
    for address, place in core.control.active.items():
        core.control.active[address] = Place(place.leaf, place.visit)
    state.core = core
    _fill(state)
    state.memo = {**state.memo, **superseded}
    state.incarnation += 1
    state.rewound = seq


def _diverged(_program: Program, state: State, _fact: Fact, _recall: Recall) -> None:
    state.memo = {}


def _put(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    state.core.data[event.key] = Cell(event.value)


def _deleted(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    if state.core.data.pop(event.key, None) is None:
        raise illegal(program, state.core.control, fact, state.seq, f"a state key {event.key!r}")


def _delta(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    cell = state.core.data.get(event.key)
    if cell is None:
        raise illegal(program, state.core.control, fact, state.seq, f"a state key {event.key!r}")
    if isinstance(event, E.StateIncremented):
        state.core.data[event.key] = increment(cell, event.by)
    else:
        kind = "append" if isinstance(event, E.StateAppended) else "merge"
        state.core.data[event.key] = cell.with_delta(Delta(kind, event.values))


def _opened(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    if event.name in state.core.resources:
        raise illegal(program, state.core.control, fact, state.seq, "a resource not yet open")
    state.core.resources[event.name] = ResourceState(
        fact.path, fact.visit, state.seq, event.stateful, lost=bool(event.lost)
    )
    if event.lost and state.core.cut is None:
        state.core.cut = state.seq - 1


def _touched(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    event: Any = fact.event
    known = state.core.resources.get(event.name)
    if known is None or not known.stateful:
        raise illegal(program, state.core.control, fact, state.seq, "an open, stateful resource")
    if state.core.cut is None:
        place = state.core.control.active.get(Address(fact.path, fact.visit))
        state.core.cut = place.started if place is not None and place.open else state.seq - 1
    state.core.resources[event.name] = known._replace(touched=True)


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
    if not any(r.touched or r.lost for r in state.core.resources.values()):
        state.core.cut = None


_REMEMBERED = frozenset({E.StageCompleted, E.ConditionEvaluated, E.LoopEntered})
_PERFORMED = frozenset(
    {
        E.StageCompleted,
        E.ConditionEvaluated,
        E.LoopEntered,
        E.ResourceOpened,
        E.ResourcesClosed,
        E.CheckpointSaved,
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
    E.RunRewound: _rewound,
    E.RewindDiverged: _diverged,
    E.WorkflowChanged: _workflow_changed,
    E.StatePut: _put,
    E.StateDeleted: _deleted,
    E.StateAppended: _delta,
    E.StateIncremented: _delta,
    E.StateMerged: _delta,
    E.ResourceOpened: _opened,
    E.ResourceTouched: _touched,
    E.ResourcesClosed: _closed,
    E.CheckpointSaved: _saved,
}

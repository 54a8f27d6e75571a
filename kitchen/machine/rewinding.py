"""Rewinds, and what of a run outlives them.

Rules:

1. A rewind takes `Core` back to where it was, and makes the superseded events the memo.
   One that was asked for goes another way, and so does a fork: of the memo only effects that must
   not happen twice hold, budgets are fresh, and what had failed is tried again.
2. Attempts that failed stay counted, and a failure that was handled stays where it was: behind a
   rewind neither is the retry budget fresh, nor is what failed run again.
3. A stage whose effect must not happen twice keeps what it had committed: that is taken over, not
   run again. Where it is not known whether it happened, somebody has to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from kitchen.machine import events as E
from kitchen.machine.chart import Program
from kitchen.machine.control import try_again
from kitchen.machine.events import Address, Fact
from kitchen.machine.memo import decided, happened, once_paths, remember
from kitchen.machine.outstanding import within
from kitchen.machine.state import (
    ACTIVE,
    Cell,
    Control,
    Core,
    Once,
    Place,
    Remembered,
    State,
    Tried,
    Verdict,
)
from kitchen.machine.tokens import illegal
from kitchen.workflow.ir import StageNode

if TYPE_CHECKING:
    from kitchen.machine.fold import Recall


def rewound(program: Program, state: State, fact: Fact, recall: Recall) -> None:
    """`RunRewound`: the run stands where it stood at that seq."""
    event: Any = fact.event
    seq = state.seq
    if not 0 < event.to < seq:
        raise illegal(program, state.core.control, fact, seq, "a rewind to an earlier event")
    then = recall.state_at(event.to)
    core = then.core.copy()
    if event.asked:
        _check_goes_on(program, state, core, fact)
        _try_all_again(program, core.control, seq)
        state.started = then.started
    elif event.to < state.mended:
        try_again(program, core.control, state.mended)
    core.control.status = ACTIVE
    state.memo = _memo(program, state, then, event, recall)
    _end_attempts(core, event.to)
    state.core = core
    fill(state)
    for at, verdict in state.verdicts.items():
        state.verdicts[at] = verdict._replace(ahead=verdict.ahead or verdict.seq > event.to)
    state.incarnation += 1
    state.rewound = seq
    if event.asked:
        _anew(state)


def _memo(
    program: Program, state: State, then: State, event: E.RunRewound, recall: Recall
) -> dict[Address, Remembered]:
    """What is known behind a rewind of what comes there."""
    to, seq = event.to, state.seq
    begun = [at for at, place in then.core.control.active.items() if place.open]
    early = _early(then.core, to, recall)
    before: dict[Address, Remembered] = {}
    if (event.asked or to < state.rewound) and once_paths(program):
        # Effects that counted before an earlier rewind, or in what it superseded, have happened too.
        past = (*early, *recall.facts(to, seq))
        before.update(happened(program, past, then.memo, begun))
        begun = []
    if event.asked:
        return {**before, **state.memo}
    past = (*early, *recall.facts(max(to, state.rewound), seq))
    superseded = remember(program, past, begun)
    said = {at: o for at, o in state.memo.items() if isinstance(o, Once) and o.decided}
    return {**before, **state.memo, **superseded, **said}


def forked(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`RunForked`: attempts that were running are the parent's; here they have not begun. What was
    done outside is the parent's too: this run does not roll it back."""
    core = state.core
    _check_goes_on(program, state, core, fact)
    _try_all_again(program, core.control, state.seq)
    core.control.status = "interrupted"
    _end_attempts(core, state.seq - 1)
    state.rewound = state.seq
    state.done = {}
    _anew(state)


def edited(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`RunEdited`: the run goes on with these, also behind a rewind that nobody asked for."""
    event: Any = fact.event
    control = state.core.control
    going = control.status in (ACTIVE, "interrupted")
    if state.started is None or not going or any(p.open for p in control.active.values()):
        raise illegal(program, control, fact, state.seq, "a run that stands still before its end")
    if event.state and control.forks:
        raise illegal(program, control, fact, state.seq, "no parallel around what is edited")
    state.started = edit(state.started, event)
    state.core.data.update({key: Cell(value) for key, value in event.state.items()})


def edit(started: E.RunStarted, event: E.RunEdited) -> E.RunStarted:
    """What a run was begun with, as somebody has changed it."""
    return msgspec.structs.replace(
        started,
        config=event.config if bytes(event.config) else started.config,
        seed=started.seed if event.seed is None else event.seed,
    )


def _check_goes_on(program: Program, state: State, core: Core, fact: Fact) -> None:
    control = core.control
    if core.cut is not None or not (control.active or control.forks or control.feeds):
        raise illegal(program, control, fact, state.seq, "a cut from which the run can go on")


def _try_all_again(program: Program, control: Control, seq: int) -> None:
    """Nothing is failing any more, nor has failed: it goes on where it stood."""
    control.failing.clear()
    try_again(program, control, seq)


def _end_attempts(core: Core, to: int) -> None:
    """No attempt is running any more. One that had begun before `to` may have metrics in the log,
    which must not count with the next, so that one gets another number."""
    for address, place in core.control.active.items():
        again = place.open and place.started >= to
        tried = place.attempt - 1 if again else place.attempt
        core.control.active[address] = Place(place.leaf, place.visit, tried, waits=place.waits)


def _anew(state: State) -> None:
    """The run goes another way: what was known of the one before does not hold."""
    state.memo = {at: known for at, known in state.memo.items() if isinstance(known, Once)}
    state.crashes, state.tries, state.verdicts = {}, {}, {}
    state.mended = state.seq


def come_again(state: State, address: Address) -> None:
    """What was remembered of an address has come to pass; what somebody said of it still holds."""
    known = state.memo.get(address)
    if known is not None and not (isinstance(known, Once) and known.decided):
        del state.memo[address]


def fill(state: State) -> None:
    """Fields that the state type has gained have their defaults, behind a rewind too."""
    for key, value in state.gained.items():
        state.core.data.setdefault(key, Cell(value))


def _early(core: Core, to: int, recall: Recall) -> list[Fact]:
    """The metrics that attempts which were running at `to` had in the log by then."""
    places = core.control.active.items()
    begun = {
        (*address, place.attempt): place.started
        for address, place in places
        if place.open and place.started < to
    }
    if not begun:
        return []
    facts = recall.facts(min(begun.values()), to + 1)
    return [f for f in facts if type(f.event) is E.MetricRecorded and f[1:] in begun]


def diverged(_program: Program, state: State, _fact: Fact, _recall: Recall) -> None:
    """`RewindDiverged`: of the memo nothing holds, and nobody knows of effects what they were."""
    state.memo = {at: o.unsure() for at, o in state.memo.items() if isinstance(o, Once)}


# --- attempts -----------------------------------------------------------------------------------


def completed(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`StageCompleted`: its failures are forgotten; it may have to be rolled back."""
    if state.tries:
        state.tries.pop(Address(fact.path, fact.visit), None)
    if program.ir.compensate and fact.path in program.undone:
        state.done[Address(fact.path, fact.visit)] = None


def failed(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`StageFailed`: the attempt is counted."""
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    before = state.tries.get(address)
    state.tries[address] = Tried(fact.attempt, (before.failed if before else 0) + 1)
    if event.undecided:
        _unsure(program, state, address)


def interrupted(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`StageInterrupted`: nobody knows how far it came."""
    event: Any = fact.event
    if event.begun:
        _unsure(program, state, Address(fact.path, fact.visit))


def scheduled(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`RetryScheduled`: when the next attempt is due is known behind a rewind too."""
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    tried = state.tries.get(address)
    if tried is None or (tried.attempt, tried.since) != (fact.attempt, event.since):
        raise illegal(program, state.core.control, fact, state.seq, "an attempt that has failed")
    state.tries[address] = tried._replace(delay=event.delay, since=event.since or state.seq)


def skipped(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`StageSkipped`: it stays skipped."""
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    state.tries.pop(address, None)
    _judge(state, address, Verdict(event.failure, address, state.seq, "stage", address))


def block_failed(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`BlockFailed`: what failed, and does not end the run, is not run again."""
    event: Any = fact.event
    state.tries.pop(event.at, None)
    state.crashes.pop(event.at, None)  # its rollback has a budget of its own
    state.crashes.pop(Address(""), None)
    if event.ends == "run":
        state.compensated = any(at in state.done for at in event.undo)
    else:
        block = Address(fact.path, fact.visit)
        told = Verdict(event.failure, event.at, state.seq, event.ends, block, event.undo)
        _judge(state, event.stood, told)


def branch_failed(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`BranchFailed`: it stays so until the run has failed by it; its budget is then fresh."""
    event: Any = fact.event
    state.tries.pop(event.at, None)
    branch = Address(fact.path, fact.visit)
    _judge(state, event.stood, Verdict(event.failure, event.at, state.seq, "branch", branch))


def _judge(state: State, stood: Address, verdict: Verdict) -> None:
    """Keep a verdict, and those that a rewind may need; without their tracebacks.

    What was to be rolled back for an earlier one at that place is so behind a rewind as well.
    """
    verdicts = state.verdicts
    if not state.core.overlays:  # else the run may go back to before the parallel
        for past in [at for at, v in verdicts.items() if v.seq <= state.cut and not v.ahead]:
            del verdicts[past]
    short = msgspec.structs.replace(verdict.failure, traceback="")
    before = verdicts.pop(stood, None)
    undo = tuple(dict.fromkeys((*(before.undo if before else ()), *verdict.undo)))
    verdicts[stood] = verdict._replace(failure=short, undo=undo)


def handled(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`FailureHandled`: nothing in the block comes to pass any more."""
    block = Address(fact.path, fact.visit)
    known: tuple[dict[Address, Any], ...] = (state.memo, state.tries, state.crashes)
    for each in known:
        for at in [at for at in each if within(at, block)]:
            del each[at]


def resumed(_program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`RunResumed`: after a failure all budgets are fresh, and branches are tried again."""
    event: Any = fact.event
    if event.after == "failure":
        state.crashes, state.tries = {}, {}
        state.verdicts = {at: v for at, v in state.verdicts.items() if v.ends != "branch"}
        state.mended = state.seq


# --- effects that must not happen twice ---------------------------------------------------------


def effect_decided(program: Program, state: State, fact: Fact, _recall: Recall) -> None:
    """`EffectDecided`: somebody knows."""
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    unsure = _is_once(program, address) and state.memo.get(address) == Once(None)
    if not unsure or event.choice not in ("retry", "skip"):
        raise illegal(program, state.core.control, fact, state.seq, "an effect to be decided")
    state.memo.pop(address, None)
    if event.choice == "skip":
        state.memo[address] = decided(event)


def _unsure(program: Program, state: State, address: Address) -> None:
    if _is_once(program, address):
        state.memo[address] = Once(None)


def _is_once(program: Program, address: Address) -> bool:
    node = program.nodes.get(address.path)
    return isinstance(node, StageNode) and node.effect == "once"

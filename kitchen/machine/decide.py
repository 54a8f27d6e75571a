"""`decide`: what follows from what was asked for or has come back.

Rules:

1. Pure: it changes nothing. `decide(program, state, input)` gives the facts to append and the
   commands to perform once they are appended and applied.
2. Total: an input that no outstanding command asked for is an `IllegalOutcome` that says role,
   state and event; it is never passed over in silence.
3. `outstanding(program, state)` follows from the state alone, and the commands of a decision are
   what it newly holds.
4. What can be known without asking (the next item of a collection, a decision that the memo
   holds) is decided at once, in the same batch as what led there.
5. A touch is told before the mutations of who touched. The cut is the seq before it, or where the
   stage's attempt began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import Program, Role
from kitchen.machine.commands import Command, Input
from kitchen.machine.draft import COMPLETED, CRASH_BUDGET, Draft, command_at, died_too_often
from kitchen.machine.events import Address, Event, Fact
from kitchen.machine.memo import difference, digests
from kitchen.machine.state import ACTIVE, READY, Control, StageMemo, State


class Decision(NamedTuple):
    """Facts to append, then commands to perform.

    `control` is where the run stands after the facts; None where folding them has to tell.
    """

    facts: list[Fact]
    commands: list[Command]
    control: Control | None


def decide(program: Program, state: State, given: Input) -> Decision:
    """What follows from `given`.

    Raises `IllegalOutcome` where nothing asked for it.
    """
    draft = Draft(program, state, given)
    _DECIDERS[type(given)](draft, given)
    return Decision(draft.facts, draft.commands, draft.control if draft.known else None)


def outstanding(program: Program, state: State) -> tuple[Command, ...]:
    """What a run in this state waits for, in the order in which it came about."""
    control = state.core.control
    if control.status != ACTIVE:
        return ()
    asked = (command_at(program, address, place) for address, place in control.active.items())
    return tuple(command for command in asked if command is not None)


# --- the run ------------------------------------------------------------------------------------


def _start(draft: Draft, given: C.Start) -> None:
    if draft.control.status != READY:
        raise draft.refusal(None, None)
    draft.known = False
    draft.settle(draft.emit(given.started))


def _resume(draft: Draft, given: C.Resume) -> None:
    after = {ACTIVE: "crash", "failed": "failure", "interrupted": "interruption"}
    if draft.control.status not in after:
        raise draft.refusal(None, None)
    if given.changed is not None:
        draft.emit(given.changed)
    reason = after[draft.control.status]
    draft.emit(E.RunResumed(reason, given.host))
    deaths = draft.state.crashes.get(Address(""), 0) + 1
    if reason == "crash" and deaths > CRASH_BUDGET:  # not even a first command came to its end
        draft.fail(Address(""), died_too_often(deaths))
        return
    _interrupt_attempts(draft)
    touched = draft.state.dirty
    if touched:
        draft.known = False
        why = f"{', '.join(touched)} was touched after the last cut"
        draft.emit(E.RunRewound(draft.state.cut, touched, why))


def _continue(draft: Draft, _given: C.Continue) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    for address, place in list(draft.control.active.items()):
        if place.open:
            raise draft.refusal(address, place)
        draft.settle((address,))


def _interrupt(draft: Draft, given: C.Interrupt) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    _interrupt_attempts(draft)
    draft.emit(E.RunInterrupted(given.signal))


def _interrupt_attempts(draft: Draft) -> None:
    for address, place in list(draft.control.active.items()):
        if place.open:
            draft.emit(E.StageInterrupted(), *address, place.attempt)


# --- stages -------------------------------------------------------------------------------------


def _succeeded(draft: Draft, given: C.StageSucceeded) -> None:
    address, attempt = given.address, given.attempt
    draft.attempt(address, attempt)
    recorded = draft.memo.get(address) if draft.memo else None
    if isinstance(recorded, StageMemo):
        differs = difference(recorded, digests((*given.flushed, *given.effects)))
        if differs:
            draft.diverge(address, *differs)
    path, visit = address
    facts = [Fact(effect, path, visit, attempt) for effect in given.effects]
    if given.touched:
        # Metrics that are in the log early come before it too: the order must not tell when.
        draft.add([fact for fact in facts if type(fact.event) is E.MetricRecorded])
        facts = [fact for fact in facts if type(fact.event) is not E.MetricRecorded]
        draft.touch(given.touched, address, attempt)
    draft.add(facts)
    draft.settle(draft.emit(COMPLETED, path, visit, attempt))


def _raised(draft: Draft, given: C.StageRaised) -> None:
    draft.attempt(given.address, given.attempt)
    discarded = tuple(
        Raw(msgspec.json.encode({"type": type(e).__name__, "event": Raw(E.to_json(e).encode())}))
        for e in given.effects
    )
    draft.emit(E.StageFailed(given.failure, discarded), *given.address, given.attempt)
    draft.fail(given.address, given.failure)


def _flushed(draft: Draft, given: C.MetricsFlushed) -> None:
    draft.attempt(given.address, given.attempt)
    for metric in given.metrics:
        draft.emit(metric, *given.address, given.attempt)


# --- control flow and resources -------------------------------------------------------------------


def _entered(draft: Draft, given: C.CollectionOpened) -> None:
    draft.place(given.address, Role.ENTER)
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.LoopEntered) and recorded.items != given.items:
        draft.diverge(given.address, "items", str(recorded.items), str(given.items))
    touched = draft.touch(given.touched, given.address)
    _on(draft, given.address, E.LoopEntered(given.items, touched))


def _answered(draft: Draft, given: C.ConditionAnswered) -> None:
    draft.place(given.address, Role.ASK)
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.ConditionEvaluated) and recorded.answer != given.answer:
        draft.diverge(given.address, "answer", str(recorded.answer), str(given.answer))
    touched = draft.touch(given.touched, given.address)
    _on(draft, given.address, E.ConditionEvaluated(given.answer, touched))


def _opened(draft: Draft, given: C.ResourceReady) -> None:
    place = draft.place(given.address, Role.OPEN)
    name = draft.program.leaves[place.leaf].names[0]
    touched = draft.touch(given.touched, given.address)
    _on(draft, given.address, E.ResourceOpened(name, given.stateful, touched, given.lost))


def _closed(draft: Draft, given: C.BlockClosed) -> None:
    place = draft.place(given.address, Role.CLOSE)
    names = draft.program.leaves[place.leaf].names
    draft.touch([name for name in given.touched if name not in names], given.address)
    _on(draft, given.address, E.ResourcesClosed(names))


def _saved(draft: Draft, given: C.CheckpointWritten) -> None:
    event = E.CheckpointSaved(given.resources)
    if given.address is None:
        if draft.control.status != ACTIVE:
            raise draft.refusal(None, None)
        draft.emit(event)
        return
    draft.place(given.address, Role.SAVE)
    _on(draft, given.address, event)


def _returned(draft: Draft, given: C.ResourceReturned) -> None:
    known = draft.state.core.resources.get(given.name)
    if known is None or draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    draft.emit(E.ResourceRestored(given.name, given.saved), known.path, known.visit)


def _failed(draft: Draft, given: C.CommandFailed) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(given.address, draft.control.active.get(given.address))
    draft.fail(given.address, given.failure)


def _on(draft: Draft, address: Address, event: Event) -> None:
    """Emit the event that takes the token from an address, and go on from where it lands."""
    draft.settle(draft.emit(event, *address))


_DECIDERS: dict[type[Any], Callable[[Draft, Any], None]] = {
    C.Start: _start,
    C.Resume: _resume,
    C.Continue: _continue,
    C.Interrupt: _interrupt,
    C.StageSucceeded: _succeeded,
    C.StageRaised: _raised,
    C.MetricsFlushed: _flushed,
    C.CollectionOpened: _entered,
    C.ConditionAnswered: _answered,
    C.ResourceReady: _opened,
    C.BlockClosed: _closed,
    C.CheckpointWritten: _saved,
    C.ResourceReturned: _returned,
    C.CommandFailed: _failed,
}

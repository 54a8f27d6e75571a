"""The life of a run: begun, taken up, stopped, ended; and its time limits.

Rules:

1. A run that is taken up after a crash goes back to its cut if stateful resources were touched since.
2. One that is sent another way goes back to the cut that was named, whatever has become of it.
3. One that nobody can bring to anything any more, as every process dies of it, fails.
"""

from __future__ import annotations

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import failures
from kitchen.machine.draft import Draft
from kitchen.machine.events import Address, Fact, spell
from kitchen.machine.failures import CRASH_BUDGET, died_too_often
from kitchen.machine.outstanding import undecided
from kitchen.machine.state import ACTIVE, READY, Once


def start(draft: Draft, given: C.Start) -> None:
    if draft.control.status != READY:
        raise draft.refusal(None, None)
    draft.known = False
    draft.settle(draft.emit(given.started))


def resume(draft: Draft, given: C.Resume) -> None:
    after = {ACTIVE: "crash", "failed": "failure", "interrupted": "interruption"}
    if given.turn is not None and draft.control.status == "completed":
        after["completed"] = ""
    if draft.control.status not in after:
        raise draft.refusal(None, None)
    if given.changed is not None:
        draft.emit(given.changed)
    unsure = {at for at, known in draft.memo.items() if known == Once(None)}
    unsure.update(undecided(draft.program, draft.state))
    if given.turn is not None:
        _turn(draft, given.host, given.turn)
        _say(draft, given.decided, unsure)
        return
    reason = after[draft.control.status]
    draft.emit(E.RunResumed(reason, given.host))
    deaths = draft.state.crashes.get(Address(""), 0) + 1
    ending = Address("") in draft.control.failing
    if reason == "crash" and deaths > CRASH_BUDGET and not ending:  # nothing came to its end
        failures.end(draft, Address(""), died_too_often(deaths))
        return
    failures.interrupt_attempts(draft)
    draft.going = False
    touched = draft.state.dirty
    if touched and not ending:  # where it ends, hooks come first: they cannot get at these
        draft.known = False
        why = f"{', '.join(touched)} was touched after the last cut"
        draft.emit(E.RunRewound(draft.state.cut, touched, why))
    _say(draft, given.decided, unsure)


def _turn(draft: Draft, host: E.Host, turn: C.Turn) -> None:
    """The run goes on from an earlier event: where that leaves it, only folding tells."""
    draft.known = draft.going = False
    back = E.RunRewound(turn.to, (), turn.why, asked=True)
    edits = () if turn.edited is None else (turn.edited,)
    draft.add([Fact(event) for event in (back, E.RunResumed("rewind", host), *edits)])


def _say(draft: Draft, decided: tuple[C.Decided, ...], unsure: set[Address]) -> None:
    """Record what somebody said of effects of which nobody knew whether they had happened."""
    for address, choice, changes in decided:
        draft.known = False
        if address not in unsure:
            raise draft.refusal(address, draft.control.active.get(address))
        draft.emit(E.EffectDecided(choice, changes), *address)


def go_on(draft: Draft, _given: C.Continue) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    for address, place in list(draft.control.active.items()):
        if place.open:
            raise draft.refusal(address, place)
    draft.go_on()


def interrupt(draft: Draft, given: C.Interrupt) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    failures.interrupt_attempts(draft, begun=given.begun)
    draft.emit(E.RunInterrupted(given.signal))


def cancel(draft: Draft, given: C.Cancel) -> None:
    if draft.control.status in (READY, "completed", "cancelled"):
        raise draft.refusal(None, None)
    failures.interrupt_attempts(draft, begun=given.begun)
    draft.emit(E.RunCancelled(given.by))


def preserved(draft: Draft, given: C.Preserved) -> None:
    """Attempts that were to begin begin behind the cut, so that it serves them too."""
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    failures.interrupt_attempts(draft, begun=())
    draft.emit(E.CheckpointSaved(given.resources))
    draft.go_on()


def time_up(draft: Draft, given: C.TimeUp) -> None:
    limit = draft.control.limits.get(given.address)
    if limit is None or not draft.goes_on(given.address):
        raise draft.refusal(given.address, None)
    where = spell(*given.address, draft.program.loops.get(given.address.path))
    failure = E.Failure(
        "StageTimeout",
        f"the block {where} took longer than its {limit.seconds:g} s",
        hint="give it more time, or handle it: with wf.on_error(...): right behind the block",
    )
    draft.fail(given.address, failure)

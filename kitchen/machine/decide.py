"""`decide`: what follows from what was asked for or has come back.

Rules:

1. Pure: it changes nothing. `decide(program, state, input)` gives the facts to append and the
   commands to perform once they are appended and applied.
2. Total: an input that no outstanding command asked for is an `IllegalOutcome` that says role,
   state and event; it is never passed over in silence.
3. `outstanding(program, state)` follows from the state alone, and the commands of a decision are
   what it newly holds. So a resumed process asks it, and goes on.
4. What can be known without asking (the next item of a collection, a decision that the memo
   holds) is decided at once, in the same batch as what led there.
5. A touch is told before the effects of who touched: the cut is the seq before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from kitchen.errors import IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import Program, Role
from kitchen.machine.commands import Command, Input
from kitchen.machine.control import CONTROL, advance
from kitchen.machine.events import Address, Event, Fact, Visit, spell
from kitchen.machine.memo import difference, digests
from kitchen.machine.state import ACTIVE, READY, Control, Place, StageMemo, State

CRASH_BUDGET = 5

# Events without fields, made once.
_STARTED, _COMPLETED = E.StageStarted(), E.StageCompleted()
_TAKEN, _EXITED = E.ItemTaken(), E.LoopExited()


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
    draft = _Draft(program, state, given)
    _DECIDERS[type(given)](draft, given)
    return Decision(draft.facts, draft.commands, draft.control if draft.known else None)


def outstanding(program: Program, state: State) -> tuple[Command, ...]:
    """What a run in this state waits for, in the order in which it came about."""
    control = state.core.control
    if control.status != ACTIVE:
        return ()
    asked = (_command(program, address, place) for address, place in control.active.items())
    return tuple(command for command in asked if command is not None)


def _command(program: Program, address: Address, place: Place) -> Command | None:
    """What a token waits for on its leaf; None for a stage between two attempts."""
    leaf = program.leaves[place.leaf]
    match leaf.role:
        case Role.STAGE:
            return C.RunStage(address, place.attempt) if place.open else None
        case Role.ENTER:
            return C.OpenLoop(address)
        case Role.ASK:
            return C.EvaluateCondition(address)
        case Role.OPEN:
            return C.OpenResource(address, leaf.names[0])
        case Role.CLOSE:
            return C.CloseResources(address, leaf.names)
        case Role.SAVE:
            return C.SaveCheckpoint(address)
        case Role.NEXT | Role.END:
            return None


class _Draft:
    """The decision as it grows, on a copy of where the run stands."""

    __slots__ = (
        "commands",
        "control",
        "facts",
        "given",
        "known",
        "memo",
        "program",
        "seq",
        "state",
    )

    def __init__(self, program: Program, state: State, given: Input) -> None:
        self.program = program
        self.state = state
        self.given = given
        self.control = state.core.control.copy()
        self.facts: list[Fact] = []
        self.commands: list[Command] = []
        self.memo = state.memo
        self.known = True
        self.seq = state.seq

    def emit(
        self, event: Event, path: str = "", visit: Visit = (), attempt: int = 0
    ) -> tuple[Address, ...]:
        """Add a fact, and let it move the draft; where tokens have newly landed."""
        fact = Fact(event, path, visit, attempt)
        self.facts.append(fact)
        self.seq += 1
        if type(event) in CONTROL:
            return advance(self.program, self.control, fact, self.seq)
        return ()

    def place(self, address: Address, *roles: Role) -> Place:
        """The token at an address, if it rests on a leaf of such a role."""
        place = self.control.active.get(address)
        if place is None or self.control.status != ACTIVE:
            raise self.refusal(address, place)
        if self.program.leaves[place.leaf].role not in roles:
            raise self.refusal(address, place)
        return place

    def attempt(self, address: Address, attempt: int) -> None:
        place = self.place(address, Role.STAGE)
        if not place.open or place.attempt != attempt:
            raise self.refusal(address, place)

    def refusal(self, address: Address | None, place: Place | None) -> IllegalOutcome:
        where = "the run" if address is None else spell(*address)
        role = self.program.leaves[place.leaf].role.value if place else "nothing"
        detail = f" (attempt {place.attempt}, {'open' if place.open else 'ended'})" if place else ""
        return IllegalOutcome(
            f"{type(self.given).__name__} for {where} was not asked for: the run is "
            f"{self.control.status} at seq {self.state.seq}, and active there is {role}{detail}",
            hint="this is a fault of kitchen; please report it with the log",
        )

    def touch(self, names: Collection[str], address: Address, attempt: int = 0) -> tuple[str, ...]:
        """Tell first touches; the names among these that are stateful."""
        if not names:
            return ()
        resources = self.state.core.resources
        known = sorted(n for n in names if n in resources and resources[n].stateful)
        for name in known:
            if not resources[name].touched:
                self.emit(E.ResourceTouched(name), *address, attempt)
        return tuple(known)

    def settle(self, landed: tuple[Address, ...]) -> None:
        """From where tokens landed, decide what needs no asking, until each waits for a command."""
        while landed:
            for other in landed[1:]:
                self.settle((other,))
            landed = self._step(landed[0])

    def _step(self, address: Address) -> tuple[Address, ...]:
        """One thing that needs no asking; where that led."""
        place = self.control.active[address]
        path, visit = address
        match self.program.leaves[place.leaf].role:
            case Role.STAGE:
                times = self.state.crashes.get(address, 0) if self.state.crashes else 0
                if times >= CRASH_BUDGET:
                    self.fail(address, _died_too_often(times))
                    return ()
                self.emit(_STARTED, path, visit, place.attempt + 1)
                self.commands.append(C.RunStage(address, place.attempt + 1))
                return ()
            case Role.NEXT:
                frame = self.control.frames[address]
                if frame.current + 1 < frame.total:
                    return self.emit(_TAKEN, path, (*visit, frame.current + 1))
                return self.emit(_EXITED, path, visit)
            case Role.END:
                return self.emit(E.RunCompleted())
            case Role.ENTER | Role.ASK if (known := self._remembered(address)) is not None:
                return self.emit(known, path, visit)
            case _:
                command = _command(self.program, address, place)
                assert command is not None
                self.commands.append(command)
                return ()

    def _remembered(self, address: Address) -> E.ConditionEvaluated | E.LoopEntered | None:
        known = self.memo.get(address)
        if known is None or isinstance(known, StageMemo) or known.touched:
            return None
        return known

    def fail(self, address: Address, failure: E.Failure) -> None:
        """End the run; what else was decided to be performed is not."""
        self.emit(E.RunFailed(failure), *address)
        self.commands.clear()

    def diverge(self, address: Address, key: str, recorded: str, found: str) -> None:
        """Tell that the past did not come out the same; from here on the memo is void."""
        self.memo = {}
        self.emit(E.RewindDiverged(key, recorded, found), *address)


def _died_too_often(times: int) -> E.Failure:
    return E.Failure(
        "CrashBudgetSpent",
        f"the process died {times} times while this stage was running",
        hint="look for what kills it (memory?), then resume: the budget is then fresh",
    )


# --- the run ------------------------------------------------------------------------------------


def _start(draft: _Draft, given: C.Start) -> None:
    if draft.control.status != READY:
        raise draft.refusal(None, None)
    draft.known = False
    draft.settle(draft.emit(given.started))


def _resume(draft: _Draft, given: C.Resume) -> None:
    after = {ACTIVE: "crash", "failed": "failure", "interrupted": "interruption"}
    if draft.control.status not in after:
        raise draft.refusal(None, None)
    draft.emit(E.RunResumed(after[draft.control.status], given.host))
    _interrupt_attempts(draft)
    touched = draft.state.dirty
    if touched:
        draft.known = False
        reason = f"{', '.join(touched)} was touched after the last cut"
        draft.emit(E.RunRewound(draft.state.cut, touched, reason))


def _continue(draft: _Draft, _given: C.Continue) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    for address, place in list(draft.control.active.items()):
        if place.open:
            raise draft.refusal(address, place)
        draft.settle((address,))


def _interrupt(draft: _Draft, given: C.Interrupt) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    _interrupt_attempts(draft)
    draft.emit(E.RunInterrupted(given.signal))


def _interrupt_attempts(draft: _Draft) -> None:
    for address, place in list(draft.control.active.items()):
        if place.open:
            draft.emit(E.StageInterrupted(), *address, place.attempt)


# --- stages -------------------------------------------------------------------------------------


def _succeeded(draft: _Draft, given: C.StageSucceeded) -> None:
    address, attempt = given.address, given.attempt
    draft.attempt(address, attempt)
    recorded = draft.memo.get(address) if draft.memo else None
    if isinstance(recorded, StageMemo):
        differs = difference(recorded, digests((*given.flushed, *given.effects)))
        if differs:
            draft.diverge(address, *differs)
    draft.touch(given.touched, address, attempt)
    path, visit = address
    draft.facts += [Fact(effect, path, visit, attempt) for effect in given.effects]
    draft.seq += len(given.effects)
    draft.settle(draft.emit(_COMPLETED, path, visit, attempt))


def _raised(draft: _Draft, given: C.StageRaised) -> None:
    draft.attempt(given.address, given.attempt)
    discarded = tuple(
        Raw(msgspec.json.encode({"type": type(e).__name__, "event": Raw(E.to_json(e).encode())}))
        for e in given.effects
    )
    draft.emit(E.StageFailed(given.failure, discarded), *given.address, given.attempt)
    draft.fail(given.address, given.failure)


def _flushed(draft: _Draft, given: C.MetricsFlushed) -> None:
    draft.attempt(given.address, given.attempt)
    for metric in given.metrics:
        draft.emit(metric, *given.address, given.attempt)


# --- control flow and resources -------------------------------------------------------------------


def _entered(draft: _Draft, given: C.CollectionOpened) -> None:
    draft.place(given.address, Role.ENTER)
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.LoopEntered) and recorded.items != given.items:
        draft.diverge(given.address, "items", str(recorded.items), str(given.items))
    touched = draft.touch(given.touched, given.address)
    _on(draft, given.address, E.LoopEntered(given.items, touched))


def _answered(draft: _Draft, given: C.ConditionAnswered) -> None:
    draft.place(given.address, Role.ASK)
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.ConditionEvaluated) and recorded.answer != given.answer:
        draft.diverge(given.address, "answer", str(recorded.answer), str(given.answer))
    touched = draft.touch(given.touched, given.address)
    _on(draft, given.address, E.ConditionEvaluated(given.answer, touched))


def _opened(draft: _Draft, given: C.ResourceReady) -> None:
    place = draft.place(given.address, Role.OPEN)
    name = draft.program.leaves[place.leaf].names[0]
    touched = draft.touch(given.touched, given.address)
    _on(draft, given.address, E.ResourceOpened(name, given.stateful, touched))


def _closed(draft: _Draft, given: C.BlockClosed) -> None:
    place = draft.place(given.address, Role.CLOSE)
    _on(draft, given.address, E.ResourcesClosed(draft.program.leaves[place.leaf].names))


def _saved(draft: _Draft, given: C.CheckpointWritten) -> None:
    event = E.CheckpointSaved(given.resources)
    if given.address is None:
        if draft.control.status != ACTIVE:
            raise draft.refusal(None, None)
        draft.emit(event)
        return
    draft.place(given.address, Role.SAVE)
    _on(draft, given.address, event)


def _returned(draft: _Draft, given: C.ResourceReturned) -> None:
    known = draft.state.core.resources.get(given.name)
    if known is None or draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    draft.emit(E.ResourceRestored(given.name, given.saved), known.path, known.visit)


def _failed(draft: _Draft, given: C.CommandFailed) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(given.address, draft.control.active.get(given.address))
    draft.fail(given.address, given.failure)


def _on(draft: _Draft, address: Address, event: Event) -> None:
    """Emit the event that takes the token from an address, and go on from where it lands."""
    draft.settle(draft.emit(event, *address))


_DECIDERS: dict[type[Any], Callable[[_Draft, Any], None]] = {
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

"""The decision as it grows: a draft of the control, and the facts and commands so far.

Rules:

1. A draft moves by the facts that are added to it, with the function that folding uses.
2. `settle` takes every token that has landed on until it waits for a command: the next item of a
   collection, a decision that the memo holds and the end of the run need no asking.
3. A command that too many processes died of is not asked for again: the run fails instead.
"""

from __future__ import annotations

from collections.abc import Collection

from kitchen.errors import IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import Program, Role
from kitchen.machine.commands import Command, Input
from kitchen.machine.control import CONTROL, advance
from kitchen.machine.events import Address, Event, Fact, Visit, spell
from kitchen.machine.state import ACTIVE, Place, StageMemo, State

CRASH_BUDGET = 5

# Events without fields, made once.
_STARTED, COMPLETED = E.StageStarted(), E.StageCompleted()
_TAKEN, _EXITED = E.ItemTaken(), E.LoopExited()


def command_at(program: Program, address: Address, place: Place) -> Command | None:
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


class Draft:
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

    def add(self, facts: list[Fact]) -> None:
        """Add facts that move nothing."""
        self.facts += facts
        self.seq += len(facts)

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
        known = self.state.stateful(names)
        for name in known:
            if not self.state.core.resources[name].touched:
                self.emit(E.ResourceTouched(name), *address, attempt)
        return known

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
                number = place.attempt + 1
                return self._ask(address, C.RunStage(address, number), number)
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
                command = command_at(self.program, address, place)
                assert command is not None
                return self._ask(address, command)

    def _ask(self, address: Address, command: Command, attempt: int = 0) -> tuple[()]:
        """Have a command performed, unless too many processes died of it already."""
        times = self.state.crashes.get(address, 0) if self.state.crashes else 0
        if times >= CRASH_BUDGET:
            self.fail(address, died_too_often(times))
            return ()
        if attempt:
            self.emit(_STARTED, *address, attempt)
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


def died_too_often(times: int) -> E.Failure:
    return E.Failure(
        "CrashBudgetSpent",
        f"the process died {times} times while this was running",
        hint="look for what kills it (memory?), then resume: the budget is then fresh",
    )

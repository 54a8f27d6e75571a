"""Control: where a run stands, moved by one event at a time.

Rules:

1. Where a token may go is in the program's table and nowhere else; what is added here is what a
   table cannot know: loop counts, attempts, the run's life.
2. Every event is checked. One that cannot happen where the run stands is an `IllegalEvent` that
   says where, what was expected and what was found.
3. `decide` moves a draft of the control with the same function that `apply` uses, so what is
   decided and what is folded cannot differ.
"""

from __future__ import annotations

from typing import Any

from kitchen.errors import IllegalEvent
from kitchen.machine import events as E
from kitchen.machine.chart import ENDINGS, Program
from kitchen.machine.events import Address, Event, Fact, spell
from kitchen.machine.state import ACTIVE, Control, Frame, Place


def advance(program: Program, control: Control, fact: Fact, seq: int) -> tuple[Address, ...]:
    """Move the token that a control event concerns; where tokens have newly landed.

    Raises `IllegalEvent`; the control is then not to be used.
    """
    event: Any = fact.event
    kind: type[Event] = type(fact.event)
    if kind in _ATTEMPTS:
        return _attempt(program, control, fact, seq)
    verb = _VERBS.get(kind)
    if verb is None:
        return _lifecycle(program, control, fact, seq)
    path, visit = fact.path, fact.visit
    if kind is E.CheckpointSaved and not path:
        return ()  # the runner's own, at an interruption: it moves nothing
    address = Address(path, visit)
    if kind is E.ConditionEvaluated:
        verb = "yes" if event.answer else "no"
    elif kind is E.LoopEntered:
        control.frames[address] = Frame(event.items.count, -1, seq)
    elif kind is E.ItemTaken:
        address = Address(path, visit[:-1])
        frame = control.frames.get(address)
        if frame is None or visit[-1] != frame.current + 1 or visit[-1] >= frame.total:
            raise illegal(program, control, fact, seq, "the next item of a loop that is running")
        control.frames[address] = Frame(frame.total, visit[-1], frame.entered)
    elif kind is E.LoopExited:
        frame = control.frames.pop(address, None)
        if frame is None or frame.current + 1 != frame.total:
            raise illegal(program, control, fact, seq, "a loop whose items are all taken")
    return move(program, control, fact, seq, address, verb)


def move(
    program: Program, control: Control, fact: Fact, seq: int, address: Address, verb: str
) -> tuple[Address, ...]:
    """Take the token from its leaf to the leaves that the table names; where it landed."""
    place = control.active.pop(address, None)
    targets = program.moves[place.leaf].get(verb) if place is not None else None
    if place is None or targets is None or control.status != ACTIVE:
        if place is not None:
            control.active[address] = place
        raise illegal(program, control, fact, seq, "an event that can happen there")
    landed: list[Address] = []
    for name in targets:
        if name in ENDINGS:
            control.status = name
            continue
        leaf = program.leaves[name]
        visit = fact.visit[: len(leaf.loops)]
        there = Address(leaf.path, visit)
        control.active[there] = Place(name, visit)
        landed.append(there)
    return tuple(landed)


def _attempt(program: Program, control: Control, fact: Fact, seq: int) -> tuple[Address, ...]:
    """An attempt begins at its leaf, or ends there; only its completion moves the token."""
    kind = type(fact.event)
    address = Address(fact.path, fact.visit)
    if kind is E.StageStarted:
        place = control.active.get(address)
        stage = place is not None and "done" in program.moves[place.leaf]
        if place is None or not stage or place.open or fact.attempt != place.attempt + 1:
            raise illegal(program, control, fact, seq, "the next attempt of an active stage")
        control.active[address] = Place(place.leaf, place.visit, fact.attempt, True, seq)
        return ()
    place = open_attempt(program, control, fact, seq)
    if kind is E.StageCompleted:
        return move(program, control, fact, seq, address, "done")
    control.active[address] = place._replace(open=False)
    return ()


def open_attempt(program: Program, control: Control, fact: Fact, seq: int) -> Place:
    """The place of the attempt that a fact belongs to, which must be running."""
    place = control.active.get(Address(fact.path, fact.visit))
    if place is None or not place.open or place.attempt != fact.attempt:
        raise illegal(program, control, fact, seq, "an attempt that is running")
    return place


def _lifecycle(program: Program, control: Control, fact: Fact, seq: int) -> tuple[Address, ...]:
    """The run's own life, which the table holds too: `("ready", "start")`, `("running", "fail")`."""
    kind = type(fact.event)
    if kind is E.RunResumed:
        ended = control.status != ACTIVE
        back = [(control.status, f"resume:{place.leaf}") for place in control.active.values()]
        if not back or (ended and not all(arrow in program.table for arrow in back)):
            raise illegal(program, control, fact, seq, "a run that was left before its end")
        control.status = ACTIVE
        return ()
    if kind is E.RunCompleted:
        return move(program, control, fact, seq, Address("", ()), "complete")
    verb = _LIFE[kind]
    targets = program.table.get((control.status, verb))
    if targets is None:
        raise illegal(program, control, fact, seq, f"a run that can {verb}")
    if kind is not E.RunStarted:
        (control.status,) = targets
        return ()
    control.status = ACTIVE
    landed = [Address(program.leaves[name].path, ()) for name in targets]
    control.active.update({a: Place(n, ()) for a, n in zip(landed, targets, strict=True)})
    return tuple(landed)


def illegal(
    program: Program, control: Control, fact: Fact, seq: int, expected: str
) -> IllegalEvent:
    where = spell(fact.path, fact.visit, program.loops.get(fact.path)) or "the run"
    active = ", ".join(spell(a.path, a.visit, program.loops.get(a.path)) for a in control.active)
    return IllegalEvent(
        f"event {seq} ({type(fact.event).__name__} at {where}, attempt {fact.attempt}) cannot "
        f"happen: expected {expected}; the run is {control.status}"
        + (f" at {active}" if active else "")
    )


_LIFE: dict[type[Event], str] = {
    E.RunStarted: "start",
    E.RunResumed: "resume",
    E.RunInterrupted: "interrupt",
    E.RunFailed: "fail",
    E.RunCompleted: "complete",
}
_VERBS: dict[type[Event], str] = {
    E.ConditionEvaluated: "",
    E.LoopEntered: "entered",
    E.ItemTaken: "item",
    E.LoopExited: "exit",
    E.ResourceOpened: "opened",
    E.ResourcesClosed: "closed",
    E.CheckpointSaved: "saved",
}
_ATTEMPTS = frozenset({E.StageStarted, E.StageCompleted, E.StageFailed, E.StageInterrupted})
CONTROL = frozenset({*_LIFE, *_VERBS, *_ATTEMPTS})

"""Tokens: moved along the table, one event at a time.

Rules:

1. Where a token may go is in the program's table and nowhere else. An event that the table does
   not allow is an `IllegalEvent` that says where, what was expected and what was found.
2. A branch that waits for its turn or is done, and a producer, hold no token: counts tell of them.
3. Where a checkpoint is due, no further production begins until it is saved.
"""

from __future__ import annotations

from kitchen.errors import IllegalEvent
from kitchen.machine import feeds
from kitchen.machine.chart import ENDINGS, Program
from kitchen.machine.events import Address, Fact, Visit, spell
from kitchen.machine.layout import Role
from kitchen.machine.state import ACTIVE, Control, Place

_COUNTED = (Role.WAIT, Role.DONE, Role.MAKE)


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
    return land(program, control, targets, fact.visit)


def leave(
    program: Program, control: Control, fact: Fact, seq: int, verb: str
) -> tuple[Address, ...]:
    """Leave a state that has regions, as a whole; where the token landed."""
    state = program.composites.get(fact.path, "")
    targets = program.table.get((state, f"{verb}:{fact.path}"))
    if targets is None or control.status != ACTIVE:
        raise illegal(program, control, fact, seq, "an event that can happen there")
    return land(program, control, targets, fact.visit)


def land(
    program: Program, control: Control, targets: tuple[str, ...], visit: Visit
) -> tuple[Address, ...]:
    """Put tokens on these leaves."""
    landed: list[Address] = []
    for name in targets:
        if name in ENDINGS:
            control.status = name
            continue
        leaf = program.leaves[name]
        if leaf.role in _COUNTED:
            continue
        if leaf.role is Role.SAVE and control.feeds:
            feeds.hold(program, control)
        own = visit[: len(leaf.loops)]
        there = Address(leaf.path, own)
        control.active[there] = Place(name, own)
        landed.append(there)
    return tuple(landed)


def illegal(
    program: Program, control: Control, fact: Fact, seq: int, expected: str
) -> IllegalEvent:
    """The error that tells an event which cannot happen."""
    where = spell(fact.path, fact.visit, program.loops.get(fact.path)) or "the run"
    active = ", ".join(spell(a.path, a.visit, program.loops.get(a.path)) for a in control.active)
    return IllegalEvent(
        f"event {seq} ({type(fact.event).__name__} at {where}, attempt {fact.attempt}) cannot "
        f"happen: expected {expected}; the run is {control.status}"
        + (f" at {active}" if active else "")
    )

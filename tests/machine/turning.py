"""Turns, forks and edits in the simulator's world.

What happened outside is a run's own: a fork has what the parent had done by then, but not what it
was doing at that moment. What the others did since the turn is in the world all the same.
"""

from __future__ import annotations

from dataclasses import replace

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.events import Fact, Host
from kitchen.machine.fold import apply
from kitchen.machine.state import State
from tests.machine.faults import FaultyWorld, killed, settle

_HALF = (E.Mutation, E.LoopStopped)


def goes_on(state: State) -> bool:
    """Whether there is anything left to go on from."""
    control = state.core.control
    return bool(control.active or control.forks or control.feeds)


def cuts(world: FaultyWorld) -> list[int]:
    """Where a run can be forked, or be sent back to: at cuts that are not half of a commit."""
    return [
        seq
        for seq, state in enumerate(world.states)
        if state.cut == seq and goes_on(state) and not isinstance(world.log[seq - 1].event, _HALF)
    ]


def told(world: FaultyWorld, event: E.Event) -> None:
    """One event of the run as a whole that nobody decided."""
    fact = Fact(event)
    world.log.append(fact)
    apply(world.program, world.state, fact, world)
    world.states.append(world.state.copy())
    world.batches.append(len(world.log))


def forked(
    world: FaultyWorld, cut: int, schedule: int, edit: E.RunEdited | None = None
) -> FaultyWorld:
    """A new run that has the events up to a cut in common; it waits to be resumed."""
    open_ones = {at for at, p in world.states[cut].core.control.active.items() if p.open}
    outside = [h for h in world.outside if h.head <= cut and h.address not in open_ones]
    child = replace(killed(world, cut, schedule), outside=outside)
    told(child, E.RunForked("parent"))
    if edit is not None:
        told(child, edit)
    child.asked_for = set()
    return child


def turned(
    world: FaultyWorld, head: int, to: int, schedule: int, edit: E.RunEdited | None = None
) -> FaultyWorld:
    """The run as a process left it with `head` events, sent back to a cut; it has not gone on."""
    again = killed(world, head, schedule)
    turn = C.Turn(to, "somebody wished it", edit)
    again.step(C.Resume(Host(), None, again.decisions(), turn))
    return again


def go_on(world: FaultyWorld) -> FaultyWorld:
    """From right behind a turn, or a fork."""
    forked = world.state.status == "interrupted"
    world.drive(world.resume() if forked else world.bring_back(), 4_000)
    return world


def to_the_end(world: FaultyWorld, schedule: int) -> FaultyWorld:
    """Wherever it stands, until it is completed."""
    status = world.state.status
    if status in ("running", "interrupted"):
        world.drive(world.resume(), 4_000)
    return settle(world, schedule)

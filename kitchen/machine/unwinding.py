"""Unwinding: where a run stands while a failure ends a part of it.

Rules:

1. What a failure ends is in `Control.failing` until it has ended; nothing else happens in it.
2. Stages are rolled back one after the other; then the run ends, the branch is halted, the stage is
   skipped, or the block is left and its handler entered. Leaving takes away all that stood in it.
3. As everywhere, an event that cannot happen is an `IllegalEvent`.
"""

from __future__ import annotations

from typing import Any

from kitchen.machine import feeds
from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Fact
from kitchen.machine.lanes import parallel_of
from kitchen.machine.layout import Role
from kitchen.machine.outstanding import within
from kitchen.machine.state import ACTIVE, Control, Failing, Limit, Place
from kitchen.machine.tokens import illegal, land, move

Landed = tuple[Address, ...]


def failed(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`BlockFailed`: a failure ends what stands at this address."""
    event: Any = fact.event
    block = Address(fact.path, fact.visit)
    if (
        control.status != ACTIVE
        or block in control.failing
        or not within(event.at, block)
        or not _can_end(program, control, block, event.ends)
        or any(at.path not in program.undone for at in event.undo)
    ):
        raise illegal(program, control, fact, seq, "a block that is running, or the run")
    for inner in [other for other in control.failing if within(other, block)]:
        del control.failing[inner]
    control.failing[block] = Failing(
        event.failure, event.at, event.ends, event.undo, event.touched, event.stood
    )
    return ()


def _can_end(program: Program, control: Control, block: Address, ends: str) -> bool:
    if ends == "run":
        return not block.path
    standing = (*control.active, *control.forks, *control.feeds)
    if not any(within(at, block) for at in standing):
        return False
    if ends == "branch":
        return parallel_of(program, block) in control.forks
    guard = program.guards.get(block.path)
    fits = guard is not None and len(block.visit) == guard.depth
    return fits and guard is not None and guard.skipped == (ends == "stage")


def rolled_back(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`StageRolledBack`: it was the next that was to be."""
    block = rolling_back(control, fact)
    if block is None:
        raise illegal(program, control, fact, seq, "a stage that is to be rolled back now")
    failing = control.failing[block]
    control.failing[block] = failing._replace(undo=failing.undo[1:])
    return ()


def rolling_back(control: Control, fact: Fact) -> Address | None:
    """What is ending, if the stage that a fact belongs to is to be rolled back for it now."""
    at = Address(fact.path, fact.visit)
    due = (b for b, f in control.failing.items() if f.undo and f.undo[0] == at)
    return next(due, None) if fact.attempt == 0 else None


def skipped(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`StageSkipped`: on behind the stage."""
    address = Address(fact.path, fact.visit)
    place, failing = control.active.get(address), control.failing.get(address)
    if place is None or place.open or (failing is not None and failing.undo):
        raise illegal(program, control, fact, seq, "a stage that has failed")
    control.failing.pop(address, None)
    return move(program, control, fact, seq, address, "skipped")


def handled(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`FailureHandled`: all that stood in the block is gone, and its handler is entered."""
    block = Address(fact.path, fact.visit)
    failing = control.failing.get(block)
    guard = program.guards.get(block.path)
    if guard is None or failing is None or failing.undo or failing.ends != "block":
        raise illegal(program, control, fact, seq, "a block that has failed and ended")
    targets = program.table[guard.states[0], f"handled:{fact.path}"]
    standing: tuple[dict[Address, Any], ...] = (
        control.active, control.frames, control.forks, control.feeds, control.halted,
        control.limits, control.failing,
    )  # fmt: skip
    for known in standing:
        for at in [at for at in known if within(at, block)]:
            del known[at]
    control.parked = tuple(at for at in control.parked if not within(at, block))
    if not any(program.leaves[place.leaf].role is Role.SAVE for place in control.active.values()):
        feeds.release(control)  # a checkpoint that will not be saved holds no production back
    return land(program, control, targets, fact.visit)


def scheduled(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`RetryScheduled`: the next attempt is due, now or later."""
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    place = control.active.get(address)
    stage = place is not None and program.leaves[place.leaf].role is Role.STAGE
    known = place.attempt if place is not None else 0
    fits = fact.attempt >= known if event.since else fact.attempt == known > 0
    if place is None or not stage or place.open or place.waits or not fits:
        raise illegal(program, control, fact, seq, "a stage whose attempt has failed")
    control.active[address] = Place(
        place.leaf, place.visit, fact.attempt, started=place.started, waits=event.delay > 0
    )
    return ()


def armed(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`TimeLimitStarted`: a block is entered."""
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    landed = move(program, control, fact, seq, address, "armed")
    control.limits[address] = Limit(seq, event.seconds)
    return landed


def disarmed(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """`TimeLimitEnded`: it is left in time."""
    address = Address(fact.path, fact.visit)
    landed = move(program, control, fact, seq, address, "disarmed")
    control.limits.pop(address, None)
    return landed

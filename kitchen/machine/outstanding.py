"""What a run waits for, from its state alone.

Rules:

1. A token waits for one command, or for others: a consumer for an item, a checkpoint and the end
   of an async loop for productions to be over, a stage for its next attempt.
2. Productions and joins have no token: they follow from the feeds and forks.
3. Nothing is outstanding in a branch that has failed, nor once the run has ended.
"""

from __future__ import annotations

from collections.abc import Iterator

from kitchen.machine import commands as C
from kitchen.machine import feeds
from kitchen.machine.chart import Program
from kitchen.machine.commands import Command
from kitchen.machine.events import Address
from kitchen.machine.lanes import instance
from kitchen.machine.layout import Role
from kitchen.machine.state import ACTIVE, Control, Place, State


def outstanding(program: Program, state: State) -> tuple[Command, ...]:
    """What a run in this state waits for."""
    control = state.core.control
    if control.status != ACTIVE:
        return ()
    return tuple(c for c in _asked(program, control) if not is_halted(control, c.address))


def is_outstanding(program: Program, state: State, command: Command) -> bool:
    """Whether a command is still wanted."""
    control = state.core.control
    if control.status != ACTIVE or is_halted(control, command.address):
        return False
    match command:
        case C.Produce():
            return command.address in feeds.all_being_made(program, control)
        case C.JoinBranches():
            fork = control.forks.get(command.address)
            return fork is not None and fork.done == fork.total
        case _:
            place = control.active.get(command.address)
            asked = command_at(program, control, command.address, place) if place else None
            return type(asked) is type(command) and asked == command


def _asked(program: Program, control: Control) -> Iterator[Command]:
    for address, place in control.active.items():
        command = command_at(program, control, address, place)
        if command is not None:
            yield command
    for address, fork in control.forks.items():
        if fork.done == fork.total:
            yield C.JoinBranches(address)
    for address in feeds.all_being_made(program, control):
        yield C.Produce(address)


def is_halted(control: Control, address: Address) -> bool:
    """Whether an address lies in a branch that has failed, or waits to be tried again."""
    if not control.halted and not control.parked:
        return False
    return any(within(address, branch) for branch in (*control.halted, *control.parked))


def within(address: Address, branch: Address) -> bool:
    """Whether an address lies in a branch."""
    inside = address.path == branch.path or address.path.startswith(f"{branch.path}/")
    return inside and address.visit[: len(branch.visit)] == branch.visit


def command_at(
    program: Program, control: Control, address: Address, place: Place
) -> Command | None:
    """What a token waits for on its leaf; None where it waits for others."""
    leaf = program.leaves[place.leaf]
    match leaf.role:
        case Role.STAGE:
            return C.RunStage(address, place.attempt) if place.open else None
        case Role.ENTER:
            return C.OpenLoop(address)
        case Role.ASK | Role.TURN:
            return C.EvaluateCondition(address)
        case Role.FORK:
            return C.OpenBranches(address)
        case Role.PULL:
            frame = control.frames[address]
            return C.LeaveLoop(address) if frame.stop else C.PullItem(address, frame.current + 1)
        case Role.LEAVE:
            node, feed = feeds.node_of(program, address.path), control.feeds[address]
            return None if feeds.being_made(node, feed) else C.LeaveLoop(address)
        case Role.OPEN:
            return C.OpenResource(address, instance(program, address, leaf.names[0]))
        case Role.CLOSE:
            return C.CloseResources(address, closing(program, address, leaf.names))
        case Role.SAVE:
            busy = control.feeds and feeds.all_being_made(program, control)
            return None if busy else C.SaveCheckpoint(address)
        case _:
            return None


def closing(program: Program, address: Address, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the resources that a block closes there."""
    return tuple(instance(program, address, name) for name in names)

"""What a run waits for, from its state alone.

Rules:

1. A token waits for one command, or for others: a consumer for an item, a checkpoint and the end
   of an async loop for productions to be over, a stage for its next attempt.
2. Productions and joins have no token: they follow from the feeds and forks. What a failure ends
   is rolled back, then left: that follows from `failing`.
3. Nothing else is outstanding in what has failed, nor once the run has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kitchen.machine import commands as C
from kitchen.machine import feeds
from kitchen.machine.chart import Program
from kitchen.machine.commands import Command
from kitchen.machine.events import Address
from kitchen.machine.lanes import instance
from kitchen.machine.layout import Role
from kitchen.machine.state import ACTIVE, Control, Failing, Once, Place, State
from kitchen.workflow.ir import StageNode


def outstanding(program: Program, state: State) -> tuple[Command, ...]:
    """What a run in this state waits for."""
    control = state.core.control
    if control.status != ACTIVE:
        return ()
    asked = tuple(c for c in _asked(program, control) if not is_halted(control, c.address))
    return (*asked, *_unwinding(control))


def is_outstanding(program: Program, state: State, command: Command) -> bool:
    """Whether a command is still wanted."""
    control = state.core.control
    if control.status != ACTIVE:
        return False
    if isinstance(command, C.RollBack | C.LeaveBlock):
        return command in _unwinding(control)
    if is_halted(control, command.address):
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


def unwinding(block: Address, failing: Failing) -> Command | None:
    """What comes next where a failure ends something: a rollback, or its leaving."""
    if failing.undo:
        return C.RollBack(failing.undo[0], block)
    return C.LeaveBlock(block) if failing.ends in ("block", "branch") else None


def _unwinding(control: Control) -> list[Command]:
    found = [(block, unwinding(block, failing)) for block, failing in control.failing.items()]
    return [c for block, c in found if c is not None and not is_ended(control, block)]


def is_ended(control: Control, block: Address) -> bool:
    """Whether what failed lies in something that has failed as well."""
    around = (*control.halted, *control.parked, *(b for b in control.failing if b != block))
    return any(within(block, other) for other in around)


def is_halted(control: Control, address: Address) -> bool:
    """Whether an address lies in what has failed, or waits to be tried again."""
    if not control.halted and not control.parked and not control.failing:
        return False
    ended = (*control.halted, *control.parked, *control.failing)
    return any(within(address, block) for block in ended)


def undecided(program: Program, state: State) -> tuple[Address, ...]:
    """Where a stage waits whose effect must not happen twice, and may have happened."""
    control = state.core.control
    unsure = [at for at, known in state.memo.items() if known == Once(None)]
    waiting = [at for at in unsure if at in control.active]
    waiting += [at for at in unsure if any(within(at, block) for block in control.failing)]
    for address, place in control.active.items():
        node = program.nodes.get(address.path)
        if place.open and isinstance(node, StageNode) and node.effect == "once":
            waiting.append(address)
    return tuple(dict.fromkeys(waiting))


def within(address: Address, block: Address) -> bool:
    """Whether an address lies in a branch or block; in the empty one, all do."""
    path = block.path
    inside = not path or address.path == path or address.path.startswith(f"{path}/")
    return inside and address.visit[: len(block.visit)] == block.visit


def command_at(
    program: Program, control: Control, address: Address, place: Place
) -> Command | None:
    """What a token waits for on its leaf; None where it waits for others."""
    leaf = program.leaves[place.leaf]
    asked = _PLAIN.get(leaf.role)
    if asked is not None:
        return asked(address)
    match leaf.role:
        case Role.STAGE:
            if place.waits:
                return C.AwaitRetry(address, place.attempt + 1)
            return C.RunStage(address, place.attempt) if place.open else None
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


_PLAIN: dict[Role, Callable[[Address], Command]] = {
    Role.ENTER: C.OpenLoop,
    Role.ASK: C.EvaluateCondition,
    Role.TURN: C.EvaluateCondition,
    Role.FORK: C.OpenBranches,
}


def closing(program: Program, address: Address, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the resources that a block closes there."""
    return tuple(instance(program, address, name) for name in names)

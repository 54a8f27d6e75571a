"""`decide`: what follows from what was asked for or has come back.

Rules:

1. Pure: it changes nothing. `decide(program, state, input)` gives the facts to append and the
   commands to perform once they are appended and applied.
2. Total: an input that no outstanding command asked for is an `IllegalOutcome` that says role,
   state and event; it is never passed over in silence.
3. What is outstanding follows from the state alone (`outstanding`), and the commands of a decision
   are what it newly holds.
4. What can be known without asking (the next item of a collection, a decision that the memo
   holds) is decided at once, in the same batch as what led there.
5. What becomes of stages is decided in `stages`, of failures in `failures`, of the run in `life`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from msgspec import Raw

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import failures, feeds, lanes, life, stages
from kitchen.machine.chart import Program
from kitchen.machine.commands import Command, Input
from kitchen.machine.draft import Draft
from kitchen.machine.events import Address, Event, Fact
from kitchen.machine.layout import Role
from kitchen.machine.outstanding import (
    closing,
    command_at,
    is_halted,
    outstanding,
)
from kitchen.machine.state import ACTIVE, Control, State
from kitchen.workflow.ir import ParallelNode


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
    if draft.control.feeds and draft.going:
        control = state.core.control
        anew = isinstance(given, C.Continue | C.Preserved)
        before = () if anew else feeds.all_being_made(program, control)
        draft.produce({at for at in before if not is_halted(control, at)})
    return Decision(draft.facts, draft.commands, draft.control if draft.known else None)


# --- control flow and resources -------------------------------------------------------------------


def _entered(draft: Draft, given: C.CollectionOpened) -> None:
    draft.place(given.address, Role.ENTER)
    if _refused(draft, given):
        return
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.LoopEntered) and recorded.items != given.items:
        draft.diverge(given.address, "items", str(recorded.items), str(given.items))
    _on(draft, given.address, E.LoopEntered(given.items, *_used(draft, given)))


def _answered(draft: Draft, given: C.ConditionAnswered) -> None:
    draft.place(given.address, Role.ASK, Role.TURN)
    if _refused(draft, given):
        return
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.ConditionEvaluated) and recorded.answer != given.answer:
        draft.diverge(given.address, "answer", str(recorded.answer), str(given.answer))
    _on(draft, given.address, E.ConditionEvaluated(given.answer, *_used(draft, given)))


def _forked(draft: Draft, given: C.BranchesOpened) -> None:
    draft.place(given.address, Role.FORK)
    if _refused(draft, given):
        return
    node = draft.program.nodes[given.address.path]
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.BranchesStarted) and recorded.items != given.items:
        draft.diverge(given.address, "items", str(recorded.items), str(given.items))
    used = _used(draft, given)
    count = len(node.branches) if isinstance(node, ParallelNode) else 0
    count = count if given.items is None else given.items.count
    draft.emit(E.BranchesStarted(count, given.limit, given.items, *used), *given.address)
    draft.fill(given.address)


def _merged(draft: Draft, given: C.BranchesMerged) -> None:
    parallel, core = given.address, draft.state.core
    fork = draft.control.forks.get(parallel)
    if fork is None or fork.done < fork.total or not draft.goes_on(parallel):
        raise draft.refusal(parallel, None)
    written = [
        key for _, overlay in lanes.branches(draft.program, core, parallel) for key in overlay
    ]
    clash = draft.clash(parallel, written)
    if clash is not None:
        draft.fail(parallel, clash)
        return
    _on(draft, parallel, E.BranchesJoined(given.merged))


def _pulled(draft: Draft, given: C.ItemPulled) -> None:
    draft.place(given.address, Role.PULL)
    path, visit = given.address
    frame = draft.control.frames[given.address]
    if frame.stop or given.number != frame.current + 1:
        raise draft.refusal(given.address, draft.control.active[given.address])
    if given.item is None:
        _on(draft, given.address, E.LoopExited())
        return
    address = Address(path, (*visit, given.number))
    recorded = draft.memo.get(address)
    if isinstance(recorded, E.ItemTaken) and recorded.digest != given.item.digest:
        draft.diverge(address, "item", recorded.digest, given.item.digest)
    _on(draft, address, given.item)


def _made(draft: Draft, given: C.ItemMade) -> None:
    under_way = feeds.all_being_made(draft.program, draft.control)
    if given.address not in under_way or not draft.goes_on(given.address):
        raise draft.refusal(given.address, None)
    if _refused(draft, given):
        return
    loop = feeds.loop_of(given.address)
    node = feeds.node_of(draft.program, loop.path)
    touched = draft.state.stateful(given.touched)
    late = touched and not draft.control.feeds[loop].owned and given.address.visit[-1] > 0
    if touched and (node.producers > 1 or (late and node.pacing == "paced")):
        draft.fail(given.address, lanes.by_chance(node.producers, touched))
        return
    recorded = draft.memo.get(given.address)
    if isinstance(recorded, E.ItemProduced) and recorded.value != given.value:
        draft.diverge(given.address, "item", _short(recorded.value), _short(given.value))
    elif isinstance(recorded, E.ItemProduced) and recorded.version != given.version:
        draft.diverge(given.address, "version", str(recorded.version), str(given.version))
    used = _used(draft, given)
    draft.emit(E.ItemProduced(given.value, given.version, *used), *given.address)
    draft.arrived(loop)


def _short(value: Raw) -> str:
    """The text of an item, as far as it can be shown."""
    return bytes(value)[:200].decode(errors="replace")


def _left(draft: Draft, given: C.LoopLeft) -> None:
    place = draft.place(given.address, Role.PULL, Role.LEAVE)
    asked = command_at(draft.program, draft.control, given.address, place)
    if not isinstance(asked, C.LeaveLoop):
        raise draft.refusal(given.address, place)
    path, visit = given.address
    feed = draft.control.feeds.get(given.address)
    for item in feed.made if feed is not None else ():
        draft.emit(E.ItemDiscarded("left"), path, (*visit, item.number))
    _on(draft, given.address, E.LoopExited())


def _opened(draft: Draft, given: C.ResourceReady) -> None:
    place = draft.place(given.address, Role.OPEN)
    if _refused(draft, given):
        return
    name = lanes.instance(draft.program, given.address, draft.program.leaves[place.leaf].names[0])
    touched, looked = _used(draft, given)
    opened = E.ResourceOpened(name, given.stateful, touched, given.lost, looked)
    _on(draft, given.address, opened)


def _closed(draft: Draft, given: C.BlockClosed) -> None:
    place = draft.place(given.address, Role.CLOSE)
    names = closing(draft.program, given.address, draft.program.leaves[place.leaf].names)
    touched = [name for name in given.touched if name not in names]
    clash = draft.clash(given.address, (), touched)
    if clash is not None:
        draft.fail(given.address, clash)
        return
    draft.touch(touched, given.address)
    _on(draft, given.address, E.ResourcesClosed(names))


def _saved(draft: Draft, given: C.CheckpointWritten) -> None:
    event = E.CheckpointSaved(given.resources)
    if given.address is None:
        if draft.control.status != ACTIVE:
            raise draft.refusal(None, None)
        draft.emit(event)
        return
    place = draft.place(given.address, Role.SAVE)
    if command_at(draft.program, draft.control, given.address, place) is None:
        raise draft.refusal(given.address, place)  # productions are under way
    _on(draft, given.address, event)


def _returned(draft: Draft, given: C.ResourceReturned) -> None:
    known = draft.state.core.resources.get(given.name)
    if known is None or draft.control.status != ACTIVE:
        raise draft.refusal(None, None)
    draft.emit(E.ResourceRestored(given.name, given.saved), known.path, known.visit)


def _failed(draft: Draft, given: C.CommandFailed) -> None:
    if draft.control.status != ACTIVE:
        raise draft.refusal(given.address, draft.control.active.get(given.address))
    if given.everywhere:
        failures.end(draft, given.address, given.failure)
        return
    due = outstanding(draft.program, draft.state)
    asked = next((command for command in due if command.address == given.address), None)
    match asked:
        case None:
            raise draft.refusal(given.address, draft.control.active.get(given.address))
        case C.RollBack(address, block):
            stages.rolled_back(draft, C.RolledBack(address, block, (), given.failure))
        case C.RunStage(address, attempt):
            raised = C.StageRaised(address, attempt, given.failure, (), given.touched)
            stages.raised(draft, raised)
        case C.Produce():
            _not_made(draft, given)
        case _:
            touched = draft.state.stateful(given.touched)
            if touched and draft.in_branch(given.address):
                draft.touch(touched, given.address)  # as of an attempt: nobody goes on with it
            draft.fail(given.address, given.failure, touched)


def _not_made(draft: Draft, given: C.CommandFailed) -> None:
    loop, number = feeds.loop_of(given.address), given.address.visit[-1]
    feed = draft.control.feeds[loop]
    touched = draft.state.stateful(given.touched)
    if touched or feed.owned:
        draft.touch(touched, given.address)
        failures.fail(draft, failures.Target("run", Address("")), given.address, given.failure)
        return
    seen = feeds.seen(feeds.node_of(draft.program, loop.path), feed, number)
    event = E.ItemProduced(version=seen.version, failure=given.failure)
    draft.emit(event, *given.address)
    draft.arrived(loop)


_Uses: TypeAlias = (
    C.CollectionOpened | C.ConditionAnswered | C.BranchesOpened | C.ItemMade | C.ResourceReady
)


def _refused(draft: Draft, given: _Uses) -> bool:
    """Fail what uses a resource that is another side's; whether it does."""
    clash = draft.clash(given.address, (), given.touched, given.looked)
    if clash is not None:
        draft.fail(given.address, clash)
    return clash is not None


def _used(draft: Draft, given: _Uses) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell first touches; the stateful resources that were touched, and peeked at."""
    looked = draft.looked(given.looked, given.address)
    return draft.touch(given.touched, given.address), looked


def _on(draft: Draft, address: Address, event: Event) -> None:
    """Emit the event that takes the token from an address, and go on from where it lands."""
    draft.settle(draft.emit(event, *address))


_DECIDERS: dict[type[Any], Callable[[Draft, Any], None]] = {
    C.Start: life.start,
    C.Resume: life.resume,
    C.Continue: life.go_on,
    C.Interrupt: life.interrupt,
    C.Cancel: life.cancel,
    C.Preserved: life.preserved,
    C.TimeUp: life.time_up,
    C.StageSucceeded: stages.succeeded,
    C.StageRaised: stages.raised,
    C.RetryDue: stages.due,
    C.RolledBack: stages.rolled_back,
    C.BlockLeft: failures.left,
    C.MetricsFlushed: stages.flushed,
    C.CollectionOpened: _entered,
    C.ConditionAnswered: _answered,
    C.BranchesOpened: _forked,
    C.BranchesMerged: _merged,
    C.ItemPulled: _pulled,
    C.ItemMade: _made,
    C.LoopLeft: _left,
    C.ResourceReady: _opened,
    C.BlockClosed: _closed,
    C.CheckpointWritten: _saved,
    C.ResourceReturned: _returned,
    C.CommandFailed: _failed,
}

"""Control: where a run stands, moved by one event at a time.

Rules:

1. Tokens go where the table says (`tokens`); what is added here is what a table cannot know: loop
   counts, branches that wait or are done, what an async loop has made, attempts, the run's life.
2. Every event is checked. One that cannot happen where the run stands is an `IllegalEvent`.
3. `decide` moves a draft of the control with the same function that `apply` uses, so what is
   decided and what is folded cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from kitchen.machine import events as E
from kitchen.machine import feeds, unwinding
from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Event, Fact
from kitchen.machine.lanes import parallel_of
from kitchen.machine.layout import Role
from kitchen.machine.outstanding import within
from kitchen.machine.state import ACTIVE, Control, Feed, Fork, Frame, Halt, Made, Place
from kitchen.machine.tokens import illegal, land, leave, move
from kitchen.workflow.ir import AsyncLoopNode, LoopNode, ParallelNode, ParallelOverNode

Landed: TypeAlias = tuple[Address, ...]


def advance(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """Move the token that a control event concerns; where tokens have newly landed.

    Raises `IllegalEvent`; the control is then not to be used.
    """
    kind: type[Event] = type(fact.event)
    if kind in _ATTEMPTS:
        return _attempt(program, control, fact, seq)
    handler = _HANDLERS.get(kind)
    if handler is not None:
        return handler(program, control, fact, seq)
    if kind is E.RunCompleted:
        return move(program, control, fact, seq, Address("", ()), "complete")
    return _lifecycle(program, control, fact, seq)


def running(program: Program, control: Control, parallel: Address, fork: Fork) -> int:
    """How many branches of a parallel are neither done nor failed."""
    going = fork.started - fork.done
    if control.halted or control.parked:
        resting = (*control.halted, *control.parked)
        going -= sum(parallel_of(program, at) == parallel for at in resting)
    return going


def try_again(program: Program, control: Control, seq: int) -> None:
    """What failed before `seq` is tried again: productions, and branches, as many of each parallel
    as may run; the others are parked. Waits are over, and time limits begin anew."""
    feeds.make_again(control)
    for at, limit in control.limits.items():
        control.limits[at] = limit._replace(entered=max(limit.entered, seq))
    for at, place in control.active.items():
        if place.waits:
            control.active[at] = place._replace(waits=False)
    for at in [at for at, failing in control.failing.items() if failing.ends == "branch"]:
        del control.failing[at]
    if not control.halted and not control.parked:
        return
    parked: list[Address] = []
    for parallel, fork in control.forks.items():
        room = fork.limit - running(program, control, parallel, fork)
        begun = (branch_address(program, parallel, index) for index in range(fork.started))
        resting = [at for at in begun if at in control.halted or at in control.parked]
        parked += resting[max(room, 0) :]
    control.halted.clear()
    control.parked = tuple(parked)


def branch_address(program: Program, parallel: Address, index: int) -> Address:
    """The address of the branch of that number."""
    node = program.nodes[parallel.path]
    if isinstance(node, ParallelNode):
        return Address(f"{parallel.path}/{node.branches[index].name}", parallel.visit)
    return Address(parallel.path, (*parallel.visit, index))


def next_branch(
    program: Program, control: Control, parallel: Address, fork: Fork
) -> Address | None:
    """The branch that begins next, if there is one: one that is parked begins again."""
    if control.parked:
        parked = next((at for at in control.parked if parallel_of(program, at) == parallel), None)
        if parked is not None:
            return parked
    return branch_address(program, parallel, fork.started) if fork.started < fork.total else None


# --- attempts and the run's life ------------------------------------------------------------------


def _attempt(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
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


def may_change(program: Program, control: Control, fact: Fact, seq: int) -> None:
    """Whether a change or a metric can be recorded there: by an attempt, or by a rollback.

    Raises `IllegalEvent`.
    """
    if not control.failing or unwinding.rolling_back(control, fact) is None:
        open_attempt(program, control, fact, seq)


def _lifecycle(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """The run's own life, which the table holds too: `("ready", "start")`, `("running", "fail")`."""
    kind = type(fact.event)
    if kind is E.RunResumed:
        ended = control.status != ACTIVE
        back = [(control.status, f"resume:{place.leaf}") for place in control.active.values()]
        left = back or control.forks or control.feeds
        if not left or (ended and not all(arrow in program.table for arrow in back)):
            raise illegal(program, control, fact, seq, "a run that was left before its end")
        if control.status == "failed":
            try_again(program, control, seq)
        control.status = ACTIVE
        return ()
    verb = _LIFE[kind]
    targets = program.table.get((control.status, verb))
    if targets is None:
        raise illegal(program, control, fact, seq, f"a run that can {verb}")
    if kind is not E.RunStarted:
        (control.status,) = targets
        if kind is not E.RunInterrupted:
            control.failing.pop(Address(""), None)
        return ()
    control.status = ACTIVE
    return land(program, control, targets, ())


# --- conditionals and loops -----------------------------------------------------------------------


def _moving(verb: str) -> Callable[[Program, Control, Fact, int], Landed]:
    """The handler of an event that does no more than to move its token."""

    def moved(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
        return move(program, control, fact, seq, Address(fact.path, fact.visit), verb)

    return moved


def _answered(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    place = control.active.get(address)
    turn = place is not None and program.leaves[place.leaf].role is Role.TURN
    landed = move(program, control, fact, seq, address, "yes" if event.answer else "no")
    if turn:
        loop = feeds.loop_of(address)
        node, feed = feeds.node_of(program, loop.path), control.feeds[loop]
        feed = feeds.stop(node, feed) if event.answer else feed
        control.feeds[loop] = feeds.end_turn(node, feed, seq, consumed=True)
    return landed


def _entered(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    node = program.nodes[fact.path]
    if isinstance(event.items, E.OpenItems) == isinstance(node, LoopNode):
        raise illegal(program, control, fact, seq, f"a {type(node).__name__[:-4]} with such items")
    landed = move(program, control, fact, seq, address, "entered")
    if isinstance(node, AsyncLoopNode):
        control.feeds[address] = Feed(seq)
    else:
        control.frames[address] = Frame(event.items.count, -1, seq)
    return landed


def _taken(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    visit = fact.visit
    loop = Address(fact.path, visit[:-1])
    frame = control.frames.get(loop)
    if frame is not None:
        more = visit[-1] == frame.current + 1 and (visit[-1] < frame.total or frame.total < 0)
        if frame.stop or not more:
            raise illegal(program, control, fact, seq, "the next item of a loop that is running")
        control.frames[loop] = Frame(frame.total, visit[-1], frame.entered)
    else:
        feed = control.feeds.get(loop)
        item = feeds.next_item(feed) if feed is not None else None
        if feed is None or item is None or item.number != visit[-1]:
            raise illegal(program, control, fact, seq, "the next item of a loop that is running")
        if item.failure or feeds.stale(feeds.node_of(program, fact.path), feed, item):
            raise illegal(program, control, fact, seq, "an item that was made and is not too old")
    return move(program, control, fact, seq, loop, "item")


def _exited(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    address = Address(fact.path, fact.visit)
    frame = control.frames.pop(address, None)
    if frame is not None:
        if not frame.stop and frame.total >= 0 and frame.current + 1 != frame.total:
            raise illegal(program, control, fact, seq, "a loop whose items are all taken")
        return move(program, control, fact, seq, address, "exit")
    feed = control.feeds.pop(address, None)
    if feed is None or address not in control.active or not feed.stop or feed.made:
        raise illegal(program, control, fact, seq, "a loop that was asked to end")
    del control.active[address]
    return leave(program, control, fact, seq, "exit")


def _stopped(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    """A stage asks for the nearest loop to end: not an item of a parallel."""
    open_attempt(program, control, fact, seq)
    loop = stoppable(program, Address(fact.path, fact.visit))
    if loop is None:
        raise illegal(program, control, fact, seq, "a loop around it")
    if loop in control.frames:
        control.frames[loop] = control.frames[loop]._replace(stop=True)
    else:
        node = feeds.node_of(program, loop.path)
        control.feeds[loop] = feeds.stop(node, control.feeds[loop])
    return ()


def stoppable(program: Program, address: Address) -> Address | None:
    """The nearest loop around an address that can be asked to end."""
    loops = program.loops[address.path][: len(address.visit)]
    for depth in range(len(loops) - 1, -1, -1):
        if not isinstance(program.nodes[loops[depth]], ParallelOverNode):
            return Address(loops[depth], address.visit[:depth])
    return None


# --- async loops ----------------------------------------------------------------------------------


def _produced(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    event: Any = fact.event
    loop, index = feeds.loop_of(Address(fact.path, fact.visit)), fact.visit[-1]
    feed = control.feeds.get(loop)
    if (
        feed is None
        or control.status != ACTIVE
        or index not in feeds.being_made(feeds.node_of(program, loop.path), feed)
    ):
        raise illegal(program, control, fact, seq, "a production that is due")
    made = Made(index, seq, event.version, event.failure)
    control.feeds[loop] = feeds.add(feed, made, owned=bool(event.touched))
    return ()


def _discarded(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    event: Any = fact.event
    loop = Address(fact.path, fact.visit[:-1])
    feed = control.feeds.get(loop)
    item = feeds.first_item(feed) if feed is not None else None
    if feed is None or item is None or item.number != fact.visit[-1]:
        raise illegal(program, control, fact, seq, "the next item of an async loop")
    node = feeds.node_of(program, loop.path)
    feed = feed._replace(turn=item.number)
    due = feed.stop or feeds.stale(node, feed, item)
    if feed.stop != (event.reason == "left") or not due:
        raise illegal(program, control, fact, seq, "an item that is too old, or left")
    landed = move(program, control, fact, seq, loop, "discard")
    control.feeds[loop] = feeds.end_turn(node, feed, seq, consumed=False)
    return landed


# --- parallel -------------------------------------------------------------------------------------


def _forked(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    event: Any = fact.event
    address = Address(fact.path, fact.visit)
    node = program.nodes[fact.path]
    if isinstance(node, ParallelNode) and event.count != len(node.branches):
        raise illegal(program, control, fact, seq, f"{len(node.branches)} branches")
    if event.limit < 1 or event.count < 0:
        raise illegal(program, control, fact, seq, "room for at least one branch")
    landed = move(program, control, fact, seq, address, "forked")
    control.forks[address] = Fork(event.count, event.limit, 0, 0, seq)
    return landed


def _begun(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    branch = Address(fact.path, fact.visit)
    parallel = parallel_of(program, branch)
    fork = control.forks.get(parallel) if parallel is not None else None
    if (
        fork is None
        or parallel is None
        or control.status != ACTIVE
        or running(program, control, parallel, fork) >= fork.limit
        or branch != next_branch(program, control, parallel, fork)
    ):
        raise illegal(program, control, fact, seq, "the next branch of a parallel")
    if branch in control.parked:
        control.parked = tuple(at for at in control.parked if at != branch)
        return ()
    control.forks[parallel] = fork._replace(started=fork.started + 1)
    wait = program.waits[fact.path, len(fact.visit)]
    targets = program.moves[wait]["begin"]
    return land(program, control, targets, fact.visit)


def _finished(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    branch = Address(fact.path, fact.visit)
    landed = move(program, control, fact, seq, branch, "finished")
    parallel = parallel_of(program, branch)
    assert parallel is not None
    fork = control.forks[parallel]
    control.forks[parallel] = fork._replace(done=fork.done + 1)
    return landed


def _failed(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    event: Any = fact.event
    branch = Address(fact.path, fact.visit)
    parallel = parallel_of(program, branch)
    begun = any(within(at, branch) for at in (*control.active, *control.forks, *control.feeds))
    if parallel not in control.forks or branch in control.halted or not begun:
        raise illegal(program, control, fact, seq, "a branch that is running")
    control.failing.pop(branch, None)
    control.halted[branch] = Halt(event.failure, event.at)
    return ()


def _joined(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    address = Address(fact.path, fact.visit)
    fork = control.forks.pop(address, None)
    if fork is None or fork.done != fork.total:
        raise illegal(program, control, fact, seq, "a parallel whose branches are all done")
    return leave(program, control, fact, seq, "joined")


def _saved(program: Program, control: Control, fact: Fact, seq: int) -> Landed:
    if not fact.path:
        return ()  # the runner's own, at an interruption: it moves nothing
    landed = move(program, control, fact, seq, Address(fact.path, fact.visit), "saved")
    feeds.release(control)
    return landed


_LIFE: dict[type[Event], str] = {
    E.RunStarted: "start",
    E.RunResumed: "resume",
    E.RunInterrupted: "interrupt",
    E.RunFailed: "fail",
    E.RunCancelled: "cancel",
}
_HANDLERS: dict[type[Event], Callable[[Program, Control, Fact, int], Landed]] = {
    E.ConditionEvaluated: _answered,
    E.LoopEntered: _entered,
    E.ItemTaken: _taken,
    E.ItemProduced: _produced,
    E.ItemDiscarded: _discarded,
    E.LoopStopped: _stopped,
    E.LoopExited: _exited,
    E.BranchesStarted: _forked,
    E.BranchStarted: _begun,
    E.BranchCompleted: _finished,
    E.BranchFailed: _failed,
    E.BranchesJoined: _joined,
    E.ResourceOpened: _moving("opened"),
    E.ResourcesClosed: _moving("closed"),
    E.CheckpointSaved: _saved,
    E.RetryScheduled: unwinding.scheduled,
    E.BlockFailed: unwinding.failed,
    E.StageRolledBack: unwinding.rolled_back,
    E.StageSkipped: unwinding.skipped,
    E.FailureHandled: unwinding.handled,
    E.TimeLimitStarted: unwinding.armed,
    E.TimeLimitEnded: unwinding.disarmed,
}
_ATTEMPTS = frozenset({E.StageStarted, E.StageCompleted, E.StageFailed, E.StageInterrupted})
CONTROL = frozenset({*_LIFE, *_HANDLERS, *_ATTEMPTS, E.RunCompleted})

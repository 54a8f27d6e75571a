"""Failures: what becomes of one, and what it ends.

Rules:

1. A failure goes outwards until something takes it: a stage that says "skip", a handler that stands
   behind a node, a branch whose siblings go on. If nothing does, it ends the run.
2. What an attempt touched and did not commit is taken back before anything else runs: the run is
   rewound. Behind the rewind, what failed is not run again; its verdict holds (`State.verdicts`).
   Only the hooks of a run that ends may come before: they cannot get at what was touched. Of a
   branch whose siblings go on, nobody gets at it before the run or the parallel has failed.
3. A parallel that ends so leaves nothing: what its branches wrote goes, and what they and its
   `over` did to resources is taken back, committed or not.
4. An async loop whose producer owns a resource ends with the run: how far the producer had come is
   chance, and no handler could go on from there.
5. A block in which it is not known whether an effect has happened that must not happen twice is
   not left before somebody says.
6. The stage that failed is rolled back; where a workflow compensates, a run that fails rolls back
   the completed ones too, the last first. (Side by side, in the order of the program.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import lanes
from kitchen.machine.control import branch_address
from kitchen.machine.events import Address, spell
from kitchen.machine.layout import Role
from kitchen.machine.outstanding import is_halted, outstanding, unwinding, within
from kitchen.machine.state import Control, Once, Place
from kitchen.workflow.ir import ParallelNode, ParallelOverNode, StageNode, program_order

if TYPE_CHECKING:
    from kitchen.machine.chart import Program
    from kitchen.machine.draft import Draft

CRASH_BUDGET = 5
REFUSED = "StageRefused"  # by its own validation, so that it never ran


class Target(NamedTuple):
    """What a failure ends: a "run", a "branch", a "block" or a "stage", and where."""

    ends: str
    address: Address


def fail(
    draft: Draft,
    target: Target,
    at: Address,
    failure: E.Failure,
    touched: Collection[str] = (),
    seq: int = 0,
    *,
    undo: tuple[Address, ...] = (),
    judged: bool = False,
) -> None:
    """End what a failure for good at an address ends.

    `touched`: the resources that the attempt used and did not commit. `seq`: where it began. `undo`:
    the stages that were to be rolled back for it before a rewind. `judged`: it is one from then.
    """
    if target.ends in ("block", "stage") and not judged and _had_passed(draft, at):
        draft.diverge(at, "failure", "", failure.type)
    undo = _undo(draft, at, target, failure, undo)
    if target.address in draft.control.failing or (not undo and target.ends == "run"):
        end(draft, at, failure)
    elif not undo and target.ends == "branch" and not _stops_others(draft, target.address, at):
        halt(draft, target.address, at, failure)
    elif not undo and target.ends == "stage" and not touched:
        draft.settle(draft.emit(E.StageSkipped(_short(failure)), *at))
    else:
        _unwind_from(draft, target, at, failure, undo, touched, seq)


def _had_passed(draft: Draft, at: Address) -> bool:
    """Whether what fails now, and is gone on from, had come further before a rewind."""
    known = (a for a, known in draft.memo.items() if not isinstance(known, Once))
    return any(within(address, at) for address in known)


def _unwind_from(
    draft: Draft,
    target: Target,
    at: Address,
    failure: E.Failure,
    undo: tuple[Address, ...],
    touched: Collection[str],
    seq: int,
) -> None:
    block = target.address
    stood = stood_at(draft.program, draft.control, block, at)
    interrupt_attempts(draft, block)
    inner = _opened_in(draft, block) if target.ends == "block" else ()
    taken = target.ends in ("block", "stage")
    used, stopped = _used_in(draft, stood) if taken else (set[str](), False)
    half = (*touched, *draft.state.stateful(used)) if taken else ()
    names = tuple(sorted({name for name in half if name not in inner}))
    draft.emit(E.BlockFailed(failure, at, target.ends, undo, names, stood), *block)
    draft.commands = [c for c in draft.commands if not within(c.address, block)]
    if names or stopped:
        draft.rewind(names, at, _entry(draft, stood, seq))
    else:
        unwind(draft, block, at)


def unwind(draft: Draft, block: Address, anew: Address | None = None) -> None:
    """Go on with what a failure ends: roll back, leave, and then what is around goes on.

    `anew`: what has just failed; the processes that died there did not die of its rollback.
    """
    failing = draft.control.failing[block]
    command = unwinding(block, failing)
    while isinstance(command, C.RollBack) and command.address != anew:
        times = draft.state.crashes.get(command.address, 0)
        if times < CRASH_BUDGET:
            break
        if failing.ends != "run":
            end(draft, command.address, died_too_often(times))
            return
        draft.emit(E.StageRolledBack(died_too_often(times)), *command.address)
        failing = draft.control.failing[block]
        command = unwinding(block, failing)
    leaving = isinstance(command, C.LeaveBlock) and failing.ends == "block"
    unsure = _unsure_in(draft, block) if leaving else None
    if unsure is not None:
        end(draft, unsure, undecided(draft.program, unsure))
    elif command is not None:
        draft.commands.append(command)
    elif failing.ends == "run":
        end(draft, failing.at, failing.failure)
    else:
        draft.settle(draft.emit(E.StageSkipped(_short(failing.failure)), *block))


def left(draft: Draft, given: C.BlockLeft) -> None:
    """Nothing goes on in the block any more: on with its handler, or first back to the cut."""
    block = given.address
    failing = draft.control.failing.get(block)
    if failing is None or C.LeaveBlock(block) != unwinding(block, failing):
        raise draft.refusal(block, None)
    inner = _opened_in(draft, block)
    reached = [name for name in given.reached if name not in inner]
    if failing.ends == "branch":  # nobody beside it may use what is half changed
        draft.touch({*reached, *given.touched}, block)
        halt(draft, block, failing.at, failing.failure)
        return
    used, stopped = _used_in(draft, failing.stood)
    names = {*failing.touched, *given.touched, *used}
    gone = [name for name in given.lost if name in draft.state.core.resources]
    half = dict.fromkeys((*draft.state.stateful(names), *gone))
    outside = [name for name in half if name not in inner]
    if outside or stopped:
        draft.rewind(outside, failing.at, _entry(draft, failing.stood, 0))
        return
    draft.touch(reached, block)
    handled = E.FailureHandled(tuple(sorted(inner)), _short(failing.failure))
    draft.settle(draft.emit(handled, *block))


def _used_in(draft: Draft, stood: Address) -> tuple[set[str], bool]:
    """What the branches of a parallel that fails have used, and whether one asked a loop to end."""
    if stood not in draft.control.forks:
        return set(), False
    claims = draft.state.core.claims.get(stood, {})
    used = (what.partition(" ") for what in claims)
    names = {name for kind, _, name in used if kind in ("resource", "over")}
    return names, "stop" in claims


def _opened_in(draft: Draft, block: Address) -> set[str]:
    """The resources that were opened in a block, and go with it."""
    known = draft.state.core.resources.items()
    return {name for name, each in known if within(Address(each.path, each.visit), block)}


def _stops_others(draft: Draft, branch: Address, at: Address) -> bool:
    """Whether a failure ends what goes on elsewhere in a branch, and may have used something."""
    due = outstanding(draft.program, draft.state)
    return any(c.address != at and within(c.address, branch) for c in due)


def _unsure_in(draft: Draft, block: Address) -> Address | None:
    """Where in a block an effect may have happened that must not happen twice, if anywhere."""
    nodes = draft.program.nodes
    for fact in draft.facts:  # what these do to the memo is not yet in the state
        if isinstance(fact.event, E.StageInterrupted) and fact.event.begun:
            node = nodes[fact.path]
            at = Address(fact.path, fact.visit)
            if isinstance(node, StageNode) and node.effect == "once" and within(at, block):
                return at
    unsure = (at for at, known in draft.memo.items() if known == Once(None) and within(at, block))
    return next(unsure, None)


def undecided(program: Program, address: Address) -> E.Failure:
    """The failure that it is not to know whether an effect has happened."""
    where = spell(*address, program.loops.get(address.path))
    return E.Failure(
        "EffectUndecided",
        f"{where} must not happen twice, and it is not known whether it has",
        hint=f"find out, then resume with --decide '{where}=retry', or '{where}=skip' and the changes "
        "that it would have made: --set key=value",
    )


def end(draft: Draft, address: Address, failure: E.Failure) -> None:
    """End the run by a failure."""
    interrupt_attempts(draft)
    draft.emit(E.RunFailed(failure), *address)
    draft.commands.clear()


def halt(draft: Draft, branch: Address, at: Address, failure: E.Failure) -> None:
    """End a branch whose siblings go on, and begin the next in its place."""
    stood = stood_at(draft.program, draft.control, branch, at)
    interrupt_attempts(draft, branch)
    draft.emit(E.BranchFailed(failure, at, stood), *branch)
    draft.commands = [c for c in draft.commands if not within(c.address, branch)]
    draft.fill(_parallel(draft.program, branch))


def fail_parallel(draft: Draft, parallel: Address) -> None:
    """No branch goes on, and some failed: so did the parallel, by the first, in branch order."""
    order = {
        branch_address(draft.program, parallel, index): index
        for index in range(draft.control.forks[parallel].total)
    }
    halted = draft.control.halted
    failed = [at for at in halted if _parallel(draft.program, at) == parallel]
    failure, at = halted[min(failed, key=lambda at: order[at])]
    fail(draft, target_of(draft.program, draft.control, parallel), at, failure)


def interrupt_attempts(
    draft: Draft, inside: Address | None = None, begun: Collection[Address] | None = None
) -> None:
    """Tell that running attempts end without an outcome: all, or those in a block.

    `begun`: those whose bodies were called, if that is known.
    """
    for address, place in list(draft.control.active.items()):
        if place.open and (inside is None or within(address, inside)):
            sure = begun is None or address in begun
            draft.emit(E.StageInterrupted(sure), *address, place.attempt)


# --- who takes a failure --------------------------------------------------------------------------


def target_of(program: Program, control: Control, at: Address) -> Target:
    """What a failure at an address ends."""
    for target in _around(program, control, at):
        if target.address in control.failing:
            continue  # its leaving has failed
        if target.ends == "block" and _has_owner(control, target.address):
            break
        if target.ends != "branch":
            return target
        parallel = program.nodes[_parallel(program, target.address).path]
        assert isinstance(parallel, ParallelNode | ParallelOverNode)
        if parallel.on_error == "finish":
            return target
    return Target("run", Address(""))


def _has_owner(control: Control, block: Address) -> bool:
    """Whether a producer in a block owns a resource; in a parallel there it is taken back."""
    forks = [fork for fork in control.forks if within(fork, block)]
    return any(
        feed.owned and within(at, block) and not any(within(at, fork) for fork in forks)
        for at, feed in control.feeds.items()
    )


def _around(program: Program, control: Control, at: Address) -> Iterator[Target]:
    """What may take a failure, innermost first."""
    branches = {lane.path: here for lane, here in lanes.around(program, at) if lane.data}
    path = at.path
    while path:
        owned = (f.owned and a.path == path and within(at, a) for a, f in control.feeds.items())
        if any(owned):
            yield Target("run", Address(""))
        guard, branch = program.guards.get(path), branches.get(path)
        guarded = None
        if guard is not None:
            ends = "stage" if guard.skipped else "block"
            guarded = Target(ends, Address(path, at.visit[: guard.depth]))
        if branch is not None and guarded is not None:
            over = len(branch.visit) > len(guarded.address.visit)
            both = Target("branch", branch), guarded
            yield from both if over else both[::-1]
        elif branch is not None:
            yield Target("branch", branch)
        elif guarded is not None:
            yield guarded
        path = path.rpartition("/")[0]


def _parallel(program: Program, branch: Address) -> Address:
    parallel = lanes.parallel_of(program, branch)
    assert parallel is not None
    return parallel


def _undo(
    draft: Draft, at: Address, target: Target, failure: E.Failure, known: tuple[Address, ...]
) -> tuple[Address, ...]:
    """The stages to roll back, in that order: also those that something inside still had to."""
    program, control = draft.program, draft.control
    place = control.active.get(at)
    ran = place is not None and place.attempt > 0 and failure.type != REFUSED
    own = ran and at.path in program.undone and not is_halted(control, at)
    undo = [*known, at] if own else list(known)
    for block, failing in control.failing.items():
        if within(block, target.address):
            undo += failing.undo
    if target.ends == "run" and program.ir.compensate:
        order = program_order(program.ir)
        undo += sorted(draft.state.done, key=lambda each: order(*each), reverse=True)
    return tuple(dict.fromkeys(undo))


# --- where the run stood --------------------------------------------------------------------------


def spot(program: Program, control: Control, address: Address, place: Place) -> Address:
    """A token's place, told apart from others at the same address."""
    role = program.leaves[place.leaf].role
    path, visit = address
    match role:
        case Role.STAGE | Role.FORK:
            return address
        case Role.PULL:
            return Address(f"{path}?{role.value}", (*visit, control.frames[address].current + 1))
        case Role.TAKE:
            return Address(f"{path}?{role.value}", (*visit, control.feeds[address].turn))
        case _:
            return Address(f"{path}?{role.value}", visit)


def stood_at(program: Program, control: Control, block: Address, at: Address) -> Address:
    """Where the run stands in a block: at the outermost parallel in it, or at its one token."""
    forks = [parallel for parallel in control.forks if within(parallel, block)]
    if forks:
        return min(forks, key=lambda each: len(each.path))
    place = control.active.get(at)
    if place is not None:
        return spot(program, control, at, place)
    tokens = [a for a in control.active if within(a, block)]
    return spot(program, control, tokens[0], control.active[tokens[0]]) if tokens else at


def _entry(draft: Draft, stood: Address, seq: int) -> int:
    """The seq before what stood there began."""
    fork = draft.control.forks.get(stood)
    if fork is not None:
        return fork.entered - 1
    place = draft.control.active.get(stood)
    if place is not None and place.started:
        return place.started
    return seq or draft.state.seq


def _short(failure: E.Failure) -> E.Failure:
    return E.Failure(failure.type, failure.message, hint=failure.hint)


def died_too_often(times: int) -> E.Failure:
    """The failure that it is to have killed so many processes."""
    return E.Failure(
        "CrashBudgetSpent",
        f"the process died {times} times while this was running",
        hint="look for what kills it (memory?), then resume: the budget is then fresh",
    )

"""The table and the live `transitions` machine never part: arrow by arrow, and over whole runs.

A live machine is in all regions at once; a run has tokens where work is going on, and counts of
the branches that wait or are done. Both are compared as sets of leaves. Each item of a
`parallel(over=…)` has a model of its own, since the live machine is in one of them at a time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transitions import MachineError

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds
from kitchen.machine.chart import RUNNING, SEPARATOR, ChartMachine, Program, machine
from kitchen.machine.control import branch_address
from kitchen.machine.events import Address, Fact
from kitchen.machine.lanes import parallel_of
from kitchen.machine.outstanding import within
from kitchen.machine.state import Control, Fork
from kitchen.workflow.ir import ParallelOverNode, WorkflowIR
from tests.machine.faults import drive, faulty, scenario
from tests.machine.growth import Grower
from tests.machine.simulator import TooLong, World, new_world
from tests.strategies import workflow_irs

irs = workflow_irs(max_nodes=10, max_depth=4, with_options=False, concurrent=True, failures=True)
salts = st.integers(0, 2**16)
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class Token:
    """A model for the live machine: it holds a state and nothing else."""

    def __init__(self, state: Any = "ready") -> None:
        self.state = state

    def leaves(self) -> set[str]:
        """Where it is, in all regions."""
        return {state.removeprefix(f"{RUNNING}{SEPARATOR}") for state in _flat(self.state)}


def _flat(state: Any) -> Iterator[str]:
    if isinstance(state, list):
        for inner in state:
            yield from _flat(inner)
    else:
        yield str(state)


# --- arrow by arrow ---


@relaxed
@given(irs)
def test_every_arrow_is_the_live_machines(ir: WorkflowIR) -> None:
    program, live = new_world(ir, 0).program, machine(ir)
    model = Token()
    for (source, trigger), targets in program.table.items():
        for state in standing(program, source):
            live.set_state(state, model)
            assert live.trigger_event(model, trigger)
            assert model.leaves() == set(targets)


def standing(program: Program, source: str) -> list[str]:
    """Where a live machine can be when it takes an arrow: anywhere in a block that has failed."""
    if source in program.leaves or source in program.composites.values():
        return [f"{RUNNING}{SEPARATOR}{source}"]
    inside = [leaf for leaf in program.leaves if leaf.startswith(f"{source}{SEPARATOR}")]
    guarded = any(source in guard.states for guard in program.guards.values())
    return [f"{RUNNING}{SEPARATOR}{leaf}" for leaf in inside] if guarded else [source]


@relaxed
@given(irs, salts)
def test_what_the_table_does_not_hold_the_live_machine_refuses(ir: WorkflowIR, salt: int) -> None:
    program, live = new_world(ir, 0).program, machine(ir)
    triggers = sorted({trigger for _, trigger in program.table})
    rng = random.Random(salt)
    model = Token()
    for _ in range(40):
        leaf, trigger = rng.choice(sorted(program.leaves)), rng.choice(triggers)
        own, whole = program.table.get((leaf, trigger)), program.table.get((RUNNING, trigger))
        # An arrow from a state that the leaf is in is taken by the live machine too.
        joins = trigger.startswith(("joined:", "exit:", "handled:"))
        if own is not None or whole is not None or joins:
            continue
        live.set_state(f"{RUNNING}{SEPARATOR}{leaf}", model)
        with pytest.raises((MachineError, ValueError, TypeError)):
            live.trigger_event(model, trigger)


# --- whole runs ---


def trigger_of(program: Program, fact: Fact) -> str | None:
    """The arrow that an event takes, if it takes one."""
    event, path = fact.event, fact.path
    match event:
        case E.RunStarted():
            return "start"
        case E.RunCompleted():
            return "complete:"
        case E.ConditionEvaluated(answer=answer):
            return f"{'yes' if answer else 'no'}:{path}"
        case E.CheckpointSaved():
            return f"saved:{path}" if path else None
        case E.FailureHandled():
            return f"handled:{path}"
        case E.RunFailed() | E.RunInterrupted() | E.RunCancelled():
            return {"RunFailed": "fail", "RunInterrupted": "interrupt"}.get(
                type(event).__name__, "cancel"
            )
        case _:
            verb = VERBS.get(type(event))
            return f"{verb}:{path}" if verb else None


VERBS: dict[type[E.Event], str] = {
    E.StageCompleted: "done",
    E.LoopEntered: "entered",
    E.ItemTaken: "item",
    E.ItemProduced: "produced",
    E.ItemDiscarded: "discard",
    E.LoopExited: "exit",
    E.BranchesStarted: "forked",
    E.BranchStarted: "begin",
    E.BranchCompleted: "finished",
    E.BranchesJoined: "joined",
    E.ResourceOpened: "opened",
    E.ResourcesClosed: "closed",
    E.StageSkipped: "skipped",
    E.TimeLimitStarted: "armed",
    E.TimeLimitEnded: "disarmed",
}


def item_of(program: Program, address: Address) -> Address:
    """The innermost item around an address, the empty one if there is none."""
    many = [lane for lane in program.lanes.get(address.path, ()) if lane.many]
    found = [lane for lane in many if len(address.visit) >= lane.depth]
    return Address(found[-1].path, address.visit[: found[-1].depth]) if found else Address("")


class Mirror:
    """The live models of a run: one for the run, one for each item of each `parallel(over=…)`."""

    def __init__(self, live: ChartMachine, program: Program) -> None:
        self.live, self.program = live, program
        self.models: dict[Address, Token] = {Address(""): Token()}

    def follow(self, fact: Fact) -> None:
        trigger = trigger_of(self.program, fact)
        if trigger is None:
            return
        address = Address(fact.path, fact.visit)
        node = self.program.nodes.get(fact.path)
        if isinstance(fact.event, E.ItemTaken | E.ItemDiscarded):
            owner = Address(fact.path, fact.visit[:-1])
        else:
            owner = Address("") if isinstance(fact.event, E.RunFailed) else address
        item = item_of(self.program, owner)
        model = self.models[item]
        over = isinstance(node, ParallelOverNode) and isinstance(fact.event, E.BranchesJoined)
        if over or isinstance(fact.event, E.FailureHandled):
            for at in [at for at in self.models if at != Address("") and within(at, address)]:
                if at != item:
                    del self.models[at]
        assert self.live.trigger_event(model, trigger), trigger
        if isinstance(node, ParallelOverNode) and isinstance(fact.event, E.BranchesStarted):
            for index in range(fact.event.count):
                self.models[Address(fact.path, (*fact.visit, index))] = Token(model.state)

    def compare(self, control: Control) -> None:
        if control.status != "running":
            assert self.models[Address("")].leaves() == {control.status}
            return
        for item, model in self.models.items():
            found, expected = model.leaves(), set(expected_leaves(self.program, control, item))
            if item != Address(""):
                state = self.program.composites[item.path]
                found = {leaf for leaf in found if leaf.startswith(f"{state}{SEPARATOR}")}
            assert found == expected, item


def expected_leaves(program: Program, control: Control, item: Address) -> Iterator[str]:
    """Where a live model must be for a run to be there: in that item, but in none inside it."""
    for address, place in control.active.items():
        if item_of(program, address) == item:
            yield place.leaf
    for loop in control.feeds:
        if item_of(program, loop) == item:
            making = feeds.production(loop, 0).path
            yield next(leaf.name for leaf in program.leaves.values() if leaf.path == making)
    for parallel, fork in control.forks.items():
        if item_of(program, parallel) == item:
            yield from beside(program, control, parallel, fork)
    if item != Address(""):
        fork = control.forks[Address(item.path, item.visit[:-1])]
        yield from waiting(program, control, item, item.visit[-1] >= fork.started)


def beside(program: Program, control: Control, parallel: Address, fork: Fork) -> Iterator[str]:
    """The pseudo-leaves of the branches of a parallel."""
    if isinstance(program.nodes[parallel.path], ParallelOverNode):
        yield program.waits[parallel.path, len(parallel.visit) + 1]  # the items have their models
        return
    for index in range(fork.total):
        branch = branch_address(program, parallel, index)
        yield from waiting(program, control, branch, index >= fork.started)


def waiting(program: Program, control: Control, branch: Address, not_begun: bool) -> Iterator[str]:
    """The pseudo-leaf of a branch in which nothing is going on."""
    wait = program.waits[branch.path, len(branch.visit)]
    if not_begun:
        yield wait
        return
    going = [*control.active, *control.feeds]
    own = [at for at in control.forks if at != parallel_of(program, branch)]
    if not any(within(at, branch) for at in [*going, *own]):
        yield wait.removesuffix("?wait") + "?done"


def mirrored(world: World) -> None:
    live = machine(world.program.ir)
    mirror = Mirror(live, world.program)
    was = [Mirror(live, world.program).models]
    for seq, fact in enumerate(world.log, 1):
        if isinstance(fact.event, E.RunRewound):
            mirror.models = {at: Token(token.state) for at, token in was[fact.event.to].items()}
        mirror.follow(fact)
        mirror.compare(world.states[seq].core.control)
        was.append({at: Token(token.state) for at, token in mirror.models.items()})


@settings(relaxed, max_examples=30)
@given(irs, salts)
def test_a_run_goes_the_same_way_on_the_live_machine(ir: WorkflowIR, salt: int) -> None:
    world = new_world(ir, salt, salt)
    try:
        world.run(150)
    except TooLong:
        return
    mirrored(world)


def test_large_runs_go_the_same_way_on_the_live_machine() -> None:
    seen: set[type[E.Event]] = set()
    for seed in range(60):
        world = new_world(Grower(seed).workflow(), seed, seed)
        try:
            world.run(60)
        except TooLong:
            continue
        mirrored(world)
        seen |= {type(fact.event) for fact in world.log}
    assert seen >= set(VERBS) - {E.StageSkipped, E.TimeLimitStarted, E.TimeLimitEnded}


def test_runs_in_which_things_fail_go_the_same_way_on_the_live_machine() -> None:
    seen: Counter[str] = Counter()
    for seed in range(220):
        found = scenario(seed)
        if found is None:
            continue
        world = drive(faulty(found.ir, seed, seed, found.faults))
        mirrored(world)
        if world.state.status == "failed":
            world.step(C.Cancel("somebody"))
            mirrored(world)
        seen.update(type(fact.event).__name__ for fact in world.log)
    for name in ("FailureHandled", "StageSkipped", "TimeLimitStarted", "TimeLimitEnded"):
        assert seen[name] >= 10, name
    assert min(seen["RunFailed"], seen["RunCancelled"], seen["RunRewound"]) >= 20

"""The kernel's properties, over workflows that nobody would write.

1. From every leaf the table leads on, and the live `transitions` machine goes the same way.
2. An outcome that nobody asked for is refused with role, state and event.
3. A log that was tampered with is refused, or says the same.

The live machine beside whole runs: `test_mirror`. Orders, crashes, failures and conflicts:
`test_schedules`, `test_crashes`, `test_branches`.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from kitchen.errors import IllegalEvent, IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds
from kitchen.machine.chart import RUNNING, SEPARATOR, Program, compile_workflow, machine
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact, Host
from kitchen.machine.fold import fold
from kitchen.machine.outstanding import outstanding
from kitchen.machine.state import State
from kitchen.workflow.ir import ConditionalNode, ParallelOverNode, StageNode, WorkflowIR
from tests.machine.growth import CODE
from tests.machine.simulator import TooLong, new_world, started
from tests.strategies import workflow_irs

irs = workflow_irs(max_nodes=10, max_depth=4, with_options=False)
every = workflow_irs(max_nodes=10, max_depth=4, with_options=False, concurrent=True, failures=True)
salts = st.integers(0, 2**16)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class Token:
    """A model for the live machine: it holds a state and nothing else."""

    state: Any = "ready"


@relaxed
@given(irs, salts)
def test_a_random_walk_goes_the_same_way_on_both(ir: WorkflowIR, salt: int) -> None:
    """From the start, over legal triggers only: the live machine and the table never part."""
    program, live = compile_workflow(ir), machine(ir)
    rng = random.Random(salt)
    model = Token()
    here = "ready"
    for _ in range(60):
        own = {trigger: to for (leaf, trigger), to in program.table.items() if leaf == here}
        if here in program.leaves:
            own |= {t: to for (leaf, t), to in program.table.items() if leaf == RUNNING}
        if not own:
            break
        trigger = rng.choice(sorted(own))
        assert live.trigger_event(model, trigger)
        (here,) = own[trigger]
        assert str(model.state).removeprefix(f"{RUNNING}{SEPARATOR}") == here


@relaxed
@given(every)
def test_every_leaf_is_reachable_and_leads_on(ir: WorkflowIR) -> None:
    program = compile_workflow(ir)
    reached, ahead = {program.initial}, [program.initial]
    while ahead:
        here = ahead.pop()
        around = {s for s in program.composites.values() if here.startswith(f"{s}{SEPARATOR}")}
        failing = {s for guard in program.guards.values() for s in guard.states}
        around |= {s for s in failing if here.startswith(f"{s}{SEPARATOR}")}
        sources = {here, *around}  # from a region, what leads on is the end of them all
        onward = [d for (s, _), to in program.table.items() if s in sources for d in to]
        assert onward
        for name in onward:
            if name not in reached and name in program.leaves:
                reached.add(name)
                ahead.append(name)
    assert reached == set(program.leaves)


@relaxed
@given(every, salts)
def test_what_nobody_asked_for_is_refused(ir: WorkflowIR, salt: int) -> None:
    world = new_world(ir, salt, salt)
    with contextlib.suppress(TooLong):
        world.run(150)
    for head in world.batches[:40]:
        state = world.states[head]
        for wrong in wrong_inputs(world.program, state):
            with pytest.raises(IllegalOutcome) as caught:
                decide(world.program, state, wrong)
            said = str(caught.value)
            assert type(wrong).__name__ in said
            assert state.status in said


def wrong_inputs(program: Program, state: State) -> list[Any]:
    """One of each kind at every place where nothing outstanding asked for it."""
    asked = {(type(command), command.address) for command in outstanding(program, state)}
    places = [Address("no/such/place", (7,)), *state.core.control.active]
    places += [*state.core.control.forks, *map(beyond, state.core.control.feeds)]
    wrong: list[Any] = [C.Start(started(program.ir))]
    if state.status == "completed":
        wrong += [C.Resume(Host()), C.Continue(), C.Interrupt("SIGINT"), C.Cancel("me")]
        wrong += [C.CheckpointWritten(None, {}), C.Preserved({})]
    for at in places:
        place = state.core.control.active.get(at)
        attempt = place.attempt if place else 1
        wrong += [C.StageSucceeded(at, 99), C.MetricsFlushed(at, 99, ())]
        wrong.append(C.ItemPulled(at, 99, None))
        by_command: dict[type[Any], Any] = {
            C.RunStage: C.StageRaised(at, attempt, E.Failure("E")),
            C.OpenLoop: C.CollectionOpened(at, E.RangeItems(1)),
            C.EvaluateCondition: C.ConditionAnswered(at, True),
            C.OpenBranches: C.BranchesOpened(at, 1),
            C.JoinBranches: C.BranchesMerged(at, {}),
            C.PullItem: C.ItemPulled(at, 0, None),
            C.Produce: C.ItemMade(at, Raw(b"1")),
            C.LeaveLoop: C.LoopLeft(at),
            C.OpenResource: C.ResourceReady(at, True),
            C.CloseResources: C.BlockClosed(at),
            C.SaveCheckpoint: C.CheckpointWritten(at, {}),
            C.AwaitRetry: C.RetryDue(at, attempt + 1),
            C.RollBack: C.RolledBack(at, Address("")),
            C.LeaveBlock: C.BlockLeft(at),
        }
        wrong += [given for kind, given in by_command.items() if (kind, at) not in asked]
        wrong += [] if at in state.core.control.limits else [C.TimeUp(at)]
        wrong += [] if at in {at for _, at in asked} else [C.CommandFailed(at, E.Failure("E"))]
    return wrong


def beyond(loop: Address) -> Address:
    """A production that is not yet due."""
    return feeds.production(loop, 99)


CONTROL = (
    E.StageCompleted, E.ItemTaken, E.ConditionEvaluated, E.LoopExited, E.BranchesStarted,
    E.BranchStarted, E.BranchCompleted, E.BranchesJoined, E.ItemProduced, E.ItemDiscarded,
)  # fmt: skip


@settings(relaxed, max_examples=120)
@given(every, salts, st.integers(0, 10_000), st.sampled_from(["drop", "double", "swap"]))
def test_a_tampered_log_is_refused_or_says_the_same(
    ir: WorkflowIR, salt: int, where: int, how: str
) -> None:
    """Control events cannot be dropped or doubled, nor swapped unless they are side by side."""
    world = new_world(ir, salt, salt)
    try:
        world.run(200)
    except TooLong:
        return
    log = list(world.log)
    control = [i for i, fact in enumerate(log[:-1]) if isinstance(fact.event, CONTROL)]
    if not control:
        return
    at = control[where % len(control)]
    if how == "drop":
        del log[at]
    elif how == "double":
        log.insert(at, log[at])
    else:
        log[at], log[at + 1] = log[at + 1], log[at]
    told = ""
    try:
        state = fold(world.program, log)
    except IllegalEvent as error:
        told = str(error)
    else:
        assert how == "swap"
        assert world.program.lanes
        assert state == world.state
    assert not told or "cannot happen" in told


def test_an_illegal_event_says_where_and_what_was_expected() -> None:
    ir = WorkflowIR("w", (StageNode("a", CODE), StageNode("b", CODE)))
    world = new_world(ir, 0)
    world.step(C.Start(started(ir)))
    log = [*world.log, Fact(E.StageCompleted(), "b", (), 1)]
    with pytest.raises(IllegalEvent, match=r"event 3 \(StageCompleted at b, attempt 1\).*at a"):
        fold(world.program, log)


def test_a_thousand_branches_that_the_memo_knows_go_on_in_one_decision() -> None:
    """As behind a rewind; and no deeper than one."""
    over = ParallelOverNode("p", CODE, (ConditionalNode("c", CODE, (StageNode("s", CODE),)),))
    ir = WorkflowIR("w", (over,))
    world = new_world(ir, 0)
    world.step(C.Start(started(ir)))
    for index in range(2_000):
        world.state.memo[Address("p/c", (index,))] = E.ConditionEvaluated(False)
    commands = decide(
        world.program, world.state, C.BranchesOpened(Address("p"), 3, E.RangeItems(2_000))
    )
    assert isinstance(commands.facts[-1].event, E.RunCompleted)

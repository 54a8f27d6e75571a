"""Whatever finishes first: any two schedules of a workflow come to the same end.

With free pacing what comes out may differ; then nothing must be lost or doubled.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitchen.machine import events as E
from kitchen.machine import snapshot
from kitchen.machine.fold import fold
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    ResourceNode,
    StageNode,
    StreamLoopNode,
    WorkflowIR,
)
from tests.machine.growth import CODE, Grower, paced
from tests.machine.simulator import Scheduler, TooLong, World, new_world, outcome
from tests.strategies import workflow_irs

irs = workflow_irs(max_nodes=12, max_depth=4, with_options=False, concurrent=True)
salts = st.integers(0, 2**16)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def finished(ir: WorkflowIR, salt: int, schedule: int, limit: int = 400) -> World | None:
    """The world at the end of a run; None where that takes too long."""
    world = new_world(ir, salt, schedule)
    try:
        world.run(limit)
    except TooLong:
        return None
    assert world.state.status == "completed"
    return world


def assert_same_end(one: World, other: World) -> None:
    assert one.state.core.data == other.state.core.data
    assert one.closed == other.closed
    assert outcome(one.log) == outcome(other.log)


@relaxed
@given(irs, salts, st.lists(salts, min_size=3, max_size=3))
def test_any_schedule_comes_to_the_same_end(ir: WorkflowIR, salt: int, others: list[int]) -> None:
    first = finished(paced(ir), salt, salt)
    if first is None:
        return
    for schedule in others:
        other = finished(paced(ir), salt, schedule, 4_000)
        assert other is not None
        assert_same_end(first, other)


def test_large_workflows_come_to_the_same_end_by_any_schedule() -> None:
    orders: set[tuple[E.Fact, ...]] = set()
    constructs: Counter[str] = Counter()
    for seed in range(250):
        ir = Grower(seed).workflow()
        first = finished(ir, seed, seed)
        if first is None:
            continue
        constructs.update({type(fact.event).__name__ for fact in first.log})
        for schedule in range(1, 4):
            other = finished(ir, seed, seed * 7 + schedule, 4_000)
            assert other is not None
            assert_same_end(first, other)
            orders.add(tuple(fact._replace(event=E.RunCompleted()) for fact in other.log))
        assert fold(first.program, first.log) == first.state
        assert (first.state.core.overlays, first.state.core.claims) == ({}, {})
    assert len(orders) > 300
    for name in E.EVENTS:
        if name not in NEVER_UNDISTURBED:
            assert constructs[name] >= 5, name


NEVER_UNDISTURBED = {
    "RunForked", "RunEdited", "RunResumed", "RunRewound", "RewindDiverged", "WorkflowChanged",
    "RunInterrupted", "RunFailed",
    "StageFailed", "StageInterrupted", "StateMerged", "BranchFailed", "ResourceRestored",
    "RunCancelled", "RetryScheduled", "StageSkipped", "StageRolledBack", "EffectDecided",
    "BlockFailed", "FailureHandled", "TimeLimitStarted", "TimeLimitEnded",
}  # fmt: skip


@relaxed
@given(irs, salts)
def test_fold_equals_live_after_every_event_and_snapshots_are_exact(
    ir: WorkflowIR, salt: int
) -> None:
    world = new_world(ir, salt, salt, check=True)
    with contextlib.suppress(TooLong):
        world.run(120)
    for state in world.states:
        assert snapshot.load(snapshot.dump(state)) == state


# --- every order there is ---


def _stage(name: str) -> Node:
    return StageNode(name, CODE)


SMALL = {
    "three branches": ParallelNode("p", (_stage("a"), _stage("b"), _stage("c"))),
    "longer branches": ParallelNode(
        "p",
        (BranchNode("a", (_stage("x"), _stage("y"))), BranchNode("b", (_stage("x"), _stage("y")))),
    ),
    "nested": ParallelNode("p", (_stage("a"), ParallelNode("b", (_stage("c"), _stage("d"))))),
    "over": ParallelOverNode("p", CODE, (_stage("a"),)),
    "producer": AsyncLoopNode("l", CODE, CODE, (_stage("a"),), buffer_size=2),
    "producers": AsyncLoopNode("l", CODE, CODE, (), buffer_size=2, producers=2),
    "stream beside": ParallelNode("p", (StreamLoopNode("s", CODE, (_stage("a"),)), _stage("b"))),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_a_small_workflow(name: str) -> None:
    """All orders in which what runs side by side can begin and complete, one by one."""
    ir = WorkflowIR("w", (ResourceNode("r", CODE), ResourceNode("q", CODE), SMALL[name]))
    for salt in range(8):
        first: World | None = None
        script: list[int] | None = []
        count = 0
        while script is not None and count < 250:
            world = new_world(ir, salt)
            world.scheduler = Scheduler(script=script)
            world.scheduler.eager = name in ("longer branches", "producer", "three branches")
            world.run(200)
            count += 1
            if first is None:
                first = world
            assert_same_end(first, world)
            script = after(world.scheduler.taken)
        assert count > 1 or salt or name == "over"


def after(taken: list[tuple[int, int]]) -> list[int] | None:
    """The script of the order that comes after these choices, the last one first."""
    while taken:
        chosen, count = taken.pop()
        if chosen + 1 < count:
            return [*(each for each, _ in taken), chosen + 1]
    return None


# --- free pacing ---


def test_free_pacing_loses_nothing() -> None:
    taken_ahead = 0
    for seed in range(250):
        world = finished(Grower(seed, pacing="free").workflow(), seed, seed)
        if world is None:
            continue
        assert_nothing_is_lost(world)
        taken_ahead += any(
            isinstance(fact.event, E.ItemDiscarded) and fact.event.reason == "left"
            for fact in world.log
        )
    assert taken_ahead > 20


def assert_nothing_is_lost(world: World) -> None:
    """Items are made once each, and consumed or discarded once each, in order."""
    made: dict[tuple[str, E.Visit], list[int]] = defaultdict(list)
    gone: dict[tuple[str, E.Visit], list[int]] = defaultdict(list)
    asynchronous = {
        path for path, node in world.program.nodes.items() if isinstance(node, AsyncLoopNode)
    }
    for event, path, visit, _ in world.log:
        if isinstance(event, E.ItemProduced):
            made[path.removesuffix("/producer"), visit[:-1]].append(visit[-1])
        elif isinstance(event, E.ItemTaken | E.ItemDiscarded) and path in asynchronous:
            gone[path, visit[:-1]].append(visit[-1])
    for loop, indices in made.items():
        assert len(set(indices)) == len(indices)
        assert gone[loop] == sorted(indices)

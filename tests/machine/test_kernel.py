"""The kernel's properties, over workflows that nobody would write.

1. The table agrees with the live `transitions` machine.
2. Folding the log gives the live state, after every event.
3. What decide asks for is what becomes outstanding.
4. Every run ends.
5. Crash after every append, resume: the same events count, the same state results, nothing that
   was committed runs again unless it lies behind a rewind.
6. An outcome that nobody asked for is refused with role, state and event.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transitions import MachineError

from kitchen.errors import IllegalEvent, IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import snapshot
from kitchen.machine.chart import RUNNING, SEPARATOR, Role, compile_workflow, machine
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact, Host
from kitchen.machine.fold import fold
from kitchen.workflow.ir import WorkflowIR
from tests.machine.simulator import Grower, counted, crashed, new_world, started
from tests.strategies import workflow_irs

irs = workflow_irs(max_nodes=10, max_depth=4, with_options=False)
salts = st.integers(0, 2**16)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class Token:
    """A model for the live machine: it holds a state and nothing else."""

    state: Any = "ready"


@relaxed
@given(irs, salts)
def test_table_agrees_with_the_live_machine(ir: WorkflowIR, salt: int) -> None:
    program, live = compile_workflow(ir), machine(ir)
    triggers = sorted({trigger for _, trigger in program.table})
    rng = random.Random(salt)
    model = Token()
    for _ in range(30):
        trigger = rng.choice(triggers)
        leaf = rng.choice(sorted({source for source, _ in program.table}))
        inside = leaf in program.leaves
        live.set_state(f"{RUNNING}{SEPARATOR}{leaf}" if inside else leaf, model)
        expected = program.table.get((leaf, trigger))
        if expected is None and inside:
            expected = program.table.get((RUNNING, trigger))
        if expected is None:
            with pytest.raises(MachineError):
                live.trigger_event(model, trigger)
        else:
            live.trigger_event(model, trigger)
            assert (str(model.state).removeprefix(f"{RUNNING}{SEPARATOR}"),) == expected


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
@given(irs)
def test_every_leaf_is_reachable_and_leads_on(ir: WorkflowIR) -> None:
    program = compile_workflow(ir)
    reached, ahead = {program.initial}, [program.initial]
    while ahead:
        here = ahead.pop()
        onward = [d for (s, _), to in program.table.items() if s == here for d in to]
        assert onward
        for name in onward:
            if name not in reached and name in program.leaves:
                reached.add(name)
                ahead.append(name)
    assert reached == set(program.leaves)


@relaxed
@given(irs, salts)
def test_fold_equals_live_after_every_event(ir: WorkflowIR, salt: int) -> None:
    world = new_world(ir, salt, check=True)
    world.run()
    assert world.state.status == "completed"


@relaxed
@given(irs, salts)
def test_snapshots_are_exact(ir: WorkflowIR, salt: int) -> None:
    world = new_world(ir, salt)
    world.run()
    for head in range(1, len(world.log) + 1, 3):
        state = fold(world.program, world.log[:head])
        assert snapshot.load(snapshot.dump(state)) == state


@settings(relaxed, max_examples=80)
@given(irs, salts)
def test_crash_after_every_append(ir: WorkflowIR, salt: int) -> None:
    whole = new_world(ir, salt)
    whole.run()
    for head in whole.batches[:-1][:60]:
        again = crashed(whole, head)
        assert_equal_in_the_end(whole, again, head)


def test_thousands_of_crash_points() -> None:
    """The crash matrix over larger workflows: every append of each, and most of them rewind."""
    points = rewinds = 0
    for seed in itertools.count():
        if points >= 3_000:
            break
        whole = new_world(Grower(seed).workflow(), seed)
        whole.run()
        heads = whole.batches[:-1]
        for head in heads if len(heads) <= 60 else random.Random(seed).sample(heads, 60):
            again = crashed(whole, head)
            assert_equal_in_the_end(whole, again, head)
            points += 1
            rewinds += any(isinstance(fact.event, E.RunRewound) for fact in again.log)
    assert rewinds > points / 4


@settings(relaxed, max_examples=40)
@given(irs, salts, st.lists(st.integers(0, 10_000), min_size=2, max_size=5))
def test_crash_again_and_again(ir: WorkflowIR, salt: int, points: list[int]) -> None:
    whole = new_world(ir, salt)
    whole.run()
    world = whole
    for point in points:
        heads = world.batches[:-1]
        if not heads:
            break
        world = crashed(world, heads[point % len(heads)])
        world.drive(world.resume())
        assert counted(world.log) == counted(whole.log)
        assert world.data() == whole.data()


def assert_equal_in_the_end(whole: Any, again: Any, head: int) -> None:
    committed = {
        Address(fact.path, fact.visit)
        for fact in again.log
        if isinstance(fact.event, E.StageCompleted)
    }
    again.drive(again.resume())
    assert again.state.status == "completed"
    assert counted(again.log) == counted(whole.log)
    assert again.state.core.data == whole.state.core.data
    assert not any(isinstance(fact.event, E.RewindDiverged) for fact in again.log)
    assert again.state.memo == {}
    rewound = any(isinstance(fact.event, E.RunRewound) for fact in again.log[head:])
    if not rewound:
        ran = {c.address for _, c in again.performed if isinstance(c, C.RunStage)}
        assert not ran & committed
    assert fold(again.program, again.log) == again.state


@relaxed
@given(irs, salts)
def test_interrupt_anywhere_then_resume(ir: WorkflowIR, salt: int) -> None:
    whole = new_world(ir, salt)
    whole.run()
    for head in whole.batches[:-1][:20]:
        again = crashed(whole, head)
        again.step(C.Interrupt("SIGINT"))
        assert again.state.status == "interrupted"
        again.drive(again.resume())
        assert counted(again.log) == counted(whole.log)


@relaxed
@given(irs, salts)
def test_what_nobody_asked_for_is_refused(ir: WorkflowIR, salt: int) -> None:
    world = new_world(ir, salt)
    world.run()
    for head in world.batches[:40]:
        state = fold(world.program, world.log[:head])
        for wrong in wrong_inputs(world.program, state):
            with pytest.raises(IllegalOutcome) as caught:
                decide(world.program, state, wrong)
            said = str(caught.value)
            assert type(wrong).__name__ in said
            assert state.status in said


def wrong_inputs(program: Any, state: Any) -> list[Any]:
    """One of each kind that does not fit where the run stands."""
    roles = {
        address: program.leaves[place.leaf].role
        for address, place in state.core.control.active.items()
    }
    nowhere = Address("no/such/place", (7,))
    wrong: list[Any] = [C.StageSucceeded(nowhere, 1), C.BlockClosed(nowhere)]
    if state.status == "completed":
        wrong += [
            C.Resume(Host()),
            C.Continue(),
            C.Interrupt("SIGINT"),
            C.CheckpointWritten(None, {}),
        ]
    for address, role in roles.items():
        if role is not Role.STAGE:
            wrong += [C.StageSucceeded(address, 1), C.StageRaised(address, 1, E.Failure("E"))]
        else:
            wrong += [C.StageSucceeded(address, 99), C.MetricsFlushed(address, 99, ())]
        if role is not Role.ENTER:
            wrong.append(C.CollectionOpened(address, E.RangeItems(1)))
        if role is not Role.ASK:
            wrong.append(C.ConditionAnswered(address, True))
        if role is not Role.OPEN:
            wrong.append(C.ResourceReady(address, True))
        if role is not Role.SAVE:
            wrong.append(C.CheckpointWritten(address, {}))
    wrong.append(C.Start(started(program.ir)))
    return wrong


@relaxed
@given(irs, salts, st.integers(0, 10_000), st.sampled_from(["drop", "double", "swap"]))
def test_a_tampered_log_is_refused_or_says_the_same(
    ir: WorkflowIR, salt: int, where: int, how: str
) -> None:
    """Control events cannot be dropped, doubled or swapped without an error that names one."""
    world = new_world(ir, salt)
    world.run()
    log = list(world.log)
    control = [
        i
        for i, fact in enumerate(log[:-1])
        if isinstance(
            fact.event, E.StageCompleted | E.ItemTaken | E.ConditionEvaluated | E.LoopExited
        )
    ]
    if not control:
        return
    at = control[where % len(control)]
    if how == "drop":
        del log[at]
    elif how == "double":
        log.insert(at, log[at])
    else:
        log[at], log[at + 1] = log[at + 1], log[at]
    with pytest.raises(IllegalEvent, match="cannot"):
        fold(world.program, log)


@relaxed
@given(irs, salts)
def test_a_future_that_comes_out_differently_is_told_once(ir: WorkflowIR, salt: int) -> None:
    """Behind a rewind, user code that is not deterministic ends the memo, and the run ends."""
    whole = new_world(ir, salt)
    whole.run()
    for head in whole.batches[:-1][:20]:
        again = crashed(whole, head)
        again.salt = salt + 1
        again.drive(again.resume())
        assert again.state.status == "completed"
        told = [fact for fact in again.log if isinstance(fact.event, E.RewindDiverged)]
        assert len(told) <= 1


def test_a_crash_loop_at_one_stage_ends_with_a_failure() -> None:
    world = new_world(STAGES, 0)
    world.step(C.Start(started(STAGES)))
    for _ in range(4):
        world = crashed(world, len(world.log))
        world.resume()
    failed = [fact.event for fact in world.log if isinstance(fact.event, E.RunFailed)]
    assert not failed
    world = crashed(world, len(world.log))
    assert not world.resume()
    (fact,) = [fact for fact in world.log if isinstance(fact.event, E.RunFailed)]
    assert fact.path == "a"
    assert isinstance(fact.event, E.RunFailed)
    assert "died 5 times" in fact.event.failure.message
    # A failed run gets a fresh budget.
    world = crashed(world, len(world.log))
    world.drive(world.resume())
    assert world.state.status == "completed"


def _stages() -> WorkflowIR:
    from kitchen.workflow.ir import CodeRef, StageNode

    code = CodeRef("m", "q")
    return WorkflowIR("w", (StageNode("a", code), StageNode("b", code)))


STAGES = _stages()


def test_an_illegal_event_says_where_and_what_was_expected() -> None:
    world = new_world(STAGES, 0)
    world.step(C.Start(started(STAGES)))
    log = [*world.log, Fact(E.StageCompleted(), "b", (), 1)]
    with pytest.raises(IllegalEvent, match=r"event 3 \(StageCompleted at b, attempt 1\).*at a"):
        fold(world.program, log)

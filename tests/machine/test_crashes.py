"""Crash after every append, resume under another schedule, crash again: nothing is lost or doubled.

In the end the state, the resources and the effects at each address are those of the run that
nothing disturbed. What was committed runs again only behind a rewind, and comes out the same.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import snapshot
from kitchen.machine.events import Address, Host
from kitchen.machine.fold import fold
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    Node,
    ParallelNode,
    ResourceNode,
    StageNode,
    WorkflowIR,
)
from tests.machine.growth import CODE, Grower, paced
from tests.machine.simulator import (
    Scheduler,
    TooLong,
    World,
    counted,
    crashed,
    new_world,
    outcome,
    started,
)
from tests.strategies import workflow_irs

irs = workflow_irs(max_nodes=12, max_depth=4, with_options=False, concurrent=True).map(paced)
salts = st.integers(0, 2**16)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def undisturbed(ir: WorkflowIR, salt: int) -> World | None:
    """The world at the end of a run; None where that takes too long."""
    world = new_world(ir, salt, salt)
    try:
        world.run(150)
    except TooLong:
        return None
    return world


def resumed(world: World) -> World:
    """Resume it, and hold it to what must not happen on the way."""
    head = len(world.log)
    live = counted(world.log)
    committed = {fact[1:3] for fact in live if isinstance(fact.event, E.StageCompleted)}
    done = {fact[1:3] for fact in live if isinstance(fact.event, E.BranchCompleted)}
    world.drive(world.resume(), 4_000)
    again = world.log[head:]
    if not any(isinstance(fact.event, E.RunRewound) for fact in again):
        ran = {tuple(c.address) for _, c in world.performed if isinstance(c, C.RunStage)}
        assert not ran & committed
        assert not {fact[1:3] for fact in again if isinstance(fact.event, E.BranchStarted)} & done
    return world


def assert_same_end(whole: World, again: World, *, expected: object = None) -> None:
    assert again.state.status == "completed"
    assert not any(isinstance(fact.event, E.RewindDiverged) for fact in again.log)
    assert again.state.core.data == whole.state.core.data
    assert again.closed == whole.closed
    assert outcome(again.log) == (outcome(whole.log) if expected is None else expected)
    assert again.state.memo == {}


@relaxed
@given(irs, salts, salts)
def test_crash_after_every_append(ir: WorkflowIR, salt: int, schedule: int) -> None:
    whole = undisturbed(ir, salt)
    if whole is None:
        return
    for head in whole.batches[:-1][:60]:
        again = resumed(crashed(whole, head, schedule + head))
        assert_same_end(whole, again)
        assert fold(again.program, again.log) == again.state


def test_ten_thousand_crash_points() -> None:
    """Over large workflows with every construct; one in three dies again, and again."""
    points = rewinds = seed = 0
    constructs: Counter[str] = Counter()
    while points < 10_000:
        seed += 1
        whole = undisturbed(Grower(seed).workflow(), seed)
        if whole is None:
            continue
        expected = outcome(whole.log)
        constructs.update({type(fact.event).__name__ for fact in whole.log})
        rng = random.Random(seed)
        heads = whole.batches[:-1]
        for head in heads if len(heads) <= 40 else rng.sample(heads, 40):
            again = crashed(whole, head, seed + head)
            while rng.random() < 0.25 and len(again.batches) < len(whole.batches) + 30:
                points += 1
                again = die_again(again, rng)
            if again.state.status == "completed":
                continue
            resumed(again)
            assert_same_end(whole, again, expected=expected)
            points += 1
            rewinds += any(isinstance(fact.event, E.RunRewound) for fact in again.log)
            if points % 20 == 0:
                assert fold(again.program, again.log) == again.state
                assert snapshot.load(snapshot.dump(again.state)) == again.state
    assert points / 3 < rewinds < points
    for name in ("BranchesStarted", "ItemProduced", "ItemDiscarded", "ItemTaken", "LoopStopped"):
        assert constructs[name] >= 20, name


def die_again(world: World, rng: random.Random) -> World:
    """Resume, and die at some append after that; at most as often as the crash budget allows."""
    if sum(isinstance(fact.event, E.RunResumed) for fact in world.log) >= 3:
        return world
    head = len(world.log)
    resumed(world)
    after = [batch for batch in world.batches[:-1] if batch > head]
    return crashed(world, rng.choice(after), rng.randrange(2**16)) if after else world


@settings(relaxed, max_examples=40)
@given(irs, salts, st.lists(st.integers(0, 10_000), min_size=2, max_size=4))
def test_crash_again_and_again(ir: WorkflowIR, salt: int, points: list[int]) -> None:
    whole = undisturbed(ir, salt)
    if whole is None:
        return
    world = whole
    for point in points:
        heads = world.batches[:-1]
        if not heads:
            break
        world = resumed(crashed(world, heads[point % len(heads)], point))
        assert_same_end(whole, world)


@settings(relaxed, max_examples=40)
@given(irs, salts, salts)
def test_interrupt_anywhere_then_resume(ir: WorkflowIR, salt: int, schedule: int) -> None:
    whole = undisturbed(ir, salt)
    if whole is None:
        return
    for head in whole.batches[:-1][:30]:
        again = crashed(whole, head, schedule + head)
        again.step(C.Interrupt("SIGINT"))
        assert again.state.status == "interrupted"
        assert_same_end(whole, resumed(again))


def test_interrupted_with_a_checkpoint_nothing_runs_again() -> None:
    """What runs is let end, all is saved, and the run goes on from there without a rewind."""
    stopped = 0
    for seed in range(120):
        whole = undisturbed(Grower(seed).workflow(), seed)
        if whole is None:
            continue
        rng = random.Random(seed)
        for _ in range(4):
            world = new_world(whole.program.ir, seed, rng.randrange(2**16))
            world.stop_after = rng.randrange(1, len(whole.batches) + 1)
            world.run()
            if world.state.status == "completed":
                continue
            stopped += 1
            lost = any(known.lost for known in world.state.core.resources.values())
            again = resumed(crashed(world, len(world.log), seed))
            assert lost or not any(isinstance(fact.event, E.RunRewound) for fact in again.log)
            assert again.state.core.data == whole.state.core.data
            assert again.closed == whole.closed
            assert outcome(again.log, saves=False) == outcome(whole.log, saves=False)
    assert stopped > 200


def test_a_crash_with_free_pacing_loses_nothing() -> None:
    points = seed = 0
    while points < 600:
        seed += 1
        whole = undisturbed(Grower(seed, pacing="free").workflow(), seed)
        if whole is None:
            continue
        touching = any(isinstance(f.event, E.ItemProduced) and f.event.touched for f in whole.log)
        heads = whole.batches[:-1]
        for head in random.Random(seed).sample(heads, min(len(heads), 15)):
            again = resumed(crashed(whole, head, seed + head))
            points += 1
            assert again.state.status == "completed"
            # What a producer makes again from a resource, it makes from the latest state.
            told = [fact for fact in again.log if isinstance(fact.event, E.RewindDiverged)]
            assert (
                not told
                or touching
                or any(isinstance(f.event, E.ItemProduced) and f.event.touched for f in again.log)
            )
            assert again.state.memo == {}
            before, later = items(counted(whole.log[:head])), items(counted(again.log))
            if not any(isinstance(fact.event, E.RunRewound) for fact in again.log):
                assert before.items() <= later.items()


def items(log: list[E.Fact]) -> dict[tuple[str, E.Visit], bytes]:
    """What was made, by address."""
    return {
        fact[1:3]: bytes(f.value) for fact in log if isinstance(f := fact.event, E.ItemProduced)
    }


def test_what_was_made_and_not_consumed_is_in_the_buffer_after_a_crash() -> None:
    loop = AsyncLoopNode("l", CODE, CODE, (StageNode("s", CODE),), buffer_size=3, producers=2)
    found: set[tuple[int, int]] = set()
    for salt in range(60):
        whole = undisturbed(WorkflowIR("w", (loop,)), salt)
        assert whole is not None
        for head in whole.batches[:-1]:
            facts = [fact.event for fact in whole.log[:head]]
            made = sorted(
                f.visit[0] for f in whole.log[:head] if isinstance(f.event, E.ItemProduced)
            )
            taken = sum(isinstance(event, E.ConditionEvaluated) for event in facts)
            again = crashed(whole, head)
            again.scheduler = Scheduler(script=[])
            asked = again.resume()
            feed = again.state.core.control.feeds.get(Address("l"))
            if feed is None:
                continue
            discarded = sum(isinstance(event, E.ItemDiscarded) for event in facts)
            assert feed.turn == taken + discarded
            assert [item.number for item in feed.made] == [n for n in made if n >= feed.turn]
            due = [c.address.visit[0] for c in asked if isinstance(c, C.Produce)]
            assert not set(due) & set(made)
            assert all(each < feed.turn + 3 for each in due)
            if due and not feed.stop:
                assert due[0] == next(n for n in range(feed.turn, 99) if n not in made)
            found.add((len(made), taken))
    assert len(found) > 8


@settings(relaxed, max_examples=40)
@given(irs, salts)
def test_a_future_that_comes_out_differently_is_told(ir: WorkflowIR, salt: int) -> None:
    """Behind a rewind, user code that is not deterministic ends the memo, and the run ends."""
    whole = undisturbed(ir, salt)
    if whole is None:
        return
    for head in whole.batches[:-1][:20]:
        again = crashed(whole, head, head)
        again.salt = salt + 1
        try:
            again.drive(again.resume(), 1_000)
        except TooLong:
            continue
        assert again.state.status in ("completed", "failed")
        told = [fact for fact in again.log if isinstance(fact.event, E.RewindDiverged)]
        assert len(told) <= 1


# --- the crash budget ---


def _stages(*names: str) -> tuple[Node, ...]:
    return tuple(StageNode(name, CODE) for name in names)


def test_a_crash_loop_at_one_stage_ends_with_a_failure() -> None:
    ir = WorkflowIR("w", _stages("a", "b"))
    world = new_world(ir, 0)
    world.step(C.Start(started(ir)))
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


def test_the_root_block_has_the_whole_crash_budget() -> None:
    """It is closed at the empty address, where deaths without any progress are counted too."""
    ir = WorkflowIR("w", (ResourceNode("r", CODE), *_stages("a")))
    world = new_world(ir, 0)
    world.run()
    (head,) = [
        seq for seq, fact in enumerate(world.log) if isinstance(fact.event, E.ResourcesClosed)
    ]
    world = crashed(world, head)
    for _ in range(4):
        assert world.resume()
        world = crashed(world, len(world.log))
    assert not any(isinstance(fact.event, E.RunFailed) for fact in world.log)


def test_an_attempt_that_ran_at_the_cut_keeps_its_metrics_apart() -> None:
    """Early metrics of an attempt that died before the cut never count with a later attempt."""
    doubled = 0
    for seed in range(50):
        whole = undisturbed(Grower(seed).workflow(), seed)
        if whole is None:
            continue
        rng = random.Random(seed)
        for head in rng.sample(whole.batches[:-1], min(10, len(whole.batches) - 1)):
            again = crashed(whole, head, seed)
            again.scheduler.flushing = 0.9
            for _ in range(2):
                again = die_again(again, rng)
                again.scheduler.flushing = 0.9
            if again.state.status == "completed":
                continue
            resumed(again)
            assert_same_end(whole, again)
            early = {f[1:] for f in again.log if isinstance(f.event, E.MetricRecorded)}
            doubled += len(early) > len({(path, visit) for path, visit, _ in early})
    assert doubled > 20


def test_a_cut_is_never_where_another_branch_had_something_unsaved() -> None:
    """What was touched and is closed again was not clean meanwhile: an attempt that began then,
    and touches something later, has its cut before it."""
    resource, stages = ResourceNode("q", CODE), _stages("x", "y")
    branches = (BranchNode("a", (resource, stages[0])), BranchNode("b", stages))
    ir = WorkflowIR("w", (ResourceNode("r", CODE), ParallelNode("p", branches)))
    world = new_world(ir, 0)
    a, b = Address("p/a/x"), Address("p/b/x")
    world.step(C.Start(started(ir)))
    world.step(C.ResourceReady(Address("r"), True))
    world.step(C.BranchesOpened(Address("p"), 2))
    world.step(C.ResourceReady(Address("p/a/q"), True))
    clean = world.state.core.control.active[a].started
    world.step(C.StageSucceeded(a, 1, touched=("q[a]",)))
    world.step(C.StageSucceeded(b, 1))  # the next attempt in b begins while q is not clean
    assert world.state.cut == clean
    world.step(C.BlockClosed(Address("p/a")))
    assert world.state.cut == world.state.seq
    world.step(C.StageSucceeded(Address("p/b/y"), 1, touched=("r",)))
    assert world.state.cut == clean
    again = crashed(world, len(world.log) - 2)
    assert again.state.dirty == ("r",)
    again.live = {"r": 1, "q[a]": 1}
    again.step(C.Resume(Host()))
    assert again.state.dirty == ()
    assert "q[a]" in again.state.core.resources
    assert fold(again.program, again.log) == again.state

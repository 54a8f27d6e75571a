"""Runs that are sent another way, and forks: in the end nothing tells them from the run they left.

1. A fork at any cut, and a turn to any cut, end as the run would have; crashes change nothing.
2. An effect that must not happen twice does not, behind a turn; a fork has its own.
3. An edit holds from right behind it on, through crashes and rewinds; a turn to before undoes it.
4. Live is folded after every event, from any snapshot too. What cannot be is refused.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import Raw

from kitchen.errors import IllegalEvent
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import snapshot
from kitchen.machine.events import Address, Fact, Host
from kitchen.machine.fold import apply, fold
from kitchen.machine.state import Cell
from kitchen.workflow.ir import (
    BranchNode,
    HandlerNode,
    IncludeNode,
    ParallelNode,
    ResourceNode,
    Retries,
    StageNode,
    WorkflowIR,
)
from tests.machine.faults import (
    Fault,
    FaultyWorld,
    Scenario,
    doubled,
    drive,
    essence,
    faulty,
    killed,
    overspent,
    scenario,
    settle,
)
from tests.machine.growth import CODE, Grower
from tests.machine.simulator import BOOM, TooLong, counted, plain, started
from tests.machine.turning import cuts, forked, go_on, to_the_end, told, turned


def calm(seed: int) -> Scenario | None:
    """A large workflow in which nothing fails."""
    ir = Grower(seed).workflow()
    try:
        faulty(ir, seed, seed, {}).run(150)
    except TooLong:
        return None
    return Scenario(ir, {})


MODES: dict[str, Any] = {
    "calm": calm,
    "failing": scenario,
    "once": lambda seed: scenario(seed, once=True),
}


def runs(mode: str, seeds: range) -> Iterator[tuple[int, FaultyWorld, dict[str, Any]]]:
    """Runs as they first ended, and what they are in the end."""
    for seed in seeds:
        found = MODES[mode](seed)
        if found is None or len({at for _, at in found.faults}) < len(found.faults):
            continue  # of two faults at one place, mending one would mend both
        faults = {key: steady(fault) for key, fault in found.faults.items()}
        first = drive(faulty(found.ir, seed, seed, faults))
        yield seed, first, essence(settle(first, seed))


def steady(fault: Fault) -> Fault:
    """What fails for good does so however often it is tried."""
    return fault if fault.again else fault._replace(times=None)


def same_end(world: FaultyWorld, expected: dict[str, Any], schedule: int) -> FaultyWorld:
    end = to_the_end(world, schedule)
    found = essence(end)
    for what, value in expected.items():
        assert found[what] == value, what
    assert not overspent(end)
    assert not doubled(end)
    return end


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_at_any_cut_ends_as_its_parent(mode: str) -> None:
    points = own = 0
    for seed, first, expected in runs(mode, range(60)):
        rng = random.Random(seed)
        places = cuts(first)
        for cut in places if len(places) <= 12 else rng.sample(places, 12):
            end = same_end(go_on(forked(first, cut, seed + cut)), expected, seed)
            points += 1
            own += any(each.what == "done" and each.head > cut for each in end.outside)
    assert points > 300
    assert (own > 50) == (mode == "once")


@pytest.mark.parametrize("mode", MODES)
def test_a_turn_to_any_cut_ends_the_same(mode: str) -> None:
    points: Counter[str] = Counter()
    for seed, first, expected in runs(mode, range(60)):
        rng = random.Random(seed)
        for _ in range(8):
            head = rng.choice((rng.choice(first.batches), len(first.log)))
            places = [cut for cut in cuts(first) if cut <= head]
            if head == 0 or not places:
                continue
            left = killed(first, head, head)
            if left.state.status == "running" and rng.random() < 0.4:
                begun = [at for at, p in left.state.core.control.active.items() if p.open]
                left.step(C.Interrupt("SIGINT", tuple(begun)))
            again = turned(left, len(left.log), rng.choice(places), head)
            points[left.state.status] += 1
            same_end(go_on(again), expected, seed)
    assert min(points["running"], points["interrupted"], points["completed"]) > 50
    assert mode == "calm" or points["failed"] > 20


def wandered(world: FaultyWorld, rng: random.Random, seen: Counter[str]) -> FaultyWorld:
    """Forked, sent elsewhere or killed, and then left at some append after that."""
    places = cuts(world)
    what = rng.choice(("fork", "turn", "turn", "crash"))
    schedule = rng.randrange(2**16)
    if what != "crash" and places:
        to = rng.choice(places)
        if what == "fork":
            again = forked(world, to, schedule)
        else:
            seen["shared"] += to <= max(forks_of(world), default=0)
            seen["superseded"] += world.log[to - 1] not in counted(world.log)
            again = turned(world, len(world.log), to, schedule)
        head = len(again.log)
        again = go_on(again)
    elif may_die(world):
        what, head = "crash", len(world.log)
        again = drive(killed(world, head, schedule))
    else:
        return world
    seen[what] += 1
    after = [batch for batch in again.batches if batch >= head]
    return killed(again, rng.choice(after), schedule)


def forks_of(world: FaultyWorld) -> list[int]:
    return [seq for seq, fact in enumerate(world.log, 1) if isinstance(fact.event, E.RunForked)]


def may_die(world: FaultyWorld) -> bool:
    """Whether the crash budget lasts: it is fresh behind forks and turns."""
    deaths = 0
    for fact in world.log:
        if isinstance(fact.event, E.RunForked):
            deaths = 0
        elif isinstance(fact.event, E.RunResumed):
            deaths = deaths + 1 if fact.event.after == "crash" else 0
    return deaths < 3 and world.state.status != "completed"


@pytest.mark.parametrize("mode", MODES)
def test_forks_of_forks_turns_behind_turns_and_crashes_in_them(mode: str) -> None:
    seen: Counter[str] = Counter()
    for seed, first, expected in runs(mode, range(80)):
        rng = random.Random(seed)
        for _ in range(3):
            world = first
            for _ in range(rng.randint(2, 5)):
                world = wandered(world, rng, seen)
            same_end(world, expected, seed)
    assert min(seen.values()) > 20


# --- crashes in forks, and behind turns ---


def started_anew(
    first: FaultyWorld, rng: random.Random, edit: E.RunEdited | None
) -> FaultyWorld | None:
    """A fork, or a run behind a turn, in which nothing has happened yet."""
    places = [cut for cut in cuts(first) if edit is None or not parallel_at(first, cut)]
    if not places:
        return None
    cut, schedule = rng.choice(places), rng.randrange(2**16)
    if rng.random() < 0.5:
        return forked(first, cut, schedule, edit)
    return turned(first, len(first.log), cut, schedule, edit)


def parallel_at(world: FaultyWorld, seq: int) -> bool:
    return bool(world.states[seq].core.control.forks)


EDIT = E.RunEdited(Raw(b'{"a":1}'), 7, {"k": Raw(b"41"), "new": Raw(b"[1]")})


@pytest.mark.parametrize("edit", [None, EDIT], ids=["as it was", "edited"])
@pytest.mark.parametrize("mode", MODES)
def test_a_crash_behind_a_turn_or_in_a_fork_changes_nothing(
    mode: str, edit: E.RunEdited | None
) -> None:
    points = differs = 0
    for seed, first, expected in runs(mode, range(60)):
        rng = random.Random(seed)
        begun = started_anew(first, rng, edit)
        if begun is None:
            continue
        head = len(begun.log)
        whole = go_on(begun)
        target = essence(settle(whole, seed))
        if edit is None:
            assert target == expected
        differs += target["data"] != expected["data"]
        later = [batch for batch in whole.batches[:-1] if batch >= head]
        heads = rng.sample(later, min(len(later), 6))
        if edit is None:  # they are one append; but a log may be cut off anywhere
            last = {E.RunForked, E.RunRewound, E.RunResumed}
            heads += [s for s in range(1, head) if type(begun.log[s - 1].event) in last]
        for each in heads:
            end = same_end(killed(whole, each, each), target, each)
            points += 1
            if points % 10 == 0:
                assert fold(end.program, end.log) == end.state
    assert points > 150
    assert (differs > 15) == (edit is not None)


# --- edits ---


def test_an_edit_holds_from_right_behind_it_on_until_a_turn_to_before() -> None:
    """Through crashes, rewinds and rewinds to before it that nobody asked for."""
    seen: Counter[str] = Counter()
    for seed, first, expected in runs("failing", range(130)):
        rng = random.Random(seed)
        changes = EDIT.state if rng.random() < 0.5 else {}
        edit = E.RunEdited(EDIT.config, EDIT.seed, changes)
        begun = started_anew(first, rng, edit if changes else None)
        if begun is None:
            continue
        if not changes:
            told(begun, edit)
        held = len(begun.log)
        assert begun.state.core.data.keys() >= changes.keys()
        for key, value in changes.items():
            assert plain({key: begun.state.core.data[key]}) == [(key, bytes(value).decode())]
        end = go_on(begun)
        later = [batch for batch in end.batches[:-1] if batch >= held]
        if later:
            end = drive(killed(end, rng.choice(later), seed))
        for state in end.states[held:]:
            assert state.started is not None
            assert (state.started.config, state.started.seed) == (EDIT.config, EDIT.seed)
        events = [fact.event for fact in end.log[held:]]
        seen["rewound"] += any(isinstance(event, E.RunRewound) for event in events)
        before = [cut for cut in cuts(end) if cut < held - 1 and cut in cuts(first)]
        if before:
            again = turned(end, len(end.log), rng.choice(before), seed)
            assert again.state.started == first.state.started
            # What was closed is told by the last time, which may be the edited run's.
            del expected["closed"]
            same_end(go_on(again), expected, seed)
            seen["undone"] += 1
    assert min(seen["rewound"], seen["undone"]) > 30


@pytest.mark.parametrize("fork", [False, True])
def test_a_failure_that_takes_the_run_back_to_before_an_edit_leaves_it(fork: bool) -> None:
    """Of a parallel that fails nothing is left; the config and the seed are not of it."""
    parallel = ParallelNode("p", (BranchNode("x", (StageNode("a", CODE), StageNode("b", CODE))),))
    ir = WorkflowIR("w", (ResourceNode("r", CODE), parallel, HandlerNode("h", ())))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.ResourceReady(Address("r"), True))
    world.step(C.BranchesOpened(Address("p"), 1))
    world.step(C.StageSucceeded(Address("p/x/a"), 1))
    head, edit = len(world.log), E.RunEdited(EDIT.config, EDIT.seed)
    if fork:
        again = forked(world, head, 0, edit)
        again.resume()
    else:
        again = turned(world, head, head, 0, edit)
        again.bring_back()
    attempt = again.state.core.control.active[Address("p/x/b")].attempt
    again.step(C.StageRaised(Address("p/x/b"), attempt, BOOM, touched=("r",)))
    back = again.log[-1].event
    assert isinstance(back, E.RunRewound)
    assert back.to < head
    for state in (again.state, go_on(again).state):
        assert state.started is not None
        assert (state.started.config, state.started.seed) == (EDIT.config, EDIT.seed)
    assert again.state.status == "completed"
    assert fold(again.program, again.log) == again.state


# --- folding ---


def test_live_is_folded_in_forks_and_behind_turns_and_snapshots_are_exact() -> None:
    for seed, first, _ in runs("once", range(24)):
        rng = random.Random(seed)
        world = first
        for _ in range(3):
            world = wandered(world, rng, Counter())
            world.check = True
        for seq in range(0, len(world.log), 1 + len(world.log) // 40):
            state = snapshot.load(snapshot.dump(world.states[seq]))
            assert state == world.states[seq]
            for fact in world.log[seq:]:
                apply(world.program, state, fact, world)
            assert state == world.state


# --- what cannot be ---


def small() -> FaultyWorld:
    """A run with a resource that is used in its second stage."""
    ir = WorkflowIR("w", (ResourceNode("r", CODE), StageNode("a", CODE), StageNode("b", CODE)))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.ResourceReady(Address("r"), True))
    world.step(C.StageSucceeded(Address("a"), 1))
    world.step(C.StageSucceeded(Address("b"), 1, touched=("r",)))
    return world


def refused(world: FaultyWorld, head: int, event: E.Event) -> str:
    again = killed(world, head)
    with pytest.raises(IllegalEvent) as caught:
        apply(again.program, again.state, Fact(event), again)
    return str(caught.value)


def test_there_is_no_fork_where_there_is_no_cut_and_none_of_what_is_over() -> None:
    world = small()
    assert world.state.cut < world.state.seq
    assert "expected a cut" in refused(world, world.state.seq, E.RunForked("p"))
    assert "expected a cut" in refused(world, 0, E.RunForked("p"))
    world.step(C.BlockClosed(Address("")))
    assert world.state.status == "completed"
    assert "expected a cut" in refused(world, world.state.seq, E.RunForked("p"))


def test_a_run_is_not_sent_to_where_it_cannot_go_on() -> None:
    world = small()
    soiled, past = world.state.seq, world.state.cut
    world.step(C.BlockClosed(Address("")))
    over = world.state.seq
    told(world, E.RunRewound(past, asked=True))
    told(world, E.RunResumed("rewind"))
    assert "expected a cut" in refused(world, len(world.log), E.RunRewound(soiled, asked=True))
    assert "expected a cut" in refused(world, len(world.log), E.RunRewound(over, asked=True))
    for to in (0, len(world.log) + 1):
        assert "earlier" in refused(world, len(world.log), E.RunRewound(to, asked=True))


def test_nothing_is_edited_in_an_attempt_nor_in_what_is_over() -> None:
    world = small()
    (begun,) = [s for s, fact in enumerate(world.log, 1) if fact[1:] == ("a", (), 1)][:1]
    assert "stands still" in refused(world, 0, EDIT)
    assert "stands still" in refused(world, begun, EDIT)
    world.step(C.BlockClosed(Address("")))
    assert "stands still" in refused(world, len(world.log), EDIT)


def test_the_state_is_not_edited_while_branches_have_their_own() -> None:
    """A failure of the parallel takes the run back to before it, and the edit with it."""
    ir = WorkflowIR("w", (ParallelNode("p", (BranchNode("x", (StageNode("a", CODE),)),)),))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.BranchesOpened(Address("p"), 1))
    world.step(C.Interrupt("SIGINT"))
    assert "no parallel" in refused(world, len(world.log), EDIT)
    told(world, E.RunEdited(EDIT.config))
    assert world.state.started is not None
    assert world.state.started.config == EDIT.config


# --- what had failed ---


@pytest.mark.parametrize("fork", [False, True])
def test_what_was_just_failing_is_tried_again(fork: bool) -> None:
    """Also where the failure had touched something, so that a rewind was to follow."""
    block = IncludeNode("i", "v", (ResourceNode("q", CODE), StageNode("a", CODE)))
    ir = WorkflowIR("w", (ResourceNode("r", CODE), block, HandlerNode("h", ())))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.ResourceReady(Address("r"), True))
    world.step(C.CommandFailed(Address("i/q"), BOOM, touched=("r",)))
    (to,) = [s for s, f in enumerate(world.log, 1) if isinstance(f.event, E.BlockFailed)]
    assert to in cuts(world)
    if fork:
        again = forked(world, to, 0)
        asked = again.resume()
    else:
        again = turned(world, len(world.log), to, 0)
        asked = again.bring_back()
    assert list(asked) == [C.OpenResource(Address("i/q"), "q")]


@pytest.mark.parametrize("fork", [False, True])
def test_the_retry_budget_is_fresh_and_nobody_waits(fork: bool) -> None:
    ir = WorkflowIR("w", (StageNode("a", CODE, retry=Retries(1, backoff=9.0)),))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.StageRaised(Address("a"), 1, BOOM, again=True))
    waiting = len(world.log)
    world.step(C.RetryDue(Address("a"), 2))
    world.step(C.StageRaised(Address("a"), 2, BOOM, again=True))
    assert world.state.status == "failed"
    if fork:
        again = forked(world, waiting, 0)
        asked = again.resume()
    else:
        again = turned(world, len(world.log), waiting, 0)
        asked = again.bring_back()
    assert list(asked) == [C.RunStage(Address("a"), 2)]
    assert list(again.step(C.StageRaised(Address("a"), 2, BOOM, again=True))) == [
        C.AwaitRetry(Address("a"), 3)
    ]


# --- effects that must not happen twice ---


def once_in_a_row() -> FaultyWorld:
    """One stage before one whose effect must not happen twice; that one is running."""
    ir = WorkflowIR("w", (StageNode("a", CODE), StageNode("o", CODE, effect="once")))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.StageSucceeded(Address("a"), 1))
    return world


PUSH, NUMBER = Address("o"), Raw(b"1")


def metrics_that_count(world: FaultyWorld) -> list[bytes]:
    live = counted(world.log)
    done = {fact[1:] for fact in live if isinstance(fact.event, E.StageCompleted)}
    return [
        bytes(event.value)
        for fact in live
        if isinstance(event := fact.event, E.MetricRecorded) and fact[1:] in done
    ]


def test_metrics_that_were_told_early_are_taken_over_once() -> None:
    world = once_in_a_row()
    before = len(world.log) - 1
    world.step(C.MetricsFlushed(PUSH, 1, (E.MetricRecorded("m", NUMBER),)))
    told_early = len(world.log)
    world.step(C.StageSucceeded(PUSH, 1, (E.StatePut("k", NUMBER),)))
    assert world.state.status == "completed"
    for to in (told_early, before, told_early, before):
        again = go_on(turned(world, len(world.log), to, to))
        world = again
        assert not any(isinstance(c, C.RunStage) and c.address == PUSH for _, c in again.performed)
        assert again.state.core.data == {"k": Cell(NUMBER)}
        assert metrics_that_count(again) == [bytes(NUMBER)]


def test_an_attempt_of_the_same_number_adds_nothing_to_what_is_taken_over() -> None:
    world = once_in_a_row()
    before = len(world.log) - 1
    world.step(C.MetricsFlushed(PUSH, 1, (E.MetricRecorded("m", Raw(b"7")),)))
    turn = C.Turn(before, "again")
    world = killed(world, len(world.log))
    world.step(C.Resume(Host(), None, (C.Decided(PUSH, "retry", {}),), turn))
    asked = world.bring_back()
    assert asked == (C.RunStage(PUSH, 1),) or asked == [C.RunStage(PUSH, 1)]
    world.step(C.MetricsFlushed(PUSH, 1, (E.MetricRecorded("m", NUMBER),)))
    world.step(C.StageSucceeded(PUSH, 1))
    again = go_on(turned(world, len(world.log), before, 0))
    assert metrics_that_count(again) == [bytes(NUMBER)]


def test_what_a_handled_failure_left_out_has_happened_all_the_same() -> None:
    """An effect before a turn, then a block that fails before it comes there, then a turn back."""
    block = IncludeNode("i", "v", (StageNode("a", CODE), StageNode("o", CODE, effect="once")))
    ir = WorkflowIR("w", (block, HandlerNode("h", ())))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    before = len(world.log) - 1
    world.step(C.StageSucceeded(Address("i/a"), 1))
    world.step(C.StageSucceeded(Address("i/o"), 1, (E.StatePut("k", NUMBER),)))
    assert world.state.status == "completed"
    world = turned(world, len(world.log), before, 0)
    world.bring_back()
    inside = len(world.log)
    world.step(C.StageRaised(Address("i/a"), 1, BOOM))
    world.step(C.BlockLeft(Address("i")))
    assert world.state.status == "completed"
    for to in (before, inside):
        again = turned(world, len(world.log), to, 0)
        again.bring_back()
        attempt = again.state.core.control.active[Address("i/a")].attempt
        asked = again.step(C.StageSucceeded(Address("i/a"), attempt))
        assert not asked
        assert again.state.core.data == {"k": Cell(NUMBER)}


def test_a_fork_makes_an_effect_that_was_under_way_at_its_cut_its_own() -> None:
    """And knows nothing of it behind a turn to before either."""
    world = once_in_a_row()
    before, cut = len(world.log) - 1, len(world.log)
    child = forked(world, cut, 0)
    assert child.decisions() == ()
    again = turned(child, len(child.log), before, 0)
    assert child.state.memo == again.state.memo == {}
    for each in (child.resume(), again.bring_back()):
        assert list(each) == [C.RunStage(PUSH, 1)]


def test_an_effect_that_happened_before_an_earlier_rewind_is_not_made_again() -> None:
    """Side by side: a retry takes the run back a little, then a failed parallel takes it further."""
    inner = ParallelNode("q", (BranchNode("y", tuple(StageNode(n, CODE) for n in "cde")),))
    one = BranchNode("a", (StageNode("f", CODE), StageNode("o", CODE, effect="once")))
    two = BranchNode("b", (inner, HandlerNode("h", ())))
    ir = WorkflowIR("w", (ResourceNode("r", CODE), ParallelNode("p", (one, two))))
    world = faulty(ir, 0, 0, {})
    world.step(C.Start(started(ir)))
    world.step(C.ResourceReady(Address("r"), True))
    world.step(C.BranchesOpened(Address("p"), 2))
    world.step(C.BranchesOpened(Address("p/b/q"), 1))
    world.step(C.StageSucceeded(Address("p/a/f"), 1))
    world.step(C.StageSucceeded(Address("p/a/o"), 1, (E.StatePut("k", NUMBER),)))
    world.step(C.StageSucceeded(Address("p/b/q/y/c"), 1))
    world.step(C.StageSucceeded(Address("p/b/q/y/d"), 1, touched=("r",)))
    world = killed(world, len(world.log))
    world.resume()
    (back,) = [fact.event for fact in world.log if isinstance(fact.event, E.RunRewound)]
    assert world.states[back.to].core.control.active[Address("p/b/q/y/d")].open
    attempt = world.state.core.control.active[Address("p/b/q/y/d")].attempt
    world.step(C.StageRaised(Address("p/b/q/y/d"), attempt, BOOM, touched=("r",)))
    world.bring_back()
    active = world.state.core.control.active
    at = Address("p/a/f")
    asked = world.step(C.StageSucceeded(at, active[at].attempt))
    assert not any(isinstance(c, C.RunStage) for c in asked)

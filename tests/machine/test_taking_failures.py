"""Failures one by one: budgets, time limits, effects that must not happen twice, rollbacks."""

from __future__ import annotations

from typing import Any

import pytest

from kitchen.errors import IllegalEvent, IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.commands import Input
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact, Host
from kitchen.machine.fold import fold
from kitchen.machine.outstanding import outstanding, undecided
from kitchen.machine.stages import delay
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    HandlerNode,
    IncludeNode,
    LoopNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    ResourceNode,
    Retries,
    StageNode,
    TimeoutNode,
    WorkflowIR,
)
from tests.machine.faults import Fault, FaultyWorld, drive, faulty, killed, settle
from tests.machine.growth import CODE
from tests.machine.simulator import BOOM, counted, started

A, B, R, RUN = Address("a"), Address("b"), Address("r"), Address("")
TWICE = Retries(2, backoff=0.0)


def stage(name: str, **options: Any) -> StageNode:
    return StageNode(name, CODE, **options)


def world(*nodes: Node, compensate: bool = False, **faults: Fault) -> FaultyWorld:
    """A world that has just begun; `faults` by the path of a stage (with `__` for `/`)."""
    ir = WorkflowIR("w", nodes, compensate=compensate)
    wrong = {("RunStage", Address(at.replace("__", "/"))): f for at, f in faults.items()}
    found = faulty(ir, 1, 1, wrong)
    found.check = True
    return found


def begun(*nodes: Node, compensate: bool = False) -> FaultyWorld:
    found = world(*nodes, compensate=compensate)
    found.step(C.Start(started(found.program.ir)))
    return found


def told(found: FaultyWorld, *kinds: type[E.Event], live: bool = True) -> list[tuple[str, str]]:
    """The events of these types, with their paths."""
    log = counted(found.log) if live else found.log
    return [(type(f.event).__name__, f.path) for f in log if isinstance(f.event, kinds)]


def raised(at: Address, attempt: int = 1, **more: Any) -> C.StageRaised:
    return C.StageRaised(at, attempt, BOOM, **more)


# --- retries ---


def test_as_many_attempts_as_the_retries_say_whatever_dies_in_between() -> None:
    found = world(ResourceNode("r", CODE), stage("a", retry=TWICE), a=Fault())
    whole = drive(found)
    assert len(told(whole, E.StageFailed, live=False)) == 3
    for head in whole.batches[:-1]:
        again = killed(whole, head, head)
        for _ in range(2):  # deaths in attempts spend nothing of it
            again.resume()
            again = killed(again, len(again.log), head)
            if again.state.status != "running":
                break
        drive(again) if again.state.status == "running" else None
        assert again.state.status == "failed"
        assert len(told(again, E.StageFailed, live=False)) == 3, head


def test_a_failed_run_that_is_resumed_has_a_fresh_budget() -> None:
    whole = drive(world(stage("a", retry=TWICE), a=Fault()))
    again = drive(killed(whole, len(whole.log)))
    assert len(told(again, E.StageFailed, live=False)) == 6


def test_a_wait_is_since_the_failure_also_behind_a_rewind() -> None:
    found = begun(ResourceNode("r", CODE), stage("a", retry=Retries(1, backoff=8.0)))
    found.step(C.ResourceReady(R, True))
    found.live["r"] = 1
    found.step(raised(A, again=True, touched=("r",)))
    assert found.rewound
    (first,) = [f.event for f in found.log if isinstance(f.event, E.RetryScheduled)]
    assert isinstance(first, E.RetryScheduled)
    since = len(found.log) - 1
    assert found.bring_back() == [C.AwaitRetry(A, 2)]
    tried = found.state.tries[A]
    assert (tried.since, tried.delay, tried.failed) == (since, first.delay, 1)
    assert 7.2 <= first.delay <= 8.8
    again = killed(found, len(found.log))
    assert again.resume() == [C.AwaitRetry(A, 2)]
    assert again.state.tries[A].since == since
    assert again.state.crashes == {RUN: 1}  # nobody dies of waiting
    assert again.step(C.RetryDue(A, 2)) == [C.RunStage(A, 2)]
    with pytest.raises(IllegalOutcome):
        decide(again.program, again.state, C.RetryDue(A, 2))


def test_a_delay_follows_from_seed_address_and_number() -> None:
    retry = Retries(9, backoff=1.0, max_delay=4.0, jitter=0.5)
    waits = [delay(retry, 7, A, failed) for failed in range(1, 9)]
    assert waits == [delay(retry, 7, A, failed) for failed in range(1, 9)]
    assert waits != [delay(retry, 8, A, failed) for failed in range(1, 9)]
    assert all(0.5 <= w / min(4.0, 2.0**n) <= 1.5 for n, w in enumerate(waits))
    assert delay(Retries(1, 1e300, 1e300, 0.0), 0, A, 2000) == 1e300


# --- what takes a failure ---


def test_a_failure_goes_on_outwards_where_a_handler_fails() -> None:
    inner = IncludeNode("i", "w", (stage("a"), HandlerNode("h", (stage("b"),))))
    nodes = (inner, HandlerNode("outer", (stage("c"),)), stage("d"))
    found = drive(world(*nodes, i__a=Fault(), i__h__b=Fault()))
    assert found.state.status == "completed"
    kinds = (E.FailureHandled, E.StageCompleted)
    assert told(found, *kinds) == [
        ("FailureHandled", "i/a"),
        ("FailureHandled", "i"),
        ("StageCompleted", "outer/c"),
        ("StageCompleted", "d"),
    ]


def test_a_parallel_that_is_caught_leaves_nothing_also_not_of_its_over() -> None:
    over = ParallelOverNode("p", CODE, (stage("a"),))
    for touched in ((), ("r",)):
        found = begun(ResourceNode("r", CODE), over, HandlerNode("h"))
        found.step(C.ResourceReady(R, True))
        found.live["r"] = 1
        found.step(C.BranchesOpened(Address("p"), 2, E.RangeItems(2), touched))
        found.step(raised(Address("p/a", (1,))))
        assert found.rewound == bool(touched)
        if touched:
            assert found.bring_back() == [C.LeaveBlock(Address("p"))]
        found.step(C.BlockLeft(Address("p")))
        assert found.state.dirty == ()
        assert (found.state.core.claims, found.state.core.overlays) == ({}, {})
        assert found.asked_for == {("CloseResources", C.CloseResources(RUN, ("r",)))}


def test_a_verdict_holds_for_a_parallel_that_a_rewind_finds_running() -> None:
    """A sibling outside takes the run back to where the inner one had not failed yet."""
    inner = ParallelNode("q", (stage("x"), stage("y")))
    arms = (BranchNode("a", (inner, HandlerNode("h"))), stage("b", retry=TWICE))
    found = begun(ResourceNode("r", CODE), ParallelNode("p", arms))
    found.step(C.ResourceReady(R, True))
    found.live["r"] = 1
    found.step(C.BranchesOpened(Address("p"), 2))
    found.step(C.BranchesOpened(Address("p/a/q"), 2))
    found.step(raised(Address("p/b"), again=True))  # the second attempt begins with q under way
    found.step(raised(Address("p/a/q/x")))
    found.step(C.BlockLeft(Address("p/a/q")))
    found.step(raised(Address("p/b"), 2, again=True, touched=("r",)))
    assert found.rewound
    asked = found.bring_back()
    assert C.LeaveBlock(Address("p/a/q")) in asked
    assert not any(isinstance(c, C.RunStage) and c.address.path != "p/b" for c in asked)


def test_a_producer_that_owns_a_resource_ends_the_run() -> None:
    loop = AsyncLoopNode("l", CODE, CODE, (stage("s"),), buffer_size=1)
    for touched in ((), ("r",)):
        timed = TimeoutNode("t", 1.0, (loop,))
        found = begun(ResourceNode("r", CODE), timed, HandlerNode("h"))
        found.step(C.ResourceReady(R, True))
        found.step(C.ItemMade(Address("t/l/producer", (0,)), E.Raw(b"1"), 0, touched))
        found.step(C.TimeUp(Address("t")))
        assert found.state.status == ("failed" if touched else "running")
        failing = begun(ResourceNode("r", CODE), loop, HandlerNode("h"))
        failing.step(C.ResourceReady(R, True))
        at = Address("l/producer", (0,))
        failing.step(C.CommandFailed(at, BOOM, touched=touched))
        assert failing.state.status == ("failed" if touched else "running")


def test_what_a_stopped_attempt_used_is_not_for_the_siblings_of_its_branch() -> None:
    inner = TimeoutNode("t", 1.0, (stage("x"),))
    arms = (BranchNode("a", (inner,)), stage("b"))
    found = begun(ResourceNode("r", CODE), ParallelNode("p", arms, on_error="finish"))
    found.step(C.ResourceReady(R, True))
    found.step(C.BranchesOpened(Address("p"), 2))
    found.step(C.TimeUp(Address("p/a/t")))
    assert C.LeaveBlock(Address("p/a")) in outstanding(found.program, found.state)
    found.step(C.BlockLeft(Address("p/a"), ("r",)))
    assert found.state.dirty == ("r",)
    found.step(C.StageSucceeded(Address("p/b"), 1, touched=("r",)))
    (end,) = [f.event for f in found.log if isinstance(f.event, E.RunFailed)]
    assert isinstance(end, E.RunFailed)
    assert end.failure.type == "StageTimeout"  # both branches have failed; the first is told
    halted = found.state.core.control.halted[Address("p/b")]
    assert halted.failure.type == "BranchConflict"


def test_a_block_whose_leaving_fails_fails_what_is_around() -> None:
    inner = IncludeNode("i", "w", (stage("a", rollback=True), HandlerNode("h")))
    for around in ((), (HandlerNode("outer"),)):
        found = begun(inner, *around)
        found.step(raised(Address("i/a")))
        found.step(C.RolledBack(Address("i/a"), Address("i/a")))
        found.step(C.CommandFailed(Address("i/a"), BOOM))
        assert found.state.status == ("running" if around else "failed")
        if around:
            found.step(C.BlockLeft(Address("i")))
            assert found.state.status == "completed"


# --- time limits ---


def test_time_that_is_up_ends_what_runs_in_a_block_and_begins_anew_after_a_failure() -> None:
    loop = LoopNode("l", CODE, (stage("a"),))
    found = begun(TimeoutNode("t", 5.0, (loop,)))
    found.step(C.CollectionOpened(Address("t/l"), E.RangeItems(2)))
    entered = found.state.core.control.limits[Address("t")].entered
    found.step(C.TimeUp(Address("t")))
    assert found.state.status == "failed"
    again = killed(found, len(found.log))
    again.resume()
    assert again.state.core.control.limits[Address("t")].entered > entered
    with pytest.raises(IllegalOutcome):
        decide(again.program, again.state, C.TimeUp(Address("t/l")))


def test_a_block_is_not_left_while_an_effect_in_it_is_undecided() -> None:
    timed = TimeoutNode("t", 5.0, (stage("a", effect="once"), stage("b")))
    for choice, changes in (("retry", {}), ("skip", {"k": E.Raw(b"1")})):
        found = begun(timed, HandlerNode("h"))
        found.step(C.TimeUp(Address("t")))
        at = Address("t/a")
        assert found.state.status == "failed"
        assert undecided(found.program, found.state) == (at,)
        found.step(C.Resume(Host()))
        found.step(C.Continue())
        assert found.state.status == "failed"
        found.step(C.Resume(Host(), None, (C.Decided(at, choice, changes),)))
        assert found.step(C.Continue()) == [C.LeaveBlock(Address("t"))]
        found.step(C.BlockLeft(Address("t")))
        assert found.state.status == "completed"
        assert found.state.core.data == {}
        assert found.state.memo == {}


# --- effects that must not happen twice ---


def test_an_effect_of_which_nobody_knows_waits_for_somebody() -> None:
    found = begun(stage("a", effect="once"), stage("b"))
    again = killed(found, len(found.log))
    assert again.resume() or again.state.status == "failed"
    again = killed(found, len(found.log))
    again.step(C.Resume(Host()))
    assert not again.step(C.Continue())
    assert [f.event.failure.type for f in again.log if isinstance(f.event, E.RunFailed)] == [
        "EffectUndecided"
    ]
    with pytest.raises(IllegalOutcome):
        decide(again.program, again.state, C.Resume(Host(), None, (C.Decided(B, "retry", {}),)))
    skip = C.Decided(A, "skip", {"k": E.Raw(b"7")})
    again.step(C.Resume(Host(), None, (skip,)))
    assert again.step(C.Continue()) == [C.RunStage(B, 1)]
    assert bytes(again.state.core.data["k"].base) == b"7"


def test_what_was_decided_holds_behind_a_rewind() -> None:
    found = begun(ResourceNode("r", CODE), stage("a", effect="once"), stage("b"))
    found.step(C.ResourceReady(R, True))
    again = killed(found, len(found.log))
    again.step(C.Resume(Host()))
    again.step(C.Continue())
    again.step(C.Resume(Host(), None, (C.Decided(A, "skip", {"k": E.Raw(b"7")}),)))
    again.step(C.Continue())
    again.step(C.StageSucceeded(B, 1, touched=("r",)))
    last = killed(again, len(again.log))
    last.step(C.Resume(Host()))
    (asked,) = last.step(C.Continue())
    assert asked.address == B
    assert bytes(last.state.core.data["k"].base) == b"7"


def test_an_effect_under_way_when_a_sibling_goes_back_is_undecided() -> None:
    """It had begun before the seq that the run goes back to."""
    arms = (stage("a", effect="once"), stage("b", retry=TWICE))
    found = begun(ResourceNode("r", CODE), ParallelNode("p", arms))
    found.step(C.ResourceReady(R, True))
    found.live["r"] = 1
    found.step(C.BranchesOpened(Address("p"), 2))
    found.step(raised(Address("p/b"), 1, again=True))
    found.step(raised(Address("p/b"), 2, again=True, touched=("r",)))
    assert found.rewound
    assert not found.bring_back()
    assert undecided(found.program, found.state) == (Address("p/a"),)


def test_a_body_that_was_not_called_is_no_effect() -> None:
    for begun_ones, status in (((), "running"), ((A,), "failed")):
        found = begun(stage("a", effect="once"))
        found.step(C.Interrupt("SIGINT", begun_ones))
        found.step(C.Resume(Host()))
        found.step(C.Continue())
        assert found.state.status == status


# --- rollbacks ---


def test_what_fails_is_rolled_back_behind_the_rewind() -> None:
    nodes = (ResourceNode("r", CODE), stage("a", rollback=True), HandlerNode("h"))
    found = begun(*nodes)
    found.step(C.ResourceReady(R, True))
    found.live["r"] = 1
    found.step(raised(A, touched=("r",)))
    assert found.rewound
    assert found.bring_back() == [C.RollBack(A, A)]
    assert found.step(C.RolledBack(A, A, (E.StatePut("k", E.Raw(b"1")),))) == [C.LeaveBlock(A)]
    found.step(C.BlockLeft(A))
    assert "k" in found.state.core.data


def test_a_run_that_fails_rolls_back_what_was_completed_the_last_first() -> None:
    hooked = [stage(name, rollback=True) for name in "abc"]
    found = drive(world(*hooked, stage("d"), compensate=True, d=Fault()))
    assert told(found, E.StageRolledBack) == [("StageRolledBack", name) for name in "cba"]
    for head in found.batches[:-1]:
        again = drive(killed(found, head, head))
        assert told(again, E.StageRolledBack) == [("StageRolledBack", name) for name in "cba"]


def died(found: FaultyWorld) -> FaultyWorld:
    """Killed, and resumed, until the run has ended."""
    for _ in range(30):
        if found.state.status == "failed":
            return found
        found = killed(found, len(found.log))
        found.resume()
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize("taker", ["handler", "skip", "branch"])
def test_what_kills_its_process_is_taken_by_nobody_and_goes_on_once_resumed(taker: str) -> None:
    """What comes out must not depend on how often somebody killed it."""
    alone = stage("a", on_error="skip" if taker == "skip" else "fail")
    body: tuple[Any, ...] = (alone, HandlerNode("h")) if taker == "handler" else (alone,)
    if taker == "branch":
        body = (ParallelNode("p", (alone, stage("b")), max_concurrency=1, on_error="finish"),)
    found = begun(*body)
    if taker == "branch":
        found.step(C.BranchesOpened(Address("p"), 1))
    at = Address("p/a") if taker == "branch" else A
    found = died(found)
    failure = found.log[-1]
    assert isinstance(failure.event, E.RunFailed)
    assert (failure.event.failure.type, failure.path) == ("CrashBudgetSpent", at.path)
    (again,) = found.resume()
    assert isinstance(again, C.RunStage)
    assert again.address == at


def test_a_hook_that_kills_its_process_ends_the_run_and_goes_on_once_resumed() -> None:
    found = begun(stage("a", rollback=True), HandlerNode("h"), stage("b"))
    assert found.step(raised(A)) == [C.RollBack(A, A)]
    found = died(found)
    assert found.resume() == [C.RollBack(A, A)]
    assert found.step(C.RolledBack(A, A)) == [C.LeaveBlock(A)]


def test_a_hook_of_a_run_that_ends_is_given_up_if_it_kills_its_process() -> None:
    run = begun(stage("a", rollback=True), stage("b", rollback=True), compensate=True)
    run.step(C.StageSucceeded(A, 1))
    run.step(raised(B))
    for _ in range(30):
        if run.state.status == "failed":
            break
        run = killed(run, len(run.log))
        run.resume()
    assert run.state.status == "failed"
    gone = [f.event.failure for f in run.log if isinstance(f.event, E.StageRolledBack)]
    assert [failure.type for failure in gone if failure] == ["CrashBudgetSpent"] * 2


# --- cancelling ---


@pytest.mark.parametrize("ending", [None, C.Interrupt("SIGINT"), raised(A)])
def test_a_cancelled_run_is_at_its_end(ending: Input | None) -> None:
    found = begun(stage("a"))
    if ending is not None:
        found.step(ending)
    found.step(C.Cancel("somebody", (A,)))
    assert found.state.status == "cancelled"
    assert outstanding(found.program, found.state) == ()
    for given in (C.Cancel("me"), C.Resume(Host()), C.Continue(), C.Preserved({})):
        with pytest.raises(IllegalOutcome):
            decide(found.program, found.state, given)


# --- events that cannot happen ---

_AT = Address("a")
_FAILED = E.BlockFailed(BOOM, _AT, "block", (), (), _AT)


@pytest.mark.parametrize(
    "facts",
    [
        [Fact(E.RetryScheduled(), "a", (), 1)],
        [Fact(E.StageInterrupted(), "a", (), 1), Fact(E.RetryScheduled(), "a", (), 1)],
        [Fact(E.FailureHandled(), "a")],
        [Fact(E.StageSkipped(BOOM), "a")],
        [Fact(E.StageInterrupted(), "a", (), 1), Fact(E.StageSkipped(BOOM), "a")],
        [Fact(E.StageRolledBack(), "a")],
        [Fact(_FAILED, "a"), Fact(E.StageRolledBack(), "a")],
        [Fact(_FAILED, "a"), Fact(_FAILED, "a")],
        [Fact(_FAILED, "b")],
        [Fact(E.BlockFailed(BOOM, _AT, "stage", (), (), _AT), "a")],
        [Fact(E.BlockFailed(BOOM, _AT, "branch", (), (), _AT), "a")],
        [Fact(E.BlockFailed(BOOM, _AT, "run", (_AT,), (), _AT), "a")],
        [Fact(E.BlockFailed(BOOM, _AT, "run", (Address("b"),), (), _AT))],
        [Fact(E.TimeLimitStarted(1.0), "a")],
        [Fact(E.TimeLimitEnded(), "a")],
        [Fact(E.EffectDecided("retry"), "a")],
        [Fact(E.StatePut("k", E.Raw(b"1")), "a")],
    ],
)
def test_an_event_that_cannot_happen_is_refused(facts: list[Fact]) -> None:
    found = begun(stage("a", rollback=True), HandlerNode("h"), stage("b"))
    with pytest.raises(IllegalEvent):
        fold(found.program, [*found.log, *facts])


def test_a_retry_is_scheduled_once_for_each_failure() -> None:
    found = begun(stage("a", retry=Retries(2, backoff=8.0)))
    found.step(raised(A, again=True))
    with pytest.raises(IllegalEvent):
        fold(found.program, [*found.log, found.log[-1]])
    with pytest.raises(IllegalEvent):
        fold(found.program, [*found.log, Fact(E.RetryScheduled(1.0, len(found.log)), "a", (), 1)])


def test_what_is_rolled_back_twice_is_refused() -> None:
    found = begun(stage("a", rollback=True), HandlerNode("h"))
    found.step(raised(A))
    found.step(C.RolledBack(A, A))
    with pytest.raises(IllegalEvent):
        fold(found.program, [*found.log, Fact(E.StageRolledBack(), "a")])
    with pytest.raises(IllegalOutcome):
        decide(found.program, found.state, C.RolledBack(A, A))


def test_a_run_with_a_skip_and_a_handler_is_settled() -> None:
    nodes = (stage("a", on_error="skip"), stage("b"), HandlerNode("h"))
    end = settle(drive(world(*nodes, a=Fault(), b=Fault())))
    assert told(end, E.StageSkipped, E.FailureHandled) == [
        ("StageSkipped", "a"),
        ("FailureHandled", "b"),
    ]

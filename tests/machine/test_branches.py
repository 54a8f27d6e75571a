"""Branches that fail, and branches that want one thing.

What a run tells of them does not depend on who was first, and once it is mended, the run comes
to the same end as one that never failed; what was finished is not done again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from kitchen.errors import IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.decide import decide
from kitchen.machine.events import Address
from kitchen.machine.fold import fold
from kitchen.machine.lanes import around, owner_of
from kitchen.machine.outstanding import is_halted
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    Reducer,
    ResourceNode,
    StageNode,
    WorkflowIR,
)
from tests.machine.growth import CODE, Grower
from tests.machine.simulator import BOOM, World, crashed, new_world
from tests.machine.test_crashes import assert_same_end, resumed, undisturbed

# --- failures ---


def failed(world: World) -> E.Fact:
    """The end of a run that failed."""
    (fact,) = [fact for fact in world.log if isinstance(fact.event, E.RunFailed)]
    return fact


def where(whole: World, address: Address) -> Address:
    """Where a failure at an address ends the run: there, or at a branch whose siblings go on."""
    program, told = whole.program, address
    for lane, at in reversed(list(around(program, address))):
        node = program.nodes[lane.owner]
        if lane.data and isinstance(node, ParallelNode | ParallelOverNode):
            told = at if node.on_error == "finish" else told
    return told


@pytest.mark.parametrize("on_error", ["cancel", "finish", None])
def test_a_failure_ends_the_run_and_once_mended_it_comes_to_the_same_end(
    on_error: str | None,
) -> None:
    inside = halted = 0
    for seed in range(80):
        whole = undisturbed(Grower(seed, on_error=on_error).workflow(), seed)
        if whole is None:
            continue
        rng = random.Random(seed)
        ran = [c for _, c in whole.performed if isinstance(c, C.RunStage | C.EvaluateCondition)]
        for command in rng.sample(ran, min(len(ran), 5)):
            address = command.address
            world = new_world(whole.program.ir, seed, rng.randrange(2**16))
            world.failing = frozenset({address})
            world.run()
            assert world.state.status == "failed"
            end = failed(world)
            assert end.event == E.RunFailed(BOOM)
            assert Address(*end[1:3]) == address
            inside += bool(world.program.lanes.get(address.path))
            branch = where(whole, address)
            if branch != address:
                halted += 1
                assert_siblings_are_done(world, branch)
            assert fold(world.program, world.log) == world.state
            again = crashed(world, len(world.log), rng.randrange(2**16))
            assert_same_end(whole, resumed(again))
            # Died while siblings were still at it: a branch that had failed has failed. It is
            # tried again once the run has.
            head = rng.choice(world.batches[:-1])
            again = resumed(crashed(world, head, seed))
            had = bool(world.states[head].core.control.halted)
            assert (again.state.status == "failed") == had
            assert_same_end(whole, mended(again))
    assert inside > 60
    assert halted > 25 or on_error == "cancel"


def test_failures_crashes_and_interruptions_in_any_order() -> None:
    """Several places fail, some of them again after a resume; in the end all is as it would be."""
    count = 0
    for seed in range(120):
        on_error = "finish" if seed % 3 else None
        whole = undisturbed(Grower(seed, on_error=on_error).workflow(), seed)
        if whole is None:
            continue
        rng = random.Random(seed)
        kinds = C.RunStage | C.EvaluateCondition | C.OpenBranches | C.JoinBranches | C.OpenResource
        asked = [c.address for _, c in whole.performed if isinstance(c, kinds)]
        for _ in range(3 if asked else 0):
            bad = frozenset(rng.sample(asked, min(len(asked), rng.randint(1, 3))))
            world = new_world(whole.program.ir, seed, rng.randrange(2**16))
            world.failing = bad
            world.run()
            for _ in range(rng.randint(1, 3)):
                world = crashed(world, rng.choice(world.batches[:-1]), rng.randrange(2**16))
                if world.state.status == "running" and rng.random() < 0.3:
                    world.step(C.Interrupt("SIGINT"))
                world.failing = bad if rng.random() < 0.5 else frozenset()
                resumed(world)
            world.failing = frozenset()
            assert_same_end(whole, mended(world))
            count += 1
    assert count > 200


def mended(world: World) -> World:
    """Resume it until nothing is left of what had failed."""
    for _ in range(3):
        if world.state.status == "failed":
            world = resumed(crashed(world, len(world.log), len(world.log)))
    return world


def assert_siblings_are_done(world: World, branch: Address) -> None:
    """All other branches of that parallel came to their end."""
    (parallel,) = [
        owner_of(lane, branch.visit)
        for lane, at in around(world.program, branch)
        if lane.data and at == branch
    ]
    fork = world.state.core.control.forks[parallel]
    assert fork.done == fork.total - 1


def _stage(name: str) -> Node:
    return StageNode(name, CODE)


def test_of_several_failures_the_first_in_branch_order_is_told() -> None:
    branches = tuple(BranchNode(name, (_stage("x"), _stage("y"))) for name in "abc")
    ir = WorkflowIR("w", (ParallelNode("p", branches, on_error="finish"),))
    for schedule in range(60):
        world = new_world(ir, 3, schedule)
        world.failing = frozenset({Address("p/c/x"), Address("p/b/y")})
        world.run()
        assert failed(world)[1:3] == ("p/b/y", ())
        finished = [f.path for f in world.log if isinstance(f.event, E.BranchCompleted)]
        assert finished == ["p/a"]


def test_a_branch_that_failed_takes_nothing_any_more() -> None:
    """Its outcomes are refused, as they are outstanding no longer."""
    checked = 0
    for seed in range(200):
        whole = undisturbed(Grower(seed, on_error="finish").workflow(), seed)
        if whole is None:
            continue
        rng = random.Random(seed)
        ran = [c.address for _, c in whole.performed if isinstance(c, C.RunStage)]
        if not ran:
            continue
        world = new_world(whole.program.ir, seed, seed)
        world.failing = frozenset({rng.choice(ran)})
        world.run()
        for state in world.states:
            control = state.core.control
            for address in control.active if control.halted else ():
                if control.status == "running" and is_halted(control, address):
                    for wrong in outcomes_at(address):
                        with pytest.raises(IllegalOutcome):
                            decide(world.program, state, wrong)
                    checked += 1
    assert checked > 20


def outcomes_at(address: Address) -> list[Any]:
    return [
        C.StageSucceeded(address, 1),
        C.ConditionAnswered(address, True),
        C.CollectionOpened(address, E.RangeItems(1)),
        C.BranchesOpened(address, 1),
        C.ResourceReady(address, True),
        C.BlockClosed(address),
        C.BranchesMerged(address, {}),
        C.LoopLeft(address),
    ]


# --- conflicts ---


class Writer(World):
    """Stages that write, touch and peek at what they are told to, by path."""

    writes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    touches: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    peeks: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def effects(self, address: Address, seen: int) -> tuple[Any, ...]:
        return tuple(E.StatePut(key, E.Raw(b"1")) for key in self.writes.get(address.path, ()))

    def touch(self, address: Address) -> tuple[str, ...]:
        return tuple(n for n in self.touches.get(address.path, ()) if n in self.live)

    def peek(self, address: Address, touched: tuple[str, ...]) -> tuple[str, ...]:
        names = self.peeks.get(address.path, ())
        return tuple(n for n in names if n in self.live and n not in touched)


def ended(ir: WorkflowIR, schedule: int, **told: Any) -> World:
    base = new_world(ir, 1, schedule)
    world = Writer(base.program, 1, base.scheduler)
    world.writes, world.touches = told.get("writes", {}), told.get("touches", {})
    world.peeks = told.get("peeks", {})
    world.run()
    assert fold(world.program, world.log) == world.state
    return world


def conflicts(ir: WorkflowIR, **told: Any) -> set[str]:
    """What the failure says, by any schedule; "" where there is none."""
    said: set[str] = set()
    for schedule in range(30):
        world = ended(ir, schedule, **told)
        if world.state.status == "completed":
            said.add("")
            continue
        event = failed(world).event
        assert isinstance(event, E.RunFailed)
        assert event.failure.type == "BranchConflict"
        assert event.failure.hint
        said.add(event.failure.message)
    return said


def _two(merge: dict[str, Reducer] | None = None, on_error: str = "cancel") -> WorkflowIR:
    two = (_stage("a"), _stage("b"))
    parallel = ParallelNode("p", two, on_error=on_error, merge=merge or {})
    return WorkflowIR("w", (ResourceNode("r", CODE), parallel))


@pytest.mark.parametrize("on_error", ["cancel", "finish"])
def test_two_branches_that_write_one_key(on_error: str) -> None:
    (said,) = conflicts(_two(on_error=on_error), writes={"p/a": ("k",), "p/b": ("k",)})
    assert said == "two branches of the parallel 'p' write state['k']: p/a and p/b"


@pytest.mark.parametrize("on_error", ["cancel", "finish"])
def test_two_branches_that_touch_one_resource(on_error: str) -> None:
    (said,) = conflicts(_two(on_error=on_error), touches={"p/a": ("r",), "p/b": ("r",)})
    assert said == "two branches of the parallel 'p' touch the resource 'r': p/a and p/b"


def test_what_is_merged_or_disjoint_is_no_conflict() -> None:
    both = {"p/a": ("k",), "p/b": ("k",)}
    assert conflicts(_two({"k": Reducer("sum")}), writes=both) == {""}
    assert conflicts(_two(), writes={"p/a": ("k",), "p/b": ("l",)}) == {""}


def test_two_items_of_one_parallel() -> None:
    over = ParallelOverNode("p", CODE, (_stage("a"),))
    said: Counter[str] = Counter()
    for salt in range(10):
        for schedule in range(10):
            base = new_world(WorkflowIR("w", (over,)), salt, schedule)
            world = Writer(base.program, salt, base.scheduler)
            world.writes = {"p/a": ("k",)}
            world.run()
            (fork,) = [f.event for f in world.log if isinstance(f.event, E.BranchesStarted)]
            several = fork.count > 1
            assert world.state.status == ("failed" if several else "completed")
            if several:
                event = failed(world).event
                assert isinstance(event, E.RunFailed)
                said[event.failure.message] += 1
    assert all("p[0] and p[1]" in text or "p[2]" in text for text in said)
    assert said


@pytest.mark.parametrize("deep", [1, 2])
def test_a_write_deep_inside_and_a_sibling_outside(deep: int) -> None:
    """Found when the inner parallel joins, at the latest."""
    inner: Node = ParallelNode("q", (_stage("x"), _stage("y")))
    path = "p/q/x"
    if deep == 2:
        inner = ParallelNode("q", (ParallelNode("z", (_stage("x"), _stage("y"))), _stage("v")))
        path = "p/q/z/x"
    ir = WorkflowIR("w", (ParallelNode("p", (_stage("a"), inner)),))
    (said,) = conflicts(ir, writes={"p/a": ("k",), path: ("k",)})
    assert said == "two branches of the parallel 'p' write state['k']: p/a and p/q"


def test_inner_branches_that_merge_conflict_with_a_sibling_outside() -> None:
    inner = ParallelNode("q", (_stage("x"), _stage("y")), merge={"k": Reducer("sum")})
    ir = WorkflowIR("w", (ParallelNode("p", (_stage("a"), inner)),))
    both = {"p/q/x": ("k",), "p/q/y": ("k",)}
    assert conflicts(ir, writes=both) == {""}
    (said,) = conflicts(ir, writes={**both, "p/a": ("k",)})
    assert "'p' write state['k']: p/a and p/q" in said


def test_a_resource_touched_deep_inside_and_by_a_sibling_outside() -> None:
    inner = ParallelNode("q", (_stage("x"), _stage("y")))
    ir = WorkflowIR("w", (ResourceNode("r", CODE), ParallelNode("p", (_stage("a"), inner))))
    (said,) = conflicts(ir, touches={"p/a": ("r",), "p/q/x": ("r",)})
    assert said == "two branches of the parallel 'p' touch the resource 'r': p/a and p/q"


def test_a_producer_and_the_body_that_touch_one_resource() -> None:
    loop = AsyncLoopNode("l", CODE, CODE, (_stage("s"),), buffer_size=2)
    ir = WorkflowIR("w", (ResourceNode("r", CODE), loop))
    (said,) = conflicts(ir, touches={"l/producer": ("r",), "l/s": ("r",)})
    assert said == "the producer and the body of the loop 'l' touch 'r'"
    (said,) = conflicts(ir, touches={"l/producer": ("r",), "l/stop_when": ("r",)})
    assert said == "the producer and the body of the loop 'l' touch 'r'"


def test_one_side_peeks_at_what_another_touches() -> None:
    (said,) = conflicts(_two(), touches={"p/a": ("r",)}, peeks={"p/b": ("r",)})
    assert "p/a and p/b use the resource 'r' side by side" in said
    assert conflicts(_two(), peeks={"p/a": ("r",), "p/b": ("r",)}) == {""}
    assert conflicts(_two(), touches={"p/a": ("r",)}, peeks={"p/a": ("r",)}) == {""}


def test_a_peek_deep_inside_and_a_touch_by_a_sibling_outside() -> None:
    inner = ParallelNode("q", (_stage("x"), _stage("y")))
    ir = WorkflowIR("w", (ResourceNode("r", CODE), ParallelNode("p", (_stage("a"), inner))))
    (said,) = conflicts(ir, touches={"p/a": ("r",)}, peeks={"p/q/x": ("r",), "p/q/y": ("r",)})
    assert "p/a and p/q use the resource 'r'" in said


@pytest.mark.parametrize("pacing", ["paced", "free"])
def test_a_producer_that_peeks_at_what_the_body_touches(pacing: str) -> None:
    """What it sees would be chance, which only a free loop may let decide."""
    loop = AsyncLoopNode("l", CODE, CODE, (_stage("s"),), buffer_size=2, pacing=pacing)
    ir = WorkflowIR("w", (ResourceNode("r", CODE), loop))
    (said,) = conflicts(ir, touches={"l/s": ("r",)}, peeks={"l/producer": ("r",)})
    assert ("the producer and the body of the loop 'l' use 'r'" in said) == (pacing == "paced")
    assert conflicts(ir, touches={"l/producer": ("r",)}) == {""}


def test_several_producers_that_touch_one_resource() -> None:
    loop = AsyncLoopNode("l", CODE, CODE, (_stage("s"),), buffer_size=2, producers=2)
    ir = WorkflowIR("w", (ResourceNode("r", CODE), loop))
    (said,) = conflicts(ir, touches={"l/producer": ("r",)})
    assert said.startswith("2 producers at a time touch r")


def test_no_more_branches_run_than_may_after_any_resume() -> None:
    over = ParallelOverNode("p", CODE, (_stage("a"), _stage("b")), on_error="finish")
    ir = WorkflowIR("w", (over,))
    tried = 0
    for salt in range(40):
        whole = undisturbed(ir, salt)
        assert whole is not None
        (fork,) = [f.event for f in whole.log if isinstance(f.event, E.BranchesStarted)]
        assert isinstance(fork, E.BranchesStarted)
        if fork.count < 2 or fork.limit >= fork.count:
            continue
        world = new_world(ir, salt, salt)
        world.failing = frozenset({Address("p/b", (0,))})
        world.run()
        for head in world.batches:
            again = crashed(world, head, salt)
            tried += 1
            again = mended(resumed(again))
            assert_same_end(whole, again)
            for state in again.states[head + 1 :]:
                if state.status == "running":
                    control = state.core.control
                    going = {
                        a.visit[0] for a in control.active if a.visit and not is_halted(control, a)
                    }
                    assert len(going) <= fork.limit
    assert tried > 20

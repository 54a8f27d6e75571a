"""Stages that fail, hang or must not happen twice, and what takes their failures.

1. A run in which things fail and processes die ends as one in which nobody died, by any schedule.
2. It ends as if attempts that failed had never touched anything.
3. No stage is tried more often than its retries say, and no effect happens twice that must not.
4. Live and folded are the same after every event; a snapshot loses nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import snapshot
from kitchen.machine.fold import fold
from kitchen.machine.state import Once, State
from tests.machine.faults import (
    FaultyWorld,
    doubled,
    drive,
    essence,
    faulty,
    killed,
    overspent,
    scenario,
    settle,
)

MODES: dict[str, dict[str, bool]] = {
    "mended": {},
    "once": {"once": True},
    "exact": {"exact": True},
}


def same_end(world: FaultyWorld, expected: dict[str, Any], schedule: int) -> FaultyWorld:
    """Bring it to its end; that is the expected one, and nothing was done too often."""
    end = settle(world, schedule)
    found = essence(end)
    for what, value in expected.items():
        assert found[what] == value, what
    assert not overspent(end)
    assert not doubled(end)
    return end


@pytest.mark.parametrize("mode", MODES)
def test_crashes_and_schedules_change_nothing_where_things_fail(mode: str) -> None:
    seen: Counter[str] = Counter()
    points = 0
    for seed in range(170):
        found = scenario(seed, **MODES[mode])
        if found is None:
            continue
        ir, faults = found
        first = drive(faulty(ir, seed, seed, faults))
        if mode == "exact" and first.state.status == "failed":
            continue  # what is left of a budget then depends on what was tried before
        expected = essence(settle(first, seed))
        seen.update({type(fact.event).__name__ for fact in first.log})
        for schedule in (seed * 7 + 1, seed * 7 + 2):
            same_end(drive(faulty(ir, seed, schedule, faults)), expected, schedule)
        rng = random.Random(seed)
        heads = first.batches[:-1]
        for head in rng.sample(heads, min(len(heads), 6)):
            again = drive(killed(first, head, seed + head))
            after = [batch for batch in again.batches[:-1] if batch > head]
            if after and rng.random() < 0.4:
                later = rng.choice(after)
                again = drive(killed(again, later, later))
            end = same_end(again, expected, head)
            points += 1
            if points % 10 == 0:
                assert fold(end.program, end.log) == end.state
                assert snapshot.load(snapshot.dump(end.state)) == end.state
    assert points > 250
    for name in ("BlockFailed", "FailureHandled", "StageSkipped", "StageRolledBack", "RunRewound"):
        assert seen[name] >= 5, name
    assert seen["RetryScheduled"] >= 10


def test_what_failed_has_touched_nothing() -> None:
    """The same faults, once after and once before anything was used: one end."""
    touched = 0
    for seed in range(250):
        found = scenario(seed)
        if found is None:
            continue
        ir, faults = found
        if any(kind == "Produce" for kind, _ in faults):
            continue  # whose producer has used a resource is not caught
        calm = {key: fault._replace(touch=False) for key, fault in faults.items()}
        end = settle(drive(faulty(ir, seed, seed, faults)), seed)
        same_end(drive(faulty(ir, seed, seed, calm)), essence(end), seed)
        touched += any(isinstance(fact.event, E.RunRewound) for fact in end.log)
    assert touched > 40


def test_live_is_folded_and_snapshots_are_exact_where_things_fail() -> None:
    held: Counter[str] = Counter()
    for seed in range(60):
        found = scenario(seed, once=seed % 2 == 0)
        if found is None:
            continue
        world = faulty(found.ir, seed, seed, found.faults)
        world.check = True
        end = drive(world)
        rng = random.Random(seed)
        cut = killed(end, rng.choice(end.batches[:-1]), seed)
        cut.check = True
        for state in (*drive(cut).states, *end.states):
            assert snapshot.load(snapshot.dump(state)) == state
            held.update(holds(state))
    for what in ("failing", "halted", "limits", "tries", "verdicts", "done", "waits", "once"):
        assert held[what] >= 3, what


def holds(state: State) -> set[str]:
    """Which of what is known of failures a state has something of."""
    control = state.core.control
    known = {
        "failing": control.failing,
        "halted": control.halted,
        "limits": control.limits,
        "tries": state.tries,
        "verdicts": state.verdicts,
        "done": list(state.done),
        "waits": [place for place in control.active.values() if place.waits],
        "once": [each for each in state.memo.values() if isinstance(each, Once)],
    }
    return {name for name, value in known.items() if value}


def test_an_interruption_in_a_failure_changes_nothing() -> None:
    """Also while stages are rolled back: what was failing goes on failing."""
    stopped: Counter[str] = Counter()
    for seed in range(150):
        found = scenario(seed)
        if found is None:
            continue
        first = drive(faulty(found.ir, seed, seed, found.faults))
        expected = essence(settle(first, seed))
        rng = random.Random(seed)
        inside = [b for b in first.batches[:-1] if first.states[b].core.control.failing]
        heads = inside + rng.sample(first.batches[:-1], min(3, len(first.batches) - 1))
        for head in heads[:8]:
            again = killed(first, head, head)
            if again.state.status != "running":
                continue
            stopped["failing" if head in inside else "else"] += 1
            open_ones = [at for at, p in again.state.core.control.active.items() if p.open]
            again.step(C.Interrupt("SIGINT", tuple(open_ones)))
            same_end(drive(killed(again, len(again.log), head)), expected, head)
    assert min(stopped["failing"], stopped["else"]) > 50


def test_a_checkpoint_between_commands_serves_what_fails_later() -> None:
    """`Preserved` while nothing is being performed: what follows ends as it would have."""
    saved = 0
    for seed in range(150):
        found = scenario(seed)
        if found is None:
            continue
        first = drive(faulty(found.ir, seed, seed, found.faults))
        expected = essence(settle(first, seed))
        rng = random.Random(seed)
        for head in rng.sample(first.batches[:-1], min(4, len(first.batches) - 1)):
            again = killed(first, head, head)
            control = again.state.core.control
            if again.state.status != "running" or control.halted or control.failing:
                continue
            commands = again.resume()
            control = again.state.core.control
            if again.state.status != "running" or control.halted or control.failing:
                continue
            assert commands
            whole = {n: E.Manifest(E.Raw(str(again.live[n]).encode())) for n in again.state.unsaved}
            asked = again.step(C.Preserved(whole))
            assert again.state.dirty == () or any(
                known.lost for known in again.state.core.resources.values()
            )
            again.drive(asked)
            same_end(again, expected, head)
            saved += 1
    assert saved > 100

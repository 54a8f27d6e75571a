"""User code that fails, hangs, or must not happen twice, for the simulator's world; and its hooks.

Whether it fails follows from what is asked and from how often it has failed before, never from an
attempt's number: interruptions add attempts. What happened outside is kept apart from the log,
as it is in the world: a process that dies takes nothing of it back.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from msgspec import Raw

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds, lanes
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.commands import Command, Input
from kitchen.machine.events import Address, Fact
from kitchen.machine.outstanding import outstanding, undecided, within
from kitchen.workflow.ir import ParallelNode, ParallelOverNode, StageNode, TimeoutNode, WorkflowIR
from tests.machine.growth import Grower
from tests.machine.simulator import (
    BOOM,
    KEYS,
    Scheduler,
    Task,
    TooLong,
    World,
    counted,
    number,
    outcome,
    plain,
    told,
)

_USING = (C.RunStage, C.OpenLoop, C.EvaluateCondition, C.OpenBranches, C.Produce, C.OpenResource)


class Fault(NamedTuple):
    """What goes wrong where something is asked.

    `times`: how often; None: always. `touch`: it has changed resources by then. `again`: the
    stage's retries are for it. `hang`: it does not raise, but lasts until that block's time is up.
    """

    times: int | None = None
    touch: bool = True
    again: bool = True
    hang: Address | None = None


class Happened(NamedTuple):
    """What was done outside, when the log had so many events: "run", "done" or "undo"."""

    head: int
    what: str
    address: Address
    changes: Mapping[str, Raw] = {}


@dataclass
class FaultyWorld(World):
    """A world in which things go wrong. `faults`: by the kind of the command and its address."""

    faults: Mapping[tuple[str, Address], Fault] = field(default_factory=dict)
    outside: list[Happened] = field(default_factory=list)

    def _begin(self, task: Task) -> None:
        command = task.command
        fault = self.faults.get((type(command).__name__, command.address))
        if isinstance(command, C.RunStage):
            self.happened("run", command.address)
        if fault is None or not self.strikes(fault, command.address):
            super()._begin(task)
            return
        touched = self.touch(command.address) if fault.touch and isinstance(command, _USING) else ()
        if fault.hang is not None:
            self.cut_short.update(touched)
            task.outcome = C.TimeUp(fault.hang)
        elif isinstance(command, C.RunStage):
            lost = (E.StatePut("k", Raw(b"0")),)
            task.outcome = C.StageRaised(
                command.address, command.attempt, BOOM, lost, touched, again=fault.again
            )
        else:
            task.outcome = C.CommandFailed(command.address, BOOM, touched=touched)

    def strikes(self, fault: Fault, address: Address) -> bool:
        failed = sum(isinstance(f.event, E.StageFailed) and f[1:3] == address for f in self.log)
        return fault.times is None or failed < fault.times

    def happened(self, what: str, address: Address, changes: Mapping[str, Raw] = {}) -> None:
        self.outside.append(Happened(len(self.log), what, address, changes))

    def perform(self, command: Command) -> Input:
        done = super().perform(command)
        if isinstance(done, C.StageSucceeded) and self.is_once(done.address):
            puts = {e.key: e.value for e in done.effects if isinstance(e, E.StatePut)}
            self.happened("done", done.address, puts)
        return done

    def perform_unseen(self, command: Command) -> Input:
        if not isinstance(command, C.RollBack):
            return super().perform_unseen(command)
        address, block = command
        self.happened("undo", address)
        drawn = number("undo", *address, self.salt)
        if drawn % 4 == 0:
            return C.RolledBack(address, block, (), BOOM)
        sides = lanes.around(self.program, address)
        there = all(lanes.owner_of(lane, at.visit) in self.state.core.control.forks
                    for lane, at in sides if lane.data)  # fmt: skip
        keys = [key for key in KEYS if block.path and there and self.may_write(address, key)]
        return C.RolledBack(
            address, block, tuple(E.StatePut(key, Raw(str(drawn).encode())) for key in keys[:1])
        )

    def touch(self, address: Address) -> tuple[str, ...]:
        return () if self.is_once(address) else super().touch(address)

    def effects(self, address: Address, seen: int) -> tuple[Any, ...]:
        if not self.is_once(address):
            return super().effects(address, seen)
        keys = [key for key in KEYS if self.may_write(address, key) and number(seen, key) % 2]
        return tuple(E.StatePut(key, Raw(str(seen).encode())) for key in keys)

    def is_once(self, address: Address) -> bool:
        node = self.program.nodes.get(address.path)
        return isinstance(node, StageNode) and node.effect == "once"

    def decisions(self) -> tuple[C.Decided, ...]:
        if self.state.status == "running" and self.scheduler.chance(0.5):
            return ()
        return tuple(map(self.decision, undecided(self.program, self.state)))

    def decision(self, address: Address) -> C.Decided:
        """The truth, as somebody found it outside."""
        for known in self.outside:
            if known.what == "done" and known.address == address:
                return C.Decided(address, "skip", dict(known.changes))
        return C.Decided(address, "retry", {})


def faulty(
    ir: WorkflowIR, salt: int, schedule: int, faults: Mapping[tuple[str, Address], Fault]
) -> FaultyWorld:
    return FaultyWorld(compile_workflow(ir), salt, Scheduler(schedule), faults=dict(faults))


def killed(world: FaultyWorld, head: int, schedule: int = 0) -> FaultyWorld:
    """What a process finds after one that died; what had just begun outside may have happened."""
    rng = random.Random(schedule)
    outside = [h for h in world.outside if h.head < head or (h.head == head and rng.random() < 0.5)]
    return replace(
        world,
        scheduler=Scheduler(schedule),
        log=world.log[:head],
        batches=[b for b in world.batches if b <= head],
        state=world.states[head].copy(),
        states=world.states[: head + 1],
        live={},
        closed=dict(world.closed),
        performed=[],
        asked_for=told(outstanding(world.program, world.states[head])),
        rewound=False,
        cut_short=set(),
        outside=outside,
    )


# --- choosing what goes wrong ---


def chosen(
    world: FaultyWorld, rng: random.Random, count: int, *, exact: bool = False
) -> dict[tuple[str, Address], Fault]:
    """Faults at places that a run came to. `exact`: some last just longer than the retries."""
    asked = [c for _, c in world.performed if not isinstance(c, C.AwaitRetry | C.RollBack)]
    found: dict[tuple[str, Address], Fault] = {}
    for command in rng.sample(asked, min(len(asked), count)):
        kind, address = type(command).__name__, command.address
        node = world.program.nodes.get(address.path)
        if not isinstance(command, C.RunStage) or not isinstance(node, StageNode):
            found[kind, address] = Fault(touch=rng.random() < 0.7)
            continue
        retries = node.retry.retries if node.retry is not None else 0
        times: list[int | None] = [None, retries, *([retries + 1] if exact else [])]
        limits = [
            Address(path, address.visit[: len(world.program.loops[path])])
            for path, other in world.program.nodes.items()
            if isinstance(other, TimeoutNode) and address.path.startswith(f"{path}/")
        ]
        if limits and rng.random() < 0.4:
            found[kind, address] = Fault(hang=rng.choice(limits))
        else:
            again = exact or rng.random() < 0.8
            found[kind, address] = Fault(rng.choice(times), rng.random() < 0.7, again)
    return found


class Scenario(NamedTuple):
    """A workflow, and what goes wrong in it."""

    ir: WorkflowIR
    faults: Mapping[tuple[str, Address], Fault]


def scenario(seed: int, *, once: bool = False, exact: bool = False) -> Scenario | None:
    """A large workflow with faults, also in what only runs because of others; None: too long."""
    ir = Grower(seed, failures=True, once=once).workflow()
    rng = random.Random(seed)
    faults: dict[tuple[str, Address], Fault] = {}
    for turn in range(2):
        world = faulty(ir, seed, seed + turn, faults)
        try:
            world = settle(drive(world, 250), seed)
        except TooLong:
            return None
        faults |= chosen(world, rng, rng.choice((0, 1, 1, 2)), exact=exact)
    try:
        drive(faulty(ir, seed, seed, faults), 400)
    except TooLong:
        return None
    return Scenario(ir, faults)


# --- running to the end ---


def drive(world: FaultyWorld, limit: int = 4_000) -> FaultyWorld:
    """Run it, or what is left of it, until it has ended."""
    if world.log:
        world.drive(world.resume(), limit)
    else:
        world.run(limit)
    return world


def failure_of(world: World) -> Fact:
    """The end of a run that failed."""
    (*_, fact) = [fact for fact in world.log if isinstance(fact.event, E.RunFailed)]
    return fact


def settle(world: FaultyWorld, schedule: int = 0) -> FaultyWorld:
    """Mend what ended it, decide what is undecided and resume, until it is completed."""
    for turn in range(60):
        if world.state.status == "completed":
            return world
        end = failure_of(world)
        assert isinstance(end.event, E.RunFailed)
        faults = world.faults
        if end.event.failure.type != "EffectUndecided":
            at = Address(*end[1:3])
            faults = {key: f for key, f in faults.items() if key[1] != at and f.hang != at}
        world = drive(replace(killed(world, len(world.log), schedule + turn), faults=faults))
    raise AssertionError("it never came to its end")


# --- what is the same in the end ---


def caught(program: Program, log: list[Fact]) -> list[Address]:
    """The parallels that failed and were caught: nothing of them is left."""
    over = [Address(*fact[1:3]) for fact in log if isinstance(fact.event, E.FailureHandled)]
    kinds = ParallelNode | ParallelOverNode
    return [
        f.event.stood
        for f in log
        if isinstance(f.event, E.BlockFailed)
        and isinstance(program.nodes.get(f.event.stood.path), kinds)
        and Address(*f[1:3]) in over
    ]


def essence(world: World) -> dict[str, Any]:
    """What of a run must not depend on when it died, in what order things went, or what failed."""
    live = counted(world.log)
    gone = caught(world.program, live)
    kept = [f for f in live if not any(within(Address(*f[1:3]), at) for at in gone)]
    undone = {
        at
        for f in live
        if isinstance(f.event, E.BlockFailed) and f.event.ends in ("block", "stage")
        for at in f.event.undo
    }
    taken = {f[1:3] for f in kept if isinstance(f.event, E.ItemTaken | E.ItemDiscarded)}
    kept = [
        f
        for f in kept
        if not isinstance(f.event, E.ItemProduced)
        or (f.event.failure is None and (feeds.loop_of(Address(*f[1:3])).path, f.visit) in taken)
    ]
    events: dict[Address, list[E.Event]] = {}
    for at, found in outcome(kept, saves=False).items():
        events[at] = []
        for event in (_bare(event, at, undone) for event in found):
            again = isinstance(event, E.StageRolledBack) and event in events[at]
            if event is not None and not again:  # a hook runs at least once
                events[at].append(event)
    return {
        "status": world.state.status,
        "data": plain(world.state.core.data),
        "events": {at: found for at, found in events.items() if found},
        "closed": {
            (name, Address(*f[1:3])): world.closed.get((name, Address(*f[1:3])))
            for f in kept
            if isinstance(f.event, E.ResourcesClosed)
            for name in f.event.names
        },
    }


def _bare(event: E.Event, at: Address, undone: set[Address]) -> E.Event | None:
    match event:
        case E.BlockFailed():
            return None
        case E.StageRolledBack():
            return event if at in undone else None
        case E.FailureHandled():
            return E.FailureHandled()
        case E.StageCompleted():
            return E.StageCompleted()
        case _:
            return event


def doubled(world: FaultyWorld) -> list[Address]:
    """Where something was done twice that must not be."""
    count = Counter(each.address for each in world.outside if each.what == "done")
    return [address for address, times in count.items() if times > 1]


def overspent(world: FaultyWorld) -> list[tuple[Address, int]]:
    """Where more attempts failed than the budget holds, since the run had last failed, was sent
    another way, or was forked."""
    spent: Counter[Address] = Counter()
    over: list[tuple[Address, int]] = []
    for event, path, visit, _ in world.log:
        at = Address(path, visit)
        mended = isinstance(event, E.RunResumed) and event.after == "failure"
        turned = isinstance(event, E.RunRewound) and event.asked
        if mended or turned or isinstance(event, E.RunForked):
            spent.clear()
        elif isinstance(event, E.StageCompleted):
            spent.pop(at, None)
        elif isinstance(event, E.StageFailed):
            spent[at] += 1
            node = world.program.nodes[path]
            assert isinstance(node, StageNode)
            if spent[at] > 1 + (node.retry.retries if node.retry is not None else 0):
                over.append((at, spent[at]))
    return over

"""A world in memory for the kernel: it performs commands with made-up user code.

Everything that this user code does follows from the address and from what it can see (the
state, and the resources that it touches), as real user code's would. So two histories are equal
if and only if nothing was lost, doubled or reordered.

Taking a run up follows `kitchen.runner.resume`: each factory sees the state and the resources as
they were when it was first called, and in the end all are loaded as the cut has them. What needs
live objects is left to the crash matrix: resources that hold on to others and touch them so,
items that are asked for again, and a workflow that has changed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Raw

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.commands import Command, Input
from kitchen.machine.decide import decide, outstanding
from kitchen.machine.events import Address, Fact, Host
from kitchen.machine.fold import ListRecall, apply, fold
from kitchen.machine.state import ResourceState, State
from kitchen.workflow.ir import (
    CheckpointNode,
    CodeRef,
    ConditionalNode,
    LoopNode,
    Node,
    ResourceNode,
    StageNode,
    WorkflowIR,
    to_json,
)

LIFE = (
    E.RunResumed, E.RunRewound, E.StageInterrupted, E.ResourceRestored, E.RunInterrupted,
)  # fmt: skip


def number(*parts: object) -> int:
    """A number that looks random and follows from the parts."""
    text = "\n".join(map(repr, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


@dataclass
class World:
    """One process's view: the log outlives it, `live` does not."""

    program: Program
    salt: int
    log: list[Fact] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    state: State = field(default_factory=State)
    live: dict[str, int] = field(default_factory=dict)
    performed: list[tuple[int, Command]] = field(default_factory=list)
    check: bool = False

    # --- the runner's part ---

    def step(self, given: Input) -> Sequence[Command]:
        before = set(outstanding(self.program, self.state))
        facts, commands, control = decide(self.program, self.state, given)
        self.log += facts
        self.batches.append(len(self.log))
        for fact in facts:
            apply(self.program, self.state, fact, ListRecall(self.program, self.log))
            if self.check:
                assert fold(self.program, self.log[: self.state.seq]) == self.state
        assert control is None or control == self.state.core.control
        after = outstanding(self.program, self.state)
        if not isinstance(given, C.Resume | C.Continue):
            assert set(commands) == set(after) - before
        assert self.state.status == "running" or not commands
        return commands

    def run(self, limit: int = 10_000) -> None:
        """From the first event to the last."""
        self.drive(self.step(C.Start(started(self.program.ir))), limit)

    def drive(self, commands: Sequence[Command], limit: int = 10_000) -> None:
        pending = list(commands)
        while pending:
            limit -= 1
            assert limit > 0, "a run that does not end"
            command = pending.pop(0)
            self.performed.append((self.state.incarnation, command))
            pending += self.step(self.perform(command))

    def resume(self) -> Sequence[Command]:
        """What a new process does with the log that it finds."""
        self.step(C.Resume(Host()))
        resources = self.state.core.resources
        past = ListRecall(self.program, self.log)
        for name, known in resources.items():
            then = past.state_at(self.asked(known))
            for other, was in then.core.resources.items():
                self.load(other, was)
            self.open(name, Address(known.path, known.visit), then)
        for name, known in resources.items():
            self.load(name, known)
        for name, known in list(resources.items()):
            self.step(C.ResourceReturned(name, known.saved))
        return self.step(C.Continue())

    def asked(self, known: ResourceState) -> int:
        """The seq at which its factory was called: what it touched is told before its opening."""
        seq = known.opened - 1
        while isinstance(self.log[seq - 1].event, E.ResourceTouched):
            if self.log[seq - 1][1:3] != (known.path, known.visit):
                break
            seq -= 1
        return seq

    def load(self, name: str, known: ResourceState) -> None:
        """What its checkpoint of that time holds; without one it is as its factory made it."""
        if known.manifest is not None:
            self.live[name] = int(bytes(known.manifest.tree))

    # --- the user's part ---

    def perform(self, command: Command) -> Input:
        match command:
            case C.RunStage(address, attempt):
                touched = self.touch(address)
                seen = number("stage", *address, self.data(), self.contents(touched), self.salt)
                return C.StageSucceeded(address, attempt, self.effects(seen), touched)
            case C.OpenLoop(address):
                touched = self.touch(address)
                count = number("loop", *address, self.contents(touched), self.salt) % 4
                return C.CollectionOpened(address, E.RangeItems(count), touched)
            case C.EvaluateCondition(address):
                touched = self.touch(address)
                seen = number("ask", *address, self.data(), self.contents(touched), self.salt)
                return C.ConditionAnswered(address, seen % 2 == 0, touched)
            case C.OpenResource(address, name):
                touched = self.open(name, address, self.state)
                node = self.program.nodes[address.path]
                assert isinstance(node, ResourceNode)
                return C.ResourceReady(address, node.stateful is not False, touched)
            case C.CloseResources(address, names):
                for name in names:
                    self.live.pop(name, None)
                return C.BlockClosed(address)
            case C.SaveCheckpoint(address):
                names = self.state.unsaved
                return C.CheckpointWritten(
                    address, {n: E.Manifest(Raw(str(self.live[n]).encode())) for n in names}
                )

    def touch(self, address: Address) -> tuple[str, ...]:
        """Some of the open resources are used; those that are stateful change."""
        names = [n for n in self.live if number("touch", *address, n, self.salt) % 3 == 0]
        for name in self.state.stateful(names):
            self.live[name] = number("used", *address, self.live[name])
        return tuple(names)

    def open(self, name: str, address: Address, seen: State) -> tuple[str, ...]:
        """The factory. One that is not stateful keeps for good what it saw, as a frozen copy does.

        While something is touched and not saved, what it saw could not be had again, of that
        resource or of one that was made from it: then it keeps nothing.
        """
        node = self.program.nodes[address.path]
        assert isinstance(node, ResourceNode)
        touched = self.touch(address)
        made = number("open", name, *address, self.data(seen), self.contents(touched))
        lost = node.stateful is False and touched and seen.dirty
        self.live[name] = 0 if lost else made
        return touched

    def effects(self, seen: int) -> tuple[Any, ...]:
        key = f"k{seen % 3}"
        effects: list[Any] = [E.StatePut("last", Raw(str(seen).encode()))]
        if seen % 2:
            effects.append(E.StatePut(key, Raw(str(seen).encode())))
        if key in self.state.core.data:
            effects.append(E.StateIncremented(key, Raw(b"1")))
        if seen % 5 == 0:
            effects.append(E.MetricRecorded("m", Raw(str(seen).encode())))
        return tuple(effects)

    def data(self, state: State | None = None) -> list[tuple[str, bytes]]:
        cells = (state or self.state).core.data
        return sorted((key, bytes(cell.base)) for key, cell in cells.items())

    def contents(self, names: tuple[str, ...]) -> list[int]:
        return [self.live[name] for name in names]


def started(ir: WorkflowIR) -> E.RunStarted:
    return E.RunStarted(ir.name, Raw(to_json(ir)), "", Raw(b"{}"))


def new_world(ir: WorkflowIR, salt: int, *, check: bool = False) -> World:
    return World(compile_workflow(ir), salt, check=check)


def crashed(world: World, head: int) -> World:
    """What a process finds that comes after one that died with `head` events in the log."""
    log = world.log[:head]
    batches = [b for b in world.batches if b <= head]
    return World(world.program, world.salt, log, batches, fold(world.program, log))


def counted(log: list[Fact]) -> list[Fact]:
    """The events that count, without what tells of crashes and of attempts."""
    kept: list[tuple[int, Fact]] = []
    for seq, fact in enumerate(log, 1):
        if isinstance(fact.event, E.RunRewound):
            while kept and kept[-1][0] > fact.event.to:
                kept.pop()
        elif not isinstance(fact.event, LIFE):
            kept.append((seq, fact))
    return collapse([fact._replace(attempt=0) for _, fact in kept])


def collapse(facts: list[Fact]) -> list[Fact]:
    """A visit that was started again after a crash started once."""
    seen: Counter[Fact] = Counter()
    told: list[Fact] = []
    for fact in facts:
        if isinstance(fact.event, E.StageStarted):
            seen[fact] += 1
            if seen[fact] > 1:
                continue
        told.append(fact)
    return told


class Grower:
    """Workflows larger than hypothesis likes to draw, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.names = (f"n{i}" for i in itertools.count())

    def workflow(self) -> WorkflowIR:
        resource = ResourceNode(next(self.names), _CODE)
        return WorkflowIR("grown", (resource, *self.block(3), *self.block(2)))

    def block(self, depth: int) -> tuple[Node, ...]:
        return tuple(self.node(depth) for _ in range(self.rng.randint(1, 3)))

    def node(self, depth: int) -> Node:
        name = next(self.names)
        kinds = (
            ["stage"] * 4 + ["resource", "checkpoint"] + ["loop", "conditional"] * 2 * (depth > 0)
        )
        match self.rng.choice(kinds):
            case "stage":
                return StageNode(name, _CODE)
            case "resource":
                return ResourceNode(name, _CODE, self.rng.choice([None, None, False]))
            case "checkpoint":
                return CheckpointNode(name)
            case "loop":
                return LoopNode(name, _CODE, self.block(depth - 1))
            case _:
                other = self.block(depth - 1) if self.rng.random() < 0.5 else ()
                return ConditionalNode(name, _CODE, self.block(depth - 1), other)


_CODE = CodeRef("m", "q")

"""A world in memory for the kernel: it performs commands with made-up user code.

Everything that this user code does follows from the address and from what it can see (the
state, the item, and the resources that it touches), as real user code's would. So two histories
are equal if and only if nothing was lost, doubled or reordered.

What is outstanding at the same time runs at the same time: a command *begins* (then it sees what
there is to see) and *completes* later, and a `Scheduler` picks the order. Several completions may
be decided one after another and appended as one. A process may die at every append.

Side by side, this user code keeps to the rules: a key or a stateful resource is changed by one
side only, unless the parallel merges it (`Manners`).

A rewind in the middle drops what is being performed and brings the resources back as a resume
does. `tests.machine.faults` has user code that fails, and hooks.

Taking a run up follows `kitchen.runner.resume`: each factory sees the state and the resources as
they were when it was first called, and in the end all are loaded as the cut has them. What needs
live objects is left to the crash matrix: resources that hold on to others and touch them so,
items that are asked for again, and a workflow that has changed.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Raw

from kitchen.log.live import of_rewinds
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds, lanes
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.commands import Command, Input
from kitchen.machine.control import stoppable
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact, Host
from kitchen.machine.fold import apply, fold
from kitchen.machine.layout import Lane
from kitchen.machine.outstanding import is_outstanding, outstanding, within
from kitchen.machine.state import Cell, ResourceState, State
from kitchen.workflow.ir import (
    AsyncLoopNode,
    ParallelNode,
    ParallelOverNode,
    ResourceNode,
    WorkflowIR,
    to_json,
)

KEYS = ("last", "k", "l", "odd key/?")
LIST = "list"
TURNS = 5
BOOM = E.Failure("Boom", "as it was told to")


def number(*parts: object) -> int:
    """A number that looks random and follows from the parts."""
    text = "\n".join(map(repr, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


class TooLong(Exception):
    """A run of more steps than a test has time for."""


class Scheduler:
    """Picks what happens next. With a `script`, its choices come first, then always the first.

    `eager`: a command begins when it is asked. `taken` tells the choices made, and out of how many.
    """

    def __init__(
        self, seed: int = 0, *, script: Sequence[int] | None = None, eager: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.script = script
        self.eager = eager or self.rng.random() < 0.2
        self.taken: list[tuple[int, int]] = []
        self.slow = self.rng.choice((None, None, C.Produce, C.RunStage, C.EvaluateCondition))
        self.newest = self.rng.random() < 0.3
        self.grouping = self.rng.choice((0.0, 0.2, 0.6))
        self.flushing = self.rng.choice((0.0, 0.3))

    def choose(self, count: int) -> int:
        """One of so many."""
        if self.script is None:
            return self.rng.randrange(count)
        at = len(self.taken)
        chosen = self.script[at] if at < len(self.script) else 0
        self.taken.append((chosen, count))
        return chosen

    def pick(self, tasks: list[Task]) -> Task:
        """The task that begins or completes next."""
        if self.script is None and self.slow and self.rng.random() < 0.9:
            tasks = [t for t in tasks if not isinstance(t.command, self.slow)] or tasks
        if self.script is None and self.newest and self.rng.random() < 0.8:
            return tasks[-1]
        return tasks[self.choose(len(tasks))]

    def chance(self, probability: float) -> bool:
        return self.script is None and self.rng.random() < probability


@dataclass
class Task:
    """A command being performed; `outcome` once it has begun."""

    command: Command
    outcome: Input | None = None


@dataclass
class World:
    """One process's view: the log outlives it, `live` does not.

    `states[seq]` is the state folded that far, so that looking back costs nothing. `closed` tells
    what was in a resource when it was closed. `failing`: the addresses where user code raises.
    `stop_after`: after so many appends nothing more begins, and the run is interrupted.
    """

    program: Program
    salt: int
    scheduler: Scheduler = field(default_factory=Scheduler)
    log: list[Fact] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    state: State = field(default_factory=State)
    states: list[State] = field(default_factory=lambda: [State()])
    live: dict[str, int] = field(default_factory=dict)
    closed: dict[tuple[str, Address], int] = field(default_factory=dict)
    performed: list[tuple[int, Command]] = field(default_factory=list)
    failing: frozenset[Address] = frozenset()
    check: bool = False
    rude: bool = False
    stop_after: int | None = None
    asked_for: set[tuple[str, Command]] = field(default_factory=set)
    rewound: bool = False
    cut_short: set[str] = field(default_factory=set)

    # --- the runner's part ---

    def step(self, given: Input, *, append: bool = True) -> Sequence[Command]:
        before = self.asked_for
        facts, commands, control = decide(self.program, self.state, given)
        self.rewound = any(isinstance(fact.event, E.RunRewound) for fact in facts)
        self.log += facts
        for fact in facts:
            apply(self.program, self.state, fact, self)
            self.states.append(self.state.copy())
            if self.check:
                assert fold(self.program, self.log[: self.state.seq]) == self.state
        assert control is None or control == self.state.core.control
        if append:
            self.batches.append(len(self.log))
        after = self.asked_for = told(outstanding(self.program, self.state))
        if isinstance(given, C.Continue | C.Preserved):
            assert told(commands) == after
        elif self.rewound:
            assert not commands
        elif not isinstance(given, C.Resume):
            assert told(commands) == after - before
        assert self.state.status == "running" or not commands
        return commands

    def state_at(self, seq: int) -> State:
        return self.states[seq].copy()

    def facts(self, after: int, until: int) -> Iterable[Fact]:
        return self.log[after : until - 1]

    def run(self, limit: int = 10_000) -> None:
        """From the first event to the last."""
        self.drive(self.step(C.Start(started(self.program.ir))), limit)

    def drive(self, commands: Sequence[Command], limit: int = 10_000) -> None:
        """Perform what is asked, and what is asked then, until nothing is."""
        tasks: list[Task] = []
        self._ask(tasks, commands)
        while tasks:
            limit -= 1
            if limit < 0:
                raise TooLong
            if self.stop_after is not None and len(self.batches) >= self.stop_after:
                begun = [task for task in tasks if task.outcome is not None]
                if not begun:
                    self.interrupt()
                    return
                task = self.scheduler.pick(begun)
            else:
                task = self.scheduler.pick(tasks)
            if task.outcome is None:
                self._begin(task)
                continue
            if self._flush(task):
                continue
            asked = self._complete(tasks, task)
            still = [c for c in asked if is_outstanding(self.program, self.state, c)]
            self._ask(tasks, still)
            assert told([t.command for t in tasks]) == self.asked_for
        assert self.state.status != "running", "a run that waits for nothing"

    def _complete(self, tasks: list[Task], task: Task) -> list[Command]:
        """Decide what came of a task, and of others; what is asked then."""
        asked: list[Command] = []
        while True:
            tasks.remove(task)
            assert task.outcome is not None
            asked += self.step(task.outcome, append=False)
            if self.rewound:
                self.batches.append(len(self.log))
                tasks.clear()
                return list(self.bring_back())
            for other in list(tasks):
                if not is_outstanding(self.program, self.state, other.command):
                    self.stopped(other)
                    tasks.remove(other)
            ready = [t for t in tasks if t.outcome is not None]
            if not ready or not self.scheduler.chance(self.scheduler.grouping):
                break
            task = self.scheduler.pick(ready)
        self.batches.append(len(self.log))
        return asked

    def stopped(self, task: Task) -> None:
        """What is wanted no more is cancelled; it may have used something."""
        touched = getattr(task.outcome, "touched", ())
        self.cut_short.update(touched)

    def interrupt(self) -> None:
        """Nothing is being performed: save what must be, and stop."""
        saved = {n: E.Manifest(Raw(str(self.live[n]).encode())) for n in self.state.unsaved}
        self.step(C.CheckpointWritten(None, saved))
        self.step(C.Interrupt("SIGINT"))

    def _ask(self, tasks: list[Task], commands: Sequence[Command]) -> None:
        for command in commands:
            self.performed.append((self.state.incarnation, command))
            task = Task(command)
            if self.scheduler.eager and self.stop_after is None:
                self._begin(task)
            tasks.append(task)

    def _begin(self, task: Task) -> None:
        if task.command.address in self.failing:
            address = task.command.address
            touched = self.touch(address)
            if isinstance(task.command, C.RunStage):
                attempt = task.command.attempt
                task.outcome = C.StageRaised(address, attempt, BOOM, touched=touched)
            else:
                task.outcome = C.CommandFailed(address, BOOM, touched=touched)
        else:
            task.outcome = self.perform(task.command)

    def _flush(self, task: Task) -> bool:
        """Metrics of a stage that goes on may reach the log before it ends."""
        done = task.outcome
        if not isinstance(done, C.StageSucceeded) or not done.effects:
            return False
        if not isinstance(done.effects[0], E.MetricRecorded):
            return False
        if not self.scheduler.chance(self.scheduler.flushing):
            return False
        first, *rest = done.effects
        assert isinstance(first, E.MetricRecorded)
        assert not self.step(C.MetricsFlushed(done.address, done.attempt, (first,)))
        task.outcome = done._replace(effects=tuple(rest), flushed=(*done.flushed, first))
        return True

    def resume(self) -> Sequence[Command]:
        """What a new process does with the log that it finds."""
        self.step(C.Resume(Host(), None, self.decisions()))
        if self.state.status != "running":
            return ()
        return self.bring_back()

    def decisions(self) -> tuple[C.Decided, ...]:
        """What somebody says of effects of which nobody knows."""
        return ()

    def bring_back(self) -> Sequence[Command]:
        """The resources as the state has them, and on."""
        assert not self.state.dirty or Address("") in self.state.core.control.failing
        self.live.clear()
        self.cut_short.clear()
        resources = self.state.core.resources
        for name, known in resources.items():
            then = self.state_at(self.asked(known))
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
                looked = self.peek(address, touched)
                seen = self.look("stage", address, touched + looked)
                effects = self.effects(address, seen)
                return C.StageSucceeded(address, attempt, effects, touched, (), looked)
            case C.OpenLoop(address):
                touched = self.touch(address)
                looked = self.peek(address, touched)
                count = self.look("loop", address, touched + looked) % 4
                return C.CollectionOpened(address, E.RangeItems(count), touched, looked)
            case C.EvaluateCondition(address):
                touched = self.touch(address)
                looked = self.peek(address, touched)
                seen = self.look("ask", address, touched + looked)
                loop = feeds.loop_of(address)
                late = loop in self.state.core.control.feeds and address.visit[-1] >= TURNS - 1
                return C.ConditionAnswered(address, late or seen % 3 == 0, touched, looked)
            case C.OpenBranches(address):
                touched = self.touch(address)
                looked = self.peek(address, touched)
                seen = self.look("fork", address, touched + looked)
                over = isinstance(self.program.nodes[address.path], ParallelOverNode)
                items = E.RangeItems(seen % 4) if over else None
                return C.BranchesOpened(address, 1 + seen // 4 % 3, items, touched, looked)
            case _:
                return self.perform_unseen(command)

    def perform_unseen(self, command: Command) -> Input:
        """What no user code looks at the state for, or looks in another way."""
        match command:
            case C.JoinBranches(address):
                return C.BranchesMerged(address, self.merged(address))
            case C.PullItem(address, index):
                ended = index >= number("stream", *address, self.salt) % 4
                value = number("pull", *address, index, self.salt)
                item = E.ItemTaken(Raw(str(value).encode()), f"{value:x}")
                return C.ItemPulled(address, index, None if ended else item)
            case C.Produce(address):
                return self.produce(address)
            case C.LeaveLoop(address):
                return C.LoopLeft(address)
            case C.OpenResource(address, name):
                return self.open(name, address, self.state)
            case C.CloseResources(address, names):
                for name in [name for name in names if name in self.live]:
                    self.closed[name, address] = self.live.pop(name)
                return C.BlockClosed(address)
            case C.SaveCheckpoint(address):
                names = self.state.unsaved
                return C.CheckpointWritten(
                    address, {n: E.Manifest(Raw(str(self.live[n]).encode())) for n in names}
                )
            case _:
                return self.perform_failing(command)

    def perform_failing(self, command: Command) -> Input:
        """What follows from a failure."""
        match command:
            case C.LeaveBlock(address):
                return self.leave(address)
            case C.RollBack(address, block):
                return C.RolledBack(address, block)
            case C.AwaitRetry(address, attempt):
                return C.RetryDue(address, attempt)
            case _:
                raise AssertionError(command)

    def leave(self, block: Address) -> Input:
        """Close what a block had opened, and tell what those had used who were stopped."""
        for name, known in self.state.core.resources.items():
            if within(Address(known.path, known.visit), block):
                self.live.pop(name, None)
                self.cut_short.discard(name)
        return C.BlockLeft(block, tuple(sorted(self.cut_short)))

    def touch(self, address: Address) -> tuple[str, ...]:
        """Some of the open resources are used; those that are stateful change."""
        # A producer that touches a resource does so from its first production on.
        making = address.path.endswith("/producer") and address.path not in self.program.nodes
        node = self.program.nodes[feeds.loop_of(address).path] if making else None
        several = isinstance(node, AsyncLoopNode) and node.producers > 1
        at = Address(address.path, address.visit[:-1]) if making else address
        names = [
            name
            for name in sorted(self.live)
            if number("touch", *at, name, self.salt) % 3 == 0 and self.may_touch(address, name)
        ]
        if several:
            names = []
        for name in self.state.stateful(names):
            self.live[name] = number("used", *address, self.live[name])
        return tuple(names)

    def peek(self, address: Address, touched: tuple[str, ...]) -> tuple[str, ...]:
        """Some of the stateful resources that nobody beside changes are looked at."""
        names = self.state.stateful(name for name in self.live if name not in touched)
        return tuple(
            name
            for name in names
            if number("peek", *address, name, self.salt) % 3 == 0 and self.may_peek(address, name)
        )

    def open(self, name: str, address: Address, seen: State) -> Input:
        """The factory. One that is not stateful keeps for good what it saw, as a frozen copy does.

        While something is touched and not saved, what it saw could not be had again, of that
        resource or of one that was made from it: then it says so. Some look at nothing.
        """
        node = self.program.nodes[address.path]
        assert isinstance(node, ResourceNode)
        touched = self.touch(address)
        looks = node.stateful is not False or number("looks", *address) % 2 == 0
        made = self.look("open", address, touched if looks else (), seen)
        lost = () if node.stateful is not False or not looks else touched
        self.live[name] = made
        lost = tuple(other for other in lost if other in seen.dirty)
        return C.ResourceReady(address, node.stateful is not False, touched, lost)

    def produce(self, address: Address) -> Input:
        loop, index = feeds.loop_of(address), address.visit[-1]
        node = feeds.node_of(self.program, loop.path)
        seq, version = feeds.seen(node, self.state.core.control.feeds[loop], index)
        seen = self.state if seq is None else self.states[seq]
        touched = self.touch(address)
        looked = self.peek(address, touched)
        value = self.look("make", address, touched + looked, seen)
        return C.ItemMade(address, Raw(str(value).encode()), version, touched, looked)

    def merged(self, parallel: Address) -> dict[str, Raw]:
        program, core = self.program, self.state.core
        found: dict[str, Raw] = {}
        for key in lanes.to_merge(program, core, parallel):
            written = [o[key] for _, o in lanes.branches(program, core, parallel) if key in o]
            before = lanes.read(program, core, parallel, key)
            value = number("merge", *parallel, *map(text_of, (before, *written)))
            found[key] = Raw(f"[{value}]".encode() if key == LIST else str(value).encode())
        return found

    def look(
        self, what: str, address: Address, touched: tuple[str, ...], state: State | None = None
    ) -> int:
        """A number that follows from all that can be seen from an address."""
        data = self.data(address, state)
        contents = [self.live[name] for name in touched]
        return number(what, *address, data, self.items(address), contents, self.salt)

    def items(self, address: Address) -> list[bytes]:
        """The items of the async loops around."""
        found: list[bytes] = []
        loops = self.program.loops[address.path]
        making = address.path not in self.program.nodes and address.path.endswith("/producer")
        for depth, path in enumerate(loops[:-1] if making else loops):
            if not isinstance(self.program.nodes[path], AsyncLoopNode):
                continue
            feed = self.state.core.control.feeds[Address(path, address.visit[:depth])]
            item = feeds.next_item(feed)
            assert item is not None
            event = self.log[item.seq - 1].event
            assert isinstance(event, E.ItemProduced)
            found.append(bytes(event.value))
        return found

    def effects(self, address: Address, seen: int) -> tuple[Any, ...]:
        there = lanes.view(self.program, self.state.core, address)
        text = Raw(str(seen).encode())
        keys = [key for key in (*KEYS, LIST) if self.may_write(address, key)]
        metrics: list[Any] = []
        if seen % 3 == 0:
            metrics.append(E.MetricRecorded("m", text))
        if seen % 5 == 0:
            metrics.append(E.MetricRecorded("n", text))
        done: list[Any] = []
        gone: set[str] = set()
        for place, key in enumerate(keys):
            draw = number("effect", seen, key) % (6 if place else 3)
            if key == LIST:
                if key not in there:
                    done.append(E.StatePut(key, Raw(b"[]")))
                done.append(E.StateAppended(key, Raw(f"[{seen}]".encode())))
            elif draw <= 1:
                done.append(E.StatePut(key, text))
            elif draw == 2 and key in there:
                done.append(E.StateIncremented(key, Raw(b"1")))
            elif draw == 3 and key in there and seen % 2:
                done.append(E.StateDeleted(key))
                gone.add(key)
        if seen % 11 == 0 and stoppable(self.program, address) is not None:
            done.append(E.LoopStopped())
        return (*metrics, *done)

    def data(self, address: Address, state: State | None = None) -> list[tuple[str, str]]:
        cells = lanes.view(self.program, (state or self.state).core, address)
        return plain(cells)

    # --- manners ---

    def may_write(self, address: Address, key: str) -> bool:
        """Whether a key is this side's, in every parallel around, or merged there."""
        if self.rude:
            return True
        return all(
            key in lanes.merged_keys(self.program, lane.owner) or self.owns(lane, at, key)
            for lane, at in lanes.around(self.program, address)
            if lane.data
        )

    def may_touch(self, address: Address, name: str) -> bool:
        """Whether a resource can be seen from there, and is this side's wherever sides are."""
        sides = self.sides(address, name)
        if sides is None:
            return False
        if not self.state.core.resources[name].stateful or self.rude:
            return True
        return all(self.owns(lane, at, name, nobody=1) for lane, at in sides)

    def may_peek(self, address: Address, name: str) -> bool:
        """Whether a resource can be seen from there, and no other side changes it."""
        sides = self.sides(address, name)
        return (
            not self.rude
            and sides is not None
            and all(
                self.owns(lane, at, name, nobody=1) or self.is_nobodys(lane, at, name)
                for lane, at in sides
            )
        )

    def sides(self, address: Address, name: str) -> list[tuple[Lane, Address]] | None:
        """The lanes between a resource and who uses it; None where it cannot be seen."""
        known = self.state.core.resources.get(name)
        if known is None:  # opened by this very process, not yet told
            return None
        around = list(lanes.around(self.program, address))
        own = list(lanes.around(self.program, Address(known.path, known.visit)))
        return around[len(own) :] if around[: len(own)] == own else None

    def owns(self, lane: Lane, at: Address, what: str, nobody: int = 0) -> bool:
        """Whether something is this side's; with `nobody`, it may be no side's at all."""
        sides, side = self.side(lane, at)
        owner = lanes.owner_of(lane, at.visit)
        return number("owns", *owner, what, self.salt) % (sides + nobody) == side

    def is_nobodys(self, lane: Lane, at: Address, what: str) -> bool:
        sides, _ = self.side(lane, at)
        owner = lanes.owner_of(lane, at.visit)
        return number("owns", *owner, what, self.salt) % (sides + 1) == sides

    def side(self, lane: Lane, at: Address) -> tuple[int, int]:
        """How many sides there are, and which this is."""
        owner = lanes.owner_of(lane, at.visit)
        node = self.program.nodes[lane.owner]
        if isinstance(node, ParallelNode):
            names = [branch.name for branch in node.branches]
            return len(names), names.index(at.path.rpartition("/")[2])
        if isinstance(node, AsyncLoopNode):
            return 2, int(at.path == lane.owner)
        return self.state.core.control.forks[owner].total, at.visit[-1]


def told(commands: Sequence[Command]) -> set[tuple[str, Command]]:
    """The commands with their kinds: two named tuples with the same fields are equal."""
    kinds = {(type(command).__name__, command) for command in commands}
    assert len(kinds) == len(commands)
    return kinds


def text_of(cell: Cell | None) -> str:
    """A value as it can be compared: the text that was put, and what was added."""
    if cell is None:
        return ""
    added = (f"{delta.kind} {bytes(delta.values).decode()}" for delta in cell.deltas)
    return "; ".join((bytes(cell.base).decode(), *added))


def plain(cells: Mapping[str, Cell]) -> list[tuple[str, str]]:
    """The state as it can be compared."""
    return sorted((key, text_of(cell)) for key, cell in cells.items())


def started(ir: WorkflowIR) -> E.RunStarted:
    return E.RunStarted(ir.name, Raw(to_json(ir)), "", Raw(b"{}"))


def new_world(ir: WorkflowIR, salt: int, schedule: int = 0, **options: Any) -> World:
    return World(compile_workflow(ir), salt, Scheduler(schedule), **options)


def crashed(world: World, head: int, schedule: int = 0) -> World:
    """What a process finds that comes after one that died with `head` events in the log."""
    return World(
        world.program,
        world.salt,
        Scheduler(schedule),
        log=world.log[:head],
        batches=[b for b in world.batches if b <= head],
        state=world.states[head].copy(),
        states=world.states[: head + 1],
        closed=dict(world.closed),
        asked_for=told(outstanding(world.program, world.states[head])),
    )


def counted(log: Sequence[Fact]) -> list[Fact]:
    """The events that no rewind has superseded."""
    backs = [
        (seq, fact.event.to)
        for seq, fact in enumerate(log, 1)
        if isinstance(fact.event, E.RunRewound)
    ]
    live = of_rewinds(backs, len(log))
    return [fact for seq, fact in enumerate(log, 1) if live.counts(seq)]


_LIFE = (
    E.RunResumed, E.RunRewound, E.StageStarted, E.StageInterrupted, E.StageFailed, E.BranchFailed,
    E.RunFailed, E.ResourceRestored, E.RunInterrupted, E.RetryScheduled, E.EffectDecided,
    E.BlockFailed, E.RunForked, E.RunEdited,
)  # fmt: skip
_EFFECTS = (
    E.StatePut, E.StateDeleted, E.StateAppended, E.StateIncremented, E.StateMerged,
    E.MetricRecorded, E.LoopStopped,
)  # fmt: skip


def outcome(log: Sequence[Fact], *, saves: bool = True) -> dict[Address, list[E.Event]]:
    """What has happened at each address, as it does not depend on chance.

    Without what tells of crashes, of what was tried and came to nothing, of items that were made and
    not taken, and of when a resource that a producer owns was saved. `saves`: with what tells when
    any was.
    """
    live = counted(log)
    committed = {fact[1:] for fact in live if isinstance(fact.event, E.StageCompleted)}
    loops = {fact.path for fact in live if isinstance(fact.event, E.ItemProduced)}
    gone = {
        Address(f"{fact.path}/producer", fact.visit)
        for fact in live
        if isinstance(fact.event, E.ItemDiscarded) and fact.event.reason == "left"
    }
    found: dict[Address, list[E.Event]] = defaultdict(list)
    for event, path, visit, attempt in live:
        at = Address(path, visit)
        if isinstance(event, _LIFE) or at in gone:
            continue
        if isinstance(event, _EFFECTS) and (path, visit, attempt) not in committed:
            continue
        if isinstance(event, E.ItemDiscarded) and event.reason == "left":
            continue
        if (loops or not saves) and isinstance(event, E.ResourceTouched | E.CheckpointSaved):
            continue
        if isinstance(event, E.BranchStarted) and event in found[at]:
            continue  # one that failed begins again once there is a place for it
        if not saves and isinstance(event, E.ResourceOpened):  # what was lost depends on saves
            found[at].append(E.ResourceOpened(event.name, event.stateful, event.touched))
        else:
            found[at].append(event)
    return dict(found)

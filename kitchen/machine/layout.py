"""The layout: where tokens rest, and the arrows between, read off the IR.

Rules:

1. A token rests on a *leaf*. What waits for an answer, or for others, has pseudo-leaves, named
   with a `?`: a loop's `?enter` and `?next`, a conditional's `?ask`, a parallel's `?fork`, a
   branch's `?wait`, `?end` and `?done`, an async loop's `?begin`, `?make`, `?take`, `?turn` and
   `?leave`, a time limit's `?arm` and `?disarm`, a block's `?close` where it opened resources, the
   root's `?end`.
2. A leaf's `name` is its place in the machine, its `path` the node that its events are told at.
   They differ inside a parallel, where every branch is a region with leaves of its own, and
   inside an async loop, whose regions are `?producer` and `?consumer`.
3. An arrow names a verb and the path of its node (`done:epochs/train`), so no trigger can move
   a region that it does not concern.
4. The last node of a block goes straight to what follows the block, but never across the border
   of a region: there it goes to the region's `?end` or `?turn`.
5. A *lane* is what is entered beside others: a branch, or one side of an async loop. It says who
   may write what (`lanes.py`). The body of a `parallel(over=…)` is one lane for each item.
6. A node whose failure is handled (it says so, or a handler stands behind it) is *guarded*: from
   wherever it stands an arrow leads to what follows then.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kitchen.workflow import ir as IR
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    CheckpointNode,
    ConditionalNode,
    HandlerNode,
    IncludeNode,
    LoopNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    ResourceNode,
    StageNode,
    StreamLoopNode,
    TimeoutNode,
    WorkflowIR,
    join,
)


class Role(enum.Enum):
    """What a leaf waits for."""

    STAGE = "stage"
    ENTER = "enter"
    NEXT = "next"
    PULL = "pull"
    ASK = "ask"
    FORK = "fork"
    WAIT = "wait"
    FINISH = "finish"
    DONE = "done"
    BEGIN = "begin"
    MAKE = "make"
    TAKE = "take"
    TURN = "turn"
    LEAVE = "leave"
    OPEN = "open"
    SAVE = "save"
    ARM = "arm"
    DISARM = "disarm"
    CLOSE = "close"
    END = "end"


class Lane(NamedTuple):
    """One of several sides by side, in the parallel or async loop at the path `owner`.

    `around` and `depth`: how many loop indices the addresses of the owner and of the lane have.
    `data`: whether it has a state of its own until the join.
    """

    owner: str
    path: str
    around: int
    depth: int
    data: bool

    @property
    def many(self) -> bool:
        """Whether there is one for each item of a collection."""
        return self.depth > self.around


class Around(NamedTuple):
    """What stands around a node: the paths of its loops and its lanes, outermost first."""

    loops: tuple[str, ...] = ()
    lanes: tuple[Lane, ...] = ()

    def loop(self, path: str) -> Around:
        return Around((*self.loops, path), self.lanes)

    def lane(self, lane: Lane) -> Around:
        return Around(self.loops, (*self.lanes, lane))


class Leaf(NamedTuple):
    """A place where a token rests. `loops`: the paths of the loops around it, outermost first."""

    name: str
    role: Role
    path: str
    loops: tuple[str, ...]
    names: tuple[str, ...] = ()


class Guard(NamedTuple):
    """A node whose failure is handled: how many loop indices its address has; the states of it.

    `skipped`: it is a stage that says so itself.
    """

    depth: int
    states: tuple[str, ...]
    skipped: bool = False


class Move(NamedTuple):
    """An arrow of the chart, between states; where it leads to a region, to its first leaf."""

    source: str
    trigger: str
    dest: str


class Spot(NamedTuple):
    """A point in the machine and the path of the block there."""

    name: str
    path: str

    def under(self, segment: str) -> Spot:
        return Spot(join(self.name, segment), join(self.path, segment))


@dataclass
class Layout:
    """Leaves and arrows of a workflow.

    `regions[state]`: the regions of a state that is entered in several at once. `initial[state]`:
    the leaf where one is entered. `composites[path]`: the state of a parallel or an async loop.
    `waits[(path, depth)]`: the leaf where a
    branch with so many indices waits for its turn. `lanes[path]`: those around a node.
    `guards[path]`: the nodes whose failure is handled.
    """

    first: str = ""
    leaves: dict[str, Leaf] = field(default_factory=dict[str, Leaf])
    moves: list[Move] = field(default_factory=list[Move])
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    initial: dict[str, str] = field(default_factory=dict[str, str])
    composites: dict[str, str] = field(default_factory=dict[str, str])
    waits: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    lanes: dict[str, tuple[Lane, ...]] = field(default_factory=dict[str, tuple[Lane, ...]])
    guards: dict[str, Guard] = field(default_factory=dict[str, Guard])

    def leaf(
        self, name: str, role: Role, path: str, around: Around, names: tuple[str, ...] = ()
    ) -> str:
        """Add a leaf; its name."""
        self.leaves[name] = Leaf(name, role, path, around.loops, names)
        if around.lanes:
            known = self.lanes.get(path, ())
            self.lanes[path] = max(known, around.lanes, key=len)
        return name

    def move(self, source: str, verb: str, path: str, dest: str) -> None:
        """Add an arrow."""
        self.moves.append(Move(source, f"{verb}:{path}", dest))

    def simple(self, spot: Spot, role: Role, around: Around, verb: str, after: str) -> str:
        """A node with one leaf and one way on."""
        names = (spot.path.rpartition("/")[2],) if role is Role.OPEN else ()
        self.move(self.leaf(spot.name, role, spot.path, around, names), verb, spot.path, after)
        return spot.name


def lay_out(ir: WorkflowIR) -> Layout:
    """The layout of a workflow."""
    layout = Layout()
    end = layout.leaf("?end", Role.END, "", Around())
    layout.first = _block(layout, Spot("", ""), ir.body, Around(), end)
    return layout


def _block(layout: Layout, at: Spot, nodes: tuple[Node, ...], around: Around, after: str) -> str:
    """Lay out a block that continues at `after`; the name of the leaf where it begins."""
    names = tuple(node.name for node in nodes if isinstance(node, ResourceNode))
    if names:
        name = join(at.name, "?close")
        close = layout.leaf(name, Role.CLOSE, at.path, around, names)
        layout.move(close, "closed", at.path, after)
        after = close
    beyond = after  # what follows the handler, if one was laid out last
    handled = False
    for node in reversed(nodes):
        spot = at.under(node.name)
        if isinstance(node, HandlerNode):
            beyond, handled = after, True
            after = _block(layout, spot, node.body, around, after)
            continue
        first = _node(layout, spot, node, around, beyond if handled else after)
        if handled:
            _guard(layout, spot, node, around, after)
        after, handled = first, False
    return after


def _guard(layout: Layout, at: Spot, node: Node, around: Around, handler: str) -> None:
    """Have a failure of the node lead to its handler."""
    states = [at.name]
    if isinstance(node, ParallelNode | ParallelOverNode):
        states.append(f"{at.name}?fork")
    elif isinstance(node, AsyncLoopNode):
        states.append(f"{at.name}?begin")
    for state in states:
        layout.move(state, "handled", at.path, handler)
    layout.guards[at.path] = Guard(len(around.loops), tuple(states))


def _node(layout: Layout, at: Spot, node: Any, around: Around, after: str) -> str:
    """Lay out a node that continues at `after`; the name of the leaf where it begins."""
    return _LAYOUTS[type(node)](layout, at, node, around, after)


def _stage(layout: Layout, at: Spot, node: StageNode, around: Around, after: str) -> str:
    if node.on_error == "skip":
        layout.move(at.name, "skipped", at.path, after)
        layout.guards[at.path] = Guard(len(around.loops), (at.name,), skipped=True)
    return layout.simple(at, Role.STAGE, around, "done", after)


def _resource(layout: Layout, at: Spot, _node: ResourceNode, around: Around, after: str) -> str:
    return layout.simple(at, Role.OPEN, around, "opened", after)


def _checkpoint(layout: Layout, at: Spot, _node: CheckpointNode, around: Around, after: str) -> str:
    return layout.simple(at, Role.SAVE, around, "saved", after)


def _inlined(
    layout: Layout, at: Spot, node: IncludeNode | BranchNode, around: Around, after: str
) -> str:
    return _block(layout, at, node.body, around, after)


def _timeout(layout: Layout, at: Spot, node: TimeoutNode, around: Around, after: str) -> str:
    arm = layout.leaf(f"{at.name}/?arm", Role.ARM, at.path, around)
    disarm = layout.leaf(f"{at.name}/?disarm", Role.DISARM, at.path, around)
    layout.move(arm, "armed", at.path, _block(layout, at, node.body, around, disarm))
    layout.move(disarm, "disarmed", at.path, after)
    return arm


def _conditional(
    layout: Layout, at: Spot, node: ConditionalNode, around: Around, after: str
) -> str:
    ask = layout.leaf(f"{at.name}/?ask", Role.ASK, at.path, around)
    layout.move(ask, "yes", at.path, _block(layout, at, node.then, around, after))
    other = _block(layout, at.under(IR.OTHERWISE), node.otherwise, around, after)
    layout.move(ask, "no", at.path, other)
    return ask


def _loop(
    layout: Layout, at: Spot, node: LoopNode | StreamLoopNode, around: Around, after: str
) -> str:
    role = Role.NEXT if isinstance(node, LoopNode) else Role.PULL
    enter = layout.leaf(f"{at.name}/?enter", Role.ENTER, at.path, around)
    again = layout.leaf(f"{at.name}/?next", role, at.path, around)
    body = _block(layout, at, node.body, around.loop(at.path), again)
    layout.move(enter, "entered", at.path, again)
    layout.move(again, "item", at.path, body)
    layout.move(again, "exit", at.path, after)
    return enter


def _parallel(layout: Layout, at: Spot, node: ParallelNode, around: Around, after: str) -> str:
    fork = _fork(layout, at, around, after)
    depth = len(around.loops)
    regions: list[str] = []
    for branch in node.branches:
        region = at.under(branch.name)
        inside = around.lane(Lane(at.path, region.path, depth, depth, True))
        end, wait = _region(layout, region, inside)
        if isinstance(branch, BranchNode):
            first = _block(layout, region, branch.body, inside, end)
        else:  # its leaves stand below the region's, so that the two can be told apart
            inner = Spot(join(region.name, branch.name), region.path)
            first = _node(layout, inner, branch, inside, end)
        layout.move(wait, "begin", region.path, first)
        regions.append(region.name)
    layout.regions[at.name] = tuple(regions)
    return fork


def _parallel_over(
    layout: Layout, at: Spot, node: ParallelOverNode, around: Around, after: str
) -> str:
    fork = _fork(layout, at, around, after)
    depth = len(around.loops)
    inside = around.loop(at.path).lane(Lane(at.path, at.path, depth, depth + 1, True))
    end, wait = _region(layout, at, inside)
    first = _block(layout, at, node.body, inside, end)
    layout.move(wait, "begin", at.path, first)
    return fork


def _fork(layout: Layout, at: Spot, around: Around, after: str) -> str:
    fork = layout.leaf(f"{at.name}?fork", Role.FORK, at.path, around)
    layout.composites[at.path] = at.name
    layout.move(fork, "forked", at.path, at.name)
    layout.move(at.name, "joined", at.path, after)
    return fork


def _region(layout: Layout, at: Spot, inside: Around) -> tuple[str, str]:
    """The pseudo-leaves of a branch: where its last node goes to, and where it waits."""
    wait = layout.leaf(f"{at.name}/?wait", Role.WAIT, at.path, inside)
    end = layout.leaf(f"{at.name}/?end", Role.FINISH, at.path, inside)
    done = layout.leaf(f"{at.name}/?done", Role.DONE, at.path, inside)
    layout.move(end, "finished", at.path, done)
    layout.initial[at.name] = layout.waits[at.path, inside.lanes[-1].depth] = wait
    return end, wait


def _async_loop(layout: Layout, at: Spot, node: AsyncLoopNode, around: Around, after: str) -> str:
    begin = layout.leaf(f"{at.name}?begin", Role.BEGIN, at.path, around)
    layout.composites[at.path] = at.name
    layout.move(begin, "entered", at.path, at.name)
    layout.move(at.name, "exit", at.path, after)
    depth = len(around.loops)
    making, stopping = join(at.path, IR.PRODUCER), join(at.path, IR.STOP_WHEN)
    producing = around.loop(at.path).lane(Lane(at.path, making, depth, depth, False))
    producer, consumer = f"{at.name}/?producer", f"{at.name}/?consumer"
    make = layout.leaf(f"{producer}/?make", Role.MAKE, making, producing)
    layout.move(make, "produced", making, make)

    lane = Lane(at.path, at.path, depth, depth, False)
    inside = around.lane(lane)
    take = layout.leaf(f"{consumer}/?take", Role.TAKE, at.path, inside)
    leave = layout.leaf(f"{consumer}/?leave", Role.LEAVE, at.path, inside)
    turn = layout.leaf(f"{consumer}/?turn", Role.TURN, stopping, inside.loop(at.path))
    body = _block(layout, Spot(consumer, at.path), node.body, inside.loop(at.path), turn)
    layout.move(take, "item", at.path, body)
    layout.move(turn, "yes", stopping, leave)
    layout.move(turn, "no", stopping, take)
    for leaf in (take, leave, turn):
        layout.move(leaf, "discard", at.path, leaf)
    layout.regions[at.name] = (producer, consumer)
    layout.initial[producer], layout.initial[consumer] = make, take
    return begin


_LAYOUTS: dict[type[Any], Callable[[Layout, Spot, Any, Around, str], str]] = {
    StageNode: _stage,
    ResourceNode: _resource,
    CheckpointNode: _checkpoint,
    IncludeNode: _inlined,
    BranchNode: _inlined,
    TimeoutNode: _timeout,
    ConditionalNode: _conditional,
    LoopNode: _loop,
    StreamLoopNode: _loop,
    ParallelNode: _parallel,
    ParallelOverNode: _parallel_over,
    AsyncLoopNode: _async_loop,
}

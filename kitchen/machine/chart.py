"""The chart: the IR compiled to a `transitions` machine, and that machine flattened to a table.

Rules:

1. `machine(ir)` is a real `HierarchicalMachine`: the run's life on top, under `running` one
   nested state per node path. This module alone imports `transitions`.
2. A node that waits for an answer has *pseudo-leaves*, named with a `?`: a loop's `?enter` and
   `?next`, a conditional's `?ask`, a block's `?close` where it opened resources, the root's
   `?end`. A token always rests on a leaf.
3. A trigger names a verb and the path of its node (`done:epochs/train`), so no trigger can move
   a region that it does not concern.
4. `flatten` reads the table off the machine object, not off the IR: `(leaf, trigger) -> leaves`.
   The hot path uses the table alone, since a live trigger is a hundred times slower. A property
   test walks both and proves that they agree.
5. The last node of a block goes straight to what follows the block.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from transitions.extensions.nesting import HierarchicalMachine, NestedState

from kitchen.workflow import ir as IR
from kitchen.workflow.ir import (
    CheckpointNode,
    ConditionalNode,
    LoopNode,
    Node,
    ResourceNode,
    StageNode,
    WorkflowIR,
)

SEPARATOR = "/"
RUNNING = "running"
ENDINGS = ("completed", "failed", "interrupted")


class Role(enum.Enum):
    """What a leaf waits for."""

    STAGE = "stage"
    ENTER = "enter"
    NEXT = "next"
    ASK = "ask"
    OPEN = "open"
    SAVE = "save"
    CLOSE = "close"
    END = "end"


class Leaf(NamedTuple):
    """A place where a token rests. `loops`: the paths of the loops around it, outermost first."""

    name: str
    role: Role
    path: str
    loops: tuple[str, ...]
    names: tuple[str, ...] = ()


class Move(NamedTuple):
    """An arrow of the chart, between leaves."""

    source: str
    trigger: str
    dest: str


class Program(NamedTuple):
    """A compiled workflow.

    `table[(leaf, trigger)]` are the leaves where the token goes, and `moves[leaf][verb]` the same,
    for the hot path: a leaf belongs to one node. `loops[path]` are the paths of the loops around
    a node.
    """

    ir: WorkflowIR
    fingerprint: str
    leaves: dict[str, Leaf]
    nodes: dict[str, Node]
    loops: dict[str, tuple[str, ...]]
    table: dict[tuple[str, str], tuple[str, ...]]
    moves: dict[str, dict[str, tuple[str, ...]]]
    initial: str


class ChartState(NestedState):
    """A state whose names may hold `_` (with the default separator they would be split there)."""

    separator = SEPARATOR


class ChartMachine(HierarchicalMachine):
    """The machine class: no callbacks, no auto transitions, a separator of our own."""

    state_cls = ChartState


def compile_workflow(ir: WorkflowIR) -> Program:
    """The program of a workflow. Compiled once per IR and process."""
    return _compile(IR.to_json(ir))


@lru_cache(maxsize=64)
def _compile(text: bytes) -> Program:
    ir = IR.from_json(text)
    draft = _draft(ir)
    nodes = dict(IR.walk(ir))
    own = (leaf for leaf in draft.leaves.values() if leaf.role not in (Role.CLOSE, Role.END))
    loops = {leaf.path: leaf.loops for leaf in own}
    table = flatten(_build(draft))
    moves: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in draft.leaves}
    for (leaf, trigger), targets in table.items():
        if leaf in moves:
            moves[leaf][trigger.partition(":")[0]] = targets
    return Program(
        ir=ir,
        fingerprint=IR.fingerprint(ir),
        leaves=draft.leaves,
        nodes=nodes,
        loops=loops,
        table=table,
        moves=moves,
        initial=draft.first,
    )


def machine(ir: WorkflowIR) -> ChartMachine:
    """The live machine of a workflow, without a model: for tests and for diagrams."""
    return _build(_draft(ir))


def flatten(chart: ChartMachine) -> dict[tuple[str, str], tuple[str, ...]]:
    """The machine's own transitions, as a table over leaf names (without `running/`)."""
    table: dict[tuple[str, str], tuple[str, ...]] = {}
    for trigger, event in chart.events.items():
        for source, arrows in event.transitions.items():
            for arrow in arrows:
                key = (_bare(str(source)), trigger)
                table[key] = (*table.get(key, ()), _bare(str(arrow.dest)))
    return table


def _bare(state: str) -> str:
    return state.removeprefix(RUNNING + SEPARATOR)


class _Draft:
    """Leaves and moves, collected from the IR."""

    def __init__(self) -> None:
        self.leaves: dict[str, Leaf] = {}
        self.moves: list[Move] = []
        self.first = ""

    def leaf(self, leaf: Leaf) -> str:
        self.leaves[leaf.name] = leaf
        return leaf.name

    def move(self, source: str, verb: str, path: str, dest: str) -> None:
        self.moves.append(Move(source, f"{verb}:{path}", dest))


def _draft(ir: WorkflowIR) -> _Draft:
    draft = _Draft()
    end = draft.leaf(Leaf("?end", Role.END, "", ()))
    draft.first = _block(draft, "", ir.body, (), end)
    return draft


def _block(
    draft: _Draft, base: str, nodes: tuple[Node, ...], loops: tuple[str, ...], after: str
) -> str:
    """Lay out a block that continues at `after`; the name of the leaf where it begins."""
    names = tuple(node.name for node in nodes if isinstance(node, ResourceNode))
    if names:
        close = draft.leaf(Leaf(IR.join(base, "?close"), Role.CLOSE, base, loops, names))
        draft.move(close, "closed", base, after)
        after = close
    for node in reversed(nodes):
        after = _node(draft, base, node, loops, after)
    return after


def _node(draft: _Draft, base: str, node: Node, loops: tuple[str, ...], after: str) -> str:
    path = IR.join(base, node.name)
    match node:
        case StageNode():
            return _simple(draft, Leaf(path, Role.STAGE, path, loops), "done", after)
        case ResourceNode():
            leaf = Leaf(path, Role.OPEN, path, loops, (node.name,))
            return _simple(draft, leaf, "opened", after)
        case CheckpointNode():
            return _simple(draft, Leaf(path, Role.SAVE, path, loops), "saved", after)
        case ConditionalNode():
            ask = draft.leaf(Leaf(f"{path}/?ask", Role.ASK, path, loops))
            then = _block(draft, path, node.then, loops, after)
            other = _block(draft, IR.join(path, IR.OTHERWISE), node.otherwise, loops, after)
            draft.move(ask, "yes", path, then)
            draft.move(ask, "no", path, other)
            return ask
        case LoopNode():
            enter = draft.leaf(Leaf(f"{path}/?enter", Role.ENTER, path, loops))
            again = draft.leaf(Leaf(f"{path}/?next", Role.NEXT, path, loops))
            body = _block(draft, path, node.body, (*loops, path), again)
            draft.move(enter, "entered", path, again)
            draft.move(again, "item", path, body)
            draft.move(again, "exit", path, after)
            return enter


def _simple(draft: _Draft, leaf: Leaf, verb: str, after: str) -> str:
    draft.move(draft.leaf(leaf), verb, leaf.path, after)
    return leaf.name


def _build(draft: _Draft) -> ChartMachine:
    full = {name: SEPARATOR.join((RUNNING, name)) for name in draft.leaves}
    arrows = [[move.trigger, full[move.source], full[move.dest]] for move in draft.moves]
    arrows += [
        ["start", "ready", full[draft.first]],
        ["complete:", full["?end"], "completed"],
        ["fail", RUNNING, "failed"],
        ["interrupt", RUNNING, "interrupted"],
    ]
    for name, state in full.items():
        arrows += [[f"resume:{name}", ending, state] for ending in ("failed", "interrupted")]
    tree: dict[str, Any] = {}
    for name in draft.leaves:
        _plant(tree, name.split(SEPARATOR))
    running: dict[str, Any] = {"name": RUNNING, "children": list(_states(tree))}
    return ChartMachine(
        model=None,
        states=["ready", running, *ENDINGS],
        transitions=arrows,
        initial="ready",
        auto_transitions=False,
    )


def _plant(tree: dict[str, Any], parts: list[str]) -> None:
    for part in parts:
        tree = tree.setdefault(part, {})


def _states(tree: dict[str, Any]) -> Iterator[Any]:
    for name, below in tree.items():
        yield {"name": name, "children": list(_states(below))} if below else name

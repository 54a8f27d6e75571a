"""The chart: the IR compiled to a `transitions` machine, and that machine flattened to a table.

Rules:

1. `machine(ir)` is a real `HierarchicalMachine`: the run's life on top, under `running` one
   nested state per node path, parallel where branches are. This module alone imports
   `transitions`. `layout` says which states and arrows there are.
2. `flatten` reads the table off the machine object, not off the IR: `(state, trigger) -> leaves`.
   The hot path uses the table alone, since a live trigger is a hundred times slower. A property
   test walks both and proves that they agree.
3. The live machine is in all regions at once, and in one item of a `parallel(over=…)`. A run has
   tokens where work is going on: a branch that waits for its turn, or is done, is a count.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from transitions.extensions.nesting import HierarchicalMachine, NestedState

from kitchen.machine.layout import Guard, Lane, Layout, Leaf, Role, lay_out
from kitchen.workflow import ir as IR
from kitchen.workflow.ir import Node, StageNode, WorkflowIR

SEPARATOR = "/"
RUNNING = "running"
ENDINGS = ("completed", "failed", "interrupted", "cancelled")

_SHARED = (Role.CLOSE, Role.WAIT, Role.FINISH, Role.DONE)


class Program(NamedTuple):
    """A compiled workflow.

    `table[(state, trigger)]` are the leaves where the token goes, and `moves[leaf][verb]` the
    same, for the hot path: a leaf belongs to one node. `loops[path]` are the paths of the loops
    around a node, `lanes[path]` its lanes, for those that have any. `composites[path]` is the state
    of a parallel or an async loop, `waits[(path, depth)]` the leaf where a branch begins whose address
    has so many loop indices. `guards[path]` are the nodes whose failure is handled, `undone` the
    stages that have something to roll back.
    """

    ir: WorkflowIR
    fingerprint: str
    leaves: dict[str, Leaf]
    nodes: dict[str, Node]
    loops: dict[str, tuple[str, ...]]
    lanes: dict[str, tuple[Lane, ...]]
    table: dict[tuple[str, str], tuple[str, ...]]
    moves: dict[str, dict[str, tuple[str, ...]]]
    composites: dict[str, str]
    waits: dict[tuple[str, int], str]
    guards: dict[str, Guard]
    undone: frozenset[str]
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
    layout = lay_out(ir)
    # A path that a node shares with pseudo-leaves in its body is the node's own.
    leaves = sorted(layout.leaves.values(), key=lambda leaf: leaf.role in _SHARED)
    loops: dict[str, tuple[str, ...]] = {}
    for leaf in leaves:
        loops.setdefault(leaf.path, leaf.loops)
    table = flatten(_build(layout))
    moves: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in layout.leaves}
    for (leaf, trigger), targets in table.items():
        if leaf in moves:
            moves[leaf][trigger.partition(":")[0]] = targets
    return Program(
        ir=ir,
        fingerprint=IR.fingerprint(ir),
        leaves=layout.leaves,
        nodes=dict(IR.walk(ir)),
        loops=loops,
        lanes=layout.lanes,
        table=table,
        moves=moves,
        composites=layout.composites,
        waits=layout.waits,
        guards=layout.guards,
        undone=frozenset(
            path for path, node in IR.walk(ir) if isinstance(node, StageNode) and node.rollback
        ),
        initial=layout.first,
    )


def machine(ir: WorkflowIR) -> ChartMachine:
    """The live machine of a workflow, without a model: for tests and for diagrams."""
    return _build(lay_out(ir))


def flatten(chart: ChartMachine) -> dict[tuple[str, str], tuple[str, ...]]:
    """The machine's own transitions, as a table over state names (without `running/`).

    Where an arrow leads to a state with states of its own, the leaves where that is entered.
    """
    table: dict[tuple[str, str], tuple[str, ...]] = {}
    for trigger, event in chart.events.items():
        for source, arrows in event.transitions.items():
            for arrow in arrows:
                key = (_bare(str(source)), trigger)
                leaves = tuple(map(_bare, _entered(chart, str(arrow.dest))))
                table[key] = (*table.get(key, ()), *leaves)
    return table


def _entered(chart: ChartMachine, state: str) -> Iterator[str]:
    """The leaves that are active once a state is entered."""
    found: Any = chart.get_state(state)
    initial: str | list[str] | None = found.initial
    if not initial:
        yield state
        return
    for name in [initial] if isinstance(initial, str) else initial:
        yield from _entered(chart, SEPARATOR.join((state, name)))


def _bare(state: str) -> str:
    return state.removeprefix(RUNNING + SEPARATOR)


def _build(layout: Layout) -> ChartMachine:
    arrows = [[move.trigger, _full(move.source), _full(move.dest)] for move in layout.moves]
    arrows += [
        ["start", "ready", _full(layout.first)],
        ["complete:", _full("?end"), "completed"],
        ["fail", RUNNING, "failed"],
        ["interrupt", RUNNING, "interrupted"],
        *(["cancel", source, "cancelled"] for source in (RUNNING, "failed", "interrupted")),
    ]
    for name in layout.leaves:
        arrows += [[f"resume:{name}", ending, _full(name)] for ending in ("failed", "interrupted")]
    tree: dict[str, Any] = {}
    for name in layout.leaves:
        _plant(tree, name.split(SEPARATOR))
    running: dict[str, Any] = {"name": RUNNING, "children": list(_states(layout, tree, ""))}
    return ChartMachine(
        model=None,
        states=["ready", running, *ENDINGS],
        transitions=arrows,
        initial="ready",
        auto_transitions=False,
    )


def _full(name: str) -> str:
    return SEPARATOR.join((RUNNING, name))


def _plant(tree: dict[str, Any], parts: list[str]) -> None:
    for part in parts:
        tree = tree.setdefault(part, {})


def _states(layout: Layout, tree: dict[str, Any], above: str) -> Iterator[Any]:
    for part, below in tree.items():
        name = IR.join(above, part)
        if not below:
            yield part
            continue
        state: dict[str, Any] = {"name": part, "children": list(_states(layout, below, name))}
        if name in layout.regions:
            state["initial"] = [region.removeprefix(f"{name}/") for region in layout.regions[name]]
        elif name in layout.initial:
            state["initial"] = layout.initial[name].removeprefix(f"{name}/")
        yield state

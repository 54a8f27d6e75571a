"""Workflows that nobody would write, for properties that must hold for every workflow.

`workflow_irs()` gives only what the builder would let through: names unique among siblings,
resource names unique everywhere, no loop inside one of its own name, no empty block, and a
checkpoint only where a resource that it could save is declared before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import Binding, Workflow
from kitchen.workflow.ir import (
    OTHERWISE,
    CheckpointNode,
    CodeRef,
    ConditionalNode,
    LoopNode,
    Node,
    ResourceNode,
    StageNode,
    WorkflowIR,
    join,
)

# Few names, so that they repeat in other blocks, and some of the odd ones that are legal.
NAMES = ("a", "b", "c", "load_data", "x.y", "0", "_private", "then", "end", "größe")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("pqr"), inner, max_size=3)
    ),
    max_leaves=5,
)
options: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["lr", "k", ""]), json_values, max_size=2
)


@st.composite
def workflow_irs(
    draw: st.DrawFn, *, max_nodes: int = 12, max_depth: int = 4, with_options: bool = True
) -> WorkflowIR:
    """Valid IRs of about `max_nodes` nodes, nested at most `max_depth` deep."""
    growth = _Growth(draw, draw(st.integers(1, max_nodes)), with_options)
    body = growth.block(max_depth, frozenset(), saves=False)
    return WorkflowIR(name=draw(st.sampled_from(NAMES)), body=body)


@dataclass
class _Growth:
    """Draws blocks; knows what is left to spend, and what is taken everywhere."""

    draw: st.DrawFn
    left: int
    with_options: bool
    resources: set[str] = field(default_factory=set)

    def block(self, depth: int, loops: frozenset[str], *, saves: bool) -> tuple[Node, ...]:
        """One block, never empty. `saves`: a checkpoint may stand here."""
        nodes: list[Node] = []
        while not nodes or (self.left > 0 and len(nodes) < 6 and self.draw(st.booleans())):
            self.left -= 1
            kinds = ["stage", "resource", *(["checkpoint"] if saves else [])]
            if depth > 1 and self.left > 0:
                kinds += ["loop", "conditional"]
            kind = self.draw(st.sampled_from(kinds))
            taken = {node.name for node in nodes}
            node = self.node(kind, taken, depth, loops, saves=saves)
            nodes.append(node)
            saves = saves or (isinstance(node, ResourceNode) and node.stateful is not False)
        return tuple(nodes)

    def node(
        self, kind: str, taken: set[str], depth: int, loops: frozenset[str], *, saves: bool
    ) -> Node:
        barred = {"loop": taken | loops, "resource": taken | self.resources}.get(kind, taken)
        name = _name(self.draw, barred)
        code = CodeRef("tests.strategies", f"{kind}_{name}")
        match kind:
            case "stage":
                held = self.draw(options) if self.with_options else {}
                return StageNode(name, code, options=held, thread=self.draw(st.booleans()))
            case "resource":
                self.resources.add(name)
                return ResourceNode(name, code, self.draw(st.sampled_from((None, True, False))))
            case "checkpoint":
                return CheckpointNode(name)
            case "loop":
                return LoopNode(name, code, self.block(depth - 1, loops | {name}, saves=saves))
            case _:
                then = self.block(depth - 1, loops, saves=saves)
                more = self.left > 0 and self.draw(st.booleans())
                no = self.block(depth - 1, loops, saves=saves) if more else ()
                return ConditionalNode(name, code, then, no)


def _name(draw: st.DrawFn, barred: set[str]) -> str:
    """One of few names, with a number behind it where it is taken."""
    drawn = draw(st.sampled_from(NAMES))
    numbered = (drawn if n == 1 else f"{drawn}{n}" for n in range(1, 10_000))
    return next(each for each in numbered if each not in barred)


def nothing(_ctx: Any) -> None:
    """The binding of every node that a test does not name: no work, no items, no."""


def build_workflow(
    ir: WorkflowIR,
    bindings: Mapping[str, Binding] | Callable[[str, Node], Binding] | None = None,
) -> Workflow[Any, Any]:
    """The workflow that says what `ir` says, told to a real builder.

    `bindings` gives what each node runs, by path or as a function of path and node.
    """

    def bound(path: str, node: Node) -> Any:
        if callable(bindings):
            return bindings(path, node)
        return (bindings or {}).get(path, nothing)

    @workflow(name=ir.name, seed_globals=ir.seed_globals)
    def told(wf: WorkflowBuilder) -> None:
        _tell(wf, ir.body, "", bound)

    return told


def _tell(
    wf: WorkflowBuilder, block: tuple[Node, ...], base: str, bound: Callable[[str, Node], Any]
) -> None:
    for node in block:
        path = join(base, node.name)
        match node:
            case StageNode():
                body = bound(path, node)
                wf.stage(node.name, body, options=node.options, thread=node.thread)
            case ResourceNode():
                wf.resource(node.name, bound(path, node), stateful=node.stateful)
            case CheckpointNode():
                wf.checkpoint(node.name)
            case LoopNode():
                with wf.loop(node.name, over=bound(path, node)):
                    _tell(wf, node.body, path, bound)
            case ConditionalNode():
                with wf.conditional(bound(path, node), name=node.name):
                    _tell(wf, node.then, path, bound)
                if node.otherwise:
                    with wf.otherwise():
                        _tell(wf, node.otherwise, join(path, OTHERWISE), bound)

"""A workflow as a picture: Mermaid for a page, a tree for a terminal.

Rules:

1. The same IR gives the same text, byte for byte.
2. Mermaid sees no name of the user's outside a quoted, escaped label: ids are n1, n2, ...
3. In the flowchart, a rounded box is the start or the end, a box a stage, a slanted box a
   resource that is opened, a cylinder a checkpoint, a diamond a question. A loop is a frame:
   its hexagon takes the next item, what ends the body goes back to it, and it is left by
   "done".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

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
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# An end from which the next node is reached: an id, and what its edge says.
End: TypeAlias = tuple[str, str]


def to_mermaid(ir: WorkflowIR) -> str:
    """The workflow as a Mermaid flowchart."""
    chart = _Chart()
    start = chart.node('(["', ir.name, '"])', "    ")
    ends = chart.block(ir.body, [(start, "")], "    ")
    chart.enter(chart.node('(["', "end", '"])', "    "), ends)
    return "\n".join(["flowchart TD", *chart.nodes, *chart.edges]) + "\n"


def to_tree(ir: WorkflowIR) -> str:
    """The workflow as an indented tree."""
    lines = [ir.name]
    _branches([(_line(node), node) for node in ir.body], "", lines)
    return "\n".join(lines) + "\n"


class _Chart:
    """Nodes in their frames, and apart from them the edges.

    Mermaid puts a node into the frame in which it is first mentioned, so all edges come last.
    """

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.edges: list[str] = []
        self._count = 0

    def id(self) -> str:
        self._count += 1
        return f"n{self._count}"

    def node(self, opening: str, label: str, closing: str, indent: str) -> str:
        made = self.id()
        self.nodes.append(f"{indent}{made}{opening}{_escaped(label)}{closing}")
        return made

    def enter(self, target: str, ends: Sequence[End]) -> None:
        for source, says in ends:
            arrow = f'-->|"{says}"|' if says else "-->"
            self.edges.append(f"    {source} {arrow} {target}")

    def block(self, nodes: Sequence[Node], ends: Sequence[End], indent: str) -> Sequence[End]:
        for node in nodes:
            ends = self._draw(node, ends, indent)
        return ends

    def _draw(self, node: Node, ends: Sequence[End], indent: str) -> Sequence[End]:
        match node:
            case StageNode():
                made = self.node('["', node.name, '"]', indent)
            case ResourceNode():
                made = self.node('[/"', node.name, '"/]', indent)
            case CheckpointNode():
                made = self.node('[("', node.name, '")]', indent)
            case LoopNode():
                return self._loop(node, ends, indent)
            case ConditionalNode():
                return self._conditional(node, ends, indent)
        self.enter(made, ends)
        return [(made, "")]

    def _loop(self, node: LoopNode, ends: Sequence[End], indent: str) -> Sequence[End]:
        self.nodes.append(f'{indent}subgraph {self.id()}["loop {_escaped(node.name)}"]')
        head = self.node('{{"', f"next of {_short(node.over)}", '"}}', indent + "    ")
        self.enter(head, ends)
        self.enter(head, self.block(node.body, [(head, "item")], indent + "    "))
        self.nodes.append(f"{indent}end")
        return [(head, "done")]

    def _conditional(
        self, node: ConditionalNode, ends: Sequence[End], indent: str
    ) -> Sequence[End]:
        question = self.node('{"', f"{node.name}?", '"}', indent)
        self.enter(question, ends)
        yes = self.block(node.then, [(question, "yes")], indent)
        no = self.block(node.otherwise, [(question, "no")], indent)
        return [*yes, *no]


def _branches(
    entries: Sequence[tuple[str, Node | tuple[Node, ...]]], indent: str, lines: list[str]
) -> None:
    for index, (line, node) in enumerate(entries):
        last = index == len(entries) - 1
        lines.append(f"{indent}{'└── ' if last else '├── '}{line}")
        _branches(_below(node), indent + ("    " if last else "│   "), lines)


def _below(node: Node | tuple[Node, ...]) -> list[tuple[str, Node | tuple[Node, ...]]]:
    match node:
        case tuple():
            return [(_line(child), child) for child in node]
        case LoopNode():
            return [(_line(child), child) for child in node.body]
        case ConditionalNode():
            then = [(_line(child), child) for child in node.then]
            return [*then, (OTHERWISE, node.otherwise)] if node.otherwise else [*then]
        case _:
            return []


def _line(node: Node) -> str:
    match node:
        case StageNode():
            return f"stage {node.name}"
        case ResourceNode():
            return f"resource {node.name}"
        case CheckpointNode():
            return f"checkpoint {node.name}"
        case LoopNode():
            return f"loop {node.name} over {_short(node.over)}"
        case ConditionalNode():
            return f"conditional {node.name}"


def _short(code: CodeRef) -> str:
    """The bare name of a function; a lambda has none."""
    bare = code.qualname.rpartition(".")[2]
    return "items" if bare in ("", "<lambda>") else bare


def _escaped(label: str) -> str:
    plain = " ".join(label.split())
    return "".join(
        char if char.isalnum() or char in " _-.?,:" else f"#{ord(char)};" for char in plain
    )

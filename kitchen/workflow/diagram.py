"""A workflow as a picture: Mermaid for a page, a tree for a terminal.

Rules:

1. The same IR gives the same text, byte for byte.
2. Mermaid sees no name of the user's outside a quoted, escaped label: ids are n1, n2, ...
3. In the flowchart, a rounded box is the start or the end, a box a stage, a slanted box a
   resource that is opened, a cylinder a checkpoint, a diamond a question. Every other block is a
   frame. A loop's hexagon takes the next item, what ends the body goes back to it, and it is
   left by "done"; what makes the items of an async_loop stands beside it, behind a dotted edge.
   A parallel widens where it forks, and narrows where its branches are joined.
4. From what may fail, a dotted edge "on error" leads to its handler's frame. A handler that holds
   nothing has none: the edge leads on to where the run goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from kitchen.workflow import captions
from kitchen.workflow.ir import (
    OTHERWISE,
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
    blocks,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# An end from which the next node is reached: an id, and what its edge says.
End: TypeAlias = tuple[str, str]
Framed: TypeAlias = (
    LoopNode
    | StreamLoopNode
    | AsyncLoopNode
    | ParallelNode
    | ParallelOverNode
    | BranchNode
    | IncludeNode
    | TimeoutNode
    | HandlerNode
)
ON_ERROR = "on error"


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
    _branches([(captions.line(node), node) for node in ir.body], "", lines)
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
            line = "-.->" if says == ON_ERROR else "-->"
            arrow = f'{line}|"{says}"|' if says else line
            self.edges.append(f"    {source} {arrow} {target}")

    def block(self, nodes: Sequence[Node], ends: Sequence[End], indent: str) -> Sequence[End]:
        handled = ""
        for node in nodes:
            if isinstance(node, HandlerNode):
                ends = [*ends, *self._handler(node, [(handled, ON_ERROR)], indent)]
                continue
            handled = f"n{self._count + 1}"  # the first id of what is drawn stands for all of it
            ends = self._draw(node, ends, indent)
        return ends

    def _draw(self, node: Node, ends: Sequence[End], indent: str) -> Sequence[End]:
        match node:
            case StageNode():
                return self._one('["', captions.stage(node), '"]', ends, indent)
            case ResourceNode():
                return self._one('[/"', node.name, '"/]', ends, indent)
            case CheckpointNode():
                return self._one('[("', node.name, '")]', ends, indent)
            case ConditionalNode():
                return self._conditional(node, ends, indent)
            case _:
                return self._frame(node, ends, indent)

    def _frame(self, node: Framed, ends: Sequence[End], indent: str) -> Sequence[End]:
        self.nodes.append(f'{indent}subgraph {self.id()}["{_escaped(captions.frame(node))}"]')
        inside = indent + "    "
        match node:
            case LoopNode() | StreamLoopNode():
                ends = self._loop(node, ends, inside)
            case AsyncLoopNode():
                ends = self._async_loop(node, ends, inside)
            case ParallelNode() | ParallelOverNode():
                ends = self._parallel(node, ends, inside)
            case BranchNode() | IncludeNode() | TimeoutNode() | HandlerNode():
                ends = self.block(node.body, ends, inside)
        self.nodes.append(f"{indent}end")
        return ends

    def _handler(self, node: HandlerNode, ends: Sequence[End], indent: str) -> Sequence[End]:
        return self._frame(node, ends, indent) if node.body else ends

    def _one(
        self, opening: str, label: str, closing: str, ends: Sequence[End], indent: str
    ) -> Sequence[End]:
        made = self.node(opening, label, closing, indent)
        self.enter(made, ends)
        return [(made, "")]

    def _loop(
        self, node: LoopNode | StreamLoopNode, ends: Sequence[End], indent: str
    ) -> Sequence[End]:
        over = captions.short(node.over, "items")
        head = self.node('{{"', f"next of {over}", '"}}', indent)
        self.enter(head, ends)
        self.enter(head, self.block(node.body, [(head, "item")], indent))
        return [(head, "done")]

    def _async_loop(self, node: AsyncLoopNode, ends: Sequence[End], indent: str) -> Sequence[End]:
        producer = self.node('[["', captions.maker(node), '"]]', indent)
        made = captions.short(node.producer, "producer")
        head = self.node('{{"', f"next of {made}", '"}}', indent)
        self.edges.append(f'    {producer} -.->|"{", ".join(captions.ahead(node))}"| {head}')
        self.enter(head, ends)
        body = self.block(node.body, [(head, "item")], indent)
        asked = captions.short(node.stop_when, "stop_when")
        question = self.node('{"', f"{asked}?", '"}', indent)
        self.enter(question, body)
        self.enter(head, [(question, "no")])
        return [(question, "yes")]

    def _parallel(
        self, node: ParallelNode | ParallelOverNode, ends: Sequence[End], indent: str
    ) -> Sequence[End]:
        if isinstance(node, ParallelNode):
            fork = self.node('[/"', "all of", '"\\]', indent)
            self.enter(fork, ends)
            arms = [self._draw(arm, [(fork, "")], indent) for arm in node.branches]
        else:
            each = captions.short(node.over, "items")
            fork = self.node('[/"', f"each of {each}", '"\\]', indent)
            self.enter(fork, ends)
            arms = [self.block(node.body, [(fork, "")], indent)]
        join = self.node('[\\"', ", ".join(["join", *captions.merging(node)]), '"/]', indent)
        for arm in arms:
            self.enter(join, arm)
        return [(join, "")]

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
    if isinstance(node, tuple):
        return [(captions.line(child), child) for child in node]
    found: list[tuple[str, Node | tuple[Node, ...]]] = []
    for segment, block in blocks(node):
        if segment != OTHERWISE:
            found += _below(block)
        elif block:
            found.append((segment, block))
    return found


def _escaped(label: str) -> str:
    plain = " ".join(label.split())
    return "".join(
        char if char.isalnum() or char in " _-.?,:" else f"#{ord(char)};" for char in plain
    )

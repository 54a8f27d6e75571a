"""Trees in text: the visits of a run, and runs with their forks.

Rules: where more children stand side by side than there is room for, those in the middle are left
out, and counted. Drawing does not recurse: forks of forks may go deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from kitchen.history.tree import TreeNode
    from kitchen.ports.event_store import RunInfo

N = TypeVar("N")

FIRST, LAST = 8, 4  # of many children, those that are shown


def drawn(
    roots: Sequence[N],
    label: Callable[[N], str],
    children: Callable[[N], Sequence[N]],
    *,
    everything: bool = True,
) -> Iterator[str]:
    """A line for each node, indented by guides."""
    waiting: list[tuple[str, str, N | int]] = [("", "", root) for root in reversed(roots)]
    while waiting:
        lead, below, node = waiting.pop()
        if isinstance(node, int):
            yield f"{lead}… {node} more"
            continue
        yield lead + label(node)
        inner = _cut(children(node), everything=everything)
        for nth in range(len(inner) - 1, -1, -1):
            last = nth == len(inner) - 1
            guide, further = ("└── ", "    ") if last else ("├── ", "│   ")
            waiting.append((below + guide, below + further, inner[nth]))


def _cut(nodes: Sequence[N], *, everything: bool) -> list[N | int]:
    left = len(nodes) - FIRST - LAST
    if everything or left <= 1:
        return list(nodes)
    return [*nodes[:FIRST], left, *nodes[-LAST:]]


def of_visits(root: TreeNode, *, everything: bool) -> Iterator[str]:
    """The tree of a run's visits."""
    yield from drawn([root], _told, lambda node: node.children, everything=everything)


def described(node: TreeNode) -> dict[str, Any]:
    """The same as built-ins."""
    return {**node._asdict(), "children": [described(child) for child in node.children]}


def _told(node: TreeNode) -> str:
    from kitchen.cli import render

    kind = node.kind if node.kind not in ("stage", "visit") else ""
    tries = f"{node.attempts} attempts" if node.attempts > 1 else ""
    words = (kind, node.name, "", node.status, tries, render.took(node.seconds))
    return " ".join(word for word in words if word)


def under_parents(infos: Sequence[RunInfo]) -> tuple[list[RunInfo], dict[str, list[RunInfo]]]:
    """Of runs, the oldest first: those that are no forks of one before them, and the forks of each."""
    forks: dict[str, list[RunInfo]] = {}
    roots: list[RunInfo] = []
    for info in infos:
        side_by_side = forks.get(info.parent, roots) if info.parent is not None else roots
        side_by_side.append(info)
        forks[info.run] = []
    return roots, forks

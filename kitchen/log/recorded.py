"""A recorded workflow, looked at before anything is compiled of it.

Rules:

1. Whoever made the store wrote it, so it is told apart from what a builder gives: names that can be
   a part of a path and are unique among siblings, and a size that compiles in a moment.
2. The look itself takes time and room in proportion to the text, and does not recurse.
"""

from __future__ import annotations

import re

from kitchen.errors import HistoryError
from kitchen.workflow import ir as IR
from kitchen.workflow.ir import (
    OTHERWISE,
    PRODUCER,
    REPEATING,
    STOP_WHEN,
    AsyncLoopNode,
    Node,
    ParallelNode,
    WorkflowIR,
    blocks,
)

MOST_WORK = 150_000  # in units of `_work`, of which 40,000 compile in about half a second
MOST_LEVELS = 100
MOST_PATHS = 4_000_000  # characters of all paths together
MOST_PRODUCERS = 100_000

_NAME = re.compile(r"[^/?\[\]\x00-\x20\x7f-\x9f\ud800-\udfff]+")


def read_ir(text: object) -> WorkflowIR:
    """The workflow of a `RunStarted` or `WorkflowChanged`.

    Raises `HistoryError` where it does not read, or no builder can have made it.
    """
    try:
        ir = IR.from_json(text)  # type: ignore[arg-type]
    except (ValueError, RecursionError) as error:
        raise HistoryError(f"the recorded workflow does not read: {str(error)[:200]}") from None
    _check(ir)
    return ir


def _check(ir: WorkflowIR) -> None:
    work = characters = 0
    waiting: list[tuple[Node | WorkflowIR, int, int]] = [(ir, 0, 0)]
    while waiting:
        parent, level, length = waiting.pop()
        if level > MOST_LEVELS:
            raise _refused(f"it is nested more than {MOST_LEVELS} levels deep")
        for segment, block in blocks(parent):
            _check_names(parent, block)
            for node in block:
                work += _work(parent, node, level)
                long = length + len(segment) + len(node.name) + 2
                characters += long
                waiting.append((node, level + 1, long))
        if work > MOST_WORK or characters > MOST_PATHS:
            raise _refused("it has too many nodes, or their paths are too long")


def _work(parent: Node | WorkflowIR, node: Node, level: int) -> int:
    """What a node takes to compile: its leaves and regions, by how deep they lie."""
    kind = 6 if isinstance(node, AsyncLoopNode) else 2 if isinstance(node, REPEATING) else 1
    return (4 + level) * kind * (4 if isinstance(parent, ParallelNode) else 1)


def _check_names(parent: Node | WorkflowIR, block: tuple[Node, ...]) -> None:
    taken = {OTHERWISE}
    if isinstance(parent, AsyncLoopNode):
        taken |= {PRODUCER, STOP_WHEN}
        if min(parent.producers, parent.buffer_size) > MOST_PRODUCERS:
            raise _refused(f"an async loop makes more than {MOST_PRODUCERS} items at a time")
    for node in block:
        if not _NAME.fullmatch(node.name):
            raise _refused(f"{node.name[:80]!r} cannot be the name of a node")
        if node.name in taken:
            raise _refused(f"{node.name[:80]!r} is reserved there, or there twice")
        taken.add(node.name)


def _refused(why: str) -> HistoryError:
    return HistoryError(f"the recorded workflow cannot be one: {why}")

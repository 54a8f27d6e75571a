"""Workflows larger than hypothesis likes to draw, from a seed."""

from __future__ import annotations

import itertools
import random
from typing import Any

from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    CheckpointNode,
    CodeRef,
    ConditionalNode,
    IncludeNode,
    LoopNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    Reducer,
    ResourceNode,
    StageNode,
    StreamLoopNode,
    WorkflowIR,
    from_json,
    to_json,
)
from tests.machine.simulator import KEYS, LIST

CODE = CodeRef("m", "q")
_SEQUENTIAL = ("loop", "conditional", "include")
_CONCURRENT = ("stream_loop", "async_loop", "parallel", "parallel", "parallel_over")


class Grower:
    """Grows one workflow with every construct. `pacing`: of its async loops."""

    def __init__(self, seed: int, *, pacing: str = "paced", on_error: str | None = None) -> None:
        self.rng = random.Random(seed)
        self.names = (f"n{i}" for i in itertools.count())
        self.pacing = pacing
        self.on_error = on_error
        self.depth = self.rng.choice((1, 2, 2, 3))

    def workflow(self) -> WorkflowIR:
        first = [self.resource() for _ in range(self.rng.randint(1, 3))]
        return WorkflowIR("grown", (*first, *self.block(self.depth), *self.block(self.depth - 1)))

    def block(self, depth: int, beside: bool = False) -> tuple[Node, ...]:
        return tuple(self.node(depth, beside) for _ in range(self.rng.randint(1, 3)))

    def resource(self) -> Node:
        return ResourceNode(next(self.names), CODE, self.rng.choice((None, None, False)))

    def node(self, depth: int, beside: bool, plain: bool = False) -> Node:
        """`beside`: somewhere in a parallel. `plain`: itself a branch of one."""
        kinds = ["stage"] * 5
        if not plain:
            kinds += ["resource"]
            kinds += [] if beside else ["checkpoint"]
        if depth > 0:
            kinds += [*_SEQUENTIAL, *_CONCURRENT]
        kind = self.rng.choice(kinds)
        name = next(self.names)
        match kind:
            case "stage":
                return StageNode(name, CODE)
            case "resource":
                return self.resource()
            case "checkpoint":
                return CheckpointNode(name)
            case "loop":
                return LoopNode(name, CODE, self.block(depth - 1, beside))
            case "include":
                return IncludeNode(name, "inner", self.block(depth - 1, beside))
            case "conditional":
                other = self.block(depth - 1, beside) if self.rng.random() < 0.5 else ()
                return ConditionalNode(name, CODE, self.block(depth - 1, beside), other)
            case "stream_loop":
                return StreamLoopNode(name, CODE, self.block(depth - 1, beside))
            case _:
                return self.concurrent(kind, name, depth, beside)

    def concurrent(self, kind: str, name: str, depth: int, beside: bool) -> Node:
        match kind:
            case "async_loop":
                return self.async_loop(name, self.block(depth - 1, beside))
            case "parallel":
                arms = [self.arm(depth - 1) for _ in range(self.rng.randint(1, 3))]
                return ParallelNode(name, tuple(arms), **self.beside())
            case _:
                return ParallelOverNode(name, CODE, self.block(depth - 1, True), **self.beside())

    def arm(self, depth: int) -> Node:
        if self.rng.random() < 0.6:
            return BranchNode(next(self.names), self.block(depth, True))
        return self.node(depth, True, plain=True)

    def async_loop(self, name: str, body: tuple[Node, ...]) -> Node:
        size = self.rng.randint(1, 3)
        return AsyncLoopNode(
            name,
            CODE,
            CODE,
            body,
            buffer_size=size,
            producers=self.rng.choice((1, 1, size)),
            pacing=self.pacing,
            max_staleness=self.rng.choice((None, None, 0, 1, 2)),
        )

    def beside(self) -> dict[str, Any]:
        keys = [key for key in (*KEYS, LIST) if self.rng.random() < 0.3]
        return {
            "on_error": self.on_error or self.rng.choice(("cancel", "finish")),
            "merge": {key: Reducer("sum") for key in keys},
        }


def paced(ir: WorkflowIR) -> WorkflowIR:
    """The same with no free async loop: what comes out then does not depend on chance."""
    return from_json(to_json(ir).replace(b'"pacing":"free"', b'"pacing":"paced"'))

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
    HandlerNode,
    IncludeNode,
    LoopNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    Reducer,
    ResourceNode,
    Retries,
    StageNode,
    StreamLoopNode,
    TimeoutNode,
    WorkflowIR,
    from_json,
    to_json,
)
from tests.machine.simulator import KEYS, LIST

CODE = CodeRef("m", "q")
_SEQUENTIAL = ("loop", "conditional", "include")
_CONCURRENT = ("stream_loop", "async_loop", "parallel", "parallel", "parallel_over")


class Grower:
    """Grows one workflow with every construct. `pacing`: of its async loops.

    `failures`: with what is said of failing, too. `once`: some of its effects not to happen twice.
    """

    def __init__(
        self,
        seed: int,
        *,
        pacing: str = "paced",
        on_error: str | None = None,
        failures: bool = False,
        once: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.names = (f"n{i}" for i in itertools.count())
        self.pacing = pacing
        self.on_error = on_error
        self.failures = failures
        self.once = once
        self.depth = self.rng.choice((1, 2, 2, 3))

    def workflow(self) -> WorkflowIR:
        first = [self.resource() for _ in range(self.rng.randint(1, 3))]
        compensate = self.failures and self.rng.random() < 0.4
        body = (*first, *self.block(self.depth), *self.block(self.depth - 1))
        return WorkflowIR("grown", body, compensate=compensate)

    def block(self, depth: int, beside: bool = False) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for _ in range(self.rng.randint(1, 3)):
            nodes.append(node := self.node(depth, beside))
            skips = isinstance(node, StageNode) and node.on_error == "skip"
            if self.failures and not skips and self.rng.random() < 0.35:
                nodes.append(HandlerNode(next(self.names), self.handler(depth, beside)))
        return tuple(nodes)

    def handler(self, depth: int, beside: bool) -> tuple[Node, ...]:
        return self.block(depth - 1, beside) if depth > 0 and self.rng.random() < 0.7 else ()

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
            kinds += ["timeout"] * 2 if self.failures else []
        kind = self.rng.choice(kinds)
        name = next(self.names)
        match kind:
            case "stage":
                return self.stage(name)
            case "resource":
                return self.resource()
            case "checkpoint":
                return CheckpointNode(name)
            case "loop":
                return LoopNode(name, CODE, self.block(depth - 1, beside))
            case "include" | "timeout":
                body = self.block(depth - 1, beside)
                timed = kind == "timeout"
                return TimeoutNode(name, 60.0, body) if timed else IncludeNode(name, "inner", body)
            case "conditional":
                other = self.block(depth - 1, beside) if self.rng.random() < 0.5 else ()
                return ConditionalNode(name, CODE, self.block(depth - 1, beside), other)
            case "stream_loop":
                return StreamLoopNode(name, CODE, self.block(depth - 1, beside))
            case _:
                return self.concurrent(kind, name, depth, beside)

    def stage(self, name: str) -> StageNode:
        if not self.failures:
            return StageNode(name, CODE)
        rng = self.rng
        waits = Retries(rng.randint(1, 2), rng.choice((0.0, 1.0)), jitter=rng.choice((0.0, 0.1)))
        return StageNode(
            name,
            CODE,
            retry=rng.choice((None, waits)),
            effect="once" if self.once and rng.random() < 0.4 else "repeatable",
            on_error=rng.choice(("fail", "fail", "skip")),
            rollback=rng.random() < 0.5,
        )

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

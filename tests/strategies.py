"""Workflows that nobody would write, for properties that must hold for every workflow.

`workflow_irs()` gives only what the builder would let through: names unique among siblings,
resource names unique everywhere, no loop inside one of its own name, no empty block, and a
checkpoint only where a resource that it could save is declared before, and never in a parallel.
With `concurrent=True` it draws every construct there is, else only those that run one thing at
a time. `build_workflow` tells such a workflow to a real builder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from kitchen.workflow.assembly import Block
from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import Binding, Workflow, limit_key, reducer_key
from kitchen.workflow.ir import (
    OTHERWISE,
    PRODUCER,
    STOP_WHEN,
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
    blocks,
    join,
    walk,
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


KEYS = ("k", "l", "odd key/?")
RESERVED = (PRODUCER, STOP_WHEN)  # by an async_loop, among its direct children alone
LOOPS = ("loop", "stream_loop", "async_loop", "parallel_over")
SEQUENTIAL = ("loop", "conditional")
CONCURRENT = ("stream_loop", "async_loop", "parallel", "parallel_over", "include")


@st.composite
def workflow_irs(
    draw: st.DrawFn,
    *,
    max_nodes: int = 12,
    max_depth: int = 4,
    with_options: bool = True,
    concurrent: bool = False,
) -> WorkflowIR:
    """Valid IRs of about `max_nodes` nodes, nested at most `max_depth` deep.

    `concurrent`: with stream_loop, async_loop, parallel, branch, include and `writes` too.
    """
    growth = _Growth(draw, draw(st.integers(1, max_nodes)), with_options, concurrent)
    body = growth.block(_Place(max_depth))
    return WorkflowIR(name=draw(st.sampled_from(NAMES)), body=body)


@dataclass(frozen=True)
class _Place:
    """Where a block stands. `saves`: a checkpoint may stand in it."""

    depth: int
    loops: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    saves: bool = False
    in_parallel: bool = False
    forks: bool = False

    def inside(self, **changes: Any) -> _Place:
        return replace(
            self, **{"depth": self.depth - 1, "barred": frozenset(), "forks": False, **changes}
        )

    def loop(self, name: str, **changes: Any) -> _Place:
        return self.inside(loops=self.loops | {name}, **changes)


@dataclass
class _Growth:
    """Draws blocks; knows what is left to spend, and what is taken everywhere."""

    draw: st.DrawFn
    left: int
    with_options: bool
    concurrent: bool
    resources: set[str] = field(default_factory=set)

    def block(self, place: _Place) -> tuple[Node, ...]:
        """One block, never empty."""
        nodes: list[Node] = []
        while not nodes or (self.left > 0 and len(nodes) < 6 and self.draw(st.booleans())):
            self.left -= 1
            kind = self.draw(st.sampled_from(self.kinds(place)))
            node = self.node(kind, {node.name for node in nodes} | place.barred, place)
            nodes.append(node)
            if isinstance(node, ResourceNode) and node.stateful is not False:
                place = replace(place, saves=True)
        return tuple(nodes)

    def kinds(self, place: _Place) -> list[str]:
        kinds = ["stage"]
        if not place.forks:
            kinds.append("resource")
        if place.saves and not place.in_parallel:
            kinds.append("checkpoint")
        if place.depth > 1 and self.left > 0:
            kinds += SEQUENTIAL
            kinds += CONCURRENT if self.concurrent else ()
            kinds += ["branch"] * 4 if place.forks else []
        return kinds

    def node(self, kind: str, taken: set[str], place: _Place) -> Node:
        barred = {
            "resource": taken | self.resources,
            **dict.fromkeys(LOOPS, taken | place.loops),
        }.get(kind, taken)
        name = _name(self.draw, barred, NAMES + RESERVED if self.concurrent else NAMES)
        code = CodeRef("tests.strategies", f"{kind}_{name}")
        match kind:
            case "stage":
                held = self.draw(options) if self.with_options else {}
                thread = self.draw(st.booleans())
                return StageNode(name, code, options=held, thread=thread, writes=self.writes())
            case "resource":
                self.resources.add(name)
                return ResourceNode(name, code, self.draw(st.sampled_from((None, True, False))))
            case "checkpoint":
                return CheckpointNode(name)
            case "loop":
                return LoopNode(name, code, self.block(place.loop(name)))
            case "conditional":
                then = self.block(place.inside())
                more = self.left > 0 and self.draw(st.booleans())
                no = self.block(place.inside()) if more else ()
                return ConditionalNode(name, code, then, no)
            case _:
                return self.concurrent_node(kind, name, code, place)

    def concurrent_node(self, kind: str, name: str, code: CodeRef, place: _Place) -> Node:
        match kind:
            case "stream_loop":
                prefetch = self.draw(st.integers(1, 4))
                return StreamLoopNode(name, code, self.block(place.loop(name)), prefetch)
            case "async_loop":
                body = self.block(place.loop(name, barred=frozenset(RESERVED)))
                return self.async_loop(name, code, body)
            case "branch":
                return BranchNode(name, self.block(place.inside()))
            case "parallel":
                arms = self.block(place.inside(in_parallel=True, forks=True))
                shared = _shared([_written((arm,)) for arm in arms])
                return ParallelNode(name, arms, **self.beside(shared))
            case "parallel_over":
                body = self.block(place.loop(name, in_parallel=True))
                return ParallelOverNode(name, code, body, **self.beside(_written(body)))
            case _:
                # An included workflow was built by itself: what is open around it, it cannot save.
                body = self.block(place.inside(saves=False))
                return IncludeNode(name, self.draw(st.sampled_from(NAMES)), body)

    def async_loop(self, name: str, code: CodeRef, body: tuple[Node, ...]) -> AsyncLoopNode:
        size = self.draw(st.integers(1, 4))
        return AsyncLoopNode(
            name,
            code,
            code,
            body,
            buffer_size=size,
            producers=self.draw(st.integers(1, size)),
            pacing=self.draw(st.sampled_from(("paced", "free"))),
            max_staleness=self.draw(st.none() | st.integers(0, 4)),
        )

    def beside(self, written: set[str]) -> dict[str, Any]:
        """The options of a parallel whose branches write these keys more than once."""
        limited = self.draw(st.booleans())
        more = self.draw(st.sets(st.sampled_from(KEYS), max_size=1))
        return {
            "max_concurrency": None if limited else self.draw(st.none() | st.integers(1, 3)),
            "limit": CodeRef("tests.strategies", "two") if limited else None,
            "on_error": self.draw(st.sampled_from(("cancel", "finish"))),
            "merge": {key: self.draw(reducers) for key in sorted(written | more)},
        }

    def writes(self) -> tuple[str, ...] | None:
        if not self.concurrent or self.draw(st.booleans()):
            return None
        return tuple(self.draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True)))


def needs_merge(ir: WorkflowIR) -> bool:
    """Whether some key is written more than once in a parallel, so that a `merge` must name it."""
    for _, node in walk(ir):
        if isinstance(node, ParallelOverNode) and _written(node.body):
            return True
        if isinstance(node, ParallelNode) and _shared([_written((arm,)) for arm in node.branches]):
            return True
    return False


def _written(block: tuple[Node, ...]) -> set[str]:
    """The keys that stages of a block say they write, at any depth."""
    found: set[str] = set()
    for node in block:
        if isinstance(node, StageNode):
            found.update(node.writes or ())
        for _, inner in blocks(node):
            found |= _written(inner)
    return found


def _shared(arms: list[set[str]]) -> set[str]:
    """The keys that more than one branch writes."""
    return {key for arm in arms for key in arm if sum(key in other for other in arms) > 1}


def _name(draw: st.DrawFn, barred: set[str], names: tuple[str, ...]) -> str:
    """One of few names, with a number behind it where it is taken."""
    drawn = draw(st.sampled_from(names))
    numbered = (drawn if n == 1 else f"{drawn}{n}" for n in range(1, 10_000))
    return next(each for each in numbered if each not in barred)


def nothing(_ctx: Any) -> None:
    """The binding of every node that a test does not name: no work, no items, no."""


def stop(_ctx: Any) -> bool:
    """The `stop_when` of every async_loop that a test does not name: yes, after one item."""
    return True


def two(_ctx: Any) -> int:
    """The `max_concurrency` of every parallel with a function for one."""
    return 2


def latest(_before: Any, values: list[Any]) -> Any:
    """The reducer of every key that is merged by a function."""
    return values[-1]


reducers: st.SearchStrategy[Reducer] = st.sampled_from(
    [
        *(Reducer(name) for name in ("sum", "extend", "union", "max", "min")),
        Reducer("latest", CodeRef("tests.strategies", "latest")),
    ]
)


def bound_keys(ir: WorkflowIR) -> Iterator[tuple[str, Node]]:
    """The keys that `Workflow.bindings` has for an IR, each with its node."""
    for path, node in walk(ir):
        match node:
            case StageNode() | LoopNode() | StreamLoopNode() | ConditionalNode() | ResourceNode():
                yield path, node
            case AsyncLoopNode():
                yield join(path, PRODUCER), node
                yield join(path, STOP_WHEN), node
            case ParallelNode() | ParallelOverNode():
                if isinstance(node, ParallelOverNode):
                    yield path, node
                if node.limit is not None:
                    yield limit_key(path), node
                for key, reducer in node.merge.items():
                    if reducer.code is not None:
                        yield reducer_key(path, key), node
            case BranchNode() | IncludeNode() | CheckpointNode():
                pass


def build_workflow(
    ir: WorkflowIR,
    bindings: Mapping[str, Binding] | Callable[[str, Node], Binding] | None = None,
) -> Workflow[Any, Any]:
    """The workflow that says what `ir` says, told to a real builder.

    `bindings` gives what each node runs, by its key in `Workflow.bindings` or as a function of
    that key and the node.
    """

    def bound(key: str, node: Node) -> Any:
        if callable(bindings):
            return bindings(key, node)
        return (bindings or {}).get(key) or _default(key, node)

    return _Telling(bound).workflow(ir, "")


def _default(key: str, node: Node) -> Any:
    if isinstance(node, AsyncLoopNode) and key.endswith(f"/{STOP_WHEN}"):
        return stop
    if isinstance(node, ParallelNode | ParallelOverNode) and "?" in key:
        return two if key.endswith(limit_key("")) else latest
    return nothing


@dataclass(frozen=True)
class _Telling:
    """Tells nodes to a builder. `bound` gives what each runs."""

    bound: Callable[[str, Node], Any]

    def workflow(self, ir: WorkflowIR, base: str) -> Workflow[Any, Any]:
        @workflow(name=ir.name, seed_globals=ir.seed_globals)
        def told(wf: WorkflowBuilder) -> None:
            self.block(wf, ir.body, base)

        return told

    def block(self, wf: WorkflowBuilder, block: tuple[Node, ...], base: str) -> None:
        for node in block:
            self.node(wf, node, join(base, node.name))

    def node(self, wf: WorkflowBuilder, node: Node, path: str) -> None:
        match node:
            case StageNode():
                wf.stage(
                    node.name,
                    self.bound(path, node),
                    options=node.options,
                    thread=node.thread,
                    writes=node.writes,
                )
            case ResourceNode():
                wf.resource(node.name, self.bound(path, node), stateful=node.stateful)
            case CheckpointNode():
                wf.checkpoint(node.name)
            case IncludeNode():
                inner = self.workflow(WorkflowIR(node.workflow, node.body), path)
                wf.include(inner, name=node.name)
            case ConditionalNode():
                with wf.conditional(self.bound(path, node), name=node.name):
                    self.block(wf, node.then, path)
                if node.otherwise:
                    with wf.otherwise():
                        self.block(wf, node.otherwise, join(path, OTHERWISE))
            case _:
                with self.opened(wf, node, path):
                    self.block(wf, _body(node), path)

    def opened(self, wf: WorkflowBuilder, node: Node, path: str) -> Block:
        match node:
            case LoopNode():
                return wf.loop(node.name, over=self.bound(path, node))
            case StreamLoopNode():
                return wf.stream_loop(node.name, self.bound(path, node), prefetch=node.prefetch)
            case AsyncLoopNode():
                return self.async_loop(wf, node, path)
            case ParallelNode() | ParallelOverNode():
                return self.parallel(wf, node, path)
            case _:
                return wf.branch(node.name)

    def async_loop(self, wf: WorkflowBuilder, node: AsyncLoopNode, path: str) -> Block:
        pacing: Any = node.pacing
        return wf.async_loop(
            node.name,
            producer=self.bound(join(path, PRODUCER), node),
            stop_when=self.bound(join(path, STOP_WHEN), node),
            buffer_size=node.buffer_size,
            producers=node.producers,
            pacing=pacing,
            max_staleness=node.max_staleness,
        )

    def parallel(
        self, wf: WorkflowBuilder, node: ParallelNode | ParallelOverNode, path: str
    ) -> Block:
        over = self.bound(path, node) if isinstance(node, ParallelOverNode) else None
        limited = node.limit is not None
        on_error: Any = node.on_error
        merge: dict[str, Any] = {
            key: self.bound(reducer_key(path, key), node) if each.code else each.name
            for key, each in node.merge.items()
        }
        most = self.bound(limit_key(path), node) if limited else node.max_concurrency
        return wf.parallel(
            node.name, over=over, max_concurrency=most, on_error=on_error, merge=merge
        )


def _body(node: Node) -> tuple[Node, ...]:
    """The one block of a node."""
    return next(block for _, block in blocks(node))

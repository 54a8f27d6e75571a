"""Workflows that nobody would write, for properties that must hold for every workflow.

`workflow_irs()` gives only what the builder would let through: names unique among siblings,
resource names unique everywhere, no loop inside one of its own name, no empty block, and a
checkpoint only where a resource that it could save is declared before, and never in a parallel.
With `concurrent=True` it draws the constructs that run things beside each other too, with
`failures=True` what is said of failing: `wf.timeout`, `wf.on_error`, `compensate`, and a stage's
retries, timeout, effect, on_error and rollback. `build_workflow` tells such a workflow to a real
builder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from hypothesis import strategies as st

from kitchen.workflow.assembly import Block
from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import Binding, Workflow, limit_key, reducer_key, retry_key
from kitchen.workflow.ir import (
    OTHERWISE,
    PRODUCER,
    STOP_WHEN,
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
    blocks,
    join,
    walk,
)
from kitchen.workflow.retry import Retry
from kitchen.workflow.stage import Stage

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
TIMES = (0.5, 60.0, 3600.0)
ERRORS: dict[str, type[Exception]] = {
    each.__qualname__: each for each in (ConnectionError, TimeoutError, ValueError)
}
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
    failures: bool = False,
    processes: bool = False,
) -> WorkflowIR:
    """Valid IRs of about `max_nodes` nodes, nested at most `max_depth` deep.

    `concurrent`: with stream_loop, async_loop, parallel, branch, include and `writes` too.
    `failures`: with timeout and on_error blocks, and all that a stage can say of failing.
    `processes`: some stages run in a worker process; what they are bound to must be importable.
    """
    budget = draw(st.integers(1, max_nodes))
    growth = _Growth(draw, budget, with_options, concurrent, failures, processes)
    body = growth.block(_Place(max_depth))
    compensate = failures and draw(st.booleans())
    return WorkflowIR(name=draw(st.sampled_from(NAMES)), body=body, compensate=compensate)


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
    failures: bool
    processes: bool
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
            if self.failures and _handled(node, place) and self.draw(st.booleans()):
                nodes.append(self.handler({node.name for node in nodes} | place.barred, place))
        return tuple(nodes)

    def handler(self, taken: set[str], place: _Place) -> HandlerNode:
        """What stands behind a node; it may be empty."""
        self.left -= 1
        name = _name(self.draw, taken, NAMES + RESERVED if self.concurrent else NAMES)
        more = place.depth > 1 and self.left > 0 and self.draw(st.booleans())
        return HandlerNode(name, self.block(place.inside()) if more else ())

    def kinds(self, place: _Place) -> list[str]:
        kinds = ["stage"]
        if not place.forks:
            kinds.append("resource")
        if place.saves and not place.in_parallel:
            kinds.append("checkpoint")
        if place.depth > 1 and self.left > 0:
            kinds += SEQUENTIAL
            kinds += CONCURRENT if self.concurrent else ()
            kinds += ["timeout"] if self.failures else ()
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
                return self.stage(name, code)
            case "resource":
                self.resources.add(name)
                return ResourceNode(name, code, self.draw(st.sampled_from((None, True, False))))
            case "checkpoint":
                return CheckpointNode(name)
            case "loop":
                return LoopNode(name, code, self.block(place.loop(name)))
            case "timeout":
                limit = self.draw(st.sampled_from(TIMES))
                return TimeoutNode(name, limit, self.block(place.inside()))
            case "conditional":
                then = self.block(place.inside())
                more = self.left > 0 and self.draw(st.booleans())
                no = self.block(place.inside()) if more else ()
                return ConditionalNode(name, code, then, no)
            case _:
                return self.concurrent_node(kind, name, code, place)

    def stage(self, name: str, code: CodeRef) -> StageNode:
        held = self.draw(options) if self.with_options else {}
        thread = self.draw(st.booleans())
        node = StageNode(name, code, options=held, thread=thread, writes=self.writes())
        if not self.failures:
            return node
        rollback = self.draw(st.booleans())
        remote = self.processes and thread and not rollback and self.draw(st.booleans())
        return msgspec.structs.replace(
            node,
            retry=self.draw(st.none() | retries),
            # A sync body that no thread runs cannot be stopped.
            timeout=self.draw(st.none() | st.sampled_from(TIMES)) if thread else None,
            effect=self.draw(st.sampled_from(("repeatable", "once"))),
            process=remote,
            on_error=self.draw(st.sampled_from(("fail", "fail", "skip"))),
            rollback=rollback,
        )

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


def _handled(node: Node, place: _Place) -> bool:
    """Whether an on_error may stand behind a node of this block."""
    return not place.forks and not (isinstance(node, StageNode) and node.on_error == "skip")


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


retries: st.SearchStrategy[Retries] = st.builds(
    Retries,
    retries=st.integers(1, 3),
    backoff=st.sampled_from((0.0, 1.0, 2.5)),
    max_delay=st.sampled_from((0.0, 60.0)),
    jitter=st.sampled_from((0.0, 0.1)),
    on=st.sets(st.sampled_from(sorted(ERRORS))).map(sorted).map(tuple),
)


class Undoable(Stage):
    """The stage of every node that has a rollback: it executes what the node is bound to."""

    def __init__(self, body: Callable[[Any], Any]) -> None:
        own: Any = self
        own.execute = body

    def execute(self, ctx: Any) -> Any: ...

    def rollback(self, ctx: Any, error: Any) -> None: ...


def bound_keys(ir: WorkflowIR) -> Iterator[tuple[str, Node]]:
    """The keys that `Workflow.bindings` has for an IR, each with its node."""
    for path, node in walk(ir):
        match node:
            case StageNode() | LoopNode() | StreamLoopNode() | ConditionalNode() | ResourceNode():
                yield path, node
                if isinstance(node, StageNode) and node.retry is not None:
                    yield retry_key(path), node
            case AsyncLoopNode():
                yield join(path, PRODUCER), node
                yield join(path, STOP_WHEN), node
            case ParallelNode() | ParallelOverNode():
                yield from ((key, node) for key in _keys_of(path, node))
            case BranchNode() | IncludeNode() | CheckpointNode() | TimeoutNode() | HandlerNode():
                pass


def _keys_of(path: str, node: ParallelNode | ParallelOverNode) -> Iterator[str]:
    if isinstance(node, ParallelOverNode):
        yield path
    if node.limit is not None:
        yield limit_key(path)
    for key, reducer in node.merge.items():
        if reducer.code is not None:
            yield reducer_key(path, key)


def build_workflow(
    ir: WorkflowIR,
    bindings: Mapping[str, Binding] | Callable[[str, Node], Binding] | None = None,
) -> Workflow[Any, Any]:
    """The workflow that says what `ir` says, told to a real builder.

    `bindings` gives what each node runs, by its key in `Workflow.bindings` or as a function of
    that key and the node; but `retry_key` is no such key: what is tried again, the node says.
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
    compensate: bool = False

    def workflow(self, ir: WorkflowIR, base: str) -> Workflow[Any, Any]:
        telling = replace(self, compensate=ir.compensate)

        @workflow(name=ir.name, seed_globals=ir.seed_globals, compensate=ir.compensate)
        def told(wf: WorkflowBuilder) -> None:
            telling.block(wf, ir.body, base)

        return told

    def block(self, wf: WorkflowBuilder, block: tuple[Node, ...], base: str) -> None:
        for node in block:
            self.node(wf, node, join(base, node.name))

    def node(self, wf: WorkflowBuilder, node: Node, path: str) -> None:
        match node:
            case StageNode():
                self.stage(wf, node, path)
            case ResourceNode():
                wf.resource(node.name, self.bound(path, node), stateful=node.stateful)
            case CheckpointNode():
                wf.checkpoint(node.name)
            case IncludeNode():
                included = WorkflowIR(node.workflow, node.body, compensate=self.compensate)
                inner = self.workflow(included, path)
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

    def stage(self, wf: WorkflowBuilder, node: StageNode, path: str) -> None:
        body = self.bound(path, node)
        effect: Any = node.effect
        on_error: Any = node.on_error
        wf.stage(
            node.name,
            Undoable(body) if node.rollback and not isinstance(body, Stage) else body,
            options=node.options,
            retries=_retry(node.retry),
            timeout=node.timeout,
            effect=effect,
            thread=node.thread,
            process=node.process,
            writes=node.writes,
            on_error=on_error,
        )

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
            case TimeoutNode():
                return wf.timeout(node.seconds, name=node.name)
            case HandlerNode():
                return wf.on_error(node.name)
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


def _retry(recorded: Retries | None) -> Retry | int:
    if recorded is None:
        return 0
    return Retry(
        recorded.retries,
        backoff=recorded.backoff,
        max_delay=recorded.max_delay,
        jitter=recorded.jitter,
        on=tuple(ERRORS[name] for name in recorded.on) or (Exception,),
    )


def _body(node: Node) -> tuple[Node, ...]:
    """The one block of a node."""
    return next(block for _, block in blocks(node))

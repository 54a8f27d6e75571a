"""The intermediate representation: a workflow as frozen data.

Rules:

1. A node is what `WorkflowBuilder` was told, and nothing else: no callable, no live object.
2. Going to JSON and back is the identity (`to_json`, `from_json`).
3. User code enters as `CodeRef`: where it was found, and a digest of its source. That is
   *provenance*. It is kept apart from the *shape*: the fingerprint hashes the shape alone,
   so it is the same in every process and on every machine, and editing a body does not
   change it.
4. A path is the names from the root joined by `/`. The children of an `otherwise` block
   stand under the reserved name `otherwise` of their conditional, what an async_loop asks
   under its reserved names `producer` and `stop_when`.
5. A handler stands right behind the node whose failure it handles, in the same block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

OTHERWISE = "otherwise"
PRODUCER, STOP_WHEN = "producer", "stop_when"


class CodeRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a callable was found. `digest` hashes its source ("" where there is none)."""

    module: str
    qualname: str
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


class Retries(msgspec.Struct, frozen=True, omit_defaults=True):
    """Further attempts of a stage that raised.

    `retries`: how many. Before number n it waits `backoff` * 2 ** (n - 1) seconds, at most
    `max_delay`, give or take the share `jitter` of it. `on`: the names of the exception types that
    are tried again; empty: any.
    """

    retries: int
    backoff: float = 1.0
    max_delay: float = 60.0
    jitter: float = 0.1
    on: tuple[str, ...] = ()


class StageNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="stage", tag_field="node"):
    """One unit of user work. `thread`: whether a sync body runs in a worker thread.

    `writes`: the only state keys that it may change; None: any. `timeout`: how many seconds an
    attempt may take. `effect`: "repeatable", or "once" where it must not silently run twice.
    `process`: whether it runs in a worker process. `on_error`: "fail", or "skip" to go on behind
    it. `rollback`: whether it has a hook for that.
    """

    name: str
    body: CodeRef
    options: dict[str, Any] = {}
    thread: bool = True
    writes: tuple[str, ...] | None = None
    retry: Retries | None = None
    timeout: float | None = None
    effect: str = "repeatable"
    process: bool = False
    on_error: str = "fail"
    rollback: bool = False


class LoopNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="loop", tag_field="node"):
    """`body` once per item of the collection that `over(ctx)` gives at entry."""

    name: str
    over: CodeRef
    body: tuple[Node, ...] = ()


class StreamLoopNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="stream_loop", tag_field="node"
):
    """`body` once per item of `over(ctx)`, pulled lazily, at most `prefetch` items ahead."""

    name: str
    over: CodeRef
    body: tuple[Node, ...] = ()
    prefetch: int = 2


class AsyncLoopNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="async_loop", tag_field="node"
):
    """`body` once per item that `producer(ctx)` makes beside it, until `stop_when(ctx)`.

    At most `buffer_size` items are made ahead, by `producers` calls at a time. `pacing` is "paced"
    (what a production sees is fixed by its number) or "free" (the latest). `max_staleness`: how
    many items may have been consumed since the state that an item was made from; None: any.
    """

    name: str
    producer: CodeRef
    stop_when: CodeRef
    body: tuple[Node, ...] = ()
    buffer_size: int = 4
    producers: int = 1
    pacing: str = "paced"
    max_staleness: int | None = None


class Reducer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the values that several branches gave one key become one: by name, or by user code."""

    name: str
    code: CodeRef | None = None


class BranchNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="branch", tag_field="node"):
    """One arm of a `parallel`, with several nodes. Any other node there is an arm by itself."""

    name: str
    body: tuple[Node, ...] = ()


class ParallelNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="parallel", tag_field="node"
):
    """`branches` beside each other.

    At most `max_concurrency` at a time, or as many as `limit(ctx)` says, or as there are CPUs.
    `on_error`: "cancel" or "finish", what happens to the siblings of a branch that fails. `merge`:
    the state keys that more than one branch may write.
    """

    name: str
    branches: tuple[Node, ...] = ()
    max_concurrency: int | None = None
    limit: CodeRef | None = None
    on_error: str = "cancel"
    merge: dict[str, Reducer] = {}


class ParallelOverNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="parallel_over", tag_field="node"
):
    """`body` once per item of the collection that `over(ctx)` gives at entry, beside each other.

    The other fields are those of `ParallelNode`.
    """

    name: str
    over: CodeRef
    body: tuple[Node, ...] = ()
    max_concurrency: int | None = None
    limit: CodeRef | None = None
    on_error: str = "cancel"
    merge: dict[str, Reducer] = {}


class IncludeNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="include", tag_field="node"):
    """The nodes of another workflow, under a path of their own."""

    name: str
    workflow: str
    body: tuple[Node, ...] = ()


class TimeoutNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="timeout", tag_field="node"):
    """`body`, which may take so many seconds of executing time."""

    name: str
    seconds: float
    body: tuple[Node, ...] = ()


class HandlerNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="on_error", tag_field="node"
):
    """`body` if the node right before it fails for good; then, and else, on behind it."""

    name: str
    body: tuple[Node, ...] = ()


class ConditionalNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="conditional", tag_field="node"
):
    """`then` if `predicate(ctx)` is true, else `otherwise`."""

    name: str
    predicate: CodeRef
    then: tuple[Node, ...] = ()
    otherwise: tuple[Node, ...] = ()


class ResourceNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="resource", tag_field="node"
):
    """Opens a live object here; it is closed where the enclosing block ends.

    `stateful`: whether it must have `state_dict`; None leaves that to the object.
    """

    name: str
    factory: CodeRef
    stateful: bool | None = None


class CheckpointNode(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="checkpoint", tag_field="node"
):
    """Saves every stateful resource that is open here: a consistent cut."""

    name: str


Node: TypeAlias = (
    StageNode
    | LoopNode
    | StreamLoopNode
    | AsyncLoopNode
    | ConditionalNode
    | ParallelNode
    | ParallelOverNode
    | BranchNode
    | IncludeNode
    | TimeoutNode
    | HandlerNode
    | ResourceNode
    | CheckpointNode
)


REPEATING = (LoopNode, StreamLoopNode, AsyncLoopNode, ParallelOverNode)
"""The nodes that give an index to what is in them."""


class WorkflowIR(msgspec.Struct, frozen=True, omit_defaults=True):
    """The root. `config` and `state` name the declared types, if any.

    `compensate`: whether a run that fails rolls its completed stages back.
    """

    name: str
    body: tuple[Node, ...]
    config: CodeRef | None = None
    state: CodeRef | None = None
    seed_globals: bool = False
    compensate: bool = False


def blocks(node: Node | WorkflowIR) -> Iterator[tuple[str, tuple[Node, ...]]]:
    """The blocks of a node, each with the path segment its children stand under ("" for none)."""
    match node:
        case ConditionalNode():
            yield "", node.then
            yield OTHERWISE, node.otherwise
        case ParallelNode():
            yield "", node.branches
        case StageNode() | ResourceNode() | CheckpointNode():
            return
        case _:
            yield "", node.body


def walk(root: WorkflowIR) -> Iterator[tuple[str, Node]]:
    """Every node with its path, parents before children, in the order of authoring."""

    def under(prefix: str, parent: Node | WorkflowIR) -> Iterator[tuple[str, Node]]:
        for segment, block in blocks(parent):
            base = join(prefix, segment)
            for node in block:
                path = join(base, node.name)
                yield path, node
                yield from under(path, node)

    yield from under("", root)


def program_order(root: WorkflowIR) -> Callable[[str, tuple[int, ...]], tuple[int, ...]]:
    """A key by which addresses (path and visit) sort as if branches ran one after another.

    Level by level, it is a node's place in its block, then the index if the node repeats. Raises
    `KeyError` for a path that the workflow has not.
    """
    ways: dict[str, tuple[int | None, ...]] = {}  # None stands for the next index of the visit

    def under(prefix: str, parent: Node | WorkflowIR, way: tuple[int | None, ...]) -> None:
        place = 0
        for segment, block in blocks(parent):
            base = join(prefix, segment)
            for node in block:
                path = join(base, node.name)
                ways[path] = (*way, place, None) if isinstance(node, REPEATING) else (*way, place)
                under(path, node, ways[path])
                place += 1

    under("", root, ())

    def key(path: str, visit: tuple[int, ...]) -> tuple[int, ...]:
        indices = iter(visit)
        return tuple(next(indices, -1) if step is None else step for step in ways[path])

    return key


def join(base: str, name: str) -> str:
    """Two parts of a path, either of which may be empty."""
    return f"{base}/{name}" if base and name else base or name


def to_json(ir: WorkflowIR) -> bytes:
    """The IR as JSON text."""
    return msgspec.json.encode(ir)


def from_json(text: bytes | str | msgspec.Raw) -> WorkflowIR:
    """The IR that `to_json` wrote.

    Raises `msgspec.ValidationError` where the text is not one.
    """
    return msgspec.json.decode(text, type=WorkflowIR)


def fingerprint(ir: WorkflowIR) -> str:
    """16 hex digits over the shape: names, kinds, nesting and options; not the code."""
    text = msgspec.json.encode(_bare_root(ir), order="sorted")
    return hashlib.sha256(text).hexdigest()[:16]


_NO_CODE = CodeRef("", "")
_CODE = ("body", "over", "predicate", "factory", "producer", "stop_when", "limit", "code")
_BLOCKS = ("body", "branches", "then", "otherwise")


def _bare_root(ir: WorkflowIR) -> WorkflowIR:
    body = tuple(_bare(node) for node in ir.body)
    return msgspec.structs.replace(ir, body=body, config=None, state=None)


def _bare(node: Any) -> Any:
    """The node (or reducer) without its provenance."""
    changes: dict[str, Any] = {}
    for name in node.__struct_fields__:
        value = getattr(node, name)
        if name in _CODE and isinstance(value, CodeRef):
            changes[name] = _NO_CODE
        elif name in _BLOCKS:
            changes[name] = tuple(_bare(child) for child in value)
        elif name == "merge":
            changes[name] = {key: _bare(reducer) for key, reducer in value.items()}
    return msgspec.structs.replace(node, **changes)

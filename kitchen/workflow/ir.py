"""The intermediate representation: a workflow as frozen data.

Rules:

1. A node is what `WorkflowBuilder` was told, and nothing else: no callable, no live object.
2. Going to JSON and back is the identity (`to_json`, `from_json`).
3. User code enters as `CodeRef`: where it was found, and a digest of its source. That is
   *provenance*. It is kept apart from the *shape*: the fingerprint hashes the shape alone,
   so it is the same in every process and on every machine, and editing a body does not
   change it.
4. A path is the names from the root joined by `/`. The children of an `otherwise` block
   stand under the reserved name `otherwise` of their conditional.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

OTHERWISE = "otherwise"


class CodeRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a callable was found. `digest` hashes its source ("" where there is none)."""

    module: str
    qualname: str
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


class StageNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="stage", tag_field="node"):
    """One unit of user work. `thread`: whether a sync body runs in a worker thread."""

    name: str
    body: CodeRef
    options: dict[str, Any] = {}
    thread: bool = True


class LoopNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="loop", tag_field="node"):
    """`body` once per item of the collection that `over(ctx)` gives at entry."""

    name: str
    over: CodeRef
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


Node: TypeAlias = StageNode | LoopNode | ConditionalNode | ResourceNode | CheckpointNode


class WorkflowIR(msgspec.Struct, frozen=True, omit_defaults=True):
    """The root. `config` and `state` name the declared types, if any."""

    name: str
    body: tuple[Node, ...]
    config: CodeRef | None = None
    state: CodeRef | None = None
    seed_globals: bool = False


def blocks(node: Node | WorkflowIR) -> Iterator[tuple[str, tuple[Node, ...]]]:
    """The blocks of a node, each with the path segment its children stand under ("" for none)."""
    match node:
        case WorkflowIR() | LoopNode():
            yield "", node.body
        case ConditionalNode():
            yield "", node.then
            yield OTHERWISE, node.otherwise
        case _:
            return


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


def _bare_root(ir: WorkflowIR) -> WorkflowIR:
    body = tuple(_bare(node) for node in ir.body)
    return msgspec.structs.replace(ir, body=body, config=None, state=None)


def _bare(node: Node) -> Node:
    """The node without its provenance."""
    match node:
        case StageNode():
            return msgspec.structs.replace(node, body=_NO_CODE)
        case LoopNode():
            body = tuple(_bare(child) for child in node.body)
            return msgspec.structs.replace(node, over=_NO_CODE, body=body)
        case ConditionalNode():
            return msgspec.structs.replace(
                node,
                predicate=_NO_CODE,
                then=tuple(_bare(child) for child in node.then),
                otherwise=tuple(_bare(child) for child in node.otherwise),
            )
        case ResourceNode():
            return msgspec.structs.replace(node, factory=_NO_CODE)
        case CheckpointNode():
            return node

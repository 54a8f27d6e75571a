"""How pictures call the parts of a workflow: the same words in every picture.

Rules:

1. A caption is one line. What a user's function has no name for gets a plain word instead.
2. What holds without being said (a default) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from kitchen.workflow.ir import (
    AsyncLoopNode,
    CodeRef,
    IncludeNode,
    LoopNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    Retries,
    StageNode,
    StreamLoopNode,
    TimeoutNode,
)


def line(node: Node) -> str:
    """A node in one line, with all that is to be said of it."""
    match node:
        case LoopNode():
            return f"loop {node.name} over {short(node.over, 'items')}"
        case StreamLoopNode():
            over = short(node.over, "items")
            return f"stream_loop {node.name} over {over}, prefetch {node.prefetch}"
        case AsyncLoopNode():
            asked = short(node.stop_when, "stopped")
            return ", ".join([f"{frame(node)} from {maker(node)} until {asked}", *ahead(node)])
        case ParallelNode() | ParallelOverNode():
            merged = merging(node)
            return frame(node) + (f", merging {', '.join(merged)}" if merged else "")
        case _:
            return frame(node)


def frame(node: Node) -> str:
    """A node in the words that stand above its block."""
    match node:
        case StageNode():
            return f"stage {stage(node)}"
        case TimeoutNode():
            named = "timeout" if node.name == "timeout" else f"timeout {node.name}"
            return f"{named}, {seconds(node.seconds)}"
        case StreamLoopNode():
            return f"stream_loop {node.name}, prefetch {node.prefetch}"
        case ParallelNode():
            named = "parallel" if node.name == "parallel" else f"parallel {node.name}"
            return ", ".join([named, *_beside(node)])
        case ParallelOverNode():
            each = f"for each of {short(node.over, 'items')}"
            return ", ".join([f"parallel {node.name}", each, *_beside(node)])
        case IncludeNode():
            also = "" if node.workflow == node.name else f", the workflow {node.workflow}"
            return f"include {node.name}{also}"
        case _:
            return f"{type(node).__struct_config__.tag} {node.name}"


def stage(node: StageNode) -> str:
    """A stage's name, and what it says of failing and of how it runs."""
    return ", ".join([node.name, *_said(node)])


def seconds(limit: float) -> str:
    """A time, as short as it can be told."""
    return f"{limit:.12g} s"


def maker(node: AsyncLoopNode) -> str:
    """The producer, and how many calls of it run at a time."""
    named = short(node.producer, "producer")
    return named if node.producers == 1 else f"{named} ({node.producers} at a time)"


def ahead(node: AsyncLoopNode) -> Iterator[str]:
    """How far ahead of the body the producer is, and how old an item may be."""
    yield f"buffer {node.buffer_size}"
    if node.pacing != "paced":
        yield node.pacing
    if node.max_staleness is not None:
        yield f"staleness at most {node.max_staleness}"


def merging(node: ParallelNode | ParallelOverNode) -> list[str]:
    """The keys that are merged at the join, and how."""
    return [
        f"{key if key.isidentifier() else repr(key)} by {short_name(each.name, 'a function')}"
        for key, each in node.merge.items()
    ]


def short(code: CodeRef, otherwise: str) -> str:
    """The bare name of a function; another word for a lambda, which has none."""
    return short_name(code.qualname.rpartition(".")[2], otherwise)


def short_name(name: str, otherwise: str) -> str:
    """A simple name, or another word for that of a lambda."""
    return otherwise if name in ("", "<lambda>") else name


def _beside(node: ParallelNode | ParallelOverNode) -> Iterator[str]:
    if node.max_concurrency is not None:
        yield f"at most {node.max_concurrency}"
    if node.limit is not None:
        yield f"at most as {short(node.limit, 'a function')} says"
    if node.on_error == "finish":
        yield "all finish"


def _said(node: StageNode) -> Iterator[str]:
    if node.retry is not None:
        yield _tries(node.retry)
    if node.timeout is not None:
        yield seconds(node.timeout)
    if node.effect != "repeatable":
        yield node.effect
    if node.process:
        yield "process"
    if node.on_error != "fail":
        yield f"{node.on_error} on error"


def _tries(retry: Retries) -> str:
    counted = "1 retry" if retry.retries == 1 else f"{retry.retries} retries"
    return f"{counted} on {' or '.join(retry.on)}" if retry.on else counted

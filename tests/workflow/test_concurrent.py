"""What the builder records of stream_loop, async_loop, parallel, branch and `writes`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given

from kitchen.errors import WorkflowError
from kitchen.workflow import ir
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import limit_key, reducer_key
from kitchen.workflow.diagram import to_mermaid, to_tree
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    ConditionalNode,
    IncludeNode,
    LoopNode,
    ParallelNode,
    ParallelOverNode,
    StageNode,
    StreamLoopNode,
)
from kitchen.workflow.provenance import code_ref
from tests.strategies import build_workflow, needs_merge, nothing, workflow_irs
from tests.workflow import samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from kitchen.workflow.builder import WorkflowBuilder


def only(build: Callable[[WorkflowBuilder], None]) -> Any:
    """The one node of a workflow."""
    (node,) = workflow(name="only")(build).ir.body
    return node


def test_the_seed_parallel() -> None:
    node = samples.parallel_evals.ir.body[1]
    assert isinstance(node, ParallelNode)
    assert (node.name, node.max_concurrency, node.limit) == ("parallel", 4, None)
    assert (node.on_error, node.merge) == ("cancel", {})
    assert [branch.name for branch in node.branches] == ["eval_train", "eval_val", "eval_test"]
    assert set(samples.parallel_evals.bindings) == {
        "train", "parallel/eval_train", "parallel/eval_val", "parallel/eval_test", "save"
    }  # fmt: skip


def test_the_seed_stream_loop() -> None:
    node = samples.streaming.ir.body[1]
    assert isinstance(node, StreamLoopNode)
    assert node == StreamLoopNode(
        "batches", code_ref(samples.stream_batches), node.body, prefetch=4
    )
    assert [child.name for child in node.body] == ["train_batch"]
    assert samples.streaming.bindings["batches"] is samples.stream_batches


def test_the_seed_async_loop() -> None:
    node = samples.off_policy_rl.ir.body[1]
    assert isinstance(node, AsyncLoopNode)
    assert node == AsyncLoopNode(
        name="off_policy",
        producer=code_ref(samples.collect_rollouts),
        stop_when=code_ref(samples.done_training),
        body=node.body,
        buffer_size=4,
        producers=1,
        pacing="paced",
        max_staleness=None,
    )
    bindings = samples.off_policy_rl.bindings
    assert list(bindings) == [
        "init", "off_policy/producer", "off_policy/stop_when", "off_policy/train_batch", "save"
    ]  # fmt: skip
    assert bindings["off_policy/producer"] is samples.collect_rollouts
    assert bindings["off_policy/stop_when"] is samples.done_training


def test_the_seed_composition() -> None:
    built = samples.full_training
    evals = "epochs/should_eval/parallel"
    kinds = {path: type(node) for path, node in ir.walk(built.ir)}
    assert kinds["epochs"] is LoopNode
    assert kinds["epochs/batches"] is StreamLoopNode
    assert kinds["epochs/should_eval"] is ConditionalNode
    assert kinds[evals] is ParallelNode
    assert kinds[f"{evals}/eval_train"] is StageNode
    assert kinds[f"{evals}/eval_val"] is BranchNode
    assert kinds[f"{evals}/eval_val/score"] is StageNode
    assert kinds[f"{evals}/eval_all"] is IncludeNode
    assert kinds[f"{evals}/eval_all/evals"] is ParallelOverNode
    assert kinds["off_policy"] is AsyncLoopNode
    node = dict(ir.walk(built.ir))["off_policy"]
    assert isinstance(node, AsyncLoopNode)
    assert (node.producers, node.pacing, node.max_staleness) == (2, "free", 3)
    assert built.bindings[reducer_key(evals, "global_step")] is samples.latest
    assert built.bindings[limit_key(f"{evals}/eval_all/evals")] is samples.workers
    assert reducer_key(evals, "global_step") == f"{evals}?merge:global_step"
    assert limit_key(evals) == f"{evals}?max_concurrency"


@pytest.mark.parametrize(
    "over",
    [
        samples.stream_batches,
        samples.streamed_from_afar,
        samples.epochs_range,
        functools.partial(samples.scaled, 0.5),
        range,
        lambda ctx: iter(()),
    ],
)
def test_whatever_gives_items_can_be_streamed(over: Any) -> None:
    def streamed(wf: WorkflowBuilder) -> None:
        with wf.stream_loop("a", over):
            wf.stage("b", nothing)

    assert only(streamed) == StreamLoopNode(
        "a", code_ref(over), (StageNode("b", code_ref(nothing)),), prefetch=2
    )


@pytest.mark.parametrize("staleness", [None, 0, 1, 3])
def test_every_staleness_is_legal(staleness: int | None) -> None:
    def loop(wf: WorkflowBuilder) -> None:
        with wf.async_loop(
            "a", nothing, samples.should_checkpoint, buffer_size=3, max_staleness=staleness
        ):
            wf.stage("b", nothing)

    assert only(loop).max_staleness == staleness


def test_reserved_names_are_free_below_the_children_of_an_async_loop() -> None:
    @workflow
    def loops(wf: WorkflowBuilder) -> None:
        wf.stage("producer", nothing)
        with wf.async_loop("a", nothing, samples.done_training):
            with wf.loop("b", samples.epochs_range):
                wf.stage("producer", nothing)
                wf.stage("stop_when", nothing)

    assert set(loops.bindings) == {
        "producer", "a/producer", "a/stop_when", "a/b", "a/b/producer", "a/b/stop_when"
    }  # fmt: skip


def test_every_block_can_be_a_branch() -> None:
    def beside(wf: WorkflowBuilder) -> None:
        with wf.parallel("all"):
            wf.stage("stage", nothing)
            with wf.loop("loop", samples.epochs_range):
                wf.stage("a", nothing)
            with wf.stream_loop("stream", samples.stream_batches):
                wf.stage("a", nothing)
            with wf.async_loop("async", nothing, samples.done_training):
                wf.stage("a", nothing)
            with wf.conditional(samples.should_eval):
                wf.stage("a", nothing)
            with wf.otherwise():
                wf.stage("a", nothing)
            with wf.parallel():
                wf.stage("a", nothing)
            with wf.parallel("over", over=samples.splits):
                wf.stage("a", nothing)
            with wf.branch("branch"):
                wf.resource("r", samples.open_session)
                wf.stage("a", nothing)
            wf.include(samples.streaming)

    node = only(beside)
    assert [type(each) for each in node.branches] == [
        StageNode, LoopNode, StreamLoopNode, AsyncLoopNode, ConditionalNode, ParallelNode,
        ParallelOverNode, BranchNode, IncludeNode,
    ]  # fmt: skip
    assert node.branches[4].otherwise


def test_a_parallel_over() -> None:
    def beside(wf: WorkflowBuilder) -> None:
        with wf.parallel("evals", samples.splits, samples.workers, "finish", {}):
            wf.resource("r", samples.open_session)
            wf.stage("a", nothing)

    node = only(beside)
    assert node == ParallelOverNode(
        "evals",
        code_ref(samples.splits),
        node.body,
        limit=code_ref(samples.workers),
        on_error="finish",
    )
    assert len(node.body) == 2


def test_reducers() -> None:
    merged: dict[str, Any] = {
        "a": "sum", "b": sum, "c": "extend", "d": "union", "e": max, "f": min,
        "g": samples.latest, "h": lambda before, values: before, "odd/key?": functools.partial(max),
    }  # fmt: skip

    @workflow
    def beside(wf: WorkflowBuilder) -> None:
        with wf.parallel(merge=merged):
            wf.stage("a", nothing)

    node = beside.ir.body[0]
    assert isinstance(node, ParallelNode)
    assert {key: (each.name, each.code) for key, each in node.merge.items()} == {
        "a": ("sum", None), "b": ("sum", None), "c": ("extend", None), "d": ("union", None),
        "e": ("max", None), "f": ("min", None), "g": ("latest", code_ref(samples.latest)),
        "h": ("<lambda>", code_ref(merged["h"])), "odd/key?": ("max", code_ref(max)),
    }  # fmt: skip
    assert {key: bound for key, bound in beside.bindings.items() if "?" in key} == {
        f"parallel?merge:{key}": merged[key] for key in ("g", "h", "odd/key?")
    }


def test_a_reducer_of_ones_own_is_another_shape() -> None:
    def sum(before: Any, values: Any) -> Any:  # noqa: A001 - on purpose
        ...

    prints: set[str] = set()
    for reducer in ("sum", sum, "max"):

        @workflow(name="same")
        def beside(wf: WorkflowBuilder, reducer: Any = reducer) -> None:
            with wf.parallel(merge={"a": reducer}):
                wf.stage("a", nothing)

        prints.add(beside.fingerprint)
    assert len(prints) == 3


def test_what_a_stage_writes() -> None:
    @workflow(state=samples.State)
    def writing(wf: WorkflowBuilder) -> None:
        wf.stage("any", nothing)
        wf.stage("none", nothing, writes=())
        wf.stage("one", nothing, writes=["global_step", "global_step"])

    assert [node.writes for node in writing.ir.body if isinstance(node, StageNode)] == [
        None,
        (),
        ("global_step",),
    ]


def test_keys_are_in_an_order_that_every_process_agrees_on() -> None:
    def listed(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing, writes=(key for key in "zaza"))

    def unordered(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing, writes=set("zyxwabc"))

    assert only(listed).writes == ("z", "a")
    assert only(unordered).writes == tuple("abcwxyz")


def test_one_key_in_one_branch_is_no_conflict() -> None:
    @workflow
    def beside(wf: WorkflowBuilder) -> None:
        with wf.parallel():
            with wf.branch("one"):
                wf.stage("a", nothing, writes=["k"])
                wf.stage("b", nothing, writes=["k"])
                with wf.parallel(merge={"k": "sum"}):
                    wf.stage("a", nothing, writes=["k"])
                    wf.stage("b", nothing, writes=["k"])
            with wf.conditional(samples.should_eval):
                wf.stage("a", nothing, writes=["l"])
            with wf.otherwise():
                wf.stage("a", nothing, writes=["l"])
        wf.stage("after", nothing, writes=["k", "l"])

    assert len(beside.bindings) == 8


@given(workflow_irs(max_nodes=20, max_depth=5, concurrent=True))
def test_a_merge_is_asked_for_where_it_is_needed(drawn: ir.WorkflowIR) -> None:
    bare: ir.WorkflowIR = _without_merge(drawn)
    if needs_merge(bare):
        with pytest.raises(WorkflowError, match=r"writes? the state key [\s\S]*merge="):
            build_workflow(bare)
    else:
        assert build_workflow(bare).fingerprint == ir.fingerprint(bare)


def _without_merge(node: Any) -> Any:
    changes: dict[str, Any] = {"merge": {}} if hasattr(node, "merge") else {}
    for name in ("body", "branches", "then", "otherwise"):
        if isinstance(block := getattr(node, name, None), tuple):
            changes[name] = tuple(map(_without_merge, block))
    return msgspec.structs.replace(node, **changes)


DEEP = 50


def deep(wf: WorkflowBuilder, level: int) -> None:
    """One block inside the other, of every kind in turn."""
    if level == DEEP:
        wf.stage("work", nothing)
        return
    name = f"l{level}"
    blocks: list[Callable[[], Any]] = [
        lambda: wf.loop(name, samples.epochs_range),
        lambda: wf.stream_loop(name, samples.stream_batches),
        lambda: wf.async_loop(name, nothing, samples.done_training),
        lambda: wf.conditional(samples.should_eval, name),
        lambda: wf.parallel(name),
        lambda: wf.branch(name),
        lambda: wf.parallel(name, over=samples.splits),
    ]
    with blocks[level % len(blocks)]():
        deep(wf, level + 1)


def test_fifty_levels() -> None:
    @workflow
    def nested(wf: WorkflowBuilder) -> None:
        deep(wf, 0)

    walked = dict(ir.walk(nested.ir))
    assert len(walked) == DEEP + 1
    assert max(path.count("/") for path in walked) == DEEP
    assert ir.from_json(ir.to_json(nested.ir)) == nested.ir
    assert ir.fingerprint(ir.from_json(ir.to_json(nested.ir))) == nested.fingerprint
    assert to_mermaid(nested.ir).count("subgraph ") == sum(
        not isinstance(node, (ConditionalNode, StageNode)) for node in walked.values()
    )
    assert len(to_tree(nested.ir).splitlines()) == DEEP + 2


def test_fifty_workflows_in_one_another() -> None:
    inner = samples.custom_training
    for level in range(DEEP):

        @workflow(name=f"w{level}")
        def outer(wf: WorkflowBuilder, inner: Any = inner) -> None:
            wf.include(inner)

        inner = outer
    assert sum(isinstance(node, IncludeNode) for _, node in ir.walk(inner.ir)) == DEEP
    assert ir.from_json(ir.to_json(inner.ir)) == inner.ir
    assert len(to_tree(inner.ir).splitlines()) == 1 + DEEP + len(samples.custom_training.ir.body)

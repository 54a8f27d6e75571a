"""What the builder records of failing: retries, timeouts, effects, handlers, rollbacks."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import kitchen
from kitchen.errors import Fatal, KitchenError, ResourceError, StageTimeout, WorkflowError
from kitchen.workflow import ir
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import retry_key
from kitchen.workflow.ir import HandlerNode, Retries, StageNode, TimeoutNode
from kitchen.workflow.retry import Retry
from kitchen.workflow.stage import Stage
from tests.strategies import nothing
from tests.workflow import samples

if TYPE_CHECKING:
    from kitchen.workflow.builder import WorkflowBuilder
    from kitchen.workflow.definition import Workflow


def staged(body: Any = nothing, **terms: Any) -> StageNode:
    """The node of a workflow of one stage."""
    (node,) = flow(body, **terms).ir.body
    assert isinstance(node, StageNode)
    return node


def flow(body: Any = nothing, **terms: Any) -> Workflow[Any, Any]:
    @workflow
    def one(wf: WorkflowBuilder) -> None:
        wf.stage("a", body, **terms)

    return one


def test_a_workflow_with_all_of_it() -> None:
    nodes = dict(ir.walk(samples.guarded.ir))
    assert samples.guarded.ir.compensate
    assert {
        path: type(node) for path, node in nodes.items() if not isinstance(node, StageNode)
    } == {
        "session": ir.ResourceNode,
        "no_session": HandlerNode,
        "timeout": TimeoutNode,
        "timeout/epochs": ir.LoopNode,
        "timeout/checkpoint": ir.CheckpointNode,
        "on_error": HandlerNode,
        "should_eval": ir.ConditionalNode,
        "not_pushed": HandlerNode,
        "not_pushed/tidying": TimeoutNode,
    }
    assert nodes["on_error"] == HandlerNode("on_error")
    train, publish = nodes["timeout/epochs/train"], nodes["publish"]
    assert isinstance(train, StageNode)
    assert train.retry == Retries(3, backoff=2.0, on=("ConnectionError", "TimeoutError"))
    assert isinstance(publish, StageNode)
    assert publish.rollback
    wants: Any = samples.guarded.bindings["timeout/epochs/train?retry"]
    assert wants(ConnectionResetError())
    assert not wants(ValueError())
    assert {key for key in samples.guarded.bindings if "?" in key} == {
        retry_key("timeout/epochs/train"), retry_key("timeout/epochs/evaluate")
    }  # fmt: skip


def test_what_holds_without_being_said() -> None:
    assert staged() == StageNode("a", staged().body)
    assert staged(retries=0, timeout=None, effect="repeatable", process=False) == staged()
    assert staged(retries=Retry(0), on_error="fail") == staged()
    assert set(flow(retries=0).bindings) == {"a"}
    assert set(flow(retries=1).bindings) == {"a", "a?retry"}


@pytest.mark.parametrize(
    ("given", "recorded"),
    [(600, 600.0), (0.5, 0.5), (timedelta(minutes=2), 120.0), (10**6, 1e6)],
)
def test_a_time_is_recorded_in_seconds(given: Any, recorded: float) -> None:
    node = staged(timeout=given)
    assert (node.timeout, type(node.timeout)) == (recorded, float)

    @workflow
    def timed(wf: WorkflowBuilder) -> None:
        with wf.timeout(given):
            wf.stage("a", nothing)

    assert timed.ir.body == (TimeoutNode("timeout", recorded, (staged(),)),)
    assert ir.fingerprint(ir.from_json(ir.to_json(timed.ir))) == timed.fingerprint


def test_a_timeout_directly_in_a_parallel_is_a_branch() -> None:
    @workflow
    def beside(wf: WorkflowBuilder) -> None:
        with wf.parallel():
            wf.stage("a", nothing, writes=["x"])
            with wf.timeout(1, name="b"):
                wf.stage("c", nothing, retries=2)
                with wf.on_error():
                    wf.stage("d", nothing)

    (parallel,) = beside.ir.body
    assert isinstance(parallel, ir.ParallelNode)
    assert [type(arm) for arm in parallel.branches] == [StageNode, TimeoutNode]
    assert set(beside.bindings) == {
        "parallel/a", "parallel/b/c", "parallel/b/c?retry", "parallel/b/on_error/d"
    }  # fmt: skip


def test_what_is_retried_survives_an_include() -> None:
    @workflow(config=samples.Config, state=samples.State, compensate=True)
    def outer(wf: WorkflowBuilder) -> None:
        with wf.conditional(nothing, name="c"):
            wf.include(samples.guarded, name="inner")

    key = retry_key("timeout/epochs/train")
    assert outer.bindings[f"c/inner/{key}"] == samples.guarded.bindings[key]
    assert "c/inner/on_error" in outer.sites


def test_each_kind_of_node_can_be_handled() -> None:
    @workflow(config=samples.Config, state=samples.State)
    def handled(wf: WorkflowBuilder) -> None:
        def one(name: str) -> None:
            with wf.on_error(name):
                pass

        wf.resource(samples.SESSION)
        one("resource")
        wf.checkpoint()
        one("checkpoint_failed")
        with wf.loop("loop", over=nothing):
            wf.stage("a", nothing)
            one("in_a_loop")
        one("loop_failed")
        with wf.parallel("parallel"):
            with wf.branch("b"):
                wf.stage("a", nothing)
                one("in_a_branch")
        one("parallel_failed")
        wf.include(samples.evaluation)
        one("include_failed")
        with wf.stream_loop("stream", over=nothing):
            wf.stage("a", nothing)
        with wf.on_error("stream_failed"):
            wf.stage("a", nothing)
            one("handling_failed")

    handlers = [path for path, node in ir.walk(handled.ir) if isinstance(node, HandlerNode)]
    assert handlers == [
        "resource", "checkpoint_failed", "loop/in_a_loop", "loop_failed", "parallel/b/in_a_branch",
        "parallel_failed", "include_failed", "stream_failed", "stream_failed/handling_failed",
    ]  # fmt: skip


# --- retries ------------------------------------------------------------------------------------


class LostShard(ConnectionError): ...


def test_an_int_is_a_retry_after_anything() -> None:
    assert staged(retries=3).retry == Retries(3) == Retry(3).ir
    wants: Any = flow(retries=3).bindings["a?retry"]
    assert wants(ValueError())
    assert wants(StageTimeout("too long"))


@pytest.mark.parametrize(
    ("on", "names"),
    [
        (ConnectionError, ("ConnectionError",)),
        ((TimeoutError, ConnectionError), ("ConnectionError", "TimeoutError")),
        ((ConnectionError, TimeoutError, ConnectionError), ("ConnectionError", "TimeoutError")),
        ((LostShard, StageTimeout), ("LostShard", "StageTimeout")),
        ((ValueError, Exception), ()),
    ],
)
def test_the_names_of_what_is_retried_are_recorded(on: Any, names: tuple[str, ...]) -> None:
    assert Retry(2, 0, 5, 1, on).ir == Retries(2, 0.0, 5.0, 1.0, names)


@pytest.mark.parametrize(
    ("on", "error", "wanted"),
    [
        (Exception, ValueError(), True),
        (ConnectionError, LostShard(), True),
        (LostShard, ConnectionError(), False),
        (Exception, Fatal("stop"), False),
        (RuntimeError, Fatal("stop"), False),
        (Exception, ResourceError("not opened"), False),
        (Exception, StageTimeout("too long"), True),
        (TimeoutError, StageTimeout("too long"), True),
        (KitchenError, StageTimeout("too long"), True),
        (ConnectionError, StageTimeout("too long"), False),
        (Exception, KeyboardInterrupt(), False),
        (Exception, ExceptionGroup("", [ValueError()]), True),
        (Exception, ExceptionGroup("", [ValueError(), ExceptionGroup("", [Fatal("")])]), False),
        (ConnectionError, ExceptionGroup("", [LostShard(), LostShard()]), True),
        (ConnectionError, ExceptionGroup("", [LostShard(), ValueError()]), False),
        (ExceptionGroup, ExceptionGroup("", [ValueError()]), True),
        (Exception, BaseExceptionGroup("", [KeyboardInterrupt()]), False),
    ],
)
def test_what_is_tried_again(on: Any, error: BaseException, wanted: bool) -> None:
    assert Retry(1, on=on).wants(error) is wanted


def test_a_retry_is_a_value() -> None:
    one = Retry(3, backoff=2)
    assert one == Retry(3, backoff=2.0, on=(Exception,))
    assert len({one, Retry(3, backoff=2)}) == 1
    with pytest.raises(AttributeError):
        one.retries = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mistake_in_a_retry_is_told_where_it_is_made() -> None:
    with pytest.raises(WorkflowError, match=rf"^{__file__}:\d+: jitter= must be") as caught:
        Retry(3, jitter=2)
    made = caught.traceback[0].lineno + 1
    assert f"{__file__}:{made}:" in str(caught.value)


# --- stages -------------------------------------------------------------------------------------


class Plain(Stage):
    def execute(self, ctx: Any) -> None: ...


class Undone(Plain):
    def rollback(self, ctx: Any, error: Any) -> None: ...


class Inherited(Undone):
    def validate(self, ctx: Any) -> str:
        return "never"


def test_a_rollback_is_recorded_where_there_is_one() -> None:
    own = Plain()
    own.rollback = nothing  # pyright: ignore[reportAttributeAccessIssue]
    bodies = [Plain, Undone, Inherited, Undone()]
    assert [staged(body).rollback for body in bodies] == [False, True, True, True]
    with pytest.raises(WorkflowError, match=r"rollback of the stage 'a' is called with \(ctx, err"):
        staged(own)


def test_the_hooks_that_a_stage_has_without_its_own_do_nothing() -> None:
    assert Plain().validate(None) is None
    assert Plain().rollback(None, kitchen.Failure("ValueError")) is None


def test_where_a_worker_process_can_find_a_body() -> None:
    assert staged(samples.init, process=True).process
    assert staged(print, process=True).process
    assert staged(Loader.load, process=True).process
    with pytest.raises(WorkflowError, match=r"not what \S+:replaced is there"):
        staged(_original, process=True)


class Loader:
    @staticmethod
    def load(ctx: Any) -> None: ...


def replaced(ctx: Any) -> None: ...


_original = replaced


@functools.wraps(_original)
def _wrapper(ctx: Any) -> None: ...


replaced = _wrapper


# --- the fingerprint ----------------------------------------------------------------------------


def test_everything_said_of_failing_is_part_of_the_shape() -> None:
    said: list[dict[str, Any]] = [
        {},
        {"retries": 1},
        {"retries": 2},
        {"retries": Retry(2, backoff=2)},
        {"retries": Retry(2, max_delay=1)},
        {"retries": Retry(2, jitter=0)},
        {"retries": Retry(2, on=ValueError)},
        {"retries": Retry(2, on=OSError)},
        {"timeout": 1},
        {"timeout": 2},
        {"effect": "once"},
        {"on_error": "skip"},
        {"process": True},
        {"body": Undone},
    ]
    assert len({flow(**terms).fingerprint for terms in said}) == len(said)
    compensating = msgspec.structs.replace(flow().ir, compensate=True)
    assert ir.fingerprint(compensating) != flow().fingerprint
    assert flow(retries=Retry(2, on=(OSError, ValueError))).fingerprint == (
        flow(retries=Retry(2, on=(ValueError, OSError))).fingerprint
    )


def test_a_tree_recorded_before_any_of_this_is_the_same_today() -> None:
    code = '{"module":"tests.workflow.samples","qualname":"train"}'
    recorded = (
        '{"name":"epoch_loop","body":[{"node":"stage","name":"init","body":CODE},'
        '{"node":"loop","name":"epochs","over":CODE,"body":['
        '{"node":"stage","name":"train_epoch","body":CODE},'
        '{"node":"loop","name":"batches","over":CODE,"body":['
        '{"node":"stage","name":"forward_backward","body":CODE},'
        '{"node":"stage","name":"optim_step","body":CODE,"options":{"lr_scale":0.5},'
        '"thread":false}]}]},{"node":"stage","name":"save","body":CODE}]}'
    ).replace("CODE", code)
    tree = ir.from_json(recorded)
    assert ir.to_json(tree).decode() == recorded
    assert ir.fingerprint(tree) == samples.epoch_loop.fingerprint == "26ef08288a09c3ae"

"""What the builder records, and what the workflow that comes of it says."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given

from kitchen.errors import WorkflowError
from kitchen.workflow import ir
from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import Locator
from kitchen.workflow.ir import (
    CheckpointNode,
    ConditionalNode,
    LoopNode,
    ResourceNode,
    StageNode,
)
from kitchen.workflow.stage import Resource, Stage
from tests.strategies import bound_keys, build_workflow, nothing, workflow_irs
from tests.workflow import samples


def shape(node: Any) -> Any:
    """A node as nested tuples: kind, name, children."""
    kind = type(node).__name__.removesuffix("Node").lower()
    children = [tuple(shape(child) for child in block) for _, block in ir.blocks(node)]
    return (kind, node.name, *children)


def test_the_seed_basic_structure() -> None:
    built = samples.custom_training
    assert [(node.name, type(node)) for node in built.ir.body] == [
        ("load_data", StageNode),
        ("init_session", StageNode),
        ("train", StageNode),
        ("save", StageNode),
    ]
    assert isinstance(built.bindings["load_data"], samples.LoadData)
    assert built.bindings["train"] is samples.train
    save = built.bindings["save"]
    assert isinstance(save, samples.Save)
    assert save.name == "first"


def test_the_seed_nested_loops() -> None:
    built = samples.epoch_loop
    assert tuple(shape(node) for node in built.ir.body) == (
        ("stage", "init"),
        (
            "loop",
            "epochs",
            (
                ("stage", "train_epoch"),
                ("loop", "batches", (("stage", "forward_backward"), ("stage", "optim_step"))),
            ),
        ),
        ("stage", "save"),
    )
    assert list(built.bindings) == [path for path, _ in ir.walk(built.ir)]
    assert list(built.bindings) == [
        "init",
        "epochs",
        "epochs/train_epoch",
        "epochs/batches",
        "epochs/batches/forward_backward",
        "epochs/batches/optim_step",
        "save",
    ]
    assert built.bindings["epochs"] is samples.epochs_range
    node = dict(ir.walk(built.ir))["epochs/batches/optim_step"]
    assert isinstance(node, StageNode)
    assert node.options == {"lr_scale": 0.5}
    assert node.thread is False


def test_the_seed_conditionals() -> None:
    built = samples.conditional_steps
    nodes = dict(ir.walk(built.ir))
    assert {path: type(node) for path, node in nodes.items()} == {
        "session": ResourceNode,
        "steps": LoopNode,
        "steps/train_step": StageNode,
        "steps/should_eval": ConditionalNode,
        "steps/should_eval/eval": StageNode,
        "steps/should_eval/otherwise/note": StageNode,
        "steps/should_checkpoint": ConditionalNode,
        "steps/should_checkpoint/checkpoint": CheckpointNode,
        "steps/conditional": ConditionalNode,
        "steps/conditional/tail": StageNode,
    }
    assert set(built.bindings) == set(nodes) - {"steps/should_checkpoint/checkpoint"}
    assert built.bindings["session"] is samples.open_session
    assert built.bindings["steps/should_eval"] is samples.should_eval
    assert built.config_type is samples.Config
    assert built.state_type is samples.State
    assert str(built.ir.config) == "tests.workflow.samples:Config"


def test_every_kind_of_body() -> None:
    class Called:
        def __call__(self, ctx: Any) -> None: ...

        def method(self, ctx: Any) -> None: ...

    bodies: dict[str, Any] = {
        "sync": samples.init,
        "async": samples.train,
        "partial": functools.partial(samples.scaled, 2.0),
        "method": Called().method,
        "object": Called(),
        "lambda": lambda ctx: None,
        "builtin": print,
        "stage": samples.Save(),
    }

    @workflow
    def all_of_them(wf: WorkflowBuilder) -> None:
        for name, body in bodies.items():
            wf.stage(name, body)
        wf.stage("class", samples.Save)

    for name, body in bodies.items():
        assert all_of_them.bindings[name] is body or all_of_them.bindings[name] == body
    assert type(all_of_them.bindings["class"]) is samples.Save


def test_a_resource_by_name_and_by_key() -> None:
    model = Resource("model", samples.Session, stateful=False)

    @workflow
    def resources(wf: WorkflowBuilder) -> None:
        wf.resource("session", samples.open_session, stateful=True)
        wf.resource(model)

    session, other = resources.ir.body
    assert isinstance(session, ResourceNode)
    assert isinstance(other, ResourceNode)
    assert (session.stateful, other.stateful) == (True, False)
    assert resources.bindings == {"session": samples.open_session, "model": samples.Session}


def test_a_resource_key() -> None:
    one = Resource("session", samples.open_session)
    same = Resource("session", samples.Session, stateful=True)
    assert one == same
    assert len({one, same, Resource("other", samples.Session)}) == 2
    assert one != "session"
    assert repr(one) == "Resource('session', open_session)"
    assert repr(same) == "Resource('session', Session, stateful=True)"
    assert (same.name, same.factory, same.stateful) == ("session", samples.Session, True)


def test_a_stage_class_is_instantiated_once() -> None:
    made: list[object] = []

    class Counted(Stage):
        def __init__(self) -> None:
            made.append(self)

        def execute(self, ctx: Any) -> None: ...

    @workflow
    def counted(wf: WorkflowBuilder) -> None:
        wf.stage("counted", Counted)

    assert made == [counted.bindings["counted"]]


def test_the_author_keeps_no_hold_of_the_options() -> None:
    given_options: dict[str, Any] = {"layers": [1, 2]}

    @workflow
    def copied(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing, options=given_options)

    given_options["layers"].append(3)
    node = copied.ir.body[0]
    assert isinstance(node, StageNode)
    assert node.options == {"layers": [1, 2]}


def test_an_exception_caught_inside_leaves_nothing_behind() -> None:
    @workflow
    def careful(wf: WorkflowBuilder) -> None:
        try:
            with wf.loop("epochs", over=samples.epochs_range), wf.conditional(samples.should_eval):
                wf.resource(samples.SESSION)
                raise ImportError("no such dataset")
        except ImportError:
            wf.resource(samples.SESSION)
        with wf.loop("epochs", over=samples.epochs_range):
            wf.stage("train", samples.train)
        wf.checkpoint()

    assert set(careful.bindings) == {"session", "epochs", "epochs/train"}


def test_helpers_that_are_given_the_builder_compose() -> None:
    def evaluation(wf: WorkflowBuilder, name: str) -> None:
        with wf.conditional(samples.should_eval, name=name):
            wf.stage("eval", samples.init)

    @workflow
    def composed(wf: WorkflowBuilder) -> None:
        evaluation(wf, "first")
        evaluation(wf, "second")

    assert set(composed.bindings) == {"first", "first/eval", "second", "second/eval"}


def test_what_a_workflow_says_of_itself() -> None:
    built = samples.conditional_steps
    assert built.name == built.ir.name == "conditional_steps"
    assert built.fingerprint == ir.fingerprint(built.ir)
    assert built.locator == Locator("tests.workflow.samples", "conditional_steps", samples.__file__)
    assert repr(built) == (
        "<Workflow 'conditional_steps' (tests.workflow.samples:conditional_steps): 10 nodes, "
        f"{built.fingerprint}>"
    )
    assert built.to_mermaid().startswith("flowchart TD\n")
    assert samples.custom_training.config_type is None
    assert samples.custom_training.adapters is None
    assert samples.custom_training.adapters_for({}) == {}


def test_a_script_is_located_by_its_full_path(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from kitchen.workflow.decorator import workflow\n"
        "@workflow\n"
        "def training(wf): wf.stage('a', print)\n"
        "print(training.locator.file, training.locator, sep='|')\n"
    )
    printed = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == f"{script}|__main__:training"


def test_a_workflow_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        samples.custom_training.fingerprint = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        samples.custom_training.bindings["load_data"] = nothing  # pyright: ignore[reportIndexIssue]


def test_a_name_of_its_own_and_seeded_globals() -> None:
    @workflow(name="nightly", seed_globals=True)
    def training(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing)

    assert (training.name, training.ir.seed_globals) == ("nightly", True)
    assert training.locator.qualname.endswith("<locals>.training")


def test_dataclasses_are_types_of_config_and_state() -> None:
    @dataclasses.dataclass
    class Plain:
        epochs: int = 1

    @workflow(config=Plain, state=Plain)
    def plain(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing)

    assert (plain.config_type, plain.state_type) == (Plain, Plain)


def of_nothing() -> dict[str, Any]:
    return {"from": "nothing"}


def of_config(settings: object) -> dict[str, Any]:
    return {"from": settings}


def of_optional_config(config: object = None) -> dict[str, Any]:
    return {"from": config}


def of_another(timeout: int = 5) -> dict[str, Any]:
    return {"from": timeout}


@pytest.mark.parametrize(
    ("provider", "expected"),
    [(of_nothing, "nothing"), (of_config, 1), (of_optional_config, 1), (of_another, 5)],
)
def test_adapters_are_made_from_the_config_or_from_nothing(provider: Any, expected: Any) -> None:
    @workflow(adapters=provider)
    def adapted(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing)

    assert adapted.adapters is provider
    assert adapted.adapters_for(1) == {"from": expected}


def test_a_provider_without_a_signature_is_called_with_nothing() -> None:
    @workflow(adapters=dict)
    def adapted(wf: WorkflowBuilder) -> None:
        wf.stage("a", nothing)

    assert adapted.adapters_for([("not", "used")]) == {}


def test_what_the_function_raises_is_raised_where_it_is_decorated() -> None:
    with pytest.raises(ZeroDivisionError):

        @workflow
        def broken(wf: WorkflowBuilder) -> None:
            with wf.loop("epochs", over=samples.epochs_range):
                wf.stage("a", nothing, options={"rate": 1 / 0})


def test_calling_a_workflow_is_an_error() -> None:
    with pytest.raises(WorkflowError, match=r"hint: kitchen\.run\(custom_training, config\)"):
        samples.custom_training()


every_ir = (
    workflow_irs()
    | workflow_irs(max_nodes=20, max_depth=5, concurrent=True)
    | workflow_irs(max_nodes=20, max_depth=5, concurrent=True, failures=True, processes=True)
)


@given(every_ir)
def test_the_builder_says_what_the_ir_says(drawn: ir.WorkflowIR) -> None:
    built = build_workflow(drawn)
    assert tuple(map(shape, built.ir.body)) == tuple(map(shape, drawn.body))
    assert built.ir.compensate == drawn.compensate
    assert built.fingerprint == ir.fingerprint(drawn)
    assert set(built.bindings) == {key for key, _ in bound_keys(drawn)}
    paths = [path for path, _ in ir.walk(drawn)]
    assert len(paths) == len(set(paths))
    assert set(built.sites) == {"", *paths}


@given(every_ir)
def test_json_and_back_is_the_identity(drawn: ir.WorkflowIR) -> None:
    text = ir.to_json(drawn)
    assert ir.from_json(text) == drawn
    assert ir.to_json(ir.from_json(text)) == text
    assert ir.fingerprint(ir.from_json(text)) == ir.fingerprint(drawn)
    assert ir.from_json(msgspec.Raw(text)) == drawn

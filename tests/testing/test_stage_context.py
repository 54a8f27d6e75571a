"""`stage_context`: one stage called as a function, over a real context."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, assert_type

import msgspec
import numpy as np
import pytest

import kitchen
from kitchen import Context, Resource, Stage, WorkflowBuilder
from kitchen.machine.events import MetricRecorded, StateAppended, StateIncremented, StatePut
from kitchen.runner.config import ConfigMap
from kitchen.testing import StageContext, StageContexts
from kitchen.testing.recorded import Metric
from store import MemoryStore


class Config(msgspec.Struct):
    epochs: int = 3
    rate: float = 0.5


class Part(msgspec.Struct):
    name: str
    sizes: list[int] = []


class State(msgspec.Struct):
    global_step: int = 0
    history: list[float] = []
    part: Part | None = None


class Session:
    def __init__(self) -> None:
        self.calls: list[int] = []
        self.closed = False

    def step(self, epoch: int) -> float:
        self.calls.append(epoch)
        return 0.25

    def __enter__(self) -> Session:
        raise AssertionError("what a test gives is not entered")

    def __exit__(self, *told: object) -> None:
        raise AssertionError("nor left")


def open_session(ctx: Any) -> Session:
    raise AssertionError("no factory is called")


SESSION = Resource("session", open_session)


async def train(ctx: Context[Config, State]) -> None:
    session = ctx.resources[SESSION]
    loss = session.step(ctx.item("epochs")) * ctx.config.rate
    ctx.state.global_step += 1
    ctx.append("history", loss)
    ctx.record_metric("loss", loss, step=ctx.state.global_step)
    ctx.progress(1, 2)


@pytest.mark.anyio
async def test_a_stage_is_called_as_a_function(stage_context: StageContexts) -> None:
    session = Session()
    ctx = stage_context(
        config=Config(rate=2.0),
        state=State(history=[1.0]),
        resources={SESSION: session},
        items={"epochs": 2},
    )
    await train(ctx)
    assert session.calls == [2]
    assert ctx.state.global_step == 1
    assert ctx.state.history == [1.0, 0.5]
    told = ctx.recorded
    assert told.state == {"global_step": 1, "history": [1.0, 0.5]}
    assert told.metrics == {"loss": [0.5]}
    assert told.points == (Metric("loss", 0.5, 1),)
    assert told.touched == {"session"}
    assert told.peeked == frozenset()
    assert told.progress == ((1, 2),)
    assert not told.stopped_loop
    assert [type(event) for event in told.events] == [MetricRecorded, StatePut, StateAppended]
    assert "events" not in repr(told)


def test_types_follow_from_what_is_given(stage_context: StageContexts) -> None:
    both = stage_context(config=Config(), state=State())
    assert_type(both, StageContext[Config, State])
    assert_type(both.state.global_step, int)
    assert_type(stage_context().config, ConfigMap)
    assert_type(stage_context(config=Config()).config, Config)
    assert_type(stage_context(state=State()).state, State)
    assert_type(stage_context(workflow=looped, path="epochs/train").config, Config)


def test_recorded_is_asked_while_the_stage_goes_on(stage_context: StageContexts) -> None:
    ctx = stage_context(state={"a": [1], "gone": 1, "n": 1})
    assert ctx.recorded.state == {}
    ctx.append("a", 2)
    assert ctx.recorded.state == {"a": [1, 2]}
    ctx.append("a", 3)
    ctx.increment("n", 2)
    del ctx.state["gone"]
    ctx.state["new"] = {"x": (1, 2)}
    told = ctx.recorded
    assert told.state == {"a": [1, 2, 3], "n": 3, "new": {"x": (1, 2)}}
    assert told.deleted == {"gone"}
    joined, added = told.events[0], told.events[1]
    assert isinstance(joined, StateAppended)
    assert bytes(joined.values) == b"[2,3]"
    assert isinstance(added, StateIncremented)
    ctx.state["gone"] = 2
    assert ctx.recorded.deleted == frozenset()


def test_an_object_changed_in_place_is_recorded_and_stays_the_stages(
    stage_context: StageContexts,
) -> None:
    ctx = stage_context(state=State(part=Part("x")))
    part = ctx.state.part
    assert part is not None
    assert ctx.recorded.state == {}
    part.sizes.append(1)
    assert ctx.recorded.state == {"part": Part("x", [1])}
    part.sizes.append(2)
    told = ctx.recorded.state["part"]
    assert told == Part("x", [1, 2])
    told.sizes.append(9)
    assert ctx.recorded.state == {"part": Part("x", [1, 2])}
    assert ctx.state.part is part


def test_values_are_what_a_log_would_hold(stage_context: StageContexts) -> None:
    given = [1, 2]
    ctx = stage_context(state={"list": given, "large": np.arange(20_000)})
    given.append(3)
    assert ctx.state["list"] == [1, 2]
    with pytest.raises(kitchen.FrozenValue):
        ctx.state["list"].append(3)
    with pytest.raises(kitchen.UnencodableValue, match="'bad'"):
        ctx.state["bad"] = object()
    with pytest.raises(kitchen.UnencodableValue, match="'bad'"):
        stage_context(state={"bad": object()})
    assert ctx.state["large"].sum() == sum(range(20_000))
    ctx.state["large"] = ctx.state["large"] * 2
    assert ctx.recorded.state["large"][-1] == 39_998


def test_a_declared_state_is_held_to_its_fields(stage_context: StageContexts) -> None:
    ctx = stage_context(state=State())
    with pytest.raises(kitchen.UnknownKey, match="global_stp") as raised:
        ctx.state.global_stp = 1  # type: ignore[attr-defined]
    assert raised.value.hint == "did you mean 'global_step'?"
    with pytest.raises(kitchen.StateError, match="global_step: expected"):
        ctx.state["global_step"] = "x"  # type: ignore[index]
    with pytest.raises(kitchen.StateError, match="global_step: expected"):
        stage_context(state=State(global_step="x"))  # type: ignore[arg-type]
    with pytest.raises(kitchen.UnknownKey, match="no field 'other'"):
        stage_context(workflow=looped, path="epochs/train", state={"other": 1})


def test_a_config_is_as_in_a_run(stage_context: StageContexts) -> None:
    ctx = stage_context(config={"epochs": 2, "model": {"width": 3}})
    assert ctx.config.model.width == 3
    with pytest.raises(kitchen.ConfigError):
        ctx.config.epochs = 3
    with pytest.raises(kitchen.UnknownKey):
        _ = stage_context().config.epochs
    typed = stage_context(config=Config())
    typed.config.epochs = 9
    with pytest.raises(kitchen.WorkflowError, match="changed in place"):
        _ = typed.recorded
    with pytest.raises(kitchen.ConfigError, match=r"config\.epochs"):
        stage_context(workflow=looped, path="epochs/train", config={"epochs": "x"})


def test_what_is_given_wrong_is_told(stage_context: StageContexts) -> None:
    with pytest.raises(kitchen.ArgumentError, match="config= is the class Config"):
        stage_context(config=Config)
    with pytest.raises(kitchen.ArgumentError, match="state= is a int"):
        stage_context(state=3)
    with pytest.raises(kitchen.ArgumentError, match="the workflow has a State or a mapping"):
        stage_context(workflow=looped, path="epochs/train", state=Config())  # type: ignore[arg-type]
    with pytest.raises(kitchen.ArgumentError, match="no place of the workflow 'looped'") as raised:
        stage_context(workflow=looped, path="epochs/trian")
    assert raised.value.hint == "did you mean 'epochs/train'?"
    with pytest.raises(kitchen.ArgumentError, match="names 'epoch'"):
        stage_context(workflow=looped, path="epochs/train", items={"epoch": 1})
    with pytest.raises(kitchen.ArgumentError, match="names 'batches'"):
        stage_context(path="a/b", items={"batches": 1})
    with pytest.raises(kitchen.ArgumentError, match="a whole number"):
        stage_context(indices={"epochs": -1})
    with pytest.raises(kitchen.ArgumentError, match="no Resource and no name"):
        stage_context(resources={3: object()})
    with pytest.raises(kitchen.WorkflowError, match=r"test_stage_context\.py:\d+: options\['a'\]"):
        stage_context(options={"a": (1,)})
    for path in ("", "a//b", "a b", 3):
        with pytest.raises(kitchen.WorkflowError, match=r"test_stage_context\.py:\d+: "):
            stage_context(path=path)  # type: ignore[arg-type]


def test_loops_around(stage_context: StageContexts) -> None:
    ctx = stage_context(
        items={"epochs": 2, "batches": [1, {"a": 2}]}, indices={"batches": 5}, path="train"
    )
    assert ctx.path == "epochs/batches/train"
    assert ctx.visit == (0, 5)
    assert ctx.item() == ctx.item("batches") == [1, {"a": 2}]
    assert ctx.item("epochs") == ctx.state["epochs_current"] == 2
    assert (ctx.index("epochs"), ctx.index(), ctx.state["batches_index"]) == (0, 5, 5)
    with pytest.raises(kitchen.FrozenValue):
        ctx.item().append(1)
    with pytest.raises(kitchen.UnknownKey, match="not inside a loop 'epoch'"):
        ctx.item("epoch")
    with pytest.raises(kitchen.StateError, match="cannot be written"):
        ctx.state["epochs_current"] = 1
    for asked in (ctx.version, ctx.staleness):
        with pytest.raises(kitchen.UnknownKey, match="no producer"):
            asked()
    ctx.stop_loop()
    assert ctx.recorded.stopped_loop
    assert ctx.idempotency_key == "test/epochs[0]/batches[5]/train/0"


def test_a_path_of_its_own(stage_context: StageContexts) -> None:
    ctx = stage_context(path="eval/epochs/score", items={"epochs": 1}, attempt=3)
    assert (ctx.path, ctx.visit, ctx.attempt, ctx.incarnation) == ("eval/epochs/score", (0,), 3, 0)
    assert ctx.logger.name == "kitchen.run.eval.epochs.score"
    alone = stage_context()
    assert (alone.path, alone.visit) == ("stage", ())
    with pytest.raises(kitchen.UnknownKey, match="is in no loop"):
        alone.item()
    with pytest.raises(kitchen.StateError, match="in no loop that could be stopped"):
        alone.stop_loop()


def test_an_item_that_is_not_given(stage_context: StageContexts) -> None:
    ctx = stage_context(indices={"epochs": 4})
    assert ctx.index("epochs") == 4
    with pytest.raises(kitchen.UnknownKey, match="no item of the loop 'epochs'"):
        ctx.item("epochs")


def test_an_item_that_cannot_be_encoded_is_given_as_it_is(stage_context: StageContexts) -> None:
    live = threading.Lock()
    assert stage_context(items={"locks": live}).item() is live


def test_an_item_changed_in_place(stage_context: StageContexts) -> None:
    ctx = stage_context(state=State(), items={"parts": Part("x")})
    ctx.item().sizes.append(1)
    with pytest.raises(kitchen.StateError, match="changed in place"):
        _ = ctx.recorded


def test_resources(stage_context: StageContexts) -> None:
    session, tokenizer = Session(), object()
    ctx = stage_context(resources={SESSION: session, "tokenizer": tokenizer})
    assert ctx.resources.peek(SESSION) is session
    assert ctx.recorded.peeked == {"session"}
    assert ctx.resources["tokenizer"] is tokenizer
    assert "tokenizer" in ctx.resources
    assert "other" not in ctx.resources
    told = ctx.recorded
    assert (told.touched, told.peeked) == ({"tokenizer"}, {"session"})
    with pytest.raises(kitchen.UnknownResource, match="'other'"):
        _ = ctx.resources["other"]


def test_options(stage_context: StageContexts) -> None:
    ctx = stage_context(options={"scale": {"lr": 0.5}, "names": ["a"]})
    assert ctx.options.scale.lr == 0.5
    with pytest.raises(kitchen.FrozenValue):
        ctx.options["names"].append("b")
    assert stage_context(workflow=looped, path="epochs/train").options.lr_scale == 0.5
    other = stage_context(workflow=looped, path="epochs/train", options={"lr_scale": 1})
    assert other.options.lr_scale == 1


def test_adapters(stage_context: StageContexts) -> None:
    assert stage_context(adapters={"a": 1}).adapters["a"] == 1
    assert stage_context(adapters=lambda: {"a": 2}).adapters["a"] == 2
    with pytest.raises(kitchen.ArgumentError, match="adapters= is a mapping, or a function"):
        stage_context(adapters=5)  # type: ignore[arg-type]
    assert stage_context().adapters == {}
    assert stage_context(workflow=looped, path="epochs/train").adapters == {"epochs": 3}
    assert stage_context(workflow=looped, path="epochs/train", adapters={}).adapters == {}


class Save(Stage):
    def validate(self, ctx: Any) -> str | None:
        return None if ctx.state.global_step else "nothing to save"

    def execute(self, ctx: Any) -> None:
        ctx.record_metric("saved", np.float32(1.5))


def test_a_stage_class_and_a_thread(stage_context: StageContexts) -> None:
    ctx = stage_context(state=State())
    assert Save().validate(ctx) == "nothing to save"
    worker = threading.Thread(target=Save().execute, args=(ctx,))
    worker.start()
    worker.join()
    assert ctx.recorded.metrics == {"saved": [1.5]}


# --- with a workflow ------------------------------------------------------------------------------


def epochs(ctx: Any) -> list[str]:
    return ["first", "second", "third"]


def draws(ctx: Any) -> None:
    numbers = [ctx.rng.random(), float(ctx.numpy_rng().random()), ctx.seed % 1000]
    ctx.merge("drawn", {str(ctx.visit): [*numbers, ctx.idempotency_key]})


def should(ctx: Any) -> bool:
    return ctx.state["drawn"] == {} and ctx.rng.random() >= 0


def writes_a(ctx: Any) -> None:
    ctx.state["a"] = 1


def items_of(ctx: Any) -> Iterator[int]:
    yield from range(ctx.config.epochs)


@kitchen.workflow(config=Config, state=State, adapters=lambda config: {"epochs": config.epochs})
def looped(wf: WorkflowBuilder) -> None:
    with wf.loop("epochs", over=items_of):
        wf.stage("train", train, options={"lr_scale": 0.5})


@kitchen.workflow
def drawing(wf: WorkflowBuilder) -> None:
    with wf.loop("epochs", over=epochs):
        wf.stage("draw", draws)
        with wf.conditional(should):
            wf.stage("narrow", writes_a, writes=["b"])
            wf.stage("pay", draws, effect="once")


def test_numbers_are_those_of_a_run(stage_context: StageContexts) -> None:
    run = kitchen.run(drawing, store=MemoryStore(), run_id="test", seed=41)
    assert len(run.state["drawn"]) == 3
    for index in range(3):
        ctx = stage_context(
            workflow=drawing, path="epochs/draw", indices={"epochs": index}, seed=41
        )
        draws(ctx)
        assert ctx.state["drawn"] == {
            k: v for k, v in run.state["drawn"].items() if str(index) in k
        }
    made_up = stage_context(path="epochs/draw", indices={"epochs": 1}, seed=41)
    draws(made_up)
    assert made_up.state["drawn"]["(1,)"] == run.state["drawn"]["(1,)"]


def test_what_the_workflow_says_of_a_node_holds(stage_context: StageContexts) -> None:
    asked = stage_context(workflow=drawing, path="epochs/should", state={"drawn": {}})
    assert should(asked)
    with pytest.raises(kitchen.StateError, match=r"predicate at .* may not change"):
        asked.state["drawn"] = 1
    with pytest.raises(kitchen.StateError, match="may not record metrics"):
        asked.record_metric("x", 1)
    assert asked.attempt == 0
    narrow = stage_context(workflow=drawing, path="epochs/should/narrow")
    with pytest.raises(kitchen.StateError, match="declares writes"):
        writes_a(narrow)
    model = Stateful()
    pay = stage_context(
        workflow=drawing, path="epochs/should/pay", resources={"model": model, "api": object()}
    )
    assert pay.resources["api"]
    assert pay.resources.peek("model") is model
    with pytest.raises(kitchen.ResourceError, match='effect="once"'):
        _ = pay.resources["model"]
    over = stage_context(workflow=looped, path="epochs", config=Config(epochs=2))
    assert list(items_of(over)) == [0, 1]
    assert over.visit == ()


class Stateful:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def produce(ctx: Any) -> int:
    return ctx.index("off") * 10


def told_of(ctx: Any) -> None:
    ctx.append("told", [ctx.item("off"), ctx.version(), ctx.staleness()])


@kitchen.workflow
def consuming(wf: WorkflowBuilder) -> None:
    with wf.async_loop(
        "off", producer=produce, stop_when=lambda ctx: ctx.index("off") >= 5, buffer_size=3
    ):
        wf.stage("use", told_of)


def test_async_loops_are_as_in_a_run(stage_context: StageContexts) -> None:
    run = kitchen.run(consuming, store=MemoryStore())
    for index, told in enumerate(run.state["told"]):
        ctx = stage_context(
            workflow=consuming, path="off/use", items={"off": index * 10}, indices={"off": index}
        )
        told_of(ctx)
        assert ctx.recorded.state == {"told": [told]}
    making = stage_context(workflow=consuming, path="off/producer", indices={"off": 4})
    assert produce(making) == 40
    with pytest.raises(kitchen.UnknownKey, match="is what this producer makes"):
        making.item()
    with pytest.raises(kitchen.StateError, match="producer at"):
        making.state["x"] = 1


def test_global_generators_are_seeded_where_the_workflow_says_so(
    stage_context: StageContexts,
) -> None:
    import random

    def body(ctx: Any) -> None:
        ctx.state["drawn"] = [random.random(), float(np.random.random())]

    @kitchen.workflow(seed_globals=True)
    def seeded(wf: WorkflowBuilder) -> None:
        wf.stage("draw", body)

    run = kitchen.run(seeded, store=MemoryStore(), seed=3)
    ctx = stage_context(workflow=seeded, path="draw", seed=3)
    body(ctx)
    assert ctx.recorded.state == {"drawn": run.state["drawn"]}


def test_resources_in_branches_are_seen_by_their_names(stage_context: StageContexts) -> None:
    def use(ctx: Any) -> None:
        ctx.state["value"] = ctx.resources["box"]

    @kitchen.workflow
    def sides(wf: WorkflowBuilder) -> None:
        with wf.parallel("both"):
            with wf.branch("left"):
                wf.resource("box", lambda ctx: 1, stateful=False)
                wf.stage("use", use)
            wf.stage("right", draws)

    ctx = stage_context(workflow=sides, path="both/left/use", resources={"box": 7})
    use(ctx)
    assert ctx.recorded.state == {"value": 7}

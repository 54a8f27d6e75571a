"""The workflows of the crash matrix: together they hold every construct.

Each ends with a stage that puts what every resource holds into state, so equal states mean equal
resources. `TRACE` collects the visits that really ran, which no resume may lengthen without need.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import msgspec
import numpy as np

import kitchen
from kitchen import Context, Resource, Workflow, WorkflowBuilder

TRACE: list[tuple[str, tuple[int, ...], int]] = []


def trace(ctx: Any) -> None:
    TRACE.append((ctx.path, ctx.visit, ctx.incarnation))


class Model:
    """A stateful thing with arrays, scalars and a history, that remembers every use."""

    def __init__(self, start: float) -> None:
        self.weights = np.full(4, start, dtype=np.float32)
        self.used = 0
        self.moments: dict[int, tuple[float, float]] = {}

    def update(self, by: float) -> float:
        self.weights = self.weights * np.float32(0.9) + np.float32(by)
        self.used += 1
        self.moments[self.used % 3] = (by, float(self.weights[0]))
        return float(self.weights.sum())

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.copy(), "used": self.used, "moments": dict(self.moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"].copy()
        self.used = state["used"]
        self.moments = dict(state["moments"])


class Optimiser:
    """Holds on to the model that it was made for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.steps = 0
        self.velocity = model.weights * 0

    def step(self, by: float) -> float:
        self.steps += 1
        self.velocity = self.velocity * np.float32(0.5) + np.float32(by)
        return self.model.update(float(self.velocity[0]))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "velocity": self.velocity.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.velocity = state["velocity"].copy()


MODEL: Resource[Model] = Resource("model", lambda ctx: Model(ctx.rng.random()))
OPTIMISER: Resource[Optimiser] = Resource("optimiser", lambda ctx: Optimiser(ctx.resources[MODEL]))


# --- plain: stages, state of all kinds, a nested loop, conditionals with otherwise --------------


class Layer(msgspec.Struct):
    size: int
    names: list[str] = []


class PlainState(msgspec.Struct):
    count: int = 0
    history: list[float] = []
    seen: list[Any] = []
    scores: dict[str, float] = {}
    layer: Layer = msgspec.field(default_factory=lambda: Layer(3))
    blob: bytes = b""


async def begin(ctx: Context[Any, PlainState]) -> None:
    trace(ctx)
    ctx.state.blob = bytes(range(256)) * 400
    ctx.append("history", float("nan"))


def work(ctx: Context[Any, PlainState]) -> None:
    trace(ctx)
    ctx.state.count += 1
    ctx.append("history", ctx.rng.random())
    ctx.append("seen", (ctx.item("outer"), ctx.item("inner"), ctx.index("inner")))
    ctx.merge("scores", {f"{ctx.visit}": ctx.numpy_rng().random()})
    ctx.record_metric("noise", ctx.rng.random(), step=ctx.state.count)


async def grow(ctx: Context[Any, PlainState]) -> None:
    trace(ctx)
    await anyio.lowlevel.checkpoint()
    ctx.state.layer.names.append(f"n{ctx.state.count}")
    ctx.record_metrics({"size": len(ctx.state.layer.names), "inf": float("inf")})


def shrink(ctx: Context[Any, PlainState]) -> None:
    trace(ctx)
    ctx.increment("count", -1)
    ctx.increment("count", 1)


@kitchen.workflow(state=PlainState)
def plain(wf: WorkflowBuilder) -> None:
    wf.stage("begin", begin)
    with wf.loop("outer", over=lambda ctx: range(1, 6, 2)):
        with wf.loop("inner", over=lambda ctx: ["a", ("b", 1)][: ctx.item("outer")]):
            wf.stage("work", work)
            with wf.conditional(lambda ctx: ctx.state.count % 2 == 1, name="odd"):
                wf.stage("grow", grow, thread=False)
            with wf.otherwise():
                wf.stage("shrink", shrink)
    with wf.loop("never", over=lambda ctx: []):
        wf.stage("unreached", work)
    wf.stage("end", grow)


# --- training: resources, checkpoints in a loop, decisions that look at resources ----------------


async def train(ctx: Context) -> None:
    trace(ctx)
    loss = ctx.resources[OPTIMISER].step(ctx.rng.random() + ctx.item("batches"))
    ctx.append("losses", loss)
    ctx.record_metric("loss", loss, step=ctx.resources.peek(MODEL).used)


def good(ctx: Context) -> bool:
    return ctx.resources[MODEL].update(0.25) > 1.0


def celebrate(ctx: Context) -> None:
    trace(ctx)
    ctx.append("celebrated", ctx.visit)


def batches(ctx: Context) -> list[float]:
    return [ctx.rng.random() for _ in range(3)]


def note_resources(ctx: Context) -> None:
    trace(ctx)
    ctx.state["model"] = ctx.resources[MODEL].state_dict()
    ctx.state["optimiser"] = ctx.resources[OPTIMISER].state_dict()


@kitchen.workflow
def training(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    wf.resource(OPTIMISER)
    with wf.loop("epochs", over=lambda ctx: range(3)):
        with wf.loop("batches", over=batches):
            wf.stage("train", train)
        with wf.conditional(good):
            wf.stage("celebrate", celebrate)
        with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
            wf.checkpoint()
    wf.stage("note_resources", note_resources)


# --- scoped: resources opened in blocks, plain ones, context managers, never checkpointed --------


@contextmanager
def open_counter(ctx: Any) -> Generator[Model]:
    yield Model(len(ctx.state["log"]))


@asynccontextmanager
async def open_plain(ctx: Any) -> AsyncGenerator[dict[str, int]]:
    yield {"answer": 42}


def use_scoped(ctx: Context) -> None:
    trace(ctx)
    total = ctx.resources["counter"].update(ctx.item() + ctx.resources["plain"]["answer"])
    ctx.append("log", total)


def use_outer(ctx: Context) -> None:
    trace(ctx)
    ctx.append("log", ctx.resources[MODEL].update(random.random() + float(np.random.rand())))


@kitchen.workflow(seed_globals=True)
def scoped(wf: WorkflowBuilder) -> None:
    wf.stage("init", lambda ctx: ctx.state.update({"log": []}))
    wf.resource("plain", open_plain, stateful=False)
    with wf.loop("rounds", over=lambda ctx: range(3)):
        wf.resource("counter", open_counter)
        wf.stage("change", lambda ctx: ctx.append("log", -1.0))
        wf.stage("use_scoped", use_scoped)
        with wf.conditional(lambda ctx: ctx.item() == 1, name="middle"):
            wf.checkpoint("middle_checkpoint")
        wf.stage("use_scoped_again", use_scoped)
    wf.resource(MODEL)
    wf.stage("use_outer", use_outer)
    wf.stage("use_outer_again", use_outer)
    wf.stage("note", lambda ctx: ctx.state.update({"model": ctx.resources[MODEL].state_dict()}))


# --- dependence: stages that use a resource which holds on to another ----------------------------


class Trainer:
    """Holds no state of its own: all that it changes is somebody else's."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def fit(self, by: float) -> float:
        act = getattr(self.target, "step", None) or self.target.update
        return act(by)


TRAINER: Resource[Trainer] = Resource(
    "trainer", lambda ctx: Trainer(ctx.resources[OPTIMISER]), stateful=False
)
PEEKER: Resource[Trainer] = Resource(
    "peeker", lambda ctx: Trainer(ctx.resources.peek(MODEL)), stateful=False
)
ALIAS: Resource[Model] = Resource("alias", lambda ctx: ctx.resources[MODEL])


def step_alone(ctx: Context) -> None:
    trace(ctx)
    ctx.append("losses", ctx.resources[OPTIMISER].step(ctx.rng.random()))


def large_step(ctx: Context) -> bool:
    return ctx.resources[OPTIMISER].step(ctx.rng.random()) > 2.0


@kitchen.workflow
def dependent(wf: WorkflowBuilder) -> None:
    """The optimiser alone is used, by stages and by a predicate; the model is what it changes."""
    wf.resource(MODEL)
    wf.resource(OPTIMISER)
    with wf.loop("epochs", over=lambda ctx: range(4)):
        wf.stage("step_alone", step_alone)
        with wf.conditional(lambda ctx: ctx.index() in (0, 2), name="even"):
            wf.checkpoint()
        with wf.conditional(large_step):
            wf.stage("celebrate", celebrate)
    wf.stage("note_resources", note_resources)


def fit_trainer(ctx: Context) -> None:
    trace(ctx)
    ctx.append("losses", ctx.resources[TRAINER].fit(ctx.rng.random()))


def fit_peeker(ctx: Context) -> None:
    trace(ctx)
    ctx.append("losses", ctx.resources[PEEKER].fit(ctx.rng.random()))


@kitchen.workflow
def around(wf: WorkflowBuilder) -> None:
    """What is used has no state: a trainer around the optimiser, and one that peeked its model."""
    wf.resource(MODEL)
    wf.resource(OPTIMISER)
    wf.resource(TRAINER)
    wf.resource(PEEKER)
    with wf.loop("epochs", over=lambda ctx: range(3)):
        wf.stage("fit_trainer", fit_trainer)
        wf.checkpoint("half")
        wf.stage("fit_peeker", fit_peeker)
        with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
            wf.checkpoint()
    wf.stage("note_resources", note_resources)


def update_alias(ctx: Context) -> None:
    trace(ctx)
    ctx.append("sums", ctx.resources[ALIAS].update(ctx.rng.random()))


def note_model(ctx: Context) -> None:
    trace(ctx)
    ctx.state["model"] = ctx.resources[MODEL].state_dict()


@kitchen.workflow
def aliased(wf: WorkflowBuilder) -> None:
    """One object under two names, used by the second alone."""
    wf.resource(MODEL)
    wf.resource(ALIAS)
    with wf.loop("epochs", over=lambda ctx: range(3)):
        wf.stage("update_alias", update_alias)
        wf.checkpoint()
        wf.stage("update_alias_again", update_alias)
    wf.stage("note_model", note_model)


# --- references: factories that copy what another resource holds, and keep the copy --------------


def copy_weights(ctx: Any) -> Any:
    return ctx.resources[MODEL].weights.copy()


def improve(ctx: Context) -> None:
    trace(ctx)
    model = ctx.resources[MODEL]
    towards = sum(
        float(ctx.resources[name].sum())
        for name in ("first", "second", "round")
        if name in ctx.resources
    )
    ctx.append("sums", model.update(towards * 0.1 + ctx.rng.random()))


def note_references(ctx: Context) -> None:
    note_model(ctx)
    ctx.merge("references", {name: ctx.resources[name] for name in ("first", "second")})


@kitchen.workflow
def references(wf: WorkflowBuilder) -> None:
    """Frozen copies: from before any training, from right behind a checkpoint, one in each round."""
    wf.resource(MODEL)
    wf.resource("first", copy_weights, stateful=False)
    with wf.loop("warm", over=lambda ctx: range(2)):
        wf.stage("warm_up", improve)
        wf.checkpoint("warmed")
    wf.resource("second", copy_weights, stateful=False)
    with wf.loop("rounds", over=lambda ctx: range(3)):
        wf.resource("round", copy_weights, stateful=False)
        wf.stage("improve", improve)
        with wf.conditional(lambda ctx: ctx.index() > 0, name="late"):
            wf.checkpoint("middle")
        wf.stage("improve_again", improve)
        wf.checkpoint("end")
    wf.stage("note_references", note_references)


# --- seeded: the global generators, wherever user code may draw from them ------------------------


def draw() -> float:
    return random.random() + float(np.random.rand())


def note_draw(ctx: Context) -> None:
    trace(ctx)
    total = ctx.resources["noisy"].update(draw() + ctx.resources["noise"]["drawn"])
    ctx.append("drawn", (total, ctx.item()))


@kitchen.workflow(seed_globals=True)
def seeded(wf: WorkflowBuilder) -> None:
    wf.resource("noisy", lambda ctx: Model(draw()))
    wf.resource("noise", lambda ctx: {"drawn": draw()}, stateful=False)
    wf.stage("begin", lambda ctx: ctx.state.update(drawn=[draw()]))
    with wf.loop("draws", over=lambda ctx: [draw() for _ in range(3)]):
        with wf.conditional(lambda ctx: draw() < 1.0, name="small"):
            wf.stage("note_draw", note_draw)
        with wf.otherwise():
            wf.stage("note_none", lambda ctx: ctx.append("drawn", -1.0))
    wf.stage("end", lambda ctx: ctx.state.update(noisy=ctx.resources["noisy"].state_dict()))


# --- items: collections in blobs, by reference, seen twice, over arrays ---------------------------


class Opaque:
    """Not encodable: such items are recorded by position only."""

    def __init__(self, value: int) -> None:
        self.value = value


def large(ctx: Context) -> Any:
    rng = ctx.numpy_rng()
    return [rng.random(20_000) for _ in range(3)]


def take(ctx: Context) -> None:
    trace(ctx)
    item: Any = ctx.item()
    value = float(item.sum()) if isinstance(item, np.ndarray) else getattr(item, "value", item)
    ctx.append("taken", value)


@kitchen.workflow
def items(wf: WorkflowBuilder) -> None:
    with wf.loop("twice", over=lambda ctx: (0, 1)):
        with wf.loop("many", over=lambda ctx: [f"{i}" * 900 for i in range(6)]):
            wf.stage("take_many", take)
    with wf.loop("arrays", over=large):
        wf.stage("take_array", take)
    with wf.loop("opaque", over=lambda ctx: [Opaque(i) for i in range(3)]):
        wf.stage("take_opaque", take)


ALL: list[Workflow[Any, Any]] = [
    plain, training, scoped, items, dependent, around, aliased, references, seeded,
]  # fmt: skip

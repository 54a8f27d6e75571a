"""The workflows of the guide that every construct is taken from."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import msgspec

from kitchen.workflow.decorator import workflow
from kitchen.workflow.retry import Retry
from kitchen.workflow.stage import Resource, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from kitchen.workflow.builder import WorkflowBuilder


class Config(msgspec.Struct):
    epochs: int = 3
    total_steps: int = 10
    eval_every: int = 2
    checkpoint_every: int = 5


class State(msgspec.Struct):
    global_step: int = 0


class Session:
    def __init__(self, ctx: Any) -> None:
        self.ctx = ctx


@contextlib.contextmanager
def open_session(ctx: Any) -> Generator[Session]:
    yield Session(ctx)


SESSION = Resource("session", open_session)


class LoadData(Stage):
    def execute(self, ctx: Any) -> None:
        """Nothing to load."""


class Save(Stage):
    def __init__(self, name: str = "last") -> None:
        self.name = name

    async def execute(self, ctx: Any) -> None:
        """Nothing to save."""


def init(ctx: Any) -> None:
    """A sync body."""


async def train(ctx: Any) -> None:
    """An async body."""


def scaled(factor: float, ctx: Any) -> None:
    """A body for a partial."""


def epochs_range(ctx: Any) -> range:
    return range(ctx.config.epochs)


def batch_iterator(ctx: Any) -> list[int]:
    return ctx.state.dataset


def steps_range(ctx: Any) -> range:
    return range(1, ctx.config.total_steps + 1)


def should_eval(ctx: Any) -> bool:
    return ctx.state.global_step % ctx.config.eval_every == 0


async def should_checkpoint(ctx: Any) -> bool:
    return ctx.state.global_step % ctx.config.checkpoint_every == 0


@workflow
def custom_training(wf: WorkflowBuilder) -> None:
    wf.stage("load_data", LoadData)
    wf.stage("init_session", init)
    wf.stage("train", train)
    wf.stage("save", Save("first"))


@workflow
def epoch_loop(wf: WorkflowBuilder) -> None:
    wf.stage("init", init)
    with wf.loop("epochs", over=epochs_range):
        wf.stage("train_epoch", train)
        with wf.loop("batches", batch_iterator):
            wf.stage("forward_backward", functools.partial(scaled, 0.5))
            wf.stage("optim_step", train, options={"lr_scale": 0.5}, thread=False)
    wf.stage("save", Save)


@workflow(config=Config, state=State)
def conditional_steps(wf: WorkflowBuilder) -> None:
    wf.resource(SESSION)
    with wf.loop("steps", over=steps_range):
        wf.stage("train_step", train)
        with wf.conditional(should_eval):
            wf.stage("eval", init)
        with wf.otherwise():
            wf.stage("note", init)
        with wf.conditional(should_checkpoint):
            wf.checkpoint()
        with wf.conditional(lambda ctx: True):
            wf.stage("tail", init)


def evaluate(ctx: Any) -> None:
    """A sync body."""


def stream_batches(ctx: Any) -> Generator[list[int]]:
    yield [1, 2]


async def streamed_from_afar(ctx: Any) -> AsyncGenerator[int]:
    yield 1


async def collect_rollouts(ctx: Any) -> list[int]:
    return [ctx.state.global_step]


def done_training(ctx: Any) -> bool:
    return ctx.state.global_step >= ctx.config.total_steps


def splits(ctx: Any) -> list[str]:
    return ["train", "val"]


def workers(ctx: Any) -> int:
    return 2


def latest(before: Any, values: list[Any]) -> Any:
    return values[-1]


@workflow
def parallel_evals(wf: WorkflowBuilder) -> None:
    wf.stage("train", train)
    with wf.parallel(max_concurrency=4):
        wf.stage("eval_train", evaluate)
        wf.stage("eval_val", evaluate)
        wf.stage("eval_test", evaluate)
    wf.stage("save", Save)


@workflow
def streaming(wf: WorkflowBuilder) -> None:
    wf.stage("init", init)
    with wf.stream_loop("batches", over=stream_batches, prefetch=4):
        wf.stage("train_batch", train)
    wf.stage("save", Save)


@workflow
def off_policy_rl(wf: WorkflowBuilder) -> None:
    wf.stage("init", init)
    with wf.async_loop(
        "off_policy", producer=collect_rollouts, stop_when=done_training, buffer_size=4
    ):
        wf.stage("train_batch", train)
    wf.stage("save", Save)


@workflow(config=Config, state=State)
def evaluation(wf: WorkflowBuilder) -> None:
    wf.resource("model", open_session, stateful=False)
    with wf.parallel(
        "evals",
        over=splits,
        max_concurrency=workers,
        on_error="finish",
        merge={"global_step": max},
    ):
        wf.stage("eval", evaluate, writes=["global_step"])


@workflow(config=Config, state=State)
def full_training(wf: WorkflowBuilder) -> None:
    wf.stage("load_dataset", init)
    wf.resource(SESSION)
    with wf.loop("epochs", over=epochs_range):
        with wf.stream_loop("batches", over=stream_batches, prefetch=4):
            wf.stage("forward_backward", train)
            wf.stage("optim_step", train)
        with wf.conditional(should_eval):
            with wf.parallel(max_concurrency=2, merge={"global_step": latest}):
                wf.stage("eval_train", evaluate, writes=["global_step"])
                with wf.branch("eval_val"):
                    wf.stage("prepare", init)
                    wf.stage("score", evaluate)
                wf.include(evaluation, name="eval_all")
        with wf.conditional(should_checkpoint):
            wf.checkpoint()
    with wf.async_loop(
        "off_policy",
        collect_rollouts,
        done_training,
        producers=2,
        pacing="free",
        max_staleness=3,
    ):
        wf.stage("train_batch", train)
    wf.stage("cleanup", init)


class Publish(Stage):
    def validate(self, ctx: Any) -> str | None:
        return None if ctx.state.global_step else "nothing was trained"

    async def execute(self, ctx: Any) -> None:
        """Nothing to publish."""

    async def rollback(self, ctx: Any, error: Any) -> None:
        """Nothing to take back."""


@workflow(config=Config, state=State, compensate=True)
def guarded(wf: WorkflowBuilder) -> None:
    wf.stage("tokenize", init, process=True, timeout=600)
    wf.resource(SESSION)
    with wf.on_error("no_session"):
        wf.stage("note", init)
    with wf.timeout(3600):
        with wf.loop("epochs", over=epochs_range):
            wf.stage(
                "train", train, retries=Retry(3, backoff=2, on=(TimeoutError, ConnectionError))
            )
            wf.stage("evaluate", evaluate, retries=1, on_error="skip")
        wf.checkpoint()
    with wf.on_error():
        pass
    with wf.conditional(should_eval):
        wf.stage("push", train, effect="once")
    with wf.otherwise():
        wf.stage("keep", init)
    with wf.on_error("not_pushed"):
        with wf.timeout(30.5, name="tidying"):
            wf.stage("tidy", init)
    wf.stage("publish", Publish)


ALL = (
    custom_training,
    epoch_loop,
    conditional_steps,
    parallel_evals,
    streaming,
    off_policy_rl,
    evaluation,
    full_training,
    guarded,
)

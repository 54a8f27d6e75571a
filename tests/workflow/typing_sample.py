"""What a type checker must know. pyright checks this file; see test_typing.py."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from typing import TYPE_CHECKING, Any, TypeVar, assert_type

import msgspec

from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import Workflow
from kitchen.workflow.retry import Retry
from kitchen.workflow.stage import Resource, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Generator

    from kitchen import Failure

T = TypeVar("T")


class Config(msgspec.Struct):
    epochs: int = 3


@dataclasses.dataclass
class State:
    global_step: int = 0


class Context:
    """A stand-in for what a stage is handed, with parameters of its own."""

    config: Config


class Session:
    def __init__(self, ctx: Context) -> None: ...


class Managed:
    """An object that closes itself."""

    def __init__(self, ctx: Context) -> None: ...

    def __enter__(self) -> Managed: ...

    def __exit__(self, *error: object) -> None: ...


def open_sync(ctx: Context) -> Session: ...
async def open_async(ctx: Context) -> Session: ...
def open_awaitable(ctx: Context) -> Awaitable[Session]: ...
@contextlib.contextmanager
def open_managed(ctx: Context) -> Generator[Session]:
    yield Session(ctx)


@contextlib.asynccontextmanager
async def open_async_managed(ctx: Context) -> AsyncGenerator[Session]:
    yield Session(ctx)


class Resources:
    """The shape of `ctx.resources`."""

    def __getitem__(self, key: Resource[T]) -> T: ...


SYNC = Resource("sync", open_sync)
ASYNC = Resource("async", open_async)
AWAITABLE = Resource("awaitable", open_awaitable)
MANAGED = Resource("managed", open_managed)
ASYNC_MANAGED = Resource("async_managed", open_async_managed, stateful=True)
CLASS = Resource("class", Session)
MANAGED_CLASS = Resource("managed_class", Managed)
LAMBDA = Resource("lambda", lambda _ctx: 3)


def keys_know_their_type(resources: Resources) -> None:
    assert_type(resources[SYNC], Session)
    assert_type(resources[ASYNC], Session)
    assert_type(resources[AWAITABLE], Session)
    assert_type(resources[MANAGED], Session)
    assert_type(resources[ASYNC_MANAGED], Session)
    assert_type(resources[CLASS], Session)
    assert_type(resources[MANAGED_CLASS], Managed)
    assert_type(resources[LAMBDA], int)


def train(ctx: Context) -> None: ...
async def evaluate(ctx: Context) -> None: ...
def epochs(ctx: Context) -> range: ...
def should_eval(ctx: Context) -> bool: ...
def adapters(config: Config) -> dict[str, object]: ...


def stream(ctx: Context) -> Generator[int]:
    yield 1


async def stream_from_afar(ctx: Context) -> AsyncGenerator[int]:
    yield 1


async def collect(ctx: Context) -> list[int]: ...
def workers(ctx: Context) -> int: ...
def latest(before: float, values: list[float]) -> float: ...


class Save(Stage):
    async def execute(self, ctx: Context) -> None: ...


class Push(Stage):
    def validate(self, ctx: Context) -> str | None: ...
    async def execute(self, ctx: Context) -> None: ...
    async def rollback(self, ctx: Context, error: Failure) -> None:
        assert_type(error.message, str)


MINUTE = datetime.timedelta(minutes=1)


@workflow
def bare(wf: WorkflowBuilder) -> None: ...


@workflow()
def called(wf: WorkflowBuilder) -> None: ...


@workflow(config=Config)
def config_only(wf: WorkflowBuilder) -> None: ...


@workflow(config=Config, state=State, adapters=adapters, seed_globals=True, compensate=True)
def training(wf: WorkflowBuilder) -> None:
    wf.resource(SYNC)
    wf.resource("by_name", open_async, stateful=False)
    with wf.loop("epochs", over=epochs):
        wf.stage("train", train, options={"lr_scale": 0.5}, thread=False)
        wf.stage("save", Save)
        wf.stage("save_again", Save())
        with wf.conditional(should_eval, name="evaluation"):
            wf.stage("evaluate", evaluate)
        with wf.otherwise():
            wf.checkpoint("cut")
    with wf.stream_loop("streamed", over=stream, prefetch=4):
        wf.stage("train", train, writes={"global_step"})
    with wf.stream_loop("from_afar", over=stream_from_afar):
        wf.stage("train", train, writes=("global_step",))
    with wf.async_loop("off_policy", collect, stop_when=should_eval, pacing="free"):
        wf.stage("train", train)
    with wf.parallel(max_concurrency=2, merge={"a": "sum", "b": max, "c": latest}):
        with wf.branch("one"):
            wf.stage("train", train)
    with wf.parallel("each", over=epochs, max_concurrency=workers, on_error="finish"):
        wf.stage("train", train)
    wf.stage("retried", train, retries=3, timeout=600, effect="once", on_error="skip")
    wf.stage("waited_for", train, retries=Retry(3, jitter=0.0, on=OSError), timeout=MINUTE)
    wf.stage("elsewhere", train, retries=Retry(3, on=(OSError, ValueError)), process=True)
    with wf.on_error():
        pass
    with wf.timeout(3600):
        wf.stage("push", Push)
    with wf.timeout(MINUTE, name="short"), wf.loop("again", over=epochs):
        wf.stage("train", train)
    with wf.on_error("too_long"):
        wf.stage("train", train)
    wf.include(bare)
    wf.include(config_only, name="again")
    wf.include(train)  # pyright: ignore[reportArgumentType]
    wf.parallel(merge={"a": "summ"})  # pyright: ignore[reportArgumentType]
    wf.parallel(on_error="stop")  # pyright: ignore[reportArgumentType]
    wf.async_loop("a", collect, should_eval, pacing="slow")  # pyright: ignore[reportArgumentType]
    wf.stage("typo", train, effect="twice")  # pyright: ignore[reportArgumentType]
    wf.stage("typo", train, on_error="cancel")  # pyright: ignore[reportArgumentType]
    wf.stage("typo", train, retries="3")  # pyright: ignore[reportArgumentType]
    Retry(3, on="OSError")  # pyright: ignore[reportArgumentType]
    Retry(3).retries = 4  # pyright: ignore[reportAttributeAccessIssue]
    wf.stages("typo", train)  # pyright: ignore[reportAttributeAccessIssue]
    wf.stage("typo", train, retry=3)  # pyright: ignore[reportCallIssue]


@workflow(state=State, compensate=True, name="nightly")
def state_only(wf: WorkflowBuilder) -> None: ...


assert_type(bare, Workflow[Any, Any])
assert_type(called, Workflow[Any, Any])
assert_type(training, Workflow[Config, State])
assert_type(config_only, Workflow[Config, Any])
assert_type(state_only, Workflow[Any, State])
assert_type(training.config_type, type[Config] | None)

"""The verbs of kitchen, put together from the floors below: run, resume, history.

Rules:

1. One verb, one function; the awaitable twin has the same arguments.
2. A run that failed or was interrupted is an exception that carries the `Run`.
3. A store that is given by path is opened and closed here.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Generic, Literal, TypeVar
from weakref import finalize

import anyio

from kitchen.adapters.event_store import StoreLike, opened
from kitchen.errors import (
    ArgumentError,
    KitchenError,
    NotResumable,
    RunError,
    RunExists,
    RunInterrupted,
    UnknownRun,
)
from kitchen.history.history import History
from kitchen.history.metrics import Point, series
from kitchen.log.journal import Journal
from kitchen.log.reader import fact_of, recorded_ir, started
from kitchen.machine import cells
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.codec.frozen import FrozenDict
from kitchen.machine.events import Failure, spell
from kitchen.ports.event_store import EventStore
from kitchen.ports.observer import RunObserver
from kitchen.runner import config as configs
from kitchen.runner import start
from kitchen.runner.locate import recorded_workflow, workflow_at
from kitchen.workflow.definition import Workflow

C = TypeVar("C")
S = TypeVar("S")


_RUN_ID = re.compile(r"[^\W_][^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,199}")


class RunState(FrozenDict):
    """The final state: a read-only mapping whose keys are attributes too."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"the state has no {key!r}") from None


class Run(Generic[C, S]):
    """A run as it stood when this process was done with it.

    `status`: "completed", "failed" or "interrupted". `metrics`: the points that count, by name.
    """

    def __init__(
        self,
        id: str,  # noqa: A002  (pinned by the design)
        status: str,
        state: S,
        config: C,
        metrics: Mapping[str, Sequence[Point]],
        failure: Failure | None = None,
    ) -> None:
        self.id = id
        self.status = status
        self.state = state
        self.config = config
        self.metrics = metrics
        self.failure = failure

    def __repr__(self) -> str:
        return f"<Run {self.id!r}: {self.status}>"


async def run_async(
    workflow: Workflow[C, S],
    config: C | Mapping[str, Any] | None = None,
    *,
    store: StoreLike = None,
    run_id: str | None = None,
    adapters: Mapping[str, Any] | None = None,
    seed: int = 0,
    if_exists: str = "error",
    durability: str = "process",
    observers: Sequence[RunObserver] = (),
    signals: bool = False,
    quiet: bool = True,
) -> Run[C, S]:
    """`run` for a program that has an event loop already. Signals stay the host's by default.

    Raises what `run` raises.
    """
    _check_arguments(workflow, run_id, if_exists)
    _durability(durability)
    start.check_rank()
    with opened(store, durability=durability) as events:
        if durability == "power":
            events.use("power")  # a store that was open already may have been made for less
        name = run_id if run_id is not None else start.new_run_id(workflow.name)
        options = start.Options(adapters, observers, signals, quiet)
        with events.lease(name, note=workflow.name):
            if run_id is not None and _exists(events, run_id):
                if if_exists == "error":
                    raise RunExists(
                        f"there is a run {run_id!r} already",
                        hint='resume it, choose another id, or have it taken up: if_exists="resume"',
                    )
                start.check_same(started(events, run_id), workflow, config, seed)
                return _ended(await start.take_up_run(workflow, events, run_id, options), workflow)
            ended = await start.start(workflow, config, events, name, seed, options)
            return _ended(ended, workflow)


async def resume_async(
    run_id: str,
    workflow: Workflow[Any, Any] | str | None = None,
    *,
    store: StoreLike = None,
    adapters: Mapping[str, Any] | None = None,
    durability: str | None = None,
    observers: Sequence[RunObserver] = (),
    signals: bool = False,
    quiet: bool = True,
) -> Run[Any, Any]:
    """`resume` for a program that has an event loop already. Raises what `resume` raises."""
    start.check_rank()
    with opened(store, create=False) as events:
        events.run(run_id)
        with events.lease(run_id):
            recorded = started(events, run_id).durability
            events.use(_durability(recorded if durability is None else durability))
            found = _found(workflow, events, run_id)
            if found is None:
                return _untyped(events, run_id)
            options = start.Options(adapters, observers, signals, quiet)
            return _ended(await start.take_up_run(found, events, run_id, options), found)


def _found(
    workflow: Workflow[Any, Any] | str | None, events: EventStore, run_id: str
) -> Workflow[Any, Any] | None:
    """The code of a run; None where there is none, and none is needed: the run is completed."""
    if isinstance(workflow, str):
        return workflow_at(workflow)
    if workflow is not None:
        _check_arguments(workflow, run_id)
        return workflow
    try:
        return recorded_workflow(started(events, run_id).locator, run_id)
    except NotResumable:
        if events.latest(run_id, ["RunCompleted"]) is None:
            raise
        return None


def run(
    workflow: Workflow[C, S],
    config: C | Mapping[str, Any] | None = None,
    *,
    store: StoreLike = None,
    run_id: str | None = None,
    adapters: Mapping[str, Any] | None = None,
    seed: int = 0,
    if_exists: str = "error",
    durability: str = "process",
    observers: Sequence[RunObserver] = (),
) -> Run[C, S]:
    """Run a workflow to its end.

    `store`: a path, an open store, or None for `$KITCHEN_STORE` or `kitchen.db`. `run_id`: the
    run's name, made up if left out. `seed`: what all randomness is derived from.
    `if_exists="resume"`: a run of that id is taken up where it was left, so the same call is safe
    to repeat. `durability`: "process" survives kill -9, "power" also the loss of power.

    Raises `RunError` if the run failed, `RunInterrupted` if it was interrupted (both with `.run`);
    before anything ran `ArgumentError`, `ConfigError`, `RunExists`, `RunMismatch`, `RunHeld`,
    `StoreError`.
    """
    _check_no_loop("run_async")
    return anyio.run(
        partial(
            run_async,
            workflow,
            config,
            store=store,
            run_id=run_id,
            adapters=adapters,
            seed=seed,
            if_exists=if_exists,
            durability=durability,
            observers=observers,
            signals=True,
            quiet=False,
        )
    )


def resume(
    run_id: str,
    workflow: Workflow[Any, Any] | str | None = None,
    *,
    store: StoreLike = None,
    adapters: Mapping[str, Any] | None = None,
    durability: str | None = None,
    observers: Sequence[RunObserver] = (),
) -> Run[Any, Any]:
    """Take up a run where it was left, and run it to its end. A completed one is returned as it is.

    Without `workflow` (a `Workflow` or "module:name") the code is found by what the log recorded;
    without `durability` it is what the run was started with.

    Raises `RunError`, `RunInterrupted`, `ArgumentError`, `UnknownRun`, `RunHeld`, `NotResumable`,
    `WorkflowChanged`, `StoreError`.
    """
    _check_no_loop("resume_async")
    return anyio.run(
        partial(
            resume_async,
            run_id,
            workflow,
            store=store,
            adapters=adapters,
            durability=durability,
            observers=observers,
            signals=True,
            quiet=False,
        )
    )


def open_history(run_id: str, *, store: StoreLike = None) -> History:
    """`kitchen.history`: the store stays open as long as the `History` is in use."""
    stack = ExitStack()
    try:
        past = History(stack.enter_context(opened(store, create=False)), run_id)
    except BaseException:
        stack.close()
        raise
    finalize(past, stack.close)
    return past


def _ended(ended: start.Ended, workflow: Workflow[C, S]) -> Run[C, S]:
    """The run, or the exception that carries it."""
    journal = ended.journal
    made = _run(journal, workflow.config_type, workflow.state_type)
    if made.status == "failed":
        assert made.failure is not None
        where = _failed_at(journal)
        told = f"{made.failure.type}: {made.failure.message}"
        raise RunError(
            f"run {made.id!r} failed at {where}\n  {told}",
            run=made,
            hint=made.failure.hint or f"kitchen show {made.id}, then kitchen resume {made.id}",
        ) from ended.cause
    if made.status == "interrupted":
        raise RunInterrupted(
            f"run {made.id!r} was interrupted at seq {journal.state.seq}",
            run=made,
            signal=_last(journal, "RunInterrupted").signal,
            hint=f"kitchen resume {made.id}",
        )
    return made


def _run(journal: Journal, config_type: Any, declared: Any) -> Run[Any, Any]:
    begun = journal.state.started
    assert begun is not None
    codec = Codec.for_types(*([declared] if declared is not None else []))
    data = journal.state.core.data
    values = {key: cells.read(cell, codec, journal.fetch, key) for key, cell in data.items()}
    failed = journal.state.status == "failed"
    return Run(
        id=journal.run,
        status=journal.state.status,
        state=RunState(values),
        config=configs.restore(begun.config, config_type),
        metrics=series(journal.store, journal.run),
        failure=_last(journal, "RunFailed").failure if failed else None,
    )


def _untyped(events: EventStore, run_id: str) -> Run[Any, Any]:
    """A completed run whose code is not to be found: config and state are mappings."""
    journal = Journal(events, run_id, compile_workflow(recorded_ir(events, run_id)))
    journal.load()
    return _run(journal, None, None)


def _last(journal: Journal, type_name: str) -> Any:
    record = journal.store.latest(journal.run, [type_name])
    assert record is not None
    return fact_of(record).event


def _failed_at(journal: Journal) -> str:
    record = journal.store.latest(journal.run, ["RunFailed"])
    assert record is not None
    loops = journal.program.loops.get(record.path)
    return spell(record.path, record.visit, loops) or "its start or its end"


def _exists(events: EventStore, run_id: str) -> bool:
    try:
        events.run(run_id)
    except UnknownRun:
        return False
    return True


def _check_arguments(workflow: object, run_id: object, if_exists: str = "error") -> None:
    if not isinstance(workflow, Workflow):
        raise ArgumentError(
            f"expected a workflow, got {workflow!r}", hint="did you forget @kitchen.workflow?"
        )
    if if_exists not in ("error", "resume"):
        raise ArgumentError(f'if_exists is "error" or "resume", not {if_exists!r}')
    if run_id is not None and not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):
        raise ArgumentError(
            f"a run's id is a text of 1 to 200 printable characters, not {run_id!r}",
            hint="leave it out, and one is made up",
        )


def _durability(word: str) -> Literal["process", "power"]:
    if word not in ("process", "power"):
        raise ArgumentError(f'durability is "process" or "power", not {word!r}')
    return word


def _check_no_loop(twin: str) -> None:
    trio: Any = sys.modules.get("trio")
    if trio is None or not trio.lowlevel.in_trio_run():
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
    raise KitchenError(
        "this thread runs an event loop already, as a notebook does",
        hint=f"await kitchen.{twin}(…) instead",
    )

"""The verbs that execute: run, resume, and cancel, which ends that.

Rules:

1. One verb, one function; the awaitable twin has the same arguments.
2. A run that failed or was interrupted is an exception that carries the `Run`.
3. A store that is given by path is opened and closed here.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import anyio

from kitchen.adapters.event_store import StoreLike, opened
from kitchen.ended import Run, ended_run, untyped
from kitchen.errors import (
    ArgumentError,
    KitchenError,
    NotResumable,
    RunExists,
    RunHeld,
)
from kitchen.log.live import begun
from kitchen.log.reader import run_exists, started
from kitchen.ports.event_store import EventStore
from kitchen.ports.observer import RunObserver
from kitchen.runner import cancelling, start
from kitchen.runner.edits import Edits
from kitchen.runner.locate import recorded_workflow, workflow_at
from kitchen.runner.planning import ResumePlan
from kitchen.runner.randomness import whole
from kitchen.runner.resume import LIFE
from kitchen.runner.stopping import GRACE
from kitchen.runner.workers.messages import check_not_importing
from kitchen.workflow.definition import Workflow

C = TypeVar("C")
S = TypeVar("S")


_RUN_ID = re.compile(r"[^\W_][^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,199}")


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
    on_plan: Callable[[ResumePlan], object] | None = None,
    grace: float = GRACE,
    signals: bool = False,
    quiet: bool = True,
) -> Run[C, S]:
    """`run` for a program that has an event loop already. Signals stay the host's by default.
    `on_plan`: as in `resume`, where a run is taken up. Raises what `run` raises.
    """
    check_workflow(workflow)
    check_id(run_id)
    if if_exists not in ("error", "resume"):
        raise ArgumentError(f'if_exists is "error" or "resume", not {if_exists!r}')
    _durability(durability)
    seed = whole(seed)
    start.check_rank()
    check_not_importing()
    with opened(store, durability=durability) as events:
        if durability == "power":
            events.use("power")  # a store that was open already may have been made for less
        name = run_id if run_id is not None else start.new_run_id(workflow.name)
        options = start.Options(adapters, observers, signals, quiet, _grace(grace), on_plan=on_plan)
        with events.lease(name, note=workflow.name):
            if run_id is not None and run_exists(events, run_id):
                if if_exists == "error":
                    raise RunExists(
                        f"there is a run {run_id!r} already",
                        hint='resume it, choose another id, or have it taken up: if_exists="resume"',
                    )
                asked = start.check_same(begun(events, run_id), workflow, config, seed)
                ended = await start.take_up_run(workflow, events, run_id, options, asked)
                return ended_run(ended, workflow)
            ended = await start.start(workflow, config, events, name, seed, options)
            return ended_run(ended, workflow)


async def resume_async(
    run_id: str,
    workflow: Workflow[Any, Any] | str | None = None,
    *,
    store: StoreLike = None,
    adapters: Mapping[str, Any] | None = None,
    durability: str | None = None,
    observers: Sequence[RunObserver] = (),
    decide: Mapping[str, Any] | None = None,
    at: int | None = None,
    config: Any = None,
    state: Mapping[str, Any] | None = None,
    seed: int | None = None,
    rename: Mapping[str, str] | None = None,
    on_plan: Callable[[ResumePlan], object] | None = None,
    grace: float = GRACE,
    signals: bool = False,
    quiet: bool = True,
    strict: bool = True,
) -> Run[Any, Any]:
    """`resume` for a program that has an event loop already. `strict=False`: texts in `config` are
    converted, as those from a command line are. Raises what `resume` raises."""
    start.check_rank()
    check_not_importing()
    with opened(store, create=False) as events:
        events.run(run_id)
        with events.lease(run_id):
            recorded = started(events, run_id).durability
            events.use(_durability(recorded if durability is None else durability))
            found = code_of(workflow, events, run_id, needed=at is not None)
            if found is None:
                return untyped(events, run_id)
            options = start.Options(
                adapters, observers, signals, quiet, _grace(grace), decide,
                at, Edits(config, state, seed, strict), rename or {}, on_plan,
            )  # fmt: skip
            return ended_run(await start.take_up_run(found, events, run_id, options), found)


def code_of(
    workflow: Workflow[Any, Any] | str | None,
    events: EventStore,
    run_id: str,
    *,
    needed: bool = False,
    verb: str = "resume",
) -> Workflow[Any, Any] | None:
    """The code of a run; None where there is none, and none is needed: the run is completed."""
    if isinstance(workflow, str):
        return workflow_at(workflow)
    if workflow is not None:
        check_workflow(workflow)
        return workflow
    try:
        return recorded_workflow(started(events, run_id).locator, run_id, verb)
    except NotResumable:
        last = events.latest(run_id, LIFE, path="")
        if needed or last is None or last.type != "RunCompleted":
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
    grace: float = GRACE,
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
    check_no_loop("run_async")
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
            grace=grace,
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
    decide: Mapping[str, Any] | None = None,
    at: int | None = None,
    config: Any = None,
    state: Mapping[str, Any] | None = None,
    seed: int | None = None,
    rename: Mapping[str, str] | None = None,
    on_plan: Callable[[ResumePlan], object] | None = None,
    grace: float = GRACE,
) -> Run[Any, Any]:
    """Take up a run where it was left, and run it to its end. A completed one is returned as it is.

    Without `workflow` (a `Workflow` or "module:name") the code is found by what the log recorded;
    without `durability` it is what the run was started with. `decide` says of stages with
    effect="once" that were stopped in the middle, by path: "retry", "skip", or a mapping of the
    changes to the state that they would have made, which is "skip" as well. `grace`: as in `run`.

    `at`: go another way from the latest consistent cut at or before that seq, also of a run that is
    completed; `config` (the fields that change), `state` (the keys) and `seed` are then edited.
    `rename`: new paths of nodes by their old ones, where the workflow has changed. `on_plan` is told
    what will be done, before anything is.

    Raises `RunError`, `RunInterrupted`, `RunCancelled`, `ArgumentError`, `UnknownRun`, `RunHeld`,
    `EffectUndecided`, `NotResumable`, `WorkflowChanged`, `BlobLost`, `StoreError`.
    """
    check_no_loop("resume_async")
    return anyio.run(
        partial(
            resume_async,
            run_id,
            workflow,
            store=store,
            adapters=adapters,
            durability=durability,
            observers=observers,
            decide=decide,
            at=at,
            config=config,
            state=state,
            seed=seed,
            rename=rename,
            on_plan=on_plan,
            grace=grace,
            signals=True,
            quiet=False,
        )
    )


def cancel(run_id: str, *, store: StoreLike = None, wait: float = 60.0) -> str:
    """End a run for good; how it then stands ("completed" if it came to its end before).

    A run that another process executes is ended by that process: what is async is cancelled, what
    is not gets its grace period, resources are closed. It is waited for `wait` seconds; if it has
    not ended by then, it still will, or when somebody takes it up.

    Raises `UnknownRun`, `RunHeld` where it has not ended by then, `StoreError`.
    """
    who = f"pid {os.getpid()} on {socket.gethostname()}"
    with opened(store, create=False) as events:
        events.run(run_id)
        until = time.monotonic() + wait
        while True:
            try:
                with events.lease(run_id, note="cancel"):
                    stands = cancelling.end(events, run_id, who)
                    cancelling.forget(events, run_id)
                    return stands
            except RunHeld:
                if cancelling.ask(events, run_id, who) is None or time.monotonic() > until:
                    raise
            time.sleep(0.1)


def check_workflow(workflow: object) -> None:
    """Raises `ArgumentError` for what is no workflow."""
    if not isinstance(workflow, Workflow):
        raise ArgumentError(
            f"expected a workflow, got {workflow!r}", hint="did you forget @kitchen.workflow?"
        )


def check_id(run_id: object) -> None:
    """Raises `ArgumentError` for what cannot be the id of a run; None is to be made up."""
    if run_id is not None and not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):
        raise ArgumentError(
            f"a run's id is a text of 1 to 200 printable characters, not {run_id!r}",
            hint="leave it out, and one is made up",
        )


def _grace(seconds: object) -> float:
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0:
        return float(seconds)
    raise ArgumentError(f"grace is a number of seconds from 0 on, not {seconds!r}")


def _durability(word: str) -> Literal["process", "power"]:
    if word not in ("process", "power"):
        raise ArgumentError(f'durability is "process" or "power", not {word!r}')
    return word


def check_no_loop(twin: str) -> None:
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

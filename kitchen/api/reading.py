"""The verbs that look: history, replay, diff. Nothing is appended, whatever they find."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import finalize

import anyio

from kitchen.adapters.event_store import StoreLike, opened
from kitchen.api.running import check_no_loop, code_of
from kitchen.errors import ArgumentError
from kitchen.history.history import History
from kitchen.history.replay import Replay, replayed
from kitchen.runner.replaying.rehearse import rehearse
from kitchen.workflow.definition import Workflow

if TYPE_CHECKING:
    from kitchen.history.diff import Diff


def history(run_id: str, *, store: StoreLike = None) -> History:
    """What a run's log says, without any code of the user's. The store stays open as long as the
    `History` is in use.

    Raises `UnknownRun`, `StoreError`.
    """
    stack = ExitStack()
    try:
        past = History(stack.enter_context(opened(store, create=False, read_only=True)), run_id)
    except BaseException:
        stack.close()
        raise
    finalize(past, stack.close)
    return past


def replay(
    run_id: str,
    workflow: Workflow[Any, Any] | str | None = None,
    *,
    store: StoreLike = None,
    execute: bool = False,
    until: int | None = None,
    only: str | None = None,
    tolerance: float = 0.0,
    adapters: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Go through a run again, and compare with what was recorded; what differs is in
    `.divergences`.

    Folding needs no code: it checks the chain, and that every event is legal. With `execute`, each
    committed visit of a stage runs again, from its recorded inputs and in a sandbox: nothing is
    appended, and stages with effect="once" are not run. `until`: no event behind this seq. `only`:
    stages at or below this path. `tolerance`: how far numbers may differ, absolutely and relatively.
    `adapters` stand in for those of the workflow.

    Raises `UnknownRun`, `ArgumentError`, `NotResumable`, `ConfigError`, `StoreError`.
    """
    if not execute:
        if only is not None or tolerance or adapters is not None:
            raise ArgumentError("only=, tolerance= and adapters= are for replay(execute=True)")
        with opened(store, create=False, read_only=True) as events:
            return replayed(events, run_id, until)
    _check_tolerance(tolerance)
    check_no_loop("replay_async")
    return anyio.run(
        partial(
            replay_async,
            run_id,
            workflow,
            store=store,
            until=until,
            only=only,
            tolerance=tolerance,
            adapters=adapters,
            progress=progress,
        )
    )


async def replay_async(
    run_id: str,
    workflow: Workflow[Any, Any] | str | None = None,
    *,
    store: StoreLike = None,
    until: int | None = None,
    only: str | None = None,
    tolerance: float = 0.0,
    adapters: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """`replay(execute=True)` for a program that has an event loop already."""
    with opened(store, create=False, read_only=True) as events:
        code = code_of(workflow, events, run_id, needed=True, verb="replay")
        assert code is not None
        return await rehearse(
            code,
            events,
            run_id,
            until=until,
            only=only,
            tolerance=tolerance,
            adapters=adapters,
            progress=progress,
        )


def diff(
    a: str,
    b: str,
    *,
    store: StoreLike = None,
    other: StoreLike = None,
    tolerance: float = 0.0,
) -> Diff:
    """How two runs differ, aligned by path and visit. `other`: the store of `b`, if it is another.
    `tolerance`: how far numbers may differ, absolutely and relatively.

    Raises `UnknownRun`, `StoreError`.
    """
    from kitchen.history.diff import compare

    _check_tolerance(tolerance)
    with ExitStack() as stack:
        first = stack.enter_context(opened(store, create=False, read_only=True))
        second = first
        if other is not None:
            second = stack.enter_context(opened(other, create=False, read_only=True))
        return compare(History(first, a), History(second, b), tolerance=tolerance)


def _check_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < math.inf:
        raise ArgumentError(f"a tolerance is a number from 0 on, not {tolerance}")

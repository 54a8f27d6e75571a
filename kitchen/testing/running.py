"""`run_workflow` and its awaitable twin, and the store of a test.

Rules:

1. A run goes as by `kitchen.run`: same arguments, same errors, in the store of the test. Signals
   stay pytest's, and nothing is printed.
2. With a clock, the event loop and the times in the log are that clock's.
3. Where a test fails, its report says where its store is and which runs are in it. What says so is
   a plugin that is registered when the first test of a session asks for a store.
4. An error comes out with the frames of the user's code alone, and so do its causes: how the runner
   came to call it is of no use in the report of a test.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
import pytest

from kitchen.adapters.event_store import opened
from kitchen.api.running import check_no_loop, run_async
from kitchen.ended import Run
from kitchen.errors import ArgumentError, KitchenError
from kitchen.history.history import status_of
from kitchen.ports.event_store import EventStore
from kitchen.ports.observer import RunObserver
from kitchen.testing.given import Adapters, adapters_of, check_clock
from kitchen.testing.waits import LongWaits
from kitchen.workflow.definition import Workflow

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock

C = TypeVar("C")
S = TypeVar("S")

Durability = Literal["process", "power"]
IfExists = Literal["error", "resume"]

_STORE = pytest.StashKey[EventStore]()
_TELLER = "kitchen-stores"
_MOST = 20  # runs that are told of
_RUNTIME = frozenset(
    {"kitchen", "store", "anyio", "asyncio", "trio", "outcome", "concurrent", "threading"}
)


class RunWorkflow:
    """The fixture `run_workflow`: `run_workflow(workflow, config)` runs it and gives the `Run`.

    `config`: pytest's, to tell whoever looks on what a run waits for; None: nothing is told.
    """

    def __init__(self, store: EventStore, config: pytest.Config | None = None) -> None:
        self._store = store
        self._lookers = () if config is None else (LongWaits(config),)

    def __call__(
        self,
        workflow: Workflow[C, S],
        config: C | Mapping[str, Any] | None = None,
        *,
        adapters: Adapters = None,
        seed: int = 0,
        run_id: str | None = None,
        clock: VirtualClock | None = None,
        backend: Literal["asyncio", "trio"] = "asyncio",
        observers: Sequence[RunObserver] = (),
        if_exists: IfExists = "error",
        durability: Durability = "process",
    ) -> Run[C, S]:
        """Run a workflow to its end in `kitchen_store`, as `kitchen.run` does.

        `adapters`: a mapping, or a function of no arguments that makes one. `clock`: a
        `VirtualClock`, on which retries and timeouts pass at once. `backend`: the event loop,
        "asyncio" or "trio".

        Raises what `kitchen.run` raises, `ArgumentError` for another backend, clock or adapters, and
        `KitchenError` where the thread runs an event loop already.
        """
        __tracebackhide__ = True
        try:
            _check(backend, clock)
            work = partial(
                run_async,
                workflow,
                config,
                store=self._store if clock is None else clock.store(self._store),
                run_id=run_id,
                adapters=adapters_of(adapters),
                seed=seed,
                if_exists=if_exists,
                durability=durability,
                observers=observers if clock is not None else (*self._lookers, *observers),
            )
            options = None if clock is None else clock.backend_options(backend)
            return anyio.run(work, backend=backend, backend_options=options)
        except KitchenError as error:
            _shorten(error)
            raise


class RunWorkflowAsync:
    """The fixture `run_workflow_async`: `await run_workflow_async(workflow, config)`."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    async def __call__(
        self,
        workflow: Workflow[C, S],
        config: C | Mapping[str, Any] | None = None,
        *,
        adapters: Adapters = None,
        seed: int = 0,
        run_id: str | None = None,
        observers: Sequence[RunObserver] = (),
        if_exists: IfExists = "error",
        durability: Durability = "process",
    ) -> Run[C, S]:
        """`run_workflow` on the event loop of the test. Raises what `kitchen.run_async` raises, and
        `ArgumentError` for adapters that cannot be used."""
        __tracebackhide__ = True
        try:
            return await run_async(
                workflow,
                config,
                store=self._store,
                run_id=run_id,
                adapters=adapters_of(adapters),
                seed=seed,
                if_exists=if_exists,
                durability=durability,
                observers=observers,
            )
        except KitchenError as error:
            _shorten(error)
            raise


def _check(backend: object, clock: object) -> None:
    if backend not in ("asyncio", "trio"):
        raise ArgumentError(f'backend is "asyncio" or "trio", not {backend!r}')
    check_clock(clock)
    try:
        check_no_loop("run_async")
    except KitchenError as error:
        raise KitchenError(
            error.message, hint="in an async test, await run_workflow_async(…) instead"
        ) from None


def _shorten(error: BaseException) -> None:
    """Leave in the tracebacks of an error, and of what it came of, the frames of the user's code."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = _of_user(each.__traceback__)
            todo += [found for found in (each.__cause__, each.__context__) if found is not None]


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while trace is not None:
        module: str = trace.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in _RUNTIME or module.startswith("kitchen.recipes"):
            frames.append(trace)
        trace = trace.tb_next
    for each in reversed(frames):
        trace = TracebackType(trace, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return trace


# --- the store of a test, and what a failing test says of it --------------------------------------


@contextmanager
def store_of(request: pytest.FixtureRequest, path: Path) -> Generator[EventStore]:
    """The store of a test at that path, open; the report of the test will tell of it."""
    manager = request.config.pluginmanager
    if not manager.has_plugin(_TELLER):
        manager.register(_Teller(), _TELLER)
    with opened(path) as store:
        request.node.stash[_STORE] = store
        try:
            yield store
        finally:
            del request.node.stash[_STORE]


class _Teller:
    """Adds a section "kitchen" to the report of a test that failed with runs in its store."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Read the store while it is open: at the end of the test itself, not of its fixtures."""
        report = yield
        store = item.stash.get(_STORE, None)
        if store is not None and report.failed:
            told = "\n".join(_told(store))
            if told:
                report.sections.append(("kitchen", told))
        return report


def _told(store: EventStore) -> Iterator[str]:
    """Where the store is, and its runs, the newest first, with what shows them."""
    try:
        runs = list(store.runs())
        if runs:
            yield f"the store of this test: {store.path}"
        for info in runs[:_MOST]:
            yield f"  {info.run} ({info.name}): {status_of(store, info.run)}"
            yield f"    {shlex.join(('kitchen', 'show', info.run, '--store', str(store.path)))}"
        if len(runs) > _MOST:
            yield f"  and {len(runs) - _MOST} older runs"
    except KitchenError as error:  # the failure of the test is what matters
        yield f"  the store does not read: {error.message}"

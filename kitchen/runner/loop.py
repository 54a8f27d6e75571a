"""The loop of a run. The write order stands here, and nowhere else:

    decide   what follows from an outcome                   (pure)
    append   those events, in one transaction                (the log)
    apply    them to the state                               (pure)
    perform  the commands that they asked for                (user code)

Rules:

1. Always in that order. Nothing is performed before what asked for it is in the log. A stage's
   mutations, its metrics, its completion and the start of what follows are one append.
2. `step` does the first three without yielding, so that outcomes never interleave within it.
3. A request to stop is honoured between two commands: what is unsaved is checkpointed, and
   `RunInterrupted` is the last event.
4. However the loop ends, resources are closed, in reverse order, by the task that opened them.
   What fails at that, or in an observer, is logged: it must not hide how the run ended.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from kitchen.errors import KitchenError, StoreError
from kitchen.machine import commands as C
from kitchen.machine.commands import Command, Input
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact, LoopExited, RunRewound
from kitchen.ports.observer import RunObserver
from kitchen.runner.perform import Performer
from kitchen.runner.scope import Scope

_logger = logging.getLogger("kitchen.run")

FLUSH_SECONDS = 0.5
YIELD_SECONDS = 0.02
_NO_BLOBS: Mapping[str, bytes] = {}


class Execution:
    """A run as this process executes it, from taking it up to its end."""

    def __init__(self, scope: Scope, observers: Sequence[RunObserver] = ()) -> None:
        self.scope = scope
        self.performer = Performer(scope)
        self.stop_signal: str | None = None
        self._observers = list(observers)
        if observers:
            scope.on_progress = self._tell_progress

    def step(self, given: Input, blobs: Mapping[str, bytes] = _NO_BLOBS) -> Sequence[Command]:
        """Decide, append, apply; the commands to perform."""
        journal = self.scope.journal
        decision = decide(journal.program, journal.state, given)
        if decision.facts:
            journal.write(decision.facts, blobs, decision.control)
            self._forget(decision.facts)
            if self._observers:
                told = decision.facts
                self._tell(lambda who: who.on_facts(journal.run, told, journal.state))
        return decision.commands

    async def drive(self, begin: Callable[[], Awaitable[Iterable[Command]]]) -> None:
        """Begin, then perform commands until there are none left.

        When it returns, the run is completed, failed or interrupted, as its state says.
        """

        async def all_of_it() -> None:
            try:
                await self._perform_all(deque(await begin()))
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self._close_all()
                raise
            except BaseException:
                await self._close_all()
                raise
            await self._close_all()

        await beside(self._flush_metrics, all_of_it)

    async def _perform_all(self, pending: deque[Command]) -> None:
        yielded = time.monotonic()
        while pending:
            if self.stop_signal is not None:
                await self._interrupt(self.stop_signal)
                return
            outcome, blobs = await self.performer.perform(pending.popleft())
            pending.extend(self.step(outcome, blobs))
            # Awaiting what is ready never yields, and a fast workflow would starve the flusher.
            if time.monotonic() - yielded > YIELD_SECONDS:
                await anyio.lowlevel.checkpoint()
                yielded = time.monotonic()

    async def _close_all(self) -> None:
        """Close what the run left open: all is closed by now, unless it ended before its end."""
        try:
            await self.scope.live.close(error=self.performer.failed)
        except KitchenError:
            _logger.exception("run %s: a resource could not be closed", self.scope.run_id)

    async def _interrupt(self, signal: str) -> None:
        try:
            if self.scope.journal.state.dirty:
                manifests = await self.performer.save()
                self.step(C.CheckpointWritten(None, manifests))
        finally:  # without the checkpoint the run is rewound when it is resumed
            self.step(C.Interrupt(signal))

    async def _flush_metrics(self) -> None:
        """Have the metrics of a long stage in the log within a second."""
        while True:
            await anyio.sleep(FLUSH_SECONDS)
            attempt = self.performer.running
            metrics = attempt.take_metrics() if attempt is not None else ()
            if attempt is not None and metrics:
                try:
                    self.step(C.MetricsFlushed(attempt.address, attempt.number, metrics))
                except (
                    StoreError
                ):  # not yet, then; what cannot be written will be told at the commit
                    attempt.metrics.extendleft(reversed(metrics))
                else:
                    attempt.flushed.extend(metrics)

    def _forget(self, facts: Sequence[Fact]) -> None:
        """Drop the items of loops that have ended."""
        for fact in facts:
            kind = type(fact.event)
            if kind is LoopExited:
                self.scope.items.pop(Address(fact.path, fact.visit), None)
            elif kind is RunRewound:
                self.scope.items.clear()

    def _tell_progress(self, address: Address, done: float, total: float | None) -> None:
        self._tell(lambda who: who.on_progress(self.scope.run_id, address, done, total))

    def _tell(self, call: Callable[[RunObserver], None]) -> None:
        """Tell every observer. One that raises is told nothing more."""
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception:
                self._observers.remove(observer)
                _logger.exception(
                    "run %s: observer %r failed and is dropped", self.scope.run_id, observer
                )


async def beside(
    background: Callable[[], Coroutine[Any, Any, None]], work: Callable[[], Awaitable[None]]
) -> None:
    """Do the work with the background task beside it, and end that with it.

    Raises what the work raises, or what the background did: bare, not in a group.
    """
    failed: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(background)
            try:
                await work()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # raised again below, outside the group
                failed = error
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failed = failed or group.exceptions[0]
    if failed is not None:
        raise failed

"""The loop of a run. The write order stands here, and nowhere else:

    decide   what follows from an outcome                   (pure)
    append   those events, in one transaction                (the log)
    apply    them to the state                               (pure)
    perform  the commands that they asked for                (user code)

Rules:

1. Always in that order. Nothing is performed before what asked for it is in the log. A stage's
   mutations, its metrics, its completion and the start of what follows are one append.
2. `step` does the first three without yielding, so that outcomes never interleave within it.
   Outcomes that came together share an append: each is decided and applied in its turn, then all
   is written, and only then anything performed.
3. A command that stands alone is performed here and now; several are performed by the crew.
4. A request to stop is honoured between two commands: what runs comes to its end, but for what
   only waits for an item; what is unsaved is checkpointed, and `RunInterrupted` is the last event.
5. However the loop ends, resources are closed, in reverse order, by the task that opened them.
   What fails at that, or in an observer, is logged: it must not hide how the run ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from kitchen.errors import IllegalOutcome, KitchenError, StoreError
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds
from kitchen.machine.commands import Command, Input
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact
from kitchen.machine.outstanding import is_outstanding
from kitchen.machine.state import ACTIVE
from kitchen.ports.observer import RunObserver
from kitchen.runner.crew import Crew, bare
from kitchen.runner.failure import being_cancelled
from kitchen.runner.outcome import Performed
from kitchen.runner.perform import Performer
from kitchen.runner.scope import Scope
from kitchen.workflow.ir import AsyncLoopNode

_logger = logging.getLogger("kitchen.run")

FLUSH_SECONDS = 0.5
YIELD_SECONDS = 0.02
_NO_BLOBS: Mapping[str, bytes] = {}

# Behind these, something that is being performed may be wanted no more.
_ENDING = frozenset({E.BranchFailed, E.RunFailed, E.LoopStopped})


class Execution:
    """A run as this process executes it, from taking it up to its end."""

    def __init__(self, scope: Scope, observers: Sequence[RunObserver] = ()) -> None:
        self.scope = scope
        self.performer = Performer(scope)
        self.stop_signal: str | None = None
        self._crew: Crew
        self._ending = False
        self._failure: E.Failure | None = None
        self._observers = list(observers)
        if observers:
            scope.on_progress = self._tell_progress

    def step(self, given: Input, blobs: Mapping[str, bytes] = _NO_BLOBS) -> Sequence[Command]:
        """Decide, append, apply; the commands to perform."""
        journal = self.scope.journal
        decision = decide(journal.program, journal.state, given)
        if decision.facts:
            journal.write(decision.facts, blobs, decision.control)
            self._applied(decision.facts)
            self._tell_facts(decision.facts)
        return decision.commands

    def step_all(self, done: Sequence[tuple[Command, Performed]]) -> Sequence[Command]:
        """The same for outcomes that came together, in one append. Those that nobody wants any
        more are dropped."""
        journal = self.scope.journal
        commands: list[Command] = []
        facts: list[Fact] = []
        for command, (outcome, blobs) in done:
            if not is_outstanding(journal.program, journal.state, command):
                continue
            if len(done) == 1:
                return self.step(outcome, blobs)
            decision = decide(journal.program, journal.state, outcome)
            journal.stage(decision.facts, blobs, decision.control)
            self._applied(decision.facts)
            facts += decision.facts
            commands += decision.commands
        if facts:
            journal.commit()
            self._tell_facts(facts)
        return [c for c in commands if is_outstanding(journal.program, journal.state, c)]

    async def drive(self, begin: Callable[[], Awaitable[Iterable[Command]]]) -> None:
        """Begin, then perform commands until there are none left.

        When it returns, the run is completed, failed or interrupted, as its state says.
        """

        async def all_of_it(beside: TaskGroup) -> None:
            self._crew = Crew(beside, self.performer.perform)
            beside.start_soon(self._flush_metrics)
            self.scope.live.hosts = beside
            self.performer.feeding.host = self._crew.host
            self.performer.on(C.LeaveLoop, self._leave)
            try:
                await self._perform_all(begin)
            except BaseException:
                await self._end()
                raise
            await self._end()

        await bare(all_of_it)

    async def _perform_all(self, begin: Callable[[], Awaitable[Iterable[Command]]]) -> None:
        crew = self._crew
        pending = list(await begin())
        yielded = time.monotonic()
        while self.scope.journal.state.status == ACTIVE and (pending or not crew.idle):
            if self.stop_signal is not None:
                await self._interrupt(self.stop_signal)
                return
            if len(pending) == 1 and crew.idle and self._alone(pending[0]):
                command = pending.pop()
                await anyio.lowlevel.checkpoint_if_cancelled()  # rather than in the middle of it
                outcome, blobs = await self.performer.perform(command)
                pending.extend(self.step(outcome, blobs))
                # Awaiting what is ready never yields, and a fast workflow would starve the flusher.
                if time.monotonic() - yielded > YIELD_SECONDS:
                    await anyio.lowlevel.checkpoint()
                    yielded = time.monotonic()
                continue
            for command in pending:
                crew.begin(command)
            pending = list(self.step_all(await crew.outcomes()))
            if self._ending:
                self._ending = False
                self._cancel_unwanted()
        if self.scope.journal.state.status == ACTIVE and self.stop_signal is None:
            raise IllegalOutcome(
                f"run {self.scope.run_id!r} waits for nothing, and has not ended",
                hint="this is a fault of kitchen; please report it with the log",
            )

    def _alone(self, command: Command) -> bool:
        """Whether to perform a lone command here: not what may wait long for an item."""
        if isinstance(command, C.PullItem):
            return self.performer.feeding.ready(command.address)
        return not isinstance(command, C.Produce)

    def _cancel_unwanted(self) -> None:
        journal = self.scope.journal
        for command in self._crew.busy:
            if not is_outstanding(journal.program, journal.state, command):
                self._cancel(command)

    def _cancel(self, command: Command) -> None:
        """Stop a command; but half a production would be left in a resource that it has touched."""
        attempt = self.performer.feeding.producing.get(command.address)
        if attempt is None or attempt.revoke(self.scope.journal.state.stateful):
            self._crew.cancel(command)

    async def _leave(self, command: C.LeaveLoop) -> Performed:
        """A loop ends: its source is closed, its producers are gone."""
        loop = command.address
        await self.performer.feeding.leave(loop)
        await self._crew.gone(
            lambda other: isinstance(other, C.Produce) and feeds.loop_of(other.address) == loop
        )
        return Performed(C.LoopLeft(loop), {})

    async def _end(self) -> None:
        """Close what is open; a cancellation that comes meanwhile does not spare the rest."""
        try:
            with anyio.CancelScope(shield=being_cancelled()):
                await self._close_all()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._close_all()
            raise

    async def _close_all(self) -> None:
        """Close what the run left open: all is closed by now, unless it ended before its end."""
        await self._crew.end()
        try:
            await self.scope.live.close(error=self.cause)
        except KitchenError:
            _logger.exception("run %s: a resource could not be closed", self.scope.run_id)

    @property
    def cause(self) -> BaseException | None:
        """The exception that made the run fail, if it was raised in this process."""
        known = (error for failure, error in self.performer.raised if failure == self._failure)
        return next(known, None)

    async def _interrupt(self, signal: str) -> None:
        state = self.scope.journal.state
        for command in self._crew.busy:
            if isinstance(command, C.PullItem | C.Produce):
                self._cancel(command)
        while not self._crew.idle and state.status == ACTIVE:
            self.step_all(await self._crew.outcomes())
        if state.status != ACTIVE:
            return
        try:
            if state.dirty and not state.core.control.halted:
                manifests = await self.performer.save()
                self.step(C.CheckpointWritten(None, manifests))
        finally:  # without the checkpoint the run is rewound when it is resumed
            self.step(C.Interrupt(signal))

    async def _flush_metrics(self) -> None:
        """Have the metrics of long stages in the log within a second; have a stop noticed."""
        while True:
            await anyio.sleep(FLUSH_SECONDS)
            for attempt in list(self.performer.calls.running.values()):
                journal = self.scope.journal
                running = C.RunStage(attempt.address, attempt.number)
                wanted = is_outstanding(journal.program, journal.state, running)
                metrics = attempt.take_metrics() if wanted else ()
                if not metrics:
                    continue
                try:
                    self.step(C.MetricsFlushed(attempt.address, attempt.number, metrics))
                except (
                    StoreError
                ):  # not yet, then; what cannot be written will be told at the commit
                    attempt.metrics.extendleft(reversed(metrics))
                else:
                    attempt.flushed.extend(metrics)
            if self.stop_signal is not None:
                self._crew.wake()

    def _applied(self, facts: Sequence[Fact]) -> None:
        """Drop the items of loops that have ended; keep what productions will see."""
        feeding = self.scope.journal.state.core.control.feeds
        for fact in facts:
            kind = type(fact.event)
            if kind in _ENDING or (kind is E.ConditionEvaluated and feeding):
                self._ending = True
                if isinstance(fact.event, E.RunFailed):
                    self._failure = fact.event.failure
            elif kind is E.LoopExited or kind is E.BranchesJoined:
                self.scope.items.pop(Address(fact.path, fact.visit), None)
                if isinstance(self.scope.journal.program.nodes[fact.path], AsyncLoopNode):
                    self.performer.feeding.forget_notes(Address(fact.path, fact.visit))
            elif kind is E.RunRewound:
                self.scope.items.clear()
        state = self.scope.journal.state
        if state.core.control.feeds:
            self.performer.feeding.note(state.seq - len(facts))

    def _tell_facts(self, facts: Sequence[Fact]) -> None:
        if self._observers:
            journal = self.scope.journal
            self._tell(lambda who: who.on_facts(journal.run, facts, journal.state))

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

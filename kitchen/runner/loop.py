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
4. A rewind is taken at once: what is being performed is stopped and dropped, the resources are
   closed and opened anew as the cut has them, and the run goes on from there.
5. What is asked from outside (`stopping`) is honoured between two commands.
6. However the loop ends, resources are closed, in reverse order, by the task that opened them.
   What fails at that is logged: it must not hide how the run ended. If it ends as the process is to
   end (by what is no outcome and no cancellation), nothing is appended meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from kitchen.errors import IllegalOutcome, KitchenError, StoreError
from kitchen.log.reader import fact_of
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.commands import Command, Input
from kitchen.machine.decide import decide
from kitchen.machine.events import Address, Fact
from kitchen.machine.outstanding import is_halted, is_outstanding, within
from kitchen.machine.state import ACTIVE
from kitchen.ports.observer import RunObserver
from kitchen.runner import cancelling
from kitchen.runner.crew import Crew, bare
from kitchen.runner.failure import being_cancelled, ends_process
from kitchen.runner.leaving import Leaving
from kitchen.runner.limits import TimeLimits
from kitchen.runner.observing import Observers
from kitchen.runner.outcome import Performed
from kitchen.runner.outside import outside
from kitchen.runner.perform import Performer
from kitchen.runner.restoring import bring_back
from kitchen.runner.scope import Scope
from kitchen.runner.secret import Redacting
from kitchen.runner.stopping import Requests, preserve, stop
from kitchen.workflow.ir import AsyncLoopNode

_logger = logging.getLogger("kitchen.run")
_logger.addFilter(Redacting())

FLUSH_SECONDS = 0.5
YIELD_SECONDS = 0.02
_NO_BLOBS: Mapping[str, bytes] = {}

# Behind these, something that is being performed may be wanted no more.
_ENDING = frozenset({E.BranchFailed, E.BlockFailed, E.RunFailed, E.LoopStopped})
_LEAVING = frozenset({E.LoopExited, E.BranchesJoined, E.FailureHandled, E.RunRewound})
_LIMITING = frozenset(
    {E.TimeLimitStarted, E.TimeLimitEnded, E.FailureHandled, E.BranchFailed, E.RunRewound}
)


class Execution:
    """A run as this process executes it, from taking it up to its end."""

    def __init__(self, scope: Scope, observers: Sequence[RunObserver] = ()) -> None:
        self.scope = scope
        self.performer = Performer(scope)
        self.requests = Requests()
        self.rewound = False
        self._crew: Crew
        self._limits: TimeLimits
        self._hasty = anyio.CancelScope()
        self._ending = False
        self._dying = False  # the process is to end: nothing is appended any more
        self._limiting = True  # a run that is taken up may have limits
        self._failure: E.Failure | None = None
        self._observers = Observers(scope, observers)

    def step(self, given: Input, blobs: Mapping[str, bytes] = _NO_BLOBS) -> Sequence[Command]:
        """Decide, append, apply; the commands to perform."""
        journal = self.scope.journal
        decision = decide(journal.program, journal.state, given)
        if decision.facts:
            journal.write(decision.facts, blobs, decision.control)
            self._applied(decision.facts)
            self._observers.facts(decision.facts)
        return decision.commands

    def step_all(self, done: Sequence[tuple[Command, Performed]]) -> Sequence[Command]:
        """The same for outcomes that came together, in one append. Those that nobody wants any
        more are dropped. One that leads to a rewind comes last, and alone: it needs the past in the
        log, and what has been committed beside it is remembered."""
        journal = self.scope.journal
        commands: list[Command] = []
        facts: list[Fact] = []
        back: list[tuple[Command, Performed]] = []
        for command, (outcome, blobs) in done:
            if not is_outstanding(journal.program, journal.state, command):
                self.performer.drop(command, outcome)
                continue
            if len(done) == 1:
                return self.step(outcome, blobs)
            decision = decide(journal.program, journal.state, outcome)
            if any(type(fact.event) is E.RunRewound for fact in decision.facts):
                back.append((command, Performed(outcome, blobs)))
                continue
            journal.stage(decision.facts, blobs, decision.control)
            self._applied(decision.facts)
            facts += decision.facts
            commands += decision.commands
        if facts:
            journal.commit()
            self._observers.facts(facts)
        for command, outcome in back:
            if self.rewound:
                self.performer.drop(command, outcome.outcome)
            else:
                commands += self.step_all([(command, outcome)])
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
            self._limits = TimeLimits(self.scope.journal, self._crew.host, self._crew.wake)
            self.performer.calls.patience = self.requests.grace
            Leaving(self.scope, self.performer, self._crew).take_part()
            try:
                await self._perform_all(begin)
            except BaseException as error:
                self._dying = ends_process(error)
                await self._end()
                raise
            await self._end()

        await bare(all_of_it)

    async def _perform_all(self, begin: Callable[[], Awaitable[Iterable[Command]]]) -> None:
        with self._hasty:
            self._notice()  # it may have been cancelled when nobody executed it
            await self._perform_until(list(await begin()))
        if self.scope.journal.state.status != ACTIVE:
            return
        if not self.requests.ending:
            raise IllegalOutcome(
                f"run {self.scope.run_id!r} waits for nothing, and has not ended",
                hint="this is a fault of kitchen; please report it with the log",
            )
        await stop(self)

    async def _perform_until(self, pending: list[Command]) -> None:
        """Perform, until the run has ended or is to be stopped."""
        crew, requests = self._crew, self.requests
        yielded = time.monotonic()
        pending = await self._turned(pending)
        while self.scope.journal.state.status == ACTIVE and (pending or not crew.idle):
            if requests.ending:
                return
            if requests.checkpoint:
                pending = list(await preserve(self))
            elif len(pending) == 1 and crew.idle and self._alone(pending[0]):
                command = pending.pop()
                await anyio.lowlevel.checkpoint_if_cancelled()  # rather than in the middle of it
                outcome, blobs = await self.performer.perform(command)
                pending.extend(self.step(outcome, blobs))
                # Awaiting what is ready never yields, and a fast workflow would starve the flusher.
                if time.monotonic() - yielded > YIELD_SECONDS:
                    await anyio.lowlevel.checkpoint()
                    yielded = time.monotonic()
            else:
                for command in pending:
                    crew.begin(command)
                pending = list(await self.take_outcomes())
            if self._ending or self._limiting or self.rewound:
                pending = await self._turned(pending)

    async def take_outcomes(self) -> Sequence[Command]:
        """Wait for outcomes, and decide; the commands to perform."""
        # A limit may have passed while nobody waited here.
        done = [] if self._limits.passed else await self._crew.outcomes()
        pending = list(self.step_all(done))
        for address in self._limits.due():
            up = C.TimeUp(address)
            if not self.rewound and self._is_running(address):
                self.performer.calls.hurry(address)
                pending = [c for c in (*pending, *self.step(up)) if self._is_wanted(c)]
        if self._ending and not self.rewound:
            self.stop_commands(lambda command: not self._is_wanted(command))
        return pending

    async def _turned(self, pending: list[Command]) -> list[Command]:
        """Something else than the next command follows: time limits begin or end, or the run goes
        back to its cut."""
        self._ending = False
        if self.rewound:
            pending = list(await self._take_back())
        if self._limiting:
            self._limiting = False
            self._limits.look()
        return pending

    async def _take_back(self) -> Sequence[Command]:
        """The run was rewound: go on from there, with resources as they were."""
        self.rewound = False
        _logger.warning("run %s: %s", self.scope.run_id, self._why_rewound())
        self._limits.stop()
        await self._crew.end()
        self._limiting = True
        self.performer.feeding.forget_all()
        self.performer.staging.begun.clear()
        self.scope.items.clear()
        try:
            await self.scope.live.close()
        except KitchenError:
            _logger.exception("run %s: a resource could not be closed", self.scope.run_id)
        self.performer.cut_short.clear()
        self.performer.unclaimed.clear()
        return await bring_back(self)

    def _why_rewound(self) -> str:
        journal = self.scope.journal
        record = journal.store.latest(journal.run, ["RunRewound"], path="")
        assert record is not None
        event: Any = fact_of(record).event
        told = f"back to event {event.to}, as {event.reason}"
        if journal.state.incarnation == 1:
            told += (
                ". A wf.checkpoint right before what may fail makes this cheaper: only what comes "
                "after the last one is done again"
            )
        return told

    @property
    def idle(self) -> bool:
        """Whether nothing is being performed, and no outcome waits."""
        return self._crew.idle

    def _is_wanted(self, command: Command) -> bool:
        journal = self.scope.journal
        return is_outstanding(journal.program, journal.state, command)

    def _is_running(self, block: Address) -> bool:
        control = self.scope.journal.state.core.control
        return control.status == ACTIVE and not is_halted(control, block)

    def _alone(self, command: Command) -> bool:
        """Whether to perform a lone command here: not what may wait long for an item."""
        if self.scope.journal.state.core.control.limits:
            return False
        if isinstance(command, C.PullItem):
            return self.performer.feeding.ready(command.address)
        return not isinstance(command, C.Produce | C.AwaitRetry | C.LeaveBlock | C.RollBack)

    def stop_commands(self, which: Callable[[Command], bool] | None = None) -> None:
        """Stop those that are being performed and are such; None: all."""
        for command in self._crew.busy:
            if which is None or which(command):
                self._cancel(command)

    def _cancel(self, command: Command) -> None:
        """Stop a command; but half a production would be left in a resource that it has touched."""
        attempt = self.performer.feeding.producing.get(command.address)
        if attempt is None or attempt.revoke(self.scope.journal.state.stateful):
            self._crew.cancel(command)

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
        self.performer.calls.threads.end()

    @property
    def cause(self) -> BaseException | None:
        """The exception that made the run fail, if it was raised in this process."""
        return self.performer.exception(self._failure)

    async def _flush_metrics(self) -> None:
        """Have the metrics of long stages in the log within a second; have requests noticed."""
        while True:
            await outside().pause(FLUSH_SECONDS)
            if self._dying:
                return
            self._notice()
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

    def _notice(self) -> None:
        """What was asked for from outside, by a signal or by another process."""
        requests, journal = self.requests, self.scope.journal
        if requests.canceller is None:
            requests.canceller = cancelling.asked(journal.store, journal.run)
        if requests.late:
            self.performer.calls.patience = 0.0 if requests.canceller is None else requests.grace
            self._hasty.cancel()
            for command in self._crew.busy:  # half a production too: it will be taken back
                self._crew.cancel(command)
        if requests.ending or requests.checkpoint:
            self._crew.wake()

    def _applied(self, facts: Sequence[Fact]) -> None:
        """Note what follows from facts beside commands; keep what productions will see."""
        feeding = self.scope.journal.state.core.control.feeds
        for fact in facts:
            kind = type(fact.event)
            self._limiting = self._limiting or kind in _LIMITING
            if kind in _ENDING or (kind is E.ConditionEvaluated and feeding):
                self._ending = True
                if isinstance(fact.event, E.RunFailed):
                    self._failure = fact.event.failure
            elif kind in _LEAVING:
                self._left(fact)
        state = self.scope.journal.state
        if state.core.control.feeds:
            self.performer.feeding.note(state.seq - len(facts))

    def _left(self, fact: Fact) -> None:
        """Drop the items of loops that have ended."""
        kind, block = type(fact.event), Address(fact.path, fact.visit)
        if kind is E.RunRewound:
            self.rewound = True
            self.scope.items.clear()
        elif kind is E.FailureHandled:
            for loop in [loop for loop in self.scope.items if within(loop, block)]:
                del self.scope.items[loop]
        else:
            self.scope.items.pop(block, None)
            if isinstance(self.scope.journal.program.nodes[fact.path], AsyncLoopNode):
                self.performer.feeding.forget_notes(block)

"""Stages being performed: validation, the body within its time, waits, rollbacks.

Rules:

1. A stage is validated before its first attempt, and again until one has failed, within the time
   of that attempt: what is refused never ran, and is not tried again.
2. A body that takes longer than its `timeout` is stopped: what is async by cancellation, a worker
   process by killing it. A thread cannot be stopped. It is left behind: from then on it gets at
   nothing of the run, and whatever resource it had got is thrown away.
3. The wait before another attempt is reckoned from when it was scheduled, by the clock of the log,
   and is never longer than it was then, whatever the clock does.
4. A rollback hook sees the state as it is, and may change it. What it raises is told, and stops
   nobody. Neither it nor a stage whose effect must not happen twice may touch a stateful resource.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio

from kitchen.errors import KitchenError, StageRefused, StageTimeout, WorkerLost
from kitchen.machine import commands as C
from kitchen.machine.events import Address, Effect, Failure, spell
from kitchen.runner.attempt import Attempt
from kitchen.runner.calls import Calls
from kitchen.runner.failure import being_cancelled
from kitchen.runner.outcome import Performed
from kitchen.runner.scope import Scope
from kitchen.runner.surroundings import Surroundings
from kitchen.runner.workers.attempts import Answer, Workers
from kitchen.workflow.definition import retry_key
from kitchen.workflow.ir import StageNode
from kitchen.workflow.stage import Stage

_logger = logging.getLogger("kitchen.run")
_REFUSED = "the stage was not executed; mend what it objects to, then resume the run"


class Staging:
    """Performs what concerns stages. `begun`: those whose bodies were stopped before their end."""

    def __init__(
        self,
        scope: Scope,
        calls: Calls,
        surroundings: Surroundings,
        told: Callable[[BaseException], Failure],
        raised_there: Callable[[Failure, BaseException], None],
    ) -> None:
        self._scope = scope
        self._calls = calls
        self._surroundings = surroundings
        self._told = told
        self._raised_there = raised_there
        self._workers = Workers(scope, calls.threads)
        self.begun: set[Address] = set()

    async def run(self, command: C.RunStage) -> Performed:
        """Run an attempt."""
        address, number = command
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, StageNode)
        around = await self._surroundings.ensure(address)
        attempt = self._calls.attempt(address, number, writes=node.writes)
        attempt.touched |= around
        if node.effect == "once":
            attempt.only_peeks = 'has effect="once"'
        self._calls.running[address] = attempt
        try:
            answer = await self._within_time(node, attempt)
            effects = attempt.finish() if answer is None else answer
            self._calls.check_config()
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            raised = self._raised(attempt, error)
            self.begun.discard(address)
            return Performed(raised, {})
        finally:
            attempt.seal()
            del self._calls.running[address]
        self.begun.discard(address)
        touched, flushed = tuple(attempt.touched), tuple(attempt.flushed)
        looked = attempt.looked
        return Performed(
            C.StageSucceeded(address, number, effects, touched, flushed, looked), attempt.blobs
        )

    def _raised(self, attempt: Attempt, error: BaseException) -> C.StageRaised:
        address = attempt.address
        lost = tuple(sorted(attempt.touched | attempt.peeked)) if attempt.left_behind else ()
        if isinstance(error, _InWorker):
            failure, wanted = self._told_by_worker(error.answer)
            return C.StageRaised(address, attempt.number, failure, error.effects, (), again=wanted)
        return C.StageRaised(
            address,
            attempt.number,
            self._told(error),
            _discarded(attempt),
            tuple(sorted(attempt.touched)),
            again=self._wanted(address, error),
            stopped=address in self.begun and _was_stopped(attempt, error),
            lost=lost,
        )

    def _told_by_worker(self, answer: Answer) -> tuple[Failure, bool]:
        assert answer.failure is not None
        if answer.error is not None:
            self._raised_there(answer.failure, answer.error)
        return answer.failure, answer.wanted

    def _wanted(self, address: Address, error: BaseException) -> bool:
        """Whether the stage's `retries` are for such an error."""
        wants: Any = self._scope.workflow.bindings.get(retry_key(address.path))
        return wants is not None and bool(wants(error))

    async def _within_time(self, node: StageNode, attempt: Attempt) -> Any:
        """Call the body; None, or the effects where it ran in another process."""
        if node.timeout is None:
            return await self._body(node, attempt)
        with anyio.move_on_after(node.timeout) as limit:
            attempt.limit = limit
            return await self._body(node, attempt)
        if attempt.address not in self.begun:
            raise StageRefused(f"its validation took longer than its timeout of {node.timeout:g} s")
        raise self._too_long(node, attempt)

    def _too_long(self, node: StageNode, attempt: Attempt) -> StageTimeout:
        message = f"took longer than its timeout of {node.timeout:g} s"
        hint = "give it more time (timeout=), or find out what it waited for"
        if attempt.left_behind:
            message += "; its thread could not be stopped and was left behind"
            hint = (
                "an async body can be stopped, and so can one in a process of its own: process=True"
            )
        return _Stopped(message, hint=hint)

    async def _body(self, node: StageNode, attempt: Attempt) -> Any:
        await self._validate(node, attempt)
        self.begun.add(attempt.address)
        if node.process:
            return await self._in_worker(node, attempt)
        await self._calls.call(
            attempt.address.path, attempt, self._calls.options(node), thread=node.thread
        )
        return None

    async def _in_worker(self, node: StageNode, attempt: Attempt) -> tuple[Effect, ...]:
        """Have the body run in a process of its own; what it changed."""
        path, body = attempt.address.path, self._scope.binding(attempt.address.path)
        wants: Any = self._scope.workflow.bindings.get(retry_key(path))
        options = self._calls.options(node)
        assert not isinstance(body, Stage)
        answer = await self._workers.run(attempt, attempt.seen, node.writes, body, options, wants)
        effects = (*attempt.take_metrics(), *answer.effects)
        if answer.failure is not None:
            raise _InWorker(answer, effects)
        attempt.blobs.update(answer.blobs)
        return effects

    async def _validate(self, node: StageNode, attempt: Attempt) -> None:
        """Ask the stage whether it may run. Raises `StageRefused`."""
        binding = self._scope.binding(attempt.address.path)
        if not isinstance(binding, Stage) or attempt.address in self._scope.journal.state.tries:
            return
        if getattr(binding.validate, "__func__", None) is Stage.validate:  # it has none of its own
            return
        asked = self._calls.attempt(attempt.address, attempt.number, "validation", kept=False)
        try:
            said = await self._calls.call(
                attempt.address.path, asked, self._calls.options(node), hook="validate"
            )
            self._calls.check_untouched(asked)
        except (Exception, SystemExit) as error:
            told = error.message if isinstance(error, KitchenError) else str(error)
            raise StageRefused(
                f"its validation raised {type(error).__name__}: {told}", hint=_REFUSED
            ) from error
        finally:
            asked.seal()
            attempt.touched |= asked.touched
            attempt.peeked |= asked.peeked
            attempt.left_behind = asked.left_behind
        if said is not None and said is not True:
            raise StageRefused(
                said if isinstance(said, str) and said else f"validate returned {said!r}",
                hint=_REFUSED,
            )

    # --- waits and rollbacks ---

    async def await_retry(self, command: C.AwaitRetry) -> Performed:
        """Wait until the next attempt is due."""
        journal = self._scope.journal
        tried = journal.state.tries.get(command.address)
        if tried is not None and tried.since:
            passed = (_now(journal) - _moment(journal, tried.since)) / 1e9
            await anyio.sleep(min(max(tried.delay - passed, 0.0), tried.delay))
        return Performed(C.RetryDue(command.address, command.attempt), {})

    async def roll_back(self, command: C.RollBack) -> Performed:
        """Call a rollback hook."""
        address, block = command
        state = self._scope.journal.state
        failing = state.core.control.failing[block]
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, StageNode)
        attempt = self._calls.attempt(address, 0, "rollback")
        attempt.only_peeks = "is being rolled back"
        attempt.no_peeks = failing.ends == "run"  # what it would see may be half changed
        try:
            if address in state.core.control.active:  # its loops are still there
                await self._surroundings.ensure(address)
            options = self._calls.options(node)
            await self._calls.call(
                address.path, attempt, options, hook="rollback", more=(failing.failure,)
            )
            effects = attempt.finish()
            self._calls.check_config()
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            _logger.warning(
                "run %s: %s could not be rolled back: %s",
                self._scope.run_id,
                spell(*address),
                error,
            )
            return Performed(C.RolledBack(address, block, (), self._told(error)), {})
        finally:
            attempt.seal()
        return Performed(C.RolledBack(address, block, effects), attempt.blobs)


class _InWorker(Exception):
    """A body raised in its worker process."""

    def __init__(self, answer: Answer, effects: tuple[Effect, ...]) -> None:
        super().__init__()
        self.answer = answer
        self.effects = effects


class _Stopped(StageTimeout):
    """A body that was stopped, as it took too long; not one that raised such an error itself."""


_Stopped.__name__ = _Stopped.__qualname__ = "StageTimeout"
_Stopped.__module__ = StageTimeout.__module__


def _was_stopped(attempt: Attempt, error: BaseException) -> bool:
    """Whether a body was stopped; what it raises then says nothing of what it did outside."""
    late = attempt.limit is not None and attempt.limit.cancel_called
    return isinstance(error, _Stopped | WorkerLost) or late or being_cancelled()


def _now(journal: Any) -> int:
    """The time of the log: that of its store, which may stamp what is appended itself."""
    return getattr(journal.store, "time_ns", time.time_ns)()


def _moment(journal: Any, seq: int) -> int:
    """When an event was recorded, in nanoseconds since the epoch."""
    (record,) = journal.store.read(journal.run, after=seq - 1, until=seq)
    return record.at


def _discarded(attempt: Attempt) -> tuple[Any, ...]:
    try:
        return attempt.finish()
    except Exception:  # what made the stage fail may make this fail too, and is told already
        return ()

"""The crew: commands being performed side by side, and their outcomes as they come.

Rules:

1. Each command is performed in a task of its own; an outcome waits here until it is asked for, so
   that nothing is decided but by the loop.
2. Outcomes that are there together are given together: the loop writes them in one transaction.
3. A command that is wanted no more is cancelled, and its outcome dropped. (The loop lets a
   production that has touched a stateful resource come to its end.)
4. What is no outcome (the process is to end) is raised where outcomes are asked for.
5. Whoever leaves the loop ends the crew first: nobody works on when resources are closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import anyio
from anyio.abc import TaskGroup

from kitchen.machine.commands import Command
from kitchen.machine.events import Address
from kitchen.runner.failure import ends_process
from kitchen.runner.outcome import Performed

_Key: TypeAlias = tuple[type[Any], Address, Address | None]


def _key(command: Command) -> _Key:
    """Several commands may be under way at one address: a block is left where it failed, and a
    stage rolled back for one block while another around it fails."""
    return type(command), command.address, getattr(command, "block", None)


class Crew:
    """Performs commands in the tasks of a group."""

    def __init__(
        self, tasks: TaskGroup, perform: Callable[[Command], Awaitable[Performed]]
    ) -> None:
        self._tasks = tasks
        self._perform = perform
        self._running: dict[_Key, tuple[Command, anyio.CancelScope]] = {}
        self._done: deque[tuple[Command, Performed | BaseException]] = deque()
        self._hosts: set[anyio.CancelScope] = set()
        self._changed = anyio.Event()

    @property
    def idle(self) -> bool:
        """Whether nothing is being performed, and no outcome waits."""
        return not self._running and not self._done

    @property
    def busy(self) -> list[Command]:
        """The commands that are being performed."""
        return [command for command, _ in self._running.values()]

    def begin(self, command: Command) -> None:
        """Have a command performed."""
        scope = anyio.CancelScope()
        self._running[_key(command)] = command, scope
        self._tasks.start_soon(self._task, command, scope)

    def host(self, work: Callable[[], Awaitable[None]]) -> anyio.CancelScope:
        """Have something go on beside the commands, such as the pulling of a stream; what stops it."""
        scope = anyio.CancelScope()
        self._hosts.add(scope)
        self._tasks.start_soon(self._hosted, work, scope)
        return scope

    async def end(self) -> None:
        """Cancel everything that still goes on, and wait until it is gone."""
        for _, scope in self._running.values():
            scope.cancel()
        for scope in self._hosts:
            scope.cancel()
        while self._running or self._hosts:
            await self._changed.wait()
        self._done.clear()

    def cancel(self, command: Command) -> None:
        """Stop performing it; it ends without an outcome."""
        self._running[_key(command)][1].cancel()

    def wake(self) -> None:
        """Have who waits look around."""
        self._changed.set()
        self._changed = anyio.Event()

    async def outcomes(self) -> list[tuple[Command, Performed]]:
        """The outcomes that are there, at least one unless somebody woke us.

        Raises what ended a task and is no outcome.
        """
        if not self._done and self._running:
            await self._changed.wait()
        given: list[tuple[Command, Performed]] = []
        while self._done:
            command, outcome = self._done.popleft()
            if isinstance(outcome, BaseException):
                raise outcome
            given.append((command, outcome))
        return given

    def discard(self, which: Callable[[Command], bool]) -> list[tuple[Command, Performed]]:
        """Take away the outcomes of these commands that nobody has asked for yet."""
        taken = [(c, o) for c, o in self._done if which(c) and not isinstance(o, BaseException)]
        kept = [(c, o) for c, o in self._done if not which(c) or isinstance(o, BaseException)]
        self._done = deque(kept)
        return taken

    async def gone(self, which: Callable[[Command], bool]) -> None:
        """Wait until none of these is being performed any more."""
        while any(which(command) for command in self.busy):
            await self._changed.wait()

    async def _task(self, command: Command, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                if not scope.cancel_called:  # nothing is begun that is not wanted
                    outcome = await self._perform(command)
                    self._done.append((command, outcome))
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._done.append((command, error))
        finally:
            if self._running.get(_key(command), (None, None))[1] is scope:
                del self._running[_key(command)]
            self.wake()

    async def _hosted(self, work: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await work()
        finally:
            self._hosts.discard(scope)
            self.wake()


async def bare(work: Callable[[TaskGroup], Awaitable[None]]) -> None:
    """Do the work with a task group for what goes on beside it, and end that with it.

    Raises what the work raises, or what a task did: bare, not in a group. What is to end the process
    is bare also where the user's own groups have held it.
    """
    failed: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            try:
                await work(tasks)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # raised again below, outside the group
                failed = error
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failed = failed or group.exceptions[0]
    if failed is not None:
        end = _end_of_process(failed)
        if end is None or end is failed:
            raise failed
        raise end from failed  # what else went wrong is told with it


def _end_of_process(failed: BaseException) -> BaseException | None:
    """What is to end the process, in groups of the user's."""
    if not isinstance(failed, BaseExceptionGroup):
        return failed if ends_process(failed) else None
    group = cast("BaseExceptionGroup[BaseException]", failed)
    return next(filter(None, map(_end_of_process, group.exceptions)), None)

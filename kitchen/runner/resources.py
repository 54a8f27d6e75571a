"""Live resources: opened by a factory, reached through `ctx.resources`, closed in reverse.

Rules:

1. A live object never outlives the process and never enters the log. The log knows its name,
   where it was opened, whether it is stateful, and the manifests of its checkpoints.
2. Any access by user code touches, `peek` does not. What was touched is known to the attempt.
   A resource whose factory used another (a peek counts here, as it may be kept) is tied to it: to
   touch either is to touch both, and so on, since what the one holds may be the other's.
3. A factory gives an object, an awaitable of one, or a context manager (plain or async), which
   is entered and, when the resource is closed, left: a plain one in a worker thread of its own,
   the same for both, an async one in a task of its own, since cancel scopes must be left in the
   reverse order within a task.
4. Anything with `state_dict` and `load_state_dict` is stateful unless it was declared not to be.
   One that has neither and was not declared `stateful=False` cannot be resumed: the first touch
   warns.
5. Each branch, and each item of a `parallel(over=…)`, has resources of its own: `model[2]` or
   `model[left]`, read as `model` there.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from kitchen.errors import NotResumableWarning, ResourceError, UnknownResource
from kitchen.machine.events import spell
from kitchen.runner.attempt import Attempt
from kitchen.runner.declared import suggest
from kitchen.runner.threads import Threads
from kitchen.workflow.stage import Resource

T = TypeVar("T")

_logger = logging.getLogger("kitchen.run")

ENTER_SECONDS = 5.0  # how long a context manager that is wanted no more may take to be entered


class Live:
    """One open resource. `stack` closes it; `declared` is what `wf.resource` said of `stateful`.

    `reach`: the names of all that is touched with it, its own included; all of them share it.
    `worked`: whether anything but factories, which run again on resume, has touched it since it
    was saved. `managed`: whether a context manager made it; `hosted`: an async one, in its task.
    """

    def __init__(
        self, name: str, value: Any, declared: bool | None, stack: contextlib.AsyncExitStack
    ) -> None:
        self.name = name
        self.value = value
        self.stack = stack
        self.reach = {name}
        self.worked = False
        self.managed = False
        self.hosted: _Hosted | None = None
        self.stateful = declared is not False and is_stateful(value)
        self.warned = declared is not None or self.stateful


def is_stateful(value: Any) -> bool:
    """Whether it follows PyTorch's `Stateful` protocol: `state_dict()` and `load_state_dict(d)`."""
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


class LiveResources:
    """The open resources of one execution, in the order in which they were opened.

    `hosts`: where the tasks of async context managers live. `lost`: those that a thread which was
    left behind may still use; they are thrown away, not closed. `watch`: told the names of those
    that are about to be peeked at.
    """

    def __init__(self) -> None:
        self._open: dict[str, Live] = {}
        self.lost: set[str] = set()
        self.watch: Callable[[Iterable[str]], None] | None = None
        self.hosts: TaskGroup

    async def open(self, name: str, made: Any, declared: bool | None) -> Live:
        """Take what a factory returned as the resource `name`.

        Raises `ResourceError` where it is declared stateful and is not.
        """
        stack = contextlib.AsyncExitStack()
        hosted = None
        if inspect.isawaitable(made):
            # The awaited object itself is the resource, whatever else it can do.
            value: Any = await made
        else:
            try:
                if hasattr(made, "__aenter__") and hasattr(made, "__aexit__"):
                    hosted = _Hosted(made, self.hosts)
                    value = await stack.enter_async_context(hosted)
                else:
                    value = await _entered(made, stack)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await stack.aclose()
                raise
        live = Live(name, value, declared, stack)
        live.managed, live.hosted = _is_manager(made), hosted
        self._open[name] = live
        self.lost.discard(name)
        if declared is True and not live.stateful:
            await self.close([name])
            raise ResourceError(
                f"resource {name!r} is declared stateful, but a "
                f"{type(live.value).__name__} has no state_dict() and load_state_dict()",
                hint="give it both, or declare stateful=False",
            )
        return live

    def tie(self, name: str, used: Iterable[str]) -> None:
        """Tie a resource to those that its factory looked at, and to what these are tied to.

        One that neither has a state nor is tied to any that has (a tokenizer, a client) ties
        nothing: else all that use it would be one.
        """
        reaches = (self.get(other).reach for other in used)
        tied = {name}.union(*(reach for reach in reaches if self.stateful(reach)))
        for other in tied:
            self._open[other].reach = tied

    def get(self, name: str, *, seen: bool = True) -> Live:
        """An open resource; not one that is not `seen`. Raises `UnknownResource`."""
        if seen and name in self._open:
            return self._open[name]
        raise UnknownResource(
            f"no resource {name!r} is open here",
            hint=f"declare it with wf.resource before it is used; {suggest(name, self._open)}",
        ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._open

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._open))

    def stateful(self, names: Iterable[str]) -> bool:
        """Whether any of these is stateful."""
        return any(self._open[name].stateful for name in names)

    def holding(self, value: object) -> list[str]:
        """The names of the resources that are this object."""
        return [name for name, live in self._open.items() if live.value is value]

    def mark_worked(self, names: Iterable[str], *, worked: bool = True) -> None:
        """Note that these were touched by more than factories; or, not any more."""
        for name in names:
            if name in self._open:
                self._open[name].worked = worked

    def managed(self, names: Iterable[str]) -> list[str]:
        """Those of these that are context managers, so that user code runs when they are closed."""
        return [name for name in names if name in self._open and self._open[name].managed]

    def reach(self, names: Iterable[str]) -> tuple[str, ...]:
        """All that is touched when these are: what their factories used, and so on."""
        reached = [self._open[name].reach for name in names if name in self._open]
        return tuple(sorted(set[str]().union(*reached)))

    async def close(
        self, names: Iterable[str] | None = None, *, error: BaseException | None = None
    ) -> None:
        """Close these (None: all), the last opened first. Every one is closed, whatever fails.

        `error`: what ended the run, if it failed; context managers are told, and cannot undo it.
        Raises the `ResourceError` of the first that failed.
        """
        wanted = set(self._open if names is None else names)
        failed: ResourceError | None = None
        for name in [name for name in reversed(self._open) if name in wanted]:
            live = self._open.pop(name)
            live.reach.discard(name)
            if name in self.lost:
                self.lost.discard(name)
                if live.hosted is not None:
                    live.hosted.give_up()
                continue
            try:
                traceback = error.__traceback__ if error is not None else None
                await live.stack.__aexit__(type(error) if error else None, error, traceback)
            except Exception as raised:
                if not _is_or_holds(raised, error):
                    failed = failed or _chained(f"resource {name!r} could not be closed", raised)
        if failed is not None:
            raise failed


def _is_manager(made: Any) -> bool:
    return hasattr(made, "__exit__") or hasattr(made, "__aexit__")


async def _entered(made: Any, stack: contextlib.AsyncExitStack) -> Any:
    """What is to be the resource, entered if it is a plain context manager."""
    entered: Any = None
    if hasattr(made, "__enter__") and hasattr(made, "__exit__"):
        thread = Threads()  # one thread: what it has done it does again, as it is idle by then
        stack.callback(thread.end)

        async def leave(*told: Any) -> bool:
            return await thread.run(lambda: made.__exit__(*told))

        (entered,) = await thread.run(
            lambda: (made.__enter__(),),
            patience=ENTER_SECONDS,
            abandoned=partial(_left_behind, made),
        )
        stack.push_async_exit(leave)
    return made if entered is None else entered


def _left_behind(made: Any) -> None:
    _logger.warning(
        "entering %s takes too long: its thread is left behind, and it will not be closed",
        type(made).__name__,
    )


class _Hosted:
    """An async context manager that is entered and left by a task of its own.

    Once entered, it is left when it is told to, not when the run is cancelled: others may still
    be at work with it, and its leaving may want to wait for something. Who waits for that may be
    cancelled, and then it is too.
    """

    def __init__(self, made: Any, hosts: TaskGroup) -> None:
        self._made = made
        self._hosts = hosts
        self._scope = anyio.CancelScope()
        self._entered = anyio.Event()
        self._leave = anyio.Event()
        self._gone = anyio.Event()
        self._value: list[Any] = []
        self._told: BaseException | None = None
        self._raised: BaseException | None = None

    async def _host(self) -> None:
        try:
            with self._scope:
                async with self._made as made:
                    self._scope.shield = True
                    self._value.append(made)
                    self._entered.set()
                    await self._leave.wait()
                    _raise(self._told)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._raised = error
        finally:
            self._gone.set()
            self._entered.set()

    async def __aenter__(self) -> Any:
        self._hosts.start_soon(self._host)
        try:
            await self._entered.wait()
        except anyio.get_cancelled_exc_class():
            self._leave.set()
            if not self._value:
                self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._gone.wait()
            raise
        if not self._value:
            raise self._raised or ResourceError("the context manager was cancelled while entered")
        return self._made if self._value[0] is None else self._value[0]

    def give_up(self) -> None:
        """Have its task end: a thread that was left behind may be at work with it for ever."""
        self._scope.shield = False
        self._scope.cancel()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._told = error
        self._leave.set()
        try:
            await self._gone.wait()
        except anyio.get_cancelled_exc_class():
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._gone.wait()
            raise
        if self._raised is not None and self._raised is not error:
            raise self._raised


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _is_or_holds(raised: BaseException, error: BaseException | None) -> bool:
    """Whether this is the error that a context manager was told, or a group around it."""
    if isinstance(raised, BaseExceptionGroup):
        group: Any = raised  # pyright: ignore[reportUnknownVariableType]
        return any(_is_or_holds(inner, error) for inner in group.exceptions)
    return raised is error


def _chained(message: str, error: BaseException) -> ResourceError:
    made = ResourceError(f"{message}: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


class Resources:
    """`ctx.resources`: the open resources, as one attempt gets at them."""

    __slots__ = ("_attempt", "_live", "_names")

    def __init__(
        self, live: LiveResources, attempt: Attempt, names: Callable[[str], Iterable[str]]
    ) -> None:
        """`names`: what a resource that can be seen from here may be called, the nearest first."""
        self._live = live
        self._attempt = attempt
        self._names = names

    def __getitem__(self, key: Resource[T] | str) -> T:
        """The live object. This touches it: what it held before is from here on not certain.

        Raises `UnknownResource`.
        """
        live = self._get(key)
        if self._attempt.only_peeks and self._live.stateful(live.reach):
            raise ResourceError(
                f"{spell(*self._attempt.address)} {self._attempt.only_peeks} and may only look at "
                f"{live.name!r}, which is or holds something stateful",
                hint="ctx.resources.peek(…) looks; let another stage change it",
            )
        self._attempt.touch(live.reach)
        if self._attempt.kind != "factory":
            self._live.mark_worked(live.reach)
        if not live.warned:
            live.warned = True
            warnings.warn(
                f"resource {live.name!r} ({type(live.value).__name__}) has no state_dict() and "
                "load_state_dict(): what it holds will be lost at a crash. Give it both, or "
                "declare it with stateful=False if it holds nothing that matters.",
                NotResumableWarning,
                stacklevel=2,
            )
        return live.value

    def peek(self, key: Resource[T] | str) -> T:
        """The live object, for looking only: this does not touch it, so do not change it. Beside
        others, nobody else may touch it, nor what it is tied to."""
        live = self._get(key)
        if self._attempt.no_peeks and self._live.stateful(live.reach):
            raise ResourceError(
                f"{spell(*self._attempt.address)} is being rolled back as the run ends, and "
                f"{live.name!r}, or what it holds, may be half changed",
                hint="put what a rollback needs into ctx.state",
            )
        self._attempt.touch(live.reach, peeks=True)
        if self._live.watch is not None:
            self._live.watch(live.reach)
        return live.value

    def __contains__(self, key: object) -> bool:
        name = key.name if isinstance(key, Resource) else key
        return isinstance(name, str) and any(near in self._live for near in self._names(name))

    def _get(self, key: Any) -> Live:
        self._attempt.check_live()
        name = key.name if isinstance(key, Resource) else key
        nearest = next((near for near in self._names(name) if near in self._live), None)
        live = self._live.get(name if nearest is None else nearest, seen=nearest is not None)
        if self._attempt.kind == "stream" and self._live.stateful(live.reach):
            raise ResourceError(
                f"the `over` of the stream {spell(*self._attempt.address)} reaches for the resource "
                f"{name!r}, which is or holds something stateful: a stream reads ahead, at a pace "
                "that neither stages nor checkpoints know",
                hint="make a loader in over= itself, which resumes it by its state_dict; put what "
                "else the source needs into ctx.state, before the loop",
            )
        return live

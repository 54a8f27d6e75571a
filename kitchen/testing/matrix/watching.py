"""Watching a run: what it appends, what its resources hold, and what its loops were given.

Rules:

1. The workflow that is run is the user's with some of its callables wrapped: same tree, same
   fingerprint, same locator. The wrappers give what they were given.
2. What a resource holds is noted where its block ends, right before it is closed: of one that is a
   context manager, before it is left. It counts once `ResourcesClosed` is in the log; where the run
   fails or a failure is handled, there too, unless chance has a part in what it holds: what was
   stopped beside the failure, or by a time limit, may have come anywhere.
3. `probing` notes more, for whoever looks for a cause: what every open resource holds at each append
   and when it has come back in a resume, and the items of loops each time they are asked for.
4. A note is a name and plain data, so that one process can leave it for another.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from typing import Any, TypeAlias, cast

from kitchen.machine.events import Visit, from_json
from kitchen.ports.event_store import EventStore, NewEvent
from kitchen.runner.resources import is_stateful
from kitchen.testing.fakes.faults import SimulatedCrash
from kitchen.testing.matrix.contents import contents
from kitchen.workflow.definition import Workflow
from kitchen.workflow.ir import (
    AsyncLoopNode,
    LoopNode,
    ParallelNode,
    ParallelOverNode,
    ResourceNode,
    StreamLoopNode,
    walk,
)

Note: TypeAlias = tuple[str, Any]
Tell: TypeAlias = Callable[[str, Any], None]
Key: TypeAlias = tuple[str, Visit]

_FIRST_ITEMS = 50
_PLAIN = frozenset((
    "StatePut", "StateDeleted", "StateAppended", "StateIncremented", "StateMerged",
    "MetricRecorded", "ResourceTouched", "StageStarted",
))  # fmt: skip


class Watch:
    """Watches one life of a run, and tells what it sees."""

    def __init__(self, tell: Tell, *, probing: bool = False) -> None:
        self.tell = tell
        self._probing = probing
        self._objects: dict[Key, Any] = {}
        self._left: dict[Key, dict[str, str]] = {}
        self._keys: dict[str, Key] = {}
        self._asks: dict[Key, int] = {}
        self._appends = 0
        self._beside: tuple[str, ...] = ()

    def wrapped(self, workflow: Workflow[Any, Any]) -> Workflow[Any, Any]:
        """The workflow, watched."""
        bindings = dict(workflow.bindings)
        for path, node in walk(workflow.ir):
            if isinstance(node, ParallelNode | ParallelOverNode | AsyncLoopNode):
                self._beside += (f"{path}/",)
            if isinstance(node, ResourceNode):
                bindings[path] = _Wrapped(bindings[path], self._made, self._awaited)
            elif self._probing and isinstance(node, LoopNode | StreamLoopNode | ParallelOverNode):
                bindings[path] = _Wrapped(bindings[path], self._asked, self._asked)
        return dataclasses.replace(workflow, bindings=bindings)

    def append(self, head: int, events: Sequence[NewEvent]) -> None:
        """Somebody is about to append these behind a seq."""
        self._appends += 1
        self.tell("append", (self._appends, head, _summary(events)))
        for event in events:
            if event.type in ("ResourceOpened", "ResourceRestored", "ResourcesClosed"):
                self._resource(event)
            elif event.type in ("RunFailed", "FailureHandled"):
                self._failed(event)
        if self._probing:
            self.tell("held", (head + len(events), self._held()))

    def _resource(self, event: NewEvent) -> None:
        fact: Any = from_json(event.type, event.payload)
        key = (event.path, event.visit)
        if event.type == "ResourcesClosed":
            for name in fact.names:
                self._closed(name)
            return
        self._keys[fact.name] = key
        if event.type == "ResourceRestored" and self._probing and key in self._objects:
            self.tell("returned", (fact.name, self._look(key)))

    def _failed(self, event: NewEvent) -> None:
        """Note what the failure leaves behind: the resources of the blocks around it."""
        fact: Any = from_json(event.type, event.payload)
        if fact.failure is not None and fact.failure.type == "StageTimeout":
            return
        if event.type == "FailureHandled":
            names = () if self._beside else fact.closed
        else:
            names = [name for name, key in self._keys.items() if self._holds(key, event)]
        for name in list(names):
            self._closed(name)

    def _holds(self, key: Key, event: NewEvent) -> bool:
        """Whether a resource is of a block around a place, and all in it one behind another."""
        path, visit = key
        block = path.rpartition("/")[0]
        inside = not block or f"{event.path}/".startswith(f"{block}/")
        apart = all(path.startswith(each) for each in self._beside if event.path.startswith(each))
        return inside and apart and event.visit[: len(visit)] == visit

    def _closed(self, name: str) -> None:
        key = self._keys.pop(name, None)
        if key is None or key not in self._objects:
            return
        found = self._left.pop(key) if key in self._left else self._look(key)
        del self._objects[key]
        self.tell("closed", (key, name, found))

    def _held(self) -> dict[str, dict[str, str]]:
        return {n: self._look(key) for n, key in self._keys.items() if key in self._objects}

    def _look(self, key: Key) -> dict[str, str]:
        return contents(self._objects[key], {id(each) for each in self._objects.values()})

    # --- resources, as their factories give them ---

    def _made(self, ctx: Any, made: Any) -> Any:
        key = (ctx.path, ctx.visit)
        if hasattr(made, "__aenter__") and hasattr(made, "__aexit__"):
            return _AsyncManaged(made, self, key)
        if hasattr(made, "__enter__") and hasattr(made, "__exit__"):
            return _Managed(made, self, key)
        self.entered(key, made)
        return made

    def entered(self, key: Key, value: Any) -> None:
        """There is an object at this key."""
        self._left.pop(key, None)
        self._objects[key] = value

    def leaving(self, key: Key) -> None:
        """Its context manager is about to be left."""
        if key in self._objects:
            self._left[key] = self._look(key)

    def _awaited(self, ctx: Any, value: Any) -> Any:
        """What is awaited is the resource itself, whatever else it can do."""
        self.entered((ctx.path, ctx.visit), value)
        return value

    # --- loops, as their `over` gives items ---

    def _asked(self, ctx: Any, given: Any) -> Any:
        key = (ctx.path, ctx.visit)
        call = self._asks[key] = self._asks.get(key, 0) + 1

        def see(index: int, item: Any) -> None:
            if index < _FIRST_ITEMS:
                self.tell("item", (key, call, index, contents(item)))

        kind = cast("type[Any]", type(given))
        if issubclass(kind, list | tuple):
            for index, item in enumerate(given[:_FIRST_ITEMS]):
                see(index, item)
        elif issubclass(kind, Iterator) and not is_stateful(given):
            return _drawn(given, see)
        elif issubclass(kind, AsyncGenerator):
            return _drawn_async(given, see)
        return given


def _drawn(given: Any, see: Callable[[int, Any], None]) -> Generator[Any]:
    try:
        for index, item in enumerate(given):
            see(index, item)
            yield item
    finally:
        if inspect.isgenerator(given):
            given.close()


async def _drawn_async(given: Any, see: Callable[[int, Any], None]) -> AsyncGenerator[Any]:
    index = 0
    try:
        async for item in given:
            see(index, item)
            index += 1
            yield item
    finally:
        await given.aclose()


class _Wrapped:
    """A callable of the user's whose result somebody sees, at once or once it was awaited.

    `func` is the callable itself, by which the runner tells whether it is async.
    """

    def __init__(
        self,
        func: Any,
        see: Callable[[Any, Any], Any],
        awaited: Callable[[Any, Any], Any],
    ) -> None:
        self.func = func
        self._see = see
        self._awaited = awaited

    def __call__(self, ctx: Any) -> Any:
        made = self.func(ctx)
        return self._later(ctx, made) if inspect.isawaitable(made) else self._see(ctx, made)

    async def _later(self, ctx: Any, made: Awaitable[Any]) -> Any:
        return self._awaited(ctx, await made)


class _Managed:
    """A context manager whose object is seen when it is entered and when it is left."""

    def __init__(self, made: Any, watch: Watch, key: Key) -> None:
        self._made = made
        self._watch = watch
        self._key = key

    def __enter__(self) -> Any:
        entered = self._made.__enter__()
        value = self._made if entered is None else entered
        self._watch.entered(self._key, value)
        return value

    def __exit__(self, *told: Any) -> Any:
        self._watch.leaving(self._key)
        return self._made.__exit__(*told)


class _AsyncManaged(_Managed):
    """The same for an async one."""

    __enter__ = __exit__ = None  # type: ignore[assignment]

    async def __aenter__(self) -> Any:
        entered = await self._made.__aenter__()
        value = self._made if entered is None else entered
        self._watch.entered(self._key, value)
        return value

    async def __aexit__(self, *told: Any) -> Any:
        self._watch.leaving(self._key)
        return await self._made.__aexit__(*told)


class Endless(BaseException):
    """A run makes far more appends than it should."""


class WatchedStore:
    """An event store whose appends a `Watch` is told of. `dying` is called where it crashes; behind
    `most` appends (0: any number) it raises `Endless`."""

    def __init__(
        self, store: EventStore, watch: Watch, dying: Callable[[], object], most: int = 0
    ) -> None:
        self._store = store
        self._watch = watch
        self._dying = dying
        self._most = most
        self._count = 0

    def create_run(self, run: str, name: str, events: Sequence[NewEvent], *more: Any) -> int:
        """As `EventStore.create_run`."""
        return self._write(0, events, lambda: self._store.create_run(run, name, events, *more))

    def append(self, run: str, expected: int, events: Sequence[NewEvent], *more: Any) -> int:
        """As `EventStore.append`."""
        return self._write(
            expected, events, lambda: self._store.append(run, expected, events, *more)
        )

    def _write(self, head: int, events: Sequence[NewEvent], write: Callable[[], int]) -> int:
        self._count += 1
        if self._most and self._count > self._most:
            raise Endless
        try:
            self._watch.append(head, events)
            return write()
        except SimulatedCrash:
            self._dying()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _summary(events: Sequence[NewEvent]) -> list[tuple[str, str, Visit]]:
    """What an append tells: the events by which a run goes on, or all where there are none."""
    made = [(event.type, event.path, event.visit) for event in events]
    return [each for each in made if each[0] not in _PLAIN] or made

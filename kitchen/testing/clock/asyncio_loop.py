"""asyncio's event loop on a virtual clock: before it waits, it asks the clock how long."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from kitchen.runner.outside import HERE
from kitchen.testing.clock.loop_time import LoopTime
from kitchen.testing.clock.sleeping import Awaited

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` is the clock's."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        super().__init__(_Selector(clock))
        self._outside = LoopTime(clock, self.call_soon_threadsafe)

    def time(self) -> float:
        """The clock's time."""
        return self._clock.now()

    def run_forever(self) -> None:
        """Run, with the clock's time in this thread."""
        self._outside.begin()
        try:
            super().run_forever()
        finally:
            self._outside.end()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """As asyncio does it; what is done there is counted, and takes real time."""
        awaited = Awaited(self._outside)
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            func, args = partial(_as_awaited, awaited, func, args), ()
        future = super().run_in_executor(executor, func, *args)
        self._outside.more()

        def done(_: object) -> None:
            awaited.abandoned = True
            self._outside.less()

        future.add_done_callback(done)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As asyncio does it: it waits for threads, and has a time limit for that."""
        with self._outside:
            await super().shutdown_default_executor(*args, **kwargs)


class _Selector(selectors.BaseSelector):
    """A selector that sees what is there, and only then waits, for as long as the clock says."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._inner = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, after `timeout` seconds at most."""
        events = self._inner.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self._inner.select(self._clock.wait(timeout))

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As a selector does."""
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As a selector does."""
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As a selector does."""
        return self._inner.modify(fileobj, events, data)

    def close(self) -> None:
        """As a selector does."""
        self._inner.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """As a selector does."""
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """As a selector does."""
        return self._inner.get_map()


def _as_awaited(awaited: Awaited, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Do something in a thread, which may sleep on the clock meanwhile."""
    HERE.work = awaited
    try:
        return func(*args)
    finally:
        HERE.work = None

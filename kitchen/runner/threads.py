"""Worker threads that nobody has to wait for.

Rules:

1. The threads are daemons: neither one that hangs nor one that was abandoned keeps the process from
   exiting. (The event loop's own worker threads are joined when the interpreter exits.)
2. A thread that has done its work is idle, and the one that became idle last is taken first: what
   it holds (thread-locals, OpenMP pools, CUDA contexts) is warm. There is no limit to their number.
3. Work that is cancelled is waited for as long as the caller has patience, then its thread is
   abandoned: it does nothing else any more, and what it gives is dropped. If the work ends in time,
   its result is returned (or raised), and the cancellation goes on at the next checkpoint.
4. Work runs in a copy of the caller's context variables, in which no event loop is running. To get
   back into the event loop, `anyio.from_thread.run` needs a `token=` there.
5. Who waits for it is counted as waiting for something outside its event loop, until it has taken
   the result, or has abandoned the thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from kitchen.runner.outside import HERE, outside

T = TypeVar("T")

Wake: TypeAlias = Callable[[Callable[[], None]], Any]


class Threads:
    """A pool of daemon threads. It may serve several event loops, one after another or at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._ended = False

    async def run(
        self,
        work: Callable[[], T],
        *,
        patience: float | Callable[[], float] | None = None,
        abandoned: Callable[[], None] | None = None,
    ) -> T:
        """Do the work in a thread; its result, or what it raises.

        If this is cancelled, the work is waited for `patience` seconds more (None: until it ends;
        a function is asked then). If it has not ended by then, `abandoned` is called, and the
        cancellation goes on. A `StopIteration` comes out as the `RuntimeError` that Python makes of
        it.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        done = anyio.Event()
        job = _Job(work, done.set, waker())
        with job.outside:
            self._start(job)
            try:
                await done.wait()
            except BaseException as error:
                again = anyio.current_effective_deadline() == -math.inf
                try:
                    if not isinstance(error, GeneratorExit):  # who is thrown away cannot wait
                        limit = patience() if callable(patience) else patience
                        limit = math.inf if limit is None else limit
                        with anyio.move_on_after(limit, shield=True):
                            await done.wait()
                finally:
                    if self._abandon(job) and abandoned is not None:
                        abandoned()
                if job.abandoned or not again:  # asyncio's own cancellations are said only once
                    raise
        return job.outcome()

    def end(self) -> None:
        """End the idle threads, at once, and the others once their work is done."""
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.jobs.put(None)

    def _start(self, job: _Job[Any]) -> None:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self)
            threading.Thread(target=worker.serve, daemon=True, name="kitchen").start()
        worker.jobs.put(job)

    def _abandon(self, job: _Job[Any]) -> bool:
        """Have nothing more to do with a job; False where it has ended."""
        with self._lock:
            job.abandoned = not job.ended
            return job.abandoned

    def release(self, worker: _Worker, job: _Job[Any]) -> bool:
        """Note that a job has ended; whether its thread stays, as an idle one."""
        with self._lock:
            job.ended = True
            stays = not (job.abandoned or self._ended)
            if stays:  # before the caller is told, so that what it does next finds this thread
                self._idle.append(worker)
            return stays


class _Job(Generic[T]):
    """Some work, and what came of it. `ended` and `abandoned` are the pool's, under its lock.

    `outside`: where the event loop that waits for it counts that.
    """

    __slots__ = (
        "_context", "_done", "_error", "_result", "_wake", "_work", "abandoned", "ended", "outside",
    )  # fmt: skip

    def __init__(self, work: Callable[[], T], done: Callable[[], None], wake: Wake) -> None:
        self.ended = False
        self.abandoned = False
        self.outside = outside()
        self._work: Callable[[], T] | None = work
        self._done = done
        self._wake = wake
        self._context = contextvars.copy_context()
        # Where it is there, it is loaded: anyio and trio ask it which event loop is running.
        library: Any = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
        if library is not None:
            self._context.run(library.set, None)
        self._result: list[T] = []
        self._error: BaseException | None = None

    def do(self) -> None:
        """Do the work, in this thread."""
        work, self._work = self._work, None
        assert work is not None
        try:
            self._result.append(self._context.run(work))
        except BaseException as error:
            self._error = error

    def tell(self) -> None:
        """Wake whoever waits for it."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
            self._wake(self._done)

    def outcome(self) -> T:
        """The result. Raises what the work raised."""
        error, self._error = self._error, None
        if error is None:
            return self._result.pop()
        try:
            raise error
        finally:
            del error  # its traceback has this frame


class _Worker:
    """A thread of the pool, which waits for its next job."""

    __slots__ = ("_threads", "jobs")

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self.jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()

    def serve(self) -> None:
        """Do one job after another, until there are no more."""
        stays = True
        while stays:
            job = self.jobs.get()
            if job is None:
                return
            HERE.work = job
            job.do()
            HERE.work = None
            stays = self._threads.release(self, job)
            job.tell()
            del job  # while this waits, it keeps alive nothing of the caller's


async def in_own_thread(work: Callable[[], T]) -> T:
    """Do the work in a thread of its own, which is left behind if this is cancelled."""
    threads = Threads()
    try:
        return await threads.run(work, patience=0)
    finally:
        threads.end()


def waker() -> Wake:
    """What has a call made by this event loop soon, from another thread, and does not wait."""
    native = _native()
    return getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon


def event_loop() -> str:
    """The name of the event loop that is running: "asyncio" or "trio"."""
    return "asyncio" if hasattr(_native(), "call_soon_threadsafe") else "trio"


def _native() -> Any:
    """asyncio's event loop, or trio's token."""
    token: Any = anyio.lowlevel.current_token()
    return getattr(token, "native_token", token)  # anyio before 4.11 gives the native one

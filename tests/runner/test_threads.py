"""The pool of daemon threads: reuse, what comes out, cancellation, and what keeps nobody waiting.

Rules: no test waits by sleeping. A thread is held by a lock that the test opens.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio

from kitchen.runner.threads import Threads, in_own_thread

ROOT = Path(__file__).resolve().parents[2]
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.end()


class Gate:
    """Work that says that it has begun, and ends once it is let go."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.opened = threading.Event()
        self.thread: threading.Thread | None = None
        self._token: Any = anyio.lowlevel.current_token()

    def __call__(self) -> str:
        self.thread = threading.current_thread()
        anyio.from_thread.run_sync(self.begun.set, token=self._token)
        assert self.opened.wait(30)
        return "done"

    async def join(self) -> None:
        """Let it go, and have its thread end."""
        self.opened.set()
        assert self.thread is not None
        await anyio.to_thread.run_sync(self.thread.join, 30)
        assert not self.thread.is_alive()


async def test_an_idle_thread_is_taken_again(threads: Threads) -> None:
    first = await threads.run(threading.get_ident)
    assert first != threading.get_ident()
    assert [await threads.run(threading.get_ident) for _ in range(5)] == [first] * 5


async def test_the_thread_that_became_idle_last_is_taken_first(threads: Threads) -> None:
    one, two = Gate(), Gate()
    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, one)
        group.start_soon(threads.run, two)
        await one.begun.wait()
        await two.begun.wait()
        assert one.thread is not two.thread
        two.opened.set()
        assert await threads.run(threading.current_thread) is not one.thread
        one.opened.set()
    last = await threads.run(threading.current_thread)
    assert last in (one.thread, two.thread)
    assert await threads.run(threading.current_thread) is last


async def test_the_threads_are_daemons_and_without_a_limit(threads: Threads) -> None:
    gates = [Gate() for _ in range(50)]
    async with anyio.create_task_group() as group:
        for gate in gates:
            group.start_soon(threads.run, gate)
        for gate in gates:
            await gate.begun.wait()
        assert all(gate.thread is not None and gate.thread.daemon for gate in gates)
        for gate in gates:
            gate.opened.set()


async def test_the_end_ends_the_idle_threads_and_the_busy_ones_after_their_work() -> None:
    threads, gate = Threads(), Gate()
    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, gate)
        await gate.begun.wait()
        idle = await threads.run(threading.current_thread)
        assert idle is not gate.thread
        threads.end()
        await anyio.to_thread.run_sync(idle.join, 30)
        assert not idle.is_alive()
        await gate.join()


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException()],
)
async def test_what_the_work_raises_comes_out_as_itself(
    threads: Threads, error: BaseException
) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await threads.run(work)
    assert caught.value is error
    assert await threads.run(lambda: "the thread lives") == "the thread lives"


async def test_a_stop_iteration_is_what_python_makes_of_it(threads: Threads) -> None:
    error = StopIteration(7)

    def work() -> None:
        raise error

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await threads.run(work)
    assert caught.value.__cause__ is error


async def test_nothing_of_an_ended_call_is_kept_alive(threads: Threads) -> None:
    class Held:
        pass

    def fail(held: Held) -> None:
        raise ValueError(str(held))

    async def call() -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(ValueError, match="Held"):
            await threads.run(lambda: fail(held))
        assert await threads.run(lambda: held) is held
        return weakref.ref(held)

    gc.collect()
    gc.disable()
    try:
        held = await call()
        await threads.run(int)  # its thread has gone on
        assert held() is None
    finally:
        gc.enable()


async def test_context_variables_go_in_and_do_not_come_out(threads: Threads) -> None:
    VARIABLE.set("caller's")

    def work() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("worker's")
        return seen

    assert [await threads.run(work) for _ in range(2)] == ["caller's"] * 2
    assert VARIABLE.get() == "caller's"


async def test_no_event_loop_is_running_where_the_work_is(threads: Threads) -> None:
    async def inner() -> str:
        return sniffio.current_async_library()

    assert await threads.run(lambda: anyio.run(inner, backend="trio")) == "trio"
    assert await threads.run(lambda: asyncio.run(inner())) == "asyncio"
    with pytest.raises(sniffio.AsyncLibraryNotFoundError):
        await threads.run(sniffio.current_async_library)


async def test_work_can_come_back_into_the_event_loop(threads: Threads) -> None:
    token, here = anyio.lowlevel.current_token(), threading.get_ident()

    async def where() -> int:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    assert await threads.run(lambda: anyio.from_thread.run(where, token=token)) == here


# --- cancellation ---------------------------------------------------------------------------------


async def test_nothing_is_begun_that_is_cancelled_already(threads: Threads) -> None:
    calls: list[int] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await threads.run(lambda: calls.append(1))
    assert scope.cancelled_caught
    assert calls == []


async def cancelled(
    threads: Threads, gate: Gate, meanwhile: Callable[[], None], **given: Any
) -> tuple[anyio.CancelScope, list[Any]]:
    """Cancel a call once it has begun, then do something; what it returned, if it did."""
    results: list[Any] = []
    scope = anyio.CancelScope()

    async def call() -> None:
        with scope:
            results.append(await threads.run(gate, **given))
            await anyio.lowlevel.checkpoint()
            results.append("went on")

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await gate.begun.wait()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        meanwhile()
    return scope, results


@pytest.mark.parametrize("patience", [None, 60.0])
async def test_work_that_ends_in_time_gives_its_result_and_the_cancellation_goes_on(
    threads: Threads, patience: float | None
) -> None:
    gate, told = Gate(), list[str]()
    scope, results = await cancelled(
        threads, gate, gate.opened.set, patience=patience, abandoned=lambda: told.append("!")
    )
    assert results == ["done"]
    assert scope.cancelled_caught
    assert told == []
    assert await threads.run(threading.current_thread) is gate.thread


@pytest.mark.parametrize("patience", [0, 0.01])
async def test_work_that_does_not_end_in_time_is_abandoned(
    threads: Threads, patience: float
) -> None:
    gate, told = Gate(), list[int]()
    scope, results = await cancelled(
        threads,
        gate,
        lambda: None,
        patience=patience,
        abandoned=lambda: told.append(threading.get_ident()),
    )
    assert results == []
    assert scope.cancelled_caught
    assert told == [threading.get_ident()]
    other = await threads.run(threading.current_thread)
    assert other is not gate.thread
    await gate.join()  # it is not put back: it ends by itself
    assert await threads.run(threading.current_thread) is other


async def test_abandoning_comes_before_the_cancellation_goes_on(threads: Threads) -> None:
    gate, order = Gate(), list[str]()

    async def call() -> None:
        try:
            await threads.run(gate, patience=0, abandoned=lambda: order.append("abandoned"))
        finally:
            order.append("out")

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await gate.begun.wait()
        group.cancel_scope.cancel()
    assert order == ["abandoned", "out"]
    await gate.join()


async def test_a_failure_while_it_is_waited_for_comes_out(threads: Threads) -> None:
    gate = Gate()

    def work() -> None:
        gate()
        raise ValueError("late")

    scope = anyio.CancelScope()

    async def call() -> None:
        with scope, pytest.raises(ValueError, match="late"):
            await threads.run(work)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await gate.begun.wait()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        gate.opened.set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_cancellation_by_asyncio_itself_is_not_lost(threads: Threads) -> None:
    gate = Gate()
    task = asyncio.create_task(threads.run(gate))
    await gate.begun.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await threads.run(threading.current_thread) is gate.thread


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_second_cancellation_by_asyncio_abandons(threads: Threads) -> None:
    gate, told = Gate(), list[str]()
    task = asyncio.create_task(threads.run(gate, abandoned=lambda: told.append("!")))
    await gate.begun.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["!"]
    await gate.join()


async def test_a_thread_of_its_own_ends_with_its_work() -> None:
    thread = await in_own_thread(threading.current_thread)
    await anyio.to_thread.run_sync(thread.join, 30)
    assert not thread.is_alive()


def test_neither_hung_nor_idle_threads_keep_the_interpreter(anyio_backend: str) -> None:
    script = f"""
        import threading, time
        import anyio, anyio.lowlevel
        from kitchen.runner.threads import Threads

        async def main():
            threads, token, begun = Threads(), anyio.lowlevel.current_token(), anyio.Event()

            def hang():
                anyio.from_thread.run_sync(begun.set, token=token)
                while True:
                    time.sleep(3600)

            await threads.run(int)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: threads.run(hang, patience=0))
                await begun.wait()
                group.cancel_scope.cancel()

        anyio.run(main, backend={anyio_backend!r})
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=60, check=False
    )
    assert ended.returncode == 0

"""stream_loop in a run: how far ahead its source is, when it is closed, how it fails and resumes.

`test_stream` has the source by itself, and what is recorded of items.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import nullcontext
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import kitchen
from kitchen.errors import ItemsError
from store import MemoryStore
from tests.runner.running import (
    Box,
    Dying,
    Killed,
    done,
    done_async,
    failure,
    flow,
    of_type,
    types,
    until,
)

SECONDS = 20


def streaming(over: Any, body: Any, prefetch: int = 2, **options: Any) -> Any:
    def build(wf: Any) -> None:
        with wf.stream_loop("st", over=over, prefetch=prefetch):
            wf.stage("s", body, **options)

    return flow(build)


def take(ctx: Any) -> None:
    ctx.append("taken", ctx.item())


def waits(event: threading.Event) -> None:
    assert event.wait(SECONDS)


class Source:
    """Tells what is asked of it."""

    def __init__(self, count: int = 10**9) -> None:
        self.count = count
        self.given: list[int] = []
        self.closed = 0
        self.changed = threading.Condition()

    def __call__(self, ctx: Any) -> Generator[int]:
        try:
            for number in range(self.count):
                with self.changed:
                    self.given.append(number)
                    self.changed.notify_all()
                yield number
        finally:
            self.closed += 1

    def is_at(self, number: int) -> None:
        """Wait until it has given so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.given) >= number, SECONDS)


class AsyncSource(Source):
    """The same, async."""

    async def __call__(self, ctx: Any) -> AsyncGenerator[int]:  # type: ignore[override]
        try:
            for number in range(self.count):
                with self.changed:
                    self.given.append(number)
                    self.changed.notify_all()
                yield number
                await anyio.lowlevel.checkpoint()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.closed += 1


KINDS = pytest.mark.parametrize("kind", [Source, AsyncSource])


# --- ahead ----------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_source_is_ahead_while_the_body_runs_and_no_further(kind: Any, prefetch: int) -> None:
    source = kind(12)

    def body(ctx: Any) -> None:
        number = ctx.item()
        source.is_at(min(number + 1 + prefetch, 12))  # it works while this body does
        # what is taken, what is ready, and what is about to be
        assert len(source.given) <= number + 1 + prefetch + 1
        take(ctx)

    assert done(streaming(source, body, prefetch)).state == {"taken": list(range(12))}


@KINDS
def test_a_stream_may_be_endless(kind: Any) -> None:
    source = kind()

    def body(ctx: Any) -> None:
        take(ctx)
        if ctx.index("st") == 20:
            ctx.stop_loop()

    store = MemoryStore()
    assert done(streaming(source, body), store=store).state["taken"] == list(range(21))
    assert source.closed == 1
    assert types(store)[-3:] == ["StageCompleted", "LoopExited", "RunCompleted"]


def test_what_follows_in_the_visit_still_runs_after_stop_loop() -> None:
    def build(wf: Any) -> None:
        with wf.stream_loop("st", over=lambda ctx: range(9)):
            wf.stage("stop", lambda ctx: ctx.stop_loop())
            with wf.parallel("p", over=lambda ctx: range(2), merge={"n": "sum"}):
                wf.stage("follows", lambda ctx: ctx.increment("n"))

    assert done(flow(build)).state == {"n": 2}


def test_stopping_from_a_branch_and_in_the_nearest_loop() -> None:
    """The items of a parallel are no loop: the stream around it stops."""

    def stop(ctx: Any) -> None:
        ctx.increment("n")
        if ctx.index("each") == 1 and ctx.index("st") == 2:
            ctx.stop_loop()

    def build(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: range(2)):
            with wf.stream_loop("st", over=lambda ctx: range(9)):
                with wf.parallel("each", over=lambda ctx: range(2), merge={"n": "sum"}):
                    wf.stage("stop", stop)

    assert done(flow(build)).state == {"n": 12}


@pytest.mark.parametrize("empty", [[], (), range(0), iter(()), {}])
def test_nothing_at_all(empty: Any) -> None:
    store = MemoryStore()
    assert done(streaming(lambda ctx: empty, take), store=store).state == {}
    assert types(store) == ["RunStarted", "LoopEntered", "LoopExited", "RunCompleted"]


# --- closed, however it ends ----------------------------------------------------------------------


def end_by(how: str, source: Any, store: Any) -> None:
    """Have a stream end in one of the ways there are, in its fifth visit."""

    async def cancel(ctx: Any) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    async def body(ctx: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if ctx.index("st") == 4 and how in acts:
            given = acts[how](ctx)
            await given if given is not None else None

    async def program() -> None:
        nonlocal scope
        with anyio.CancelScope() as scope:
            await done_async(workflow, store=store)

    acts: dict[str, Callable[[Any], Any]] = {
        "stopped": lambda ctx: ctx.stop_loop(),
        "failed": raising(ValueError("no")),
        "interrupted": lambda ctx: os.kill(os.getpid(), signal.SIGINT),
        "killed": raising(Killed()),
        "cancelled": cancel,
    }
    ends: Any = {
        "failed": kitchen.RunError,
        "interrupted": kitchen.RunInterrupted,
        "killed": Killed,
    }
    scope: Any = None
    workflow = streaming(source, body)
    if how == "cancelled":
        anyio.run(program)
    else:
        with pytest.raises(ends[how]) if how in ends else nullcontext():
            done(workflow, store=store)


def raising(error: BaseException) -> Callable[[Any], None]:
    def act(ctx: Any) -> None:
        raise error

    return act


ENDS = ["exhausted", "stopped", "failed", "interrupted", "killed", "cancelled"]


@KINDS
@pytest.mark.parametrize("how", ENDS)
def test_a_source_is_closed(kind: Any, how: str) -> None:
    source, store = kind(5 if how == "exhausted" else 10**9), MemoryStore()
    end_by(how, source, store)
    assert source.closed == 1
    assert len(of_type(store, "ItemTaken")) == 5


@KINDS
def test_a_source_is_closed_before_what_follows(kind: Any) -> None:
    source = kind(3)

    def build(wf: Any) -> None:
        with wf.loop("epochs", over=lambda ctx: range(3)):
            with wf.stream_loop("st", over=source):
                wf.stage("s", take)
            wf.stage("after", lambda ctx: ctx.append("closed", source.closed))

    run = done(flow(build))
    assert run.state == {"taken": [0, 1, 2] * 3, "closed": [1, 2, 3]}


@pytest.mark.anyio
async def test_ctrl_c_does_not_wait_for_a_slow_source() -> None:
    """The run waits for an item that does not come: it stops all the same."""
    asked = anyio.Event()

    async def source(ctx: Any) -> AsyncGenerator[int]:
        yield 0
        asked.set()
        await anyio.sleep_forever()

    async def stop() -> None:
        await asked.wait()
        await until(lambda: len(of_type(store, "StageCompleted")) == 1)
        scope.cancel()

    store = MemoryStore()
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            with anyio.CancelScope() as scope:
                await done_async(streaming(source, take), store=store)
    assert kitchen.history("r", store=store).status == "crashed"


def test_a_signal_stops_a_run_that_waits_for_an_item() -> None:
    release = threading.Event()

    def source(ctx: Any) -> Generator[int]:
        yield 0
        os.kill(os.getpid(), signal.SIGINT)
        assert release.wait(SECONDS)
        yield 1

    class Freeing:
        def on_facts(self, run_id: str, facts: Any, state: Any) -> None:
            if state.status == "interrupted":
                release.set()

        def on_progress(self, *_: Any) -> None: ...

    store = MemoryStore()
    with pytest.raises(kitchen.RunInterrupted):
        done(streaming(source, take), store=store, observers=[Freeing()])
    assert release.is_set()
    assert types(store)[-1] == "RunInterrupted"


# --- errors ---------------------------------------------------------------------------------------


def test_what_the_source_raises_is_the_cause() -> None:
    def source(ctx: Any) -> Generator[int]:
        yield 1
        raise LookupError("in the source")

    store = MemoryStore()
    with pytest.raises(kitchen.RunError, match="failed at st") as caught:
        done(streaming(source, take), store=store)
    cause = caught.value.__cause__
    assert isinstance(cause, LookupError)
    assert "in source" in _last_frame(cause)
    assert caught.value.run.state == {"taken": [1]}
    assert of_type(store, "RunFailed")[0].event.failure.traceback.count("in source")  # type: ignore[attr-defined]


def _last_frame(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_tb(error.__traceback__)[-1:])


def test_a_source_that_failed_goes_on_where_it_was_when_resumed() -> None:
    broken = [True]

    def source(ctx: Any) -> Generator[float]:
        for number in range(6):
            if number == 3 and broken[0]:
                raise LookupError
            yield number + ctx.rng.random() // 1

    store, workflow = MemoryStore(), streaming(source, take)
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    broken[0] = False
    assert kitchen.resume("r", workflow, store=store).state == done(workflow).state


def test_a_resource_cannot_be_the_source() -> None:
    def build(wf: Any) -> None:
        wf.resource("loader", lambda ctx: [1, 2], stateful=False)
        with wf.stream_loop("st", over=lambda ctx: ctx.resources["loader"]):
            wf.stage("s", take)

    told = failure(flow(build))
    assert told.type == "ItemsError"
    assert told.message == "the source of the stream st is the resource 'loader'"
    assert "make it in over= itself" in told.hint


def test_a_stateful_resource_is_out_of_reach() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box(2))
        with wf.stream_loop("st", over=over):
            wf.stage("s", take)

    over: Any = lambda ctx: range(int(ctx.resources["box"].add()))  # noqa: E731
    told = failure(flow(build))
    assert told.type == "ResourceError"
    assert (
        "a stream reads ahead, at a pace that neither stages nor checkpoints know" in told.message
    )
    assert "make a loader in over= itself" in told.hint
    over = lambda ctx: range(int(ctx.resources.peek("box").value))  # noqa: E731
    assert failure(flow(build)).message == told.message


def test_a_stateful_resource_is_out_of_reach_through_another() -> None:
    """What was made from it may hold it."""

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box(2))
        wf.resource("lid", lambda ctx: [ctx.resources.peek("box")], stateful=False)
        wf.resource("free", lambda ctx: [1, 2, 3], stateful=False)
        with wf.stream_loop("st", over=over):
            wf.stage("s", take)

    over: Any = lambda ctx: ctx.resources.peek("lid")[0:0]  # noqa: E731
    assert "'lid', which is or holds something stateful" in failure(flow(build)).message
    over = lambda ctx: iter(ctx.resources["free"])  # noqa: E731
    assert done(flow(build)).state == {"taken": [1, 2, 3]}


class Opaque:
    """Not encodable."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_items_that_cannot_be_encoded() -> None:
    """They are given out as they are, and had again by their position."""
    die = Dying(3)

    def body(ctx: Any) -> None:
        die()
        ctx.append("taken", ctx.item().number)

    workflow = streaming(lambda ctx: map(Opaque, range(6)), body)
    store = MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).state == {"taken": [0, 1, 2, 3, 4, 5]}


def test_other_items_than_those_recorded_are_refused() -> None:
    items, die = [1, 2, 3, 4], Dying(2)

    def body(ctx: Any) -> None:
        die()
        take(ctx)

    workflow, store = streaming(lambda ctx: list(items), body), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    items[1] = 9
    with pytest.raises(
        kitchen.RunError, match="item 1 of the stream st is not what it was"
    ) as told:
        kitchen.resume("r", workflow, store=store)
    assert isinstance(told.value.__cause__, ItemsError)
    items[1] = 2
    assert kitchen.resume("r", workflow, store=store).state == {"taken": [1, 2, 3, 4]}


# --- resumed --------------------------------------------------------------------------------------


def test_resumed_it_asks_over_with_the_state_as_of_entry() -> None:
    die = Dying(5)
    seen: list[Any] = []

    def over(ctx: Any) -> Generator[Any]:
        seen.append((dict(ctx.state), ctx.path, ctx.visit))
        for number in range(ctx.state["count"]):
            yield number + ctx.rng.random()

    def body(ctx: Any) -> None:
        die()
        take(ctx)
        ctx.state["count"] = 0  # of no matter to a stream that is open

    def build(wf: Any) -> None:
        wf.stage("init", lambda ctx: ctx.state.update(count=4))
        with wf.loop("epochs", over=lambda ctx: range(2)):
            wf.stage("more", lambda ctx: ctx.state.update(count=4))
            with wf.stream_loop("st", over=over):
                wf.stage("s", body)

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(Killed):
        done(workflow, store=store)
    run = kitchen.resume("r", workflow, store=store)
    assert seen[1] == seen[2]
    assert seen[1][1:] == ("st", (1,)) or seen[1][1:] == ("epochs/st", (1,))
    assert run.state == done(workflow).state


class Loader:
    """A source that tells where it is; it counts what is pulled out of it."""

    pulled: list[int]

    def __init__(self, end: int) -> None:
        self.at, self.end = 0, end

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> int:
        if self.at == self.end:
            raise StopIteration
        self.at += 1
        Loader.pulled.append(self.at - 1)
        return self.at - 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_a_stateful_source_is_put_back_and_not_skipped_through() -> None:
    die = Dying(150)
    Loader.pulled = []

    def body(ctx: Any) -> None:
        die()
        ctx.increment("sum", ctx.item())

    workflow = streaming(lambda ctx: Loader(200), body, 4, thread=False)
    store = MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    Loader.pulled.clear()
    assert kitchen.resume("r", workflow, store=store).state == {"sum": sum(range(200))}
    assert Loader.pulled == list(range(128, 200))


def test_two_streams_at_a_time() -> None:
    """One in the other, and two side by side: each has a source of its own for each visit."""

    def over(ctx: Any) -> Generator[Any]:
        for number in range(3):
            yield (*ctx.visit, number)

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=2):
            with wf.branch("left"):
                with wf.stream_loop("outer", over=over):
                    with wf.stream_loop("inner", over=over):
                        wf.stage("a", lambda ctx: ctx.append("a", (ctx.item("outer"), ctx.item())))
            with wf.branch("right"):
                with wf.stream_loop("other", over=over):
                    wf.stage("b", lambda ctx: ctx.append("b", ctx.item()))

    run = done(flow(build))
    assert run.state["a"] == [((i,), (i, j)) for i in range(3) for j in range(3)]
    assert run.state["b"] == [(0,), (1,), (2,)]


@pytest.mark.anyio
@KINDS
async def test_a_run_that_is_awaited(kind: Any) -> None:
    source = kind(50)
    with anyio.fail_after(SECONDS):
        run = await done_async(streaming(source, take, 5, thread=False))
    assert run.state == {"taken": list(range(50))}
    assert source.closed == 1

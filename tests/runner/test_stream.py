"""The source of a stream_loop: pulled ahead but bounded, closed always, moved on behind a crash.

Nothing here waits by sleeping: who waits, waits for an event, under a deadline that only a hang
would reach.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.adapters.event_store import Translating
from kitchen.errors import ItemsError, ResourceError, UnencodableValue
from kitchen.log.journal import Journal
from kitchen.machine.chart import Program
from kitchen.machine.codec import Codec, FrozenList
from kitchen.machine.codec.arrays import unpack_state
from kitchen.machine.events import Address, from_json, to_json
from kitchen.runner.feeding import pulled, stream
from kitchen.runner.feeding.stream import Past, Pulled, Stream
from store import MemoryStore

CODEC = Codec()
EVERY = stream.EVERY


class Opaque:
    """Not encodable."""


class Counter:
    """A stateful source, and its own iterator: counts up to `end`."""

    def __init__(self, end: int | None = None) -> None:
        self.at = 0
        self.end = end
        self.pulls = 0
        self.closed = 0

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> Any:
        if self.at == self.end:
            raise StopIteration
        self.at += 1
        self.pulls += 1
        return {"n": self.at - 1}

    def close(self) -> None:
        self.closed += 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "array": np.arange(self.at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["array"].tolist() == list(range(state["at"]))
        self.at = state["at"]


class AsyncCounter(Counter):
    """The same, async."""

    def __aiter__(self) -> AsyncCounter:
        return self

    async def __anext__(self) -> Any:
        await anyio.lowlevel.checkpoint()
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


def journal() -> Journal:
    program: Program = None  # type: ignore[assignment]
    return Journal(Translating(MemoryStore()), "r", program)  # type: ignore[arg-type]


def made(prefetch: int = 2, past: Past | None = None, where: Journal | None = None) -> Stream:
    return Stream(Address("l", (3,)), prefetch, CODEC, where or journal(), past or Past())


@asynccontextmanager
async def running(subject: Stream, source: Any) -> AsyncGenerator[Stream]:
    """The stream with its host task; left at the end, unless what is inside failed."""

    async def over() -> Any:
        if isinstance(source, BaseException):
            raise source
        return source() if callable(source) else source

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(subject.run, over)
            try:
                yield subject
                await subject.leave()
            except BaseException:
                tasks.cancel_scope.cancel()
                raise


async def taken(subject: Stream, source: Any, first: int = 0, most: int = 10**9) -> list[Pulled]:
    found: list[Pulled] = []
    async with running(subject, source):
        for index in range(first, first + most):
            each = await subject.take(index)
            if each is None:
                break
            found.append(each)
    return found


async def refused(subject: Stream, source: Any, index: int) -> BaseException:
    async with running(subject, source):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await subject.take(index)
        assert subject._ended.is_set()
    return caught.value


async def items(source: Any, prefetch: int = 2, most: int = 10**9) -> list[Any]:
    return [each.item for each in await taken(made(prefetch), source, most=most)]


async def until(condition: Callable[[], bool]) -> None:
    """Let the others work until it holds."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def happened(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 20)


def numbers(end: int = 5) -> Iterator[Any]:
    yield from range(end)


async def async_numbers(end: int = 5) -> AsyncIterator[Any]:
    for number in range(end):
        yield number


class Iterable:
    """Begins anew with each iterator."""

    def __iter__(self) -> Iterator[int]:
        return iter([0, 1, 2, 3, 4])


class AsyncIterable:
    def __aiter__(self) -> AsyncIterator[int]:
        return async_numbers()


SOURCES = {
    "generator": numbers,
    "async generator": async_numbers,
    "list": lambda: [0, 1, 2, 3, 4],
    "range": lambda: range(5),
    "iterator": lambda: iter([0, 1, 2, 3, 4]),
    "iterable": Iterable,
    "async iterable": AsyncIterable,
    "array": lambda: np.arange(5),
    "dict": lambda: dict.fromkeys(range(5)),
}


# --- what it gives ---------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("prefetch", [1, 2, 7])
async def test_every_kind_of_source_gives_its_items_in_order(kind: str, prefetch: int) -> None:
    assert await items(SOURCES[kind], prefetch) == [0, 1, 2, 3, 4]


@pytest.mark.anyio
@pytest.mark.parametrize("empty", [[], (), iter(()), numbers(0)])
async def test_nothing_at_all(empty: Any) -> None:
    assert await items(empty) == []
    assert await items(async_numbers(0)) == []


@pytest.mark.anyio
@pytest.mark.parametrize("endless", [itertools.count, lambda: async_numbers(10**9)])
async def test_an_endless_source_is_left(endless: Any) -> None:
    assert await items(endless, most=100) == list(range(100))


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [3, None, "abc", b"abc", object()])
async def test_what_cannot_be_gone_over(wrong: Any) -> None:
    error = await refused(made(), wrong, 0)
    assert isinstance(error, ItemsError)
    assert f"l[3] cannot go over a {type(wrong).__name__}" in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_how_items_are_recorded(asynchronous: bool) -> None:
    given_items: list[Any] = [
        7,
        "x" * 2000,
        np.arange(20_000),
        Opaque(),
        [1],
        (2, {3}),
        "y" * 70_000,
    ]

    async def agen() -> AsyncIterator[Any]:
        for each in given_items:
            yield each

    found = await taken(made(), agen() if asynchronous else given_items)
    values = [bytes(each.event.value) for each in found]
    assert values == [b"7", b"", b"", b"", b"[1]", bytes(CODEC.encode((2, {3})).json), b""]
    digests = [each.event.digest for each in found]
    assert [len(digest) for digest in digests] == [16, 16, 16, 0, 16, 16, 16]
    assert found[3].item is given_items[3]
    assert found[2].item.tolist() == given_items[2].tolist()
    assert type(found[4].item) is FrozenList
    assert all(not each.blobs and each.event.source is None for each in found)
    for each in found:
        assert from_json("ItemTaken", to_json(each.event)) == each.event


@pytest.mark.anyio
async def test_what_a_body_does_to_an_item_reaches_nobody() -> None:
    mine = [np.zeros(3)]
    given_items = [mine, mine]
    found = await taken(made(), given_items)
    with pytest.raises(ValueError, match="read-only"):
        found[0].item[0][0] = 1
    assert found[1].item[0].tolist() == [0, 0, 0]


# --- ahead, but bounded ----------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Counter, AsyncCounter])
@pytest.mark.parametrize("prefetch", [1, 2, 5])
async def test_it_pulls_while_the_body_works_and_no_further(kind: Any, prefetch: int) -> None:
    source = kind()
    async with running(made(prefetch), source) as subject:
        await until(lambda: source.pulls == prefetch)
        for index in range(10):
            await subject.take(index)
            await until(lambda: source.pulls == index + 1 + prefetch)  # noqa: B023
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert source.pulls == index + 1 + prefetch


@pytest.mark.anyio
async def test_a_slow_source_holds_up_nothing_else() -> None:
    gate = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        assert gate.wait(20)
        yield 1

    async with running(made(2), slow) as subject:
        first = await subject.take(0)  # is there before the second
        assert first is not None
        assert first.item == 0
        assert await anyio.to_thread.run_sync(lambda: 5) == 5
        gate.set()
        second = await subject.take(1)
        assert second is not None
        assert second.item == 1


@pytest.mark.anyio
async def test_a_sync_source_sees_one_thread_and_an_async_one_the_host_task() -> None:
    seen: set[Any] = set()

    def threaded() -> Iterator[int]:
        try:
            for index in range(100):
                seen.add(threading.get_ident())
                yield index
        finally:
            seen.add(threading.get_ident())

    assert len(await items(threaded, 3, most=50)) == 50
    assert len(seen) == 1
    assert seen != {threading.get_ident()}

    async def tasked() -> AsyncIterator[int]:
        try:
            for index in range(100):
                seen.add(anyio.get_current_task().id)
                yield index
        finally:
            seen.add(anyio.get_current_task().id)

    seen.clear()
    assert len(await items(tasked, 3, most=50)) == 50
    assert len(seen) == 1


@pytest.mark.anyio
async def test_an_async_source_may_hold_a_scope_over_its_items() -> None:
    left: list[str] = []

    async def scoped() -> AsyncIterator[int]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            try:
                for index in itertools.count():
                    yield index
            finally:
                left.append("left")

    assert await items(scoped, most=4) == [0, 1, 2, 3]
    assert left == ["left"]


@pytest.mark.anyio
async def test_earlier_items_may_be_passed_over_and_do_not_come_back() -> None:
    async with running(made(2), range(10)) as subject:
        fourth = await subject.take(4)
        assert fourth is not None
        assert fourth.item == 4
        await until(lambda: len(subject._ready) == 2)
        with pytest.raises(ItemsError, match=r"item 4 of the stream .* is gone"):
            await subject.take(4)


# --- its end ---------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Counter, AsyncCounter])
async def test_it_is_closed_before_the_end_is_told_and_once(kind: Any) -> None:
    source = kind(3)
    async with running(made(2), source) as subject:
        assert [await subject.take(i) is None for i in range(4)] == [False, False, False, True]
        assert source.closed == 1
        assert await subject.take(3) is None
    assert source.closed == 1
    source = kind()
    await taken(made(2), source, most=3)
    assert source.closed == 1


@pytest.mark.anyio
async def test_a_collection_of_the_callers_is_not_closed() -> None:
    class Closable(Iterable):
        def close(self) -> None:
            raise AssertionError

    assert await items(Closable, most=2) == [0, 1]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [KeyError("mine"), SystemExit(3), OSError()])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_the_source_raises_is_told_behind_the_items(
    error: BaseException, asynchronous: bool
) -> None:
    def failing() -> Iterator[int]:
        yield 0
        raise error

    async def async_failing() -> AsyncIterator[int]:
        yield 0
        raise error

    async with running(made(5), async_failing if asynchronous else failing) as subject:
        await until(subject._ended.is_set)
        assert await subject.take(0) is not None
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                await subject.take(1)
            assert caught.value is error
            assert "failing" in [frame.name.split("_")[-1] for frame in caught.traceback]


@pytest.mark.anyio
async def test_an_error_in_an_item_that_nobody_takes_is_none() -> None:
    def failing() -> Iterator[int]:
        yield 0
        raise KeyError

    async with running(made(5), failing) as subject:
        await until(subject._ended.is_set)
        assert await subject.take(0) is not None


@pytest.mark.anyio
async def test_what_over_raises() -> None:
    error = LookupError("mine")
    assert await refused(made(), error, 0) is error


@pytest.mark.anyio
async def test_a_stop_iteration_out_of_place_is_an_error() -> None:
    class Wrong:
        def __iter__(self) -> Iterator[int]:
            raise StopIteration

    assert isinstance(await refused(made(), Wrong, 0), ItemsError)


@pytest.mark.anyio
async def test_a_cancellation_of_the_sources_own_is_an_error() -> None:
    async def own() -> AsyncIterator[int]:
        yield 0
        raise asyncio.CancelledError

    if _on_asyncio():
        async with running(made(2), own) as subject:
            assert await subject.take(0) is not None
            with pytest.raises(ItemsError, match="raised CancelledError"):
                await subject.take(1)


@pytest.mark.anyio
async def test_a_task_group_that_failed_leaves_no_cancellation() -> None:
    async def own() -> AsyncIterator[int]:
        async def fail() -> None:
            raise KeyError

        yield 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            await asyncio.Event().wait()

    if _on_asyncio():
        async with running(made(2), own) as subject:
            assert await subject.take(0) is not None
            with pytest.raises(ExceptionGroup):
                await subject.take(1)


def _on_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_errors_of_closing(asynchronous: bool) -> None:
    def stubborn() -> Iterator[int]:
        try:
            yield 0
            yield 1
        finally:
            raise OSError("closing")

    async def async_stubborn() -> AsyncIterator[int]:
        try:
            yield 0
            yield 1
        finally:
            raise OSError("closing")

    source = async_stubborn if asynchronous else stubborn
    async with running(made(1), source) as subject:
        await subject.take(0)
        with pytest.raises(OSError, match="closing"):
            await subject.leave()
        await subject.leave()  # once is enough
        with pytest.raises(ItemsError, match="was left before its item 1"):
            await subject.take(1)

    class Ending(Counter):
        def close(self) -> None:
            raise OSError("closing")

    async with running(made(1), Ending(1)) as subject:
        await subject.take(0)
        with pytest.raises(OSError, match="closing"):
            await subject.take(1)


# --- leaving and being cancelled -------------------------------------------------------------


@pytest.mark.anyio
async def test_leaving_before_it_began() -> None:
    subject = made()
    await subject.leave()

    async def over() -> Any:
        raise AssertionError

    await subject.run(over)
    with pytest.raises(ItemsError, match="was left"):
        await subject.take(0)


@pytest.mark.anyio
async def test_leaving_an_async_source_that_waits_for_ever() -> None:
    ended: list[str] = []

    async def waiting() -> AsyncIterator[int]:
        try:
            yield 0
            await anyio.sleep_forever()
        finally:
            ended.append("ended")

    assert await items(waiting, most=1) == [0]
    assert ended == ["ended"]


@pytest.mark.anyio
async def test_an_iterator_whose_pull_is_cancelled_is_closed() -> None:
    class Waiting(AsyncCounter):
        async def __anext__(self) -> Any:
            if self.pulls:
                await anyio.sleep_forever()
            return await super().__anext__()

    source = Waiting()
    assert await items(source, most=1) == [{"n": 0}]
    assert source.closed == 1


@pytest.mark.anyio
async def test_leaving_while_over_waits() -> None:
    async def over() -> Any:
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            subject = made()
            tasks.start_soon(subject.run, over)
            await anyio.lowlevel.checkpoint()
            await subject.leave()


class Blocking:
    """A sync source that comes back when it is told to."""

    def __init__(self) -> None:
        self.entered, self.back, self.closed = (threading.Event() for _ in range(3))

    def __call__(self) -> Iterator[int]:
        try:
            yield 0
            self.entered.set()
            assert self.back.wait(20)
            yield 1
        finally:
            self.closed.set()


@pytest.mark.anyio
async def test_leaving_waits_for_a_pull_to_come_back() -> None:
    source = Blocking()
    async with running(made(2), source) as subject:
        await happened(source.entered)

        async def come_back() -> None:
            await until(lambda: subject._leaving)
            source.back.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come_back)
            await subject.leave()
            assert source.closed.is_set()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_a_pull_that_does_not_come_back_is_left_behind(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream, "LEAVE_SECONDS", 0.01)
    monkeypatch.setattr(stream, "ABANDON_SECONDS", 0.01)
    source = Blocking()
    with caplog.at_level(logging.WARNING):
        async with anyio.create_task_group() as tasks:
            subject = made(2)

            async def over() -> Any:
                return source()

            tasks.start_soon(subject.run, over)
            await happened(source.entered)
            with anyio.fail_after(20):
                if how == "left":
                    await subject.leave()
                else:
                    tasks.cancel_scope.cancel()
    assert "left behind" in caplog.text
    assert not source.closed.is_set()
    source.back.set()
    await happened(source.closed)  # by its thread, once it can


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Counter, AsyncCounter])
async def test_a_cancelled_host_closes_its_source(kind: Any) -> None:
    source = kind()
    subject = made(2)
    async with anyio.create_task_group() as tasks:

        async def over() -> Any:
            return source

        tasks.start_soon(subject.run, over)
        await until(lambda: source.pulls == 2)
        tasks.cancel_scope.cancel()
    assert source.closed == 1
    with pytest.raises(ItemsError, match="was left"):
        await subject.take(0)


@pytest.mark.anyio
async def test_closing_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream, "LEAVE_SECONDS", 0.01)

    async def slow() -> AsyncIterator[int]:
        try:
            yield 0
        finally:
            await anyio.sleep_forever()

    with caplog.at_level(logging.WARNING):
        await items(slow, 1, most=1)
    assert "took too long" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_ends_the_process_passes_through(asynchronous: bool) -> None:
    class Killed(BaseException):
        pass

    def dying() -> Iterator[int]:
        yield 0
        raise Killed

    async def async_dying() -> AsyncIterator[int]:
        yield 0
        raise Killed

    with pytest.raises(BaseExceptionGroup) as caught:
        await items(async_dying if asynchronous else dying)
    assert caught.value.split(Killed)[1] is None


# --- behind a crash --------------------------------------------------------------------------


def past(found: list[Pulled], *, sources: bool = True) -> Past:
    """What the log knows once these were taken."""
    digests = [each.event.digest for each in found]
    recorded = [(i, each.event.source) for i, each in enumerate(found[:-1]) if each.event.source]
    at, manifest = recorded[-1] if recorded and sources else (-1, None)
    return Past(digests, manifest, at)


def events(found: list[Pulled]) -> list[str]:
    return [to_json(each.event) for each in found]


KINDS: dict[str, Any] = {
    "generator": lambda n: ({"n": i} for i in range(n)),
    "stateful": Counter,
    "async stateful": AsyncCounter,
}


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    total=st.integers(0, 3 * EVERY),
    after=st.integers(0, 3 * EVERY),
    prefetch=st.integers(1, 5),
    sources=st.booleans(),
    backend=st.sampled_from(["asyncio", "trio"]),
)
def test_resumed_is_as_if_nothing_had_happened(
    kind: str, total: int, after: int, prefetch: int, sources: bool, backend: str
) -> None:
    after = min(after, total)

    async def both() -> None:
        where = journal()
        whole = await taken(made(2, where=where), KINDS[kind](total))
        assert [each.item["n"] for each in whole] == list(range(total))
        source = KINDS[kind](total)
        before = past(whole[:after], sources=sources)
        first = max(after - 1, 0)
        rest = await taken(made(prefetch, before, where), source, first)
        assert [each.item for each in rest] == [each.item for each in whole[first:]]
        again = 1 if after else 0  # the last one taken is not recorded again
        assert events(rest[again:]) == events(whole[first + again :])
        if isinstance(source, Counter):
            assert source.pulls == total - (before.at + 1)

    anyio.run(both, backend=backend)


@pytest.mark.anyio
async def test_the_state_is_recorded_every_so_often_and_in_blobs_before_the_item() -> None:
    where = journal()
    async with running(made(2, where=where), Counter(2 * EVERY + 1)) as subject:
        for index in range(2 * EVERY + 1):
            each = await subject.take(index)
            assert each is not None
            source = each.event.source
            assert (source is not None) == ((index + 1) % EVERY == 0)
            if source is not None:
                tree = unpack_state(source.tree, where.fetch)
                assert tree["at"] == index + 1
                assert source.size > len(bytes(source.tree))


@pytest.mark.anyio
async def test_a_state_is_loaded_before_the_iterator_is_made() -> None:
    calls: list[str] = []

    class Loader:
        at = 0

        def __iter__(self) -> Iterator[int]:
            calls.append("iter")
            return iter(range(self.at, 100))

        def state_dict(self) -> dict[str, Any]:
            return {"at": EVERY}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            calls.append("load")
            self.at = state["at"]

    where = journal()
    whole = await taken(made(1, where=where), Loader)
    calls.clear()
    rest = await taken(made(1, past(whole[: EVERY + 5]), where), Loader, EVERY + 4)
    assert calls == ["load", "iter"]
    assert [each.item for each in rest] == list(range(EVERY + 4, 100))


@pytest.mark.anyio
async def test_the_iterator_may_be_what_has_the_state() -> None:
    class Iterable:
        last: Any = None

        def __iter__(self) -> Iterator[Any]:
            self.last = Counter(EVERY + 9)
            return self.last

    where = journal()
    whole = await taken(made(1, where=where), Iterable)
    source = Iterable()
    rest = await taken(made(1, past(whole[: EVERY + 5]), where), source, EVERY + 4)
    assert events(rest) == events(whole[EVERY + 4 :])
    assert (source.last.pulls, source.last.closed) == (9, 1)


@pytest.mark.anyio
async def test_the_last_item_may_be_passed_over() -> None:
    whole = await taken(made(), range(10))
    rest = await taken(made(1, past(whole[:5])), range(10), first=5)
    assert [each.item for each in rest] == [5, 6, 7, 8, 9]


@pytest.mark.anyio
async def test_a_source_that_has_lost_its_state_is_skipped_from_its_begin() -> None:
    where = journal()
    whole = await taken(made(2, where=where), Counter(EVERY + 9))
    plain = ({"n": i} for i in range(EVERY + 9))
    rest = await taken(made(2, past(whole[: EVERY + 5]), where), plain, EVERY + 4)
    assert events(rest) == events(whole[EVERY + 4 :])


@pytest.mark.anyio
@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_other_items_are_refused(at: int, asynchronous: bool) -> None:
    whole = await taken(made(), numbers(6))
    others = [*range(at), 77, *range(at + 1, 6)]

    async def async_others() -> AsyncIterator[int]:
        for other in others:
            yield other

    source = async_others() if asynchronous else others
    error = await refused(made(2, past(whole[:5])), source, 4)
    assert isinstance(error, ItemsError)
    (found,) = await taken(made(), [77])
    for told in (f"item {at} of", "l[3]", whole[at].event.digest, found.event.digest, "ctx.rng"):
        assert told in str(error)


@pytest.mark.anyio
async def test_what_cannot_be_compared_is_not() -> None:
    whole = await taken(made(), [Opaque(), 1, Opaque()])
    again = [1, Opaque(), Opaque(), 5]
    rest = await taken(made(2, past(whole)), again, first=2)
    assert [each.item for each in rest] == again[2:]


@pytest.mark.anyio
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_source_that_has_become_shorter(asynchronous: bool) -> None:
    whole = await taken(made(), numbers(6))
    source = async_numbers(3) if asynchronous else numbers(3)
    error = await refused(made(2, past(whole[:5])), source, 4)
    assert isinstance(error, ItemsError)
    assert "5 items of the stream l[3] had been taken" in str(error)
    assert "gave 3" in str(error)


@pytest.mark.anyio
async def test_a_state_behind_the_last_item_leaves_nothing_to_take_again() -> None:
    where = journal()
    whole = await taken(made(2, where=where), Counter(EVERY + 9))
    digests = [each.event.digest for each in whole[:EVERY]]
    behind = Past(digests, whole[EVERY - 1].event.source, EVERY - 1)
    async with running(made(2, behind, where), Counter(EVERY + 9)) as subject:
        with pytest.raises(ItemsError, match="is gone"):
            await subject.take(EVERY - 1)
    rest = await taken(made(2, behind, where), Counter(EVERY + 9), EVERY)
    assert events(rest) == events(whole[EVERY:])


@pytest.mark.anyio
async def test_states_that_fail() -> None:
    class Wrong(Counter):
        def state_dict(self) -> dict[str, Any]:
            raise StopIteration("no state")

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("no load")

    class Unkept(Counter):
        def state_dict(self) -> dict[str, Any]:
            return {"file": Opaque()}

    where = journal()
    for kind, expected, told in (
        (Wrong, ResourceError, "StopIteration: no state"),
        (Unkept, UnencodableValue, "the source of l[3]: state_dict()"),
    ):
        async with running(made(2), kind()) as subject:
            for index in range(EVERY - 1):
                assert await subject.take(index) is not None
            with pytest.raises(expected) as caught:
                await subject.take(EVERY - 1)
            assert told in str(caught.value)
    whole = await taken(made(2, where=where), Counter(EVERY + 9))
    before = past(whole[: EVERY + 5])
    error = await refused(made(2, before, where), Wrong(), EVERY + 4)
    assert isinstance(error, ResourceError)
    assert "no load" in str(error)
    error = await refused(made(2, before), Counter(), EVERY + 4)  # another store, without the blobs
    assert isinstance(error, ResourceError)
    assert "cannot be read" in str(error)


# --- large and many --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_large_items_of_an_async_source_are_encoded_beside_the_event_loop() -> None:
    threads: list[bool] = []

    class Watching(Codec):
        def encode(self, value: Any, *, where: str = "value") -> Any:
            threads.append(threading.get_ident() == here)
            return super().encode(value, where=where)

    async def source() -> AsyncIterator[Any]:
        for each in (1, np.zeros(100_000), [{"a": np.zeros(100_000)}], "a" * 100_000, 2):
            yield each

    here = threading.get_ident()
    subject = Stream(Address("l"), 2, Watching(), journal(), Past())
    assert len(await taken(subject, source)) == 5
    # Behind one that took long, as any may on a busy machine, the next is encoded there as well.
    assert threads[:4] == [True, False, False, False]


@pytest.mark.parametrize(
    ("item", "large"),
    [
        (1, False),
        ("a" * 100, False),
        ([1] * 100_000, True),
        ([[b"a" * 100_000]], True),
        ({"a": np.zeros(10)}, False),
        ({"a": np.zeros(10_000)}, True),
        (Opaque(), False),
    ],
)
def test_what_is_large(item: Any, large: bool) -> None:
    assert pulled.is_large(item) is large


@pytest.mark.anyio
@pytest.mark.parametrize("source", [lambda: range(20_000), lambda: async_numbers(20_000)])
async def test_many_items_are_dropped_once_taken(source: Any) -> None:
    async with running(made(4), source) as subject:
        before = sys.getallocatedblocks()
        for index in range(20_000):
            assert await subject.take(index) is not None
        assert sys.getallocatedblocks() - before < 20_000


@pytest.mark.anyio
async def test_cancelled_before_its_thread_begins_it_closes_what_was_opened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At once, and in silence: there is no pull to wait for."""
    source, opened = Counter(), anyio.Event()

    async def over() -> Any:
        opened.set()
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
        return source

    subject = made()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(subject.run, over)
    assert source.closed == 1
    assert not caplog.records

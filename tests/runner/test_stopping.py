"""Being stopped, cancelled and told to save, whatever is being done at that moment.

A signal is sent by a stage, so it comes when the test says. Nothing here waits out a grace period
of more than a moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Retry, WorkflowBuilder
from kitchen.history.history import History
from kitchen.runner import cancelling
from kitchen.runner.feeding import stream
from store import MemoryStore, open_store
from tests.runner.running import (
    Box,
    Killed,
    done,
    done_async,
    flow,
    log,
    of_type,
    python,
    script,
    types,
)

SOON = 0.05


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


class Stopping:
    """An observer that sends a signal once the run is going."""

    def on_facts(self, *_: Any, **__: Any) -> None:
        threading.Timer(SOON, send).start()
        self.on_facts = lambda *_, **__: None

    def on_progress(self, *_: Any, **__: Any) -> None: ...


def interrupted(workflow: Any, store: Any, grace: float = 30) -> Any:
    with pytest.raises(kitchen.RunInterrupted) as caught:
        done(workflow, store=store, grace=grace)
    assert store.verify() == []
    return caught.value.run


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


# --- within the grace period, and behind it -------------------------------------------------------


@pytest.mark.parametrize("grace", [0, SOON])
@pytest.mark.parametrize("how", ["sync", "async", "stubborn"])
def test_what_does_not_end_in_time_is_stopped_and_runs_again(
    how: str, grace: float, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """It had touched a resource, so nothing is saved, and the resume goes back to the cut."""

    def sync(ctx: Any) -> None:
        ctx.state["value"] = ctx.resources["box"].add()
        if ctx.attempt == 1:
            send()
            release.wait(60)

    async def later(ctx: Any) -> None:
        ctx.state["value"] = ctx.resources["box"].add()
        if ctx.attempt == 1:
            send()
            await anyio.sleep_forever()

    async def stubborn(ctx: Any) -> None:
        ctx.state["value"] = ctx.resources["box"].add()
        if ctx.attempt == 1:
            send()
            for _ in range(5):
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await anyio.sleep_forever()

    body = {"sync": sync, "async": later, "stubborn": stubborn}[how]

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("s", body)
        wf.stage("behind", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    store = MemoryStore()
    run = interrupted(flow(build), store, grace)
    # One that returned though it was cancelled has been committed, and is saved.
    assert run.state == ({"value": 1} if how == "stubborn" else {})
    assert ("CheckpointSaved" in types(store)) == (how == "stubborn")
    assert any("is left behind" in r.getMessage() for r in caplog.records) == (how == "sync")
    again = kitchen.resume("r", flow(build), store=store)
    assert again.state == {"value": 1, "changes": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_in_time_is_committed(number: int) -> None:
    async def body(ctx: Any) -> None:
        send(number)
        await anyio.sleep(SOON)
        ctx.state["done"] = True

    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", body)
        wf.stage("behind", lambda ctx: None)

    store = MemoryStore()
    assert interrupted(flow(build), store).state == {"done": True}
    (told,) = of_type(store, "RunInterrupted")
    assert told.event.signal == signal.Signals(number).name  # type: ignore[attr-defined]


def test_a_wait_for_another_attempt_is_not_waited_out() -> None:
    """And it is as long as it was, when the run is resumed."""
    calls: list[int] = []

    def body(ctx: Any) -> None:
        calls.append(1)
        threading.Timer(SOON, send).start()
        raise ConnectionError

    workflow, store = (
        flow(lambda wf: wf.stage("s", body, retries=Retry(1, backoff=60))),
        MemoryStore(),
    )
    interrupted(workflow, store)
    assert calls == [1]
    assert types(store)[-2:] == ["RetryScheduled", "RunInterrupted"]
    with pytest.raises(kitchen.RunInterrupted):
        kitchen.resume("r", workflow, store=store, observers=[Stopping()])
    assert calls == [1]


class Late:
    """What gives the second item only once it has been waited for in vain."""

    def __init__(self, release: threading.Event) -> None:
        self.release = release
        self.first = [True]

    def wait(self) -> None:
        if self.first and self.first.pop():
            threading.Timer(SOON, send).start()
            self.release.wait(60)

    async def wait_later(self) -> None:
        if self.first and self.first.pop():
            threading.Timer(SOON, send).start()
            await anyio.sleep_forever()

    def source(self, ctx: Any) -> Generator[int]:
        yield 0
        self.wait()
        yield 1

    async def source_later(self, ctx: Any) -> AsyncGenerator[int]:
        yield 0
        await self.wait_later()
        yield 1

    def produce(self, ctx: Any) -> int:
        if ctx.index() == 1:
            self.wait()
        return ctx.index()

    async def produce_later(self, ctx: Any) -> int:
        if ctx.index() == 1:
            await self.wait_later()
        return ctx.index()


@pytest.mark.parametrize("kind", ["source", "source_later", "produce", "produce_later"])
def test_what_waits_for_an_item_is_not_waited_for(
    kind: str, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LEAVE_SECONDS", SOON)
    monkeypatch.setattr(stream, "ABANDON_SECONDS", SOON)
    given: Any = getattr(Late(release), kind)

    def build(wf: WorkflowBuilder) -> None:
        if "produce" in kind:
            loop = wf.async_loop("l", producer=given, stop_when=lambda ctx: ctx.index() == 1)
        else:
            loop = wf.stream_loop("l", over=given)
        with loop:
            wf.stage("s", lambda ctx: ctx.append("seen", ctx.item()))

    store = MemoryStore()
    assert interrupted(flow(build), store).state == {"seen": [0]}
    assert kitchen.resume("r", flow(build), store=store).state == {"seen": [0, 1]}


def test_branches_come_to_their_end_or_are_stopped() -> None:
    def build(wf: WorkflowBuilder) -> None:
        async def quick(ctx: Any) -> None:
            if ctx.attempt == 1:
                send()
            ctx.state["quick"] = True

        async def forever(ctx: Any) -> None:
            if ctx.attempt == 1:
                await anyio.sleep_forever()
            ctx.state["forever"] = True

        with wf.parallel("p"):
            wf.stage("quick", quick)
            wf.stage("forever", forever)

    store = MemoryStore()
    interrupted(flow(build), store, SOON)
    ended = {r.path: r.type for r in log(store) if r.type in ("StageCompleted", "StageInterrupted")}
    assert ended == {"p/quick": "StageCompleted", "p/forever": "StageInterrupted"}
    assert kitchen.resume("r", flow(build), store=store).state == {"quick": True, "forever": True}
    assert [r.path for r in of_type(store, "StageCompleted")].count("p/quick") == 1


def test_a_rollback_that_hangs_is_stopped_and_called_again() -> None:
    calls: list[int] = []

    class Hangs(kitchen.Stage):
        def execute(self, ctx: Any) -> None:
            raise ValueError("broken")

        async def rollback(self, ctx: Any, error: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                send()
                await anyio.sleep_forever()
            ctx.state["undone"] = error.message

    workflow, store = flow(lambda wf: wf.stage("s", Hangs)), MemoryStore()
    interrupted(workflow, store, 0)
    with pytest.raises(kitchen.RunError, match="broken") as caught:
        kitchen.resume("r", workflow, store=store)
    assert caught.value.run.state == {"undone": "broken"}
    assert calls == [1, 1]


# --- SIGUSR1: save, and go on ---------------------------------------------------------------------


def saving_in(where: str) -> Any:
    """A run that asks for a checkpoint once, in the middle of something, and dies later, once."""
    asked, die = [True], [True]

    def work(ctx: Any) -> None:
        ctx.append("values", ctx.resources["box"].add(ctx.rng.random()))
        if asked and ctx.visit and ctx.visit[-1] == 1:
            asked.pop()
            send(signal.SIGUSR1)

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box(1))
        wf.stage("before", work)
        if where == "loop":
            with wf.loop("l", over=lambda ctx: range(4)):
                wf.stage("work", work)
        elif where == "stream":
            with wf.stream_loop("l", over=lambda ctx: iter(range(4))):
                wf.stage("work", work)
        elif where == "async_loop":
            producer = lambda ctx: ctx.rng.random()  # noqa: E731
            with wf.async_loop("l", producer=producer, stop_when=lambda ctx: ctx.index() == 3):
                wf.stage("work", work)
        else:
            with wf.parallel("p", merge={"other": "extend"}):
                with wf.branch("works"), wf.loop("l", over=lambda ctx: range(4)):
                    wf.stage("work", work)
                with wf.branch("other"), wf.loop("m", over=lambda ctx: range(4)):
                    wf.stage("other", lambda ctx: ctx.append("other", ctx.rng.random()))
        wf.stage("dies", lambda ctx: _die(die))
        wf.stage("end", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))

    return flow(build), asked, die


def _die(die: list[bool]) -> None:
    if die:
        die.pop()
        raise Killed


@pytest.mark.parametrize("where", ["loop", "stream", "async_loop", "parallel"])
def test_a_checkpoint_that_was_asked_for_is_where_a_kill_goes_back_to(where: str) -> None:
    """And nothing before it is done again."""
    workflow, asked, die = saving_in(where)
    asked.clear()
    die.clear()
    expected = done(workflow).state
    workflow, asked, die = saving_in(where)
    store = MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    (saved,) = of_type(store, "CheckpointSaved")
    assert not asked
    run = kitchen.resume("r", workflow, store=store)
    assert run.state == expected
    (rewound,) = of_type(store, "RunRewound")
    assert rewound.event.to >= saved.seq  # type: ignore[attr-defined]
    again = {(r.path, r.visit) for r in of_type(store, "StageCompleted") if r.seq > rewound.seq}
    before = {(r.path, r.visit) for r in of_type(store, "StageCompleted") if r.seq < saved.seq}
    assert not again & before
    assert store.verify() == []


def test_nothing_to_save_is_no_checkpoint() -> None:
    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", lambda ctx: send(signal.SIGUSR1))
        wf.stage("t", lambda ctx: ctx.state.update(t=1))

    store = MemoryStore()
    assert done(flow(build), store=store).state == {"t": 1}
    assert "CheckpointSaved" not in types(store)


def test_a_checkpoint_that_cannot_be_saved_is_told_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unsavable(Box):
        def state_dict(self) -> Any:
            raise RuntimeError("on fire")

    def body(ctx: Any) -> None:
        ctx.resources["box"].add()
        send(signal.SIGUSR1)

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Unsavable())
        wf.stage("s", body)
        wf.stage("t", lambda ctx: ctx.state.update(t=ctx.resources["box"].changes))

    assert done(flow(build)).state == {"t": 1}
    assert any("the checkpoint that was asked for failed" in r.getMessage() for r in caplog.records)


SAVING = """
import sys
import kitchen

class Box:
    def __init__(self):
        self.value = 1.0
    def state_dict(self):
        return {"value": self.value}
    def load_state_dict(self, state):
        self.value = state["value"]

def work(ctx):
    box = ctx.resources["box"]
    box.value = box.value * 0.5 + ctx.index()
    print("worked", ctx.index(), flush=True)
    sys.stdin.readline()
    ctx.append("values", box.value)

@kitchen.workflow
def saving(wf):
    wf.resource("box", lambda ctx: Box())
    with wf.loop("l", over=lambda ctx: range(4)), wf.parallel("p"):
        wf.stage("work", work)
        wf.stage("other", lambda ctx: None)

if __name__ == "__main__":
    kitchen.run(saving, store="k.db", run_id="r", if_exists="resume")
"""


def test_killed_behind_a_checkpoint_that_a_signal_asked_for(tmp_path: Path) -> None:
    """As a batch system does it: a warning first, then the end."""
    file = script(tmp_path, SAVING)
    process = python([file], tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        for index in range(2):
            assert process.stdout.readline() == f"worked {index}\n"
            if index == 1:
                process.send_signal(signal.SIGUSR1)
                assert process.stderr.readline() == "\n"
                assert "SIGUSR1: saving a checkpoint" in process.stderr.readline()
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline() == "worked 2\n"
    finally:
        process.kill()
        process.communicate()
    again = python([file], tmp_path)
    out, _ = again.communicate("\n" * 4, timeout=60)
    assert again.returncode == 0
    assert out == "worked 2\nworked 3\n"
    with open_store(tmp_path / "k.db") as store:
        assert History(store, "r").state_at()["values"] == [0.5, 1.25, 2.625, 4.3125]
        assert store.verify() == []


# --- kitchen.cancel -------------------------------------------------------------------------------

WAITING = """
import sys, time
from contextlib import contextmanager
import anyio
import kitchen

@contextmanager
def opened(ctx):
    yield 1
    print("closed", flush=True)

async def wait(ctx):
    print("waiting", flush=True)
    await anyio.sleep_forever()

@kitchen.workflow
def waiting(wf):
    wf.resource("r", opened, stateful=False)
    wf.stage("before", lambda ctx: ctx.state.update(before=1))
    with wf.parallel("p"):
        wf.stage("wait", wait)
        wf.stage("other", lambda ctx: None)

if __name__ == "__main__":
    try:
        kitchen.run(waiting, store="k.db", run_id="r", if_exists="resume")
    except kitchen.RunCancelled as error:
        print("told", error.run.status, dict(error.run.state), flush=True)
"""


def test_cancelled_from_another_process(tmp_path: Path) -> None:
    file = script(tmp_path, WAITING)
    process = python([file], tmp_path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "waiting\n"
        assert kitchen.cancel("r", store=tmp_path / "k.db") == "cancelled"
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert out == "closed\ntold cancelled {'before': 1}\n", errors
    with open_store(tmp_path / "k.db") as store:
        (told,) = of_type(store, "RunCancelled")
        assert f"pid {os.getpid()}" in told.event.by  # type: ignore[attr-defined]
        assert History(store, "r").status == "cancelled"
        assert store.verify() == []
    assert not list(tmp_path.glob("*.cancel-*"))
    again = python([file], tmp_path)
    assert again.communicate(timeout=60)[0] == "told cancelled {'before': 1}\n"


def _failed(store: Any) -> Any:
    def body(ctx: Any) -> None:
        raise ValueError("no")

    workflow = flow(lambda wf: wf.stage("s", body))
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    return workflow


def _crashed(store: Any) -> Any:
    def body(ctx: Any) -> None:
        raise Killed

    workflow = flow(lambda wf: wf.stage("s", body))
    with pytest.raises(Killed):
        done(workflow, store=store)
    return workflow


def _interrupted(store: Any) -> Any:
    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", lambda ctx: send())
        wf.stage("t", lambda ctx: None)

    interrupted(flow(build), store)
    return flow(build)


@pytest.mark.parametrize("ended", [_failed, _crashed, _interrupted])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_run_that_nobody_executes(ended: Any, kind: str, tmp_path: Path) -> None:
    with MemoryStore() if kind == "memory" else open_store(tmp_path / "k.db") as store:
        workflow = ended(store)
        assert kitchen.cancel("r", store=store) == "cancelled"
        assert kitchen.cancel("r", store=store) == "cancelled"
        assert types(store).count("RunCancelled") == 1
        with pytest.raises(kitchen.RunCancelled, match=r"was cancelled at seq .* by pid"):
            kitchen.resume("r", workflow, store=store)
        with pytest.raises(kitchen.RunCancelled) as caught:
            done(workflow, store=store, if_exists="resume")
        assert caught.value.run.status == "cancelled"
        assert types(store)[-1] == "RunCancelled"
        assert store.verify() == []


def test_a_completed_run_stays_completed() -> None:
    store = MemoryStore()
    done(flow(lambda wf: wf.stage("s", lambda ctx: None)), store=store)
    assert kitchen.cancel("r", store=store) == "completed"
    assert types(store)[-1] == "RunCompleted"


def test_a_run_that_is_not_there() -> None:
    with pytest.raises(kitchen.UnknownRun):
        kitchen.cancel("r", store=MemoryStore())


def test_a_request_that_was_left_by_mistake_is_taken_away(tmp_path: Path) -> None:
    with open_store(tmp_path / "k.db") as store:
        file = cancelling.ask(store, "r", "somebody")
        assert file is not None
        assert (
            done(flow(lambda wf: wf.stage("s", lambda ctx: None)), store=store).status
            == "completed"
        )
        assert not file.exists()


# --- cancelled by its host ------------------------------------------------------------------------


def _in_stage(wf: WorkflowBuilder, wait: Any) -> None:
    wf.stage("s", wait)


def _in_branch(wf: WorkflowBuilder, wait: Any) -> None:
    with wf.parallel("p"):
        wf.stage("s", wait)
        wf.stage("t", lambda ctx: ctx.state.update(t=1))


def _in_over(wf: WorkflowBuilder, wait: Any) -> None:
    with wf.loop("l", over=wait):
        wf.stage("s", lambda ctx: None)


def _in_predicate(wf: WorkflowBuilder, wait: Any) -> None:
    with wf.conditional(wait, name="c"):
        wf.stage("s", lambda ctx: None)


def _in_factory(wf: WorkflowBuilder, wait: Any) -> None:
    wf.resource("r", wait, stateful=False)
    wf.stage("s", lambda ctx: None)


def _in_stream(wf: WorkflowBuilder, wait: Any) -> None:
    async def source(ctx: Any) -> AsyncGenerator[int]:
        if await wait(ctx):
            yield 1

    with wf.stream_loop("l", over=source):
        wf.stage("s", lambda ctx: None)


def _in_producer(wf: WorkflowBuilder, wait: Any) -> None:
    with wf.async_loop("l", producer=wait, stop_when=lambda ctx: True):
        wf.stage("s", lambda ctx: None)


def _in_rollback(wf: WorkflowBuilder, wait: Any) -> None:
    class Undone(kitchen.Stage):
        def execute(self, ctx: Any) -> None:
            raise ValueError("no")

        async def rollback(self, ctx: Any, error: Any) -> None:
            await wait(ctx)

    wf.stage("s", Undone, on_error="skip")


def _in_retry(wf: WorkflowBuilder, wait: Any) -> None:
    async def body(ctx: Any) -> None:
        if not wait.began.is_set():
            wait.began.set()
            raise ConnectionError

    wf.stage("s", body, retries=Retry(1, backoff=0.3, jitter=0))


def _in_block(wf: WorkflowBuilder, wait: Any) -> None:
    with wf.timeout(60, name="most"):
        wf.stage("s", wait)


HOSTED = [
    _in_stage, _in_branch, _in_over, _in_predicate, _in_factory, _in_stream, _in_producer,
    _in_rollback, _in_retry, _in_block,
]  # fmt: skip


class Wait:
    """Waits for ever the first time, once it has said so."""

    def __init__(self) -> None:
        self.began = anyio.Event()

    async def __call__(self, ctx: Any) -> Any:
        if not self.began.is_set():
            self.began.set()
            await anyio.sleep_forever()
        return [1]


@pytest.mark.anyio
@pytest.mark.parametrize("where", HOSTED, ids=lambda w: w.__name__.strip("_"))
async def test_the_host_cancels_it_in_the_middle(where: Any) -> None:
    """Everything is closed, nothing is recorded of it, and a resume goes on."""
    closed: list[int] = []
    wait, store = Wait(), MemoryStore()

    @contextlib.asynccontextmanager
    async def opened(ctx: Any) -> AsyncGenerator[Box]:
        yield Box()
        closed.append(1)

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", opened)
        wf.stage("before", lambda ctx: ctx.state.update(value=ctx.resources["box"].add()))
        where(wf, wait)
        wf.stage("end", lambda ctx: ctx.state.update(changes=ctx.resources["box"].changes))

    workflow = flow(build)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: done_async(workflow, store=store))
            await wait.began.wait()
            tasks.cancel_scope.cancel()
    assert closed == [1]
    assert History(store, "r").status in ("crashed", "running")
    with anyio.fail_after(20):
        run = await kitchen.resume_async("r", workflow, store=store)
    assert run.state["value"] == 1
    assert run.state["changes"] == 1
    assert store.verify() == []

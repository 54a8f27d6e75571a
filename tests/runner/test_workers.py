"""Stage bodies in worker processes: what goes in, what comes back, how they end.

Rules: what a body gives in a worker is compared with what it gives here, over the same attempt. A
process is known to be gone when its pidfd says so.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from kitchen.errors import BlobLost, WorkerLost, WorkflowError
from kitchen.log.journal import Journal
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, Raw, StatePut
from kitchen.machine.state import Cell, Delta
from kitchen.runner import randomness
from kitchen.runner.attempt import Attempt
from kitchen.runner.config import ConfigMap
from kitchen.runner.context import Context
from kitchen.runner.declared import initial_state, state_fields
from kitchen.runner.resources import LiveResources
from kitchen.runner.scope import Scope, loop_variables
from kitchen.runner.secret import Secret
from kitchen.runner.threads import Threads, waker
from kitchen.runner.workers.attempts import Answer, Workers, packed
from kitchen.runner.workers.messages import check_not_importing
from kitchen.workflow.retry import Retry
from store import MemoryStore
from tests.runner import worker_bodies as bodies
from tests.runner.running import ROOT, flow

AT = Address("epochs/s", (1,))
ALONE = Address("alone")

pytestmark = pytest.mark.anyio


def nothing(ctx: Any) -> None:
    """What the nodes run, where only their names count."""


def never(ctx: Any) -> list[int]:
    return []


class Bench:
    """A run without an event loop of its own: a scope, and attempts in it."""

    def __init__(self, config: Any = None, state_type: Any = None, **workflow: Any) -> None:
        def author(wf: Any) -> None:
            with wf.loop("epochs", over=never):
                wf.stage("s", nothing)
            wf.stage("alone", nothing)

        self.workflow = flow(author, state=state_type, **workflow)
        program = compile_workflow(self.workflow.ir)
        self.journal = Journal(MemoryStore(), "r", program)
        self.codec = Codec.for_types(*(t for t in (state_type,) if t is not None))
        self.threads = Threads()
        self.progress: list[Any] = []
        reserved = loop_variables(program.loops)
        self.scope = Scope(
            workflow=self.workflow,
            journal=self.journal,
            config=ConfigMap({}) if config is None else config,
            pristine=None,
            codec=self.codec,
            seed=42,
            adapters={},
            live=LiveResources(),
            fields=state_fields(state_type, reserved),
            reserved=reserved,
            on_progress=lambda *told: self.progress.append(told),
            items={Address("epochs"): self.items(["zero", {"x": [1, 2]}])},
        )
        self.data: dict[str, Cell] = {
            key: Cell(raw) for key, raw in initial_state(state_type, self.codec).items()
        }
        self.attempt: Attempt

    def items(self, items: list[Any]) -> list[Any]:
        """As a body sees them."""
        encoded = [self.codec.encode(item) for item in items]
        return [self.codec.decode(text, blobs.__getitem__) for text, blobs in encoded]

    def put(self, key: str, value: Any) -> None:
        text, blobs = self.codec.encode(value)
        for each in blobs.values():
            self.journal.store.blobs.put(each)
        self.data[key] = Cell(Raw(text))

    async def run(
        self,
        body: Any,
        address: Address = ALONE,
        *,
        options: Mapping[str, Any] | None = None,
        wants: Any = None,
        writes: Any = None,
    ) -> Answer:
        self.begin(address, writes)
        workers = Workers(self.scope, self.threads)
        return await workers.run(self.attempt, self.data, writes, body, options or {}, wants)

    def begin(self, address: Address = ALONE, writes: Any = None) -> Attempt:
        fetch = self.journal.fetch
        self.attempt = Attempt(address, 2, self.data, self.codec, fetch, "stage", writes)
        return self.attempt

    def here(self, body: Any, address: Address = ALONE, options: Any = None) -> tuple[Any, ...]:
        """What the body does to an attempt in this process: metrics, then the effects."""
        attempt = self.begin(address)
        body(
            Context(
                self.scope, attempt, self.codec.decode(self.codec.encode(options or {}).json, fetch)
            )
        )
        return attempt.finish()

    def there(self, answer: Answer) -> tuple[Any, ...]:
        """The same, of an attempt that was in a worker."""
        return (*self.attempt.take_metrics(), *answer.effects)

    def value(self, answer: Answer, key: str) -> Any:
        """What was put."""
        (found,) = (e for e in answer.effects if isinstance(e, StatePut) and e.key == key)
        return self.codec.decode(found.value, answer.blobs.__getitem__, frozen=False)


def fetch(digest: str) -> bytes:
    raise AssertionError(digest)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.threads.end()


# --- the same as here -----------------------------------------------------------------------------


async def test_state_and_metrics_come_back_as_from_a_body_here() -> None:
    bench = Bench(bodies.Config(), bodies.State)
    bench.data["losses"] = Cell(Raw(b"[1.0]"), [Delta("append", Raw(b"[2.0]"))])
    answer = await bench.run(bodies.work)
    assert answer.failure is None
    assert bench.there(answer) == bench.here(bodies.work)
    assert [told[1:] for told in bench.progress] == [(1, 2)] * 2
    bench.threads.end()


async def test_a_stage_sees_where_it_is_as_here(bench: Bench) -> None:
    bench.scope.config = ConfigMap({"rate": 0.1})
    bench.put("before", 1)
    answer = await bench.run(bodies.seen, AT, options={"scale": 0.5})
    assert answer.failure is None
    there = bench.there(answer)
    assert there == bench.here(bodies.seen, AT, {"scale": 0.5})
    assert bench.value(answer, "seen")["item"] == {"x": [1, 2]}


async def test_what_is_not_to_be_had_says_so(bench: Bench) -> None:
    bench.put("list", [1])
    answer = await bench.run(bodies.refused, writes=("found",))
    found = bench.value(answer, "found")
    assert found["adapters"].startswith("WorkflowError: a stage with process=True has no adapters")
    assert found["resources"] == found["peek"]
    assert found["peek"].startswith("ResourceError: a stage with process=True has no resources")
    kinds = {name: text.partition(":")[0] for name, text in found.items()}
    assert kinds == {
        "adapters": "WorkflowError",
        "resources": "ResourceError",
        "peek": "ResourceError",
        "unknown": "UnknownKey",
        "loop": "UnknownKey",
        "frozen": "FrozenValue",
        "option": "UnknownKey",
        "writes": "StateError",
        "unencodable": "UnencodableValue",
        "stop": "StateError",
    }


async def test_an_async_body_runs_in_the_same_kind_of_event_loop(
    bench: Bench, anyio_backend: str
) -> None:
    answer = await bench.run(bodies.asynchronous)
    assert bench.value(answer, "library") == anyio_backend


@pytest.mark.parametrize("body", [bodies.Adding(5).execute, partial(bodies.plus, 5)])
async def test_a_body_may_be_whatever_pickles(bench: Bench, body: Any) -> None:
    assert bench.value(await bench.run(body), "sum") == 5


async def test_large_values_go_both_ways(bench: Bench) -> None:
    given = np.arange(200_000, dtype=np.float32)
    bench.put("in", given)
    answer = await bench.run(bodies.blobs)
    assert answer.blobs
    assert np.array_equal(bench.value(answer, "out"), given * 2)


async def test_a_blob_that_is_lost_is_told_as_here(bench: Bench, monkeypatch: Any) -> None:
    bench.put("in", np.zeros(200_000))

    def lost(_digest: str) -> bytes:
        raise BlobLost("it is gone", hint="look elsewhere")

    monkeypatch.setattr(bench.journal, "fetch", lost)
    answer = await bench.run(bodies.blobs)
    assert isinstance(answer.error, BlobLost)
    assert answer.failure is not None
    assert (answer.failure.message, answer.failure.hint) == ("it is gone", "look elsewhere")


async def test_global_generators_are_seeded_if_the_workflow_says_so() -> None:
    bench = Bench(seed_globals=True)
    numbers = bench.value(await bench.run(bodies.global_numbers), "numbers")
    randomness.seed_globals(randomness.derive(42, ALONE))
    (put,) = bench.here(bodies.global_numbers)
    assert numbers == bench.codec.decode(put.value, fetch)
    bench.threads.end()


async def test_each_attempt_has_a_process_of_its_own(bench: Bench) -> None:
    calls = [bench.value(await bench.run(bodies.counts_calls), "calls") for _ in range(2)]
    assert calls == [1, 1]


async def test_items_that_cannot_be_encoded_are_pickled_or_refused_when_read(bench: Bench) -> None:
    bench.scope.items[Address("epochs")] = [0, bodies.Adding]
    answer = await bench.run(bodies.fails, AT)
    assert isinstance(answer.error, bodies.Own)
    bench.scope.items[Address("epochs")] = [0, lambda: 1]
    assert isinstance((await bench.run(bodies.fails, AT)).error, bodies.Own)
    answer = await bench.run(bodies.seen, AT, options={"scale": 1})
    assert answer.failure is not None
    assert answer.failure.type == "ItemsError"


async def test_a_config_that_was_changed_is_an_error() -> None:
    bench = Bench(bodies.Config())
    answer = await bench.run(bodies.changes_config)
    assert answer.failure is not None
    assert answer.failure.message == "the config was changed in place"
    bench.threads.end()


async def test_a_secret_goes_along_and_is_not_told() -> None:
    bench = Bench(bodies.Config(key=Secret("hunter2hunter2")))
    answer = await bench.run(bodies.secret)
    assert bench.value(answer, "length") == 14
    assert answer.failure is not None
    assert answer.failure.message == "refused: ***"
    assert "hunter2" not in answer.failure.traceback
    bench.threads.end()


# --- failures -------------------------------------------------------------------------------------


async def test_an_exception_comes_back_with_its_cause_and_its_traceback(bench: Bench) -> None:
    wants = Retry(3, on=bodies.Own).wants
    answer = await bench.run(bodies.fails, wants=wants)
    error, failure = answer.error, answer.failure
    assert isinstance(error, bodies.Own)
    assert error.code == 7
    assert isinstance(error.__cause__, KeyError)
    assert failure is not None
    assert failure.type == "tests.runner.worker_bodies.Own"
    assert "raise Own(7) from error" in failure.traceback
    assert "KeyError: 'missing'" in failure.traceback
    assert "kitchen/runner" not in failure.traceback
    assert failure.traceback.strip() in error.__notes__[0]
    assert answer.wanted
    assert [e.key for e in answer.effects if isinstance(e, StatePut)] == ["half"]
    assert [metric.name for metric in bench.attempt.take_metrics()] == ["before"]


async def test_the_policy_is_asked_of_an_exception_that_does_not_pickle(bench: Bench) -> None:
    answer = await bench.run(bodies.fails_stubbornly, wants=Retry(1, on=bodies.Stubborn).wants)
    assert answer.error is None
    assert answer.wanted
    assert answer.failure is not None
    assert answer.failure.message == "1 and 2"
    assert not (await bench.run(bodies.fails, wants=Retry(1, on=OSError).wants)).wanted


async def test_a_cause_that_does_not_pickle_is_told_in_text(bench: Bench) -> None:
    error = (await bench.run(bodies.fails_over_something_stubborn)).error
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RuntimeError)
    assert str(error.__cause__) == "Stubborn: 1 and 2"


async def test_a_body_that_exits_has_raised(bench: Bench) -> None:
    answer = await bench.run(bodies.exits)
    assert isinstance(answer.error, SystemExit)
    assert answer.error.code == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (bodies.dies, "alone ended with code 5 before it had answered"),
        (bodies.is_killed, "alone was killed by SIGKILL"),
        (bodies.dies_while_a_child_lives, "alone ended with code 6 before it had answered"),
    ],
)
async def test_a_worker_that_dies_says_how(bench: Bench, body: Any, said: str) -> None:
    with pytest.raises(WorkerLost) as caught:
        await bench.run(body)
    assert caught.value.message == f"the worker process of {said}"


@pytest.mark.parametrize("body", [bodies.closes_everything, bodies.goes_silent])
async def test_a_worker_that_closes_its_connection_is_lost(
    bench: Bench, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitchen.runner.workers.process.LAST_SECONDS", 1)
    with pytest.raises(WorkerLost, match="the worker process of alone has closed its connection"):
        await bench.run(body)


async def test_what_was_said_before_the_death_is_kept(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorkerLost):
        await bench.run(bodies.dies)
    assert [metric.name for metric in bench.attempt.take_metrics()] == ["before"]
    assert capsys.readouterr().out == "last words\n"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((lambda ctx: None, None, None), "the body of the stage 'x', which has process=True"),
        ((nothing, lambda: 1, None), "the config of the stage 'x'"),
        ((nothing, None, type("Here", (), {})), "the state type of the stage 'x'"),
    ],
)
async def test_what_would_not_be_found_is_refused_before(parts: Any, said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        packed("x", *parts)


async def test_what_is_not_in_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]  # which is in no file itself where tests run on all cores
    monkeypatch.setattr(main, "__file__", __file__, raising=False)
    monkeypatch.setattr(main, "body", nothing, raising=False)
    monkeypatch.setattr(nothing, "__module__", "__main__")
    monkeypatch.setattr(nothing, "__qualname__", "body")
    assert packed("x", nothing, None, None)["body"]
    monkeypatch.delattr(main, "__file__")
    with pytest.raises(WorkflowError, match="it is not in a file"):
        packed("x", nothing, None, None)


# --- signals, cancellation, death -----------------------------------------------------------------


async def test_signals_to_all_leave_it_alone_and_not_what_it_starts(bench: Bench) -> None:
    answer = await bench.run(bodies.signals_itself)
    assert bench.value(answer, "child") == -signal.SIGTERM


async def test_a_thread_that_the_body_left_does_not_keep_it(bench: Bench) -> None:
    assert bench.value(await bench.run(bodies.leaves_a_thread), "left") is True


def gone(handle: int) -> bool:
    """Whether the process of a pidfd is dead; waits for that a while."""
    return bool(select.select([handle], [], [], 30)[0])


class Watched(dict[str, int]):
    """Processes, by a pidfd of each."""

    def __del__(self) -> None:
        for handle in self.values():
            os.close(handle)


async def begun(bench: Bench) -> Watched:
    """The processes that `waits` has named, once it has."""
    told, wake = anyio.Event(), waker()

    def on_progress(_address: Address, pid: float, child: float | None) -> None:
        assert child is not None
        handles["pid"], handles["child"] = os.pidfd_open(int(pid)), os.pidfd_open(int(child))
        wake(told.set)

    handles = Watched()
    bench.scope.on_progress = on_progress
    await told.wait()
    return handles


async def test_cancelling_kills_it_and_what_it_has_started(bench: Bench) -> None:
    scope = anyio.CancelScope()
    handles: dict[str, int] = {}
    dead: list[bool] = []

    async def call() -> None:
        with scope:
            try:
                await bench.run(bodies.waits)
            finally:
                dead.append(bool(select.select([handles["pid"]], [], [], 0)[0]))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        handles = await begun(bench)
        scope.cancel()
    assert scope.cancelled_caught
    assert dead == [True]  # before the cancellation went on
    assert gone(handles["child"])


async def test_it_is_gone_when_the_event_loop_has_ended(anyio_backend: str) -> None:
    handles: list[Watched] = []

    async def main() -> None:
        bench = Bench()
        async with anyio.create_task_group() as group:
            group.start_soon(bench.run, bodies.waits)
            handles.append(await begun(bench))
            raise ValueError("the end")

    with pytest.raises(ExceptionGroup):
        await anyio.to_thread.run_sync(lambda: anyio.run(main, backend=anyio_backend))
    assert all(gone(handle) for handle in handles[0].values())


def script(text: str, folder: Path, **named: str) -> Path:
    """A script over a bench, whose body is `body`."""
    path = folder / "script.py"
    head = """
        import sys
        import anyio
        import msgspec
        from tests.runner import worker_bodies as bodies
        from tests.runner.test_workers import Bench
    """
    path.write_text(textwrap.dedent(head) + textwrap.dedent(text))
    return path


def start(path: Path, *given: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(path), *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=path.parent,
    )


def test_it_dies_with_the_run(tmp_path: Path, anyio_backend: str) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    path = script(
        f"""
        if __name__ == "__main__":
            options = {{"file": {str(told)!r}}}
            run = lambda: Bench().run(bodies.waits_in_a_file, options=options)
            anyio.run(run, backend={anyio_backend!r})
        """,
        tmp_path,
    )
    with start(path) as process:
        handle = os.pidfd_open(int(told.read_text()))
        process.kill()
        assert gone(handle)
        os.close(handle)


def test_a_body_in_the_script_that_was_started(tmp_path: Path, anyio_backend: str) -> None:
    path = script(
        f"""
        class Own(Exception):
            pass

        class State(msgspec.Struct):
            name: str = ""

        def body(ctx):
            ctx.state.name = __name__
            raise Own("mine")

        async def main():
            bench = Bench(state_type=State)
            answer = await bench.run(body)
            print(bench.value(answer, "name"), type(answer.error) is Own, answer.failure.type)
            print("mp_main" in answer.failure.traceback)

        print("imported as", __name__)
        if __name__ == "__main__":
            anyio.run(main, backend={anyio_backend!r})
        """,
        tmp_path,
    )
    with start(path) as process:
        out, err = process.communicate(timeout=60)
    assert err == ""
    assert out.splitlines() == [
        "imported as __main__",
        "imported as __mp_main__",
        "__mp_main__ True __main__.Own",
        "False",
    ]


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    path = script(
        """
        from kitchen.runner.workers.messages import check_not_importing

        def body(ctx):
            pass

        async def main():
            answer = await Bench().run(body)
            print(answer.failure.type, answer.failure.message)

        check_not_importing()  # as kitchen.run does
        anyio.run(main)
        """,
        tmp_path,
    )
    with start(path) as process:
        out, _ = process.communicate(timeout=60)
    assert out == (
        f"WorkflowError {path} starts a run wherever it is imported, and a worker process "
        "imports it\n"
    )
    check_not_importing()


# --- what is written ------------------------------------------------------------------------------


async def test_prints_and_records_reach_the_run(
    bench: Bench, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert (await bench.run(bodies.talks)).failure is None
    out, err = capsys.readouterr()
    assert out == "printed: grüße\nby bytes\n"
    assert err.startswith("to stderr\n")
    assert "UserWarning: warned" in err
    records = [(r.name, r.levelname, r.getMessage().partition("\n")[0]) for r in caplog.records]
    assert records == [
        ("kitchen.run.alone", "WARNING", "logged 1"),
        ("elsewhere", "ERROR", "trouble"),
    ]
    assert "ValueError: inner" in caplog.records[1].getMessage()


async def test_what_is_written_to_the_files_harms_nothing(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await bench.run(bodies.writes_garbage)
    assert bench.value(answer, "fine") is True
    out = capfd.readouterr().out
    assert "from a child\n" in out
    assert "from a fork\n" in out
    assert out.count("garbage") == 10

"""Resources: opened by every kind of factory, closed in reverse whatever happens, saved and loaded.

What a factory, a `state_dict`, a `load_state_dict`, a close or a lost blob does wrong is told with
the resource's name, where, and what to do next; and the run can be resumed.
"""

from __future__ import annotations

import logging
import sqlite3
import warnings
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import kitchen
from kitchen import Resource
from kitchen.runner.resources import NotResumableWarning
from store import MemoryStore, open_store
from tests.runner.running import (
    Box,
    Dying,
    Killed,
    done,
    done_async,
    failure,
    flow,
    log,
    of_type,
    types,
)

CLOSED: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CLOSED.clear()


class Door:
    """A context manager that gives something else."""

    def __init__(self, name: str = "door", error: Exception | None = None) -> None:
        self.name = name
        self.error = error

    def __enter__(self) -> str:
        return f"through {self.name}"

    def __exit__(self, *_: object) -> None:
        CLOSED.append(self.name)
        if self.error is not None:
            raise self.error


class AsyncDoor(Door):
    async def __aenter__(self) -> str:
        await anyio.lowlevel.checkpoint()
        return f"async through {self.name}"

    async def __aexit__(self, *_: object) -> None:
        await anyio.lowlevel.checkpoint()
        CLOSED.append(self.name)


@contextmanager
def generated(ctx: Any) -> Generator[str]:
    yield "generated"
    CLOSED.append("generated")


@asynccontextmanager
async def generated_async(ctx: Any) -> AsyncGenerator[str]:
    await anyio.lowlevel.checkpoint()
    yield "generated async"
    CLOSED.append("generated async")


async def awaited(ctx: Any) -> str:
    await anyio.lowlevel.checkpoint()
    return "awaited"


class Calls:
    def __call__(self, ctx: Any) -> str:
        return "called"


def with_one(factory: Any, body: Any = None, *, stateful: bool | None = False) -> Any:
    def build(wf: Any) -> None:
        wf.resource("it", factory, stateful=stateful)
        wf.stage("s", body or (lambda ctx: ctx.state.update(got=ctx.resources["it"])))

    return flow(build)


@pytest.mark.parametrize(
    ("factory", "got", "closed"),
    [
        (lambda ctx: "plain", "plain", []),
        (awaited, "awaited", []),
        (Calls(), "called", []),
        (lambda ctx: Door(), "through door", ["door"]),
        (lambda ctx: AsyncDoor(), "async through door", ["door"]),
        (generated, "generated", ["generated"]),
        (generated_async, "generated async", ["generated async"]),
        (lambda ctx: None, None, []),
    ],
)
@pytest.mark.anyio
async def test_every_kind_of_factory(factory: Any, got: Any, closed: list[str]) -> None:
    run = await done_async(with_one(factory))
    assert run.state["got"] == got
    assert closed == CLOSED


def doors(body: Any, error: Exception | None = None) -> Any:
    """Two doors at the top, one in a block, one after it."""

    def build(wf: Any) -> None:
        wf.resource("a", lambda ctx: Door("a"), stateful=False)
        wf.resource("b", lambda ctx: AsyncDoor("b"), stateful=False)
        with wf.loop("turns", over=lambda ctx: range(2)):
            wf.resource("c", lambda ctx: Door(f"c{ctx.item()}", error), stateful=False)
            wf.stage("s", body)
        wf.resource("d", lambda ctx: Door("d"), stateful=False)
        wf.stage("last", lambda ctx: CLOSED.append("last"))

    return flow(build)


def test_closed_at_the_end_of_their_block_the_last_first() -> None:
    store = MemoryStore()
    done(doors(lambda ctx: None), store=store)
    assert CLOSED == ["c0", "c1", "last", "d", "b", "a"]
    told = [record.event.names for record in of_type(store, "ResourcesClosed")]  # type: ignore[attr-defined]
    assert [tuple(names) for names in told] == [("c",), ("c",), ("a", "b", "d")]


def test_a_closed_resource_is_not_there_any_more() -> None:
    def build(wf: Any) -> None:
        with wf.loop("turns", over=lambda ctx: range(1)):
            wf.resource("inner", lambda ctx: Door(), stateful=False)
            wf.stage("s", lambda ctx: ctx.resources["inner"])
        wf.stage("after", lambda ctx: ctx.resources["inner"])

    told = failure(flow(build))
    assert told.type == "UnknownResource"
    assert "no resource 'inner' is open here" in told.message


@pytest.mark.parametrize("how", ["fails", "dies", "interrupted"])
def test_closed_whatever_happens(how: str) -> None:
    def body(ctx: Any) -> None:
        if how == "fails":
            raise ValueError("boom")
        if how == "dies":
            raise Killed
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    expected = {"fails": kitchen.RunError, "dies": Killed, "interrupted": kitchen.RunInterrupted}
    with pytest.raises(expected[how]):
        done(doors(body))
    assert CLOSED == ["c0", "b", "a"]


@pytest.mark.anyio
async def test_closed_when_the_host_cancels() -> None:
    async def body(ctx: Any) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    store = MemoryStore()
    with anyio.CancelScope() as scope:
        await done_async(doors(body), store=store)
    assert scope.cancelled_caught
    assert CLOSED == ["c0", "b", "a"]
    CLOSED.clear()
    run = await kitchen.resume_async("r", doors(lambda ctx: None), store=store)
    assert run.status == "completed"


@asynccontextmanager
async def with_a_task_group(ctx: Any) -> AsyncGenerator[str]:
    """As clients of remote services do: tasks live as long as the session."""
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            yield "session"
            tasks.cancel_scope.cancel()
    finally:
        CLOSED.append("session")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.anyio
async def test_a_resource_may_hold_a_task_group(fails: bool) -> None:
    def body(ctx: Any) -> None:
        if fails:
            raise ValueError("boom")

    if fails:
        with pytest.raises(kitchen.RunError, match="boom"):
            await done_async(with_one(with_a_task_group, body))
    else:
        await done_async(with_one(with_a_task_group, body))
    assert CLOSED == ["session"]


# --- what goes wrong ------------------------------------------------------------------------------


class Transaction:
    """Commits if it is left in peace, as a database's does."""

    told: Any = "nothing yet"

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        Transaction.told = error
        return True


@pytest.mark.parametrize("fails", [False, True])
def test_a_context_manager_is_told_that_the_run_failed_and_cannot_undo_it(fails: bool) -> None:
    def body(ctx: Any) -> None:
        if fails:
            raise ValueError("boom")

    workflow = with_one(lambda ctx: Transaction(), body)
    if fails:
        with pytest.raises(kitchen.RunError, match="boom"):
            done(workflow)
        assert isinstance(Transaction.told, ValueError)
    else:
        done(workflow)
        assert Transaction.told is None


def test_an_error_at_closing_fails_the_run_and_all_are_closed() -> None:
    store = MemoryStore()
    with pytest.raises(kitchen.RunError) as caught:
        done(doors(lambda ctx: None, OSError("stuck")), store=store)
    assert caught.value.run.failure.type == "ResourceError"
    assert "resource 'c' could not be closed: OSError: stuck" in str(caught.value)
    assert CLOSED == ["c0", "b", "a"]


def test_an_error_at_closing_does_not_hide_why_the_run_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def body(ctx: Any) -> None:
        raise ValueError("the cause")

    with (
        caplog.at_level(logging.ERROR, "kitchen.run"),
        pytest.raises(kitchen.RunError, match="ValueError: the cause"),
    ):
        done(doors(body, OSError("stuck")))
    assert "could not be closed" in caplog.text
    assert CLOSED == ["c0", "b", "a"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_factory_that_fails_and_is_mended(kind: Any) -> None:
    broken = [True]

    def factory(ctx: Any) -> str:
        if broken:
            raise kind("no such server")
        return "connected"

    workflow, store = with_one(factory), MemoryStore()
    with pytest.raises(kitchen.RunError) as caught:
        done(workflow, store=store)
    assert "no such server" in str(caught.value)
    assert "failed at it" in str(caught.value)
    if kind is ValueError:
        assert "factory of resource 'it' failed" in str(caught.value)
        assert "resume the run" in str(caught.value)
    broken.clear()
    assert kitchen.resume("r", workflow, store=store).state["got"] == "connected"


def test_a_factory_that_fails_on_resume_says_which() -> None:
    die, broken = Dying(0), list[bool]()

    def factory(ctx: Any) -> Box:
        if broken:
            raise OSError("no such server")
        return Box()

    def build(wf: Any) -> None:
        wf.resource("first", lambda ctx: Box())
        with wf.loop("turns", over=lambda ctx: range(1)):
            wf.resource("second", factory)
            wf.stage("s", lambda ctx: die())

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    broken.append(True)
    with pytest.raises(kitchen.RunError, match=r"failed at turns\[0\]/second\n.*no such server"):
        kitchen.resume("r", workflow, store=store)
    broken.clear()
    assert kitchen.resume("r", workflow, store=store).status == "completed"


def saved_then_killed(make: Any, store: Any) -> Any:
    """A run that died behind a checkpoint of one resource; the workflow resumes it."""
    die = Dying(0)

    def build(wf: Any) -> None:
        wf.resource("it", make)
        wf.stage("use", lambda ctx: ctx.resources["it"].use())
        wf.checkpoint()
        wf.stage("die", lambda ctx: die())
        wf.stage("note", lambda ctx: ctx.state.update(held=ctx.resources.peek("it").held))

    workflow = flow(build)
    with pytest.raises(Killed):
        done(workflow, store=store)
    return workflow


class Holding:
    """Hands out what it holds, and takes it back."""

    refuses = False

    def __init__(self, held: Any = None) -> None:
        self.held = held

    def use(self) -> None:
        self.held = HELD

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.refuses:
            raise KeyError("heads")
        self.held = state["held"]


HELD: dict[str, Any] = {
    "nested": {"deep": {"array": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "int keys": {0: "a", 7: np.float64(0.5)},
    "bytes": b"\x00\xff" * 3,
    "big": np.arange(30_000, dtype=np.int16),
    "scalars": [1, 2.5, float("nan"), True, None, "text", 2**70],
    "tuple": (1, (2, 3)),
    "empty": {},
    "zero": np.zeros((0, 3)),
}


def test_a_state_dict_of_every_kind_comes_back(tmp_path: Path) -> None:
    with open_store(tmp_path / "k.db") as store:
        workflow = saved_then_killed(lambda ctx: Holding(), store)
        found: Any = kitchen.resume("r", workflow, store=store).state["held"]
        assert store.verify() == []
    assert list(found) == list(HELD)
    for was, now in [
        (HELD["nested"]["deep"]["array"], found["nested"]["deep"]["array"]),
        (HELD["big"], found["big"]),
        (HELD["zero"], found["zero"]),
    ]:
        assert (was.dtype, was.shape, was.tobytes()) == (now.dtype, now.shape, now.tobytes())
    assert repr(found["int keys"]) == repr(HELD["int keys"])
    assert found["bytes"] == HELD["bytes"]
    assert repr(list(found["scalars"])) == repr(HELD["scalars"])
    assert found["tuple"] == (1, (2, 3))


def test_a_load_state_dict_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    workflow = saved_then_killed(lambda ctx: Holding(), store)
    monkeypatch.setattr(Holding, "refuses", True)
    with pytest.raises(kitchen.RunError) as caught:
        kitchen.resume("r", workflow, store=store)
    said = str(caught.value)
    assert "failed at it\n" in said
    assert "load_state_dict() of resource 'it' (Holding) failed: KeyError: 'heads'" in said
    assert "has the class changed" in said
    monkeypatch.undo()
    assert kitchen.resume("r", workflow, store=store).status == "completed"


def test_a_lost_blob_says_where_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "k.db"
    with open_store(path) as store:
        workflow = saved_then_killed(lambda ctx: Holding(), store)
    folder = tmp_path / "k.db.blobs"
    folder.rename(tmp_path / "elsewhere")
    with open_store(path) as store:
        head = store.head("r")
        with pytest.raises(kitchen.BlobLost) as caught:
            kitchen.resume("r", workflow, store=store)
        assert store.head("r") == head
        assert "checkpoint of resource 'it' at event" in str(caught.value)
        assert "k.db.blobs back beside the store" in str(caught.value)
    if folder.exists():
        folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    with open_store(path) as store:
        assert kitchen.resume("r", workflow, store=store).status == "completed"


def test_a_state_dict_that_cannot_be_kept_is_told_with_the_place_in_it() -> None:
    class Odd(Box):
        def state_dict(self) -> Any:
            return {"a": {"b": [object()]}}

    def build(wf: Any) -> None:
        wf.resource("odd", lambda ctx: Odd())
        wf.checkpoint()

    told = failure(flow(build))
    assert told.type == "UnencodableValue"
    assert "resource 'odd': state_dict()['a']['b'][0]" in told.message


def test_a_state_dict_that_raises_names_the_resource() -> None:
    class Odd(Box):
        def state_dict(self) -> Any:
            raise RuntimeError("on fire")

    def build(wf: Any) -> None:
        wf.resource("odd", lambda ctx: Odd())
        wf.checkpoint()

    told = failure(flow(build))
    assert (told.type, told.message) == (
        "ResourceError",
        "state_dict() of resource 'odd' (Odd) failed: RuntimeError: on fire",
    )


class Itself(Door):
    def __enter__(self) -> Any:
        return self


def test_declared_stateful_but_it_is_not() -> None:
    store = MemoryStore()
    with pytest.raises(kitchen.RunError, match="declared stateful, but a Itself has no state_dict"):
        done(with_one(lambda ctx: Itself("it"), stateful=True), store=store)
    assert CLOSED == ["it"]
    assert "ResourceOpened" not in types(store)


def test_stateful_no_more_on_resume() -> None:
    die, kind = Dying(0), [True]

    def build(wf: Any) -> None:
        wf.resource("it", lambda ctx: Box() if kind else object())
        wf.stage("s", lambda ctx: die())

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    kind.clear()
    with pytest.raises(kitchen.RunError, match="'it' was stateful when it was opened"):
        kitchen.resume("r", workflow, store=store)


def test_what_cannot_be_resumed_is_warned_of_once_at_its_first_touch() -> None:
    def build(wf: Any) -> None:
        wf.resource("it", lambda ctx: object())
        wf.resource("fine", lambda ctx: object(), stateful=False)
        wf.resource("box", lambda ctx: Box())
        wf.stage("peeks", lambda ctx: (ctx.resources.peek("it"), None)[1])
        wf.stage("one", touches)
        wf.stage("two", touches)

    def touches(ctx: Any) -> None:
        _ = [ctx.resources[name] for name in ("it", "fine", "box")]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        done(flow(build))
    ours = [str(w.message) for w in told if w.category is NotResumableWarning]
    assert len(ours) == 1
    assert "resource 'it' (object) has no state_dict()" in ours[0]
    assert told[0].filename == __file__


def test_an_unknown_resource_says_what_is_near() -> None:
    told = failure(with_one(lambda ctx: 1, lambda ctx: ctx.resources["itt"]))
    assert told.type == "UnknownResource"
    assert "did you mean 'it'?" in told.hint


def test_a_key_and_a_name_are_the_same() -> None:
    key: Resource[Box] = Resource("box", lambda ctx: Box(4))

    def body(ctx: Any) -> None:
        assert ctx.resources[key] is ctx.resources["box"] is ctx.resources.peek(key)
        assert key in ctx.resources
        assert "nothing" not in ctx.resources

    def build(wf: Any) -> None:
        wf.resource(key)
        wf.stage("s", body)

    assert done(flow(build)).status == "completed"


def test_a_resource_is_no_part_of_the_log() -> None:
    store = MemoryStore()
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        done(with_one(lambda ctx: connection, lambda ctx: 0), store=store)
    assert "sqlite" not in "".join(record.payload for record in store.read("r")).split("ir")[0]
    assert [record.type for record in log(store)].count("ResourceOpened") == 1

"""The verbs: run, resume and their awaitable twins; who may resume what, and what is told if not.

1. `if_exists="resume"` makes one call safe to repeat; another config or seed is an error.
2. A completed run is returned as it is, a failed one gets a fresh budget.
3. The code is found by what the log recorded; where that fails, the error says what to type.
4. A changed workflow goes on where every recorded event is legal on it, and nowhere else.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import kitchen
from kitchen.history.history import History
from store import MemoryStore, open_store
from tests.runner.running import (
    Box,
    Dying,
    Killed,
    done,
    done_async,
    flow,
    of_type,
    python,
    script,
    single,
    types,
)


class Config(msgspec.Struct):
    epochs: int = 3
    rate: float = 0.5


def nothing(ctx: Any) -> None:
    pass


# --- run ------------------------------------------------------------------------------------------


def test_what_a_run_is() -> None:
    run = kitchen.run(
        single(lambda ctx: ctx.state.update(a=1), config=Config), store=MemoryStore(), seed=3
    )
    assert run.id.startswith("w-20")
    assert run.status == "completed"
    assert run.state.a == run.state["a"] == 1
    assert run.config == Config()
    assert run.metrics == {}
    assert repr(run) == f"<Run {run.id!r}: completed>"


def test_the_id_is_taken() -> None:
    store = MemoryStore()
    done(single(nothing), store=store)
    with pytest.raises(kitchen.RunExists, match="'r' already") as caught:
        done(single(nothing), store=store)
    assert 'if_exists="resume"' in str(caught.value)


def test_if_exists_has_two_values() -> None:
    with pytest.raises(ValueError, match='"error" or "resume", not \'skip\''):
        done(single(nothing), if_exists="skip")


def test_what_is_no_workflow() -> None:
    with pytest.raises(TypeError, match=r"did you forget @kitchen\.workflow"):
        kitchen.run(nothing, store=MemoryStore())  # type: ignore[arg-type]


def test_the_same_call_again_resumes_and_then_returns_what_is_there() -> None:
    die, ran = Dying(0), list[str]()

    def build(wf: Any) -> None:
        wf.stage("a", lambda ctx: ran.append("a"))
        wf.stage("b", lambda ctx: (ran.append("b"), die(), ctx.state.update(done=1))[2])

    workflow, store = flow(build), MemoryStore()

    def call() -> Any:
        return done(workflow, store=store, if_exists="resume")

    with pytest.raises(Killed):
        call()
    assert call().state == {"done": 1}
    head = store.head("r")
    assert call().state == {"done": 1}
    assert kitchen.resume("r", workflow, store=store).state == {"done": 1}
    assert ran == ["a", "b", "b"]
    assert store.head("r") == head, "a completed run is left as it is"


def test_another_config_or_seed_shows_the_fields() -> None:
    store = MemoryStore()
    done(single(nothing, config=Config), {"epochs": 4}, store=store, seed=1)
    with pytest.raises(kitchen.RunMismatch) as caught:
        done(single(nothing, config=Config), {"rate": 0.7}, store=store, seed=2, if_exists="resume")
    said = str(caught.value)
    assert "config.epochs: recorded 4, asked for 3" in said
    assert "config.rate: recorded 0.5, asked for 0.7" in said
    assert "seed: recorded 1, asked for 2" in said
    with pytest.raises(kitchen.RunMismatch, match="of workflow 'w', not 'other'"):
        kitchen.run(
            kitchen.workflow(name="other")(lambda wf: wf.stage("s", nothing)),
            store=store,
            run_id="r",
            if_exists="resume",
        )


def test_a_mapping_config_that_differs_shows_the_entries() -> None:
    store = MemoryStore()
    done(single(nothing), {"a": 1, "b": {"c": 2}}, store=store)
    with pytest.raises(kitchen.RunMismatch) as caught:
        done(single(nothing), {"a": 1, "b": {"c": 3}, "d": 4}, store=store, if_exists="resume")
    said = str(caught.value)
    assert "config.b" in said
    assert "config.d: recorded None, asked for 4" in said
    assert "config.a" not in said


def test_a_failed_run_can_be_resumed_again_and_again() -> None:
    left = [3]

    def body(ctx: Any) -> None:
        left[0] -= 1
        if left[0]:
            raise ValueError(f"{left[0]} left")
        ctx.state.attempt = ctx.attempt

    workflow, store = single(body), MemoryStore()
    with pytest.raises(kitchen.RunError, match="2 left"):
        done(workflow, store=store)
    with pytest.raises(kitchen.RunError, match="1 left"):
        kitchen.resume("r", workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).state == {"attempt": 3}
    assert [r.event.after for r in of_type(store, "RunResumed")] == ["failure"] * 2  # type: ignore[attr-defined]


def test_an_unknown_run() -> None:
    with pytest.raises(kitchen.UnknownRun, match="'nope'"):
        kitchen.resume("nope", single(nothing), store=MemoryStore())


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(kitchen.StoreError):
        kitchen.resume("r", single(nothing), store=tmp_path / "k.db")
    assert not (tmp_path / "k.db").exists()


def test_the_store_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN_STORE", str(tmp_path / "mine.db"))
    kitchen.run(single(nothing), run_id="r")
    with open_store(tmp_path / "mine.db") as store:
        assert History(store, "r").status == "completed"


def test_only_rank_0_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    for rank in ("1", "7"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(kitchen.KitchenError, match=f"RANK={rank}: rank 0 owns the run"):
            done(single(nothing), store=store)
        with pytest.raises(kitchen.KitchenError):
            done(single(nothing), store=store, if_exists="resume")
    assert store.runs() == []
    monkeypatch.setenv("RANK", "0")
    assert done(single(nothing), store=store).status == "completed"


# --- event loops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "resume"])
@pytest.mark.anyio
async def test_inside_a_running_loop_the_twin_is_named(verb: str) -> None:
    call: Any = getattr(kitchen, verb)
    with pytest.raises(kitchen.KitchenError) as caught:
        call("r" if verb == "resume" else single(nothing), store=MemoryStore())
    assert "runs an event loop" in str(caught.value)
    assert f"await kitchen.{verb}_async(" in str(caught.value)


@pytest.mark.anyio
async def test_the_twins() -> None:
    die, store = Dying(0), MemoryStore()
    workflow = single(lambda ctx: (die(), ctx.state.update(a=1))[1])
    with pytest.raises(Killed):
        await done_async(workflow, store=store)
    run = await kitchen.resume_async("r", workflow, store=store)
    assert run.state == {"a": 1}


@pytest.mark.anyio
async def test_two_runs_beside_each_other_in_one_loop() -> None:
    ready = [anyio.Event(), anyio.Event()]

    def meeting(mine: int) -> Any:
        async def body(ctx: Any) -> None:
            ready[mine].set()
            await ready[1 - mine].wait()
            ctx.state.me = mine

        return single(body)

    store, runs = MemoryStore(), dict[int, Any]()

    async def one(number: int) -> None:
        runs[number] = await kitchen.run_async(meeting(number), store=store, run_id=f"r{number}")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, 0)
            tasks.start_soon(one, 1)
    assert [runs[number].state["me"] for number in (0, 1)] == [0, 1]


@pytest.mark.anyio
async def test_one_run_twice_in_one_process_is_refused() -> None:
    store, entered, go = MemoryStore(), anyio.Event(), anyio.Event()

    async def body(ctx: Any) -> None:
        entered.set()
        await go.wait()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(done_async_into, body, store)
            await entered.wait()
            with pytest.raises(kitchen.RunHeld):
                await kitchen.resume_async("r", single(body), store=store)
            go.set()
    assert History(store, "r").status == "completed"


async def done_async_into(body: Any, store: Any) -> None:
    await done_async(single(body), store=store)


def test_a_task_of_the_host_that_is_cancelled_is_no_failure_of_the_stage() -> None:
    store = MemoryStore()

    async def host() -> None:
        entered = asyncio.Event()

        async def body(ctx: Any) -> None:
            entered.set()
            await asyncio.sleep(1000)

        task = asyncio.create_task(done_async(single(body), store=store))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(host())
    assert types(store) == ["RunStarted", "StageStarted"]
    assert kitchen.resume("r", single(nothing), store=store).status == "completed"


# --- finding the code -----------------------------------------------------------------------------

MODULE = """
import kitchen

class Clock:
    def now(self):
        return "noon"

def provider():
    return {"clock": Clock()}

FAILS = "fails"

def body(ctx):
    import os
    if os.path.exists(FAILS):
        raise ValueError("not yet")
    ctx.state["time"] = ctx.adapters["clock"].now()

@kitchen.workflow(adapters=provider)
def training(wf):
    wf.stage("s", body)
"""

SCRIPT = (
    MODULE
    + """
if __name__ == "__main__":
    kitchen.run(training, store="k.db", run_id="r")
"""
)


def test_resume_finds_code_and_adapters_in_a_new_process(tmp_path: Path) -> None:
    script(tmp_path, MODULE, "mycode.py")
    (tmp_path / "fails").touch()
    first = python(
        ["-c", "import kitchen, mycode; kitchen.run(mycode.training, store='k.db', run_id='r')"],
        tmp_path,
    )
    assert "not yet" in first.communicate()[1]
    (tmp_path / "fails").unlink()
    second = python(
        ["-c", "import kitchen; print(dict(kitchen.resume('r', store='k.db').state))"], tmp_path
    )
    out, errors = second.communicate()
    assert errors == ""
    assert out == "{'time': 'noon'}\n"


def test_resume_of_a_script_says_what_to_type_and_that_works(tmp_path: Path) -> None:
    path = script(tmp_path, SCRIPT, "train.py")
    (tmp_path / "fails").touch()
    assert "not yet" in python([path], tmp_path).communicate()[1]
    (tmp_path / "fails").unlink()
    with open_store(tmp_path / "k.db") as store, pytest.raises(kitchen.NotResumable) as caught:
        kitchen.resume("r", store=store)
    said = str(caught.value)
    assert "train.py" in said
    assert "kitchen resume r --workflow train.py:training" in said
    assert "kitchen.resume('r', training)" in said
    by_name = "import kitchen; print(kitchen.resume('r', 'train.py:training', store='k.db').status)"
    assert python(["-c", by_name], tmp_path).communicate() == ("completed\n", "")


def test_code_that_is_gone_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "module_that_goes_away"
    script(tmp_path, MODULE, f"{name}.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails").touch()
    module = __import__(name)
    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        done(module.training, store=store)
    del sys.modules[name]
    (tmp_path / f"{name}.py").unlink()
    with pytest.raises(kitchen.NotResumable, match=f"{name}:training") as caught:
        kitchen.resume("r", store=store)
    assert "--workflow module:name" in str(caught.value)
    assert types(store)[-1] == "RunFailed", "nothing was appended"


# --- a changed workflow ---------------------------------------------------------------------------


def staged(*names: str, die: Dying | None = None, **declared: Any) -> Any:
    def build(wf: Any) -> None:
        for name in names:
            body = (lambda ctx: die and die()) if name == "die" else (lambda ctx: None)
            wf.stage(name, body)

    return flow(build, **declared)


def killed_at_die(*names: str) -> MemoryStore:
    store = MemoryStore()
    with pytest.raises(Killed):
        done(staged(*names, die=Dying(0)), store=store)
    return store


def test_a_node_added_ahead_goes_on_and_is_told() -> None:
    store = killed_at_die("a", "die")
    run = kitchen.resume("r", staged("a", "die", "b"), store=store)
    assert run.status == "completed"
    (changed,) = of_type(store, "WorkflowChanged")
    assert "added: b" in changed.event.differences  # type: ignore[attr-defined]
    assert [r.path for r in of_type(store, "StageCompleted")] == ["a", "die", "b"]
    assert [node.name for node in History(store, "r").ir.body] == ["a", "die", "b"]
    head = store.head("r")
    kitchen.resume("r", staged("a", "die", "b"), store=store)
    assert store.head("r") == head


def test_a_node_removed_ahead_goes_on() -> None:
    store = killed_at_die("a", "die", "b")
    assert kitchen.resume("r", staged("a", "die"), store=store).status == "completed"
    assert "removed: b" in of_type(store, "WorkflowChanged")[0].event.differences  # type: ignore[attr-defined]


def test_a_node_removed_behind_names_the_event() -> None:
    store = killed_at_die("a", "b", "die")
    head = store.head("r")
    with pytest.raises(kitchen.WorkflowChanged) as caught:
        kitchen.resume("r", staged("a", "die"), store=store)
    said = str(caught.value)
    assert (
        "recorded: event 4 is StageStarted at b" in said or "event 5 is StageStarted at b" in said
    )
    assert "removed: b" in said
    assert "now: the workflow has no 'b'" in said
    assert store.head("r") == head
    assert kitchen.resume("r", staged("a", "b", "die"), store=store).status == "completed"


def test_a_node_added_behind_is_refused_too() -> None:
    store = killed_at_die("a", "die")
    with pytest.raises(kitchen.WorkflowChanged, match="added: new"):
        kitchen.resume("r", staged("new", "a", "die"), store=store)


def test_the_seed_globals_flag_is_part_of_the_workflow() -> None:
    store = killed_at_die("a", "die")
    kitchen.resume("r", staged("a", "die", seed_globals=True), store=store)
    (changed,) = of_type(store, "WorkflowChanged")
    assert "seed_globals" in "".join(changed.event.differences)  # type: ignore[attr-defined]


def test_a_completed_run_is_returned_whatever_became_of_the_workflow() -> None:
    store = MemoryStore()
    done(staged("a", "b"), store=store)
    head = store.head("r")
    assert kitchen.resume("r", staged("other"), store=store).status == "completed"
    assert store.head("r") == head


def test_a_config_type_that_no_longer_fits_is_told() -> None:
    class Before(msgspec.Struct):
        epochs: int = 3

    class After(msgspec.Struct):
        epochs: str = "three"

    store = MemoryStore()
    with pytest.raises(Killed):
        done(staged("die", die=Dying(0), config=Before), store=store)
    with pytest.raises(kitchen.ConfigError, match="does not fit After any more"):
        kitchen.resume("r", staged("die", config=After), store=store)


def test_a_rewind_on_a_changed_workflow() -> None:
    """The folded past is that of the new workflow, the resources those of the cut."""

    def build_with(die: Dying, *, more: bool) -> Any:
        def build(wf: Any) -> None:
            wf.resource("box", lambda ctx: Box())
            wf.stage("one", lambda ctx: ctx.state.update(v=ctx.resources["box"].add()))
            wf.checkpoint()
            wf.stage("two", lambda ctx: ctx.state.update(v=ctx.resources["box"].add()))
            wf.stage("die", lambda ctx: die())
            if more:
                wf.stage("more", lambda ctx: ctx.state.update(v=ctx.resources["box"].add()))

        return flow(build)

    store = MemoryStore()
    with pytest.raises(Killed):
        done(build_with(Dying(0), more=False), store=store)
    run = kitchen.resume("r", build_with(Dying(), more=True), store=store)
    assert run.state["v"] == done(build_with(Dying(), more=True)).state["v"]

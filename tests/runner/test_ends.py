"""What a new user broke: each of these ended a run wrongly, or told it wrongly, before."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import kitchen
from kitchen.history.history import History
from store import MemoryStore, open_store
from tests.runner.running import Box, Dying, Killed, done, flow, of_type, single


async def boom() -> None:
    raise ValueError("inner")


async def swallows(ctx: Any) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(boom())
    except* ValueError:
        ctx.state["swallowed"] = True


async def lets_it_out(ctx: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(boom())


def test_a_task_group_whose_child_fails_does_not_cancel_the_run() -> None:
    """Python 3.11 leaves the parent task marked as being cancelled."""
    assert done(single(swallows)).state["swallowed"]
    with pytest.raises(kitchen.RunError, match="ExceptionGroup"):
        done(single(lets_it_out))

    def build(wf: Any) -> None:
        wf.resource("r", lets_it_out)
        wf.stage("s", swallows)

    with pytest.raises(kitchen.RunError, match="factory of resource 'r' failed: ExceptionGroup"):
        done(flow(build))

    async def program() -> Any:
        return await kitchen.run_async(single(swallows), store=MemoryStore())

    assert asyncio.run(program()).status == "completed"


def test_closing_a_resource_touches_what_it_was_made_of() -> None:
    die = Dying()

    @contextmanager
    def open_inner(ctx: Any) -> Generator[str]:
        out = ctx.resources["out"]
        yield "inner"
        out.add(10)

    def build(wf: Any) -> None:
        wf.resource("out", lambda ctx: Box(1))
        with wf.loop("once", over=lambda ctx: range(1)):
            wf.resource("inner", open_inner, stateful=False)
            wf.checkpoint()
        wf.stage("die", lambda ctx: die())
        wf.stage("note", lambda ctx: ctx.state.update({"v": ctx.resources["out"].value}))

    whole = done(flow(build))
    die.at, die.calls = {0}, 0
    store = MemoryStore()
    with pytest.raises(Killed):
        done(flow(build), store=store)
    last: Any = of_type(store, "ResourceTouched")[-1].event
    assert last.name == "out"
    assert kitchen.resume("r", flow(build), store=store).state["v"] == whole.state["v"]


class Before(msgspec.Struct):
    lr: float = 0.1


class After(msgspec.Struct):
    learning_rate: float = 0.1


def test_a_renamed_config_field_is_refused_and_never_forgotten() -> None:
    die, store = Dying(0), MemoryStore()
    with pytest.raises(Killed):
        done(single(lambda ctx: die(), config=Before), {"lr": 0.5}, store=store)
    with pytest.raises(kitchen.ConfigError, match=r"(?s)recorded config does not fit After.*'lr'"):
        kitchen.resume("r", single(lambda ctx: None, config=After), store=store)


def test_a_log_whose_tail_was_cut_off_is_not_resumed(tmp_path: Path) -> None:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(5)):
            wf.stage("s", lambda ctx: ctx.increment("n"))
        wf.stage("last", lambda ctx: 1 / 0)

    path = tmp_path / "k.db"
    with pytest.raises(kitchen.RunError):
        done(flow(build), store=path)
    with open_store(path) as store:
        raw: Any = store._gate.raw
        raw.execute("DROP TRIGGER events_refuse_delete")
        raw.execute("DELETE FROM events WHERE id & 4294967295 > 10")
    with pytest.raises(kitchen.CorruptStore, match="ends at seq 10"):
        kitchen.resume("r", flow(build), store=path)


def test_a_resume_keeps_the_durability(tmp_path: Path) -> None:
    die = Dying(0)
    workflow = single(lambda ctx: die())
    with pytest.raises(Killed):
        done(workflow, store=tmp_path / "k.db", durability="power")
    with open_store(tmp_path / "k.db") as store:
        assert store.durability == "process"
        kitchen.resume("r", workflow, store=store)
        assert store.durability == "power"
        assert History(store, "r").started.durability == "power"


@pytest.mark.parametrize(
    "given", [{"run_id": ""}, {"run_id": "a\nb"}, {"if_exists": "maybe"}, {"durability": "some"}]
)
def test_arguments_that_cannot_be_used(given: Any) -> None:
    with pytest.raises(kitchen.ArgumentError, match=f"{next(iter(given))[:3]}|id"):
        kitchen.run(single(lambda ctx: None), store=MemoryStore(), **given)


def test_a_method_of_the_state_cannot_be_hidden() -> None:
    with pytest.raises(kitchen.RunError, match=r"ctx\.state\.keys is a method"):
        done(single(lambda ctx: setattr(ctx.state, "keys", 3)))


def test_metrics_come_before_mutations_whenever_they_are_flushed() -> None:
    def body(ctx: Any) -> None:
        ctx.state["a"] = 1
        ctx.record_metric("m", 1)

    store = MemoryStore()
    done(single(body), store=store)
    kinds = [record.type for record in store.read("r")]
    assert kinds.index("MetricRecorded") < kinds.index("StatePut")

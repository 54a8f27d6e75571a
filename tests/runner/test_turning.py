"""Sending a run another way (`resume(at=)`): where it may go, with which edits, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import kitchen
from kitchen.log.journal import Journal
from kitchen.log.live import live
from kitchen.machine.chart import compile_workflow
from kitchen.runner.limits import executed
from store import MemoryStore, open_store
from tests.runner.running import Box, Dying, Killed, done, flow, of_type, types


class Inner(msgspec.Struct):
    rate: float = 0.1
    name: str = "a"


class Config(msgspec.Struct):
    steps: int = 3
    inner: Inner = msgspec.field(default_factory=Inner)
    key: kitchen.Secret | None = None


class State(msgspec.Struct):
    seen: list[Any] = []
    offset: int = 0


def see(ctx: Any) -> None:
    ctx.append("seen", (ctx.config.inner.rate, ctx.state.offset, ctx.rng.random()))


def build(wf: Any) -> None:
    with wf.loop("steps", over=lambda ctx: range(ctx.config.steps)):
        wf.stage("see", see)


TYPED = flow(build, config=Config, state=State)


def completed(workflow: Any = TYPED, config: Any = None) -> MemoryStore:
    store = MemoryStore()
    done(workflow, config, store=store)
    return store


def behind(store: Any, visit: int) -> int:
    """The seq at which that visit of `see` was completed."""
    return next(r.seq for r in of_type(store, "StageCompleted") if r.visit == (visit,))


@pytest.mark.parametrize("at", [0, -1, 10**6, True, 2.5])
def test_a_seq_that_is_not_there_is_refused(at: Any) -> None:
    store = completed()
    head = store.head("r")
    verbs: list[Any] = [kitchen.resume, kitchen.fork, kitchen.plan_resume]
    for verb in verbs:
        with pytest.raises(kitchen.ArgumentError, match=f"events 1 to {head}"):
            verb("r", workflow=TYPED, store=store, at=at)
    assert store.head("r") == head


@pytest.mark.parametrize(
    ("edits", "error", "told"),
    [
        ({"config": {"step": 5}}, kitchen.ConfigError, "steps"),
        ({"config": {"inner": {"rat": 5}}}, kitchen.ConfigError, "rate"),
        ({"config": {"steps": "many"}}, kitchen.ConfigError, "steps"),
        ({"config": 5}, kitchen.ConfigError, "mapping"),
        ({"state": {"ofset": 5}}, kitchen.UnknownKey, "offset"),
        ({"state": {"offset": "far"}}, kitchen.StateError, "offset"),
        ({"state": {"steps_index": 1}}, kitchen.ArgumentError, "steps_index"),
        ({"seed": "7"}, kitchen.ArgumentError, "whole number"),
        ({"seed": True}, kitchen.ArgumentError, "whole number"),
    ],
)
def test_edits_that_do_not_fit_are_refused_before_anything(
    edits: dict[str, Any], error: Any, told: str
) -> None:
    store = completed()
    head, at = store.head("r"), behind(store, 1)
    with pytest.raises(error, match=told):
        kitchen.resume("r", TYPED, store=store, at=at, **edits)
    with pytest.raises(error, match=told):
        kitchen.fork("r", workflow=TYPED, store=store, at=at, new_run_id="f", **edits)
    assert store.head("r") == head
    assert len(store.runs()) == 1


def test_edits_without_at_are_refused() -> None:
    store = completed()
    with pytest.raises(kitchen.ArgumentError, match="at="):
        kitchen.resume("r", TYPED, store=store, seed=5)


def test_edits_hold_from_right_behind_on() -> None:
    store = completed()
    run = kitchen.resume(
        "r", TYPED, store=store, at=behind(store, 0), state={"offset": 9},
        config={"inner": {"rate": 0.5}},
    )  # fmt: skip
    assert [tuple(seen[:2]) for seen in run.state["seen"]] == [(0.1, 0), (0.5, 9), (0.5, 9)]
    assert (run.config.inner.rate, run.config.inner.name) == (0.5, "a")
    same = kitchen.run(TYPED, {"inner": {"rate": 0.5}}, store=store, run_id="r", if_exists="resume")
    assert same.state == run.state
    with pytest.raises(kitchen.RunMismatch, match="rate"):
        kitchen.run(TYPED, store=store, run_id="r", if_exists="resume")


def test_a_secret_in_the_config_stays_out_of_the_log_and_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "k.db"
    hidden = "hunter2-hunter2"
    with open_store(file) as store:
        done(TYPED, Config(key=kitchen.Secret(hidden)), store=store)
        edits: Any = {"config": {"inner": {"rate": 0.7}, "key": kitchen.Secret(f"{hidden}-new")}}
        at = behind(store, 1)
        plan = kitchen.plan_resume("r", TYPED, store=store, at=at, **edits)
        with pytest.raises(kitchen.ConfigError, match="keeps no secret") as raised:
            kitchen.fork("r", workflow=TYPED, store=store, at=at, **edits)
        assert hidden not in str(raised.value)
        slower = {"inner": {"rate": 0.7}}
        new = kitchen.fork("r", workflow=TYPED, store=store, at=at, config=slower)
        logged = "".join(r.payload for run in ("r", new) for r in store.read(run))
    assert hidden not in logged
    assert hidden not in repr(plan)
    assert all(
        hidden.encode() not in each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()
    )


def test_a_cancelled_run_is_forked_and_not_turned() -> None:
    die, store = Dying(1), MemoryStore()

    def dying(ctx: Any) -> None:
        die()

    workflow = flow(lambda wf: (wf.stage("a", dying), wf.stage("b", dying)))
    with pytest.raises(Killed):
        done(workflow, store=store)
    kitchen.cancel("r", store=store)
    with pytest.raises(kitchen.NotResumable, match="cancelled"):
        kitchen.resume("r", workflow, store=store, at=3)
    new = kitchen.fork("r", store=store, at=None)
    assert kitchen.resume(new, workflow, store=store).status == "completed"


def test_a_run_that_another_holds_is_forked_and_not_turned() -> None:
    store = completed()
    head = store.head("r")
    with store.lease("r"):
        with pytest.raises(kitchen.RunHeld):
            kitchen.resume("r", TYPED, store=store, at=3)
        new = kitchen.fork("r", store=store, at=behind(store, 1))
    assert kitchen.resume(new, TYPED, store=store).status == "completed"
    assert store.head("r") == head


def test_every_seq_has_a_cut_that_is_said() -> None:
    """Half of a commit is none, nor is the end of a run."""
    store = completed()
    events = {r.seq: r.type for r in kitchen.history("r", store=store).events}
    for at, kind in events.items():
        plan = kitchen.plan_resume("r", TYPED, store=store, at=at)
        assert plan.cut <= at
        assert plan.asked == at
        assert not events[plan.cut].startswith("State")
        if kind == "StateAppended":
            assert plan.cut < at
            assert "being committed" in plan.why
        if kind == "RunCompleted":
            assert "was over" in plan.why


def test_back_into_what_was_superseded_and_what_counts_then() -> None:
    store = completed()
    whole = kitchen.history("r", store=store).state_at()
    old = behind(store, 2)
    kitchen.resume("r", TYPED, store=store, at=behind(store, 0), seed=5)
    assert not live(store, "r").counts(old)
    run = kitchen.resume("r", TYPED, store=store, at=old)
    assert live(store, "r").counts(old)
    assert run.state["seen"] == [tuple(each) for each in whole["seen"]]


def test_a_time_limit_begins_anew_behind_a_turn_and_in_a_fork() -> None:
    """What the process of before spent in the block is not the new way's."""
    store = MemoryStore()
    die = Dying(2)

    def body(ctx: Any) -> None:
        die()

    def limited(wf: Any) -> None:
        with wf.timeout(3600, name="most"):
            for name in "abc":
                wf.stage(name, body)

    workflow = flow(limited)
    with pytest.raises(Killed):
        done(workflow, store=store)
    at = next(r.seq for r in of_type(store, "StageCompleted"))
    kitchen.fork("r", store=store, at=at, new_run_id="f")
    die.at, die.calls = {0}, 0
    with pytest.raises(Killed):
        kitchen.resume("r", workflow, store=store, at=at)
    for run in ("r", "f"):
        journal = Journal(store, run, compile_workflow(workflow.ir))
        journal.load()
        ((address, limit),) = journal.state.core.control.limits.items()
        events = {r.seq: r for r in kitchen.history(run, store=store).events}
        assert events[limit.entered].type in ("RunRewound", "RunForked")
        spent = executed(journal, limit.entered, address)
        assert 0 <= spent <= (events[max(events)].at - events[limit.entered].at) / 1e9


def test_a_resource_and_the_items_of_before_an_edit_are_as_they_were() -> None:
    """A factory and a source that are asked again draw what they drew; what is built from the
    config is built as it was edited."""
    drawn: list[tuple[str, float, float]] = []

    def open_box(ctx: Any) -> Box:
        drawn.append(("box", ctx.rng.random(), ctx.config.rate))
        return Box(drawn[-1][1])

    def source(ctx: Any) -> Any:
        drawn.append(("source", ctx.rng.random(), ctx.config.rate))
        return (drawn[-1][1] + n for n in range(4))

    def streaming(wf: Any) -> None:
        wf.resource("box", open_box)
        with wf.stream_loop("items", over=source):
            wf.stage("take", lambda ctx: None)

    workflow, store = flow(streaming), MemoryStore()
    done(workflow, {"rate": 1}, store=store)
    at = next(r.seq for r in of_type(store, "StageCompleted"))
    kitchen.resume("r", workflow, store=store, at=at, seed=99, config={"rate": 2})
    (_, box, _), (_, first, _) = drawn[:2]
    assert drawn[2:] == [("box", box, 2), ("source", first, 1)]
    assert "RunFailed" not in types(store)


def test_a_secret_that_is_edited_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITCHEN_SECRET_KEY", "from-the-variable")

    class Keyed(msgspec.Struct):
        key: kitchen.Secret

    def build(wf: Any) -> None:
        wf.stage("use", lambda ctx: ctx.state.update(tail=ctx.config.key.reveal()[-3:]))

    workflow, store = kitchen.workflow(config=Keyed)(build), MemoryStore()
    assert kitchen.run(workflow, {"key": "the-one"}, store=store, run_id="r").state.tail == "one"
    again = kitchen.resume("r", workflow, store=store, at=2, config={"key": "the-two"})
    assert again.state.tail == "two"
    with pytest.raises(kitchen.ConfigError, match="a fork keeps no secret"):
        kitchen.fork("r", at=2, config={"key": "the-three"}, store=store, workflow=workflow)
    assert "the-" not in "".join(record.payload for record in store.read("r"))

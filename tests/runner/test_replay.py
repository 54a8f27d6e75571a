"""Replaying with execution finds nothing where there is nothing to find.

1. Every construct: the workflows of the crash matrix, whole, killed at a sample of moments and
   resumed (so behind rewinds), killed and not resumed, up to any event, and any of their nodes alone.
2. Both event loops.
3. What does not count is not executed, nor are attempts that failed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from msgspec import Raw

import kitchen
from kitchen import Resource, Retry, Stage
from kitchen.log.journal import Journal
from kitchen.machine import events as E
from kitchen.machine.chart import compile_workflow
from kitchen.machine.events import Fact
from kitchen.runner.config import begun
from kitchen.runner.replaying.rehearse import rehearse
from kitchen.workflow.ir import StageNode, walk
from store import MemoryStore, NewEvent, open_store
from tests.crash import kitchens, side_by_side
from tests.crash.test_crash_matrix import Mortal, killed, whole_run
from tests.runner import process_bodies
from tests.runner.replaying_tools import keys, ran, ran_and_killed, rehearsed
from tests.runner.running import Box, Dying, flow, of_type

ALL = kitchens.ALL + side_by_side.ALL
BOX: Resource[Box] = Resource("box", lambda ctx: Box())
every_workflow = pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)


def replayed(workflow: Any, store: Any, *, backend: str = "asyncio", **given: Any) -> Any:
    """The replay, which has found nothing."""
    replay = anyio.run(partial(rehearse, workflow, store, "r", **given), backend=backend)
    assert replay.ok, replay.first
    return replay


def counting_visits(store: Any) -> list[tuple[str, tuple[int, ...]]]:
    completed = of_type(store, "StageCompleted")
    return [(each.path, each.visit) for each in completed if each.counts]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@every_workflow
def test_a_whole_run(workflow: Any, backend: str) -> None:
    store = MemoryStore()
    kitchen.run(workflow, store=store, run_id="r", seed=7)
    kitchens.TRACE.clear()
    replay = replayed(workflow, store, backend=backend)
    assert replay.visits == replay.executed == len(counting_visits(store))
    assert replay.events == replay.until == store.head("r")
    # All that a run does of its stages is done again, and once.
    assert len(kitchens.TRACE) == len(set(kitchens.TRACE)) <= replay.executed


@every_workflow
def test_killed_and_resumed(workflow: Any) -> None:
    _, appends, _ = whole_run(workflow)
    rewound = 0
    for at in range(2, appends - 1, max(1, appends // 8)):
        store = MemoryStore()
        if killed(workflow, Mortal(store, "after", at)) is not None:
            continue
        replayed(workflow, store)
        kitchen.resume("r", workflow, store=store)
        replay = replayed(workflow, store, backend="trio")
        assert replay.visits == len(counting_visits(store))
        rewound += bool(of_type(store, "RunRewound"))
    resources = any(node.__class__.__name__ == "CheckpointNode" for _, node in walk(workflow.ir))
    assert rewound or not resources


@every_workflow
def test_up_to_any_event(workflow: Any) -> None:
    store = MemoryStore()
    kitchen.run(workflow, store=store, run_id="r", seed=7)
    for until in range(1, store.head("r"), 6):
        replay = replayed(workflow, store, until=until)
        assert replay.until == replay.events == until


@every_workflow
def test_any_node_alone(workflow: Any) -> None:
    store = MemoryStore()
    kitchen.run(workflow, store=store, run_id="r", seed=7)
    visits = counting_visits(store)
    for path, node in walk(workflow.ir):
        replay = replayed(workflow, store, only=path)
        below = [at for at, _ in visits if at == path or at.startswith(f"{path}/")]
        assert replay.visits == len(below), path
        assert not isinstance(node, StageNode) or replay.executed >= replay.visits


@pytest.mark.anyio
async def test_a_run_and_its_replay_share_an_event_loop() -> None:
    store = MemoryStore()
    await kitchen.run_async(side_by_side.every, store=store, run_id="r", seed=7)
    replay = await rehearse(side_by_side.every, store, "r")
    assert replay.ok
    assert replay.executed == 13


def test_in_a_worker_process() -> None:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("learn", process_bodies.learn, process=True)

    store = MemoryStore()
    kitchen.run(flow(build), {"rate": 0.5}, store=store, run_id="r")
    assert replayed(flow(build), store).executed == 2


# --- what is not executed -------------------------------------------------------------------------


def test_superseded_stretches_are_not_executed() -> None:
    die, ran_at = Dying(0), list[tuple[str, int]]()

    def use(ctx: Any) -> None:
        ran_at.append((ctx.path, ctx.incarnation))
        ctx.append("values", ctx.resources[BOX].add(ctx.rng.random()))

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("first", use)
        wf.checkpoint()
        wf.stage("second", use)
        wf.stage("third", lambda ctx: (use(ctx), die()))

    store = ran_and_killed(build)
    assert ran_at.count(("second", 0)) == ran_at.count(("second", 1)) == 1
    ran_at.clear()
    replay = rehearsed(build, store)
    assert replay.ok
    assert ran_at == [("first", 0), ("second", 1), ("third", 1)]
    assert (replay.visits, replay.executed) == (3, 3)


def test_only_the_attempt_that_was_committed_is_executed_under_its_number() -> None:
    attempts: list[int] = []

    def shaky(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        ctx.state["n"] = ctx.attempt
        ctx.append("values", ctx.resources[BOX].add(ctx.rng.random()))
        if ctx.attempt < 3:
            raise ConnectionError("not yet")

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("shaky", shaky, retries=Retry(3, backoff=0))

    store = ran(build)
    assert attempts == [1, 2, 3]
    attempts.clear()
    assert rehearsed(build, store).ok
    assert attempts == [3]


@pytest.mark.parametrize("whose", ["the run's", "today's"])
def test_what_must_not_happen_twice_does_not(whose: str) -> None:
    calls: list[str] = []

    def build(recorded: bool) -> Any:
        def author(wf: Any) -> None:
            once = recorded if whose == "the run's" else not recorded
            wf.stage("before", lambda ctx: calls.append("before"))
            wf.stage("pay", pay, effect="once" if once else "repeatable")
            wf.stage("behind", lambda ctx: ctx.increment("paid"))

        return author

    def pay(ctx: Any) -> None:
        calls.append("pay")
        ctx.state["paid"] = 1

    store = ran(build(True))
    calls.clear()
    replay = rehearsed(build(False), store)
    assert replay.ok
    assert calls == ["before"]
    assert replay.skipped == {'effect="once"': 1}
    assert (replay.visits, replay.executed) == (3, 2)


def test_an_effect_that_was_taken_over_from_before_a_rewind_is_not_executed() -> None:
    die, calls = Dying(0), list[str]()

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", lambda ctx: ctx.resources[BOX].add())
        wf.stage("pay", lambda ctx: (calls.append("pay"), ctx.increment("paid")), effect="once")
        wf.stage("die", lambda ctx: die())

    store = ran_and_killed(build)
    completed: list[Any] = of_type(store, "StageCompleted")
    assert [each.event.known for each in completed if each.path == "pay"] == [False, True]
    assert rehearsed(build, store).skipped == {'effect="once"': 1}
    alone = rehearsed(build, store, only="pay")
    assert (alone.visits, alone.executed) == (1, 0)
    assert calls == ["pay"]


def test_rollbacks_are_not_called_and_handled_failures_are_no_difference() -> None:
    undone: list[str] = []

    class Reserve(Stage):
        def execute(self, ctx: Any) -> None:
            ctx.state["reserved"] = ctx.resources[BOX].add()
            if ctx.state["fails"]:
                raise ValueError("full")

        def rollback(self, ctx: Any, error: Any) -> None:
            undone.append(ctx.path)
            ctx.state["reserved"] = None

    def build(wf: Any) -> None:
        wf.stage("begin", lambda ctx: ctx.state.update(fails=True))
        with wf.loop("turns", over=lambda ctx: range(2)):
            wf.resource(BOX)
            wf.stage("reserve", Reserve)
        with wf.on_error("handler"):
            wf.stage("note", lambda ctx: ctx.state.update(handled=True))

    store = ran(build)
    assert undone == ["turns/reserve"]
    replay = rehearsed(build, store)
    assert replay.ok
    assert replay.skipped == {"rollback": 1}
    assert undone == ["turns/reserve"]


def test_productions_that_chance_decides_are_not_compared() -> None:
    def produce(ctx: Any) -> Any:
        return (ctx.index(), ctx.resources["sampler"].add(ctx.state.get("n", 0)))

    def build(wf: Any) -> None:
        wf.resource("sampler", lambda ctx: Box())
        with wf.async_loop(
            "made", producer=produce, stop_when=lambda ctx: ctx.index() == 6, pacing="free"
        ):
            wf.stage("take", lambda ctx: (ctx.append("got", ctx.item()), ctx.increment("n")))

    replay = rehearsed(build, ran(build))
    assert replay.ok
    assert replay.skipped['pacing="free"'] >= 7


# --- edits and forks ------------------------------------------------------------------------------


def look(ctx: Any) -> None:
    ctx.append("seen", (ctx.run_id, ctx.idempotency_key, ctx.config.rate, ctx.rng.random()))
    ctx.append("values", ctx.resources[BOX].add(ctx.config.rate))


def looking(wf: Any) -> None:
    wf.resource(BOX)
    wf.stage("a", look)
    wf.checkpoint()
    wf.stage("b", look)
    wf.stage("c", look)


def edit(store: Any, run: str, *facts: E.Event) -> None:
    """Append what somebody asked for, to a run that nobody executes."""
    journal = Journal(store, run, compile_workflow(flow(looking).ir))
    journal.load()
    journal.write([Fact(event) for event in facts])


def seq_of(store: Any, kind: str) -> int:
    return next(record.seq for record in store.read("r") if record.type == kind)


def test_a_run_that_was_sent_another_way() -> None:
    """Config and seed are those of the moment, and what came before is not executed."""
    store = MemoryStore()
    kitchen.run(flow(looking), {"rate": 0.5}, store=store, run_id="r", seed=1)
    to = seq_of(store, "CheckpointSaved")
    config, _ = begun({"rate": 0.25}, None)
    new = E.RunEdited(config, seed=2, state={"extra": Raw(b"1")})
    edit(store, "r", E.RunRewound(to, asked=True), E.RunResumed("rewind"), new)
    run = kitchen.resume("r", flow(looking), store=store)
    assert [seen[2] for seen in run.state["seen"]] == [0.5, 0.25, 0.25]
    assert run.state["extra"] == 1
    assert replayed(flow(looking), store).executed == 3
    assert replayed(flow(looking), store, only="c").executed == 2


def test_a_fork_is_replayed_under_the_names_that_it_had() -> None:
    store = MemoryStore()
    kitchen.run(flow(looking), {"rate": 0.5}, store=store, run_id="r", seed=1)
    forked = NewEvent("RunForked", payload=E.to_json(E.RunForked("r")))
    to = seq_of(store, "CheckpointSaved")
    store.fork_run("f", "w", "r", to, [forked])
    run = kitchen.resume("f", flow(looking), store=store)
    assert [seen[0] for seen in run.state["seen"]] == ["r", "f", "f"]
    replay = anyio.run(partial(rehearse, flow(looking), store, "f"))
    assert replay.ok, replay.first
    assert replay.executed == 3


# --- nothing is written ---------------------------------------------------------------------------


def write_much(ctx: Any) -> None:
    ctx.state["large"] = bytes(200_000)
    ctx.resources[BOX].add()


class Loader(side_by_side.Loader):
    """Its state has an array, so recording where it is makes a blob."""

    def state_dict(self) -> Any:
        return {"at": self.at, "seed": np.full(9, self.seed)}


def loader(ctx: Any) -> Any:
    return Loader(0.5, 70)


def test_nothing_is_appended_or_written(tmp_path: Path) -> None:
    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("write", write_much)
        wf.checkpoint()
        with wf.stream_loop("stream", over=loader):
            wf.stage("take", lambda ctx: ctx.append("taken", ctx.item()), thread=False)

    with open_store(tmp_path / "k.db") as store:
        ran(build, store)
    before = _contents(tmp_path)
    assert any(path.startswith("k.db.blobs") for path in before)
    with open_store(tmp_path / "k.db", read_only=True) as store:
        assert rehearsed(build, store).ok
        assert not rehearsed(build_other, store).ok
    assert _contents(tmp_path) == before


def build_other(wf: Any) -> None:
    """All that it makes is new."""
    wf.resource("box", lambda ctx: Box(7))
    wf.stage("write", lambda ctx: (ctx.state.update(large=bytes([1]) * 200_000), write_much(ctx)))
    wf.checkpoint()
    with wf.stream_loop("stream", over=lambda ctx: Loader(0.25, 70)):
        wf.stage("take", lambda ctx: ctx.append("taken", bytes(100_000)), thread=False)


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if not path.name.endswith(("-shm", "-wal", ".lock"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def test_a_run_that_cannot_be_written_to_is_replayed() -> None:
    """No method that changes a store is ever called."""

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("write", write_much)
        wf.checkpoint()
        with wf.stream_loop("stream", over=loader):
            wf.stage("take", lambda ctx: ctx.append("taken", ctx.item()))

    store = ran(build)
    for name in ("create_run", "append", "save_snapshot", "prune_snapshots", "lease"):
        setattr(store, name, _refuse)
    store.blobs.put = _refuse
    replay = rehearsed(build, store)
    assert keys(replay) == []
    assert replay.executed == 71


def _refuse(*given: Any, **named: Any) -> Any:
    raise AssertionError("a replay wrote")

"""Branches side by side: who sees what, what is written when, how many run.

Who waits, waits for an event or at a barrier; the seconds there are for a hang alone.
"""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import kitchen
from kitchen.errors import StaleContext, StoreError, WorkflowError
from kitchen.machine.codec import Codec
from store import MemoryStore, NewEvent
from tests.runner.running import Box, done, done_async, failure, flow, of_type, until

SECONDS = 20


def nothing(ctx: Any) -> None: ...


def raising(error: Exception) -> Callable[[Any], None]:
    def body(ctx: Any) -> None:
        raise error

    return body


def waits(event: threading.Event) -> None:
    assert event.wait(SECONDS)


# --- what a branch sees ---------------------------------------------------------------------------


def test_a_branch_sees_the_fork_and_itself() -> None:
    committed = threading.Event()
    seen: dict[str, Any] = {}

    def look(ctx: Any) -> None:
        waits(committed)  # the sibling's write is in the log by now
        seen.update(ctx.state)

    def build(wf: Any) -> None:
        wf.stage("init", lambda ctx: ctx.state.update(shared=[1], gone=2))
        with wf.parallel("p", max_concurrency=2):
            with wf.branch("a"):
                wf.stage("a1", lambda ctx: ctx.state.update(mine=3))
                wf.stage("a2", lambda ctx: ctx.state.__delitem__("gone"))
                wf.stage("look", look)
            with wf.branch("b"):
                wf.stage("b1", lambda ctx: ctx.state.update(other=4))
                wf.stage("b2", lambda ctx: committed.set())

    run = done(flow(build))
    assert seen == {"shared": [1], "mine": 3}
    assert run.state == {"shared": [1], "mine": 3, "other": 4}


def test_no_join_no_writes() -> None:
    store = MemoryStore()

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=1):
            wf.stage("a", lambda ctx: ctx.state.update(a=1))
            wf.stage("b", raising(ValueError("no")))

    with pytest.raises(kitchen.RunError) as caught:
        done(flow(build), store=store)
    assert of_type(store, "StatePut")
    assert caught.value.run.state == {}
    assert kitchen.history("r", store=store).state_at() == {}


@pytest.mark.anyio
async def test_writes_are_applied_in_branch_order_whoever_is_first() -> None:
    """Also the order of the keys, and of what is appended."""
    order: list[int] = []

    def branch(number: int) -> Any:
        async def body(ctx: Any) -> None:
            for _ in range(chance.randrange(8)):
                await anyio.lowlevel.checkpoint()
            order.append(number)
            ctx.state[f"key{-number}"] = number
            ctx.append("all", number)
            ctx.state["last"] = number

        return body

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=5, merge={"all": "extend", "last": pick_last}):
            for number in range(5):
                wf.stage(f"s{number}", branch(number))

    workflow = flow(build)
    texts: set[bytes] = set()
    orders: set[tuple[int, ...]] = set()
    for seed in range(20):
        chance = random.Random(seed)
        order.clear()
        run = await done_async(workflow)
        orders.add(tuple(order))
        texts.add(Codec().encode(list(run.state.items())).json)
        assert run.state["all"] == list(range(5))
        assert run.state["last"] == 4
    assert len(orders) > 10
    assert len(texts) == 1


def pick_last(before: Any, values: list[Any]) -> Any:
    assert before is None
    return values[-1]


def test_a_reducer_that_raises_fails_the_parallel() -> None:
    def reducer(before: Any, values: list[Any]) -> Any:
        raise ZeroDivisionError("in a reducer")

    def build(wf: Any) -> None:
        with wf.parallel("p", merge={"k": reducer}):
            wf.stage("a", lambda ctx: ctx.state.update(k=1))
            wf.stage("b", lambda ctx: ctx.state.update(k=2))

    with pytest.raises(kitchen.RunError, match=r"failed at p\n.*in a reducer") as caught:
        done(flow(build))
    cause = caught.value.__cause__
    assert isinstance(cause, kitchen.WorkflowError)
    assert "state['k'], called where the parallel p is joined" in cause.message
    assert isinstance(cause.__cause__, ZeroDivisionError)
    assert "state['k']" in cause.__cause__.__notes__[0]


def test_what_a_branch_deleted_is_gone_after_the_join() -> None:
    def build(wf: Any) -> None:
        wf.stage("init", lambda ctx: ctx.state.update(a=1, b=2))
        with wf.parallel("p"):
            wf.stage("x", lambda ctx: ctx.state.__delitem__("a"))
            wf.stage("y", lambda ctx: ctx.state.update(b=3))

    assert done(flow(build)).state == {"b": 3}


def test_a_context_is_stale_once_its_branch_has_ended() -> None:
    kept: list[Any] = []
    ended = threading.Event()

    def look(ctx: Any) -> None:
        waits(ended)
        for use in (lambda: kept[0].state["x"], lambda: kept[0].append("x", 1)):
            with pytest.raises(StaleContext, match=r"p/a/keep .* was used after it had ended"):
                use()
        kept[0].logger.info("ids and loggers still read: %s", kept[0].run_id)

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=2):
            with wf.branch("a"):
                wf.stage("keep", kept.append)
                wf.stage("end", lambda ctx: ended.set())
            wf.stage("look", look)

    done(flow(build))


# --- conflicts ------------------------------------------------------------------------------------


def test_two_branches_that_write_one_key() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=1):
            wf.stage("a", lambda ctx: ctx.state.update(k=1))
            with wf.branch("b"):
                with wf.loop("l", over=lambda ctx: range(3)):
                    wf.stage("s", lambda ctx: ctx.increment("k"))

    store = MemoryStore()
    told = failure(flow(build), store=store)
    assert told.type == "BranchConflict"
    assert told.message == "two branches of the parallel 'p' write state['k']: p/a and p/b"
    assert told.hint.startswith("say how the values become one: wf.parallel(merge={'k':")
    # at the first commit that conflicts, not at the join
    assert [record.path for record in of_type(store, "StageFailed")] == ["p/b/l/s"]
    with pytest.raises(kitchen.RunError) as caught:
        done(flow(build))
    assert caught.value.__cause__ is None  # nobody raised it


def test_two_items_that_write_one_key() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: ["a", "b"], max_concurrency=1):
            wf.stage("s", lambda ctx: ctx.state.update(k=ctx.item()))

    told = failure(flow(build))
    assert told.message == "two branches of the parallel 'p' write state['k']: p[0] and p[1]"


@pytest.mark.parametrize("name", ["box", "lid"])
@pytest.mark.parametrize("order", [("look", "touch"), ("touch", "look")])
def test_one_branch_peeks_at_what_another_touches(name: str, order: tuple[str, str]) -> None:
    """Also through what is made from it; in either order."""

    def look(ctx: Any) -> None:
        ctx.state["seen"] = ctx.resources.peek(name) is not None

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box(2))
        wf.resource("lid", lambda ctx: [ctx.resources.peek("box")], stateful=False)
        with wf.parallel("p", max_concurrency=1):
            for stage in order:
                wf.stage(stage, stages[stage])

    stages: dict[str, Any] = {"look": look, "touch": lambda ctx: ctx.resources["box"].add()}
    told = failure(flow(build))
    assert told.type == "BranchConflict"
    assert " and ".join(f"p/{stage}" for stage in order) in told.message
    assert "'box'" in told.message
    assert "ctx.state" in told.hint


def test_a_resource_is_reached_from_its_own_block_only() -> None:
    """Though another branch has it open at the same time."""
    opened, looked = threading.Event(), threading.Event()

    def other(ctx: Any) -> None:
        assert opened.wait(20)
        ctx.state["seen"] = "box" in ctx.resources
        looked.set()

    def own(ctx: Any) -> None:
        opened.set()
        assert looked.wait(20)
        ctx.state["own"] = "box" in ctx.resources

    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=2):
            wf.stage("other", other)
            with wf.branch("b"):
                wf.resource("box", lambda ctx: Box())
                wf.stage("own", own)

    assert done(flow(build)).state == {"seen": False, "own": True}


def test_resources_made_from_a_shared_one_without_state_are_apart() -> None:
    def build(wf: Any) -> None:
        wf.resource("base", lambda ctx: {"n": 2}, stateful=False)
        with wf.parallel("p", over=lambda ctx: range(3), merge={"sum": "sum"}):
            wf.resource("box", lambda ctx: Box(ctx.resources.peek("base")["n"]))
            wf.stage("s", lambda ctx: ctx.increment("sum", ctx.resources["box"].add()))

    assert done(flow(build)).state["sum"] == 6


def test_what_a_failed_branch_has_half_changed_is_seen_by_no_sibling() -> None:
    """And a resume takes it back, though nothing of it was committed."""
    broken = [True]

    def fails(ctx: Any) -> None:
        ctx.resources["box"].add()
        if broken[0]:
            raise LookupError

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.parallel("p", on_error="finish", max_concurrency=1):
            wf.stage("a", fails)
            wf.stage("b", peeks)

    def peeks(ctx: Any) -> None:
        if broken[0]:
            ctx.state["seen"] = ctx.resources.peek("box").value

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(kitchen.RunError):
        done(workflow, store=store)
    broken[0] = False
    assert "seen" not in kitchen.resume("r", workflow, store=store).state
    types = [record.type for record in store.read("r")]
    assert "RunRewound" in types


def test_two_branches_that_touch_one_resource() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.parallel("p", max_concurrency=1):
            wf.stage("a", lambda ctx: ctx.resources["box"].add())
            wf.stage("b", lambda ctx: ctx.resources["box"].add())

    told = failure(flow(build))
    assert told.message == "two branches of the parallel 'p' touch the resource 'box': p/a and p/b"
    assert "ctx.resources.peek" in told.hint


def test_peeking_is_no_conflict_nor_is_what_has_no_state() -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box(3))
        wf.resource("plain", lambda ctx: {"n": 4}, stateful=False)
        with wf.parallel("p", max_concurrency=1):
            for name in "abc":
                wf.stage(name, peeking(name))

    def peeking(name: str) -> Any:
        def body(ctx: Any) -> None:
            ctx.state[name] = ctx.resources.peek("box").value + ctx.resources["plain"]["n"]

        return body

    assert done(flow(build)).state == {"a": 7, "b": 7, "c": 7}


def test_writes_is_held_to_when_it_runs_and_compared_when_it_is_built() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=1):
            wf.stage("a", lambda ctx: ctx.state.update(x=1, y=1), writes=["x"])
            wf.stage("b", lambda ctx: None, writes=["y"])

    told = failure(flow(build))
    assert told.message == "the stage p/a declares writes=['x'] and may not change state['y']"

    def conflicting(wf: Any) -> None:
        with wf.parallel("p"):
            wf.stage("a", nothing, writes=["x", "k"])
            wf.stage("b", nothing, writes=["k"])

    with pytest.raises(WorkflowError, match=r"(?s)'k'.*merge="):
        flow(conflicting)


# --- how many run ---------------------------------------------------------------------------------


class Counting:
    """How many are in at once, at most; each waits until `least` have been in together."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.now = self.most = 0
        self.changed = threading.Condition()

    def __call__(self, ctx: Any) -> None:
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.most >= self.least, SECONDS)
            self.now -= 1


@pytest.mark.parametrize("given", ["number", "function", "static"])
def test_as_many_as_may_run_and_no_more(given: str) -> None:
    counting = Counting(3)
    limit: Any = 3 if given != "function" else lambda ctx: ctx.state["limit"]

    def build(wf: Any) -> None:
        wf.stage("init", lambda ctx: ctx.state.update(limit=3))
        if given == "static":
            with wf.parallel("p", max_concurrency=limit):
                for number in range(9):
                    wf.stage(f"s{number}", counting)
        else:
            with wf.parallel("p", over=lambda ctx: range(9), max_concurrency=limit):
                wf.stage("first", nothing)
                wf.stage("s", counting)

    done(flow(build))
    assert counting.most == 3


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, None, "3"])
def test_limits_that_are_none(wrong: Any) -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p", max_concurrency=lambda ctx: wrong):
            wf.stage("s", nothing)

    assert failure(flow(build)).message == f"max_concurrency of p gave {wrong!r}"


def test_without_a_limit_it_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kitchen.runner.entering._cpus", lambda: 7)
    counting, store = Counting(7), MemoryStore()

    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: range(9)):
            wf.stage("s", counting)

    done(flow(build), store=store)
    (event,) = of_type(store, "BranchesStarted")
    assert event.event.limit == 7  # type: ignore[attr-defined]
    assert counting.most == 7


def test_over_nothing_and_over_very_much() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("none", over=lambda ctx: [], merge={"l": "extend"}):
            wf.stage("s", lambda ctx: ctx.append("l", 1))
        with wf.parallel(
            "many", over=lambda ctx: range(1_000), max_concurrency=16, merge={"l": "extend"}
        ):
            wf.stage("t", lambda ctx: ctx.append("l", ctx.item()), thread=False)

    store = MemoryStore()
    assert done(flow(build), store=store).state == {"l": list(range(1_000))}
    assert len(of_type(store, "BranchCompleted")) == 1_000


# --- the log --------------------------------------------------------------------------------------


class Counted(MemoryStore):
    """Tells how many events each append had, and fails at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.appends: list[list[str]] = []
        self.fails_at = fails_at

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        if len(self.appends) == self.fails_at:
            self.fails_at = None
            raise StoreError("the disk is full")
        self.appends.append([event.type for event in events])
        return super().append(run, expected, events, at)


@pytest.mark.anyio
async def test_branches_that_end_together_share_a_transaction() -> None:
    together = 6
    arrived: list[int] = []
    go = anyio.Event()

    async def body(ctx: Any) -> None:
        arrived.append(ctx.item())
        if len(arrived) == together:
            go.set()
        await go.wait()

    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: range(together), max_concurrency=together):
            wf.stage("s", body)

    store = Counted()
    await done_async(flow(build), store=store)
    (shared,) = [types for types in store.appends if "StageCompleted" in types]
    assert shared.count("BranchCompleted") == together
    assert shared[-2:] == ["BranchesJoined", "RunCompleted"]


@pytest.mark.anyio
async def test_what_could_not_be_appended_never_was() -> None:
    """A group of outcomes is applied first: with the append, all of it is thrown away."""
    calls: list[int] = []
    go = anyio.Event()

    async def body(ctx: Any) -> None:
        calls.append(ctx.item())
        if len(calls) == 3:
            go.set()
        await go.wait()
        ctx.append("l", ctx.item())
        ctx.record_metric("m", ctx.item())

    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: range(3), max_concurrency=3, merge={"l": "extend"}):
            wf.stage("s", body)

    workflow = flow(build)
    store = Counted(fails_at=1)
    with pytest.raises(StoreError, match="the disk is full"):
        await done_async(workflow, store=store)
    assert not of_type(store, "StageCompleted")
    assert kitchen.history("r", store=store).status == "crashed"
    run = await kitchen.resume_async("r", workflow, store=store)
    assert run.state == {"l": [0, 1, 2]}
    assert [p.value for p in run.metrics["m"]] == [0, 1, 2]
    assert sorted(calls) == [0, 0, 1, 1, 2, 2]
    assert store.verify() == []


def test_every_append_may_fail() -> None:
    """Wherever it fails, the run can be resumed, to the same end."""

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.parallel("p", max_concurrency=3, merge={"l": "extend"}):
            for name in "abc":
                wf.stage(name, lambda ctx: ctx.append("l", (ctx.path, ctx.rng.random())))
            wf.stage("d", lambda ctx: ctx.append("l", ctx.resources["box"].add(2)))
        wf.stage("note", lambda ctx: ctx.state.update(box=ctx.resources["box"].state_dict()))

    workflow = flow(build)
    whole = Counted()
    expected = done(workflow, store=whole).state
    for at in range(len(whole.appends)):
        store = Counted(fails_at=at)
        try:
            run = done(workflow, store=store)
        except StoreError:
            run = kitchen.resume("r", workflow, store=store)
        assert run.state == expected, at


@pytest.mark.anyio
async def test_metrics_of_all_that_runs_are_in_the_log_early() -> None:
    store = MemoryStore()

    async def body(ctx: Any) -> None:
        ctx.record_metric("m", ctx.item())
        await until(lambda: len(of_type(store, "MetricRecorded")) >= 4)
        ctx.record_metric("m", 10 + ctx.item())

    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: range(4), max_concurrency=4):
            wf.stage("s", body)

    run = await done_async(flow(build), store=store)
    assert not of_type(store, "RunFailed")
    # told in the order of the program, whenever they came
    assert [p.value for p in run.metrics["m"]] == [0, 10, 1, 11, 2, 12, 3, 13]
    assert store.verify() == []


# --- randomness and resources ---------------------------------------------------------------------


def test_global_generators_are_seeded_for_what_runs_alone() -> None:
    both = threading.Barrier(2)

    def beside(ctx: Any) -> None:
        both.wait(SECONDS)
        ctx.state[ctx.path] = random.random()

    def build(wf: Any) -> None:
        wf.stage("before", lambda ctx: ctx.state.update(before=random.random()))
        with wf.parallel("p", max_concurrency=2):
            wf.stage("a", beside)
            wf.stage("b", beside)
        wf.stage("after", lambda ctx: ctx.state.update(after=random.random()))

    workflow = flow(build, seed_globals=True)
    first, second = done(workflow).state, done(workflow).state
    assert (first["before"], first["after"]) == (second["before"], second["after"])
    # what runs side by side goes on from wherever the generator is: two draws are two numbers
    assert first["p/a"] != first["p/b"]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["static", "over"])
async def test_resources_with_task_groups_in_several_branches(kind: str) -> None:
    """They are left in whatever order the branches end; each scope has a task of its own."""
    log: list[str] = []
    opened = anyio.Event()

    @asynccontextmanager
    async def open_group(ctx: Any) -> AsyncGenerator[dict[str, Any]]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            with anyio.CancelScope():
                log.append("opened")
                if len(log) == 3:
                    opened.set()
                yield {"path": ctx.path, "visit": ctx.visit}
            log.append("closed")
            tasks.cancel_scope.cancel()

    async def use(ctx: Any) -> None:
        await opened.wait()
        for _ in range(10 * (3 - len(ctx.state))):
            await anyio.lowlevel.checkpoint()
        name = ctx.path.split("/")[1] if kind == "static" else "group"
        assert ctx.resources[name]["visit"] == ctx.visit
        ctx.append("used", ctx.path)

    def build(wf: Any) -> None:
        merge: Any = {"used": "extend"}
        if kind == "over":
            with wf.parallel("p", over=lambda ctx: range(3), max_concurrency=3, merge=merge):
                wf.resource("group", open_group, stateful=False)
                wf.stage("use", use)
            return
        with wf.parallel("p", max_concurrency=3, merge=merge):
            for name in "abc":
                with wf.branch(name):
                    wf.resource(name, open_group, stateful=False)
                    wf.stage("use", use)

    with anyio.fail_after(SECONDS):
        run = await done_async(flow(build))
    assert len(run.state["used"]) == 3
    assert sorted(log) == ["closed"] * 3 + ["opened"] * 3


def test_each_item_has_a_stateful_resource_of_its_own() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p", over=lambda ctx: [5, 7], merge={"l": "extend"}):
            wf.resource("box", lambda ctx: Box(ctx.item()))
            wf.stage("a", lambda ctx: ctx.resources["box"].add(ctx.item()))
            wf.stage("b", lambda ctx: ctx.append("l", ctx.resources["box"].value))

    store = MemoryStore()
    assert done(flow(build), store=store).state == {"l": [7.5, 10.5]}
    names = {record.event.name for record in of_type(store, "ResourceOpened")}  # type: ignore[attr-defined]
    assert names == {"box[0]", "box[1]"}

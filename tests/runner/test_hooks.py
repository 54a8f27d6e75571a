"""The hooks of a stage: `validate` before it runs, `rollback` after it has failed for good."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Retry, Stage, Workflow, WorkflowBuilder
from store import MemoryStore
from tests.runner.running import Box, Killed, done, done_async, flow, of_type, types


class Asked(Stage):
    """Its validation does what the test says."""

    def __init__(self, validate: Any) -> None:
        self.does = validate
        self.calls: list[str] = []

    def validate(self, ctx: Any) -> Any:
        self.calls.append("validate")
        return self.does(ctx)

    def execute(self, ctx: Any) -> None:
        self.calls.append("execute")
        ctx.state["done"] = True

    def rollback(self, ctx: Any, error: Any) -> None:
        self.calls.append("rollback")


def raising(error: BaseException) -> Any:
    def body(ctx: Any) -> None:
        raise error

    return body


async def later(ctx: Any) -> str:
    await anyio.lowlevel.checkpoint()
    return "not today"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda ctx: "not today", "not today"),
        (later, "not today"),
        (lambda ctx: False, "validate returned False"),
        (lambda ctx: "", "validate returned ''"),
        (raising(LookupError("no data")), "its validation raised LookupError: no data"),
        (raising(SystemExit(3)), "its validation raised SystemExit: 3"),
        (
            lambda ctx: ctx.state.update(x=1),
            "its validation raised StateError: the validation at s may not change state['x']",
        ),
        (
            lambda ctx: ctx.record_metric("m", 1),
            "its validation raised StateError: the validation at s may not record metrics",
        ),
    ],
)
@pytest.mark.anyio
async def test_a_stage_that_refuses_never_runs(does: Any, said: str) -> None:
    """Nor is it tried again, or rolled back."""
    stage = Asked(does)
    with pytest.raises(kitchen.RunError) as caught:
        await done_async(flow(lambda wf: wf.stage("s", stage, retries=Retry(3, backoff=0))))
    assert stage.calls == ["validate"]
    assert caught.value.run.failure.type == "StageRefused"
    assert caught.value.run.failure.message == said
    assert isinstance(caught.value.__cause__, kitchen.StageRefused)
    assert caught.value.run.state == {}


@pytest.mark.parametrize("said", [None, True])
def test_a_stage_that_does_not_refuse_runs(said: Any) -> None:
    stage = Asked(lambda ctx: said)
    assert done(flow(lambda wf: wf.stage("s", stage))).state == {"done": True}
    assert stage.calls == ["validate", "execute"]


def test_it_is_asked_once_and_not_before_each_attempt() -> None:
    class Fails(Asked):
        def execute(self, ctx: Any) -> None:
            super().execute(ctx)
            if ctx.attempt < 3:
                raise ConnectionError

    stage = Fails(lambda ctx: None)
    done(flow(lambda wf: wf.stage("s", stage, retries=Retry(2, backoff=0))))
    assert stage.calls == ["validate", "execute", "execute", "execute"]


def test_it_may_read_and_touch() -> None:
    """A touch of a validation is one of its stage: behind a failure there is a rewind."""
    seen: list[Any] = []

    def look(ctx: Any) -> None:
        seen.append((ctx.resources["box"].add(), ctx.options["o"], ctx.item("l"), ctx.config.c))

    class Fails(Asked):
        def execute(self, ctx: Any) -> None:
            if ctx.attempt == 1:
                raise ConnectionError
            ctx.state["changes"] = ctx.resources.peek("box").changes

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: ["a"]):
            wf.stage("s", Fails(look), retries=Retry(1, backoff=0), options={"o": 1})

    store = MemoryStore()
    assert done(flow(build), {"c": 2}, store=store).state == {"changes": 0}
    assert seen == [(1, 1, "a", 2)]
    assert "RunRewound" in types(store)


def test_a_refusal_can_be_mended_and_handled() -> None:
    allowed: list[int] = []
    stage = Asked(lambda ctx: None if allowed else "not yet")
    workflow, store = flow(lambda wf: wf.stage("s", stage)), MemoryStore()
    with pytest.raises(kitchen.RunError, match="not yet"):
        done(workflow, store=store)
    allowed.append(1)
    assert kitchen.resume("r", workflow, store=store).state == {"done": True}

    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", Asked(lambda ctx: "never"))
        with wf.on_error("handler"):
            pass

    assert done(flow(build)).state == {}


# --- rollback -------------------------------------------------------------------------------------

CALLED: list[str] = []


class Step(Stage):
    """Tells what was called, in the log as well."""

    def __init__(self, name: str, fails: bool = False, hook: Any = None) -> None:
        self.name = name
        self.fails = fails
        self.hook = hook

    def execute(self, ctx: Any) -> None:
        CALLED.append(f"do {self.name}")
        ctx.append("did", self.name)
        if self.fails:
            raise ValueError(f"{self.name} broke")

    async def rollback(self, ctx: Any, error: kitchen.Failure) -> None:
        CALLED.append(f"undo {self.name}")
        ctx.append("undid", (self.name, error.message))
        if self.hook is not None:
            self.hook(ctx)


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    CALLED.clear()


def saga(*steps: Any, compensate: bool = True) -> Workflow[Any, Any]:
    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        for step in steps:
            wf.stage(step.name, step)

    return flow(build, compensate=compensate)


def failed(workflow: Any, store: Any = None) -> Any:
    with pytest.raises(kitchen.RunError) as caught:
        done(workflow, store=store)
    return caught.value.run


@pytest.mark.parametrize("compensate", [True, False])
def test_what_failed_is_rolled_back_and_what_was_completed_if_asked(compensate: bool) -> None:
    """The last first; what the hooks change in the state is recorded."""
    store = MemoryStore()
    workflow = saga(Step("a"), Step("b"), Step("c", fails=True), compensate=compensate)
    run = failed(workflow, store)
    undone = ["c", "b", "a"] if compensate else ["c"]
    assert ["do a", "do b", "do c", *[f"undo {name}" for name in undone]] == CALLED
    assert run.state["did"] == ["a", "b"]
    assert run.state["undid"] == [(name, "c broke") for name in undone]
    assert run.failure.message == "c broke"
    told = [r.path for r in of_type(store, "StageRolledBack")]
    assert told == undone
    assert store.verify() == []


@pytest.mark.parametrize(
    "again",
    [
        lambda workflow, store: done(workflow, store=store, if_exists="resume"),
        lambda workflow, store: kitchen.resume("r", workflow, store=store),
    ],
)
def test_a_compensated_run_cannot_be_resumed(again: Any) -> None:
    store = MemoryStore()
    workflow = saga(Step("a"), Step("b", fails=True))
    failed(workflow, store)
    head = store.run("r").head
    with pytest.raises(kitchen.NotResumable, match="its completed stages were rolled back"):
        again(workflow, store)
    assert store.run("r").head == head


def test_one_of_which_only_the_failed_stage_was_rolled_back_can() -> None:
    store, step = MemoryStore(), Step("a", fails=True)
    failed(saga(step), store)
    step.fails = False
    assert kitchen.resume("r", saga(step), store=store).state["did"] == ["a"]


def test_a_hook_that_raises_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()

    def broken(ctx: Any) -> None:
        raise LookupError("cannot undo")

    with caplog.at_level(logging.WARNING, "kitchen.run"):
        run = failed(saga(Step("a"), Step("b", hook=broken), Step("c", fails=True)), store)
    assert CALLED[3:] == ["undo c", "undo b", "undo a"]
    assert [name for name, _ in run.state["undid"]] == ["c", "a"]  # of b's changes nothing counts
    told = [r.event.failure for r in of_type(store, "StageRolledBack")]  # type: ignore[attr-defined]
    assert [t and t.message for t in told] == [None, "cannot undo", None]
    assert any("b could not be rolled back: cannot undo" in r.getMessage() for r in caplog.records)
    assert run.failure.message == "c broke"


@pytest.mark.parametrize("touches", [True, False])
def test_a_hook_of_a_run_that_ends_gets_at_nothing(touches: bool) -> None:
    def hook(ctx: Any) -> None:
        if touches:
            ctx.resources["box"].add()
        else:
            ctx.state["seen"] = ctx.resources.peek("box").changes

    store = MemoryStore()
    run = failed(saga(Step("a", hook=hook), Step("b", fails=True)), store)
    if touches:
        (told,) = [r.event.failure for r in of_type(store, "StageRolledBack") if r.path == "a"]  # type: ignore[attr-defined]
        assert told.type == "ResourceError"
        assert "a is being rolled back and may only look at 'box'" in told.message
    else:  # the run ends, and what the hook would see may be half changed
        told = [r.event.failure for r in of_type(store, "StageRolledBack") if r.path == "a"][-1]  # type: ignore[attr-defined]
        assert "may be half changed" in told.message
        assert "seen" not in run.state


def test_a_hook_of_a_stage_that_is_skipped_may_peek() -> None:
    def hook(ctx: Any) -> None:
        ctx.state["seen"] = ctx.resources.peek("box").changes

    def build(wf: WorkflowBuilder) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("a", Step("a", fails=True, hook=hook), on_error="skip")

    assert done(flow(build)).state["seen"] == 0


@pytest.mark.parametrize("what", ["metric", "stop_loop"])
def test_a_hook_records_no_metrics_and_stops_no_loops(what: str) -> None:
    def hook(ctx: Any) -> None:
        if what == "metric":
            ctx.record_metric("m", 1)
        else:
            ctx.stop_loop()

    store = MemoryStore()
    assert failed(saga(Step("a", fails=True, hook=hook)), store).metrics == {}
    (told,) = of_type(store, "StageRolledBack")
    assert told.event.failure.type == "StateError"  # type: ignore[attr-defined]


class Item(Step):
    def execute(self, ctx: Any) -> None:
        super().execute(ctx)
        if ctx.item("l") == "c":
            raise ValueError("c broke")

    async def rollback(self, ctx: Any, error: Any) -> None:
        try:
            item = ctx.item("l")
        except kitchen.KitchenError as caught:
            item = type(caught).__name__
            CALLED.append(str(caught))
        CALLED.append(f"undo {ctx.path}{ctx.visit} {item}")


def test_in_a_loop_each_visit_is_rolled_back() -> None:
    """Its items are there, as long as its loop is."""

    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("l", over=lambda ctx: ["a", "b", "c"]):
            wf.stage("s", Item("s"))

    failed(flow(build, compensate=True))
    assert CALLED[3:] == ["undo l/s(2,) c", "undo l/s(1,) b", "undo l/s(0,) a"]


def test_behind_its_loop_a_hook_is_told_that_the_items_are_gone() -> None:
    def build(wf: WorkflowBuilder) -> None:
        with wf.loop("l", over=lambda ctx: ["a", "b"]):
            wf.stage("s", Item("s"))
        wf.stage("fails", Step("fails", fails=True))

    failed(flow(build, compensate=True))
    undone = [line for line in CALLED if line.startswith("undo l")]
    assert undone == ["undo l/s(1,) UnknownKey", "undo l/s(0,) UnknownKey"]
    told = [line for line in CALLED if "the items of l are gone" in line]
    assert len(told) == 2
    assert "put what a rollback needs into ctx.state" in told[0]


@pytest.mark.anyio
async def test_in_branches() -> None:
    """In the order of the program, whoever was first; the failed one before all."""

    async def slow(ctx: Any) -> None:
        await anyio.sleep_forever()

    def build(wf: WorkflowBuilder) -> None:
        wf.stage("first", Step("first"))
        with wf.parallel("p", merge={"did": "extend", "undid": "extend"}):
            with wf.branch("left"):
                wf.stage("l", Step("l"))
                wf.stage("broken", Step("broken", fails=True))
            with wf.branch("right"):
                wf.stage("slow", slow)

    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        await done_async(flow(build, compensate=True), store=store)
    assert [c for c in CALLED if c.startswith("undo")] == ["undo broken", "undo l", "undo first"]
    assert store.verify() == []


def test_a_stage_in_time_trouble_is_rolled_back() -> None:
    class Slow(Step):
        async def execute(self, ctx: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            await anyio.sleep_forever()

    def build(wf: WorkflowBuilder) -> None:
        wf.stage("s", Slow("s"), timeout=0.05)

    run = failed(flow(build))
    assert CALLED == ["undo s"]
    assert "took longer" in run.state["undid"][0][1]


class _Mortal(MemoryStore):
    def __init__(self, store: MemoryStore, at: int, before: bool) -> None:
        super().__init__()
        self.__dict__.update(store.__dict__)
        self.left = at
        self.before = before

    def append(self, *given: Any, **more: Any) -> int:
        self.left -= 1
        if self.left < 0 and self.before:
            raise Killed
        head = super().append(*given, **more)
        if self.left < 0:
            raise Killed
        return head


@pytest.mark.parametrize("before", [True, False])
def test_a_crash_in_the_middle_comes_to_the_same_end(before: bool) -> None:
    """Each hook is called at least once, in order, and what it changed counts once."""

    def build() -> Any:
        return saga(Step("a"), Step("b"), Step("c"), Step("d", fails=True))

    whole = failed(build())
    died = 0
    for at in range(12):
        CALLED.clear()
        store = MemoryStore()
        try:
            with pytest.raises(kitchen.RunError) as caught:
                done(build(), store=_Mortal(store, at, before))
            run = caught.value.run
        except Killed:
            died += 1
            if store.latest("r", ["RunFailed"]) is not None:
                continue  # it was over
            with pytest.raises(kitchen.RunError) as caught:
                kitchen.resume("r", build(), store=store)
            run = caught.value.run
        assert run.state == whole.state
        assert run.failure.message == whole.failure.message
        undone = [line for line in CALLED if line.startswith("undo")]
        assert list(dict.fromkeys(undone)) == ["undo d", "undo c", "undo b", "undo a"]
        assert len(undone) <= 5
        assert store.verify() == []
    assert died >= 8

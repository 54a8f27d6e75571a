"""The crash matrix with failures in it: every stage raises, hangs until its timeout, or takes its
process with it, and on top of that the process dies at every append.

Whether a stage fails is decided by what outlives a process (`Broken` counts it by address), never
by the number of the attempt alone. However often it fails and dies, the run comes to the end of
the run in which nothing failed, to the bit.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Context, Retry, Stage, Workflow, WorkflowBuilder
from kitchen.history.history import History
from kitchen.machine.events import spell
from store import MemoryStore, open_store
from tests.crash import side_by_side
from tests.crash.kitchens import MODEL, OPTIMISER, Model, note_resources, trace
from tests.crash.test_crash_matrix import Killed, Mortal, essence
from tests.runner.running import python, script

AGAIN = Retry(3, backoff=0)
SOON = 0.02
UNDONE: list[str] = []


class Broken:
    """Which stage fails, how, and how often: what a file beside the run would say."""

    def __init__(self) -> None:
        self.path = ""
        self.how = ""
        self.left: Counter[tuple[int, ...]] = Counter()
        self.times = 0

    def set(self, path: str, how: str, times: int) -> None:
        self.path, self.how, self.times = path, how, times
        self.left.clear()

    def due(self, ctx: Any) -> bool:
        if ctx.path != self.path or self.left[ctx.visit] >= self.times:
            return False
        self.left[ctx.visit] += 1
        return True


BROKEN = Broken()


async def fail(ctx: Any) -> None:
    """Behind everything that the stage has done."""
    if not BROKEN.due(ctx):
        return
    match BROKEN.how:
        case "raise":
            raise ConnectionError("broken")
        case "hang":
            await anyio.sleep_forever()
        case _:
            raise Killed


async def train(ctx: Context) -> None:
    trace(ctx)
    loss = ctx.resources[OPTIMISER].step(ctx.rng.random() + ctx.item("batches"))
    ctx.append("losses", loss)
    ctx.record_metric("loss", loss)
    await fail(ctx)


async def plain(ctx: Context) -> None:
    trace(ctx)
    ctx.append("drawn", ctx.rng.random())
    ctx.increment("count")
    ctx.record_metric("count", ctx.state["count"])
    await fail(ctx)


class Reserve(Stage):
    """With a validation, and a rollback that changes the state."""

    async def validate(self, ctx: Context) -> str | None:
        await anyio.lowlevel.checkpoint()
        return None if "count" in ctx.state else "nothing was counted"

    async def execute(self, ctx: Context) -> None:
        await plain(ctx)

    def rollback(self, ctx: Context, error: Any) -> None:
        UNDONE.append(f"{ctx.path}{ctx.visit}")
        ctx.append("undone", (ctx.path, ctx.visit, error.type))


async def give(ctx: Context) -> None:
    trace(ctx)
    ctx.increment("total", ctx.rng.randrange(9))
    ctx.append("log", ctx.path)
    await fail(ctx)


async def train_alone(ctx: Context) -> None:
    trace(ctx)
    ctx.append("alone", ctx.resources[MODEL].update(ctx.rng.random()))
    await fail(ctx)


def body(wf: WorkflowBuilder, retries: Any) -> None:
    again: Any = {"retries": retries, "timeout": 5}
    if BROKEN.how == "hang":
        again["timeout"] = SOON
    wf.resource(MODEL)
    wf.resource(OPTIMISER)
    wf.stage("begin", plain, **again)
    with wf.loop("epochs", over=lambda ctx: range(2)):
        with wf.loop("batches", over=lambda ctx: [ctx.rng.random() for _ in range(2)]):
            wf.stage("train", train, **again)
        wf.checkpoint()
    wf.stage("reserve", Reserve, **again)
    with wf.stream_loop("stream", over=lambda ctx: iter(range(3))):
        wf.stage("take", plain, **again)
    with wf.parallel("p", max_concurrency=2, merge=side_by_side.MERGE):
        wf.stage("give", give, **again)
        wf.stage("train_alone", train_alone, **again)
        wf.stage("give_again", give, **again)
    with wf.async_loop("made", producer=produce, stop_when=lambda ctx: ctx.index() == 2):
        wf.stage("consume", plain, **again)
    wf.stage("note_resources", note_resources)


async def produce(ctx: Context) -> float:
    return ctx.rng.random() + ctx.state["count"]


STAGES = [
    "begin", "epochs/batches/train", "reserve", "stream/take", "p/give", "p/train_alone",
    "made/consume",
]  # fmt: skip


def flow(retries: Any, *, compensate: bool = False) -> Workflow[Any, Any]:
    """The workflow as it is while `BROKEN` is as it is: its timeouts are short where it hangs."""
    return kitchen.workflow(name="matrix", compensate=compensate)(lambda wf: body(wf, retries))


def whole() -> Any:
    BROKEN.set("", "", 0)
    return essence(kitchen.run(flow(AGAIN), store=MemoryStore(), run_id="r", seed=7))


def count(workflow: Any) -> int:
    """How many appends a run writes that is not killed."""
    store = Mortal(MemoryStore(), "after", 10**9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "die", lambda moment: _tick(store, moment))
        with contextlib.suppress(Killed, kitchen.RunError):
            kitchen.run(workflow, store=store, run_id="r", seed=7)
    return 10**9 - store.left


def _tick(store: Mortal, moment: str) -> None:
    store.left -= moment == store.when


def ended(workflow: Any, store: MemoryStore, deaths: list[tuple[str, int]]) -> Any:
    """Run it to its end, through these deaths, its own, and failures for good."""
    for turn in range(40):
        mortal = Mortal(store, *deaths[turn]) if turn < len(deaths) else store
        try:
            return kitchen.run(workflow, store=mortal, run_id="r", seed=7, if_exists="resume")
        except (Killed, kitchen.RunError):
            continue
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("path", STAGES)
@pytest.mark.parametrize("how", ["raise", "hang", "die"])
def test_one_stage_fails_and_is_tried_again(path: str, how: str) -> None:
    """Every visit of it, twice, once everything that it does is done; then crashes on top."""
    expected = whole()
    BROKEN.set(path, how, 2)
    appends = count(flow(AGAIN))
    step = max(1, appends // (4 if how == "hang" else 12))
    for at in range(0, appends, step):
        BROKEN.set(path, how, 2)
        store = MemoryStore()
        run = ended(flow(AGAIN), store, [("after", at), ("before", 5)])
        assert essence(run) == expected, f"killed after append {at}"
        assert store.verify() == []
        assert BROKEN.left, "it never failed"


@pytest.mark.parametrize("path", STAGES)
def test_one_stage_fails_for_good_and_is_mended(path: str) -> None:
    """Without further attempts: the run fails, is resumed, and comes to the same end."""
    expected = whole()
    BROKEN.set(path, "raise", 1)
    appends = count(flow(0))
    for at in range(0, appends, max(1, appends // 12)):
        BROKEN.set(path, "raise", 1)
        store = MemoryStore()
        run = ended(flow(0), store, [("after", at), ("after", 3)])
        assert (path == "reserve") == ("undone" in run.state)  # what a rollback wrote is kept
        run.state = {key: run.state[key] for key in run.state if key != "undone"}
        assert essence(run) == expected, f"killed after append {at}"
        assert store.verify() == []


@pytest.mark.parametrize("path", STAGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_compensation_comes_to_the_same_end(path: str, when: str) -> None:
    """The whole run fails, and is compensated; so is the one that is killed at any append."""
    always = 10**6
    BROKEN.set(path, "raise", always)
    workflow = flow(0, compensate=True)

    def failed(store: MemoryStore, deaths: list[int]) -> Any:
        for turn in range(20):
            mortal = Mortal(store, when, deaths[turn]) if turn < len(deaths) else store
            try:
                kitchen.run(workflow, store=mortal, run_id="r", seed=7, if_exists="resume")
            except Killed:
                if store.runs() and store.latest("r", ["RunFailed"]) is not None:
                    return None  # it had come to its end
            except kitchen.RunError as error:
                return error.run
        raise AssertionError("it never came to its end")

    UNDONE.clear()
    run = failed(MemoryStore(), [])
    expected, undone = essence(run), list(UNDONE)
    appends = count(workflow)
    for at in range(0, appends, max(1, appends // 14)):
        store = MemoryStore()
        UNDONE.clear()
        run = failed(store, [at, 1, 1])
        assert list(dict.fromkeys(UNDONE)) == undone, f"killed {when} append {at}"
        assert store.verify() == []
        if run is not None:
            assert essence(run) == expected, f"killed {when} append {at}"


# --- blocks that fail and are handled -------------------------------------------------------------


def handled() -> Workflow[Any, Any]:
    def author(wf: WorkflowBuilder) -> None:
        wf.resource(MODEL)
        wf.resource(OPTIMISER)
        wf.stage("begin", plain)
        wf.checkpoint("begun")
        with wf.loop("turns", over=lambda ctx: range(3)):
            with wf.timeout(30, name="most"):
                wf.stage("train_alone", train_alone)
                with wf.parallel("p", merge=side_by_side.MERGE):
                    wf.stage("give", give)
                    wf.stage("train_side", train_alone)
                wf.stage("late", train_alone, on_error="skip")
            with wf.on_error("handler"):
                wf.stage("note", plain)
                wf.stage("train_on", train_alone)
            with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
                wf.checkpoint()
        wf.stage("note_resources", note_resources)

    return kitchen.workflow(name="handled")(author)


@pytest.mark.parametrize(
    "path",
    ["turns/most/train_alone", "turns/most/p/give", "turns/most/p/train_side", "turns/most/late"],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_handled_is_so_behind_a_crash_too(path: str, when: str) -> None:
    """It fails at each visit for ever, so what a rewind does again must not depend on chance."""
    BROKEN.set(path, "raise", 10**6)
    workflow = handled()
    run = kitchen.run(workflow, store=MemoryStore(), run_id="r", seed=7)
    expected = essence(run)
    # Whatever its siblings had come to, of what failed no update is left.
    assert run.state["model"]["used"] == (3 if path.endswith("train_alone") else 6)
    BROKEN.set(path, "raise", 10**6)
    appends = count(workflow)
    for at in range(0, appends, max(1, appends // 24)):
        store = MemoryStore()
        run = ended(workflow, store, [(when, at), (when, 4)])
        assert essence(run) == expected, f"killed {when} append {at}"
        assert store.verify() == []


async def consume_and_train(ctx: Context) -> None:
    trace(ctx)
    ctx.append("drawn", ctx.item() + ctx.rng.random())
    ctx.append("alone", ctx.resources[MODEL].update(ctx.rng.random()))
    if ctx.index() == 1:
        await fail(ctx)


def open_own(ctx: Context) -> Model:
    return Model(ctx.rng.random())


async def use_own(ctx: Context) -> None:
    trace(ctx)
    ctx.append("owned", ctx.resources["own"].update(ctx.rng.random()))
    await fail(ctx)


def fed() -> Workflow[Any, Any]:
    """Streams, producers, branches over items and resources of their own, in blocks that fail."""

    def author(wf: WorkflowBuilder) -> None:
        wf.resource(MODEL)
        wf.resource(OPTIMISER)
        wf.stage("begin", plain)
        with wf.loop("turns", over=lambda ctx: range(2)):
            with wf.stream_loop("stream", over=lambda ctx: iter(range(3))):
                wf.stage("consume", consume_and_train, retries=Retry(1, backoff=0))
            with wf.on_error("no_stream"):
                wf.stage("note", plain)
            with wf.async_loop("made", producer=produce, stop_when=lambda ctx: ctx.index() == 2):
                wf.stage("consume", consume_and_train)
            with wf.on_error("no_items"):
                wf.stage("note", plain)
            with wf.parallel(
                "each", over=lambda ctx: range(3), on_error="finish", merge={"owned": "extend"}
            ):
                wf.resource("own", open_own)
                wf.stage("use", use_own)
            with wf.on_error("no_branches"):
                wf.stage("note", plain)
            wf.stage("train_on", train_alone, on_error="skip")
        wf.stage("note_resources", note_resources)

    return kitchen.workflow(name="fed")(author)


@pytest.mark.parametrize(
    "path", ["turns/stream/consume", "turns/made/consume", "turns/each/use", "turns/train_on"]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_feeds_a_block_that_fails_is_the_same_behind_a_crash(path: str, when: str) -> None:
    BROKEN.set(path, "raise", 10**6)
    workflow = fed()
    expected = essence(kitchen.run(workflow, store=MemoryStore(), run_id="r", seed=7))
    appends = count(workflow)
    for at in range(0, appends, max(1, appends // 24)):
        store = MemoryStore()
        run = ended(workflow, store, [(when, at), (when, 4)])
        assert essence(run) == expected, f"killed {when} append {at}"
        assert store.verify() == []


# --- effects that must not happen twice -----------------------------------------------------------

PAID: Counter[str] = Counter()  # what the bank knows


async def pay(ctx: Context) -> None:
    PAID[spell(ctx.path, ctx.visit)] += 1
    ctx.state[f"paid {spell(ctx.path, ctx.visit)}"] = True


def paying() -> Workflow[Any, Any]:
    def author(wf: WorkflowBuilder) -> None:
        wf.resource(MODEL)
        wf.resource(OPTIMISER)
        wf.stage("train_first", train_alone)
        with wf.loop("turns", over=lambda ctx: range(2)):
            wf.stage("pay", pay, effect="once")
            wf.stage("train_alone", train_alone, retries=AGAIN)
            with wf.parallel("p"):
                wf.stage("pay_left", pay, effect="once")
                wf.stage("train_side", train_alone, retries=AGAIN)
        wf.stage("note_resources", note_resources)

    return kitchen.workflow(name="paying")(author)


def decided(store: MemoryStore, workflow: Any) -> dict[str, Any]:
    """What somebody says who has asked the bank."""
    with pytest.raises(kitchen.EffectUndecided) as caught:
        kitchen.resume("r", workflow, store=store)
    asked = [line.strip() for line in caught.value.message.splitlines()[1:]]
    said: dict[str, Any] = {}
    for name in asked:
        visit = tuple(map(int, re.findall(r"\[(\d+)\]", name)))
        at = spell(re.sub(r"\[\d+\]", "", name), visit)
        said[name] = {f"paid {at}": True} if PAID[at] else "retry"
    return said


@pytest.mark.parametrize("path", ["", "turns/train_alone", "turns/p/train_side"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_effect_happens_once_if_who_decides_knows(path: str, when: str) -> None:
    """Behind crashes and rewinds, beside others that fail."""
    workflow = paying()
    BROKEN.set("", "", 0)
    expected = essence(kitchen.run(workflow, store=MemoryStore(), run_id="r", seed=7))
    BROKEN.set(path, "raise", 1)
    asked = 0
    for at in range(count(workflow)):
        store = MemoryStore()
        PAID.clear()
        BROKEN.set(path, "raise", 1)
        run, deaths, say = None, [(when, at), (when, 3)], None
        for turn in range(10):
            mortal = Mortal(store, *deaths[turn]) if turn < len(deaths) else store
            try:
                if say is None:
                    given: Any = {"run_id": "r", "seed": 7, "if_exists": "resume"}
                    run = kitchen.run(workflow, store=mortal, **given)
                else:
                    run = kitchen.resume("r", workflow, store=mortal, decide=say)
                break
            except Killed:
                say = None
            except kitchen.EffectUndecided:
                asked += 1
                say = decided(store, workflow)
        assert run is not None
        assert set(PAID.values()) == {1}, f"killed {when} append {at}: {PAID}"
        assert len(PAID) == 4
        assert essence(run) == expected, f"killed {when} append {at}"
        assert store.verify() == []
    assert asked > 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_failing_on_one_event_loop_and_resumed_on_the_other(backend: str) -> None:
    expected = whole()
    other = {"asyncio": "trio", "trio": "asyncio"}[backend]

    async def turn(store: Any) -> Any:
        return await kitchen.run_async(
            flow(AGAIN), store=store, run_id="r", seed=7, if_exists="resume"
        )

    for at in (3, 14, 30):
        BROKEN.set("epochs/batches/train", "raise", 2)
        store = MemoryStore()
        with pytest.raises(Killed):
            anyio.run(turn, Mortal(store, "after", at), backend=backend)
        assert essence(anyio.run(turn, store, backend=other)) == expected


# --- real processes -------------------------------------------------------------------------------

DYING = """
import os, sys
from pathlib import Path
import kitchen

class Box:
    def __init__(self):
        self.value, self.changes = 1.0, 0
    def add(self, by):
        self.value, self.changes = self.value * 0.9 + by, self.changes + 1
        return self.value
    def state_dict(self):
        return {"value": self.value, "changes": self.changes}
    def load_state_dict(self, state):
        self.value, self.changes = state["value"], state["changes"]

def due(ctx):
    '''Once for each kind of trouble and visit: a file says that it was.'''
    for kind in sys.argv[1].split(","):
        file = Path(f"{kind}-{ctx.path.replace('/', '-')}-{'-'.join(map(str, ctx.visit))}")
        if kind != "none" and not file.exists():
            file.touch()
            return kind
    return None

def train(ctx):
    ctx.append("values", ctx.resources["box"].add(ctx.rng.random()))
    ctx.record_metric("value", ctx.resources["box"].value)
    kind = due(ctx)
    if kind == "exit":
        os._exit(9)
    if kind == "raise":
        raise ConnectionError("broken")

@kitchen.workflow
def dying(wf):
    wf.resource("box", lambda ctx: Box())
    with wf.loop("epochs", over=lambda ctx: range(3)):
        wf.stage("train", train, retries=kitchen.Retry(2, backoff=0))
        with wf.conditional(lambda ctx: ctx.index() == 1, name="second"):
            wf.checkpoint()
    wf.stage("end", lambda ctx: ctx.state.update(ctx.resources["box"].state_dict()))

if __name__ == "__main__":
    kitchen.run(dying, store="k.db", run_id="r", seed=3, if_exists="resume")
"""


def _through(folder: Path, troubles: str) -> tuple[Any, int]:
    """Start it again and again until it is done; what came out, and how often it died."""
    folder.mkdir()
    file = script(folder, DYING)
    for died in range(10):
        process = python([file, troubles], folder)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            with open_store(folder / "k.db") as store:
                past = History(store, "r")
                assert store.verify() == []
                points = [(p.value, p.visit) for p in past.metrics("value")]
                return (past.state_at(), points), died
        assert process.returncode == 9, errors
    raise AssertionError("it never came to its end")


@pytest.mark.slow
def test_stages_that_exit_and_raise_in_real_processes(tmp_path: Path) -> None:
    expected, _ = _through(tmp_path / "whole", "none")
    found, died = _through(tmp_path / "dying", "raise,exit")
    assert found == expected
    assert died == 3
    assert expected[0]["changes"] == 3

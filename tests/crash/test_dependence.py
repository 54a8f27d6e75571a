"""What hangs together must come back together: what user code holds on to, and where it is told.

1. A resource that holds on to another touches it, under whatever name both are used.
2. An `over` that is asked again leaves the resources that it changed as they were.
3. Items and options are what was recorded: changing one in place is refused, and never seen again.
4. What a factory, an `over` or a predicate does to the process counts as what a stage does.
5. Growing state costs the same at any length; state that a changed type gains has its default.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import tracemalloc
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import pytest

import kitchen
from kitchen.errors import StateError
from kitchen.history.history import History
from kitchen.log import journal
from kitchen.machine.failures import CRASH_BUDGET
from kitchen.runner import items
from store import MemoryStore
from tests.crash import kitchens
from tests.crash.kitchens import ALIAS, MODEL, Model
from tests.crash.test_crash_matrix import die_and_resume, essence, whole_run
from tests.runner.running import Box, Dying, Killed, done, failure, flow, of_type


def survives(workflow: Any) -> None:
    """Killed at every append, before and behind it, and resumed, it equals the whole run."""
    whole, appends, _ = whole_run(workflow)
    expected = essence(whole)
    for when in ("before", "after"):
        for at in range(appends - (when == "after")):
            run, store = die_and_resume(workflow, when, at)
            assert essence(run) == expected, f"killed {when} append {at}"
            assert not of_type(store, "RewindDiverged")


# --- one object under two names -------------------------------------------------------------------


def test_an_alias_and_its_model_used_in_turn() -> None:
    """What one name saved must not be laid over what the other name saved later."""

    def update(key: Any) -> Any:
        return lambda ctx: ctx.append("sums", ctx.resources[key].update(ctx.rng.random()))

    def build(wf: Any) -> None:
        wf.resource(MODEL)
        wf.resource(ALIAS)
        with wf.loop("turns", over=lambda ctx: range(2)):
            wf.stage("by_alias", update(ALIAS))
            wf.checkpoint("one")
            wf.stage("by_name", update(MODEL))
            wf.checkpoint("two")
        wf.stage("note", kitchens.note_model)

    survives(flow(build))


@pytest.mark.parametrize(
    ("workflow", "at", "names"),
    [
        (kitchens.dependent, "checkpoint", {"model", "optimiser"}),
        (kitchens.around, "half", {"model", "optimiser"}),
        (kitchens.around, "checkpoint", {"model"}),
        (kitchens.aliased, "checkpoint", {"model", "alias"}),
    ],
    ids=["optimiser", "trainer", "peeker", "alias"],
)
def test_what_is_depended_on_is_saved(workflow: Any, at: str, names: set[str]) -> None:
    """Each time, though the stages before the checkpoint used only what depends on it."""
    store = MemoryStore()
    done(workflow, store=store)
    saved = [record for record in of_type(store, "CheckpointSaved") if record.path.endswith(at)]
    assert saved
    for record in saved:
        event: Any = record.event
        assert set(event.resources) >= names


# --- `over` asked again ---------------------------------------------------------------------------


def by_reference(over: Any) -> Any:
    def build(wf: Any) -> None:
        wf.resource(MODEL)
        with wf.loop("turns", over=lambda ctx: range(2)):
            with wf.loop("l", over=over):
                wf.stage("use", use_item)
                wf.checkpoint()
                wf.stage("use_again", use_item)
        wf.stage("note", kitchens.note_model)

    return flow(build)


def use_item(ctx: Any) -> None:
    ctx.append("sums", ctx.resources[MODEL].update(len(ctx.item()) * 0.01 + ctx.rng.random()))


def large_items(ctx: Any) -> list[str]:
    ctx.resources[MODEL].update(3.0)
    return [f"{ctx.rng.random()}" * (40 + i) for i in range(2)]


def test_an_over_asked_again_leaves_the_resource_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "TOTAL_LIMIT", 100)
    survives(by_reference(large_items))


def test_that_is_so_through_what_holds_on_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "TOTAL_LIMIT", 100)

    def over(ctx: Any) -> list[str]:
        ctx.resources["trainer"].fit(3.0)
        return ["a" * 90, "b" * 91]

    def build(wf: Any) -> None:
        wf.resource(MODEL)
        wf.resource("trainer", lambda ctx: kitchens.Trainer(ctx.resources[MODEL]), stateful=False)
        with wf.loop("l", over=over):
            wf.stage("use", use_item)
            wf.checkpoint()
        wf.stage("note", kitchens.note_model)

    survives(flow(build))


def opaque_items(ctx: Any) -> list[Any]:
    ctx.resources[MODEL].update(3.0)
    return [kitchens.Opaque(1), kitchens.Opaque(2)]


def test_opaque_items_beside_a_touched_resource_are_refused() -> None:
    told = failure(by_reference(opaque_items))
    assert told.type == "ItemsError"
    assert "turns[0]/l" in told.message or "turns/l" in told.message
    assert "model" in told.message
    assert told.hint


def test_opaque_items_without_one_are_not() -> None:
    def over(ctx: Any) -> list[Any]:
        return [kitchens.Opaque(ctx.resources["plain"]["start"] + i) for i in range(2)]

    def build(wf: Any) -> None:
        wf.resource(MODEL)
        wf.resource("plain", lambda ctx: {"start": 3}, stateful=False)
        with wf.loop("l", over=over):
            wf.stage("take", lambda ctx: ctx.append("taken", ctx.item().value))

    assert done(flow(build)).state["taken"] == [3, 4]
    survives(flow(build))


# --- items changed in place -----------------------------------------------------------------------


class Layers(msgspec.Struct):
    layer: kitchens.Layer | None = None
    sizes: list[int] = []


def changing(item: Any, change: Any) -> Any:
    """A body that changes the item of the outer loop, in each visit of an inner one."""

    def body(ctx: Any) -> None:
        with contextlib.suppress(Exception):
            change(ctx.item("outer"))
        ctx.append("sizes", 1)

    def build(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: [item(), item()]):
            with wf.loop("inner", over=lambda ctx: range(3)):
                wf.stage("change", body)

    return flow(build, state=Layers)


def grow(layer: Any) -> None:
    layer.size += 1


ITEMS = {
    "struct": (lambda: kitchens.Layer(3), grow),
    "in a list": (lambda: [kitchens.Layer(3)], lambda item: grow(item[0])),
    "in a dict": (lambda: {"a": {"b": kitchens.Layer(3)}}, lambda item: grow(item["a"]["b"])),
    "its list": (lambda: kitchens.Layer(3, ["a"]), lambda item: setattr(item, "names", ["b"])),
}


@pytest.mark.parametrize("limit", [None, 10], ids=["kept", "by reference"])
@pytest.mark.parametrize("kind", list(ITEMS))
def test_a_struct_among_the_items_changed_in_place_is_refused(
    kind: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr(items, "TOTAL_LIMIT", limit)
    store = MemoryStore()
    told = failure(changing(*ITEMS[kind]), store=store)
    assert told.type == "StateError"
    assert "outer" in told.message
    assert told.hint
    assert not of_type(store, "StageCompleted"), "refused by the first visit that changed it"


def test_a_predicate_and_an_over_are_refused_it_too() -> None:
    def change(ctx: Any) -> Any:
        grow(ctx.item("outer"))
        return [1]

    def asking(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: [kitchens.Layer(1)]):
            with wf.conditional(change, name="c"):
                wf.stage("s", lambda ctx: None)

    def looping(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: [kitchens.Layer(1)]):
            with wf.loop("inner", over=change):
                wf.stage("s", lambda ctx: None)

    def opening(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: [kitchens.Layer(1)]):
            wf.resource("r", change, stateful=False)
            wf.stage("s", lambda ctx: None)

    for build in (asking, looping, opening):
        assert failure(flow(build, state=Layers)).type == "StateError"


def test_a_struct_that_is_only_read_is_as_good_as_ever() -> None:
    def build(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: [kitchens.Layer(3, ["a"]), kitchens.Layer(4)]):
            with wf.loop("inner", over=lambda ctx: range(2)):
                wf.stage("read", lambda ctx: ctx.append("sizes", ctx.item("outer").size))

    assert done(flow(build, state=Layers)).state.sizes == [3, 3, 4, 4]


def zero(array: Any) -> None:
    array[0] = 7.0


ARRAYS = {
    "array": (lambda: np.ones(50), zero),
    "in a tuple": (lambda: (np.ones(50), 1), lambda item: zero(item[0])),
    "in a dict": (lambda: {"x": [np.ones(50)]}, lambda item: zero(item["x"][0])),
}


@pytest.mark.parametrize("limit", [None, 100], ids=["kept", "by reference"])
@pytest.mark.parametrize("kind", list(ARRAYS))
def test_an_array_among_the_items_cannot_be_written(
    kind: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr(items, "TOTAL_LIMIT", limit)
    item, change = ARRAYS[kind]

    def build(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: [item(), item()]):
            wf.stage("change", lambda ctx: change(ctx.item()))

    told = failure(flow(build))
    assert told.type == "ValueError"
    assert "read-only" in told.message


def test_the_callers_own_array_stays_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "TOTAL_LIMIT", 100)
    mine = [np.ones(50), np.ones(50)]

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: mine):
            wf.stage("s", lambda ctx: None)

    done(flow(build))
    for array in mine:
        zero(array)


# --- options changed in place ---------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"xs": [1], "deep": {"xs": [[1], {"a": 1}]}, "d": {"a": 1}}
CHANGES: dict[str, Any] = {
    "append": lambda options: options["xs"].append(2),
    "attribute": lambda options: options.xs.append(2),
    "list in dict": lambda options: options["deep"]["xs"][0].append(2),
    "dict in list": lambda options: options["deep"]["xs"][1].update(b=2),
    "item": lambda options: options["xs"].__setitem__(0, 2),
    "got": lambda options: options.get("xs").append(2),
    "value": lambda options: next(iter(options.values())).append(2),
}


@pytest.mark.parametrize("kind", list(CHANGES))
def test_options_cannot_be_changed_in_place(kind: str) -> None:
    seen: list[str] = []

    def body(ctx: Any) -> None:
        seen.append(repr(ctx.options))
        CHANGES[kind](ctx.options)

    workflow = flow(lambda wf: wf.stage("s", body, options=OPTIONS))
    assert failure(workflow).type == "FrozenValue"
    assert failure(workflow).type == "FrozenValue"
    assert len(seen) == 2
    assert seen[0] == seen[1], "a second run sees what was declared"


def test_options_never_leak_into_a_second_visit() -> None:
    seen: list[Any] = []

    def body(ctx: Any) -> None:
        seen.append(repr(ctx.options))
        for change in (
            *CHANGES.values(),
            lambda options: options["d"].__setitem__("a", 2),
            lambda options: setattr(options, "xs", 3),
            lambda options: setattr(options.d, "a", 3),
        ):
            with pytest.raises((StateError, kitchen.ConfigError, TypeError, AttributeError)):
                change(ctx.options)

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("s", body, options=OPTIONS)

    workflow = flow(build)
    before = workflow.ir
    for _ in range(2):
        done(workflow)
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert workflow.ir == before


def test_what_is_read_from_options_can_be_put_into_state() -> None:
    def body(ctx: Any) -> None:
        ctx.state.update(xs=ctx.options["xs"], deep=ctx.options["deep"], mine=[*ctx.options.xs, 2])

    state = done(flow(lambda wf: wf.stage("s", body, options=OPTIONS))).state
    assert state == {"xs": [1], "deep": OPTIONS["deep"], "mine": [1, 2]}


# --- the global generators ------------------------------------------------------------------------


def test_seeded_runs_are_equal_whatever_the_generators_held_before() -> None:
    runs: list[Any] = []
    for number in range(2):
        random.seed(number)
        np.random.seed(number)
        runs.append(essence(done(kitchens.seeded, seed=7)))
    assert runs[0] == runs[1]


def test_each_place_draws_its_own_numbers() -> None:
    def build(wf: Any) -> None:
        wf.resource("one", lambda ctx: {"drawn": kitchens.draw()}, stateful=False)
        wf.resource("two", lambda ctx: {"drawn": kitchens.draw()}, stateful=False)
        with wf.loop("l", over=lambda ctx: [kitchens.draw()]):
            wf.stage("s", lambda ctx: ctx.state.update(drawn=[
                ctx.resources["one"]["drawn"], ctx.resources["two"]["drawn"],
                ctx.item(), kitchens.draw(),
            ]))  # fmt: skip

    drawn = done(flow(build, seed_globals=True)).state["drawn"]
    assert len(set(drawn)) == 4


# --- what appending costs -------------------------------------------------------------------------

STAGES = 2_000
KITCHEN = str(Path(kitchen.__file__).parent)


def appending(times: int) -> Any:
    async def body(ctx: Any) -> None:
        for _ in range(times):
            ctx.append("history", 1.0)

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(STAGES)):
            wf.stage("s", body, thread=False)

    return flow(build)


class Measured:
    """An observer that notes, at each commit, what a meter says of the stage before."""

    def __init__(self, read: Any) -> None:
        self.read = read
        self.costs: list[int] = []

    def on_facts(self, *_: Any, **__: Any) -> None:
        self.costs.append(self.read())

    def on_progress(self, *_: Any, **__: Any) -> None: ...

    def early_and_late(self) -> tuple[float, float]:
        """What a stage costs behind 200, and at the end; medians, so that no rare event counts."""
        assert len(self.costs) >= STAGES
        return statistics.median(self.costs[200:300]), statistics.median(self.costs[-100:])


def measured(times: int, read: Any) -> tuple[float, float]:
    observer = Measured(read)
    run = done(appending(times), observers=[observer])
    assert len(run.state["history"]) == times * STAGES
    return observer.early_and_late()


@pytest.mark.parametrize("times", [1, 2])
def test_appending_copies_nothing_that_is_there(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most memory that a stage needs at once is the same behind 200 stages and 2,000."""
    monkeypatch.setattr(journal, "EVERY", 10**9)  # a snapshot is as large as the state

    def peak() -> int:
        now, most = tracemalloc.get_traced_memory()
        started, last[0] = last[0], now
        tracemalloc.reset_peak()
        return most - started

    last = [0]
    tracemalloc.start()
    try:
        early, late = measured(times, peak)
    finally:
        tracemalloc.stop()
    # A copy of 2,000 references to deltas takes 16,000 bytes.
    assert late < early + 4_000


@pytest.mark.parametrize("times", [1, 2])
def test_appending_visits_nothing_that_is_there(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of kitchen that a stage executes are as many behind 200 stages as behind 2,000."""
    monkeypatch.setattr(journal, "EVERY", 10**9)
    lines = [0]

    def local(_frame: FrameType, event: str, _arg: Any) -> Any:
        lines[0] += event == "line"
        return local

    def trace(frame: FrameType, _event: str, _arg: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(KITCHEN) else None

    def since() -> int:
        counted, lines[0] = lines[0], 0
        return counted

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        early, late = measured(times, since)
    finally:
        sys.settrace(before)
    assert early > 50, "nothing was measured"
    assert late < early * 1.1


# --- a process that dies there again and again ----------------------------------------------------


def always() -> Dying:
    return Dying(*range(100))


def dying_factory(die: Dying) -> Any:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: (die(), Box())[1])
        wf.stage("s", lambda ctx: None)

    return build


def dying_over(die: Dying) -> Any:
    def build(wf: Any) -> None:
        wf.stage("before", lambda ctx: None)
        with wf.loop("box", over=lambda ctx: (die(), [1])[1]):
            wf.stage("s", lambda ctx: None)

    return build


def dying_predicate(die: Dying) -> Any:
    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(2)):
            with wf.conditional(lambda ctx: (die(), True)[1], name="box"):
                wf.stage("s", lambda ctx: None)

    return build


def dying_save(die: Dying) -> Any:
    class Heavy(Box):
        def state_dict(self) -> dict[str, Any]:
            die()
            return super().state_dict()

    def build(wf: Any) -> None:
        wf.resource("heavy", lambda ctx: Heavy())
        wf.checkpoint("box")
        wf.stage("s", lambda ctx: None)

    return build


def deaths(workflow: Any, store: MemoryStore, limit: int) -> Any:
    """Start or resume it until it does not die any more; the error of its end."""
    for _ in range(limit):
        try:
            kitchen.run(workflow, store=store, run_id="r", if_exists="resume")
        except Killed:
            continue
        except kitchen.RunError as error:
            return error
        raise AssertionError("the run ended well")
    raise AssertionError(f"{limit} deaths, and no end")


@pytest.mark.parametrize("build", [dying_factory, dying_over, dying_predicate, dying_save])
def test_dying_there_spends_the_budget(build: Any) -> None:
    die = always()
    workflow, store = flow(build(die)), MemoryStore()
    error = deaths(workflow, store, CRASH_BUDGET + 1)
    assert f"died {CRASH_BUDGET} times" in str(error)
    assert "box" in str(error)
    assert die.calls == CRASH_BUDGET, "it was not tried once more"
    (failed,) = of_type(store, "RunFailed")
    assert failed.event.failure.type == "CrashBudgetSpent"  # type: ignore[attr-defined]
    # Whoever mended it has a fresh budget.
    die.at = {die.calls, die.calls + 1}
    for _ in range(2):
        with pytest.raises(Killed):
            kitchen.resume("r", workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).status == "completed"
    assert store.verify() == []


@pytest.mark.parametrize("where", ["factory", "load_state_dict", "over"])
def test_dying_on_the_way_back_spends_it_too(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kills the process is what a resume does before any command is performed."""
    monkeypatch.setattr(items, "TOTAL_LIMIT", 10)
    die, once = Dying(), Dying(0)

    def at(place: str) -> None:
        if place == where and once.calls:
            die()

    class Heavy(Box):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            at("load_state_dict")
            super().load_state_dict(state)

    def build(wf: Any) -> None:
        wf.resource("heavy", lambda ctx: (at("factory"), Heavy())[1])
        wf.checkpoint()
        with wf.loop("l", over=lambda ctx: (at("over"), ["x" * 50])[1]):
            wf.stage("s", lambda ctx: once())

    workflow, store = flow(build), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, store=store)
    die.at = set(range(100))
    error = deaths(workflow, store, CRASH_BUDGET + 2)
    assert "died" in str(error)
    assert die.calls <= CRASH_BUDGET
    die.at = set()
    assert kitchen.resume("r", workflow, store=store).status == "completed"


def test_deaths_at_different_places_do_not_add_up() -> None:
    """Each of ten visits kills the process once: that is no crash loop."""

    def build(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(10)):
            with wf.conditional(lambda ctx: (die(), True)[1], name="c"):
                wf.stage("s", lambda ctx: ctx.increment("n"))

    die = Dying(*range(0, 20, 2))
    workflow, store = flow(build), MemoryStore()
    for _ in range(10):
        with pytest.raises(Killed):
            kitchen.run(workflow, store=store, run_id="r", if_exists="resume")
    assert kitchen.resume("r", workflow, store=store).state["n"] == 10


# --- a state type that has gained a field ---------------------------------------------------------


class Before(msgspec.Struct):
    n: int = 0


class After(msgspec.Struct):
    n: int = 0
    momentum: float = 0.5
    names: list[str] = msgspec.field(default_factory=lambda: ["a"])


def gaining(declared: type[Any], die: Dying, *, touch: bool) -> Any:
    def use(ctx: Any) -> None:
        if touch:
            ctx.resources[MODEL].update(1.0)
        ctx.increment("n")

    def last(ctx: Any) -> None:
        die()
        if declared is After:
            ctx.state.n = ctx.state.n + int(ctx.state.momentum * 20)
            ctx.append("names", "b")

    def build(wf: Any) -> None:
        wf.resource("model", lambda ctx: Model(1.0))
        wf.stage("first", use)
        wf.checkpoint()
        wf.stage("second", use)
        wf.stage("last", last)

    return flow(build, state=declared)


@pytest.mark.parametrize("touch", [False, True], ids=["clean", "rewound"])
def test_a_gained_field_has_its_default_recorded_and_told(touch: bool) -> None:
    store = MemoryStore()
    with pytest.raises(Killed):
        done(gaining(Before, Dying(0), touch=touch), store=store)
    # It dies again with the new type, so the default must outlive a rewind to before the change.
    with pytest.raises(Killed):
        kitchen.resume("r", gaining(After, Dying(0), touch=touch), store=store)
    run = kitchen.resume("r", gaining(After, Dying(), touch=touch), store=store)
    assert (run.state.n, run.state.momentum, run.state.names) == (12, 0.5, ["a", "b"])
    assert bool(of_type(store, "RunRewound")) == touch
    (changed,) = of_type(store, "WorkflowChanged")
    event: Any = changed.event
    assert {key: bytes(value) for key, value in event.state.items()} == {
        "momentum": b"0.5",
        "names": b'["a"]',
    }
    assert any("state" in told for told in event.differences)
    assert History(store, "r").state_at(changed.seq)["momentum"] == 0.5
    assert store.verify() == []

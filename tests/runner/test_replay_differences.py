"""What a replay finds: each difference where it is, by stage, path, visit, key and both values.

1. A stage whose body was changed, in the middle of every construct.
2. What makes a stage differ from itself: a global, chance, what a peek changed, what a checkpoint
   forgets, what `over`, a predicate, a producer, a source, a factory, a reducer gives.
3. A difference is told once; what follows goes by the record.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

import kitchen
from kitchen import Resource
from kitchen.errors import ArgumentError
from kitchen.runner.replaying.rehearse import rehearse
from store import MemoryStore
from tests.crash import kitchens, side_by_side
from tests.runner.replaying_tools import keys, only_one, ran, ran_and_killed, rehearsed
from tests.runner.running import Box, Dying, flow

BOX: Resource[Box] = Resource("box", lambda ctx: Box())


def add(ctx: Any, by: float | None = None) -> None:
    ctx.append("values", ctx.resources[BOX].add(ctx.rng.random() if by is None else by))


# --- a changed body, in every construct -----------------------------------------------------------


def other_work(ctx: Any) -> None:
    """`work`, but for the count of one visit."""
    kitchens.work(ctx)
    if ctx.visit == (1, 1):
        ctx.state.count = 40


def rebuilt(workflow: Any, path: str, body: Any) -> Any:
    """The workflow with another body at one path."""
    kept = dict(workflow.bindings)
    assert path in kept
    kept[path] = body
    return kitchen.Workflow(
        ir=workflow.ir,
        fingerprint=workflow.fingerprint,
        bindings=kept,
        locator=workflow.locator,
        config_type=workflow.config_type,
        state_type=workflow.state_type,
        adapters=workflow.adapters,
    )


def replay_of(workflow: Any, changed: Any, *, backend: str = "asyncio", **given: Any) -> Any:
    store = MemoryStore()
    kitchen.run(workflow, store=store, run_id="r", seed=7)
    return anyio.run(partial(rehearse, changed, store, "r", **given), backend=backend)


def test_the_visit_whose_body_differs_is_named_with_both_values() -> None:
    changed = rebuilt(kitchens.plain, "outer/inner/work", other_work)
    found = only_one(replay_of(kitchens.plain, changed))
    assert found[1:6] == ("outer/inner/work", (1, 1), "state.count", "3", "40")
    told = f"state.count: recorded 3, found 40 (event {found.seq})"
    assert found.message == f"outer[1]/inner[1]/work: {told}"


def doing(body: Callable[[Any], Any], more: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A body that does something more."""

    async def both(ctx: Any) -> None:
        given = body(ctx)
        if given is not None:
            await given
        more(ctx)

    return both


CHANGED = [
    (kitchens.training, "epochs/batches/train", kitchens.train),
    (kitchens.scoped, "rounds/use_scoped", kitchens.use_scoped),
    (kitchens.items, "arrays/take_array", kitchens.take),
    (side_by_side.branches, "wide/inner/nested/more", side_by_side.give_async),
    (side_by_side.every, "models/rounds/improve", side_by_side.improve),
    (side_by_side.streams, "endless/take_some", side_by_side.take_some),
    (side_by_side.batches, "epochs/batches/train_batch", side_by_side.train_batch),
    (side_by_side.productions, "two/write", side_by_side.write_async),
    (side_by_side.nested, "sides/off/loop/checks/check", side_by_side.write_async),
    (side_by_side.nested, "again/cases/write_case", side_by_side.write),
]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("workflow", "path", "body"), CHANGED, ids=[each[1] for each in CHANGED])
def test_a_changed_stage_is_named_at_each_of_its_visits(
    workflow: Any, path: str, body: Any, backend: str
) -> None:
    """It puts one key more; nothing else differs, as all else goes by the record."""
    changed = rebuilt(workflow, path, doing(body, lambda ctx: ctx.state.update(planted=1)))
    store = MemoryStore()
    kitchen.run(workflow, store=store, run_id="r", seed=7)
    replay = anyio.run(partial(rehearse, changed, store, "r"), backend=backend)
    visits = [r.visit for r in store.read("r") if r.type == "StageCompleted" and r.path == path]
    assert [each.visit for each in replay.divergences] == visits
    assert {(each.path, each.key) for each in replay.divergences} == {(path, "state.planted")}
    assert {(each.recorded, each.found) for each in replay.divergences} == {("nothing", "1")}


EFFECTS: list[tuple[str, Callable[[Any], Any], str, str, str]] = [
    ("put", lambda ctx: ctx.state.update(a=2), "state.a", "1", "2"),
    ("type", lambda ctx: ctx.state.update(a=1.0), "state.a", "1", "1.0"),
    ("delete", lambda ctx: ctx.state.pop("old"), "state.old", "nothing", "deleted"),
    ("append", lambda ctx: ctx.append("list", 3), "state.list", "nothing", "append [3]"),
    ("increment", lambda ctx: ctx.increment("count", 5), "state.count", "nothing", "add 5"),
    ("merge", lambda ctx: ctx.merge("map", {"k": 1}), "state.map", "nothing", "merge {'k': 1}"),
    ("metric", lambda ctx: ctx.record_metric("acc", 0.5, step=3), "metric.acc", "nothing",
     "0.5 at step 3"),
    ("stop", lambda ctx: ctx.stop_loop(), "stop_loop", "nothing", "asked for"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "more", "key", "recorded", "found"), EFFECTS)
@pytest.mark.parametrize("more_is", ["new", "gone"])
def test_every_kind_of_effect(
    name: str, more: Any, key: str, recorded: str, found: str, more_is: str
) -> None:
    def build(*, planted: bool) -> Any:
        def body(ctx: Any) -> None:
            ctx.state["a"] = 1
            if planted:
                more(ctx)

        def author(wf: Any) -> None:
            wf.stage("begin", lambda ctx: ctx.state.update(old=0, list=[], count=1, map={"a": 0}))
            with wf.loop("once", over=lambda ctx: range(1)):
                wf.stage("s", body)

        return author

    new = more_is == "new"
    replay = rehearsed(build(planted=new), ran(build(planted=not new)))
    difference = only_one(replay)
    assert (difference.path, difference.visit, difference.key) == ("once/s", (0,), key)
    expected = (recorded, found) if new else (found, recorded)
    assert (difference.recorded, difference.found) == expected


def test_a_metric_and_its_step() -> None:
    def build(value: float, step: int) -> Any:
        return lambda wf: wf.stage("s", lambda ctx: ctx.record_metric("loss", value, step=step))

    store = ran(build(0.5, 1))
    difference = only_one(rehearsed(build(0.5, 2), store))
    assert (difference.recorded, difference.found) == ("0.5 at step 1", "0.5 at step 2")
    difference = only_one(rehearsed(build(0.25, 1), store))
    assert (difference.key, difference.recorded, difference.found) == ("metric.loss", "0.5", "0.25")


def test_a_stage_that_raises_now() -> None:
    def build(error: Exception | None) -> Any:
        def body(ctx: Any) -> None:
            add(ctx)
            if error is not None:
                raise error

        def author(wf: Any) -> None:
            wf.resource(BOX)
            wf.stage("first", body)
            wf.checkpoint()
            wf.stage("second", add)

        return author

    replay = rehearsed(build(ValueError("no")), ran(build(None)))
    assert keys(replay) == [("first", (), "raised")]
    difference = only_one(replay)
    assert (difference.recorded, difference.found) == ("completed", "ValueError: no")


# --- what makes a stage differ from itself --------------------------------------------------------

COUNT = [0]
CHANCE = random.Random()


def from_global(ctx: Any) -> None:
    COUNT[0] += 1
    ctx.state["seen"] = COUNT[0]


def by_chance(ctx: Any) -> None:
    ctx.state["drawn"] = CHANCE.random()


def by_numpy(ctx: Any) -> None:
    ctx.record_metric("drawn", float(np.random.default_rng().random()))


@pytest.mark.parametrize(
    ("body", "key"),
    [(from_global, "state.seen"), (by_chance, "state.drawn"), (by_numpy, "metric.drawn")],
)
@pytest.mark.parametrize("place", ["alone", "in a loop", "in a branch"])
def test_hidden_globals_and_chance(body: Any, key: str, place: str) -> None:
    def build(wf: Any) -> None:
        wf.stage("before", lambda ctx: ctx.state.update(drawn=ctx.rng.random()))
        if place == "in a loop":
            with wf.loop("turns", over=lambda ctx: range(2)):
                wf.stage("s", body)
        elif place == "in a branch":
            with wf.parallel("p"):
                wf.stage("s", body)
                wf.stage("t", lambda ctx: ctx.state.update(t=ctx.rng.random()))
        else:
            wf.stage("s", body)

    replay = rehearsed(build, ran(build))
    assert {each.key for each in replay.divergences} == {key}
    assert {each.path.rpartition("/")[2] for each in replay.divergences} == {"s"}


@pytest.mark.parametrize("by", ["a stage", "a predicate", "over"])
def test_a_resource_changed_by_a_peek(by: str) -> None:
    """A resume would open it, or load it, as it was before."""

    def meddle(ctx: Any) -> Any:
        ctx.resources.peek(BOX).add(5)
        return [1]

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("first", add)
        wf.checkpoint()
        if by == "a stage":
            wf.stage("meddle", lambda ctx: meddle(ctx) and None)
        elif by == "a predicate":
            with wf.conditional(lambda ctx: bool(meddle(ctx)), name="meddle"):
                wf.stage("in", lambda ctx: None)
        else:
            with wf.loop("meddle", over=meddle):
                wf.stage("in", lambda ctx: None)
        wf.stage("use", add)

    replay = rehearsed(build, ran(build))
    difference = only_one(replay)
    assert (difference.path, difference.key) == ("meddle", "resource.box: value")
    assert float(difference.recorded) != float(difference.found)
    assert "only peeked at" in difference.message


def test_a_peek_at_one_that_was_never_saved_and_one_that_is_dirty() -> None:
    """What is dirty is gone back behind anyway, so there a change does no harm."""

    def meddle(ctx: Any) -> None:
        ctx.resources.peek(BOX).add(5)

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("clean", meddle)
        wf.stage("use", add)
        wf.stage("dirty", meddle)

    assert keys(rehearsed(build, ran(build))) == [("clean", (), "resource.box: value")]


class Forgetful(Box):
    """Its state says nothing of what it adds."""

    step = 1.0

    def add(self, by: float = 1) -> float:
        self.step *= 0.5
        return super().add(by + self.step)


def training(resource: Any, at: int) -> Any:
    def build(wf: Any) -> None:
        wf.resource("box", resource)
        with wf.loop("turns", over=lambda ctx: range(4)):
            wf.stage("use", lambda ctx: add(ctx, 1.0))
            with wf.conditional(lambda ctx: ctx.index() == at, name="now"):
                wf.checkpoint()

    return build


@pytest.mark.parametrize("at", [0, 2])
def test_a_state_dict_that_forgets_a_field_shows_behind_the_checkpoint(at: int) -> None:
    build = training(lambda ctx: Forgetful(), at)
    replay = rehearsed(build, ran(build))
    assert replay.first is not None
    first = replay.first
    assert (first.path, first.visit, first.key) == ("turns/use", (at + 1,), "state.values")
    assert "box had been had again, as at a resume" in first.message
    assert rehearsed(training(lambda ctx: Box(), at), ran(training(lambda ctx: Box(), at))).ok


def test_a_state_dict_of_arrays_that_forgets_one() -> None:
    class Model(kitchens.Model):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict({**state, "weights": np.zeros(4, np.float32)})

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Model(1.0))
        for name in "abc":
            wf.stage(name, lambda ctx: ctx.append("sums", ctx.resources["box"].update(1.0)))
            wf.checkpoint(f"save_{name}")

    replay = rehearsed(build, ran(build))
    # What was loaded differs, so what comes of it does, and what is saved of that.
    assert keys(replay) == [
        ("b", (), "state.sums"),
        ("save_b", (), "resource.box: weights"),
        ("c", (), "state.sums"),
        ("save_c", (), "resource.box: weights"),
    ]
    saved = replay.divergences[1]
    assert saved.recorded.startswith("float32[4] [")
    assert "at most 1.71 apart" in saved.found


def test_a_state_dict_that_differs_is_told_where_it_is_saved() -> None:
    def build(start: float) -> Any:
        def author(wf: Any) -> None:
            wf.resource("box", lambda ctx: {"v": Box(start)}["v"])
            wf.stage("use", lambda ctx: ctx.resources["box"].add() and None)
            wf.checkpoint()
            wf.stage("again", add)

        return author

    replay = rehearsed(build(3.0), ran(build(1.0)))
    difference = only_one(replay)
    assert (difference.path, difference.key) == ("checkpoint", "resource.box: value")
    assert (difference.recorded, difference.found) == ("1.5", "2.5")


# --- what is asked --------------------------------------------------------------------------------


def test_a_loop_whose_items_differ() -> None:
    def build(items: list[Any]) -> Any:
        def author(wf: Any) -> None:
            with wf.loop("l", over=lambda ctx: items):
                wf.stage("s", lambda ctx: ctx.append("seen", ctx.item()))

        return author

    store = ran(build([1, "a", 0.5]))
    difference = only_one(rehearsed(build([1, "b", 0.5]), store))
    assert (difference.path, difference.key) == ("l", "items")
    assert (difference.recorded, difference.found) == ("'a'", "'b'")
    assert "items at [1]" in difference.message
    difference = only_one(rehearsed(build([1, "a"]), store))
    assert (difference.recorded, difference.found) == ("3 items", "2 items")


LARGE = [
    ("range", range(3), range(4)),
    ("blob", [f"{i}" * 900 for i in range(9)], [f"{i}" * 900 for i in (*range(8), 0)]),
    ("refs", [np.full(2**20, i) for i in range(3)], [np.full(2**20, 0) for _ in range(3)]),
]


@pytest.mark.parametrize(("name", "then", "now"), LARGE, ids=[each[0] for each in LARGE])
def test_items_of_every_size_that_differ(name: str, then: Any, now: Any) -> None:
    def build(items: Any) -> Any:
        def author(wf: Any) -> None:
            with wf.loop("l", over=lambda ctx: items):
                wf.stage("s", lambda ctx: ctx.increment("n"))

        return author

    store = ran(build(then))
    assert rehearsed(build(then), store).ok
    assert keys(rehearsed(build(now), store))[:1] == [("l", (), "items")]


@pytest.mark.parametrize("kind", ["list", "generator", "async", "shorter", "longer", "raises"])
def test_a_stream_whose_source_differs(kind: str) -> None:
    def source(numbers: list[int]) -> Any:
        if kind == "async":

            async def give() -> Any:
                for number in numbers:
                    yield number

            return give()
        if kind == "raises" and 9 in numbers:
            return (n if n != 9 else 1 // 0 for n in numbers)
        return iter(numbers) if kind == "generator" else numbers

    def build(numbers: list[int]) -> Any:
        def author(wf: Any) -> None:
            with wf.stream_loop("s", over=lambda ctx: source(numbers)):
                wf.stage("take", lambda ctx: ctx.append("taken", ctx.item()))

        return author

    now = {"shorter": [1, 2], "longer": [1, 2, 3, 4]}.get(kind, [1, 9, 3])
    store = ran(build([1, 2, 3]))
    assert rehearsed(build([1, 2, 3]), store).ok
    replay = rehearsed(build(now), store)
    difference = only_one(replay)
    expected = {
        "shorter": ((2,), "item", "3", "the end"),
        "longer": ((), "items", "the end after 3 items", "another: 4"),
        "raises": ((1,), "raised", "2", "ZeroDivisionError: integer division or modulo by zero"),
    }.get(kind, ((1,), "item", "2", "9"))
    assert (difference.visit, difference.key, difference.recorded, difference.found) == expected


def test_a_predicate_that_differs_and_the_record_is_followed() -> None:
    def build(answers: Callable[[Any], bool]) -> Any:
        def author(wf: Any) -> None:
            wf.resource(BOX)
            with wf.loop("l", over=lambda ctx: range(3)):
                with wf.conditional(answers, name="ask"):
                    wf.stage("yes", add)
                with wf.otherwise():
                    wf.stage("no", lambda ctx: ctx.append("no", ctx.index()))

        return author

    replay = rehearsed(build(lambda ctx: ctx.index() != 1), ran(build(lambda ctx: True)))
    difference = only_one(replay)
    assert (difference.path, difference.visit, difference.key) == ("l/ask", (1,), "answer")
    assert (difference.recorded, difference.found) == ("True", "False")
    assert replay.executed == 3
    touching = build(lambda ctx: ctx.resources[BOX].add() > 0)
    assert rehearsed(touching, ran(touching)).ok


def test_producers_stop_when_reducers_and_limits() -> None:
    def build(plus: int) -> Any:
        def author(wf: Any) -> None:
            wf.stage("begin", lambda ctx: ctx.state.update(sum=0, n=0))
            with wf.async_loop(
                "made",
                producer=lambda ctx: ctx.state["n"] + (plus if ctx.index() == 1 else 0),
                stop_when=lambda ctx: ctx.index() + (plus and ctx.index() == 0) * 9 >= 2,
            ):
                wf.stage("take", lambda ctx: (ctx.append("got", ctx.item()), ctx.increment("n")))
            with wf.parallel(
                "p",
                over=lambda ctx: [1, 2 + plus],
                max_concurrency=lambda ctx: 1 + plus,
                merge={"sum": lambda before, values: sum(values) + plus},
            ):
                wf.stage("add", lambda ctx: ctx.state.update(sum=ctx.item()))

        return author

    store = ran(build(0))
    assert rehearsed(build(0), store).ok
    found = keys(rehearsed(build(1), store))
    # Which of the first two came first was chance.
    assert sorted(found[:2]) == [
        ("made/producer", (1,), "item"),
        ("made/stop_when", (0,), "answer"),
    ]
    assert found[2:] == [("p", (), "limit"), ("p", (), "items"), ("p", (), "state.sum")]


def test_what_is_touched_now_and_was_not() -> None:
    def build(*, touches: bool) -> Any:
        def body(ctx: Any) -> None:
            ctx.state["value"] = (ctx.resources[BOX] if touches else ctx.resources.peek(BOX)).value

        def author(wf: Any) -> None:
            wf.resource(BOX)
            wf.stage("s", body)

        return author

    difference = only_one(rehearsed(build(touches=True), ran(build(touches=False))))
    assert (difference.key, difference.recorded, difference.found) == (
        "resource.box",
        "not touched",
        "touched",
    )


def test_a_factory_that_fails_or_is_not_stateful_any_more() -> None:
    def build(factory: Any) -> Any:
        def author(wf: Any) -> None:
            wf.resource("box", factory)
            wf.stage("s", lambda ctx: None)

        return author

    store = ran(build(lambda ctx: Box()))
    replay = rehearsed(build(lambda ctx: 1 // 0), store)
    assert keys(replay) == [("box", (), "raised")]
    replay = rehearsed(build(lambda ctx: object()), store)
    assert keys(replay) == [("box", (), "resource.box")]


# --- a workflow that has changed ------------------------------------------------------------------


def test_a_node_that_is_gone_or_of_another_kind_is_told_once() -> None:
    def then(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("gone", lambda ctx: ctx.increment("a"))
            wf.stage("other", lambda ctx: ctx.increment("b"))
            wf.stage("same", lambda ctx: ctx.increment("c"))

    def now(wf: Any) -> None:
        with wf.loop("l", over=lambda ctx: range(2)):
            with wf.conditional(lambda ctx: True, name="other"):
                wf.stage("in", lambda ctx: None)
            wf.stage("same", lambda ctx: ctx.increment("c"))
            wf.stage("new", lambda ctx: 1 // 0)

    replay = rehearsed(now, ran(then))
    assert keys(replay) == [("l/gone", (0,), "node"), ("l/other", (0,), "node")]
    assert [(d.recorded, d.found) for d in replay.divergences] == [
        ("wf.stage", "no such node"),
        ("wf.stage", "wf.conditional"),
    ]
    assert replay.skipped == {"changed node": 4}
    assert replay.executed == 2


# --- only, until, tolerance -----------------------------------------------------------------------


def chain(seen: list[str]) -> Any:
    def use(ctx: Any) -> None:
        seen.append(ctx.path)
        add(ctx)

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("a", use)
        wf.stage("b", use)
        wf.checkpoint()
        wf.stage("c", lambda ctx: seen.append(ctx.path))
        wf.stage("d", use)
        wf.stage("e", use)
        wf.stage("f", use)

    return build


@pytest.mark.parametrize(
    ("only", "executed"),
    [("a", "a"), ("b", "ab"), ("c", "c"), ("d", "d"), ("e", "de"), ("checkpoint", "ab")],
)
def test_only_a_path_and_what_it_needs(only: str, executed: str) -> None:
    """From its cut on where the resources were dirty, else nothing but itself."""
    seen: list[str] = []
    store = ran(chain(seen))
    seen.clear()
    replay = rehearsed(chain(seen), store, only=only)
    assert replay.ok
    assert "".join(seen) == executed
    assert replay.executed == len(executed)
    assert replay.visits == (only != "checkpoint")


def test_only_one_node_is_reported() -> None:
    def build(wf: Any) -> None:
        wf.stage("a", by_chance)
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("b", by_chance)
        wf.stage("c", by_chance)

    store = ran(build)
    assert [k[:2] for k in keys(rehearsed(build, store, only="l"))] == [
        ("l/b", (0,)),
        ("l/b", (1,)),
    ]
    with pytest.raises(ArgumentError, match="no node 'l/x'") as caught:
        rehearsed(build, store, only="l/x")
    assert caught.value.hint == "did you mean 'l/b'?"


def test_a_stream_is_put_back_once_and_then_followed() -> None:
    pulls: list[int] = []

    def source(ctx: Any) -> Any:
        for number in range(50):
            pulls.append(number)
            yield number

    def build(wf: Any) -> None:
        with wf.stream_loop("s", over=source):
            wf.stage("before", lambda ctx: None)
            wf.stage("take", lambda ctx: ctx.append("taken", ctx.item()))

    store = ran(build)
    pulls.clear()
    replay = rehearsed(build, store, only="s/take")
    assert replay.ok
    assert replay.executed == 50
    assert pulls == list(range(50))


def test_nothing_behind_until() -> None:
    seen: list[str] = []
    store = ran(chain(seen))
    (start,) = [r.seq for r in store.read("r") if r.type == "StageCompleted" and r.path == "d"]
    seen.clear()
    assert rehearsed(chain(seen), store, until=start).visits == 4
    assert seen == ["a", "b", "c", "d"]
    seen.clear()
    assert rehearsed(chain(seen), store, until=start - 1).visits == 3
    assert seen == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [
        (0.0, ["metric.m", "state.array", "state.list", "state.nan", "state.number"]),
        (1e-3, ["state.nan"]),
        (1e-9, ["metric.m", "state.array", "state.list", "state.nan", "state.number"]),
    ],
)
def test_a_tolerance_is_for_numbers(tolerance: float, expected: list[str]) -> None:
    def build(off: float) -> Any:
        def body(ctx: Any) -> None:
            ctx.state["number"] = 100.0 + off
            ctx.state["list"] = [{"inner": (1.0, off)}]
            ctx.state["array"] = np.linspace(0, 1, 5) + off
            ctx.state["nan"] = float("nan") if off else 0.0
            ctx.state["always"] = float("nan")
            ctx.record_metric("m", 1 + off)

        return lambda wf: wf.stage("s", body)

    replay = rehearsed(build(1e-5), ran(build(0.0)), tolerance=tolerance)
    assert sorted(each.key for each in replay.divergences) == expected


class Inner(msgspec.Struct):
    names: list[str] = []


class State(msgspec.Struct):
    inner: Inner = msgspec.field(default_factory=Inner)


def test_objects_of_declared_types_are_compared_by_their_fields() -> None:
    def build(name: str) -> Any:
        return lambda wf: wf.stage("s", lambda ctx: ctx.state.inner.names.append(name))

    store = MemoryStore()
    ran_one = flow(build("a"), state=State)
    kitchen.run(ran_one, store=store, run_id="r")
    difference = only_one(rehearsed(build("b"), store, declared={"state": State}))
    assert (difference.key, difference.recorded, difference.found) == ("state.inner", "'a'", "'b'")
    assert "state.inner at names[0]" in difference.message


# --- as it was ------------------------------------------------------------------------------------


def test_what_a_stage_is_given_is_as_it_was() -> None:
    given: list[Any] = []
    die = Dying(0)

    def look(ctx: Any) -> None:
        given.append(
            (ctx.path, ctx.visit, ctx.attempt, ctx.incarnation, ctx.idempotency_key, ctx.seed,
             ctx.options.get("scale"), ctx.config.rate, dict(ctx.state), ctx.run_id)
        )  # fmt: skip
        ctx.append("values", ctx.resources[BOX].add(ctx.rng.random()))

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("first", look, options={"scale": 2})
        wf.checkpoint()
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("second", look)
        wf.stage("die", lambda ctx: die())
        wf.stage("third", look)

    store = MemoryStore()
    with pytest.raises(BaseException):  # noqa: B017, PT011  (it is killed)
        kitchen.run(flow(build), {"rate": 0.5}, store=store, run_id="r", seed=3)
    kitchen.resume("r", flow(build), store=store)
    first, again = [g for g in given if g[0] == "first"], given[3:]
    given.clear()
    assert rehearsed(build, store).ok
    assert given == [*first, *again]


def test_adapters_are_those_that_are_given() -> None:
    def provide() -> dict[str, Any]:
        return {"clock": lambda: 1}

    def build(wf: Any) -> None:
        wf.stage("s", lambda ctx: ctx.state.update(time=ctx.adapters["clock"]()))

    store = MemoryStore()
    kitchen.run(flow(build, adapters=provide), store=store, run_id="r")
    assert rehearsed(build, store, declared={"adapters": provide}).ok
    given = {"clock": lambda: 2}
    difference = only_one(rehearsed(build, store, adapters=given))
    assert (difference.key, difference.found) == ("state.time", "2")


def test_resources_come_and_go_as_they_did() -> None:
    """Also those of blocks, where factories look at others, and behind a kill."""
    life: list[str] = []
    die = Dying(1)

    class Handle(Box):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def __enter__(self) -> Handle:
            life.append(f"open {self.name}")
            return self

        def __exit__(self, *told: object) -> None:
            life.append(f"close {self.name}")

    def build(wf: Any) -> None:
        wf.resource("outer", lambda ctx: Handle("outer"))
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.resource("inner", lambda ctx: Handle(f"inner {ctx.index()}"))
            wf.stage("use", lambda ctx: (ctx.resources["inner"].add(), die()))

    store = ran_and_killed(build)
    life.clear()
    assert rehearsed(build, store, backend="trio").ok
    assert life.count("open outer") == life.count("close outer")
    assert life[0] == "open outer"
    assert life[-1] == "close outer"
    for name in ("inner 0", "inner 1"):
        assert life.count(f"open {name}") == life.count(f"close {name}") >= 1

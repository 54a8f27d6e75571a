"""Rewinds: what is taken back after a crash, what is remembered of it, and what is compared.

1. Nothing touched: the run goes on from its last event. Touched: it is rewound to the cut.
2. What is superseded stays readable and counts no more, in metrics as in state.
3. Behind a rewind, recorded decisions and items are not asked for again, unless asking touched
   a stateful resource; what runs again is compared, and the first difference is told once.
4. Resources come back as they were at the cut, each factory seeing the state that it saw.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest

import kitchen
from kitchen import Resource
from kitchen.history.history import History
from kitchen.machine import snapshot
from store import MemoryStore
from tests.runner.running import Box, Dying, Killed, done, flow, log, of_type, types

BOX: Resource[Box] = Resource("box", lambda ctx: Box())


def killed(workflow: Any, store: MemoryStore, **given: Any) -> None:
    with pytest.raises(Killed):
        done(workflow, store=store, **given)


def resumed(workflow: Any, store: MemoryStore) -> Any:
    run = kitchen.resume("r", workflow, store=store)
    assert store.verify() == []
    return run


def killed_again(workflow: Any, store: MemoryStore) -> None:
    with pytest.raises(Killed):
        kitchen.resume("r", workflow, store=store)


def use(ctx: Any) -> None:
    """Touch the box, and tell of it in every way there is."""
    value = ctx.resources[BOX].add()
    ctx.increment("uses")
    ctx.record_metric("value", value)


def note(ctx: Any) -> None:
    ctx.state["box"] = ctx.resources.peek(BOX).state_dict()


# --- to rewind or not -----------------------------------------------------------------------------


def test_nothing_touched_goes_on_from_the_last_event() -> None:
    die, ran = Dying(0), list[str]()

    def second(ctx: Any) -> None:
        ran.append("second")
        die()

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("first", lambda ctx: ran.append("first"))
        wf.stage("second", second)

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    before = store.head("r")
    assert resumed(workflow, store).status == "completed"
    assert ran == ["first", "second", "second"]
    assert types(store)[before : before + 2] == ["RunResumed", "StageInterrupted"]
    assert not of_type(store, "RunRewound")
    assert all(record.counts for record in log(store))


def test_peek_does_not_touch() -> None:
    die = Dying(0)

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("look", lambda ctx: ctx.state.update({"seen": ctx.resources.peek(BOX).value}))
        wf.stage("die", lambda ctx: die())

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    resumed(workflow, store)
    assert not of_type(store, "RunRewound", "ResourceTouched")


def touching(die: Dying, ran: list[str]) -> Any:
    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("early", use)
        wf.checkpoint()
        wf.stage("again", lambda ctx: (ran.append("again"), use(ctx)))
        wf.stage("die", lambda ctx: die())
        wf.stage("note", note)

    return flow(build)


def test_touched_is_rewound_to_the_cut() -> None:
    ran: list[str] = []
    whole = done(touching(Dying(), []))
    store = MemoryStore()
    workflow = touching(Dying(0), ran)
    killed(workflow, store)
    run = resumed(workflow, store)
    assert ran == ["again", "again"]
    assert dict(run.state) == dict(whole.state)
    (rewound,) = of_type(store, "RunRewound")
    event: Any = rewound.event
    (first_start,) = [e for e in of_type(store, "StageStarted") if e.path == "again"][:1]
    assert event.to == first_start.seq
    assert event.touched == ("box",)
    (restored,) = of_type(store, "ResourceRestored")
    assert restored.event == type(restored.event)("box", of_type(store, "CheckpointSaved")[0].seq)  # type: ignore[call-arg]


def test_superseded_events_stay_readable_and_do_not_count() -> None:
    store = MemoryStore()
    workflow = touching(Dying(0), [])
    killed(workflow, store)
    head = store.head("r")
    run = resumed(workflow, store)
    past = History(store, "r")
    (rewound,) = of_type(store, "RunRewound")
    to: int = rewound.event.to  # type: ignore[attr-defined]
    assert [record.seq for record in past.events if not record.counts] == list(
        range(to + 1, rewound.seq)
    )
    assert past.state_at(head)["uses"] == 2
    assert past.state_at(rewound.seq)["uses"] == 1
    values = [point.value for point in past.metrics("value")]
    assert values == [1.0, 1.5] == [point.value for point in run.metrics["value"]]
    assert len(of_type(store, "MetricRecorded")) == 3


def test_a_resource_never_saved_is_cut_where_it_was_opened() -> None:
    die = Dying(0)
    opened: list[str] = []

    def build(wf: Any) -> None:
        wf.stage("before", lambda ctx: ctx.increment("before"))
        wf.resource("box", lambda ctx: opened.append("box") or Box(3))
        wf.stage("use", use)
        wf.stage("die", lambda ctx: die())
        wf.stage("note", note)

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    run = resumed(workflow, store)
    assert opened == ["box", "box"]
    assert run.state["before"] == 1
    assert run.state["box"] == {"value": 2.5, "changes": 1}
    (rewound,) = of_type(store, "RunRewound")
    (first_start,) = [e for e in of_type(store, "StageStarted") if e.path == "use"][:1]
    assert rewound.event.to == first_start.seq  # type: ignore[attr-defined]


@pytest.mark.parametrize("dies_at", range(6))
def test_several_resources_opened_at_different_times(dies_at: int) -> None:
    """One saved, one opened after the checkpoint, one in each turn of a loop."""
    last: Resource[Box] = Resource("last", lambda ctx: Box(ctx.state["uses"]))

    def build_with(die: Dying) -> Any:
        def turn(ctx: Any) -> None:
            die()
            inner = ctx.resources["inner"]
            ctx.append("seen", inner.add(ctx.resources[last].add()))
            die()

        def build(wf: Any) -> None:
            wf.resource(BOX)
            wf.stage("use", use)
            wf.checkpoint()
            wf.resource(last)
            with wf.loop("turns", over=lambda ctx: range(3)):
                wf.resource("inner", lambda ctx: Box(ctx.item("turns") * 10))
                wf.stage("turn", turn)
                with wf.conditional(lambda ctx: ctx.index() == 1, name="middle"):
                    wf.stage("use", use)
                    wf.checkpoint()
                    wf.stage("use_again", use)
            wf.stage("note", note)
            wf.stage("note_last", lambda ctx: ctx.state.update(last=ctx.resources[last].value))

        return flow(build)

    whole = done(build_with(Dying()))
    store = MemoryStore()
    workflow = build_with(Dying(dies_at))
    killed(workflow, store)
    assert dict(resumed(workflow, store).state) == dict(whole.state)


def test_a_factory_that_uses_another_resource_touches_it() -> None:
    die = Dying(0)

    def doubled(ctx: Any) -> Box:
        return Box(ctx.resources[BOX].add(10))

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        wf.checkpoint("first")
        wf.resource("second", doubled)
        wf.stage("look", lambda ctx: ctx.state.update({"second": ctx.resources["second"].value}))
        wf.checkpoint("both")
        wf.stage("die", lambda ctx: die())
        wf.stage("note", note)

    def run_of(workflow: Any, store: MemoryStore) -> Any:
        try:
            return done(workflow, store=store)
        except Killed:
            return resumed(workflow, store)

    store = MemoryStore()
    found = run_of(flow(build), store)
    (opened,) = [r for r in of_type(store, "ResourceOpened") if r.path == "second"]
    assert opened.event.touched == ("box",)  # type: ignore[attr-defined]
    assert found.state["second"] == 10.5
    assert found.state["box"] == {"value": 10.5, "changes": 2}, "the factory ran on it once"


def test_a_factory_sees_on_resume_the_state_that_it_saw() -> None:
    die = Dying(0)
    seen: list[int] = []

    def opened(ctx: Any) -> Box:
        seen.append(ctx.state["n"])
        return Box(ctx.state["n"])

    def build(wf: Any) -> None:
        wf.stage("one", lambda ctx: ctx.state.update({"n": 1}))
        wf.resource("box", opened)
        wf.stage("five", lambda ctx: ctx.state.update({"n": 5}))
        wf.stage("die", lambda ctx: die())
        wf.stage("note", note)

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    run = resumed(workflow, store)
    assert seen == [1, 1]
    assert run.state["n"] == 5
    assert run.state["box"]["value"] == 1
    assert not of_type(store, "RunRewound")


def test_a_factory_in_a_loop_reads_its_item_again() -> None:
    die = Dying(1)
    seen: list[Any] = []

    def opened(ctx: Any) -> Box:
        seen.append((ctx.item("names"), ctx.index(), ctx.rng.random()))
        return Box(len(ctx.item()))

    def build(wf: Any) -> None:
        with wf.loop("names", over=lambda ctx: ["a", "bcd" * 3000]):
            wf.resource("box", opened)
            wf.stage("die", lambda ctx: die())
            wf.stage("note", lambda ctx: ctx.append("sizes", ctx.resources[BOX].value))

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    assert resumed(workflow, store).state["sizes"] == [1, 9000]
    assert seen[1] == seen[2]


def test_a_later_factory_does_not_change_what_was_saved() -> None:
    """On resume the second factory uses the first resource, which is then loaded again."""
    die = Dying(0)

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.resource("second", lambda ctx: Box(ctx.resources[BOX].add(100)))
        wf.stage("use", use)
        wf.checkpoint()
        wf.stage("die", lambda ctx: die())
        wf.stage("note", note)

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    assert resumed(workflow, store).state["box"] == {"value": 51.0, "changes": 2}


# --- the memo -------------------------------------------------------------------------------------


def deciding(die: Dying, predicate: Any, over: Any, ran: list[str] | None = None) -> Any:
    """Touch, decide, loop, die: everything behind the touch is superseded."""

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        with wf.conditional(predicate, name="decision"):
            wf.stage("yes", lambda ctx: ctx.append("ran", "yes"))
        with wf.otherwise():
            wf.stage("no", lambda ctx: ctx.append("ran", "no"))
        with wf.loop("items", over=over):
            wf.stage("take", lambda ctx: ctx.append("ran", ctx.item()))
        wf.stage("die", lambda ctx: die())
        wf.stage("note", note)

    return flow(build)


def test_what_chance_decided_is_not_asked_again() -> None:
    asked: list[str] = []
    answers = itertools.cycle([True, False])

    def coin(ctx: Any) -> bool:
        asked.append("coin")
        return next(answers)

    def drawn(ctx: Any) -> list[str]:
        asked.append("over")
        return [os.urandom(4).hex() for _ in range(3)]

    workflow, store = deciding(Dying(0), coin, drawn), MemoryStore()
    killed(workflow, store)
    before = History(store, "r").state_at()["ran"]
    run = resumed(workflow, store)
    assert asked == ["coin", "over"]
    assert run.state["ran"] == before
    assert before[0] == "yes"
    assert len(before) == 4
    assert not of_type(store, "RewindDiverged")
    assert len(of_type(store, "ConditionEvaluated")) == len(of_type(store, "LoopEntered")) == 2


def test_a_question_that_touches_is_put_again_and_compared() -> None:
    asked: list[str] = []

    def looks(ctx: Any) -> bool:
        asked.append("decision")
        return ctx.resources[BOX].add() > 1

    def draws(ctx: Any) -> list[float]:
        asked.append("over")
        return [ctx.resources[BOX].add() for _ in range(2)]

    whole = done(deciding(Dying(), looks, draws))
    asked.clear()
    workflow, store = deciding(Dying(0), looks, draws), MemoryStore()
    killed(workflow, store)
    run = resumed(workflow, store)
    assert asked == ["decision", "over"] * 2
    assert dict(run.state) == dict(whole.state)
    assert not of_type(store, "RewindDiverged")


def test_a_touching_question_with_another_answer_diverges() -> None:
    answers = iter([True, False])

    def fickle(ctx: Any) -> bool:
        ctx.resources[BOX].add()
        return next(answers)

    workflow, store = deciding(Dying(0), fickle, lambda ctx: range(2)), MemoryStore()
    killed(workflow, store)
    assert resumed(workflow, store).state["ran"][0] == "no"
    (told,) = of_type(store, "RewindDiverged")
    event: Any = told.event
    assert (told.path, told.visit, event.key) == ("decision", (), "answer")
    assert (event.recorded, event.found) == ("True", "False")


def test_touching_items_that_differ_diverge() -> None:
    counts = iter([2, 3])

    def fickle(ctx: Any) -> range:
        ctx.resources[BOX].add()
        return range(next(counts))

    workflow, store = deciding(Dying(0), lambda ctx: True, fickle), MemoryStore()
    killed(workflow, store)
    assert resumed(workflow, store).state["ran"] == ["yes", 0, 1, 2]
    (told,) = of_type(store, "RewindDiverged")
    assert (told.path, told.event.key) == ("items", "items")  # type: ignore[attr-defined]


def chancy(die: Dying, asked: list[str]) -> Any:
    """Two stages in a loop that are not deterministic, with a decision before and after."""

    def ask(name: str) -> Any:
        def predicate(ctx: Any) -> bool:
            asked.append(name)
            return True

        return predicate

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        with wf.conditional(ask("before"), name="before"):
            wf.stage("fine", lambda ctx: ctx.state.update({"fine": 1}))
        with wf.loop("turns", over=lambda ctx: range(2)):
            wf.stage("chance", lambda ctx: ctx.state.update({"noise": os.urandom(8).hex()}))
        with wf.conditional(ask("after"), name="after"):
            wf.stage("more", lambda ctx: ctx.append("noises", os.urandom(8).hex()))
        wf.stage("die", lambda ctx: die())

    return flow(build)


def test_a_stage_that_is_not_deterministic_is_told_once_and_the_run_ends() -> None:
    asked: list[str] = []
    workflow, store = chancy(Dying(0), asked), MemoryStore()
    killed(workflow, store)
    run = resumed(workflow, store)
    assert run.status == "completed"
    (told,) = of_type(store, "RewindDiverged")
    event: Any = told.event
    assert (told.path, told.visit, event.key) == ("turns/chance", (0,), "state.noise")
    assert event.recorded != event.found
    assert asked == ["before", "after", "after"], "what comes after the divergence is asked anew"
    assert run.state["noise"] == History(store, "r").state_at()["noise"]


def test_a_metric_that_differs_diverges_too() -> None:
    die, values = Dying(0), iter([1.0, 2.0])

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        wf.stage("measure", lambda ctx: ctx.record_metric("m", next(values)))
        wf.stage("die", lambda ctx: die())

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    run = resumed(workflow, store)
    (told,) = of_type(store, "RewindDiverged")
    assert told.event.key == "metric.m"  # type: ignore[attr-defined]
    assert [point.value for point in run.metrics["m"]] == [2.0]


def test_two_rewinds_in_a_row_keep_the_tail_of_the_older_memo() -> None:
    asked: list[str] = []
    coins = itertools.count()
    die_early, die_late = Dying(1), Dying(0)

    def coin(name: str) -> Any:
        def ask(ctx: Any) -> bool:
            asked.append(name)
            return next(coins) % 2 == 0

        return ask

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        with wf.conditional(coin("first"), name="first"):
            wf.stage("a", lambda ctx: ctx.append("ran", "a"))
        wf.stage("early", lambda ctx: die_early())
        with wf.conditional(coin("second"), name="second"):
            wf.stage("b", lambda ctx: ctx.append("ran", "b"))
        with wf.otherwise():
            wf.stage("c", lambda ctx: ctx.append("ran", "c"))
        wf.stage("late", lambda ctx: die_late())

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)  # at `late`
    killed_again(workflow, store)  # at `early`, before the second decision came again
    run = resumed(workflow, store)
    assert asked == ["first", "second"]
    assert run.state["ran"] == ["a", "c"]
    assert len(of_type(store, "RunRewound")) == 2
    assert not of_type(store, "RewindDiverged")


def test_the_memo_outlives_an_interruption_within_it() -> None:
    """A cut inside the stretch that is being run again does not forget what lies ahead."""
    asked: list[str] = []
    coins = iter([True, False])
    die = Dying(0)

    def coin(ctx: Any) -> bool:
        asked.append("coin")
        return next(coins)

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        with wf.conditional(coin):
            wf.stage("a", lambda ctx: ctx.append("ran", "a"))
        wf.stage("late", lambda ctx: die())

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)

    class Stop:
        """Asks for the stop as Ctrl-C would, when the first stage is committed again."""

        def on_facts(self, run_id: str, facts: Any, state: Any) -> None:
            if state.incarnation and any(type(f.event).__name__ == "StageCompleted" for f in facts):
                os.kill(os.getpid(), 2)

        def on_progress(self, *args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(kitchen.RunInterrupted):
        kitchen.resume("r", workflow, store=store, observers=[Stop()])
    run = resumed(workflow, store)
    assert asked == ["coin"]
    assert run.state["ran"] == ["a"]
    assert len(of_type(store, "RunRewound")) == 1


class Reading:
    """A store that counts the records that are read from it."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.records = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, *args: Any, **given: Any) -> Any:
        for record in self._store.read(*args, **given):
            self.records += 1
            yield record


def test_crashes_and_interruptions_in_turn_do_not_add_up() -> None:
    """The memo is in the snapshots: no resume folds the rewinds of all resumes before it."""
    store, die = MemoryStore(), Dying(60)

    class Stop:
        """Asks for the stop, once, at the second stage that is committed."""

        left = 2

        def on_facts(self, run_id: str, facts: Any, state: Any) -> None:
            self.left -= any(type(fact.event).__name__ == "StageCompleted" for fact in facts)
            if not self.left:
                self.left = -1_000_000
                os.kill(os.getpid(), 2)

        def on_progress(self, *args: Any, **kwargs: Any) -> None: ...

    def build(wf: Any) -> None:
        wf.resource(BOX)
        with wf.loop("turns", over=lambda ctx: range(70)):
            wf.stage("use", lambda ctx: (use(ctx), die())[0])
        wf.stage("note", note)

    workflow = flow(build)
    killed(workflow, store)
    for _ in range(10):
        with pytest.raises(kitchen.RunInterrupted):
            kitchen.resume("r", workflow, store=store, observers=[Stop()])
        die.at = {die.calls + 3}
        reading = Reading(store)
        with pytest.raises(Killed):
            kitchen.resume("r", workflow, store=reading)  # type: ignore[arg-type]
        assert reading.records < 3 * store.head("r")
    run = resumed(workflow, store)
    assert dict(run.state) == dict(done(flow(build)).state)
    assert not of_type(store, "RewindDiverged")


# --- checkpoints, budgets, identity ---------------------------------------------------------------


class Fragile(Box):
    """Dies while it is being saved, the first time."""

    dying = Dying(0)

    def state_dict(self) -> dict[str, Any]:
        self.dying()
        return super().state_dict()


def test_a_checkpoint_is_reached_again() -> None:
    Fragile.dying = Dying(0)

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Fragile())
        with wf.loop("turns", over=lambda ctx: range(3)):
            wf.stage("use", use)
            wf.checkpoint()
        wf.stage("note", note)

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    run = resumed(workflow, store)
    assert run.state["box"] == {"value": 1.75, "changes": 3}
    saved = of_type(store, "CheckpointSaved")
    assert [record.visit for record in saved] == [(0,), (1,), (2,)]


def test_what_is_untouched_since_is_not_saved_again() -> None:
    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.resource("other", lambda ctx: Box(1))
        wf.checkpoint("one")
        wf.stage("use", use)
        wf.checkpoint("two")
        wf.checkpoint("three")

    store = MemoryStore()
    done(flow(build), store=store)
    saved: list[Any] = [record.event for record in of_type(store, "CheckpointSaved")]
    assert [sorted(event.resources) for event in saved] == [["box", "other"], ["box"], []]


def test_a_crash_loop_spends_its_budget_and_gets_a_fresh_one() -> None:
    die = Dying(*range(5))

    def build(wf: Any) -> None:
        wf.resource(BOX)
        wf.stage("use", use)
        wf.stage("deadly", lambda ctx: die())

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    for _ in range(4):
        killed_again(workflow, store)
    with pytest.raises(kitchen.RunError, match="died 5 times") as caught:
        kitchen.resume("r", workflow, store=store)
    assert "deadly" in str(caught.value)
    assert die.calls == 5, "the stage was not tried a sixth time"
    assert resumed(workflow, store).status == "completed"


def test_identity_across_attempts_and_incarnations() -> None:
    seen: list[tuple[str, int, int, float]] = []
    die_plain, die_touched = Dying(0), Dying(0)

    def look(ctx: Any) -> None:
        seen.append((ctx.idempotency_key, ctx.attempt, ctx.incarnation, ctx.rng.random()))

    def build(wf: Any) -> None:
        wf.resource(BOX)
        with wf.loop("turns", over=lambda ctx: range(1)):
            wf.stage("plain", lambda ctx: (look(ctx), die_plain()))
        wf.stage("use", lambda ctx: (look(ctx), use(ctx)))
        wf.stage("touched", lambda ctx: (look(ctx), die_touched()))

    workflow, store = flow(build), MemoryStore()
    killed(workflow, store)
    killed_again(workflow, store)
    resumed(workflow, store)
    assert [entry[:3] for entry in seen] == [
        ("r/turns[0]/plain/0", 1, 0),
        ("r/turns[0]/plain/0", 2, 0),
        ("r/use/0", 1, 0),
        ("r/touched/0", 1, 0),
        ("r/use/1", 1, 1),
        ("r/touched/1", 1, 1),
    ]
    assert seen[0][3] == seen[1][3]
    assert seen[2][3] == seen[4][3]
    assert len({number for *_, number in seen}) == 3


def test_a_snapshot_holds_the_memo() -> None:
    workflow, store = deciding(Dying(0), lambda ctx: True, lambda ctx: ["a"]), MemoryStore()
    killed(workflow, store)
    resumed(workflow, store)
    past = History(store, "r")
    (rewound,) = of_type(store, "RunRewound")
    memos = 0
    for seq in range(1, store.head("r") + 1):
        state = past.folded(seq)
        assert snapshot.load(snapshot.dump(state)) == state
        memos += bool(state.memo)
    assert past.folded(rewound.seq).memo
    assert memos > 3
    assert not past.folded().memo

"""The crash matrix of runs that are sent another way: turns, forks, edits, and deaths behind them.

1. Without edits a turn to any cut, and a fork at any cut, end as the run that nobody touched: in
   state, metrics, items and what resources hold. Deaths at any append change nothing of that.
2. With edits they end as the same turn, or fork, that nobody killed.
3. A parent is never changed by its forks.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen import Context, WorkflowBuilder
from kitchen.history.history import History
from kitchen.history.replay import replayed
from kitchen.log.reader import LogReader
from kitchen.machine.chart import compile_workflow
from kitchen.machine.events import spell
from store import MemoryStore, NewEvent, open_store
from tests.crash import kitchens, side_by_side
from tests.crash import test_failures_matrix as failures
from tests.crash.kitchens import MODEL, note_model, trace
from tests.crash.test_crash_matrix import Killed, Mortal, essence
from tests.crash.test_kills import TRAINING, kill_after
from tests.runner.running import python, script

ALL = kitchens.ALL + side_by_side.ALL
MANY = 10**9
STORIES = 6


class Dying(Mortal):
    """A store whose process dies when it makes a fork as well."""

    def fork_run(
        self,
        run: str,
        name: str,
        parent: str,
        seq: int,
        events: Sequence[NewEvent],
        at: int | None = None,
    ) -> int:
        self.die("before")
        head = super().fork_run(run, name, parent, seq, events, at)
        self.die("after")
        return head


def completed(workflow: Any) -> tuple[MemoryStore, Any, int]:
    """A run that nobody touches, what it comes to, and its head."""
    store = MemoryStore()
    run = kitchen.run(workflow, store=store, run_id="r", seed=7)
    return store, essence(run), store.head("r")


def sample(head: int, most: int) -> range:
    """So many seqs of a log, spread over it; the first may be odd or even."""
    return range(1, head + 1, 1 + head // most)


def sound(store: Any, *runs: str) -> None:
    """The log is whole, and folds from nothing to what it was when it was written."""
    assert store.verify() == []
    for run in runs:
        assert replayed(store, run).divergences == ()


def taken_up(store: MemoryStore, run: str, workflow: Any, left: int, **given: Any) -> Any:
    """Resume it in a process that dies behind so many appends; None where it did."""
    try:
        return kitchen.resume(run, workflow, store=Dying(store, "after", left), **given)
    except Killed:
        return None


# --- one turn, one fork ---------------------------------------------------------------------------


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_a_fork_at_every_cut_ends_as_its_parent(workflow: Any) -> None:
    store, expected, head = completed(workflow)
    before = History(store, "r").events
    for at in sample(head, 24):
        name = kitchen.fork("r", at=at, new_run_id=f"f{at}", store=store)
        assert essence(kitchen.resume(name, workflow, store=store)) == expected, f"forked at {at}"
        shared = next(r.seq for r in store.read(name) if r.type == "RunForked") - 1
        assert shared <= at
        assert History(store, name).events[:shared] == before[:shared]
    assert History(store, "r").events == before
    sound(store, *[info.run for info in store.runs()][::7])


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_a_turn_to_every_cut_ends_the_same(workflow: Any) -> None:
    whole, expected, head = completed(workflow)
    for at in sample(head, 24):
        store = whole.copy()
        assert essence(kitchen.resume("r", workflow, store=store, at=at)) == expected, f"at {at}"
        if at % 5 == 0:
            sound(store, "r")


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_a_turn_that_dies_at_every_append(workflow: Any) -> None:
    whole, expected, head = completed(workflow)
    store = whole
    for at in sample(head, 3):
        for left in range(0, head, 1 + head // 14):
            store = whole.copy()
            run = taken_up(store, "r", workflow, left, at=at)
            if run is None:
                run = kitchen.resume("r", workflow, store=store)
            assert essence(run) == expected, f"sent back to {at}, killed behind append {left}"
    sound(store, "r")


# --- stories: turns, forks and deaths, one after the other ----------------------------------------


class Story:
    """What a seeded generator does to a run and to its forks."""

    def __init__(self, workflow: Any, store: MemoryStore, seed: int) -> None:
        self.workflow = workflow
        self.store = store
        self.rng = random.Random(seed)
        self.runs = ["r"]
        self.told: list[str] = []  # for who looks into a failure

    def go_on(self, most: int) -> None:
        """One thing, to one of the runs."""
        rng, run = self.rng, self.rng.choice(self.runs)
        left = rng.choice([rng.randrange(most), rng.randrange(6), MANY])
        at = rng.randint(1, self.store.head(run))
        match rng.choice(["turn", "turn", "fork", "resume"]):
            case "fork":
                name = f"{run}{len(self.runs)}"
                self.told.append(f"{name} = {run} forked at {at}, {left}")
                try:
                    store = Dying(self.store, rng.choice(["before", "after"]), left % 3)
                    kitchen.fork(run, at=at, new_run_id=name, store=store)
                except Killed:
                    pass
                if any(info.run == name for info in self.store.runs()):
                    self.runs.append(name)
            case "turn":
                self.told.append(f"{run} at {at}, killed after {left}")
                taken_up(self.store, run, self.workflow, left, at=at)
            case _:
                self.told.append(f"{run} resumed, killed after {left}")
                taken_up(self.store, run, self.workflow, left)

    def ends(self) -> Iterator[tuple[str, Any]]:
        """What each run comes to."""
        for run in self.runs:
            yield run, essence(kitchen.resume(run, self.workflow, store=self.store))


def tell(workflow: Any, store: MemoryStore, seed: int, expected: Any, most: int) -> Story:
    story = Story(workflow, store, seed)
    for _ in range(8):
        story.go_on(most)
    for run, found in story.ends():
        assert found == expected, f"seed {seed}, run {run}: {story.told}"
    sound(store, story.runs[-1])
    return story


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_turns_forks_and_deaths_one_after_the_other(workflow: Any) -> None:
    whole, expected, head = completed(workflow)
    longest = 0
    for seed in range(STORIES):
        store = whole.copy()
        if seed % 2:  # it was never completed
            store = MemoryStore()
            try:
                given: Any = {"run_id": "r", "seed": 7}
                kitchen.run(workflow, store=Mortal(store, "after", seed * 3 % 20 + 1), **given)
            except Killed:
                pass
        longest = max(longest, *map(len, tell(workflow, store, seed, expected, head).runs))
    assert longest > 2, "no fork of a fork"


# --- edits ----------------------------------------------------------------------------------------


class Opaque:
    """An item that the log holds by nothing but its number."""

    def __init__(self, value: float) -> None:
        self.value = value


class Wrapped:
    """A helper without a state of its own, made from the config."""

    def __init__(self, by: float) -> None:
        self.by = by


def draw(ctx: Any) -> float:
    """What tells each edit from every other."""
    return ctx.rng.random() + 10 * ctx.config.scale + 1000 * ctx.state.get("offset", 0)


def learn(ctx: Context) -> None:
    trace(ctx)
    item: Any = ctx.item()
    by = draw(ctx) + getattr(item, "value", item) + ctx.resources["wrapped"].by
    ctx.append("losses", ctx.resources[MODEL].update(by))
    ctx.record_metric("loss", ctx.state["losses"][-1])


def note(ctx: Context) -> None:
    trace(ctx)
    ctx.append("noted", (ctx.path, ctx.visit, draw(ctx), ctx.item()))


@kitchen.workflow
def tuned(wf: WorkflowBuilder) -> None:
    """Everything that is asked for looks at the seed, the config and the state."""
    wf.stage("begin", lambda ctx: ctx.state.update(offset=0, noted=[draw(ctx)], losses=[]))
    wf.resource("model", lambda ctx: kitchens.Model(draw(ctx)))
    wf.resource("wrapped", lambda ctx: Wrapped(ctx.config.scale), stateful=False)
    with wf.loop("epochs", over=lambda ctx: [draw(ctx) for _ in range(2)]):
        with wf.stream_loop("pulled", over=lambda ctx: (draw(ctx) for _ in range(3)), prefetch=2):
            wf.stage("note_pulled", note)
        with wf.conditional(lambda ctx: draw(ctx) % 1 < 0.7, name="often"):
            wf.checkpoint("often_checkpoint")
        with wf.stream_loop("loaded", over=lambda ctx: side_by_side.Loader(draw(ctx), 40)):
            wf.stage("note_loaded", note, thread=False)
        with wf.loop("opaque", over=lambda ctx: [Opaque(draw(ctx)) for _ in range(2)]):
            wf.stage("learn", learn)
            with wf.conditional(lambda ctx: ctx.index("opaque") == 0, name="first"):
                wf.checkpoint()
    wf.stage("note_model", note_model)


def edit(rng: random.Random) -> dict[str, Any]:
    """Of config, state and seed one, two or all."""
    made = {
        "config": {"scale": rng.randrange(2, 9)},
        "state": {"offset": rng.randrange(1, 9)},
        "seed": rng.randrange(100),
    }
    return {name: made[name] for name in rng.sample(sorted(made), rng.randint(1, 3))}


Place = tuple[Any, ...]
_LIFE = frozenset({"RunForked", "RunRewound", "RunResumed", "StageInterrupted", "ResourceRestored"})


def place_of(record: Any) -> Place | None:
    """What the run itself did there; None for what was done to it."""
    if record.type in _LIFE:
        return None
    return record.type, record.path, record.visit, getattr(record.event, "name", "")


class Edited(Story):
    """A story with edits. `past`: for each event of a run, which edits hold there, each with the
    place at which it was made, and what that event's place is: the last thing that the run itself
    had done by then."""

    def __init__(self, workflow: Any, store: MemoryStore, seed: int) -> None:
        super().__init__(workflow, store, seed)
        self.past: dict[str, list[tuple[tuple[Any, ...], Place]]] = {"r": [((), ())]}
        self.made: dict[Place, dict[str, Any]] = {}
        self.look("r")

    def look(self, run: str) -> None:
        """At what has been added to a run."""
        past = self.past[run]
        for record in History(self.store, run).tail(len(past) - 1):
            edits, place = past[-1]
            event: Any = record.event
            if record.type == "RunRewound":
                edits, place = past[event.to]
            elif record.type == "RunEdited":
                edits = (*edits, (place, repr(event)))
                self.made.setdefault(edits, self.given)
            past.append((edits, place_of(record) or place))

    def go_on(self, most: int) -> None:
        rng, run = self.rng, self.rng.choice(self.runs)
        left = rng.choice([rng.randrange(most), rng.randrange(6), MANY])
        at = rng.randint(1, self.store.head(run))
        self.given = edit(rng) if rng.random() < 0.7 else {}
        what = rng.choice(["turn", "turn", "fork", "resume"])
        self.told.append(f"{what} {run} at {at}, killed after {left}, {self.given}")
        try:
            if what == "fork":
                name = f"{run}{len(self.runs)}"
                kitchen.fork(
                    run,
                    at=at,
                    new_run_id=name,
                    store=self.store,
                    workflow=self.workflow,
                    **self.given,
                )
                self.past[name] = self.past[run][: _forked_at(self.store, name)]
                self.runs.append(name)
                run = name
            elif what == "turn":
                taken_up(self.store, run, self.workflow, left, at=at, **self.given)
            else:
                taken_up(self.store, run, self.workflow, left)
        except (kitchen.StateError, kitchen.UnknownKey):
            assert "state" in self.given  # it had no such key yet
        self.look(run)


def _forked_at(store: MemoryStore, run: str) -> int:
    return max(record.seq for record in store.read(run) if record.type == "RunForked")


class Calm:
    """The same edits at the same places, one behind the other, in runs that nobody kills."""

    def __init__(self, workflow: Any, whole: MemoryStore) -> None:
        self.workflow = workflow
        self.known: dict[Any, MemoryStore] = {(): whole}

    def run(self, edits: tuple[Any, ...], made: dict[Place, dict[str, Any]]) -> MemoryStore:
        if edits not in self.known:
            store = self.run(edits[:-1], made).copy()
            (place, _), at = edits[-1], 0
            for record in History(store, "r").events:
                if record.counts and place_of(record) == place:
                    at = record.seq
            kitchen.resume("r", self.workflow, store=store, at=at, **made[edits])
            self.known[edits] = store
        return self.known[edits]


@pytest.mark.parametrize("workflow", [tuned])
def test_edits_hold_through_deaths_turns_and_forks(workflow: Any) -> None:
    whole = MemoryStore()
    kitchen.run(workflow, {"scale": 1}, store=whole, run_id="r", seed=7)
    head = whole.head("r")
    calm, most = Calm(workflow, whole), 0
    for seed in range(STORIES):
        story = Edited(workflow, whole.copy(), seed)
        for _ in range(8):
            story.go_on(head)
        for run, found in story.ends():
            story.look(run)
            edits, _ = story.past[run][-1]
            most = max(most, len(edits))
            expected = calm.run(edits, story.made)
            assert found == essence_of(expected, workflow), f"seed {seed}, {run}: {story.told}"
            types = {record.type for record in story.store.read(run)}
            assert "RewindDiverged" not in types
        sound(story.store, story.runs[-1])
    assert most > 1, "no edit behind an edit"


def essence_of(store: MemoryStore, workflow: Any) -> Any:
    """Of a run that is completed."""
    return essence(kitchen.resume("r", workflow, store=store))


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_an_edited_turn_and_fork_that_die_at_every_append(workflow: Any) -> None:
    """From where nothing runs side by side: elsewhere, what has been done by then is chance."""
    whole, _, head = completed(workflow)
    alone = [at for at in range(1, head) if _is_alone(workflow, whole, at)]
    for at in alone[:: 1 + len(alone) // 2]:
        calm = whole.copy()
        edited = essence(kitchen.resume("r", workflow, store=calm, at=at, seed=8))
        again = calm.head("r") - head
        for left in range(0, again, 1 + again // 12):
            store = whole.copy()
            kitchen.fork("r", at=at, seed=8, new_run_id="f", store=store)
            for run, given in (("r", {"at": at, "seed": 8}), ("f", {})):
                found = taken_up(store, run, workflow, left, **given)
                if found is None:
                    found = kitchen.resume(run, workflow, store=store)
                assert essence(found) == edited, f"{run}, {at}, killed behind append {left}"


def _is_alone(workflow: Any, store: MemoryStore, at: int) -> bool:
    control = LogReader(store, "r", compile_workflow(workflow.ir)).state_at(at).core.control
    return not control.forks and not control.feeds


# --- failures -------------------------------------------------------------------------------------


@pytest.fixture
def _mended() -> Iterator[None]:
    yield
    failures.BROKEN.set("", "", 0)


HANDLED = [
    (failures.handled, "turns/most/train_alone"),
    (failures.handled, "turns/most/p/give"),
    (failures.handled, "turns/most/p/train_side"),
    (failures.handled, "turns/most/late"),
    (failures.fed, "turns/stream/consume"),
    (failures.fed, "turns/made/consume"),
    (failures.fed, "turns/each/use"),
    (failures.fed, "turns/train_on"),
]


@pytest.mark.usefixtures("_mended")
@pytest.mark.parametrize(("build", "path"), HANDLED, ids=lambda v: v if isinstance(v, str) else "")
def test_failures_that_are_handled_are_so_behind_turns_and_in_forks(build: Any, path: str) -> None:
    """It fails at each visit for ever, so nothing hangs on how often it is tried."""
    failures.BROKEN.set(path, "raise", MANY)
    workflow = build()
    whole, expected, head = completed(workflow)
    for seed in range(STORIES):
        tell(workflow, whole.copy(), seed, expected, head)


def tried(store: MemoryStore, run: str, workflow: Any, left: int, **given: Any) -> Any:
    """Take it up, in a process that dies, and again until it is completed."""
    for turn in range(12):
        try:
            found = taken_up(store, run, workflow, MANY if turn else left, **given)
            if found is not None:
                return found
        except kitchen.RunError:
            pass
        given = {}
    raise AssertionError("it never came to its end")


@pytest.mark.usefixtures("_mended")
@pytest.mark.parametrize("path", failures.STAGES)
@pytest.mark.parametrize("retries", [0, failures.AGAIN], ids=["for good", "retried"])
def test_failed_runs_are_sent_another_way_and_forked(path: str, retries: Any) -> None:
    """What failed is tried again, with a fresh budget, and comes to the end of the whole run."""
    expected = failures.whole()
    failures.BROKEN.set(path, "raise", MANY)
    workflow = failures.flow(retries)
    failed = MemoryStore()
    with pytest.raises(kitchen.RunError):
        kitchen.run(workflow, store=failed, run_id="r", seed=7)
    head, store = failed.head("r"), failed
    for at in sample(head, 20):
        failures.BROKEN.set(path, "raise", 1)
        store = failed.copy()
        kitchen.fork("r", at=at, new_run_id="f", store=store)
        for run, given in (("f", {}), ("r", {"at": at})):
            found = tried(store, run, workflow, at % 5, **given)
            found.state = {key: found.state[key] for key in found.state if key != "undone"}
            assert essence(found) == expected, f"{run} at {at}"
    sound(store, "r", "f")


# --- effects that must not happen twice -----------------------------------------------------------

PAID: Counter[tuple[str, str]] = Counter()  # what the bank knows: who paid, and for what


async def pay(ctx: Context) -> None:
    what = spell(ctx.path, ctx.visit)
    PAID[ctx.run_id, what] += 1
    ctx.state[f"paid {what}"] = True


@kitchen.workflow
def paying(wf: WorkflowBuilder) -> None:
    wf.resource(MODEL)
    wf.stage("train_first", failures.train_alone)
    with wf.loop("turns", over=lambda ctx: range(2)):
        wf.stage("pay", pay, effect="once")
        wf.stage("train_alone", failures.train_alone)
        with wf.parallel("p"):
            wf.stage("pay_left", pay, effect="once")
            wf.stage("train_side", failures.train_alone)
        wf.checkpoint()
    wf.stage("note_model", note_model)


def answered(run: str, names: Sequence[str]) -> dict[str, Any]:
    """What somebody says who has asked the bank."""
    said: dict[str, Any] = {}
    for name in names:
        visit = tuple(map(int, re.findall(r"\[(\d+)\]", name)))
        what = spell(re.sub(r"\[\d+\]", "", name), visit)
        said[name] = {f"paid {what}": True} if PAID[run, what] else "retry"
    return said


def test_an_effect_happens_once_behind_turns_and_once_more_in_each_fork() -> None:
    whole, expected, head = completed(paying)
    asked = 0
    for at in sample(head, 30):
        for left in (0, 2, 5, 9, 14, MANY):
            store = whole.copy()
            kitchen.fork("r", at=at, new_run_id="f", store=store)
            shared = _forked_at(store, "f")
            before = {
                spell(r.path, r.visit)
                for r in History(store, "f").events[:shared]
                if r.type == "StageCompleted" and "pay" in r.path
            }
            for run, given in (("r", {"at": at}), ("f", {})):
                PAID.clear()
                if run == "r":
                    PAID.update({("r", what): 1 for what in ALL_PAID})
                found = taken_up(store, run, paying, left, **given)
                if found is None:
                    say = answered(run, History(store, run).undecided)
                    asked += bool(say)
                    found = kitchen.resume(run, paying, store=store, decide=say)
                assert essence(found) == expected
                new = {what for who, what in PAID if who == run}
                assert set(PAID.values()) <= {1}, f"{run} at {at}, killed behind {left}: {PAID}"
                assert new == (ALL_PAID if run == "r" else ALL_PAID - before)
    assert asked, "nobody was ever in doubt"


ALL_PAID = {"turns/pay[0]", "turns/pay[1]", "turns/p/pay_left[0]", "turns/p/pay_left[1]"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_effect_in_doubt_is_so_behind_a_turn(when: str) -> None:
    """Whoever knows is asked, at once or where the run comes to it again."""
    _, expected, _ = completed(paying)
    asked = 0
    for first in range(0, failures.count(paying), 2):
        PAID.clear()
        killed = MemoryStore()
        with pytest.raises(Killed):
            kitchen.run(paying, store=Mortal(killed, when, first), run_id="r", seed=7)
        if not killed.runs():
            continue
        paid = PAID.copy()
        for at in sample(killed.head("r"), 5):
            PAID.clear()
            PAID.update(paid)
            given: dict[str, Any] = {"at": at}
            store, found = killed.copy(), None
            for _ in range(8):
                try:
                    found = kitchen.resume("r", paying, store=store, **given)
                except kitchen.EffectUndecided:
                    asked += 1
                    plan = kitchen.plan_resume("r", paying, store=store, at=given.get("at"))
                    given["decide"] = answered("r", plan.undecided)
                except kitchen.RunError:  # it came to it in the middle
                    given = {}
                else:
                    break
            assert found is not None
            assert essence(found) == expected
            assert Counter({("r", what): 1 for what in ALL_PAID}) == PAID, f"{when} {first}, {at}"
    assert asked


# --- real processes -------------------------------------------------------------------------------

TURNING = TRAINING.replace(
    """    kitchen.run(training, store=sys.argv[1], run_id="r", seed=3, if_exists="resume")
""",
    """    run, at, head = sys.argv[2], *map(int, sys.argv[3:])
    known = kitchen.history(run, store=sys.argv[1]).events
    turned = sum(r.type == "RunEdited" and r.seq > head for r in known)
    way = {"at": at, "seed": 4} if run == "r" and not turned else {}
    kitchen.resume(run, training, store=sys.argv[1], **way)
""",
)


@pytest.mark.slow
def test_turns_and_forks_that_die_of_sigkill(tmp_path: Path) -> None:
    """An edited turn, and the fork with the same edit, killed again and again."""
    assert TURNING != TRAINING
    whole = python([script(tmp_path, TRAINING), "k.db"], tmp_path)
    assert whole.communicate()[0].endswith("done\n")
    with open_store(tmp_path / "k.db") as store:
        head = store.head("r")
        at = head // 2
        for name in ("f", "calm"):
            kitchen.fork("r", at=at, seed=4, new_run_id=name, store=store)
    script(tmp_path, TURNING)
    rng, killed = random.Random(5), 0
    for run in ("calm", "r", "f"):
        for turn in range(40):
            process = python([tmp_path / "script.py", "k.db", run, at, head], tmp_path)
            lines = MANY if run == "calm" or turn > 3 else rng.randint(3, 8)
            if not kill_after(process, lines):
                break
            killed += 1
    assert killed >= 4
    with open_store(tmp_path / "k.db") as store:
        sound(store, "r", "f")
        ends = {run: seen(store, run) for run in ("calm", "r", "f")}
        assert ends["r"] == ends["f"] == ends["calm"]


def seen(store: Any, run: str) -> Any:
    """State and metrics, as the log has them."""
    past = History(store, run)
    points = [(repr(p.value), p.step, p.visit) for p in past.metrics("loss")]
    return past.status, past.state_at(), points


def test_a_replay_of_a_part_sees_a_stream_as_it_was_then() -> None:
    """Also where what is replayed was superseded later."""
    workflow = next(each for each in ALL if each.name == "batches")
    store, _, _ = completed(workflow)
    taken_up(store, "r", workflow, 20, at=41, seed=2)
    last = store.head("r")
    for until in range(42, last, 6):
        told = kitchen.replay(
            "r", workflow, store=store, execute=True, until=until, only="epochs/batches/train_batch"
        )
        assert told.divergences == (), until

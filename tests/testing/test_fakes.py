"""Fakes: every port has one, each keeps its port's rules, and fails where it was told to."""

from __future__ import annotations

import importlib
import math
import pkgutil
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import kitchen
import kitchen.ports
from kitchen.adapters.text import Batch
from kitchen.errors import ArgumentError
from kitchen.ports.training import Stateful, TrainingSession
from kitchen.testing import (
    FakeEventStore,
    FakeFailure,
    FakeObserver,
    FakeTextCorpus,
    FakeTrainingSession,
    SimulatedCrash,
)
from store import MemoryStore, NewEvent, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from kitchen.ports.event_store import EventStore
    from kitchen.ports.observer import RunObserver
    from kitchen.ports.text import TextCorpus

FAKES: dict[str, Any] = {
    "BlobStore": FakeEventStore().blobs,
    "EventStore": FakeEventStore(),
    "RunObserver": FakeObserver(),
    "Stateful": FakeTrainingSession[Any](),
    "TextCorpus": FakeTextCorpus(),
    "TrainingSession": FakeTrainingSession[Any](),
}


def protocols() -> Iterator[type[Any]]:
    """The Protocols of the ports, those included that are another package's by our name."""
    for module in pkgutil.iter_modules(kitchen.ports.__path__, "kitchen.ports."):
        for value in vars(importlib.import_module(module.name)).values():
            if getattr(value, "_is_protocol", False) and value.__module__ != "typing":
                yield value


def test_every_port_has_a_fake() -> None:
    found = {protocol.__name__: protocol for protocol in protocols()}
    assert found.keys() == FAKES.keys()
    for name, protocol in found.items():
        members = {each for base in protocol.__mro__[:-1] for each in vars(base)}
        for member in members:
            if not member.startswith("_"):
                assert hasattr(FAKES[name], member), f"{name}.{member}"


# --- the training session ---

WORDS = ["one", "two", "three", "four", "five"]


def session(**options: Any) -> FakeTrainingSession[Any]:
    return FakeTrainingSession(**options)


def interrupted() -> FakeTrainingSession[Any]:
    """One that stands between `forward_backward` and `optim_step`."""
    made = session()
    made.forward_backward(WORDS)
    made.optim_step(0.1)
    made.forward_backward(WORDS[:2])
    return made


def go_on(made: FakeTrainingSession[Any]) -> str:
    for word in WORDS:
        made.forward_backward([word, word * 2])
        made.optim_step(0.05)
        made.forward_backward([word])
    return repr(made.state_dict()) + made.sample("abc", 20, random.Random(0))


def test_the_session_fulfils_the_port() -> None:
    port: TrainingSession[list[str]] = FakeTrainingSession[list[str]]()
    assert isinstance(port, Stateful)


def test_a_state_taken_mid_accumulation_goes_on_bit_for_bit() -> None:
    made, twin = interrupted(), session(seed=9)
    state = made.state_dict()
    assert state["pending_examples"] == made.pending_examples == 2
    expected = go_on(made)
    assert go_on(twin) != expected
    twin.load_state_dict(state)
    assert go_on(twin) == expected


@pytest.mark.parametrize(
    "name", ["weights", "momentum", "gradients", "pending_examples", "step", "vocab"]
)
def test_every_part_of_the_state_shows(name: str) -> None:
    state, fresh = interrupted().state_dict(), session(vocab="abc\n").state_dict()
    assert state[name] != fresh[name]
    twin = session()
    if name != "vocab":
        twin.load_state_dict(state | {name: fresh[name]})
        assert go_on(twin) != go_on(interrupted())


def test_the_bits_are_the_same_on_every_machine() -> None:
    made = interrupted()
    assert made.evaluate(WORDS).hex() == "0x1.5f7cea5314625p+0"
    assert made.sample("to", 8, random.Random(4)) == '&w>I7^F"'


def test_a_doubled_and_a_lost_update_show_in_the_next_loss() -> None:
    def loss(updates: int) -> float:
        made = session()
        for _ in range(updates):
            made.forward_backward(WORDS)
            made.optim_step(0.1)
        return made.forward_backward(WORDS).loss

    assert len({loss(updates) for updates in (1, 2, 3)}) == 3
    assert loss(60) < loss(1)


def test_two_halves_are_worth_the_whole() -> None:
    whole, halves = session(), session()
    whole.forward_backward(WORDS)
    halves.forward_backward(WORDS[:2])
    halves.forward_backward(WORDS[2:])
    one, two = whole.optim_step(0.1), halves.optim_step(0.1)
    assert one.examples == two.examples == 5
    assert one.grad_norm == pytest.approx(two.grad_norm)


def test_state_is_copied_both_ways() -> None:
    made = interrupted()
    before, state = repr(made.state_dict()), made.state_dict()
    made.load_state_dict(state)
    for name in ("weights", "momentum", "gradients"):
        state[name][0] = 7.0
    assert repr(made.state_dict()) == before


def test_evaluate_and_sample_change_nothing_and_depend_on_the_weights() -> None:
    made, rng = interrupted(), random.Random(1)
    before = repr(made.state_dict())
    assert made.evaluate(WORDS) == made.evaluate(WORDS)
    assert made.sample("a", 30, rng) != made.sample("a", 30, rng)
    assert repr(made.state_dict()) == before
    samples = {made.sample("", 30, random.Random(7)), made.sample("", 30, random.Random(7))}
    assert len(samples) == 1
    assert session().sample("", 30, random.Random(7)) not in samples
    assert made.sample("b", 30, random.Random(7)) not in samples


@pytest.mark.parametrize(
    ("batch", "examples"),
    [
        ("text", 4),
        ([[1, 2], [3, 4]], 2),
        (np.zeros((3, 2)), 3),
        ({"x": np.zeros((3, 2)), "y": [0, 1, 0]}, 3),
        (Batch(np.zeros((6, 2)), np.zeros(6)), 6),
    ],
)
def test_any_batch_will_do(batch: Any, examples: int) -> None:
    assert session().forward_backward(batch).examples == examples


def test_batches_that_differ_are_told_apart() -> None:
    one, other = (Batch(np.zeros((2, 2)), np.array([0, target])) for target in (0, 1))
    assert session().evaluate(one) != session().evaluate(other)


@pytest.mark.parametrize(
    "batch", [[], "", 3, object(), [object()], iter("abc"), {"x": [1], "y": []}]
)
def test_what_is_no_batch_changes_nothing(batch: Any) -> None:
    made = interrupted()
    before = repr(made.state_dict())
    for method in (made.forward_backward, made.evaluate):
        with pytest.raises(ValueError, match="batch"):
            method(batch)
    assert repr(made.state_dict()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0]}, "weights must be 4 floats"),
        ({"gradients": [1, 2, 3, 4]}, "gradients must be 4 floats"),
        ({"step": -1}, "step must be a count"),
        ({"vocab": "abc"}, "vocab is"),
        ({"more": 1}, "more is unknown here"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: dict[str, Any], message: str) -> None:
    made, state = session(), interrupted().state_dict()
    before = repr(made.state_dict())
    with pytest.raises(ValueError, match=message):
        made.load_state_dict(state | change)
    del state["step"]
    with pytest.raises(ValueError, match="step is missing"):
        made.load_state_dict(state)
    assert repr(made.state_dict()) == before


def test_requests_that_make_no_sense_are_refused() -> None:
    made = session()
    with pytest.raises(ValueError, match="no gradient is pending at step 0"):
        made.optim_step(0.1)
    made.forward_backward(WORDS)
    for rate in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning_rate"):
            made.optim_step(rate)
    assert made.pending_examples == 5
    with pytest.raises(ValueError, match="'\xe9' at 1"):
        made.sample("a\xe9", 5, random.Random(0))


def test_a_diverged_session_says_so_instead_of_stopping_half_way() -> None:
    made = session()
    for _ in range(3):
        made.forward_backward(WORDS)
        made.optim_step(1e308)
    assert not math.isfinite(made.forward_backward(WORDS).loss)
    assert len(made.sample("a", 5, random.Random(0))) == 5


def test_a_failed_call_changed_nothing_and_the_next_one_works() -> None:
    made = session(fail_at={"optim_step": 2, "forward_backward": {2: MemoryError("no room")}})
    made.forward_backward(WORDS)
    made.optim_step(0.1)
    before = repr(made.state_dict())
    with pytest.raises(MemoryError, match="no room"):
        made.forward_backward(WORDS)
    assert repr(made.state_dict()) == before
    made.forward_backward(WORDS)
    with pytest.raises(FakeFailure, match="optim_step"):
        made.optim_step(0.1)
    assert made.pending_examples == 5
    assert made.optim_step(0.1).step == 2
    assert made.calls["optim_step"] == made.calls["forward_backward"] == 3


def test_training_with_the_fake_resumes_from_its_checkpoint() -> None:
    @kitchen.workflow
    def training(wf: kitchen.WorkflowBuilder) -> None:
        wf.resource("session", lambda _: made[-1])
        with wf.loop("steps", over=lambda _: range(6)):

            def step(ctx: Any) -> None:
                ctx.resources["session"].forward_backward([ctx.rng.random()])
                ctx.record_metric("norm", ctx.resources["session"].optim_step(0.1).grad_norm)

            wf.stage("step", step)
            with wf.conditional(lambda ctx: ctx.index("steps") == 2):
                wf.checkpoint()

    made = [session()]
    whole = kitchen.run(training, store=MemoryStore(), run_id="r")
    expected = repr(made[-1].state_dict())
    store = MemoryStore()
    made.append(session(crash_at={"optim_step": "after:5"}))
    with pytest.raises(SimulatedCrash, match="after call 5 of optim_step"):
        kitchen.run(training, store=store, run_id="r")
    made.append(session())
    run = kitchen.resume("r", training, store=store)
    assert repr(made[-1].state_dict()) == expected
    assert [p.value for p in run.metrics["norm"]] == [p.value for p in whole.metrics["norm"]]


# --- the text corpus ---


def test_the_corpus_fulfils_the_port() -> None:
    corpus: TextCorpus = FakeTextCorpus()
    assert sorted(set(corpus.vocab)) == list(corpus.vocab)
    ids = corpus.encode(corpus.text)
    assert np.issubdtype(ids.dtype, np.integer)
    assert ids.shape == (len(corpus.text),)
    assert corpus.decode(ids) == corpus.text
    with pytest.raises(ValueError, match="'é' at 1"):
        corpus.encode("aé")
    with pytest.raises(ValueError, match="id 99 at 1"):
        corpus.decode([0, 99])


def test_the_corpus_fails_where_it_was_told_to() -> None:
    corpus = FakeTextCorpus("abc", fail_at={"decode": [1, 3]})
    for fails in (True, False, True, False):
        if fails:
            with pytest.raises(FakeFailure):
                corpus.decode([0])
        else:
            assert corpus.decode([2, 0]) == "ca"
    assert corpus.calls == {"decode": 4}


# --- the observer ---


@kitchen.workflow
def telling(wf: kitchen.WorkflowBuilder) -> None:
    def first(ctx: Any) -> None:
        ctx.progress(1, 2)

    wf.stage("first", first)
    wf.stage("second", lambda _: None)


def test_the_observer_remembers_what_it_was_told() -> None:
    observer = FakeObserver()
    port: RunObserver = observer
    store = MemoryStore()
    kitchen.run(telling, store=store, run_id="r", observers=[port])
    assert [type(event).__name__ for event in observer.events] == [e.type for e in store.read("r")]
    assert {told.run_id for told in observer.told} == {"r"}
    assert [(p.address.path, p.done, p.total) for p in observer.progress] == [("first", 1, 2)]


def test_an_observer_that_fails_is_dropped_and_one_that_crashes_ends_the_process() -> None:
    observer = FakeObserver(fail_at={"on_facts": 2})
    store = MemoryStore()
    assert kitchen.run(telling, store=store, run_id="r", observers=[observer]).status == "completed"
    assert observer.calls["on_facts"] == 2
    observer, store = FakeObserver(crash_at={"on_facts": 2}), MemoryStore()
    with pytest.raises(SimulatedCrash):
        kitchen.run(telling, store=store, run_id="r", observers=[observer])
    assert [e.type for e in store.read("r")][-2:] == ["StageCompleted", "StageStarted"]
    assert kitchen.resume("r", telling, store=store).status == "completed"


# --- the event store ---


def event(number: int) -> NewEvent:
    return NewEvent("Something", "a", (), 1, f'{{"n":{number}}}')


def test_the_nth_append_dies_before_or_after_and_then_all_do() -> None:
    for moment, head in (("before", 1), ("after", 2)):
        store = FakeEventStore(crash_at=f"{moment}:2")
        port: EventStore = store
        port.create_run("r", "w", [event(1)])
        assert not store.crashed
        with pytest.raises(SimulatedCrash, match=f"{moment} call 2 of append"):
            port.append("r", 1, [event(2)])
        assert store.crashed
        with pytest.raises(SimulatedCrash, match="after the crash"):
            port.append("r", head, [event(3)])
        with pytest.raises(SimulatedCrash, match="after the crash"):
            port.blobs.put(b"x")
        assert store.inner.head("r") == port.head("r") == head
        assert store.inner.append("r", head, [event(3)]) == head + 1


@pytest.mark.parametrize("at", [2, "2", "before:2", (2, "before"), [2], ["before:2", "after:9"]])
def test_a_point_can_be_said_in_many_ways(at: Any) -> None:
    store = FakeEventStore(crash_at=at)
    store.create_run("r", "w", [event(1)])
    with pytest.raises(SimulatedCrash):
        store.append("r", 1, [event(2)])
    assert store.head("r") == 1


@pytest.mark.parametrize(
    "at", [0, -1, True, 1.5, "middle:3", "before:", "before:x", "", (3, "during"), {"apend": 1}]
)
def test_what_is_no_point_is_refused(at: Any) -> None:
    with pytest.raises(ArgumentError, match="crash_at"):
        FakeEventStore(crash_at=at)


def test_a_blob_can_be_the_last_thing_that_is_written() -> None:
    store = FakeEventStore(crash_at={"blobs.put": "after:2"})
    first = store.blobs.put(b"one")
    with pytest.raises(SimulatedCrash):
        store.blobs.put(b"two")
    assert set(store.inner.blobs.digests()) > {first}


def test_a_store_that_fails_once_is_resumed(tmp_path: Path) -> None:
    with open_store(tmp_path / "kitchen.db") as inner:
        store = FakeEventStore(inner, fail_at={"append": {2: OSError("disk full")}})
        with pytest.raises(OSError, match="disk full"):
            kitchen.run(telling, store=store, run_id="r")
        assert not store.crashed
        assert kitchen.resume("r", telling, store=store).status == "completed"
        assert store.calls["append"] > 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_dies_at_every_append_and_ends_the_same(backend: str) -> None:
    import anyio

    whole = FakeEventStore()
    kitchen.run(telling, store=whole, run_id="r")
    points = [f"{m}:{n}" for n in range(1, whole.calls["append"]) for m in ("before", "after")]
    assert len(points) >= 4
    for point in points:
        store = FakeEventStore(crash_at=point)

        async def main(store: FakeEventStore = store) -> object:
            return await kitchen.run_async(telling, store=store, run_id="r")

        with pytest.raises(SimulatedCrash):
            anyio.run(main, backend=backend)
        if point == "before:1":
            assert not store.inner.runs()
            continue
        assert store.inner.run("r").owner is None
        assert kitchen.resume("r", telling, store=store.inner).status == "completed"
        told = [e.path for e in store.inner.read("r") if e.type == "StageCompleted"]
        assert told == ["first", "second"]

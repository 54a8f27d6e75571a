"""What is given to a run from Python: whatever it is, a log that was begun can be read and resumed.

Rules: an argument that a log cannot hold is refused before the first event; one of `ctx` fails the
stage. What is no error is recorded as the plain value that it stands for.
"""

from __future__ import annotations

import enum
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import kitchen
from kitchen.errors import ArgumentError, UnknownAdapter
from store import MemoryStore
from tests.runner.running import Box, done, failure, flow, single


class Name(enum.StrEnum):
    TRAIN = "train"


class Text(str):
    __slots__ = ()


ODD: list[Any] = [
    5, None, True, 1.5, float("nan"), 2**80, b"x", "", "a/b", "a\nb", "\x00", "a\ud800", "a" * 9999,
    ("a",), [1], {"a": 1}, {5: 1}, {None: 1}, {"\ud800": 1}, range(3), object(), complex(1, 2),
    np.int64(3), np.float32(2), Text("text"), Name.TRAIN,
]  # fmt: skip


# --- seeds ---


@pytest.mark.parametrize("seed", ["x", None, True, 1.5, [1], np.float32(1)])
def test_a_seed_that_is_no_whole_number_is_refused_before_anything_runs(seed: Any) -> None:
    store = MemoryStore()
    workflow = single(lambda _: None)
    for call in (
        lambda: kitchen.run(workflow, store=store, run_id="r", seed=seed),
        lambda: kitchen.run(workflow, store=store, run_id="r", seed=seed, if_exists="resume"),
    ):
        with pytest.raises(ArgumentError, match="a seed is a whole number"):
            call()
    assert not list(store.runs())


@pytest.mark.parametrize("seed", [np.int64(-7), np.uint8(7), 2**70])
def test_a_whole_number_of_any_kind_is_a_seed(seed: Any) -> None:
    store = MemoryStore()
    workflow = single(lambda ctx: ctx.state.update(drawn=ctx.rng.random()))
    run = kitchen.run(workflow, store=store, run_id="r", seed=seed)
    assert run.state["drawn"] == kitchen.run(workflow, store=store, seed=int(seed)).state["drawn"]
    assert kitchen.history("r", store=store).begun.seed == int(seed)
    again = kitchen.run(workflow, store=store, run_id="r", seed=seed, if_exists="resume")
    assert again.status == "completed"


# --- names ---


def test_names_may_be_members_of_an_enum() -> None:
    def body(ctx: Any) -> None:
        ctx.increment("seen", ctx.item(Name.TRAIN))

    for name in (Name.TRAIN, Text("train")):

        def build(wf: kitchen.WorkflowBuilder, name: str = name) -> None:
            wf.stage("begin", lambda ctx: ctx.state.update(seen=0))
            with wf.loop(name, over=lambda _: [1, 2]):
                wf.stage(name, body)
            wf.resource(Text("box"), lambda _: Box())
            wf.checkpoint(Text("saved"))
            with wf.parallel("beside"), wf.branch(name):
                wf.stage("end", lambda _: None)

        workflow = kitchen.workflow(name=name)(build)
        store = MemoryStore()
        run = kitchen.run(workflow, store=store, run_id="r")
        assert run.state["seen"] == 3
        assert type(workflow.name) is str
        assert kitchen.replay("r", store=store).ok
        assert "train[1]/train: completed" in kitchen.history("r", store=store).trace()


# --- what a stage gives ---


def acts(ctx: Any, odd: Any) -> Iterator[Callable[[], object]]:
    """Everything that can be called with something odd, and leaves something in the log."""
    yield lambda: ctx.record_metric(odd, 1.0)
    yield lambda: ctx.record_metric("value", odd)
    yield lambda: ctx.record_metric("step", 1.0, step=odd)
    yield lambda: ctx.record_metrics(odd)
    yield lambda: ctx.record_metrics({odd: 1})
    yield lambda: ctx.state.__setitem__(odd, 1)
    yield lambda: ctx.state.__setitem__("value", odd)
    yield lambda: ctx.append(odd, 1)
    yield lambda: ctx.append("list", odd)
    yield lambda: ctx.extend("list", odd)
    yield lambda: ctx.increment(odd, 1)
    yield lambda: ctx.increment("number", odd)
    yield lambda: ctx.merge(odd, {"a": 1})
    yield lambda: ctx.merge("mapping", odd)
    yield lambda: ctx.merge("mapping", {odd: 1})
    yield lambda: ctx.merge("mapping", {"a": odd})
    yield lambda: ctx.delete_state(odd)
    yield lambda: ctx.item(odd)
    yield lambda: ctx.index(odd)
    yield lambda: ctx.progress(odd, odd)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{odd!a:.12}")
def test_whatever_a_stage_gives_the_log_can_be_read(odd: Any, tmp_path: Any) -> None:
    taken: list[int] = []

    def give(ctx: Any) -> None:
        ctx.state.update(list=[], number=0, mapping={})
        for number, act in enumerate(acts(ctx, odd)):
            try:
                act()
            except Exception:
                continue
            taken.append(number)
        if ctx.attempt == 1:
            raise ValueError(odd)

    workflow = flow(lambda wf: wf.stage("s", give, retries=kitchen.Retry(1, backoff=0)))
    store = tmp_path / "kitchen.db"
    assert kitchen.run(workflow, store=store, run_id="r").status == "completed"
    assert taken
    past = kitchen.history("r", store=store)
    assert repr(past.state_at(past.events[-1].seq)) == repr(past.state_at())  # nan is not nan
    assert past.trace()
    assert kitchen.replay("r", store=store).ok


# --- adapters ---


def test_an_adapter_that_is_not_there_is_told_with_where_it_could_come_from() -> None:
    def body(ctx: Any) -> None:
        assert "registry" not in ctx.adapters
        assert ctx.adapters.get("registry") is None
        ctx.adapters["registry"]

    def told(given: Mapping[str, Any] | None = None, **declared: Any) -> str:
        failed = failure(single(body, **declared), adapters=given)
        assert failed.type == "UnknownAdapter"
        return f"{failed.message}\n{failed.hint}"

    assert "none were given, and the workflow makes none\nadapters={…} where" in told()
    assert "did you mean 'registries'?" in told({"registries": 1})
    assert "takes the place of the workflow's own" in told(
        {"other": 1}, adapters=lambda: {"registry": 1}
    )
    assert "the provider of 'w' does not make it\nthere are: other" in told(
        adapters=lambda: {"other": 1}
    )
    assert issubclass(UnknownAdapter, KeyError)


def test_adapters_are_only_read() -> None:
    given = {"a": 1}

    def body(ctx: Any) -> None:
        assert dict(ctx.adapters) == given
        assert ctx.adapters == given
        assert list(ctx.adapters) == ["a"]
        assert repr(ctx.adapters) == "Adapters('a')"
        with pytest.raises(TypeError):
            ctx.adapters["b"] = 2

    done(single(body), adapters=given)


def test_a_mapping_of_the_users_own_is_asked_as_it_is() -> None:
    class Lazy(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return os.environ[f"NOBODY_SETS_{name}"]

    def body(ctx: Any) -> None:
        assert ctx.adapters["anything"] == []

    done(single(body), adapters=defaultdict(list))
    failed = failure(single(lambda ctx: ctx.adapters["key"]), adapters=Lazy(key=1))
    assert (failed.type, failed.message) == ("KeyError", "'NOBODY_SETS_key'")


@pytest.mark.parametrize("made", [None, 5, ["registry"]])
def test_what_is_no_mapping_is_refused_before_anything_runs(made: Any) -> None:
    store = MemoryStore()
    workflow = single(lambda _: None, adapters=lambda: made)
    with pytest.raises(ArgumentError, match="the provider of 'w' is to give a mapping"):
        kitchen.run(workflow, store=store)
    if made is not None:
        with pytest.raises(ArgumentError, match="adapters= is to give a mapping"):
            kitchen.run(single(lambda _: None), store=store, adapters=made)
    assert not list(store.runs())

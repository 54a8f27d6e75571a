"""`History`: what a run's log says, at any seq, without any code of the user's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import kitchen
from kitchen.history.history import History, Recorded
from kitchen.machine import cells
from kitchen.machine.codec import Codec
from kitchen.machine.events import Fact
from store import MemoryStore, open_store
from tests.runner.running import Box, Dying, Killed, done, flow


class Layer(msgspec.Struct):
    size: int = 1


class State(msgspec.Struct):
    n: int = 0
    layer: Layer = msgspec.field(default_factory=Layer)
    xs: list[Any] = []
    named: dict[str, int] = {}


def work(ctx: Any) -> None:
    ctx.increment("n")
    ctx.state.layer.size += ctx.item()
    ctx.append("xs", (ctx.item(), bytes([ctx.item()]) * 70_000))
    ctx.merge("named", {f"i{ctx.item()}": ctx.item()})
    ctx.record_metric("size", ctx.state.layer.size, step=ctx.index())
    ctx.resources["box"].add()


def sample(die: Dying) -> Any:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: range(4)):
            wf.stage("work", work)
            with wf.conditional(lambda ctx: ctx.item() == 1, name="second"):
                wf.checkpoint()
        wf.stage("die", lambda ctx: die())

    return flow(build, state=State)


class Keeping:
    """Keeps the live state after every append: seq -> what a user would read."""

    def __init__(self, store: Any) -> None:
        self.states: dict[int, dict[str, Any]] = {}
        self._store = store

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: Any) -> None:
        # cells cache what was read, so copies are read
        fresh = {k: cells.Cell(c.base, c.deltas) for k, c in state.core.data.items()}
        codec = Codec()
        self.states[state.seq] = {
            key: cells.read(cell, codec, self._store.blobs.get, key) for key, cell in fresh.items()
        }

    def on_progress(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def rewound() -> tuple[MemoryStore, Keeping]:
    """A run that died, was rewound and has ended."""
    store = MemoryStore()
    keeping, workflow = Keeping(store), sample(Dying(0))
    with pytest.raises(Killed):
        done(workflow, store=store, observers=[keeping])
    kitchen.resume("r", workflow, store=store, observers=[keeping])
    return store, keeping


def test_state_at_is_the_live_state_after_every_append(rewound: Any) -> None:
    store, keeping = rewound
    past = History(store, "r")
    assert len(keeping.states) > 10
    for seq, state in keeping.states.items():
        assert past.state_at(seq) == state, seq
    assert past.state_at() == keeping.states[store.head("r")]
    assert past.state_at()["n"] == 4


def test_events_are_numbered_timed_and_typed(rewound: Any) -> None:
    store, _ = rewound
    events = History(store, "r").events
    assert [record.seq for record in events] == list(range(1, store.head("r") + 1))
    assert all(isinstance(record, Recorded) for record in events)
    assert all(type(record.event).__name__ == record.type for record in events)
    assert [r.at for r in events] == sorted(r.at for r in events)
    work = [r for r in events if r.type == "StageStarted" and r.path == "l/work"]
    # the attempt at which the cut lies had begun, and begins again
    assert [r.visit for r in work if r.counts] == [(0,), (1,), (2,), (2,), (3,)]
    assert not all(r.counts for r in work)


def test_tail_goes_on_where_one_left_off(rewound: Any) -> None:
    store, _ = rewound
    past = History(store, "r")
    for after in (0, 1, 10, store.head("r")):
        assert list(past.tail(after)) == past.events[after:]


@pytest.mark.parametrize("seq", [0, -1, 10_000])
def test_an_unknown_seq(rewound: Any, seq: int) -> None:
    store, _ = rewound
    with pytest.raises(kitchen.HistoryError, match=f"has the events 1 to {store.head('r')}, not"):
        History(store, "r").state_at(seq)


def test_metrics_that_count(rewound: Any) -> None:
    store, _ = rewound
    past = History(store, "r")
    points = past.metrics("size")
    assert [(p.value, p.step, p.path, p.visit) for p in points] == [
        (1, 0, "l/work", (0,)), (2, 1, "l/work", (1,)),
        (4, 2, "l/work", (2,)), (7, 3, "l/work", (3,)),
    ]  # fmt: skip
    assert past.all_metrics == {"size": points}
    assert past.metrics("nothing") == []


@pytest.mark.parametrize(
    ("ends", "status"),
    [("completed", "completed"), ("failed", "failed"), ("dies", "crashed")],
)
def test_status(ends: str, status: str) -> None:
    store = MemoryStore()
    while_running: list[str] = []

    def body(ctx: Any) -> None:
        while_running.append(History(store, "r").status)
        if ends == "failed":
            raise ValueError
        if ends == "dies":
            raise Killed

    with contextlib.suppress(kitchen.RunError, Killed):
        done(flow(lambda wf: wf.stage("s", body)), store=store)
    assert while_running == ["running"]
    assert History(store, "r").status == status


def test_an_unknown_run() -> None:
    with pytest.raises(Exception, match="nope"):
        History(MemoryStore(), "nope")
    with pytest.raises(kitchen.UnknownRun, match="nope"):
        kitchen.history("nope", store=MemoryStore())


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "k.db"
    with open_store(path) as store:
        done(sample(Dying()), {"a": (1, 2)}, store=store)
        expected = History(store, "r").state_at()
    past = kitchen.history("r", store=path)
    assert past.status == "completed"
    assert past.state_at() == expected
    assert past.config == {"a": (1, 2)}
    assert past.started.seed == 0
    assert [node.name for node in past.ir.body] == ["box", "l", "die"]
    assert past.loops["l/work"] == ("l",)
    past.store.close()


def test_without_snapshots_the_same_is_said(rewound: Any) -> None:
    """Snapshots are a cache: what they say is what folding the log says."""
    store, keeping = rewound
    seqs = list(keeping.states)
    before = [History(store, "r").state_at(seq) for seq in seqs]

    class Without:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def snapshot(self, *args: Any) -> None:
            return None

    bare: Any = Without()
    assert [History(bare, "r").state_at(seq) for seq in seqs] == before

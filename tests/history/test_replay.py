"""Replay without execution: every event from nothing, and what is wrong with a log is told."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import HistoryError, NotResumable, UnknownRun
from kitchen.history.replay import replayed
from kitchen.log.reader import recorded_ir, snapshot_key
from kitchen.machine import snapshot
from kitchen.machine.chart import compile_workflow
from store import MemoryStore, NewEvent, open_store
from tests.crash import kitchens, side_by_side
from tests.crash.test_crash_matrix import Mortal, killed, whole_run

ALL = kitchens.ALL + side_by_side.ALL


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_a_run_that_was_killed_or_not(workflow: Any) -> None:
    _, appends, _ = whole_run(workflow)
    for at in (1, appends // 2, appends - 2, 10**6):
        store = MemoryStore()
        killed_run = killed(workflow, Mortal(store, "after", at)) if at < 10**6 else None
        if killed_run is None:
            kitchen.run(workflow, store=store, run_id="r", seed=7, if_exists="resume")
        replay = replayed(store, "r")
        assert replay.ok, replay.first
        completed = [record for record in store.read("r") if record.type == "StageCompleted"]
        assert replay.events == store.head("r")
        assert 0 < replay.visits <= len(completed)
        rewound = any(record.type == "RunRewound" for record in store.read("r"))
        assert rewound or replay.visits == len(completed)
        assert replayed(store, "r", until=3).events == 3


def recorded() -> MemoryStore:
    store = MemoryStore()
    kitchen.run(kitchens.training, store=store, run_id="r", seed=7)
    return store


def edited(store: MemoryStore, seq: int, **changes: Any) -> MemoryStore:
    """The same run with one event changed; its chain is whole."""
    events = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in store.read("r")]
    events[seq - 1] = events[seq - 1]._replace(**changes)
    made = MemoryStore()
    made.create_run("r", "training", events)
    return made


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "RunCompleted", "payload": "{}"}, "RunCompleted"),
        ({"type": "Unheard"}, "unknown event type"),
        ({"payload": '{"answer": 7}'}, "does not fit"),
        ({"path": "epochs"}, "epochs"),
    ],
)
def test_an_event_that_cannot_be_is_told(changes: Any, told: str) -> None:
    store = recorded()
    seq = next(r.seq for r in store.read("r") if r.type == "ConditionEvaluated")
    replay = replayed(edited(store, seq, **changes), "r")
    assert [each.seq for each in replay.divergences] == [seq]
    assert replay.first is not None
    assert replay.first.key == "event"
    assert told in replay.first.message
    assert replay.events <= seq
    assert replayed(edited(store, seq, **changes), "r", until=seq - 1).ok


def test_a_first_event_that_does_not_read_is_told() -> None:
    replay = replayed(edited(recorded(), 1, payload='{"ir": 1}'), "r")
    assert not replay.ok
    assert replay.first is not None
    assert replay.first.seq == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE events SET payload = replace(payload, 'true', 'false') WHERE id & 65535 > 9",
        "DELETE FROM events WHERE id & 65535 = 9",
    ],
)
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "k.db"
    with open_store(path) as store:
        kitchen.run(kitchens.training, store=store, run_id="r", seed=7)
    raw = sqlite3.connect(path)
    names = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type='trigger'")]
    for name in names:
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute(damage)
    raw.commit()
    raw.close()
    with open_store(path, read_only=True) as store:
        replay = replayed(store, "r")
    assert {each.key for each in replay.divergences} == {"event"}
    assert replay.first is not None
    assert replay.first.seq >= 9
    if damage.startswith("DELETE"):
        assert replay.events == 8
        assert any("there is no event 9" in each.message for each in replay.divergences)


def test_a_snapshot_that_is_another_state_is_told_and_not_used() -> None:
    store = recorded()
    program = compile_workflow(recorded_ir(store, "r"))
    key = snapshot_key(program)
    found = store.snapshot("r", store.head("r"), key)
    assert found is not None
    state = snapshot.load(found[1])
    state.incarnation = 5
    store.save_snapshot("r", found[0], key, snapshot.dump(state), pinned=True)
    store.save_snapshot("r", 2, key, b"no snapshot", pinned=True)
    replay = replayed(store, "r")
    assert [(each.seq, each.key) for each in replay.divergences] == [
        (2, "snapshot"),
        (found[0], "snapshot"),
    ]
    assert replay.events == store.head("r")


def test_wrong_snapshots_do_not_lead_a_rewind_astray() -> None:
    """What a rewind goes back to is folded, not taken from one that was not seen to be right."""
    store = MemoryStore()
    assert killed(kitchens.training, Mortal(store, "after", 20)) is None
    kitchen.resume("r", kitchens.training, store=store)
    (rewound,) = [r for r in store.read("r") if r.type == "RunRewound"]
    assert replayed(store, "r").ok
    key = snapshot_key(compile_workflow(recorded_ir(store, "r")))
    found = store.snapshot("r", rewound.seq - 1, key)
    assert found is not None
    state = snapshot.load(found[1])
    state.core.data.clear()
    store.save_snapshot("r", found[0], key, snapshot.dump(state), pinned=True)
    assert [each.seq for each in replayed(store, "r").divergences] == [found[0]]


def test_what_cannot_be_replayed_at_all() -> None:
    store = recorded()
    with opened(store) as events, pytest.raises(UnknownRun):
        replayed(events, "other")
    for until in (0, store.head("r") + 1):
        with pytest.raises(HistoryError, match="has the events 1 to"):
            replayed(store, "r", until=until)
    store.create_run("empty", "w", [])
    with pytest.raises(NotResumable, match="empty"):
        replayed(store, "empty")

"""Runs that are no longer wanted go, with their blobs, and nothing else does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import ArgumentError, CorruptStore, StoreError
from kitchen.history.history import status_of
from kitchen.log.retention import Collected, Gone, collect, parse_age
from store import MemoryStore, NewEvent
from tests.runner.running import Killed, python, single

DAY = 86400
NOW = 1_000 * DAY

STATUS = {"Done": "completed", "Gone": "cancelled", "Failed": "failed", "T": "crashed"}


def status(store: Any, run: str) -> str:
    """By a run's last event; what the runs here look like is nobody else's."""
    last = store.latest(run)
    if last.type == "Torn":
        raise CorruptStore("torn")
    return STATUS[last.type]


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with opened(tmp_path / "k.db" if request.param == "sqlite" else MemoryStore()) as events:
        yield events


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Any]:
    with opened(tmp_path / "k.db") as events:
        yield events


def naming(*digests: str) -> NewEvent:
    return NewEvent("T", payload=json.dumps([{"blob": digest, "size": 1} for digest in digests]))


def add(
    store: Any, run: str, age: float, last: str = "Done", *, name: str = "w", blobs: Any = ()
) -> None:
    """A run that began and ended so many days ago."""
    events = [NewEvent("T"), naming(*blobs), NewEvent(last)]
    store.create_run(run, name, events, at=int((NOW - age * DAY) * 1e9))


def old_blob(store: Any, data: bytes) -> str:
    digest = store.blobs.put(data)
    long_ago = time.time() - 2 * 3600
    os.utime(store.blobs.path(digest), (long_ago, long_ago))
    return digest


def gone(found: Collected) -> list[str]:
    return [each.run for each in found.removed]


def why(found: Collected) -> dict[str, str]:
    return {each.run: each.why for each in found.kept}


def runs(store: Any) -> set[str]:
    return {info.run for info in store.runs()}


def collected(store: Any, **asked: Any) -> Collected:
    """Told by a dry run, which changes nothing, and then done."""

    def look() -> Any:
        whole = {run: list(store.read(run)) for run in sorted(runs(store))}
        return whole, list(store.blobs.digests()), store.verify()

    before = look()
    told = collect(store, status=status, now=NOW, dry_run=True, **asked)
    assert look() == before
    done = collect(store, status=status, now=NOW, **asked)
    assert (told.dry_run, done.dry_run) == (True, False)
    assert told._replace(dry_run=False) == done
    assert runs(store) == set(before[0]) - set(gone(done))
    assert set(store.blobs.digests()) >= set(store.named_blobs())
    return done


def test_what_is_old_goes(store: Any) -> None:
    for age in (1, 29.9, 30, 30.1, 400):
        add(store, f"r{age}", age)
    found = collected(store, older_than=30 * DAY)
    assert gone(found) == ["r30.1", "r400"]
    assert found.removed[1] == Gone("r400", "w", "completed", 3, int((NOW - 400 * DAY) * 1e9))
    assert found.events == 6
    assert why(found)["r1"] == "its last event is 1d old, not more than 4.29w"
    assert store.verify() == []


def test_the_newest_of_each_workflow_stay(store: Any) -> None:
    for number in range(5):
        add(store, f"a{number}", 10 - number, name="a")
        add(store, f"b{number}", 20 - number, name="b")
    store.append("a0", 3, [NewEvent("Done")], at=int(NOW * 1e9))  # begun first all the same
    found = collected(store, keep_last=2)
    assert gone(found) == ["a2", "a1", "a0", "b2", "b1", "b0"]
    assert why(found)["a4"] == "it is among the newest 2 of its workflow"


def test_runs_of_any_status_count_among_the_newest(store: Any) -> None:
    for age, last in enumerate(("T", "Done", "Failed", "Done", "Done")):
        add(store, f"r{age}", age, last)
    assert gone(collected(store, keep_last=3)) == ["r3", "r4"]


def test_both_limits_hold(store: Any) -> None:
    for age in range(1, 7):
        add(store, f"r{age}", age)
    assert gone(collected(store, keep_last=1, older_than=3 * DAY)) == ["r4", "r5", "r6"]
    assert gone(collected(store, keep_last=2, older_than=0)) == ["r3"]
    assert gone(collected(store, keep_last=0)) == ["r1", "r2"]


def test_what_can_be_resumed_stays_unless_it_is_named(store: Any) -> None:
    for run, last in (("done", "Done"), ("gone", "Gone"), ("failed", "Failed"), ("crashed", "T")):
        add(store, run, 9, last)
    add(store, "torn", 9, "Torn")
    found = collected(store, keep_last=0)
    assert set(gone(found)) == {"done", "gone"}
    assert why(found) == {
        "failed": "its status is failed",
        "crashed": "its status is crashed",
        "torn": "its log does not read: torn",
    }
    assert gone(collected(store, keep_last=0, statuses=("failed",))) == ["failed"]


def test_one_workflow(store: Any) -> None:
    add(store, "a", 9, name="a")
    add(store, "b", 9, name="b")
    found = collected(store, keep_last=0, workflow="a")
    assert (gone(found), found.kept) == (["a"], ())


def test_a_held_run_stays(store: Any) -> None:
    add(store, "held", 9)
    add(store, "free", 9)
    with store.lease("held", note="testing"):
        found = collected(store, keep_last=0)
    assert gone(found) == ["free"]
    assert "holds it (testing)" in why(found)["held"]
    assert gone(collected(store, keep_last=0)) == ["held"]


def fork(store: Any, run: str, parent: str, age: float, last: str = "Done") -> None:
    at = int((NOW - age * DAY) * 1e9)
    store.fork_run(run, "w", parent, 2, [NewEvent("T"), NewEvent(last)], at=at)


def test_a_fork_keeps_what_it_was_forked_of(store: Any) -> None:
    add(store, "p", 90)
    fork(store, "f", "p", 80)
    fork(store, "g", "f", 1)
    fork(store, "h", "p", 70)
    found = collected(store, older_than=10 * DAY)
    assert gone(found) == ["h"]
    assert found.events == 2
    assert why(found)["f"] == "forks of it stay: 'g'"
    assert why(found)["p"] == "forks of it stay: 'f'"
    found = collected(store, older_than=0)
    assert (set(gone(found)), found.events) == ({"p", "f", "g"}, 3 + 2 + 2)
    assert store.verify() == []


def test_a_fork_of_another_workflow_keeps_it_too(store: Any) -> None:
    add(store, "p", 90)
    store.fork_run("f", "other", "p", 2, [NewEvent("Done")], at=1)
    assert why(collected(store, keep_last=0, workflow="w")) == {"p": "forks of it stay: 'f'"}


def test_blobs_that_no_run_names_go(file_store: Any) -> None:
    store = file_store
    shared, lost, inner = (old_blob(store, word) for word in (b"shared", b"lost", b"inner"))
    outer = old_blob(store, json.dumps({"blob": inner, "size": 5}).encode())
    orphan = old_blob(store, b"orphan")
    young = store.blobs.put(b"young")
    add(store, "old", 50, blobs=[shared, lost, outer])
    add(store, "new", 1, blobs=[shared])
    found = collected(store, older_than=9 * DAY)
    removed = {lost, inner, outer, orphan}
    size = len(b"lostinnerorphan") + len(json.dumps({"blob": inner, "size": 5}))
    assert (found.blobs, found.blob_bytes) == (len(removed), size)
    assert set(store.blobs.digests()) == {shared, young}
    assert collected(store, older_than=9 * DAY)._replace(kept=()) == Collected(
        (), (), 0, 0, 0, False
    )


def test_a_run_that_is_taken_up_meanwhile_stays_and_the_others_go(
    file_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = file_store
    for run in ("a", "b", "c", "forked", "moved", "removed"):
        add(store, run, 9)
    fork(store, "fork", "b", 9)
    held: list[Any] = []
    remove = store.remove_runs

    def first(chosen: Any) -> Any:
        if not held:
            held.append(store.lease("fork", note="taken up"))
            fork(store, "newer", "forked", 0)
            store.append("moved", 3, [NewEvent("Done")])
            remove(["removed"])
        return remove(chosen)

    monkeypatch.setattr(store, "remove_runs", first)
    infos = store.runs()
    monkeypatch.setattr(store, "runs", lambda: sorted(infos, key=lambda info: info.run == "fork"))
    found = collect(store, status=status, keep_last=0, now=NOW)
    held[0].release()
    monkeypatch.undo()
    assert set(gone(found)) == {"a", "c"}
    reasons = why(found)
    assert "taken up" in reasons["fork"]
    assert reasons["b"] == "forks of it stay: 'fork'"
    assert "'newer'" in reasons["forked"]
    assert "gone on" in reasons["moved"]
    assert runs(store) == {"b", "fork", "forked", "newer", "moved"}
    assert store.verify() == []


def test_a_store_that_is_only_read(file_store: Any, tmp_path: Path) -> None:
    add(file_store, "r", 9, blobs=[old_blob(file_store, b"large")])
    asked: Any = {"status": status, "keep_last": 0, "now": NOW}
    with opened(tmp_path / "k.db", read_only=True) as store:
        told = collect(store, **asked, dry_run=True)
        assert (gone(told), told.blobs) == (["r"], 1)
        with pytest.raises(StoreError, match="read_only"):
            collect(store, **asked)
    assert runs(file_store) == {"r"}


def test_space_is_given_back(file_store: Any, tmp_path: Path) -> None:
    store = file_store
    store.create_run("large", "w", [NewEvent("Done", payload=f'"{"x" * 5000}"')] * 400, at=1)
    add(store, "small", 0)
    collect(store, status=status, older_than=DAY, now=NOW, dry_run=True, compact=True)
    collect(store, status=status, older_than=DAY, now=NOW, compact=True)
    assert runs(store) == {"small"}
    store.close()
    assert (tmp_path / "k.db").stat().st_size < 200_000


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"keep_last": -1},
        {"older_than": -1.0},
        {"older_than": float("nan")},
        {"keep_last": 1, "statuses": "completed"},
    ],
)
def test_what_cannot_be_asked(store: Any, asked: Any) -> None:
    add(store, "r", 9)
    with pytest.raises(ArgumentError):
        collect(store, status=status, **asked)
    assert runs(store) == {"r"}


def test_a_store_with_forks_of_each_other_is_damaged(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a", 9)
    add(store, "b", 9)
    parents = {"a": "b", "b": "a"}
    infos = [info._replace(parent=parents[info.run]) for info in store.runs()]
    monkeypatch.setattr(store, "runs", lambda: infos)
    with pytest.raises(CorruptStore, match="forks of each other"):
        collect(store, status=status, keep_last=0)


def test_ages() -> None:
    found = [parse_age(text) for text in ("45m", "12h", "30d", "2w", " 90s ", "1.5h", "0d")]
    assert found == [2700, 43200, 30 * DAY, 14 * DAY, 90, 5400, 0]
    for wrong in ("", "30", "d", "-1d", "1 d", "1y", "1e9d", "٣d", "9" * 400 + "d", "nan"):
        with pytest.raises(ArgumentError, match="is no age") as caught:
            parse_age(wrong)
        assert "30d" in str(caught.value)


def test_real_runs(tmp_path: Path) -> None:
    file = tmp_path / "k.db"
    large = single(lambda ctx: ctx.state.update(large=ctx.rng.randbytes(100_000)))

    def dying(ctx: Any) -> None:
        raise Killed

    for number in range(3):
        kitchen.run(large, store=file, run_id=f"r{number}", seed=number)
    with pytest.raises(Killed):
        kitchen.run(single(dying), store=file, run_id="crashed")
    with opened(file) as store:
        for digest in store.blobs.digests():
            os.utime(store.blobs.path(digest), (1, 1))  # type: ignore[attr-defined]
        found = collect(store, status=status_of, keep_last=2)
        assert gone(found) == ["r1", "r0"]
        assert (found.blobs, len(list(store.blobs.digests()))) == (2, 1)
        assert store.verify() == []


# --- kills ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from kitchen.adapters.event_store import opened
from kitchen.log.retention import collect

calls = [0]

def dying(method):
    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        found = method(*args, **kwargs)
        calls[0] += 1
        if calls[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call

with opened(sys.argv[1]) as store:
    store.remove_runs = dying(store.remove_runs)
    store.blobs.remove = dying(store.blobs.remove)
    collect(store, status=lambda store, run: "completed", older_than=3600)
"""


@pytest.mark.slow
def test_killed_at_any_place_the_next_call_ends_it(tmp_path: Path) -> None:
    kept = ""
    for place in range(1, 13):
        file = tmp_path / f"{place}.db"
        with opened(file) as store:
            blobs = [old_blob(store, f"{n}".encode()) for n in range(4)]
            add(store, "p", 90, blobs=blobs[:2])
            fork(store, "f", "p", 80)
            add(store, "r", 70, blobs=blobs[1:3])
            store.create_run("kept", "w", [naming(blobs[3])])
            kept = blobs[3]
        process = python(["-c", KILLED, file, place], tmp_path)
        errors = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, errors
        with opened(file) as store:
            assert store.verify() == []
            assert set(store.named_blobs()) <= set(store.blobs.digests())
            collect(store, status=lambda store, run: "completed", older_than=3600)
            assert runs(store) == {"kept"}
            assert list(store.blobs.digests()) == [kept]
            assert store.verify() == []

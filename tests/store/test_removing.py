"""Removing whole runs, and what other processes that remember them do then."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from store import (
    EventStore,
    HeadMoved,
    MemoryStore,
    NewEvent,
    Removed,
    RunForked,
    RunLocked,
    StoreUnwritable,
    UnknownRun,
    open_store,
)
from store import removing as removing_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., Any]  # what the fixture `child` gives

T = NewEvent("T", "p")


def family(store: EventStore) -> None:
    store.create_run("p", "n", [T] * 5)
    store.fork_run("f", "n", "p", 3, [T])
    store.fork_run("c", "n", "f", 2, [T, T])
    store.create_run("other", "n", [T])
    store.save_snapshot("p", 2, "k", b"2")
    store.save_snapshot("f", 4, "k", b"4")
    store.save_snapshot("other", 1, "k", b"1")


def runs(store: EventStore) -> set[str]:
    return {info.run for info in store.runs()}


def test_a_run_goes_whole(store: EventStore) -> None:
    family(store)
    assert store.remove_runs(["c"]) == Removed(runs=1, events=2, snapshots=0)
    assert store.remove_runs(["p", "f", "p"]) == Removed(2, 6, 2)
    assert store.remove_runs([]) == Removed(0, 0, 0)
    assert runs(store) == {"other"}
    for use in (
        lambda: store.head("p"),
        lambda: store.read("f"),
        lambda: store.latest("f"),
        lambda: store.run("p"),
        lambda: store.snapshot("p", 9, "k"),
        lambda: store.save_snapshot("p", 1, "k", b""),
        lambda: store.append("p", 5, [T]),
        lambda: store.append("f", 4, [T]),
        lambda: store.check("p"),
        lambda: store.verify("p"),
        lambda: store.fork_run("new", "n", "p", 1, [T]),
    ):
        with pytest.raises(UnknownRun):
            use()
    assert store.snapshot("other", 1, "k") == (1, b"1")
    assert store.verify() == []


def test_nothing_goes_that_a_fork_needs(store: EventStore) -> None:
    family(store)
    for chosen, needed in (
        (["p"], {"p": ["f"]}),
        (["p", "c"], {"p": ["f"]}),
        (["f", "other"], {"f": ["c"]}),
        (["p", "f"], {"f": ["c"]}),
    ):
        with pytest.raises(RunForked, match="forks need the events") as caught:
            store.remove_runs(chosen)
        assert caught.value.forks == needed
        assert runs(store) == {"p", "f", "c", "other"}
    assert all(info.owner is None for info in store.runs())
    assert store.remove_runs(["p", "f", "c"]) == Removed(3, 8, 2)


def test_an_unknown_or_held_run_keeps_all(store: EventStore) -> None:
    family(store)
    with pytest.raises(UnknownRun, match="'others'"):
        store.remove_runs(["c", "others"])
    with store.lease("other", note="in use"), pytest.raises(RunLocked, match="in use"):
        store.remove_runs(["c", "other"])
    assert runs(store) == {"p", "f", "c", "other"}
    with store.lease("c"), store.lease("p"):
        assert store.remove_runs(["other"]).runs == 1
    assert store.append("c", 4, [T]) == 5


def test_a_name_can_be_used_again(store: EventStore) -> None:
    family(store)
    before = store.run("other")
    store.remove_runs(["other", "c"])
    store.create_run("other", "again", [NewEvent("New")], at=before.created_at + 1)
    assert [record.type for record in store.read("other")] == ["New"]
    assert store.snapshot("other", 9, "k") is None
    assert store.append("other", 1, [T]) == 2
    store.create_run("c", "again", [NewEvent("New")])
    assert (store.run("c").parent, store.run("c").forked_at) == (None, 0)
    assert [record.type for record in store.read("c")] == ["New"]
    assert store.verify() == []


def test_a_reader_that_has_begun_is_told(file: Path) -> None:
    with open_store(file) as store, open_store(file) as other:
        store.create_run("r", "n", [T] * 500)
        store.fork_run("f", "n", "r", 400, [T])
        for run in ("f", "r"):
            reading = other.read(run)
            next(reading)
            store.remove_runs([run])
            with pytest.raises(UnknownRun, match=f"'{run}'"):
                list(reading)


def test_a_process_that_remembers_a_removed_run_writes_nothing(file: Path) -> None:
    with open_store(file) as store, open_store(file) as other:
        family(store)
        other.create_run("empty", "n", [])
        store.create_run("last", "n", [T])
        heads = {"f": 4, "c": 4, "other": 1, "empty": 0, "last": 1}
        for run, head in heads.items():
            assert other.head(run) == head
            list(other.read(run))
        assert other.append("c", 4, [T]) == 5
        assert other.append("last", 1, [T]) == 2
        store.remove_runs(["p", *heads])
        for run, head in {**heads, "c": 5, "last": 2}.items():
            for use in (
                lambda run=run: list(other.read(run, until=1)),
                lambda run=run, head=head: other.append(run, head, [T]),
                lambda run=run, head=head: other.append(run, head, [T] * 100),
                lambda run=run: other.save_snapshot(run, 1, "k", b""),
                lambda run=run: other.fork_run("new", "n", run, 1, [T]),
                lambda run=run: other.head(run),
                lambda run=run: other.latest(run),
                lambda run=run: list(other.read(run)),
                lambda run=run: other.snapshot(run, 9, "k"),
                lambda run=run: other.check(run),
            ):
                with pytest.raises(UnknownRun):
                    use()
        rows = store._gate.rows("SELECT (SELECT count(*) FROM events), count(*) FROM snapshots")
        assert rows == [(0, 0)]
        assert store.verify() == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_process_that_remembers_the_old_run_of_a_name(file: Path, length: int) -> None:
    with open_store(file) as store, open_store(file) as writer, open_store(file) as reader:
        store.create_run("r", "n", [T])
        assert writer.append("r", 1, [T]) == 2
        assert reader.head("r") == 2
        store.remove_runs(["r"])
        store.create_run("r", "n", [NewEvent("New")] * length)
        with pytest.raises(HeadMoved) as caught:
            writer.append("r", 2, [T])
        assert (caught.value.expected, caught.value.found) == (2, length)
        if length == 2:
            assert "another run of the same name" in str(caught.value)
        assert reader.head("r") == length
        assert [record.type for record in reader.read("r")] == ["New"] * length
        assert writer.head("r") == length
        assert writer.append("r", length, [T]) == length + 1
        assert store.verify() == []


def test_numbers_of_removed_runs_are_not_given_again(file: Path) -> None:
    numbers: list[int] = []
    for name in ("a", "b", "c"):
        with open_store(file) as store:
            store.create_run(name, "n", [T])
            numbers.append(store._gate.rows("SELECT max(no) FROM runs")[0][0])
            store.remove_runs([name])
            store.compact()
    assert numbers == sorted(set(numbers))


def test_an_error_in_the_middle_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(file) as store:
        family(store)
        triggers = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        before = store._gate.rows(triggers)
        monkeypatch.setattr(removing_module, "_LIFTED", ("events_refuse_delete", "none"))
        with pytest.raises(Exception, match="append-only"):
            store.remove_runs(["c"])  # the rows of forks are guarded still
        monkeypatch.undo()
        assert store._gate.rows(triggers) == before
        assert runs(store) == {"p", "f", "c", "other"}
        assert store.append("c", 4, [T]) == 5
        assert store.verify() == []
        assert store.remove_runs(["c"]) == Removed(1, 3, 0)
        assert store._gate.rows(triggers) == before


def test_what_is_kept_is_guarded_after_a_removal(file: Path) -> None:
    with open_store(file) as store:
        family(store)
        store.remove_runs(["c"])
    db = sqlite3.connect(file)
    for table in ("events", "runs", "forks"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(f"DELETE FROM {table}")
    db.close()


def test_a_store_that_was_opened_for_reading_removes_nothing(file: Path) -> None:
    with open_store(file) as store:
        family(store)
    with open_store(file, read_only=True) as store:
        for use in (lambda: store.remove_runs(["c"]), store.compact):
            with pytest.raises(StoreUnwritable, match="read_only"):
                use()


def test_compacting_gives_the_space_back(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("large", "n", [NewEvent("T", payload=f'"{"x" * 900}"')] * 2000)
        store.create_run("small", "n", [T])
    large = file.stat().st_size
    with open_store(file) as store:
        before = list(store.read("small"))
        store.remove_runs(["large"])
        store.compact()
        assert file.stat().st_size < large / 10
        assert list(store.read("small")) == before
        assert store.append("small", 1, [T]) == 2
        assert store.verify() == []


HOLD = """
import sys, store
with store.open_store(sys.argv[1]) as opened, opened.lease("r"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_run_of_another_process_stays(file: Path, child: Start) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [T])
        other = child(HOLD, file)
        assert other.line() == "held"
        with pytest.raises(RunLocked, match=f"process {other.pid}"):
            store.remove_runs(["r"])
        other.kill()
        assert store.remove_runs(["r"]) == Removed(1, 1, 0)


def test_removing_from_a_copy_in_memory_leaves_the_other() -> None:
    store = MemoryStore()
    family(store)
    twin = store.copy()
    twin.remove_runs(["c"])
    assert (runs(twin), len(runs(store))) == ({"p", "f", "other"}, 4)
    cut = store.truncated("f", 4)
    assert cut.run("f").parent == "p"
    with pytest.raises(ValueError, match="is a fork"):
        store.truncated("f", 3)

"""Events of a run as a whole are found fast; and a file of format 1, which had no forks.

Rules: `v1.sqlite` was written by the code of format 1 and is never written again.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from store import EventStore, MemoryStore, NewEvent, StoreUnwritable, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

OLD = Path(__file__).with_name("v1.sqlite")
WHOLE = NewEvent("RunResumed")
STEP = NewEvent("Step", "train", (1,))


@pytest.fixture
def old(file: Path) -> Path:
    shutil.copy(OLD, file)
    return file


def plans(file: Path, types: list[str] | None, path: str) -> list[str]:
    """How SQLite says that it reads the events for a question about the run 'r'."""
    with open_store(file) as store:
        rows = store._gate.rows
        asked: list[tuple[str, Sequence[Any]]] = []

        def noted(sql: str, args: Sequence[Any] = ()) -> list[Any]:
            asked.append((sql, args))
            return rows(sql, args)

        store._gate.rows = noted  # a trace would show values where the statement has none
        store.latest("r", types, path)
        list(store.read("r", types=types, path=path))
        explained = [
            # whatever is bound: with other values the planner would look again each time
            rows(f"EXPLAIN QUERY PLAN {sql}", [0] * len(args))
            for sql, args in asked
            if "FROM events" in sql
        ]
    return [" / ".join(row[3] for row in plan) for plan in explained]


@pytest.mark.parametrize("types", [None, ["RunResumed"], ["RunResumed", "RunStarted"]])
def test_events_of_the_run_as_a_whole_are_found_by_their_index(
    file: Path, types: list[str] | None
) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [NewEvent("RunStarted"), *[STEP] * 300, WHOLE, *[STEP] * 300])
    by_index = "SEARCH events USING INDEX run_events (path=? AND rowid>? AND rowid<?)"
    by_key = "SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"
    assert plans(file, types, "") == [by_index, by_index]
    assert set(plans(file, ["Step"], "train")) == {by_key}
    with open_store(file) as store:
        last = store.latest("r", types, "")
        assert last is not None
        assert last.seq == 302
        found = [record.seq for record in store.read("r", types=types, path="")]
        assert found == ([302] if types == ["RunResumed"] else [1, 302])


def test_other_events_are_not_in_that_index(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [WHOLE, STEP, STEP, WHOLE])
        (row,) = store._gate.rows(
            "SELECT count(*) FROM events INDEXED BY run_events WHERE path = 1"
        )
        assert row == (2,)


def content(store: EventStore) -> list[object]:
    runs = store.runs()
    reads = [list(store.read(info.run)) for info in runs]
    snapshots = [store.snapshot("first", seq, "key") for seq in (4, 7, 12, 13)]
    return [runs, reads, snapshots]


def as_it_was() -> MemoryStore:
    """What was written to the old file."""
    store, at = MemoryStore(), 1_700_000_000_000_000_000
    start = NewEvent("RunStarted", payload='{"seed":1}')
    head = store.create_run("first", "training", [start], at=at)
    for n in range(4):
        rest = "epochs/train", (n,), 1
        put = NewEvent("StatePut", *rest, f'{{"value":{n}}}')
        events = [NewEvent("StageStarted", *rest), put, NewEvent("StageCompleted", *rest)]
        head = store.append("first", head, events, at=at + 1000 * (n + 1))
        store.save_snapshot("first", head, "key", b"state %d" % n, pinned=n == 1)
    store.append("first", head, [NewEvent("RunCompleted")], at=at + 9000)
    store.create_run(
        "second", "training", [NewEvent("RunStarted", payload='{"seed":2}')], at=at + 10000
    )
    return store


def test_a_file_of_format_1_is_read_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    with open_store(old, read_only=True) as store:
        assert content(store) == content(as_it_was())
        assert store.verify() == []
        assert store.verify("first") == store.check("first", 5) == []
        last = store.latest("first", ["RunStarted"], "")
        assert last is not None
        assert last.seq == 1
        assert list(store.named_blobs()) == []
        with pytest.raises(StoreUnwritable):
            store.append("first", 14, [STEP])
    assert old.read_bytes() == before == OLD.read_bytes()


def test_a_file_of_format_1_is_read_where_nothing_can_be_written(old: Path) -> None:
    # "immutable" is what opening falls back to on a read-only medium
    from store.connection import Gate, _connect
    from store.log import SqliteStore

    raw = _connect(old, "ro&immutable=1", 1.0)
    gate = Gate(raw, old, durability="process", read_only=True, timeout=1.0)
    with SqliteStore(gate) as store:
        assert content(store) == content(as_it_was())
        assert store.verify() == []
    assert [entry.name for entry in old.parent.iterdir()] == [old.name]


def test_a_file_of_format_1_is_brought_up_to_date_by_a_writer(old: Path, tmp_path: Path) -> None:
    with open_store(old) as store:
        assert content(store) == content(as_it_was())
        assert store.verify() == []
        assert store.append("first", 14, [WHOLE]) == 15
        assert store.fork_run("fork", "training", "first", 7, [WHOLE, STEP]) == 9
        assert store.snapshot("fork", 9, "key") == (7, b"state 1")
        store.create_run("third", "training", [WHOLE])
        assert store.verify() == []
        assert [info.run for info in store.runs()][2:] == ["second", "first"]
        numbers = store._gate.rows("SELECT no FROM runs ORDER BY no")
        assert numbers == [(1,), (2,), (3,), (4,)]
        last = store.latest("fork", ["RunStarted"], "")
        assert last is not None
        assert last.seq == 1
    new = tmp_path / "new.db"
    open_store(new).close()
    assert schema(old) == schema(new)


def schema(file: Path) -> list[object]:
    db = sqlite3.connect(file)
    rows = db.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2"
    ).fetchall()
    version = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return [version, *rows]


def test_a_reader_of_format_1_sees_forks_made_after_it_opened(old: Path) -> None:
    with open_store(old, read_only=True) as reader:
        assert reader.head("first") == 14
        with open_store(old) as writer:
            writer.fork_run("fork", "training", "first", 7, [WHOLE])
            assert [record.seq for record in reader.read("fork")] == list(range(1, 9))
            assert reader.run("fork").parent == "first"
            assert reader.verify() == []


def test_names_of_format_1_keep_their_numbers(old: Path) -> None:
    """The path of the run as a whole has whatever number it had, and the index that number."""
    db = sqlite3.connect(old, isolation_level=None)
    db.execute("DROP TRIGGER paths_refuse_update")
    db.execute("DROP TRIGGER events_refuse_update")
    (sql,) = db.execute(
        "SELECT sql FROM sqlite_master WHERE name = 'runs_refuse_update'"
    ).fetchone()
    db.execute("UPDATE paths SET id = 9 WHERE name = ''")
    db.execute("UPDATE events SET path = 9 WHERE path = 1")
    for table in ("paths", "events"):
        text = sql.replace("OF no, run, name, created_at ", "").replace("runs", table)
        db.execute(text)
    db.close()
    with open_store(old) as store:
        assert content(store) == content(as_it_was())
        last = store.latest("first", None, "")
        assert last is not None
        assert (last.seq, last.type) == (14, "RunCompleted")
        rows = store._gate.rows("SELECT sql FROM sqlite_master WHERE name = 'run_events'")
        assert "path = 9" in rows[0][0]
        assert store.verify() == []

"""Damage done behind the store's back, and that `verify` names the place.

Rules: every test does one deed to a file, by means that an editor of files has, and expects the
exact findings.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import (
    BlobCorrupt,
    BlobMissing,
    CorruptLog,
    HeadMoved,
    NewEvent,
    StoreError,
    StoreUnwritable,
    open_store,
)
from store.holding import told, writer_of

if TYPE_CHECKING:
    from store import Finding, SqliteStore


def fill(store: SqliteStore, count: int = 6) -> None:
    events = [NewEvent("T", "p", (n,), 1, json.dumps({"n": n})) for n in range(1, count + 1)]
    store.create_run("r", "n", events)


def deed(file: Path, *statements: str) -> None:
    db = sqlite3.connect(file, isolation_level=None)
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        assert db.execute(statement).rowcount != 0, statement
    for _, sql in triggers:
        db.execute(sql)
    db.close()


def found(file: Path, run: str | None = None) -> list[tuple[str, str | None, int | None]]:
    with open_store(file, read_only=True) as store:
        return [place(finding) for finding in store.verify(run)]


def place(finding: Finding) -> tuple[str, str | None, int | None]:
    return finding.kind, finding.run, finding.seq


@pytest.mark.parametrize(
    ("change", "findings"),
    [
        ("UPDATE events SET payload = '{\"n\": 0}' WHERE visit = '3'", [("chain", "r", 3)]),
        ("UPDATE events SET visit = '9' WHERE visit = '3'", [("chain", "r", 3)]),
        ("UPDATE events SET attempt = 2 WHERE visit = '6'", [("chain", "r", 6)]),
        ("UPDATE events SET chain = x'00' WHERE visit = '3'", [("chain", "r", 3), ("chain", "r", 4)]),
        ("UPDATE events SET payload = '{' WHERE visit = '3'", [("chain", "r", 3), ("payload", "r", 3)]),
        (
            "UPDATE events SET payload = CAST(x'22ff22' AS TEXT) WHERE visit = '3'",
            [("chain", "r", 3)],
        ),
        ("DELETE FROM events WHERE visit = '3'", [("gap", "r", 3)]),
        ("DELETE FROM events WHERE visit IN ('1', '2', '5')", [("gap", "r", 1), ("gap", "r", 5)]),
        ("DELETE FROM events WHERE visit IN ('5', '6')", [("head", "r", 5)]),
        ("DELETE FROM events", [("head", "r", 1)]),
        ("DELETE FROM runs", [("head", None, None)]),
        ("DELETE FROM types", [("chain", "r", seq) for seq in range(1, 7)]),
        ("UPDATE runs SET sealed_chain = x'00'", [("head", "r", 6), ("head", "untouched", None)]),
    ],
)  # fmt: skip
def test_a_deed_is_found_where_it_was_done(
    file: Path, change: str, findings: list[tuple[str, str | None, int | None]]
) -> None:
    with open_store(file) as store:
        fill(store)
        store.create_run("untouched", "n", [])
    assert found(file) == []
    deed(file, change)
    assert found(file) == findings


@pytest.mark.parametrize(
    ("change", "after", "findings"),
    [
        ("UPDATE events SET payload = '{\"n\": 0}' WHERE visit = '3'", 0, [("chain", 3)]),
        ("UPDATE events SET payload = '{\"n\": 0}' WHERE visit = '3'", 2, [("chain", 3)]),
        ("UPDATE events SET payload = '{\"n\": 0}' WHERE visit = '3'", 3, []),
        ("UPDATE events SET chain = x'00' WHERE visit = '3'", 3, [("chain", 4)]),
        ("UPDATE events SET chain = x'00' WHERE visit = '3'", 4, []),
        ("UPDATE events SET chain = x'00' WHERE visit = '6'", 6, [("head", 6)]),
        ("UPDATE events SET payload = CAST(x'22ff22' AS TEXT) WHERE visit = '3'", 0, [("chain", 3)]),
        ("DELETE FROM events WHERE visit = '3'", 0, [("gap", 3)]),
        ("DELETE FROM events WHERE visit = '3'", 2, [("gap", 3)]),
        ("DELETE FROM events WHERE visit = '3'", 3, [("gap", 3)]),
        ("DELETE FROM events WHERE visit = '3'", 4, []),
        ("DELETE FROM events WHERE visit IN ('1', '2', '5')", 0, [("gap", 1), ("gap", 5)]),
        ("DELETE FROM events WHERE visit IN ('5', '6')", 0, [("head", 5)]),
        ("DELETE FROM events WHERE visit IN ('5', '6')", 4, [("head", 5)]),
        ("DELETE FROM events WHERE visit IN ('5', '6')", 6, [("head", 5)]),
        ("DELETE FROM events WHERE visit IN ('3', '6')", 3, [("head", 6), ("gap", 3)]),
        ("DELETE FROM events", 0, [("head", 1)]),
        ("DELETE FROM types", 5, [("chain", 6)]),
        ("UPDATE runs SET sealed_chain = x'00'", 0, [("head", 6)]),
        ("UPDATE runs SET sealed_chain = x'00'", 6, [("head", 6)]),
    ],
)  # fmt: skip
def test_a_deed_behind_the_point_of_resume_is_found_by_check(
    file: Path, change: str, after: int, findings: list[tuple[str, int]]
) -> None:
    with open_store(file) as store:
        store.create_run("before", "n", [NewEvent("T", "p")] * 9)
        fill(store)
        store.create_run("behind", "n", [NewEvent("T", "p")] * 9)
    with open_store(file, read_only=True) as store:
        assert store.check("r", after) == []
    where = " AND id >> 32 = 2" if " WHERE " in change else " WHERE id >> 32 = 2"
    deed(file, change + where if "events" in change else change)
    with open_store(file, read_only=True) as store:
        found = store.check("r", after)
    assert [(finding.kind, finding.seq) for finding in found] == findings
    assert {finding.run for finding in found} <= {"r"}


def test_check_names_the_end_and_the_seal(file: Path) -> None:
    with open_store(file) as store:
        fill(store, 10)
    deed(file, "DELETE FROM events WHERE id > (1 << 32) + 4")
    with open_store(file, read_only=True) as store:
        (finding,) = store.check("r", 4)
    assert str(finding) == "run 'r', seq 5: the log ends at seq 4, but 10 was sealed"


def test_check_looks_no_further_than_it_was_told(file: Path) -> None:
    with open_store(file) as store:
        fill(store, 10)
    deed(file, "DELETE FROM events WHERE id > (1 << 32) + 8")
    deed(file, "UPDATE events SET payload = '{}' WHERE id = (1 << 32) + 5")
    with open_store(file, read_only=True) as store:
        assert store.check("r", 0, 4) == []
        assert [place(finding) for finding in store.check("r", 2, 5)] == [("chain", "r", 5)]
        assert store.check("r", 5, 8) == []
        ends = [place(finding) for finding in store.check("r", 5, 9)]
        assert ends == [("head", "r", 9)]


def test_check_reads_nothing_before_the_point_of_resume(file: Path) -> None:
    with open_store(file) as store:
        fill(store, 5000)
        asked: list[str] = []
        store._gate.raw.set_trace_callback(asked.append)
        assert store.check("r", 4990) == []
        store._gate.raw.set_trace_callback(None)
        plans = [store._gate.raw.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall() for sql in asked]
    base = 1 << 32
    assert any(f"e.id > {base + 4990} AND e.id <= {base + 5000}" in sql for sql in asked)
    assert not any("SCAN e" in row[3] for plan in plans for row in plan), plans


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("UPDATE snapshots SET body = x'00' WHERE seq = 4", (2, b"two")),
        ("UPDATE snapshots SET key = 'k' WHERE key = 'other'", (4, b"four")),
        ("UPDATE snapshots SET digest = x'' WHERE seq = 4", (2, b"two")),
        ("UPDATE snapshots SET seq = 3 WHERE seq = 4", (2, b"two")),
        ("UPDATE snapshots SET body = x'00' WHERE key = 'k'", None),
        ("UPDATE events SET chain = x'00' WHERE id = (1 << 32) + 4", (2, b"two")),
        ("DELETE FROM events WHERE id = (1 << 32) + 4", (2, b"two")),
    ],
)
def test_a_snapshot_that_does_not_fit_is_passed_over_and_told(
    file: Path, change: str, left: tuple[int, bytes] | None
) -> None:
    with open_store(file) as store:
        fill(store)
        for seq, key, body in ((2, "k", b"two"), (4, "k", b"four"), (5, "other", b"five")):
            store.save_snapshot("r", seq, key, body)
        assert store.snapshot("r", 6, "k") == (4, b"four")
    assert found(file) == []
    deed(file, change)
    with open_store(file, read_only=True) as store:
        assert store.snapshot("r", 6, "k") == left
        told = [finding for finding in store.verify() if finding.kind == "snapshot"]
    assert told
    assert all(finding.run == "r" and finding.seq for finding in told)
    assert "not made of the log" in told[0].what


def test_a_snapshot_of_another_past_is_passed_over(file: Path) -> None:
    with open_store(file) as store:
        fill(store)
        store.save_snapshot("r", 5, "k", b"of the old past")
    deed(
        file,
        "DELETE FROM events WHERE id >= (1 << 32) + 5",
        "UPDATE runs SET sealed_seq = 0, sealed_chain = NULL",
    )
    with open_store(file) as store:
        store.append("r", 4, [NewEvent("T", "another")] * 3)
        assert store.snapshot("r", 7, "k") is None
        assert [place(finding) for finding in store.verify()] == [("snapshot", "r", 5)]


def test_two_events_that_changed_places_are_found(file: Path) -> None:
    with open_store(file) as store:
        fill(store)
    base = 1 << 32
    deed(
        file,
        f"UPDATE events SET id = 1 WHERE id = {base + 2}",
        f"UPDATE events SET id = {base + 2} WHERE id = {base + 3}",
        f"UPDATE events SET id = {base + 3} WHERE id = 1",
    )
    assert ("chain", "r", 2) in found(file)


def test_an_append_onto_a_tail_that_vanished_is_refused(file: Path) -> None:
    with open_store(file) as store:
        fill(store)
        assert store.append("r", 6, [NewEvent("T")]) == 7
        deed(file, "DELETE FROM events WHERE id > (1 << 32) + 4")
        with pytest.raises(HeadMoved, match="gone from the file"):
            store.append("r", 7, [NewEvent("T")])
        with pytest.raises(HeadMoved, match="gone from the file"):
            store.append("r", 7, [NewEvent("T")] * 100)
        assert store.head("r") == 4


@pytest.mark.parametrize("how", ["close", "snapshot", "lease"])
def test_a_cut_tail_is_found_after_any_orderly_moment(file: Path, how: str) -> None:
    with open_store(file) as store:
        lease = store.lease("r")
        fill(store)
        if how == "snapshot":
            store.save_snapshot("r", 2, "k", b"")
        elif how == "lease":
            lease.release()
        if how != "close":
            deed(file, "DELETE FROM events WHERE id = (1 << 32) + 6")
            assert [place(finding) for finding in store.verify()] == [("head", "r", 6)]
    if how == "close":
        deed(file, "DELETE FROM events WHERE id = (1 << 32) + 6")
        assert found(file) == [("head", "r", 6)]


def test_a_flipped_byte_in_the_file_is_found(file: Path) -> None:
    with open_store(file) as store:
        fill(store, 300)
    content = file.read_bytes()
    at = content.index(b'{"n": 150}')
    file.write_bytes(content[:at] + b'{"n": 151}' + content[at + 10 :])
    assert found(file) == [("chain", "r", 150)]


def test_missing_and_altered_blobs_are_found(file: Path) -> None:
    with open_store(file) as store:
        one, two, three = (store.blobs.put(data) for data in (b"one", b"two", b"three"))
        naming = [NewEvent("S", payload=f'{{"blob":"{digest}"}}') for digest in (one, two, three)]
        store.create_run("r", "n", [*naming, naming[0]])
        assert store.verify() == []
        store.blobs.path(one).unlink()
        store.blobs.path(two).write_bytes(b"tow")
        with pytest.raises(BlobMissing, match="must be moved and copied with it"):
            store.blobs.get(one)
        with pytest.raises(BlobCorrupt, match="nothing was loaded"):
            store.blobs.get(two)
        assert [place(finding) for finding in store.verify()] == [
            ("blob-missing", "r", 1),
            ("blob-corrupt", "r", 2),
            ("blob-missing", "r", 4),
        ]


def test_a_blob_that_was_cut_short_is_written_again(file: Path) -> None:
    with open_store(file) as store:
        digest = store.blobs.put(b"weights")
        store.blobs.path(digest).write_bytes(b"wei")
        assert store.blobs.put(b"weights") == digest
        assert store.blobs.get(digest) == b"weights"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were synced, in order."""
    folders: list[Path] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if place.is_dir():
            folders.append(place)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    return folders


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@linux
def test_a_new_blob_is_durable_with_all_folders_above(file: Path, synced: list[Path]) -> None:
    with open_store(file) as store:
        synced.clear()
        folder = store.blobs.path(store.blobs.put(b"x")).parent
        assert synced == [folder, folder.parent, file.parent]
        synced.clear()
        other = store.blobs.path(store.blobs.put(b"y")).parent
        assert other != folder
        assert synced == [other, folder.parent]


@linux
def test_a_present_blob_is_made_durable_once(file: Path, synced: list[Path]) -> None:
    with open_store(file) as store:
        digest = store.blobs.put(b"x")
    with open_store(file) as store:
        synced.clear()
        folder = store.blobs.path(digest).parent
        for _ in range(3):
            assert store.blobs.put(b"x") == digest
        assert synced == [folder, folder.parent, file.parent]
        # another writer has since renamed something into the folder, and may be dead by now
        later = folder.stat().st_mtime_ns + 10**9
        os.utime(folder, ns=(later, later))
        synced.clear()
        for _ in range(3):
            store.blobs.put(b"x")
        assert synced == [folder]


@linux
def test_folders_that_were_removed_are_made_durable_anew(file: Path, synced: list[Path]) -> None:
    with open_store(file) as store:
        path = store.blobs.path(store.blobs.put(b"x"))
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()
        synced.clear()
        store.blobs.put(b"x")
        assert synced == [path.parent, path.parent.parent, file.parent]


def test_a_folder_that_cannot_be_synced_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, refusal = os.fsync, [errno.EINVAL]

    def refusing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(refusal[0], os.strerror(refusal[0]))
        fsync(fd)

    with open_store(file) as store:
        monkeypatch.setattr(os, "fsync", refusing)
        store.blobs.put(b"a file system that does not sync folders")
        refusal[0] = errno.EIO
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                store.blobs.put(b"x")
        monkeypatch.setattr(os, "fsync", fsync)
        assert store.blobs.get(store.blobs.put(b"x")) == b"x"


def test_blobs_leave_no_temporary_file_and_old_ones_are_swept(file: Path) -> None:
    with open_store(file) as store:
        kept = store.blobs.path(store.blobs.put(b"x"))
    young, old = kept.with_name(".tmp-1-young"), kept.with_name(".tmp-1-old")
    assert list(kept.parent.iterdir()) == [kept]
    young.touch()
    old.touch()
    os.utime(old, (1, 1))
    with open_store(file) as store:
        assert sorted(kept.parent.iterdir()) == sorted([kept, young])
        assert len(list(store.blobs.digests())) == 1


def test_putting_a_present_blob_makes_it_young_again(file: Path) -> None:
    with open_store(file) as store:
        digest = store.blobs.put(b"x")
        os.utime(store.blobs.path(digest), (1, 1))
        store.blobs.put(b"x")
        assert not store.blobs.remove(digest, older_than=3600)
        os.utime(store.blobs.path(digest), (1, 1))
        assert store.blobs.remove(digest, older_than=3600)


def test_a_blob_that_cannot_be_written_is_told(file: Path) -> None:
    with open_store(file) as store:
        store.blobs.root.write_text("a file in the way")
        with pytest.raises(StoreUnwritable):
            store.blobs.put(b"x")
        assert not store.blobs.has("0" * 64)


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ("DROP TRIGGER events_refuse_delete", "integrity", "the trigger events_refuse_delete is"),
        ("DROP VIEW event_log", "integrity", "the view event_log is gone"),
        ("UPDATE runs SET sealed_seq = 0", "head", "a chain was sealed, and its seq is gone"),
    ],
)
def test_what_keeps_the_log_is_verified_too(file: Path, change: str, kind: str, what: str) -> None:
    with open_store(file) as store:
        fill(store)
    db = sqlite3.connect(file, isolation_level=None)
    db.execute(change)
    db.close()
    with open_store(file, read_only=True) as store:
        (finding,) = store.verify()
    assert finding.kind == kind
    assert what in str(finding)


# what a flipped byte makes of a column, which no statement could write; the schema is put back
LOOSE = """
PRAGMA writable_schema = ON;
UPDATE sqlite_master SET sql = replace(replace(sql, 'STRICT', ''), 'NOT NULL', '');
PRAGMA writable_schema = RESET;
"""


def loosely(file: Path, change: str) -> None:
    """Change a store as if its columns took anything."""
    db = sqlite3.connect(file, isolation_level=None)
    schema = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    db.executescript(LOOSE)
    db.close()
    db = sqlite3.connect(file, isolation_level=None)
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    assert db.execute(change).rowcount > 0
    for _, sql in schema:
        if sql.startswith("CREATE TRIGGER"):
            db.execute(sql)
    db.execute("PRAGMA writable_schema = ON")
    for name, sql in schema:
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
    db.execute("PRAGMA writable_schema = RESET")
    db.close()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("UPDATE events SET payload = NULL WHERE visit = '3'", "chain"),
        ("UPDATE events SET payload = x'7b7d' WHERE visit = '3'", "chain"),
        ("UPDATE events SET payload = CAST(x'22ff22' AS TEXT) WHERE visit = '3'", "chain"),
        ("UPDATE events SET visit = NULL WHERE visit = '3'", "chain"),
        ("UPDATE events SET visit = CAST(x'33ff' AS TEXT) WHERE visit = '3'", "chain"),
        ("UPDATE events SET attempt = NULL WHERE visit = '3'", "chain"),
        ("UPDATE events SET chain = NULL WHERE visit = '6'", "chain"),
        ("UPDATE events SET chain = 'text' WHERE visit = '6'", "chain"),
        ("UPDATE types SET name = NULL", "chain"),
        ("UPDATE types SET name = CAST(x'ff' AS TEXT)", "chain"),
        ("UPDATE paths SET name = 7.5 WHERE name = 'p'", "chain"),
        ("UPDATE runs SET name = NULL", "head"),
        ("UPDATE runs SET created_at = 'soon'", "head"),
        ("UPDATE runs SET sealed_seq = 'x', sealed_chain = 5", "head"),
        ("UPDATE snapshots SET body = NULL", "snapshot"),
        ("UPDATE snapshots SET digest = 'text'", "snapshot"),
        ("UPDATE forks SET seq = 'text'", "head"),
        ("UPDATE forks SET seq = NULL", "gap"),
        ("UPDATE forks SET seq = 2.5", "head"),
        ("UPDATE forks SET parent = NULL", "head"),
        ("UPDATE forks SET parent = 'text'", "head"),
        ("UPDATE forks SET parent = no", "head"),
        ("UPDATE forks SET parent = -1", "head"),
        ("UPDATE runs SET run = x'ff' WHERE run = 'r'", "head"),
    ],
)
def test_a_column_of_another_type_is_damage(file: Path, change: str, kind: str) -> None:
    with open_store(file) as store:
        fill(store)
        store.save_snapshot("r", 6, "k", b"body")
        store.fork_run("f", "n", "r", 3, [NewEvent("T", "p")])
    loosely(file, change)
    with open_store(file) as store:
        assert kind in {finding.kind for finding in store.verify()}
        store.verify("f")
        store.check("f")
        for use in (
            lambda: store.check("r"),
            lambda: list(store.read("f")),
            lambda: store.latest("f", ["T"]),
            lambda: store.head("f"),
            lambda: store.run("f"),
            lambda: store.snapshot("f", 6, "k"),
            lambda: store.append("f", 4, [NewEvent("New", "path")]),
            lambda: store.fork_run("g", "n", "f", 2, [NewEvent("T")]),
            lambda: list(store.named_blobs("f")),
            lambda: list(store.named_blobs()),
            lambda: store.remove_runs(["f"]),
            lambda: list(store.read("r")),
            lambda: store.latest("r", ["T"]),
            lambda: store.head("r"),
            lambda: store.run("r"),
            store.runs,
            lambda: store.snapshot("r", 6, "k"),
            lambda: store.append("r", 6, [NewEvent("New", "path")]),
        ):
            with contextlib.suppress(StoreError):
                use()


def test_a_name_that_only_the_index_has_is_damage(file: Path) -> None:
    with open_store(file) as store:
        fill(store)
    content = file.read_bytes()
    with open_store(file) as store:
        page = store._gate.raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'types'")
        start = (page.fetchone()[0] - 1) * 4096
    at = content.index(b"T", start + 4000, start + 4096)
    file.write_bytes(content[:at] + b"U" + content[at + 1 :])
    with open_store(file) as store:
        with pytest.raises(CorruptLog, match="'T' cannot be found again in table types"):
            store.append("r", 6, [NewEvent("T")])
        assert store.head("r") == 6


def test_the_writer_in_the_way_is_looked_up_in_the_locks_of_the_system(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [])
        shared = file.with_name("events.db-shm").stat()
        place = f"{os.major(shared.st_dev):02x}:{os.minor(shared.st_dev):02x}:{shared.st_ino}"
        line = "POSIX  ADVISORY "
        for locks, pid in {
            f"1: {line} WRITE 4711 {place} 120 120\n": 4711,
            f"1: {line} READ 9 {place} 124 124\n2: {line} WRITE 4711 {place} 0 EOF\n": 4711,
            f"1: {line} READ 4711 {place} 120 120\n": None,
            f"1: {line} WRITE 4711 {place} 121 128\n": None,
            f"1: {line} WRITE 4711 00:00:1 120 120\n": None,
            f"1: -> {line} WRITE 4711 {place} 120 120\n": None,
            f"1: {line} WRITE {os.getpid()} {place} 120 120\n": None,
            f"1: {line} WRITE 0 {place} 120 120\n": None,
            "": None,
        }.items():
            assert writer_of(file, locks) == pid, locks
    assert writer_of(file) is None  # closed: nothing is shared any more
    assert told(os.getpid()).startswith(f"process {os.getpid()}")
    assert told(2**22 + 1) == f"process {2**22 + 1}"

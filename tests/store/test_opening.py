"""What is opened, what is refused, and that a refused file is left as it was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from store import (
    CorruptLog,
    NewEvent,
    NotAStore,
    StoreBusy,
    StoreError,
    StoreMissing,
    StoreTooNew,
    StoreUnwritable,
    UnfitFilesystem,
    open_store,
)
from store.filesystem import filesystem_of, refuse_network

ROOT = Path(__file__).resolve().parents[2]
STARTED = NewEvent("RunStarted")


def raw(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, isolation_level=None)


def test_importing_and_reopening_need_no_sqlite_utils(file: Path) -> None:
    open_store(file).close()
    script = (
        "import sys, store; store.open_store(sys.argv[1]).close(); "
        "print('sqlite_utils' in sys.modules, 'kitchen' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout.split() == [b"False", b"False"]


def test_the_file_is_stamped_and_any_tool_can_read_it(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [NewEvent("Took", "a/b", (2, 17), 1, '{"x": 5}')], at=9)
        uuid = store.uuid
    db = raw(file)
    assert db.execute("PRAGMA application_id").fetchone() == (0x45765374,)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("SELECT value FROM meta WHERE key = 'uuid'").fetchone() == (uuid,)
    row = db.execute("SELECT *, payload ->> 'x' FROM event_log WHERE run = 'r'").fetchone()
    assert row == ("r", 1, 9, "Took", "a/b", "2.17", 1, '{"x": 5}', 5)
    applied = db.execute("SELECT name FROM _sqlite_migrations ORDER BY id").fetchall()
    assert applied == [("0001_tables",), ("0002_forks",)]
    db.close()


def test_what_is_recorded_cannot_be_changed(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [STARTED, STARTED])
    db = raw(file)
    for statement in (
        "UPDATE events SET payload = '[]'",
        "DELETE FROM events",
        "UPDATE types SET name = 'x'",
        "DELETE FROM paths",
        "UPDATE runs SET run = 'x'",
        "DELETE FROM runs",
        "DELETE FROM meta",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT"):
        db.execute("INSERT INTO events VALUES (1, 'soon', 1, 1, '', 0, '{}', x'00')")
    db.close()


def test_an_empty_file_becomes_a_store(file: Path) -> None:
    file.touch()
    with open_store(file, create=False) as store:
        assert store.runs() == []


def test_a_missing_file_is_not_created_unasked(file: Path) -> None:
    for how in ({"create": False}, {"read_only": True}):
        with pytest.raises(StoreMissing, match=r"events\.db"):
            open_store(file, **how)  # pyright: ignore[reportArgumentType]
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_foreign_database_is_refused_and_left_alone(file: Path, read_only: bool) -> None:
    db = raw(file)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = file.read_bytes()
    with pytest.raises(NotAStore, match="another program"):
        open_store(file, read_only=read_only)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("content", [b"hello", b"hello " * 3000])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_database_is_refused(file: Path, content: bytes, read_only: bool) -> None:
    file.write_bytes(content)
    with pytest.raises(NotAStore, match="no SQLite database"):
        open_store(file, read_only=read_only)
    assert file.read_bytes() == content


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_format_is_refused(file: Path, read_only: bool) -> None:
    open_store(file).close()
    db = raw(file)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreTooNew, match=r"format 99.*up to format 2"):
        open_store(file, read_only=read_only)


def test_a_path_through_a_file_or_to_a_folder_is_unwritable(file: Path) -> None:
    file.write_text("no folder")
    with pytest.raises(StoreUnwritable, match="is no folder"):
        open_store(file / "events.db")
    with pytest.raises(StoreUnwritable, match="does not exist"):
        open_store(file.parent / "none" / "events.db")
    with pytest.raises(StoreUnwritable, match="it is a folder"):
        open_store(file.parent)


# everything is imported and warmed before the rights go, as the interpreter may lie in /root
UNPRIVILEGED = """
import os, sys, store
file, folder = sys.argv[1:]
warm = store.open_store(folder + "/warm.db"); warm.close()
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
def attempt(**how):
    try:
        with store.open_store(file, **how) as opened:
            return opened.head("r")
    except store.StoreError as error:
        return f"{type(error).__name__} {isinstance(error, OSError)}"
print(attempt(), attempt(read_only=True), sep="\\n")
file = folder + "/locked/new.db"
print(attempt())
"""


def test_without_the_right_to_write_one_may_still_read(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    file = folder / "events.db"
    with open_store(file) as store:
        store.create_run("r", "n", [STARTED])
    file.chmod(0o444)
    folder.chmod(0o555)
    above = [tmp_path, *tmp_path.parents]
    rights = {place: place.stat().st_mode for place in above}
    try:
        if os.geteuid() == 0:
            for place in above:
                place.chmod(rights[place] | 0o011)
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, str(file), str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        folder.chmod(0o755)
        for place in above if os.geteuid() == 0 else []:
            place.chmod(rights[place])
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["StoreUnwritable True", "1", "StoreUnwritable True"]


def test_a_full_disk_is_told_and_leaves_the_log_whole(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [STARTED])
        pages = store._gate.raw.execute("PRAGMA page_count").fetchone()[0]
        store._gate.raw.execute(f"PRAGMA max_page_count = {pages}")
        large = NewEvent("Large", payload='{"x": "' + "x" * 100_000 + '"}')
        for batch in ([STARTED, large], [large] * 100):
            with pytest.raises(StoreUnwritable, match="the disk is full"):
                store.append("r", 1, batch)
        store._gate.raw.execute("PRAGMA max_page_count = 1000000")
        assert store.head("r") == 1
        assert store.append("r", 1, [STARTED, large]) == 3
        assert store.verify() == []


def test_a_writer_that_does_not_let_go_is_reported(file: Path) -> None:
    with open_store(file, busy_timeout=0.01) as store:
        store.create_run("r", "n", [STARTED])
        hog = raw(file)
        hog.execute("BEGIN IMMEDIATE")
        for use in (
            lambda: store.append("r", 1, [STARTED]),
            lambda: store.append("r", 1, [STARTED] * 100),
            lambda: store.create_run("q", "n", [STARTED]),
            lambda: store.lease("r"),
        ):
            with pytest.raises(StoreBusy, match="another writer"):
                use()
        hog.execute("COMMIT")
        hog.close()
        assert store.append("r", 1, [STARTED]) == 2
        store.lease("r").release()
        assert issubclass(StoreBusy, TimeoutError)


def test_a_cut_off_file_is_damaged_and_not_foreign(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [NewEvent("T", payload=f'"{"x" * 900}"')] * 200)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for read_only in (False, True):
        with pytest.raises(CorruptLog, match="damaged"):
            open_store(file, read_only=read_only)


def test_a_destroyed_page_is_damage_and_verify_does_not_raise(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [NewEvent("T", payload=f'"{"x" * 900}"')] * 2000)
    whole = bytearray(file.read_bytes())
    middle = len(whole) // 2 // 4096 * 4096
    whole[middle : middle + 4096] = bytes(4096)
    file.write_bytes(whole)
    with open_store(file) as store:
        with pytest.raises(CorruptLog, match="malformed"):
            list(store.read("r"))
        findings = store.verify()
    assert {finding.kind for finding in findings} >= {"integrity"}
    assert any(finding.run == "r" and finding.seq for finding in findings), findings


def test_read_only_changes_nothing(file: Path) -> None:
    file.touch()
    with pytest.raises(StoreError, match="empty or of an older format"):
        open_store(file, read_only=True)
    assert file.stat().st_size == 0
    with open_store(file) as store:
        store.create_run("r", "n", [STARTED])
    with open_store(file, read_only=True) as store:
        assert [record.type for record in store.read("r")] == ["RunStarted"]
        assert store.verify() == []
        for use in (
            lambda: store.append("r", 1, [STARTED]),
            lambda: store.create_run("q", "n", []),
            lambda: store.save_snapshot("r", 1, "k", b""),
            lambda: store.prune_snapshots("r"),
            lambda: store.lease("r"),
        ):
            with pytest.raises(StoreUnwritable, match="read_only"):
                use()
    assert not file.with_name("events.db.lock").exists()


def test_an_unknown_durability_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="'process' or 'power'"):
        open_store(file, durability="hope")  # pyright: ignore[reportArgumentType]
    assert not file.exists()


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_durability_is_what_was_asked(file: Path, durability: str, level: int) -> None:
    with open_store(file, durability=durability) as store:  # pyright: ignore[reportArgumentType]
        assert store._gate.raw.execute("PRAGMA synchronous").fetchone() == (level,)


@pytest.mark.parametrize("read_only", [False, True])
def test_durability_changes_on_the_open_connection(file: Path, read_only: bool) -> None:
    open_store(file).close()
    with open_store(file, durability="power", read_only=read_only) as store:
        assert store.durability == "power"
        store.use("process")
        assert store._gate.raw.execute("PRAGMA synchronous").fetchone() == (1,)
        assert store.durability == "process"
        store.use("power")
        assert store._gate.raw.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store.durability == "power"


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/fast tmpfs rw 0 0
me@host:/x /mnt/a\\040b fuse.sshfs rw 0 0
//server/share /over cifs rw 0 0
/dev/vdb /over xfs rw 0 0
"""


def test_network_file_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "/data/x.db": "ext4",
        "/homes/x.db": "ext4",
        "/home/me/x.db": "nfs4",
        "/home/me/fast/x.db": "tmpfs",
        "/mnt/a b/x.db": "fuse.sshfs",
        "/over/x.db": "xfs",
    }
    for place, kind in kinds.items():
        assert filesystem_of(Path(place), MOUNTS) == kind
    for place in ("/home/me/x.db", "/mnt/a b/x.db"):
        with pytest.raises(UnfitFilesystem, match="KITCHEN_ALLOW_NETWORK_FS=1"):
            refuse_network(Path(place), MOUNTS)
    refuse_network(Path("/data/x.db"), MOUNTS)
    monkeypatch.setenv("KITCHEN_ALLOW_NETWORK_FS", "1")
    refuse_network(Path("/home/me/x.db"), MOUNTS)


# --- reading leaves nothing -----------------------------------------------------------------------


def read_it(file: Path) -> list[str]:
    with open_store(file, create=False, read_only=True) as store:
        types = [record.type for record in store.read("r")]
        assert store.verify() == []
        with pytest.raises(StoreUnwritable):
            store.append("r", len(types), [STARTED])
        return types


def test_reading_a_closed_store_leaves_nothing_behind(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "w", [STARTED])
    before = file.read_bytes(), sorted(file.parent.iterdir())
    assert read_it(file) == ["RunStarted"]
    assert (file.read_bytes(), sorted(file.parent.iterdir())) == before


def test_reading_beside_a_writer_sees_what_it_appends(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "w", [STARTED])
        with open_store(file, create=False, read_only=True) as reader:
            store.append("r", 1, [STARTED])
            assert reader.head("r") == 2
        store.append("r", 2, [STARTED])
    with open_store(file, create=False, read_only=True) as reader, open_store(file) as store:
        store.append("r", 3, [STARTED])
        assert reader.head("r") == 4
    assert read_it(file) == ["RunStarted"] * 4


def test_what_a_crash_has_left_is_read_and_left(file: Path) -> None:
    script = (
        "import os, sys; from store import NewEvent, open_store; s = open_store(sys.argv[1]); "
        "s.create_run('r', 'w', [NewEvent('RunStarted')]); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, file], cwd=ROOT, check=False)
    wal = file.with_name(file.name + "-wal")
    before = wal.read_bytes(), file.read_bytes()
    assert before[0]
    assert read_it(file) == ["RunStarted"]
    assert (wal.read_bytes(), file.read_bytes()) == before

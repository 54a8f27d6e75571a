"""Several processes and one store: races, leases, kills and forks."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from store import HeadMoved, NewEvent, RunLocked, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]  # what the fixture `child` gives

EVENT = NewEvent("T")
OLD = Path(__file__).with_name("v1.sqlite")

APPEND_ON_DEMAND = """
import sys, store
with store.open_store(sys.argv[1]) as opened:
    head = opened.append("r", opened.head("r"), [store.NewEvent("Theirs")])
    print(head, flush=True)
    for line in sys.stdin:
        try:
            head = opened.append("r", head, [store.NewEvent("Theirs")])
            print(head, flush=True)
        except store.HeadMoved as error:
            print("HeadMoved", error.expected, error.found, flush=True)
"""


def test_the_one_who_was_overtaken_is_told(file: Path, child: Start) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [EVENT])
        other = child(APPEND_ON_DEMAND, file)
        assert other.line() == "2"
        with pytest.raises(HeadMoved):
            store.append("r", 1, [EVENT])
        assert store.append("r", 2, [NewEvent("Ours")]) == 3
        other.say("go")
        assert other.line() == "HeadMoved 2 3"
        assert other.finish() == ""
        # the new type of another process is spelled here too
        assert [record.type for record in store.read("r")] == ["T", "Theirs", "Ours"]
        assert store.verify() == []


RACE = """
import sys, store
name, count = sys.argv[2], int(sys.argv[3])
with store.open_store(sys.argv[1]) as opened:
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while done < count:
        batch = [store.NewEvent("T" + name, name, (done, part)) for part in range(3)]
        try:
            opened.append("r", opened.head("r"), batch)
            done += 1
        except store.HeadMoved:
            pass
"""


def test_racing_appends_lose_nothing_and_never_interleave(file: Path, child: Start) -> None:
    open_store(file).close()
    with open_store(file) as store:
        store.create_run("r", "n", [])
        racers = [child(RACE, file, name, 150) for name in "ab"]
        for racer in racers:
            assert racer.line() == "ready"
        for racer in racers:
            racer.say("go")
        for racer in racers:
            racer.finish()
        records = list(store.read("r"))
        assert len(records) == 2 * 150 * 3
        for first in range(0, len(records), 3):
            batch = records[first : first + 3]
            assert len({(record.path, record.visit[0]) for record in batch}) == 1
            assert [record.visit[1] for record in batch] == [0, 1, 2]
        assert Counter(record.type for record in records) == {"Ta": 450, "Tb": 450}
        assert store.verify() == []


WRITE = """
import sys, store
with store.open_store(sys.argv[1]) as opened:
    head = opened.head("r")
    for n in range(int(sys.argv[2])):
        batch = [store.NewEvent(f"T{n % 50}", f"p{n}", (n,)) for _ in range(5)]
        head = opened.append("r", head, batch)
        print(head, flush=True)
"""


def test_reading_while_another_process_writes(file: Path, child: Start) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [])
    writer = child(WRITE, file, 400)
    looks = 0
    with open_store(file, read_only=True) as store:
        while writer.process.poll() is None:
            said = int(writer.line() or 2000)
            seqs = [record.seq for record in store.read("r")]
            assert seqs == list(range(1, len(seqs) + 1))
            assert said <= len(seqs) <= store.head("r")
            assert len(seqs) % 5 == 0
            looks += 1
        assert store.head("r") == 2000
        assert store.verify() == []
    assert looks > 1


def test_what_was_acknowledged_survives_a_kill(file: Path, child: Start) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [])
    said = 0
    for _ in range(4):
        writer = child(WRITE, file, 10**9)
        for _ in range(37):
            said = int(writer.line())
        writer.kill()
        with open_store(file) as store:
            head = store.head("r")
            assert head >= said
            assert head % 5 == 0
            assert store.verify() == []
            assert store.append("r", head, [EVENT] * 5) == head + 5


HOLD = """
import sys, store
with store.open_store(sys.argv[1]) as opened, opened.lease("r", note="child"):
    print("held", flush=True)
    sys.stdin.readline()
print("gone", flush=True)
sys.stdin.readline()
"""


def test_a_lease_is_refused_to_another_process_and_names_the_owner(
    file: Path, child: Start
) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [EVENT])
        other = child(HOLD, file)
        assert other.line() == "held"
        with pytest.raises(RunLocked, match=f"process {other.pid} on .* UTC.*child") as caught:
            store.lease("r")
        owner = caught.value.owner
        assert owner is not None
        assert (owner.pid, owner.note) == (other.pid, "child")
        assert store.run("r").owner == owner
        with open_store(file, read_only=True) as reader:
            assert [info.owner for info in reader.runs()] == [owner]
        store.lease("another run").release()
        other.say("release")
        assert other.line() == "gone"
        assert store.run("r").owner is None
        with store.lease("r"):
            assert store.run("r").owner is not None


def test_a_killed_owner_leaves_the_run_free(file: Path, child: Start) -> None:
    with open_store(file) as store:
        other = child(HOLD, file)
        assert other.line() == "held"
        other.kill()
        assert store._tenancy.owners() == {}
        with store.lease("r", note="after") as lease:
            assert lease.owner.pid == os.getpid()


FORK = """
import os, sys, store
opened = store.open_store(sys.argv[1])
opened.create_run("r", "n", [])
lease = opened.lease("r")
if os.fork() == 0:
    told = [lease.held]
    for use in (lambda: opened.append("r", 0, []), lambda: opened.head("r")):
        try:
            use()
        except store.StoreClosed as error:
            told.append("forked child" in str(error))
    lease.release()
    opened.close()
    anew = store.open_store(sys.argv[1])
    try:
        anew.lease("r")
    except store.RunLocked as error:
        told.append(error.owner.pid == os.getppid())
    print(*told, flush=True)
    sys.stdin.readline()
    with anew.lease("r"):
        print("leased in the child", flush=True)
        sys.stdin.readline()
    os._exit(0)
os.wait()
"""


def test_a_forked_child_holds_nothing_and_can_take_it_when_the_parent_is_dead(
    file: Path, child: Start
) -> None:
    with open_store(file) as store:
        parent = child(FORK, file)
        assert parent.line() == "False True True True"
        with pytest.raises(RunLocked) as caught:
            store.lease("r")
        assert caught.value.owner is not None
        assert caught.value.owner.pid == parent.pid
        parent.kill()
        # the child lives on: it still waits on the pipe
        with store.lease("r"):
            assert store.append("r", 0, [EVENT]) == 1
        parent.say("go")
        assert parent.line() == "leased in the child"
        with pytest.raises(RunLocked):
            store.lease("r")


def test_two_openings_in_one_process_exclude_each_other(file: Path) -> None:
    with open_store(file) as one, open_store(file) as two:
        lease = one.lease("r", note="first")
        with pytest.raises(RunLocked, match="first"):
            two.lease("r")
        one.create_run("r", "n", [EVENT])
        assert two.run("r").owner == lease.owner
        lease.release()
        with two.lease("r"), pytest.raises(RunLocked):
            one.lease("r")


def test_closing_another_opening_keeps_the_lease(file: Path, child: Start) -> None:
    with open_store(file) as store, store.lease("r"):
        open_store(file).close()
        with open_store(file) as other, pytest.raises(RunLocked):
            other.lease("r")
        said = child(TRY, file).finish()
    assert said == f"RunLocked {os.getpid()}"
    assert child(TRY, file).finish() == "free"


TRY = """
import sys, store
with store.open_store(sys.argv[1]) as opened:
    try:
        opened.lease("r").release()
        print("free")
    except store.RunLocked as error:
        print("RunLocked", error.owner.pid)
"""


def test_a_copied_store_has_leases_of_its_own(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "n", [EVENT])
    copy = file.with_name("copy.db")
    copy.write_bytes(file.read_bytes())
    with open_store(file) as store, open_store(copy) as other:
        assert store.uuid == other.uuid
        with store.lease("r"), other.lease("r"):
            pass


def test_a_link_to_a_store_is_the_same_store(file: Path) -> None:
    link = file.with_name("link.db")
    open_store(file).close()
    link.symlink_to(file)
    with open_store(file) as store, open_store(link) as other, store.lease("r"):
        assert other.path == store.path
        with pytest.raises(RunLocked):
            other.lease("r")


def test_a_deleted_lock_file_is_made_anew(file: Path) -> None:
    with open_store(file) as store:
        store.lease("r").release()
        file.with_name("events.db.lock").unlink()
        with store.lease("r"):
            assert file.with_name("events.db.lock").exists()


# one warm process forks one victim per statement: SIGKILL just before the statement runs
KILL_AT_EVERY_STATEMENT = """
import os, shutil, signal, sqlite3, sys, store, sqlite_utils
folder, kind, n = sys.argv[1], sys.argv[2], 0
connect = sqlite3.connect
while True:
    n += 1
    file = f"{folder}/{n}.db"
    if kind == "format 1":
        shutil.copy(sys.argv[3], file)
    if kind == "old":  # a file whose format's number is that of an older one
        store.open_store(file).close()
        db = connect(file)
        db.execute("PRAGMA user_version = 0")
        db.close()
    pid = os.fork()
    if pid == 0:
        left = n
        def trace(sql):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        def traced(*args, **kwargs):
            db = connect(*args, **kwargs)
            db.set_trace_callback(trace)
            return db
        sqlite3.connect = traced
        store.open_store(file)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.path.exists(file):
        with store.open_store(file, create=False) as opened:
            heads = {info.run: info.head for info in opened.runs()}
            assert heads == ({"first": 14, "second": 1} if kind == "format 1" else {}), heads
            assert opened.create_run("r", "n", [store.NewEvent("T")]) == 1
            assert opened.verify() == []
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
print(n)
"""


@pytest.mark.parametrize(("kind", "least"), [("new", 35), ("old", 6), ("format 1", 20)])
def test_a_kill_at_any_statement_of_a_migration_leaves_a_usable_file(
    tmp_path: Path, child: Start, kind: str, least: int
) -> None:
    statements = int(child(KILL_AT_EVERY_STATEMENT, tmp_path, kind, OLD).finish())
    assert statements > least
    assert len(list(tmp_path.glob("*.db"))) == statements


CREATE_AT_ONCE = """
import os, shutil, sys, store, sqlite_utils
folder, old = sys.argv[1], sys.argv[2:]
for n in range(6):
    file = f"{folder}/{n}.db"
    if old:
        shutil.copy(old[0], file)
    gate, opener = os.pipe()
    pids = []
    for who in range(6):
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.read(gate, 1)  # returns when the parent closes its end
            with store.open_store(file) as opened:
                opened.create_run(f"run {who}", "n", [store.NewEvent("T")])
                os.write(1, f"{opened.uuid} ".encode())  # one write: others write too
            os._exit(0)
        pids.append(pid)
    os.close(gate)
    os.close(opener)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
    with store.open_store(file) as opened:
        assert len(opened.runs()) == (8 if old else 6)
        assert opened.verify() == []
"""


def test_processes_that_create_one_store_at_once_all_succeed(tmp_path: Path, child: Start) -> None:
    uuids = Counter(child(CREATE_AT_ONCE, tmp_path).finish().split())
    assert sorted(uuids.values()) == [6] * 6


def test_processes_that_migrate_one_store_at_once_all_succeed(tmp_path: Path, child: Start) -> None:
    uuids = Counter(child(CREATE_AT_ONCE, tmp_path, OLD).finish().split())
    assert list(uuids.values()) == [6 * 6]


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_who_was_overtaken_is_told_so_whatever_it_appends(tmp_path: Path, count: int) -> None:
    event = NewEvent("A")
    with open_store(tmp_path / "k.db") as one, open_store(tmp_path / "k.db") as other:
        one.create_run("r", "w", [event])
        other.append("r", 1, [event])
        with pytest.raises(HeadMoved):
            one.append("r", 1, [event] * count)
        assert one.head("r") == 2


def test_a_blob_that_is_put_while_it_is_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts it just before the file would go: between the look at its age and the deed."""
    data = b"x" * 100_000
    with open_store(tmp_path / "k.db") as one, open_store(tmp_path / "k.db") as other:
        digest = one.blobs.put(data)
        path = one.blobs.path(digest)
        os.utime(path, (1, 1))
        for verb in ("rename", "unlink"):
            real: Any = getattr(Path, verb)

            def meddle(self: Path, *given: Any, real: Any = real, **named: Any) -> Any:
                monkeypatch.undo()
                other.blobs.put(data)
                return real(self, *given, **named)

            os.utime(path, (1, 1))
            monkeypatch.setattr(Path, verb, meddle)
            one.blobs.remove(digest, older_than=3600)
            assert other.blobs.get(digest) == data

"""A run as one file: written and read whole or not at all, and nothing in it is believed."""

from __future__ import annotations

import json
import os
import signal
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import (
    ArgumentError,
    BlobLost,
    CorruptStore,
    ForeignStore,
    HistoryError,
    KitchenError,
    RunExists,
    StoreError,
    UnknownRun,
)
from kitchen.log.archive import export, import_run
from store import MemoryStore, NewEvent
from tests.crash import faults
from tests.runner.running import python

TAIL = '"é∂\\u0000 text"'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with opened(tmp_path / "k.db") as events:
        yield events


@pytest.fixture(params=["sqlite", "memory"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with opened(tmp_path / "other.db" if request.param == "sqlite" else MemoryStore()) as events:
        yield events


def fill(store: Any, run: str = "r") -> list[str]:
    """A run with blobs, one of which is named by another; their digests."""
    put = store.blobs.put
    inner = put(b"\x00inner" * 1000)
    outer = put(json.dumps({"blob": inner, "size": 6000}).encode())
    payload = json.dumps({"blob": outer, "size": 9, "refs": [{"blob": inner}]})
    store.create_run(run, "training", [NewEvent("RunStarted", payload=TAIL)], at=5)
    store.append(run, 1, [NewEvent("T", "p/q", (3, 4), 2, payload), NewEvent("é", "p")], at=9)
    return sorted([inner, outer])


def records(store: Any, run: str = "r") -> list[Any]:
    return [record[1:8] for record in store.read(run)]


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "partial" in path.name]


# --- there and back -------------------------------------------------------------------------------


def test_there_and_back(store: Any, other: Any, tmp_path: Path) -> None:
    blobs = fill(store)
    target = tmp_path / "r.kitchen"
    done = export(store, "r", target)
    assert done == (target, "r", 3, 2, target.stat().st_size)
    assert import_run(other, target) == "r"
    assert list(other.read("r")) == list(store.read("r"))
    assert other.run("r") == store.run("r")
    assert list(other.blobs.digests()) == blobs == sorted(other.named_blobs("r"))
    assert other.verify() == []
    assert other.append("r", 3, [NewEvent("T")]) == 4
    assert leftovers(tmp_path) == []


def test_the_file_is_one_that_every_tool_reads(store: Any, tmp_path: Path) -> None:
    blobs = fill(store)
    target = tmp_path / "r.kitchen"
    export(store, "r", target)
    with zipfile.ZipFile(target) as file:
        assert file.testzip() is None
        assert set(file.namelist()) == {"run.json", "events.jsonl", *(f"blobs/{b}" for b in blobs)}
        lines = [json.loads(line) for line in file.read("events.jsonl").splitlines()]
        assert lines[0] == {
            "at": 5, "type": "RunStarted", "path": "", "visit": [], "attempt": 0, "payload": TAIL,
        }  # fmt: skip
        told = json.loads(file.read("run.json"))
    assert (told["format"], told["run"], told["workflow"], told["head"]) == (1, "r", "training", 3)


def test_a_run_always_gives_the_same_bytes(store: Any, other: Any, tmp_path: Path) -> None:
    fill(store)
    first, second = tmp_path / "1", tmp_path / "2"
    export(store, "r", first)
    import_run(other, first)
    export(other, "r", second)
    assert first.read_bytes() == second.read_bytes()


def test_under_another_id(store: Any, other: Any, tmp_path: Path) -> None:
    fill(store)
    export(store, "r", tmp_path / "r")
    with pytest.raises(RunExists, match="import it under another id"):
        import_run(store, tmp_path / "r")
    assert import_run(store, tmp_path / "r", run="copy") == "copy"
    assert import_run(other, tmp_path / "r", run="copy") == "copy"
    for each in (store, other):
        assert records(each, "copy") == records(store)
        assert each.verify() == []
    with pytest.raises(ArgumentError):
        import_run(other, tmp_path / "r", run="")


def test_a_fork_becomes_a_run_of_its_own(store: Any, other: Any, tmp_path: Path) -> None:
    fill(store)
    store.fork_run("f", "training", "r", 2, [NewEvent("RunForked", payload='{"x":1}')])
    store.fork_run("g", "training", "f", 3, [NewEvent("RunForked"), NewEvent("T")])
    export(store, "g", tmp_path / "g")
    assert import_run(other, tmp_path / "g") == "g"
    assert records(other, "g") == records(store, "g")
    assert (other.run("g").parent, other.run("g").head) == (None, 5)
    assert other.verify() == []
    assert set(other.named_blobs("g")) == set(store.named_blobs("r"))


def test_a_store_that_is_only_read(store: Any, tmp_path: Path) -> None:
    fill(store)
    with opened(tmp_path / "k.db", read_only=True) as events:
        assert export(events, "r", tmp_path / "r").events == 3
        with pytest.raises(StoreError, match="read_only"):
            import_run(events, tmp_path / "r", run="copy")
    assert [info.run for info in store.runs()] == ["r"]


def test_a_held_run_is_written_up_to_its_head(
    store: Any, other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    later = store.blobs.put(b"later")
    looked = store.check

    def looking(*args: Any, **kwargs: Any) -> Any:
        named = json.dumps({"blob": later, "size": 5})
        store.append("r", 3, [NewEvent("Later", payload=named)])
        return looked(*args, **kwargs)

    monkeypatch.setattr(store, "check", looking)
    with store.lease("r"):
        assert export(store, "r", tmp_path / "r").events == 3
    import_run(other, tmp_path / "r")
    assert records(other) == records(store)[:3]
    assert other.verify() == []


def test_a_crashed_run_goes_on_elsewhere_bit_for_bit(tmp_path: Path) -> None:
    whole, here, there = tmp_path / "whole.db", tmp_path / "here.db", tmp_path / "there" / "k.db"
    there.parent.mkdir()
    kitchen.run(faults.trained, store=whole, run_id="r", seed=1)
    faults.killed(here, 15)
    with opened(here) as store:
        assert export(store, "r", tmp_path / "r").blobs > 2
    with opened(there) as store:
        import_run(store, tmp_path / "r")
    assert faults.told(there, "r") == faults.told(here, "r")
    here.unlink()
    assert kitchen.resume("r", faults.trained, store=there).status == "completed"
    assert faults.essence(there) == faults.essence(whole)
    assert faults.findings(there) == []


# --- writing --------------------------------------------------------------------------------------


def test_what_is_there_is_not_replaced_unless_asked(store: Any, tmp_path: Path) -> None:
    fill(store)
    target = tmp_path / "r"
    target.write_text("precious")
    with pytest.raises(ArgumentError, match="exists already"):
        export(store, "r", target)
    assert target.read_text() == "precious"
    export(store, "r", target, replace=True)
    assert zipfile.is_zipfile(target)
    with pytest.raises(ArgumentError, match="is a folder"):
        export(store, "r", tmp_path, replace=True)


def test_what_cannot_be_exported(store: Any, tmp_path: Path) -> None:
    target = tmp_path / "r"
    with pytest.raises(UnknownRun):
        export(store, "r", target)
    digests = fill(store)
    store.create_run("empty", "w", [])
    with pytest.raises(HistoryError, match="empty"):
        export(store, "empty", target)
    with pytest.raises(StoreError, match=r"cannot write .*missing"):
        export(store, "r", tmp_path / "missing" / "r")
    place = store.blobs.path(digests[0])
    place.write_bytes(b"other")
    with pytest.raises(BlobLost, match=digests[0]):
        export(store, "r", target)
    place.unlink()
    with pytest.raises(BlobLost, match=digests[0]):
        export(store, "r", target)
    assert not target.exists()
    assert leftovers(tmp_path) == []


def test_a_damaged_run_is_not_exported(store: Any, tmp_path: Path) -> None:
    fill(store)
    store._gate.raw.execute("DROP TRIGGER events_refuse_update")
    store._gate.raw.execute("UPDATE events SET payload = '{}' WHERE payload LIKE '%blob%'")
    with pytest.raises(CorruptStore, match="'r'"):
        export(store, "r", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_full_disk(store: Any, tmp_path: Path) -> None:
    fill(store)
    noise = [os.urandom(30_000).hex() for _ in range(40)]
    store.append("r", 3, [NewEvent("Noise", payload=json.dumps(line)) for line in noise])
    large = store.blobs.put(os.urandom(3_000_000))
    store.create_run("b", "w", [NewEvent("T", payload=json.dumps({"blob": large, "size": 1}))])
    with faults.small_disk(tmp_path / "disk", 1) as disk:
        for run in ("r", "b"):
            with pytest.raises(StoreError, match="No space left") as caught:
                export(store, run, disk / "target")
            assert "free some space" in str(caught.value)
            assert str(disk / "target") in str(caught.value)
            assert list(disk.iterdir()) == []
        (disk / "target").write_text("precious")
        with pytest.raises(StoreError, match="No space left"):
            export(store, "r", disk / "target", replace=True)
        assert (disk / "target").read_text() == "precious"


def test_a_disk_that_fills_up_at_import(store: Any, tmp_path: Path) -> None:
    large = [store.blobs.put(os.urandom(500_000)) for _ in range(4)]
    refs = json.dumps([{"blob": digest, "size": 500_000} for digest in large])
    store.create_run("r", "w", [NewEvent("T", payload=refs)])
    export(store, "r", tmp_path / "r")
    with faults.small_disk(tmp_path / "disk", 1) as disk:
        with opened(disk / "k.db") as small:
            with pytest.raises(StoreError, match="No space left") as caught:
                import_run(small, tmp_path / "r")
            assert "nothing was imported" in str(caught.value)
            assert small.runs() == []


def test_what_a_killed_export_left_goes_after_a_day(store: Any, tmp_path: Path) -> None:
    fill(store)
    old, young = tmp_path / ".r.1-a.partial", tmp_path / ".r.2-b.partial"
    foreign = tmp_path / ".q.1-a.partial"
    for path in (old, young, foreign):
        path.write_text("")
    for path in (old, foreign):
        os.utime(path, (1, 1))
    export(store, "r", tmp_path / "r")
    assert sorted(leftovers(tmp_path)) == [foreign, young]


# --- files that are not what they seem ------------------------------------------------------------

Members = dict[str, bytes]


@pytest.fixture
def members(store: Any, tmp_path: Path) -> Members:
    """What is in an export."""
    fill(store)
    export(store, "r", tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "good") as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(path: Path, members: Members, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def retold(members: Members, **changes: Any) -> Members:
    """Another `run.json`, which tells of the other members what is so."""
    events = members["events.jsonl"]
    blobs = [data for name, data in members.items() if name.startswith("blobs/")]
    told = json.loads(members["run.json"]) | {
        "head": len(events.splitlines()),
        "events_size": len(events),
        "events_sha256": sha256(events).hexdigest(),
        "blobs": len(blobs),
        "blobs_size": sum(map(len, blobs)),
        **changes,
    }
    return members | {"run.json": json.dumps(told).encode()}


def refused(store: Any, path: Path, kind: type[KitchenError], match: str | None = None) -> str:
    """What is said; no run is left behind."""
    with pytest.raises(KitchenError, match=match) as caught:
        import_run(store, path)
    assert type(caught.value) is kind, str(caught.value)
    assert store.runs() == []
    assert str(path) in str(caught.value)
    assert caught.value.hint or "cannot read" in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_exports(other: Any, members: Members, tmp_path: Path) -> None:
    path = tmp_path / "f"
    refused(other, path, StoreError, "No such file")
    refused(other, tmp_path, StoreError, "no plain file")
    os.mkfifo(tmp_path / "pipe")
    refused(other, tmp_path / "pipe", StoreError, "no plain file")
    for data in (b"", b"PK", b"hello" * 100, b"SQLite format 3\0" * 100):
        path.write_bytes(data)
        refused(other, path, ForeignStore, "no zip")
    refused(other, packed(path, {}), ForeignStore, "run.json is not there")
    refused(other, packed(path, {"readme.txt": b"hi"}), ForeignStore, "run.json is not there")
    for text in (b"", b"[]", b"{}", b'{"format":"one"}', b'{"format":1}', b"[" * 50_000, b"\xff"):
        refused(other, packed(path, members | {"run.json": text}), ForeignStore, "run.json")
    refused(other, packed(path, members | {"run.json": b" " * 200_000}), ForeignStore)
    for name in ("../evil", "/etc/evil", "blobs/../../evil", "blobs/" + "AB" * 32, "x" * 5000):
        refused(other, packed(path, members | {name: b""}), ForeignStore, "it holds")
    del members["events.jsonl"]
    refused(other, packed(path, members), CorruptStore, "not there")


def test_a_newer_format_is_told_whatever_else_it_holds(
    other: Any, members: Members, tmp_path: Path
) -> None:
    members["run.json"] = b'{"format": 2}'
    path = packed(tmp_path / "f", members | {"signature": b""})
    assert "upgrade" in refused(other, path, ForeignStore, "format 2")


def test_a_file_cut_off_anywhere(other: Any, members: Members, tmp_path: Path) -> None:
    data = (tmp_path / "good").read_bytes()
    path = tmp_path / "cut"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        refused(other, path, ForeignStore)
    path.write_bytes(data[500:])
    with pytest.raises(StoreError):
        import_run(other, path)
    assert other.runs() == []


def test_any_byte_changed(members: Members, tmp_path: Path) -> None:
    """It is refused, or it was a byte without a meaning and all is the same."""
    good = (tmp_path / "good").read_bytes()
    with opened(MemoryStore()) as store:
        import_run(store, tmp_path / "good")
        whole = list(store.read("r")), store.run("r"), list(store.blobs.digests())
    path, refusals = tmp_path / "bad", 0
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x15]) + good[place + 1 :])
        with opened(MemoryStore()) as store:
            try:
                import_run(store, path)
            except StoreError:
                refusals += 1
                assert store.runs() == []
            else:
                found = list(store.read("r")), store.run("r"), list(store.blobs.digests())
                assert found == whole
    assert refusals > len(good) / 7 * 0.8


def changed_events(members: Members, change: Callable[[list[Any]], None]) -> Members:
    lines = [json.loads(line) for line in members["events.jsonl"].splitlines()]
    change(lines)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return members | {"events.jsonl": text.encode()}


def test_other_events_than_told(other: Any, members: Members, tmp_path: Path) -> None:
    path = tmp_path / "f"
    for change in (
        lambda lines: lines.pop(),
        lambda lines: lines.append(lines[-1]),
        lambda lines: lines[2].update(at=8),
        lambda lines: lines.reverse(),
    ):
        refused(other, packed(path, changed_events(members, change)), CorruptStore, "events")
    for told in ({"head": 2}, {"head": 4}, {"events_size": 10}, {"events_size": 10**12}):
        refused(other, packed(path, retold(members, **told)), CorruptStore, "event")


def test_a_time_that_was_changed(other: Any, members: Members, tmp_path: Path) -> None:
    """It is in no chain; the hash over the lines has it."""
    text = members["events.jsonl"].replace(b'"at":9', b'"at":8')
    path = packed(tmp_path / "f", members | {"events.jsonl": text})
    refused(other, path, CorruptStore, "are not the 3")


def test_a_member_larger_than_its_file(other: Any, members: Members, tmp_path: Path) -> None:
    path = packed(tmp_path / "f", retold(members, blobs_size=2**40))
    data = bytearray(path.read_bytes())
    name = next(name for name in members if name.startswith("blobs/"))
    struct.pack_into("<2L", data, data.rindex(name.encode()) - 46 + 20, 2**32 - 16, 2**32 - 16)
    path.write_bytes(data)
    told = peak_of(lambda: refused(other, path, CorruptStore, "is larger than the file"))
    assert told < 1_000_000


def test_forged_events_do_not_fit_the_chain(other: Any, members: Members, tmp_path: Path) -> None:
    forged = retold(changed_events(members, lambda lines: lines[2].update(payload="[1]")))
    refused(other, packed(tmp_path / "f", forged), CorruptStore, "chain")
    assert import_run(other, tmp_path / "f", run="copy") == "copy"
    refused_chain = retold(members, chain="00" * 16)
    with pytest.raises(CorruptStore, match="chain"):
        import_run(other, packed(tmp_path / "f", refused_chain))
    assert [info.run for info in other.runs()] == ["copy"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload": "{"}, {"payload": "NaN"}, {"payload": "[" * 100_000}, {"payload": {}},
        {"payload": ""}, {"payload": "1 2"}, {"type": ""}, {"type": None}, {"type": "T" * 20_000},
        {"visit": [-1]}, {"visit": ["1"]}, {"visit": [2**63]}, {"visit": 3}, {"attempt": -1},
        {"attempt": 1.5}, {"at": 2**63}, {"at": "now"}, {"path": 1}, {"seq": 2},
    ],
    ids=lambda wrong: str(wrong)[:30],
)  # fmt: skip
def test_events_that_are_none(other: Any, members: Members, tmp_path: Path, wrong: Any) -> None:
    forged = retold(changed_events(members, lambda lines: lines[1].update(wrong)))
    refused(other, packed(tmp_path / "f", forged), CorruptStore, "event 2")


def test_lines_that_are_none(other: Any, members: Members, tmp_path: Path) -> None:
    text = members["events.jsonl"]
    for wrong in (text[:-1], text + b"\n", text + b"null\n", b"\xff\n" + text, text[:-9] + b"\n"):
        forged = retold(members | {"events.jsonl": wrong})
        refused(other, packed(tmp_path / "f", forged), CorruptStore, "event [1-4]")


def test_blobs_that_are_wrong_or_not_there(other: Any, members: Members, tmp_path: Path) -> None:
    path = tmp_path / "f"
    name = next(name for name in members if name.startswith("blobs/"))
    lacking = {key: data for key, data in members.items() if key != name}
    refused(other, packed(path, lacking), CorruptStore, "holds 1 blobs and tells of 2")
    message = refused(other, packed(path, retold(lacking)), BlobLost, "lacks")
    assert name[6:] in message
    swapped = members | {name: members[name][::-1]}
    refused(other, packed(path, swapped), CorruptStore, "hash to")
    refused(other, packed(path, retold(members, blobs_size=10)), CorruptStore, "larger than")
    refused(other, packed(path, retold(members, blobs_size=10**15)), CorruptStore, "tells of")
    other.blobs.put(members[name])  # that the store has it by chance does not help
    refused(other, packed(path, retold(lacking)), BlobLost, "lacks")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice(other: Any, members: Members, tmp_path: Path) -> None:
    for name in members:
        path = packed(tmp_path / "f", members)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, members[name])
        refused(other, path, CorruptStore, "more than once")


def peak_of(deed: Callable[[], Any]) -> int:
    """The most bytes that it holds at a time."""
    tracemalloc.start()
    try:
        deed()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs(other: Any, members: Members, tmp_path: Path) -> None:
    path, bomb = tmp_path / "f", b"\x00" * 50_000_000
    # what is packed in another way than ours is not unpacked at all
    for name in (f"blobs/{sha256(bomb).hexdigest()}", "run.json"):
        packed(path, members | {name: bomb}, zipfile.ZIP_DEFLATED)
        assert peak_of(lambda: refused(other, path, ForeignStore, "is packed")) < 1_000_000
    told = json.loads(members["run.json"]) | {"blobs": 0, "blobs_size": 0}
    line = members["events.jsonl"].splitlines(keepends=True)[0]
    for events in (bomb, line + b" " * 50_000_000, line + line * 200_000):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("run.json", json.dumps(told))
            file.writestr("events.jsonl", events, zipfile.ZIP_DEFLATED)
        assert peak_of(lambda: refused(other, path, CorruptStore, "event")) < 8_000_000
    assert list(other.blobs.digests()) == []


def test_a_directory_of_a_million(other: Any, members: Members, tmp_path: Path) -> None:
    """What it says of its size is looked at before it is read."""
    data = bytearray(packed(tmp_path / "f", members).read_bytes())
    struct.pack_into("<L", data, len(data) - 10, 500_000_000)
    path = tmp_path / "g"
    path.write_bytes(data)
    refused(other, path, ForeignStore, "its directory has 500000000 B")
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**7, 10**7, 10**9, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    path.write_bytes(data[:-22] + large + locator + data[-22:])
    refused(other, path, ForeignStore, "its directory has 1000000000 B")


def test_memory_does_not_grow_with_the_run(store: Any, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        run, path = f"r{count}", tmp_path / f"{count}"
        events = ((n, NewEvent("T", "p", (n % 100,), 1, f'{{"n":{n}}}')) for n in range(count))
        store.adopt_run(run, "w", 1, events)
        with opened(tmp_path / f"{count}.db") as other:
            return peak_of(lambda: (export(store, run, path), import_run(other, path)))

    assert peak(48_000) < 1.5 * peak(16_000)


# --- kills ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from kitchen.adapters.event_store import opened
from kitchen.log import archive, container

left = [int(sys.argv[3])]

def dying(method):
    def call(*args, **kwargs):
        tick()
        found = method(*args, **kwargs)
        tick()
        return found
    return call

def tick():
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = dying(os.fsync)
container.Path.replace = dying(container.Path.replace)
container.ZipFile.writestr = dying(container.ZipFile.writestr)
archive._event = dying(archive._event)
archive._encode = dying(archive._encode)
with opened(sys.argv[1]) as store:
    store.adopt_run = dying(store.adopt_run)
    store.blobs.put = dying(store.blobs.put)
    if sys.argv[4] == "export":
        archive.export(store, "r", container.Path(sys.argv[2]))
    else:
        archive.import_run(store, container.Path(sys.argv[2]))
print("done")
"""


def kill(folder: Path, file: Path, target: Path, place: int, deed: str) -> bool:
    """Whether the process died at that place; it did all of it otherwise."""
    process = python(["-c", KILLED, file, target, place, deed], folder)
    output, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    assert output == ("" if process.returncode else "done\n")
    return process.returncode != 0


@pytest.mark.slow
def test_an_export_killed_at_any_place(store: Any, tmp_path: Path) -> None:
    fill(store)
    export(store, "r", tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    place, whole = 1, []
    while kill(tmp_path, tmp_path / "k.db", target := tmp_path / f"t{place}", place, "export"):
        if target.exists():
            assert target.read_bytes() == good
            whole.append(place)
        else:
            export(store, "r", target)
            assert target.read_bytes() == good
        place += 1
    assert target.read_bytes() == good
    assert place > 10
    assert whole


@pytest.mark.slow
def test_an_import_killed_at_any_place(store: Any, tmp_path: Path) -> None:
    fill(store)
    export(store, "r", tmp_path / "good")
    place, whole = 1, 0
    while kill(tmp_path, file := tmp_path / f"{place}.db", tmp_path / "good", place, "import"):
        with opened(file) as other:
            assert other.verify() == []
            if other.runs():
                whole += 1
            else:
                assert import_run(other, tmp_path / "good") == "r"
            assert list(other.read("r")) == list(store.read("r"))
            assert set(other.named_blobs("r")) == set(other.blobs.digests())
            assert other.verify() == []
        place += 1
    assert place > 10
    assert whole

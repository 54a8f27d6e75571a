"""What every event store does, in a file or in memory.

Rules: nothing here knows which kind it has. What only a file can do is tested elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import (
    BlobMissing,
    EventStore,
    HeadMoved,
    MemoryStore,
    NewEvent,
    RunExists,
    RunLocked,
    StoreClosed,
    StoreError,
    UnknownRun,
    open_store,
)

if TYPE_CHECKING:
    from pathlib import Path

    from store import Record

STARTED = NewEvent("RunStarted", payload='{"seed": 0}')


def stage(name: str, *visit: int, attempt: int = 1, payload: str = "{}") -> NewEvent:
    return NewEvent("StageCompleted", f"epochs/{name}", visit, attempt, payload)


def plain(record: Record) -> NewEvent:
    return NewEvent(*record[3:8])


def test_what_was_appended_is_read_in_order(store: EventStore) -> None:
    assert store.create_run("r", "training", [STARTED], at=7) == 1
    events = [stage("a", 0), stage("b", 0, 12, attempt=3, payload='{"x":1}'), stage("a", 1)]
    assert store.append("r", 1, events, at=9) == 4
    records = list(store.read("r"))
    assert [plain(record) for record in records] == [STARTED, *events]
    assert [record.seq for record in records] == [1, 2, 3, 4]
    assert [record.at for record in records] == [7, 9, 9, 9]
    assert {record.run for record in records} == {"r"}
    assert all(len(record.chain) == 16 for record in records)
    assert store.head("r") == 4


def test_time_is_now_unless_given(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    store.append("r", 1, [STARTED])
    first, second = store.read("r")
    assert 1_600_000_000 * 10**9 < first.at <= second.at


def test_runs_do_not_mix(store: EventStore) -> None:
    store.create_run("a", "n", [stage("x")])
    store.create_run("b", "n", [])
    store.append("b", 0, [stage("y"), stage("z")])
    store.append("a", 1, [stage("x2")])
    assert [record.path for record in store.read("a")] == ["epochs/x", "epochs/x2"]
    assert [record.path for record in store.read("b")] == ["epochs/y", "epochs/z"]
    assert (store.head("a"), store.head("b")) == (2, 2)


def test_an_append_that_expects_another_head_changes_nothing(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    store.append("r", 1, [stage("a")])
    for wrong in (0, 1, 3):
        with pytest.raises(HeadMoved) as caught:
            store.append("r", wrong, [stage("b")])
        assert (caught.value.expected, caught.value.found) == (wrong, 2)
    with pytest.raises(HeadMoved, match="no longer owns the run"):
        store.append("r", 1, [])
    assert store.head("r") == 2
    assert store.append("r", 2, [stage("b")]) == 3


def test_appending_nothing_is_a_question_about_the_head(store: EventStore) -> None:
    store.create_run("r", "n", [])
    assert store.append("r", 0, []) == 0
    assert list(store.read("r")) == []
    assert store.latest("r") is None
    assert store.head("r") == 0


def test_a_batch_of_any_size_is_one_append(store: EventStore) -> None:
    store.create_run("r", "n", [stage("many", n) for n in range(130)])
    head = 130
    for size in (1, 63, 64, 65, 500):
        head = store.append("r", head, [stage("many", n) for n in range(head, head + size)])
    records = list(store.read("r"))
    assert [record.visit for record in records] == [(n,) for n in range(head)]
    assert [record.seq for record in records] == list(range(1, head + 1))
    with pytest.raises(HeadMoved):
        store.append("r", 5, [stage("late", n) for n in range(100)])
    assert store.head("r") == head
    assert store.verify() == []


def test_unicode_nul_and_large_payloads_come_back(store: EventStore) -> None:
    odd = "é\u4e2d\U0001f600\x00'\";--\n"
    event = NewEvent(odd, odd, (), 0, json.dumps({"k": odd}, ensure_ascii=False))
    large = NewEvent("Large", "", (2**40, 0), 5, json.dumps({"k": "x" * 3_000_000}))
    store.create_run(odd, odd, [event, large])
    assert [plain(record) for record in store.read(odd)] == [event, large]
    assert store.run(odd).name == odd
    assert store.verify() == []


def test_what_is_no_text_is_refused_whole(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    with pytest.raises(UnicodeEncodeError):
        store.append("r", 1, [stage("fine"), stage("\udcff")])
    assert store.head("r") == 1
    assert store.append("r", 1, [stage("fine")]) == 2


def test_read_by_range_type_and_path(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED] + [stage("ab"[n % 2], n) for n in range(600)])

    def seqs(**how: object) -> list[int]:
        return [record.seq for record in store.read("r", **how)]  # pyright: ignore[reportArgumentType]

    assert seqs(after=598) == [599, 600, 601]
    assert seqs(until=2) == [1, 2]
    assert seqs(after=3, until=5) == [4, 5]
    assert seqs(after=5, until=5) == []
    assert seqs(after=9, until=5) == []
    assert seqs(after=601) == []
    assert seqs(after=-4, until=1) == [1]
    assert seqs(until=10**12) == list(range(1, 602))
    assert seqs(types=["RunStarted"]) == [1]
    assert seqs(types=["RunStarted", "StageCompleted", "NeverSeen"], until=3) == [1, 2, 3]
    assert seqs(types=["NeverSeen"]) == []
    assert seqs(types=[]) == []
    assert seqs(path="epochs/a") == list(range(2, 602, 2))
    assert seqs(path="epochs/b", types=["StageCompleted"], after=598) == [599, 601]
    assert seqs(path="epochs") == []


def test_latest(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED, stage("a"), stage("b")])
    last = store.latest("r")
    assert last is not None
    assert (last.seq, last.path) == (3, "epochs/b")
    first = store.latest("r", ["RunStarted"])
    assert first is not None
    assert first.seq == 1
    assert store.latest("r", ["NeverSeen"]) is None
    assert store.latest("r", []) is None


def test_a_reader_sees_what_is_appended_while_it_reads_or_does_not(store: EventStore) -> None:
    store.create_run("r", "n", [stage("a", n) for n in range(300)])
    reading = store.read("r")
    first = next(reading)
    store.append("r", 300, [stage("b")])
    seqs = [first.seq, *(record.seq for record in reading)]
    assert seqs[:300] == list(range(1, 301))
    assert seqs[300:] in ([], [301])


def test_an_unknown_run_is_named_with_its_neighbours(store: EventStore) -> None:
    with pytest.raises(UnknownRun, match="holds no runs"):
        store.head("training-1")
    store.create_run("training-1", "n", [])
    calls = (
        lambda: store.read("training-2"),
        lambda: store.latest("training-2"),
        lambda: store.head("training-2"),
        lambda: store.run("training-2"),
        lambda: store.append("training-2", 0, [STARTED]),
        lambda: store.save_snapshot("training-2", 1, "k", b""),
        lambda: store.snapshot("training-2", 1, "k"),
        lambda: store.prune_snapshots("training-2"),
        lambda: store.verify("training-2"),
    )
    for call in calls:
        with pytest.raises(UnknownRun, match="Did you mean 'training-1'"):
            call()
    assert issubclass(UnknownRun, LookupError)
    assert issubclass(UnknownRun, StoreError)


def test_a_run_is_created_once(store: EventStore) -> None:
    store.create_run("r", "first", [STARTED])
    with pytest.raises(RunExists, match="'r'"):
        store.create_run("r", "second", [STARTED, STARTED])
    assert store.run("r").name == "first"
    assert store.head("r") == 1
    with pytest.raises(ValueError, match="not empty"):
        store.create_run("", "n", [])


def test_runs_are_listed_newest_first(store: EventStore) -> None:
    assert store.runs() == []
    store.create_run("old", "one", [STARTED], at=1)
    store.create_run("new", "two", [STARTED, STARTED], at=3)
    store.create_run("mid", "one", [], at=2)
    store.create_run("mid2", "one", [], at=2)
    infos = store.runs()
    assert [info.run for info in infos] == ["new", "mid2", "mid", "old"]
    assert (infos[0].name, infos[0].created_at, infos[0].head) == ("two", 3, 2)
    assert infos[3] == store.run("old")
    assert all(info.owner is None for info in infos)


def test_equal_runs_have_equal_events_and_their_own_chains(store: EventStore) -> None:
    for run in ("a", "b"):
        store.create_run(run, "n", [STARTED, STARTED])
    chains = [record.chain for run in ("a", "b") for record in store.read(run)]
    assert len(set(chains)) == 4


def test_chains_are_the_same_in_every_kind_of_store(store: EventStore) -> None:
    twin = MemoryStore()
    for one in (store, twin):
        one.create_run("r", "n", [STARTED, stage("a", 1, 2)])
        one.append("r", 2, [stage("b", 3, attempt=4, payload='{"x":"é"}')])
    assert [r.chain for r in store.read("r")] == [r.chain for r in twin.read("r")]


def test_snapshots_are_found_by_key_and_seq(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED] * 9)
    store.create_run("other", "n", [STARTED] * 9)
    assert store.snapshot("r", 9, "v1") is None
    for seq in (3, 6):
        store.save_snapshot("r", seq, "v1", f"state {seq}".encode())
    store.save_snapshot("r", 7, "v2", b"\x00\xff")
    assert store.snapshot("r", 9, "v1") == (6, b"state 6")
    assert store.snapshot("r", 6, "v1") == (6, b"state 6")
    assert store.snapshot("r", 5, "v1") == (3, b"state 3")
    assert store.snapshot("r", 2, "v1") is None
    assert store.snapshot("r", 9, "v2") == (7, b"\x00\xff")
    assert store.snapshot("other", 9, "v1") is None
    store.save_snapshot("r", 6, "v1", b"again")
    assert store.snapshot("r", 9, "v1") == (6, b"again")


def test_a_snapshot_of_nothing_that_is_there_is_never_found(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    store.save_snapshot("r", 0, "k", b"before it all")
    store.save_snapshot("r", 2, "k", b"of a future")
    assert store.snapshot("r", 9, "k") == (0, b"before it all")
    store.append("r", 1, [STARTED])
    assert store.snapshot("r", 9, "k") == (0, b"before it all")
    assert [(f.kind, f.run, f.seq) for f in store.verify()] == [("snapshot", "r", 2)]
    store.save_snapshot("r", 2, "k", b"now it is")
    assert store.snapshot("r", 9, "k") == (2, b"now it is")
    assert store.verify() == []


def test_pruning_keeps_the_pinned_and_the_last(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED] * 9)
    store.create_run("other", "n", [STARTED] * 9)
    store.save_snapshot("other", 1, "k", b"")
    for seq in range(1, 8):
        store.save_snapshot("r", seq, "k", b"", pinned=seq == 2)
    store.save_snapshot("r", 2, "k", b"saved again, and still pinned")
    assert store.prune_snapshots("r", keep=3) == 3

    def kept() -> list[int]:
        found = (store.snapshot("r", seq, "k") for seq in range(1, 10))
        return sorted({hit[0] for hit in found if hit is not None})

    assert kept() == [2, 5, 6, 7]
    assert store.prune_snapshots("r", keep=0) == 3
    assert kept() == [2]
    assert store.snapshot("other", 9, "k") == (1, b"")


def test_blobs_are_stored_once_under_their_hash(store: EventStore) -> None:
    data = b"weights" * 1000
    digest = store.blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.blobs.put(memoryview(bytearray(data))) == digest
    assert store.blobs.get(digest) == data
    assert store.blobs.has(digest)
    assert store.blobs.size(digest) == len(data)
    empty = store.blobs.put(b"")
    assert store.blobs.get(empty) == b""
    assert sorted(store.blobs.digests()) == sorted([digest, empty])
    assert not store.blobs.remove(digest, older_than=3600)
    assert store.blobs.remove(digest)
    assert not store.blobs.remove(digest)
    assert not store.blobs.has(digest)
    with pytest.raises(BlobMissing, match="which run 'r' seq 3 names"):
        store.blobs.get(digest, named_by="run 'r' seq 3")
    with pytest.raises(BlobMissing):
        store.blobs.size(digest)


@pytest.mark.parametrize("bad", ["", "a" * 63, "A" * 64, "../" * 21 + "x", "a" * 64 + "\n"])
def test_a_digest_is_checked_before_use(store: EventStore, bad: str) -> None:
    for use in (store.blobs.get, store.blobs.has, store.blobs.size, store.blobs.remove):
        with pytest.raises(ValueError, match="no blob digest"):
            use(bad)


def test_a_lease_is_exclusive_until_released(store: EventStore) -> None:
    with store.lease("not yet created", note="first") as lease:
        assert lease.held
        with pytest.raises(RunLocked) as caught:
            store.lease("not yet created")
        assert caught.value.owner == lease.owner
        assert str(lease.owner.pid) in str(caught.value)
        assert lease.owner.note == "first"
        store.create_run("not yet created", "n", [])
        assert store.run("not yet created").owner == lease.owner
        with store.lease("another"):
            pass
    assert not lease.held
    assert store.run("not yet created").owner is None
    with store.lease("not yet created") as second:
        lease.release()
        assert second.held
        with pytest.raises(RunLocked):
            store.lease("not yet created")


def test_verify_finds_nothing_wrong_with_a_sound_store(store: EventStore) -> None:
    digest = store.blobs.put(b"x")
    store.create_run("r", "n", [NewEvent("Saved", payload=json.dumps({"w": {"blob": digest}}))])
    store.append("r", 1, [NewEvent("Quoted", payload=json.dumps({"t": f'"blob":"{"0" * 64}"'}))])
    store.save_snapshot("r", 2, "k", b"")
    assert store.verify() == []
    assert store.verify("r") == []


def test_verify_names_missing_blobs_and_broken_payloads(store: EventStore) -> None:
    named = NewEvent("Saved", payload=f'{{"deep": [{{"blob" : "{"0" * 64}"}}]}}')
    broken = [NewEvent("Bad", payload=text) for text in ("{", '{"x": NaN}', "", "[" * 9999)]
    store.create_run("r", "n", [STARTED, named, STARTED, named, *broken])
    store.create_run("fine", "n", [STARTED])
    found = [(finding.kind, finding.run, finding.seq) for finding in store.verify()]
    assert found == [
        ("blob-missing", "r", 2),
        ("blob-missing", "r", 4),
        *(("payload", "r", seq) for seq in (5, 6, 7, 8)),
    ]
    assert store.verify("fine") == []
    assert "run 'r', seq 2: blob 0000" in str(store.verify("r")[0])


def test_verify_finds_a_snapshot_of_a_future_that_is_gone(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    store.save_snapshot("r", 5, "k", b"")
    assert [finding.kind for finding in store.verify()] == ["snapshot"]


def test_verify_follows_what_a_blob_names(store: EventStore) -> None:
    def naming(*digests: str) -> str:
        return store.blobs.put(
            json.dumps([{"$": "bytes", "blob": digest, "size": 3} for digest in digests]).encode()
        )

    there, lost = store.blobs.put(b"abc"), store.blobs.put(b"xyz")
    inner = naming(there, lost)
    outer = naming(inner, there, inner)
    payload = json.dumps({"w": {"blob": outer}, "refs": [{"blob": inner}, {"blob": there}]})
    store.create_run("r", "n", [STARTED, NewEvent("S", payload=payload)])
    store.create_run("s", "n", [NewEvent("S", payload=payload)])
    assert store.verify() == []
    store.blobs.remove(lost)
    found = store.verify()
    assert [(f.kind, f.run, f.seq) for f in found] == [
        ("blob-missing", "r", 2),
        ("blob-missing", "s", 1),
    ]
    assert lost in found[0].what
    assert f"blob {inner} names it" in found[0].what


@pytest.mark.parametrize(
    "content",
    [
        '{"blob":"%s"}',
        '{"blob":"%s","size":"3"}',
        '{"blob":"%s","size":3} and more',
        ' {"blob":"%s","size":3}',
        '{"blob":"x%s","size":3}',
        '{"a":{"blob":"%s"},"size":3}',
        '{"a":"\\"blob\\":\\"%s\\",\\"size\\":3","size":3}',
        '[{"blob":"%s","size":3}',
        '"{\\"blob\\":\\"%s\\",\\"size\\":3}"',
        "[" * 9999 + '{"blob":"%s","size":3}',
    ],
)
def test_bytes_that_only_look_like_naming_a_blob_are_no_finding(
    store: EventStore, content: str
) -> None:
    for data in ((content % ("0" * 64)).encode(), b"\xff" + content.encode()):
        digest = store.blobs.put(data)
        run = f"run {len(store.runs())}"
        store.create_run(run, "n", [NewEvent("S", payload=json.dumps({"blob": digest}))])
    assert store.verify() == []


def test_check_finds_nothing_wrong_with_a_sound_run(store: EventStore) -> None:
    store.create_run("r", "n", [stage("a", n) for n in range(3000)])
    store.create_run("empty", "n", [])
    for after in (-1, 0, 1, 2999, 3000):
        assert store.check("r", after) == []
    assert store.check("empty") == []
    (finding,) = store.check("r", 3001)
    assert (finding.kind, finding.run, finding.seq) == ("head", "r", 3001)
    assert "ends at seq 3000" in finding.what
    for after, until in ((0, 0), (0, 1), (2, 1000), (3000, 3000)):
        assert store.check("r", after, until) == []
    with pytest.raises(UnknownRun):
        store.check("q")


def test_durability_can_be_changed_while_open(store: EventStore) -> None:
    assert store.durability == "process"
    store.use("power")
    assert store.durability == "power"
    with pytest.raises(ValueError, match="'process' or 'power'"):
        store.use("hope")  # pyright: ignore[reportArgumentType]
    assert store.durability == "power"
    store.use("process")
    assert store.durability == "process"


def test_reading_from_other_threads_while_one_writes(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    done = threading.Event()
    faults: list[object] = []

    def watch() -> None:
        try:
            while not done.is_set():
                seqs = [record.seq for record in store.read("r")]
                if seqs != list(range(1, len(seqs) + 1)):
                    faults.append(seqs)
        except Exception as error:
            faults.append(error)

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    for head in range(1, 200):
        store.append("r", head, [stage(f"s{head}", head)])
    done.set()
    for watcher in watchers:
        watcher.join()
    assert faults == []
    assert store.head("r") == 200


def test_blobs_from_several_threads_at_once(store: EventStore) -> None:
    faults: list[Exception] = []
    begin = threading.Barrier(8)

    def put(which: int) -> None:
        begin.wait()
        try:
            for number in range(60):  # some the same in all threads, some not
                data = f"{number % 7 or which}/{number}".encode()
                assert store.blobs.get(store.blobs.put(data)) == data
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=put, args=(which,)) for which in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_closed_store_says_so(store: EventStore) -> None:
    store.create_run("r", "n", [STARTED])
    lease = store.lease("r")
    store.close()
    store.close()
    lease.release()
    for use in (
        lambda: store.head("r"),
        lambda: store.append("r", 1, [STARTED]),
        lambda: store.create_run("q", "n", []),
        store.runs,
        lambda: store.lease("r"),
        store.verify,
        lambda: store.check("r"),
        lambda: store.use("power"),
    ):
        with pytest.raises(StoreClosed):
            use()


names = st.text(st.characters(codec="utf-8"), max_size=12)
events = st.builds(
    NewEvent,
    type=names,
    path=names,
    visit=st.lists(st.integers(0, 2**70), max_size=4).map(tuple),
    attempt=st.integers(0, 2**31),
    payload=st.dictionaries(names, st.integers() | names).map(json.dumps),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(st.lists(events, max_size=70), max_size=5), data=st.data())
def test_append_then_read_gives_back_the_same(
    store: EventStore, batches: list[list[NewEvent]], data: st.DataObject
) -> None:
    run = f"run {len(store.runs())}"
    head = store.create_run(run, "n", batches[0] if batches else [])
    for batch in batches[1:]:
        head = store.append(run, head, batch)
    flat = [event for batch in batches for event in batch]
    assert head == len(flat)
    assert [plain(record) for record in store.read(run)] == flat
    after, until = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 300))
    assert [plain(r) for r in store.read(run, after=after, until=until)] == flat[after:until]
    assert store.verify(run) == []


def test_a_memory_store_can_be_copied_and_cut() -> None:
    whole = MemoryStore()
    whole.create_run("r", "n", [stage("a", n) for n in range(5)])
    whole.create_run("parent", "n", [STARTED])
    for seq in (2, 4):
        whole.save_snapshot("r", seq, "k", b"%d" % seq)
    digest = whole.blobs.put(b"x")
    with whole.lease("r"):
        cut = whole.truncated("r", 3)
        assert cut.run("r").owner is None
    assert [record.seq for record in cut.read("r")] == [1, 2, 3]
    assert cut.snapshot("r", 9, "k") == (2, b"2")
    assert cut.head("parent") == 1
    assert cut.verify() == []
    cut.append("r", 3, [stage("other")])
    cut.blobs.remove(digest)
    assert whole.head("r") == 5
    assert whole.snapshot("r", 9, "k") == (4, b"4")
    assert whole.blobs.has(digest)
    assert whole.append("r", 5, [stage("on")]) == 6
    assert cut.head("r") == 4
    assert whole.truncated("r", 0).head("r") == 0


def test_what_is_in_a_file_is_there_when_it_is_opened_again(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("r", "training", [STARTED], at=1)
        store.append("r", 1, [stage("a", 2, 17)], at=2)
        store.save_snapshot("r", 2, "k", b"body")
        before, uuid, info = list(store.read("r")), store.uuid, store.run("r")
    with open_store(file, create=False, durability="power") as store:
        assert list(store.read("r")) == before
        assert (store.uuid, store.run("r")) == (uuid, info)
        assert store.snapshot("r", 9, "k") == (2, b"body")
        assert store.append("r", 2, [stage("b")]) == 3
        assert store.verify() == []

"""Runs taken in whole, and the blobs that runs name."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from store import EventStore, NewEvent, RunExists, UnknownRun, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T = NewEvent("T", "p")


def test_events_keep_their_times(store: EventStore) -> None:
    store.create_run("r", "training", [NewEvent("RunStarted"), T], at=5)
    store.append("r", 2, [NewEvent("Took", "q", (3, 4), 2, '{"x":1}')], at=9)
    events = ((record.at, NewEvent(*record[3:8])) for record in store.read("r"))
    assert store.adopt_run("copy", "training", 4, events) == 3
    assert [r[1:8] for r in store.read("copy")] == [r[1:8] for r in store.read("r")]
    chains = [[record.chain for record in store.read(run)] for run in ("r", "copy")]
    assert chains[0] != chains[1]
    info = store.run("copy")
    assert (info.name, info.created_at, info.head, info.parent) == ("training", 4, 3, None)
    assert store.append("copy", 3, [T]) == 4
    assert store.fork_run("f", "n", "copy", 2, [T]) == 3
    assert store.verify() == []


def test_a_run_without_events(store: EventStore) -> None:
    assert store.adopt_run("r", "n", 1, []) == 0
    assert store.append("r", 0, [T]) == 1


def test_a_name_that_is_taken(store: EventStore) -> None:
    store.create_run("r", "n", [T])
    with pytest.raises(RunExists):
        store.adopt_run("r", "n", 1, [(1, T)])
    with pytest.raises(ValueError, match="not empty"):
        store.adopt_run("", "n", 1, [])
    assert store.head("r") == 1


def test_a_source_that_fails_leaves_nothing(store: EventStore) -> None:
    def broken() -> Iterator[tuple[int, NewEvent]]:
        for n in range(2500):
            yield n, NewEvent(f"T{n % 3}", f"p/{n % 5}", (n,))
        raise EOFError("cut off")

    with pytest.raises(EOFError):
        store.adopt_run("r", "n", 1, broken())
    assert store.runs() == []
    # names that the failed one brought are not remembered wrongly
    store.create_run("q", "n", [NewEvent("Else", "else"), NewEvent("T1", "p/4")])
    assert [(r.type, r.path) for r in store.read("q")] == [("Else", "else"), ("T1", "p/4")]
    assert store.adopt_run("r", "n", 1, [(1, T)]) == 1
    assert store.verify() == []


def test_names_that_were_never_stored_are_not_remembered(file: Path) -> None:
    def broken() -> Iterator[tuple[int, NewEvent]]:
        yield 1, NewEvent("Lost", "lost")
        raise EOFError

    with open_store(file) as store, open_store(file) as other:
        store.create_run("q", "n", [T])
        with pytest.raises(EOFError):
            store.adopt_run("r", "n", 1, broken())
        other.append("q", 1, [NewEvent("Theirs", "theirs")])
        store.append("q", 2, [NewEvent("Lost", "lost")])
        for each in (store, other):
            found = [(record.type, record.path) for record in each.read("q")]
            assert found == [("T", "p"), ("Theirs", "theirs"), ("Lost", "lost")]
        assert store.verify() == []


def test_memory_does_not_grow_with_the_run(file: Path) -> None:
    def peak(count: int) -> int:
        events = ((n, NewEvent("T", "p", (n,), 1, f'{{"n":{n}}}')) for n in range(count))
        tracemalloc.start()
        store.adopt_run(f"run {count}", "n", 1, events)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with open_store(file) as store:
        assert peak(60_000) < 1.5 * peak(20_001)  # as many visits are remembered


def naming(*digests: str) -> NewEvent:
    refs = [{"blob": digest, "size": 1} for digest in digests]
    return NewEvent("Saved", payload=json.dumps({"refs": refs}))


def test_blobs_that_events_name(store: EventStore) -> None:
    put = store.blobs.put
    weights = put(b"\x00weights")
    leaf = put(b"leaf")
    manifest = put(json.dumps({"leaf": {"blob": leaf, "size": 4}}).encode())
    outer = put(json.dumps([{"blob": manifest, "size": 9}, {"blob": weights, "size": 8}]).encode())
    mine = put(json.dumps({"blob": "cd" * 32}).encode())  # a user's own text
    unused = put(b"unused")
    gone = "ef" * 32
    store.create_run("p", "n", [T, naming(outer), naming(mine, mine)])
    store.fork_run("f", "n", "p", 2, [naming(gone)])
    store.create_run("q", "n", [naming(weights)])

    def named(run: str | None = None) -> list[str]:
        return sorted(store.named_blobs(run))

    assert named("p") == sorted([outer, manifest, leaf, weights, mine])
    assert named("f") == sorted([outer, manifest, leaf, weights, gone])
    assert named("q") == [weights]
    assert named() == sorted({*named("p"), *named("f")})
    assert set(store.blobs.digests()) - set(named()) == {unused}
    store.remove_runs(["p", "f"])
    assert named() == [weights]
    with pytest.raises(UnknownRun):
        store.named_blobs("p")


def test_a_large_blob_is_not_read_to_see_whether_it_names_others(file: Path) -> None:
    with open_store(file) as store:
        digest = store.blobs.put(b"\x00" * 30_000_000)
        store.create_run("r", "n", [naming(digest)])
        tracemalloc.start()
        assert list(store.named_blobs("r")) == [digest]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


def test_named_blobs_of_many_events(file: Path) -> None:
    with open_store(file) as store:
        digests = [f"{n:064x}" for n in range(1000)]
        store.create_run("r", "n", [naming(digest) for digest in digests])
        assert list(store.named_blobs("r")) == digests
        assert list(store.named_blobs()) == digests

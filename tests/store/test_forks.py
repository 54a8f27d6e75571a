"""Runs that share the first events of others, in a file or in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import (
    CorruptLog,
    EventStore,
    HeadMoved,
    MemoryStore,
    NewEvent,
    Record,
    RunExists,
    UnknownRun,
    UnknownSeq,
    open_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., Any]  # what the fixture `child` gives

STARTED = NewEvent("RunStarted", payload='{"seed":0}')
FORKED = NewEvent("RunForked")


def step(n: int, path: str = "train") -> NewEvent:
    return NewEvent("Step", path, (n,), 1, f'{{"n":{n}}}')


def plain(record: Record) -> NewEvent:
    return NewEvent(*record[3:8])


def family(store: EventStore) -> None:
    """g with 9 events; p forked of it at 6, with 9; f of p at 8, c of p at 4: in what g owns."""
    store.create_run("g", "n", [STARTED, *map(step, range(2, 10))], at=1)
    store.fork_run("p", "n", "g", 6, [FORKED, step(70), step(80)], at=2)
    store.fork_run("f", "n", "p", 8, [FORKED], at=3)
    store.fork_run("c", "n", "p", 4, [FORKED, step(60)], at=4)


def visits(store: EventStore, run: str) -> list[int]:
    return [record.visit[0] if record.visit else 0 for record in store.read(run)]


def test_a_fork_reads_as_one_run(store: EventStore) -> None:
    family(store)
    assert visits(store, "g") == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert visits(store, "p") == [0, 2, 3, 4, 5, 6, 0, 70, 80]
    assert visits(store, "f") == [0, 2, 3, 4, 5, 6, 0, 70, 0]
    assert visits(store, "c") == [0, 2, 3, 4, 0, 60]
    for run in "gpfc":
        records = list(store.read(run))
        assert [record.seq for record in records] == list(range(1, store.head(run) + 1))
        assert {record.run for record in records} == {run}
    infos = {info.run: (info.head, info.parent, info.forked_at) for info in store.runs()}
    assert infos == {"g": (9, None, 0), "p": (9, "g", 6), "f": (9, "p", 8), "c": (6, "p", 4)}
    assert store.run("f")[5:] == ("p", 8)
    assert store.verify() == []
    assert all(store.verify(run) == [] for run in "gpfc")
    assert all(store.check(run, after) == [] for run in "gpfc" for after in range(7))


def test_each_goes_its_own_way(store: EventStore) -> None:
    family(store)
    assert store.append("f", 9, [step(100)]) == 10
    assert store.append("g", 9, [step(10)]) == 10
    assert store.append("p", 9, [step(90), step(91)]) == 11
    assert visits(store, "f")[8:] == [0, 100]
    assert visits(store, "p")[8:] == [80, 90, 91]
    assert visits(store, "g")[8:] == [9, 10]
    assert visits(store, "c") == [0, 2, 3, 4, 0, 60]
    with pytest.raises(HeadMoved):
        store.append("c", 4, [step(0)])
    assert store.verify() == []


def test_every_filter_sees_both_parts(store: EventStore) -> None:
    family(store)

    def seqs(run: str, **how: object) -> list[int]:
        return [record.seq for record in store.read(run, **how)]  # pyright: ignore[reportArgumentType]

    assert seqs("f", after=5) == [6, 7, 8, 9]
    assert seqs("f", after=6, until=6) == []
    assert seqs("f", after=5, until=7) == [6, 7]
    assert seqs("f", until=3) == [1, 2, 3]
    assert seqs("f", after=8) == [9]
    assert seqs("f", types=["RunForked"]) == [7, 9]
    assert seqs("f", types=["RunStarted", "RunForked"], until=8) == [1, 7]
    assert seqs("f", path="") == [1, 7, 9]
    assert seqs("f", path="", types=["RunForked"], after=7) == [9]
    assert seqs("f", path="train", after=5) == [6, 8]
    assert seqs("c", path="") == [1, 5]

    def latest(run: str, *how: object) -> int | None:
        record = store.latest(run, *how)  # pyright: ignore[reportArgumentType]
        return None if record is None else record.seq

    assert latest("f") == 9
    assert latest("f", ["Step"]) == 8
    assert latest("f", ["RunStarted"], "") == 1
    assert latest("c", ["RunForked"], "") == 5
    assert latest("c", ["RunForked"], "train") is None
    assert latest("c", None, "train") == 6
    assert latest("g", ["RunForked"]) is None


def test_a_fork_of_a_seq_that_is_not_there(store: EventStore) -> None:
    family(store)
    for seq in (-1, 0, 10, 2**32 + 1, 2**70):
        with pytest.raises(UnknownSeq) as caught:
            store.fork_run("new", "n", "f", seq, [FORKED])
        assert (caught.value.run, caught.value.seq, caught.value.head) == ("f", seq, 9)
    with pytest.raises(UnknownRun, match="'zzz'"):
        store.fork_run("new", "n", "zzz", 1, [FORKED])
    with pytest.raises(RunExists):
        store.fork_run("c", "n", "p", 1, [FORKED])
    with pytest.raises(ValueError, match="at least one event"):
        store.fork_run("new", "n", "p", 1, [])
    with pytest.raises(ValueError, match="not empty"):
        store.fork_run("", "n", "p", 1, [FORKED])
    with pytest.raises(UnknownRun):
        store.head("new")
    assert store.fork_run("new", "n", "f", 9, [FORKED]) == 10
    assert len(store.runs()) == 5
    assert store.verify() == []


def test_a_fork_itself_is_no_parent_of_its_own(store: EventStore) -> None:
    with pytest.raises(UnknownRun):
        store.fork_run("f", "n", "f", 1, [FORKED])
    assert store.runs() == []


def test_the_chain_ties_a_fork_to_the_history_that_it_shares(store: EventStore) -> None:
    family(store)
    for run in ("twin", "other"):
        store.fork_run(run, "n", "p", 4, [FORKED])
    chains = {run: [record.chain for record in store.read(run)] for run in "gpc"}
    assert chains["c"][:4] == chains["g"][:4] == chains["p"][:4]
    firsts = [next(store.read(run, after=4, until=5)).chain for run in ("c", "twin", "other")]
    assert len({*firsts, chains["g"][4]}) == 4
    parting = chains["g"][3] + b"c"
    start = hashlib.blake2b(parting, digest_size=16, person=b"event-store fork").digest()
    first = b"5 0  9 0\nRunForked{}"
    assert chains["c"][4] == hashlib.blake2b(start + first, digest_size=16).digest()
    memory = MemoryStore()
    family(memory)
    assert all([r.chain for r in memory.read(run)] == chains[run] for run in "gpc")


def test_snapshots_of_what_is_shared_serve_the_fork(store: EventStore) -> None:
    family(store)
    store.save_snapshot("g", 0, "k", b"0")
    store.save_snapshot("g", 3, "k", b"g3")
    store.save_snapshot("g", 8, "k", b"g8")
    store.save_snapshot("p", 8, "k", b"p8")
    assert store.snapshot("f", 9, "k") == (8, b"p8")
    assert store.snapshot("f", 7, "k") == (3, b"g3")
    assert store.snapshot("f", 2, "k") == (0, b"0")
    assert store.snapshot("c", 6, "k") == (3, b"g3")
    assert store.snapshot("g", 9, "k") == (8, b"g8")
    store.save_snapshot("f", 4, "k", b"f4")
    assert store.snapshot("g", 7, "k") == (4, b"f4")
    assert store.snapshot("c", 6, "k") == (4, b"f4")
    store.save_snapshot("f", 9, "k", b"f9", pinned=True)
    assert store.snapshot("f", 9, "k") == (9, b"f9")
    assert store.snapshot("p", 9, "k") == (8, b"p8")
    assert store.prune_snapshots("f", keep=0) == 0
    assert store.prune_snapshots("p", keep=0) == 1
    assert store.snapshot("f", 8, "k") == (4, b"f4")
    assert store.verify() == []


def test_a_missing_blob_of_the_parent_is_told_of_the_fork_too(store: EventStore) -> None:
    named = NewEvent("Took", payload=f'{{"blob":"{"ab" * 32}","size":3}}')
    store.create_run("p", "n", [STARTED, named])
    store.fork_run("f", "n", "p", 2, [FORKED])
    store.fork_run("before", "n", "p", 1, [FORKED])

    def found(run: str | None = None) -> list[tuple[str, str | None, int | None]]:
        return [(finding.kind, finding.run, finding.seq) for finding in store.verify(run)]

    assert found() == [("blob-missing", "p", 2), ("blob-missing", "f", 2)]
    assert found("f") == found()
    assert found("before") == []
    assert "shares with run 'p'" in store.verify("f")[1].what


def test_a_fork_is_found_when_its_file_is_opened_again(file: Path) -> None:
    with open_store(file) as store:
        family(store)
        before = {run: list(store.read(run)) for run in "gpfc"}
    with open_store(file, create=False) as store:
        assert store.append("c", 6, [step(61)]) == 7
        assert store.append("f", 9, []) == 9
        with pytest.raises(HeadMoved):
            store.append("f", 8, [step(0)])
    with open_store(file, read_only=True) as store:
        assert {run: list(store.read(run, until=len(before[run]))) for run in "gpfc"} == before
        assert visits(store, "c")[4:] == [0, 60, 61]
        assert store.verify() == []


def test_any_tool_sees_the_fork_as_one_run(file: Path) -> None:
    with open_store(file) as store:
        family(store)
        expected = {run: [(r.seq, r.payload) for r in store.read(run)] for run in "gpfc"}
    db = sqlite3.connect(file)
    for run, events in expected.items():
        sql = "SELECT seq, payload FROM event_log WHERE run = ? ORDER BY seq"
        assert db.execute(sql, (run,)).fetchall() == events
    assert db.execute("SELECT count(*) FROM event_log").fetchone() == (9 + 9 + 9 + 6,)
    assert db.execute("SELECT count(*) FROM events").fetchone() == (9 + 3 + 1 + 2,)
    for statement in ("UPDATE forks SET seq = 1", "DELETE FROM forks"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    db.close()


def test_a_fork_holds_no_copy(file: Path) -> None:
    with open_store(file) as store:
        store.create_run("p", "n", [step(n) for n in range(10_000)])
        store.compact()
        before = file.stat().st_size
        store.fork_run("f", "n", "p", 9_999, [FORKED])
        store.compact()
        assert file.stat().st_size - before <= 4096
        assert store.head("f") == 10_000


def damage(file: Path, statement: str) -> None:
    db = sqlite3.connect(file, isolation_level=None)
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    assert db.execute(statement).rowcount > 0
    for _, sql in triggers:
        db.execute(sql)
    db.close()


G, P, F, C = (number << 32 for number in range(1, 5))


@pytest.mark.parametrize(
    ("deed", "findings"),
    [
        (
            f"UPDATE events SET payload = '[]' WHERE id = {G | 3}",
            [("chain", run, 3) for run in "gpfc"],
        ),
        (
            f"UPDATE events SET payload = '[]' WHERE id = {G | 6}",
            [("chain", run, 6) for run in "gpf"],
        ),
        (f"UPDATE events SET payload = '[]' WHERE id = {G | 7}", [("chain", "g", 7)]),
        (
            f"UPDATE events SET payload = '[]' WHERE id = {P | 7}",
            [("chain", "p", 7), ("chain", "f", 7)],
        ),
        (f"UPDATE events SET payload = '[]' WHERE id = {P | 9}", [("chain", "p", 9)]),
        (f"UPDATE events SET payload = '[]' WHERE id = {F | 9}", [("chain", "f", 9)]),
        (f"DELETE FROM events WHERE id = {G | 2}", [("gap", run, 2) for run in "gpfc"]),
        # the end of the parent is gone, its seal too: only the fork knows
        (
            f"DELETE FROM events WHERE id BETWEEN {P | 8} AND {P | 9}",
            [("head", "p", 8), ("head", "f", 8), ("gap", "f", 8)],
        ),
        (f"DELETE FROM forks WHERE no = {F >> 32}", [("gap", "f", 1)]),
        (f"UPDATE forks SET seq = 7 WHERE no = {F >> 32}", [("gap", "f", 8)]),
        (f"UPDATE forks SET parent = {G >> 32} WHERE no = {F >> 32}", [("chain", "f", 9)]),
        (
            f"UPDATE forks SET parent = {C >> 32} WHERE no = {F >> 32}",
            [("head", "f", None), ("gap", "f", 1)],
        ),
        (
            f"DELETE FROM runs WHERE no = {P >> 32}",
            [
                ("head", None, None),
                ("head", None, None),
                ("head", "f", None),
                ("gap", "f", 1),
                ("head", "c", None),
                ("gap", "c", 1),
            ],
        ),
        (f"UPDATE runs SET run = 'q' WHERE no = {F >> 32}", [("chain", "q", 9)]),
    ],
)
def test_damage_to_what_is_shared_is_found(
    file: Path, deed: str, findings: list[tuple[str, str | None, int | None]]
) -> None:
    with open_store(file) as store:
        family(store)
    damage(file, deed)
    with open_store(file, read_only=True) as store:
        found = [(finding.kind, finding.run, finding.seq) for finding in store.verify()]
        assert found == findings
        name = "q" if "'q'" in deed else "f"
        own = [place for place in findings if place[1] == name]
        of_fork = [(finding.kind, finding.run, finding.seq) for finding in store.verify(name)]
        assert [place for place in of_fork if place[1] == name] == own


def test_a_parents_end_that_was_cut_off_is_known_by_its_fork(file: Path) -> None:
    with open_store(file) as store:
        family(store)
    damage(file, f"DELETE FROM events WHERE id >= {P | 7} AND id < {F}")
    damage(file, f"UPDATE runs SET sealed_seq = 0, sealed_chain = NULL WHERE no = {P >> 32}")
    with open_store(file, read_only=True) as store:
        found = [(finding.kind, finding.run, finding.seq) for finding in store.verify()]
        assert found == [("gap", "f", 8)]
        assert [(f.kind, f.seq) for f in store.check("f")] == [("gap", 7)]
        assert [(f.kind, f.seq) for f in store.check("f", 8)] == [("gap", 8)]
        with pytest.raises(CorruptLog, match="nothing is left behind seq 6"):
            store.head("p")


def test_check_follows_a_fork_over_its_borders(file: Path) -> None:
    with open_store(file) as store:
        family(store)
    damage(file, f"UPDATE events SET payload = '[]' WHERE id = {G | 5}")
    with open_store(file, read_only=True) as store:
        found = [[(f.kind, f.run, f.seq) for f in store.check("f", after)] for after in (0, 4, 5)]
        assert found == [[("chain", "f", 5)], [("chain", "f", 5)], []]
        assert store.check("f", 0, until=4) == []
    damage(file, f"UPDATE forks SET parent = {G >> 32} WHERE no = {F >> 32}")
    with open_store(file, read_only=True) as store:
        assert [(f.kind, f.seq) for f in store.check("f", 7)] == [("chain", 9)]
        assert [(f.kind, f.seq) for f in store.check("f", 8)] == [("chain", 9)]


KILL_AT_EVERY_STATEMENT = """
import os, signal, sys, store, store.rows
folder, deed, n = sys.argv[1], sys.argv[2], 0
store.rows._BATCH = 4
EVENTS = [store.NewEvent(f"New{k % 3}", f"new/{k % 3}") for k in range(70)]
def do(opened):
    if deed == "fork":
        opened.fork_run("new", "n", "r", 5, EVENTS)
    elif deed == "adopt":
        opened.adopt_run("new", "n", 7, enumerate(EVENTS[:14]))
    else:
        opened.remove_runs(["r", "old"])
whole = {"fork": 75, "adopt": 14}.get(deed)
while True:
    n += 1
    file = f"{folder}/{n}.db"
    with store.open_store(file) as opened:
        opened.create_run("r", "n", [store.NewEvent("T", "p", (k,)) for k in range(9)])
        opened.fork_run("old", "n", "r", 3, [store.NewEvent("F")])
        opened.save_snapshot("r", 9, "k", b"")
    pid = os.fork()
    if pid == 0:
        left = n
        def trace(sql):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        opened = store.open_store(file)
        opened._gate.raw.set_trace_callback(trace)
        do(opened)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    ended = os.WIFEXITED(status)
    assert not ended or os.WEXITSTATUS(status) == 0
    with store.open_store(file, create=False) as opened:
        runs = {info.run: info.head for info in opened.runs()}
        if deed == "remove":
            assert runs == {} if ended else runs in ({}, {"r": 9, "old": 4}), runs
        else:
            assert {"r": 9, "old": 4}.items() <= runs.items()
            assert runs.get("new") == whole if ended else runs.get("new") in (None, whole), runs
        assert opened.verify() == []
        rows = opened._gate.rows("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'")
        assert rows == [(12,)], rows
        if not ended and "r" in runs and "new" not in runs:
            do(opened)
            assert opened.verify() == []
    for end in ("", "-wal", "-shm", ".lock"):
        if os.path.exists(file + end):
            os.unlink(file + end)
    if ended:
        break
print(n)
"""


@pytest.mark.parametrize(("deed", "least"), [("fork", 30), ("adopt", 30), ("remove", 15)])
def test_a_kill_at_any_statement_leaves_all_or_nothing(
    tmp_path: Path, child: Start, deed: str, least: int
) -> None:
    statements = int(child(KILL_AT_EVERY_STATEMENT, tmp_path, deed).finish())
    assert statements > least


actions = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "fork", "fork", "create", "adopt", "reopen"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=5),
    ),
    max_size=25,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=actions, data=st.data())
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_trees_of_forks_read_as_plain_lists(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    actions: list[tuple[str, int, int, list[str]]],
    data: st.DataObject,
) -> None:
    file = tmp_path_factory.mktemp("forks") / "events.db"
    store: EventStore = open_store(file) if kind == "sqlite" else MemoryStore()
    model: dict[str, list[NewEvent]] = {}
    parents: dict[str, tuple[str | None, int]] = {}
    for number, (action, which, where, paths) in enumerate(actions):
        events = [NewEvent(f"T{path}", path, (number, n)) for n, path in enumerate(paths)]
        names, new = list(model), f"run {number}"
        if action == "reopen":
            if kind == "sqlite":
                store.close()
                store = open_store(file)
        elif action == "adopt":
            assert store.adopt_run(new, "n", number, [(1, e) for e in events]) == len(events)
            model[new], parents[new] = events, (None, 0)
        elif action == "create" or not names:
            assert store.create_run(new, "n", events, at=number) == len(events)
            model[new], parents[new] = events, (None, 0)
        elif action == "fork":
            parent = names[which % len(names)]
            seq = 1 + where % len(model[parent])
            model[new], parents[new] = model[parent][:seq] + events, (parent, seq)
            head = store.fork_run(new, "n", parent, seq, events, at=number)
            assert head == len(model[new])
        else:
            run = names[which % len(names)]
            model[run] = model[run] + events
            assert store.append(run, len(model[run]) - len(events), events) == len(model[run])
    with store:
        assert [info.run for info in store.runs()] == list(reversed(model))
        for run, events in model.items():
            assert [plain(record) for record in store.read(run)] == events
            assert store.run(run)[3:] == (len(events), None, *parents[run])
            after = data.draw(st.integers(0, len(events) + 1))
            until = data.draw(st.integers(0, len(events) + 1))
            path = data.draw(st.sampled_from(["", "a", None]))
            types = data.draw(st.sampled_from([None, ["T"], ["Ta", "Tb"], ["T", "Tb"]]))
            wanted = [
                (seq, event)
                for seq, event in enumerate(events, 1)
                if path in (None, event.path) and (types is None or event.type in types)
            ]
            found = store.read(run, after=after, until=until, types=types, path=path)
            expected = [pair for pair in wanted if after < pair[0] <= until]
            assert [(record.seq, plain(record)) for record in found] == expected
            last = store.latest(run, types, path)
            assert (last and (last.seq, plain(last))) == (wanted[-1] if wanted else None)
            assert store.check(run, min(after, len(events))) == []
        assert store.verify() == []

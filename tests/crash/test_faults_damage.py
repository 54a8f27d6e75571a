"""Files that were cut, and bytes that flipped: right, refused or told, but never wrong in silence.

Rules: places are drawn by a seeded generator. What counts as a word: an error of kitchen's when the
store is used, or a finding of `verify`. A state is never wrong at all; metrics of long ago, which
resuming does not check, and the record itself may be, where `verify` tells. Clock times are in no
chain, so a changed one goes unseen.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import KitchenError, UnknownRun
from tests.crash import faults

SECONDS = 30  # nothing here takes one; what does hang is ended


class Shelf(NamedTuple):
    """A store with a run that ended and one that was killed, all in one file."""

    store: Path
    content: bytes
    read: dict[str, Any]
    clock: Any
    resumed: Any


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    store = folder / "base.db"
    kitchen.run(faults.trained, store=store, run_id="done", seed=1)
    faults.killed(store, 23, "killed")
    faults.fold_wal(store)
    read = {run: faults.told(store, run) for run in ("done", "killed")}
    assert len(read["done"][1]) > 250
    copy = faults.copied(store, folder / "copy.db")
    resumed = faults.ended(kitchen.resume("killed", store=copy))
    return Shelf(store, store.read_bytes(), read, clock(store), resumed)


def clock(store: Path) -> Any:
    with opened(store, read_only=True) as events:
        infos = [(info.run, info.name, info.created_at) for info in events.runs()]
        return infos, [[e.at for e in events.read(run)] for run, *_ in infos]


@contextmanager
def patience() -> Generator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(use: Callable[[], Any]) -> Any:
    """What it gives, or the error of kitchen's; any other leaves here, and fails the test."""
    with patience():
        try:
            return use()
        except KitchenError as error:
            told = error
    assert str(told).strip()
    return told


def placed(shelf: Shelf, content: bytes) -> Path:
    """The store with this content, beside blobs that are whole."""
    store = shelf.store.with_name("wounded.db")
    for side in ("", "-wal", "-shm"):
        Path(f"{store}{side}").unlink(missing_ok=True)
    store.write_bytes(content)
    blobs = Path(f"{store}.blobs")
    if not blobs.exists():
        shutil.copytree(f"{shelf.store}.blobs", blobs)
    return store


def judged(shelf: Shelf, content: bytes) -> tuple[str, list[Any]]:
    """What a store with this content is worth, in a word; and what `verify` says of it."""
    store = placed(shelf, content)
    read = attempt(lambda: {run: faults.told(store, run) for run in ("done", "killed")})
    told = attempt(lambda: faults.findings(store))
    times = attempt(lambda: clock(store))
    store = placed(shelf, content)
    resumed = attempt(lambda: faults.ended(kitchen.resume("killed", store=store)))
    refused = isinstance(told, KitchenError)
    found = [] if refused else told
    if not isinstance(resumed, KitchenError):
        assert resumed[:2] == shelf.resumed[:2], f"a wrong state after resuming; {found}"
        assert resumed == shelf.resumed or found, "wrong metrics without a word"
    if isinstance(read, KitchenError):
        assert refused or found, f"verify does not tell what makes reading fail: {read}"
        return "refused", found
    for run, (essence, _) in read.items():
        assert essence[1] == shelf.read[run][0][1], f"a wrong state of {run!r}; {found}"
    if read != shelf.read:
        assert found, "a wrong record without a word"
        return "read wrong, told by verify", found
    if found:
        return "read right, told by verify", found
    assert not refused, "verify refuses what can be read"
    return ("harmless" if times == shelf.clock else "another clock time"), found


@pytest.mark.slow
def test_a_byte_that_flipped(shelf: Shelf) -> None:
    """Among the bytes that are not zero: the rest is mostly room that nothing uses."""
    rng = random.Random(20)
    used = [place for place, byte in enumerate(shelf.content) if byte]
    classes: Counter[str] = Counter()
    named = 0
    for _ in range(250):
        content = bytearray(shelf.content)
        place, by = rng.choice(used), rng.randrange(1, 256)
        content[place] ^= by
        try:
            kind, found = judged(shelf, bytes(content))
        except BaseException as error:
            error.add_note(f"byte {place} by {by}: {shelf.content[place - 20 : place + 20]!r}")
            raise
        classes[kind] += 1
        named += any(finding.seq for finding in found)
    print(dict(classes), "naming an event:", named)  # the figures, with -rP
    assert classes["read right, told by verify"] > 50
    assert classes["refused"] > 25
    assert classes["harmless"] < 10
    assert named > 125


@pytest.mark.slow
def test_a_file_that_was_cut(shelf: Shelf) -> None:
    rng = random.Random(4)
    size = len(shelf.content)
    cuts = [1, 50, 100, 512, 4095, 4096, size - 1, size - 4096]
    cuts += [rng.randrange(1, size) for _ in range(60)]
    cuts += [rng.randrange(1, size // 4096) * 4096 for _ in range(30)]
    classes = Counter(judged(shelf, shelf.content[:cut])[0] for cut in cuts)
    assert classes["refused"] == len(cuts), classes


def test_a_file_that_was_emptied(shelf: Shelf) -> None:
    store = placed(shelf, b"")
    assert "empty or of an older format" in str(attempt(lambda: faults.findings(store)))
    error = attempt(lambda: kitchen.resume("killed", store=store))
    assert isinstance(error, UnknownRun)
    assert "is this the store that you meant?" in str(error)


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        ("UPDATE snapshots SET body = CAST(replace(body, 'steps', 'stepz') AS BLOB)", "snapshot"),
        ("UPDATE snapshots SET seq = seq - 1", "snapshot"),
        ("UPDATE types SET name = 'StateAppendex' WHERE name = 'StateAppended'", "chain"),
        ("UPDATE types SET name = CAST(x'52ff' AS TEXT) WHERE name = 'MetricRecorded'", "chain"),
        ("UPDATE types SET name = 'RunStartex' WHERE name = 'RunStarted'", "chain"),
        ("UPDATE paths SET name = 'enochs/batches' WHERE name = 'epochs/batches'", "chain"),
        ("UPDATE runs SET sealed_seq = 0 WHERE run = 'done'", "head"),
        ("UPDATE runs SET name = CAST(x'ff' AS TEXT) WHERE run = 'done'", "head"),
        ("UPDATE events SET visit = CAST(x'30ff' AS TEXT) WHERE visit = '1.1'", "chain"),
        ("DROP TRIGGER events_refuse_update", "integrity"),
        ("DROP VIEW event_log", "integrity"),
        ("DROP TABLE snapshots", "integrity"),
    ],
)
def test_what_is_outside_the_chain(shelf: Shelf, deed: str, what: str) -> None:
    """The same by hand, for what a random byte seldom meets."""
    store = placed(shelf, shelf.content)
    db = sqlite3.connect(store, isolation_level=None)
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    if deed.startswith("UPDATE"):
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
    db.execute(deed)
    if deed.startswith("UPDATE"):
        for _, sql in triggers:
            db.execute(sql)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    kind, found = judged(shelf, store.read_bytes())
    assert kind in ("refused", "read right, told by verify", "read wrong, told by verify")
    assert what in {finding.kind for finding in found}, found


def prefix_of(store: Path, whole: list[Any]) -> int:
    """How many events of the run are left; they are the first ones, each as it was."""
    try:
        left = faults.told(store, "r")[1]
    except UnknownRun:
        return 0
    # a rewind to come has not yet said what no longer counts
    assert [event[:-1] for event in left] == [event[:-1] for event in whole[: len(left)]]
    return len(left)


@pytest.mark.slow
def test_a_wal_that_was_cut_or_removed(tmp_path: Path) -> None:
    """What was written last is gone; what is left is a run that was killed earlier."""
    base = tmp_path / "base.db"
    faults.killed(base, 8)
    faults.fold_wal(base)
    faults.killed(base, 15)
    events = faults.told(faults.copied(base, tmp_path / "look.db", sides=True), "r")[1]
    whole = faults.ended(kitchen.run(faults.trained, store=tmp_path / "w.db", seed=1))
    size = Path(f"{base}-wal").stat().st_size
    rng = random.Random(6)
    lefts: list[int] = []
    for number, cut in enumerate(
        [None, 0, 10, 32, size, *(rng.randrange(size) for _ in range(25))]
    ):
        store = faults.copied(base, tmp_path / f"{number}.db", sides=True)
        wal = Path(f"{store}-wal")
        if number % 2:  # the machine is down, or only the process
            Path(f"{store}-shm").unlink()
        if cut is None:
            wal.unlink()
        else:
            wal.write_bytes(wal.read_bytes()[:cut])
        lefts.append(prefix_of(store, events))
        assert faults.findings(store) == []
        assert faults.ended(kitchen.resume("r", store=store)) == whole
        assert faults.findings(store) == []
        shutil.rmtree(f"{store}.blobs")
    assert lefts[4] == len(events)
    assert lefts[0] == lefts[1] == min(lefts) > 20
    assert len(set(lefts)) > 8


@pytest.mark.slow
def test_a_wal_that_was_cut_behind_a_checkpoint(tmp_path: Path) -> None:
    """Older pages come over newer ones then, which no WAL can tell: right, refused or told."""
    base = tmp_path / "base.db"
    faults.killed(base, 8)
    faults.fold_wal(base)
    faults.killed(base, 15)
    db = sqlite3.connect(base)
    reader = sqlite3.connect(base)  # so that closing leaves the WAL where it is
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    cut_from = faults.copied(base, tmp_path / "from.db", sides=True)
    reader.close()
    db.close()
    events = faults.told(faults.copied(cut_from, tmp_path / "look.db", sides=True), "r")[1]
    whole = faults.ended(kitchen.run(faults.trained, store=tmp_path / "w.db", seed=1))
    size = Path(f"{cut_from}-wal").stat().st_size
    rng = random.Random(7)
    classes: Counter[str] = Counter()
    for number in range(25):
        store = faults.copied(cut_from, tmp_path / f"{number}.db", sides=True)
        Path(f"{store}-shm").unlink()
        wal = Path(f"{store}-wal")
        wal.write_bytes(wal.read_bytes()[: rng.randrange(size)])
        found = attempt(lambda store=store: faults.findings(store))
        told = isinstance(found, KitchenError) or found != []
        left = attempt(lambda store=store: prefix_of(store, events))
        resumed = attempt(lambda store=store: faults.ended(kitchen.resume("r", store=store)))
        if isinstance(resumed, UnknownRun):
            assert left == 0 or isinstance(left, KitchenError)
            classes["empty"] += 1
        elif isinstance(resumed, KitchenError):
            assert told or left == 0
            classes["refused"] += 1
        else:
            assert resumed[:2] == whole[:2]
            classes["told" if told else "right"] += 1
        shutil.rmtree(f"{store}.blobs")
    print(dict(classes))
    assert sum(classes.values()) == 25

"""Disks that are full or cannot be written, and blobs that are not what they were.

Rules: the disk is a real one, small or mounted read-only; where that cannot be had, a limit on the
size of files stands in for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import BlobLost, KitchenError, StoreError
from kitchen.history.history import History
from tests.crash import faults
from tests.runner.running import python

PAGE = 4096


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run comes to that met no fault."""
    store = tmp_path_factory.mktemp("whole") / "k.db"
    kitchen.run(faults.trained, store=store, run_id="r", seed=1)
    return faults.essence(store)


@pytest.fixture(autouse=True)
def no_hooks() -> Iterator[None]:
    yield
    faults.HOOK.clear()


def leave(disk: Path, size: int) -> None:
    """Fill the disk but for so many bytes."""
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - size))


def started(store: Path) -> KitchenError | None:
    """Run it; what it ended with."""
    try:
        kitchen.run(faults.trained, store=store, run_id="r", seed=1)
    except KitchenError as error:
        return error
    return None


def told_of_the_disk(error: KitchenError, disk: Path) -> str:
    """Where it was full, in short; the error must say what, where and what to do."""
    told = str(error)
    assert "disk is full" in told or "No space left" in told, told
    assert str(disk / "k.db") in told
    assert "resume" in told
    assert "free some space" in told
    assert isinstance(error, StoreError)
    return "blob" if ".blobs" in told else "event"


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_place(
    tmp_path: Path, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Page by page less room at step 5: an event, a blob, a checkpoint, a snapshot do not fit."""
    places: set[str] = set()
    for pages in [*range(30), *range(30, 150, 8)]:
        with faults.small_disk(tmp_path / "disk", 4) as disk:
            faults.HOOK[:] = [faults.at_step(5, lambda disk=disk, n=pages: leave(disk, n * PAGE))]
            error = started(disk / "k.db")
            faults.HOOK.clear()
            assert error is not None, pages
            places.add(told_of_the_disk(error, disk))
            (disk / "filler").unlink()
            assert faults.findings(disk / "k.db") == []
            assert kitchen.resume("r", store=disk / "k.db").status == "completed"
            assert faults.essence(disk / "k.db") == whole
            assert not list((disk / "k.db.blobs").rglob(".tmp*"))
    assert places == {"event", "blob"}


def test_a_snapshot_that_does_not_fit_costs_nothing(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are there, so the run goes on, and is not slower to resume than without it."""
    from kitchen.log import journal

    with faults.small_disk(tmp_path / "disk", 4) as disk:
        monkeypatch.setattr(journal, "EVERY", 10)
        tried: list[int] = []
        save = journal.Journal._cache

        def cached(self: Any, facts: Any) -> None:
            due = self.state.seq - self._snapshot_at >= self._due
            if due and not tried:
                tried.append(self.state.seq)
                leave(disk, 0)
                save(self, facts)
                (disk / "filler").unlink()
            else:
                save(self, facts)

        monkeypatch.setattr(journal.Journal, "_cache", cached)
        assert started(disk / "k.db") is None
        assert tried
        assert [r.message for r in caplog.records if "snapshot" in r.message]
        assert faults.essence(disk / "k.db") == whole
        assert faults.findings(disk / "k.db") == []


LIMITED = """
import resource, signal, sys
import kitchen
from tests.crash import faults
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2])
faults.HOOK.append(faults.at_step(
    5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))))
try:
    kitchen.run(faults.trained, store=sys.argv[1], run_id="r", seed=1)
except kitchen.KitchenError as error:
    cause = error if isinstance(error, kitchen.StoreError) else error.__cause__
    print(type(cause).__name__, error)
"""


@pytest.mark.parametrize("limit", [1_000, 60_000, 200_000, 400_000])
def test_a_limit_on_the_size_of_files(tmp_path: Path, whole: Any, limit: int) -> None:
    store = tmp_path / "k.db"
    process = python(["-c", LIMITED, store, limit], tmp_path)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.startswith("StoreError "), (out, errors)
    assert str(store) in out
    assert faults.findings(store) == []
    assert kitchen.resume("r", store=store).status == "completed"
    assert faults.essence(store) == whole


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with a run that ended, one that was killed, and its copy without a -shm."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    kitchen.run(faults.trained, {"epochs": 1}, store=folder / "closed.db", run_id="r", seed=1)
    faults.killed(folder / "hot.db", 9)
    faults.copied(folder / "hot.db", folder / "bare.db", sides=True)
    (folder / "bare.db-shm").unlink()
    return folder


def test_a_store_that_cannot_be_written_can_be_read(tmp_path: Path, shelf: Path) -> None:
    with faults.read_only(shelf, tmp_path / "view") as view:
        for name, status in (("closed", "completed"), ("hot", "crashed")):
            with opened(view / f"{name}.db", read_only=True) as events:
                past = History(events, "r")
                assert past.status == status
                assert past.state_at()["steps"] >= 6
                assert events.verify() == []
                assert [info.run for info in events.runs()] == ["r"]
        with pytest.raises(StoreError, match=r"bare\.db-wal .*copy the store, its -wal"):
            with opened(view / "bare.db", read_only=True):
                pass


def test_nothing_runs_on_a_store_that_cannot_be_written(tmp_path: Path, shelf: Path) -> None:
    ran: list[int] = []
    faults.HOOK.append(lambda ctx: ran.append(1))
    with faults.read_only(shelf, tmp_path / "view") as view:
        for use in (
            lambda: kitchen.resume("r", store=view / "hot.db"),
            lambda: kitchen.run(faults.trained, store=view / "closed.db", run_id="q"),
            lambda: kitchen.run(faults.trained, store=view / "new.db"),
        ):
            with pytest.raises(StoreError, match=r"not writable for this process.*change the perm"):
                use()
    assert ran == []
    assert not (shelf / "new.db").exists()


UNPRIVILEGED = """
import os, sys
import kitchen
from tests.crash import faults
from kitchen.history.history import History
from store import open_store
folder = sys.argv[1]
kitchen.run(faults.trained, {"epochs": 0}, store=folder + "/warm/k.db")  # all is imported by now
faults.HOOK[:] = [lambda ctx: print("ran")]
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
for name in ("closed", "hot"):
    store = f"{folder}/shelf/{name}.db"
    try:
        print(name, faults.essence(store)[0])
    except kitchen.KitchenError as error:
        print(name, type(error).__name__, error)
    try:
        kitchen.run(faults.trained, store=store, run_id="q")
    except kitchen.StoreError as error:
        print(error)
"""


def test_a_store_of_somebody_else(tmp_path: Path, shelf: Path) -> None:
    """Files and folder without the right to write, for a user who has no other."""
    (tmp_path / "warm").mkdir()
    above = [tmp_path, *tmp_path.parents] if os.geteuid() == 0 else []
    rights = {place: place.stat().st_mode for place in above}
    for file in shelf.iterdir():
        file.chmod(0o555 if file.is_dir() else 0o444)
    shelf.chmod(0o555)
    try:
        for place in above:
            place.chmod(rights[place] | 0o011)
        process = python(["-c", UNPRIVILEGED, tmp_path], tmp_path)
        out, errors = process.communicate()
    finally:
        shelf.chmod(0o755)
        for file in shelf.iterdir():
            file.chmod(0o755 if file.is_dir() else 0o644)
        for place in above:
            place.chmod(rights[place])
    assert process.returncode == 0, errors
    lines = [line for line in out.splitlines() if "hint" not in line]
    assert lines[0] == "closed completed"
    assert lines[2] == "hot crashed"
    for line in (lines[1], lines[3]):
        assert "not writable for this process" in line
    assert "ran" not in lines


def damaged(blob: Path, how: str) -> None:
    content = bytearray(blob.read_bytes())
    if how == "missing":
        blob.unlink()
    elif how == "altered":
        content[len(content) // 2] ^= 1
        blob.write_bytes(content)
    else:
        blob.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["missing", "altered", "truncated"])
def test_a_blob_that_is_not_what_it_was_is_never_used(tmp_path: Path, whole: Any, how: str) -> None:
    store = tmp_path / "k.db"
    faults.killed(store, 15)
    with opened(store, read_only=True) as events:
        blobs = {str(blob): len(events.blobs.get(blob)) for blob in events.blobs.digests()}
        resume_needs = 0
    for number, digest in enumerate(blobs):
        copy = faults.copied(store, tmp_path / f"{number}.db", sides=True)
        damaged(Path(f"{copy}.blobs") / digest[:2] / digest[2:], how)
        found = faults.findings(copy)
        assert found
        assert all(finding.kind.startswith("blob") and finding.seq for finding in found)
        assert all(digest in finding.what for finding in found)
        try:
            assert faults.ended(kitchen.resume("r", store=copy)) == whole
        except KitchenError as error:
            fault = error
        else:
            continue
        resume_needs += 1
        told = str(fault)
        assert digest in told
        assert "missing" in told or "damaged" in told
        assert "Restore it from a copy" in told or "bring it back beside the store" in told
        assert isinstance(fault, BlobLost) or "BlobLost" in told or "ResourceError" in told
    assert 0 < resume_needs < len(blobs), "some are needed, and some are of the past"

"""Other processes: writers in the way, kills inside a system call, children that live on, clocks.

Rules: nothing here waits for a time to pass, but for the lock that is held for ten seconds, which
is what is tested. A kill inside a system call is strace's, at a call that is counted; where there
is no strace, or it may not trace, the test is skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.errors import StoreError
from kitchen.history.history import History
from store import open_store
from tests.crash import faults
from tests.runner.running import ROOT, python


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run comes to that met no fault."""
    return faults.ended(
        kitchen.run(faults.trained, store=tmp_path_factory.mktemp("whole") / "k.db", seed=1)
    )


@pytest.fixture(autouse=True)
def no_hooks() -> Iterator[None]:
    yield
    faults.HOOK.clear()


# --- a writer in the way ------------------------------------------------------------------------

HOLD = """
import sqlite3, sys, threading
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    db.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    threading.Event().wait(float(line))
    db.execute("COMMIT")
"""


def held(holder: subprocess.Popen[str], seconds: float) -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(f"{seconds}\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = python(["-c", HOLD, tmp_path / "k.db"], tmp_path)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_lock_held_for_ten_seconds_is_waited_for(
    tmp_path: Path, whole: Any, holder: subprocess.Popen[str]
) -> None:
    faults.HOOK.append(faults.at_step(5, lambda: held(holder, 10)))
    started = time.monotonic()
    run = kitchen.run(faults.trained, store=tmp_path / "k.db", seed=1)
    assert time.monotonic() - started >= 10
    assert faults.ended(run) == whole


def test_a_lock_held_for_longer_is_told_with_its_holder(
    tmp_path: Path, whole: Any, holder: subprocess.Popen[str]
) -> None:
    faults.HOOK.append(faults.at_step(5, lambda: held(holder, 600)))
    with open_store(tmp_path / "k.db", busy_timeout=0.2) as store:
        with pytest.raises(StoreError) as caught:
            kitchen.run(faults.trained, store=store, run_id="r", seed=1)
        told = str(caught.value)
        assert "database is locked" not in told
        assert "held by another writer for more than 0.2 s, and nothing was written" in told
        if sys.platform == "linux":
            assert f"process {holder.pid} (" in told
            assert "import sqlite3" in told
        assert "then resume the run" in told
        # a lease of another run meets the same
        with pytest.raises(StoreError, match="held by another writer"):
            kitchen.run(faults.trained, store=store, run_id="q")
        holder.kill()
        holder.wait()
        faults.HOOK.clear()
        assert faults.ended(kitchen.resume("r", store=store)) == whole


# --- a kill inside a system call ----------------------------------------------------------------

CALLS = "pwrite64,fsync,fdatasync,rename,renameat,renameat2,ftruncate,mkdir,unlink"
RUN = """
import sys, kitchen
from store import log, connection
from tests.crash import faults
if len(sys.argv) > 2:  # a checkpoint of the WAL every few pages
    make = connection._set_durability
    def often(raw, durability):
        make(raw, durability)
        raw.execute("PRAGMA wal_autocheckpoint = 8")
    connection._set_durability = often
kitchen.run(
    faults.trained, {"epochs": 2}, store=sys.argv[1], run_id="r", seed=1, if_exists="resume"
)
"""


def traced(store: Path, *options: str) -> subprocess.CompletedProcess[str]:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    return subprocess.run(
        [
            *(strace, "-f", "-qq", "-o", f"{store}.trace", *options),
            *(sys.executable, "-c", RUN, str(store), "often"),
        ],
        cwd=store.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the system calls that a whole run makes, in order."""
    store = tmp_path_factory.mktemp("calls") / "k.db"
    done = traced(store, "-e", f"trace={CALLS}")
    trace = Path(f"{store}.trace")
    if done.returncode or not trace.exists():
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    return [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if "(" in line]


@pytest.mark.slow
def test_a_kill_at_a_system_call(tmp_path: Path, calls: list[str]) -> None:
    """In the creation of the file, at checkpoints of the WAL, around the renaming of blobs."""
    short = kitchen.run(faults.trained, {"epochs": 2}, store=tmp_path / "w.db", seed=1)
    whole = faults.ended(short)
    by_name: dict[str, list[int]] = {}
    counts: Counter[str] = Counter()
    for call in calls:
        name = call.split("(")[0]
        counts[name] += 1
        by_name.setdefault(name, []).append(counts[name])
    # the first ones make the file; later ones are spread over the run
    chosen = [("pwrite64", n) for n in by_name["pwrite64"][:10:3]]
    for name, numbers in by_name.items():
        chosen += [(name, n) for n in numbers[1 :: max(1, len(numbers) // 3)]]
    assert {"pwrite64", "fsync"} <= by_name.keys() & {name for name, _ in chosen}
    killed: Counter[str] = Counter()
    leftovers = 0
    for number, (name, at) in enumerate(chosen):
        store = tmp_path / f"{number}.db"
        done = traced(store, "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={at}")
        if done.returncode == 0:
            continue  # threads share the calls in another order each time
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed[name] += 1
        leftovers += len(list(tmp_path.glob(f"{number}.db.blobs/*/.tmp*")))
        again = faults.kitchen.run(
            faults.trained, {"epochs": 2}, store=store, run_id="r", seed=1, if_exists="resume"
        )
        assert faults.ended(again) == whole, (name, at)
        assert faults.findings(store) == [], (name, at)
    assert sum(killed.values()) > len(chosen) // 2
    assert leftovers, "no kill came between a blob's file and its name"


# --- eight processes, one store -----------------------------------------------------------------

EIGHT = """
import sys, time
import kitchen
from tests.crash import faults
store, who, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
end, done = time.monotonic() + seconds, 0
while time.monotonic() < end:
    kitchen.run(faults.trained, store=store, run_id=f"{who}-{done}", seed=int(who))
    done += 1
print(done)
"""


def eight(folder: Path, seconds: float) -> tuple[int, int, list[str]]:
    """Eight processes that write to one new store, for so long; events, bytes, runs."""
    store = folder / "k.db"
    writers = [python(["-c", EIGHT, store, who, seconds], folder) for who in range(8)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate() for writer in writers]
    for writer, (out, errors) in zip(writers, said, strict=True):
        assert writer.returncode == 0, errors
        assert errors == ""
        assert int(out) >= 1
    names = [f"{who}-{done}" for who, (out, _) in enumerate(said) for done in range(int(out))]
    with opened(store, read_only=True) as events:
        assert sorted(info.run for info in events.runs()) == sorted(names)
        assert {info.owner for info in events.runs()} == {None}
        count = sum(events.head(name) for name in names)
        assert events.verify() == []
    for name in names:
        alone = kitchen.run(faults.trained, store=folder / f"{name[0]}.db", run_id="r",
                            seed=int(name[0]), if_exists="resume")  # fmt: skip
        assert faults.essence(store, name) == faults.ended(alone), name
    return count, store.stat().st_size, names


@pytest.mark.slow
def test_eight_processes_write_to_one_new_store_for_eight_seconds(tmp_path: Path) -> None:
    started = time.perf_counter()
    count, size, runs = eight(tmp_path, 8)
    took = time.perf_counter() - started
    print(f"{count} events of {len(runs)} runs, {size} bytes; {took:.1f} s with all checks")
    assert len(runs) >= 8


# --- children that live on ----------------------------------------------------------------------

FAMILY = """
import multiprocessing, os, subprocess, sys, threading
import kitchen
from tests.crash import faults

def wait(*_):
    sys.stdin.read()

def load(pipe):  # a data loader's worker: it answers, and waits for more
    pipe.send(pipe.recv())
    os.read(held, 1)

held = int(sys.argv[3])

def fork(ctx):
    pid = os.fork()
    if not pid:
        os.read(held, 1)
        os._exit(0)
    return pid

def worker(ctx):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=load, args=(theirs,))
    process.start()
    ours.send(1)
    assert ours.recv() == 1
    return process.pid

def command(ctx):
    return subprocess.Popen(
        [sys.executable, "-c", "import os; os.read(0, 1)"], stdin=held, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).pid

def begets(ctx):
    if ctx.state["steps"] == 9:
        print(globals()[sys.argv[2]](ctx), flush=True)
        faults.die()

faults.HOOK.append(begets)
kitchen.run(faults.trained, store=sys.argv[1], run_id="r", seed=1)
"""


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and is waited for by nobody, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", ["fork", "worker", "command"])
def test_a_child_that_outlives_a_killed_run_holds_nothing(
    tmp_path: Path, whole: Any, kind: str
) -> None:
    store = tmp_path / "k.db"
    theirs, ours = os.pipe()
    os.set_inheritable(theirs, True)
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FAMILY, str(store), kind, str(theirs)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        pass_fds=[theirs],
        text=True,
    )
    os.close(theirs)
    try:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        assert alive(grandchild)
        with opened(store, read_only=True) as events:
            assert History(events, "r").status == "crashed"
        assert faults.ended(kitchen.resume("r", store=store)) == whole
        assert faults.findings(store) == []
        assert alive(grandchild), "it was there all the time"
    finally:
        os.close(ours)  # which ends the grandchild too
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()


# --- clocks -------------------------------------------------------------------------------------


def backwards(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Every look at the clock is earlier than the last, by so many nanoseconds."""
    looks = iter(range(10**9))
    first = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: first - next(looks) * step)
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)


def test_a_clock_that_goes_backwards(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, shown: Callable[..., list[str]]
) -> None:
    store = tmp_path / "k.db"
    faults.killed(store, 9)
    with monkeypatch.context() as patch:
        backwards(patch, 3_600_000_000_000)
        assert faults.ended(kitchen.resume("r", store=store)) == whole
    assert faults.findings(store) == []
    with opened(store, read_only=True) as events:
        records = list(events.read("r"))
        times = [record.at for record in records]
        assert times != sorted(times)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        past = History(events, "r")
        assert [point.step for point in past.metrics("loss")] == list(range(1, 25))
        assert past.status == "completed"
    for words in (("runs",), ("show", "r"), ("log", "r"), ("show", "r", "--json")):
        text = "\n".join(shown(store, *words))
        assert "Traceback" not in text
        assert not any(f"-{digit}" in part for digit in range(10) for part in durations(text)), text


def durations(text: str) -> list[str]:
    """The words that tell a duration: a number and its unit."""
    units = ("ms", "s", "min", "h", "d")
    return [
        word for word in text.split() if word.lstrip("-")[:1].isdigit() and word.endswith(units)
    ]


@pytest.fixture
def shown() -> Callable[..., list[str]]:
    def call(store: Path, *words: str) -> list[str]:
        from click.testing import CliRunner

        from kitchen.cli import cli

        result = CliRunner().invoke(cli, [*words, "--store", str(store)])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()

    return call

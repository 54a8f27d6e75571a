"""runs, show, log, state, graph and verify: from the log alone, without the user's code."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kitchen.cli.render import builtin, preview
from tests.cli.calling import Kitchen, kill, until


@pytest.fixture
def read(kitchen: Kitchen) -> Kitchen:
    """A completed run `one`, whose module is gone."""
    kitchen("run", kitchen.target, "--id", "one", "label=x")
    kitchen.forget()
    return kitchen


def test_runs(read: Kitchen) -> None:
    listed = read("runs").stdout
    assert listed.splitlines()[0].split()[:3] == ["ID", "WORKFLOW", "STATUS"]
    assert listed.splitlines()[1].split()[:3] == ["one", "training", "completed"]
    (one,) = read.json("runs")
    assert (one["id"], one["status"], one["owner"]) == ("one", "completed", None)
    assert read.json("runs", "--status", "failed") == []
    assert "no runs that are failed" in read("runs", "--status", "failed").stderr


def test_runs_lists_the_newest_last_and_says_that_there_are_more(kitchen: Kitchen) -> None:
    for name in "abc":
        kitchen("run", kitchen.target, "--id", name, "epochs=1", "batches=1", "--quiet")
    result = kitchen("runs", "-n", "2")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ID", "b", "c"]
    assert "1 older ones: --all" in result.stderr
    assert [one["id"] for one in kitchen.json("runs", "--all")] == ["a", "b", "c"]


def test_show(read: Kitchen) -> None:
    told = read.json("show", "one")
    assert told["status"] == "completed"
    assert told["config"]["label"] == "x"
    assert told["config"]["model"] == {"width": 8}
    assert told["state"]["n"] == "6"
    assert told["metrics"]["loss"]["step"] == 6
    assert told["checkpoint"]["at"] == "epochs[1]/save"
    assert told["superseded"] == 0
    assert "resume" not in told
    printed = read("show", "one").stdout
    assert "one  completed" in printed
    assert "epochs[1]/save" in printed


def test_a_unique_prefix_is_enough(kitchen: Kitchen) -> None:
    for name in ("one-1", "one-2", "one"):
        kitchen("run", kitchen.target, "--id", name, "epochs=1", "batches=1", "--quiet")
    assert kitchen.json("show", "one")["id"] == "one"
    assert kitchen.json("show", "one-2")["id"] == "one-2"
    result = kitchen("show", "on", code=2)
    assert "'on' is the beginning of 3 runs:\n  one-1\n  one-2\n  one" in result.stderr


def test_log(read: Kitchen) -> None:
    lines = read("log", "one").stdout.splitlines()
    assert "RunStarted" in lines[0]
    assert "training" in lines[0]
    assert "RunCompleted" in lines[-1]
    assert any("epochs[1]/batches[2]/step  n=6" in line for line in lines)
    metrics = read("log", "one", "--type", "MetricRecorded", "-n", "2").stdout.splitlines()
    assert len(metrics) == 2
    assert "(step 6)" in metrics[-1]
    inside = read("log", "one", "--path", "epochs/batches", "--after", "30").stdout.splitlines()
    assert inside
    assert all("epochs[" in line and "/batches" in line for line in inside)
    events = [
        msgspec.json.decode(line) for line in read("log", "one", "--json").stdout.splitlines()
    ]
    assert [event["seq"] for event in events] == list(range(1, len(lines) + 1))
    assert all(event["counts"] for event in events)
    assert read("log", "one", "-f").stdout.splitlines() == lines


def test_log_names_the_near_event_type(read: Kitchen) -> None:
    result = read("log", "one", "--type", "MetricsRecorded", code=2)
    assert "did you mean 'MetricRecorded'?" in result.stderr


def test_state(read: Kitchen) -> None:
    assert read.json("state", "one") == {
        "n": 6,
        "raw": {"bytes": base64.b64encode(b"\0\xff").decode()},
    }
    assert read("state", "one", "n").stdout == "6\n"
    assert read("state", "one", "n", "--at", "11").stdout == "1\n"
    assert read("state", "one", "--at", "1").stderr == "(the state is empty)\n"
    assert "has no key 'm'" in read("state", "one", "m", code=2).stderr
    assert "has the events 1 to" in read("state", "one", "--at", "999", code=2).stderr


def test_graph(read: Kitchen) -> None:
    assert read("graph", "one").stdout.startswith("flowchart TD\n")
    assert "└── checkpoint save" in read("graph", "one", "--format", "tree").stdout
    assert "there is no module" in read("graph", read.target, code=2).stderr


def test_graph_of_code(kitchen: Kitchen) -> None:
    assert "stage step" in kitchen("graph", kitchen.target, "--format", "tree").stdout
    assert not (kitchen.folder / "kitchen.db").exists()


def test_verify(read: Kitchen) -> None:
    assert read("verify").stdout == "1 run(s) verified, nothing found\n"
    assert read.json("verify", "one") == []


@pytest.mark.parametrize(
    "command", ["runs", "show x", "log x", "state x", "graph x", "verify", "resume x"]
)
def test_no_store_is_told_and_none_is_made(kitchen: Kitchen, command: str) -> None:
    result = kitchen(*command.split(), code=2)
    assert f"there is no store at {kitchen.folder / 'kitchen.db'}" in result.stderr
    assert "KITCHEN_STORE" in result.stderr
    assert sorted(path.suffix for path in kitchen.folder.iterdir()) in ([".py"], [".py", ""])


def test_the_store_is_named_by_option_or_variable(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen("run", kitchen.target, "--id", "one", "--store", "other.db", "--quiet")
    assert kitchen.json("show", "one", "--store", "other.db")["id"] == "one"
    monkeypatch.setenv("KITCHEN_STORE", "other.db")
    assert kitchen.json("show", "one")["id"] == "one"
    assert not (kitchen.folder / "kitchen.db").exists()


def test_an_unknown_run(read: Kitchen) -> None:
    for command in ("show", "log", "state", "graph", "verify", "resume"):
        result = read(command, "tone", code=2)
        assert "no run 'tone'" in result.stderr
        assert "'one'" in result.stderr


def test_reading_writes_nothing(read: Kitchen) -> None:
    file = read.folder / "kitchen.db"
    before = file.read_bytes()
    for words in (["runs"], ["show", "one"], ["log", "one"], ["state", "one"], ["verify"]):
        read(*words)
    assert file.read_bytes() == before


def test_following_a_run_that_is_killed(kitchen: Kitchen) -> None:
    process = kitchen.slow_run("one")
    following = kitchen.start("log", "one", "-f", "--type", "StageCompleted")
    head = kitchen.head("one")
    until(lambda: kitchen.head("one") > head + 30)
    assert kitchen.json("runs", "--status", "running")[0]["owner"]["pid"] == process.pid
    kill(process)
    out, err = following.communicate(timeout=20)
    assert following.returncode == 0
    assert "has crashed" in err
    done = kitchen("log", "one", "--type", "StageCompleted").stdout
    assert out == done
    told = kitchen.json("show", "one")
    assert told["status"] == "crashed"
    assert told["resume"] == "kitchen resume one"
    assert told["at"][0].startswith("epochs[1]/batches[")
    (kitchen.folder / "slow").unlink()
    kitchen("resume", "one")
    marked = [line for line in kitchen("log", "one").stdout.splitlines() if line.startswith("~")]
    assert len(marked) == kitchen.json("show", "one")["superseded"] > 0
    assert kitchen("log", "one", "--json").stdout.count('"counts":false') == len(marked)


def test_a_reader_that_goes_away_is_no_error(read: Kitchen) -> None:
    for _ in range(3):
        command = f"{sys.executable} -m kitchen log one | head -n 1"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1
        assert done.returncode == 0


def test_values_as_json() -> None:
    numpy = pytest.importorskip("numpy")
    array = builtin(numpy.zeros((2, 3), "float32"))
    assert (array["dtype"], array["shape"], len(array["sha256"])) == ("float32", [2, 3], 64)
    assert builtin(numpy.float64(0.5)) == 0.5
    assert builtin({"a": (1, {2}), "b": float("nan")}) == {"a": [1, [2]], "b": "nan"}
    assert builtin({1: b"x"}) == {"entries": [[1, {"bytes": "eA=="}]]}
    assert builtin(1 + 2j) == {"complex": [1.0, 2.0]}
    assert preview(list(range(1000))) == "list of 1000"
    assert preview("x" * 100).endswith("...")
    assert len(preview("x" * 100)) == 60


def test_what_no_terminal_can_show(tmp_path: Path) -> None:
    """In real processes, since a test's own streams take anything."""
    source = (
        "import kitchen\n"
        "def s(ctx):\n"
        "    ctx.state['big'] = 10**5000\n"
        "    ctx.state['lone'] = '\\ud800x'\n"
        "@kitchen.workflow\n"
        "def w(wf): wf.stage('s', s)\n"
    )
    (tmp_path / "odd.py").write_text(source)
    for words in (["run", "odd:w", "--id", "a"], ["show", "a"], ["log", "a"], ["state", "a"]):
        told = subprocess.run(
            [sys.executable, "-m", "kitchen", *words],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "Traceback" not in told.stderr
    assert "0x31e2" in told.stdout
    assert r"\ud800x" in told.stdout

"""run and resume: what they print, how they end, and that they can be killed at any time."""

from __future__ import annotations

import os
import pty
import signal
import termios
import time

import pytest

from kitchen.cli.plain import PlainLines
from kitchen.machine.events import Address
from tests.cli.calling import DEADLINE, Kitchen, kill, until


def test_a_run_tells_its_start_its_checkpoints_and_its_end(kitchen: Kitchen) -> None:
    lines = kitchen("run", kitchen.target, "--id", "one").stdout.splitlines()
    assert lines[0] == "run one started: training, seed 0"
    assert sum("checkpoint at seq" in line for line in lines) == 2
    assert lines[-1].startswith("run one completed: ")
    assert "loss=" in lines[-1]
    assert len(lines) < 10


def test_quiet(kitchen: Kitchen) -> None:
    result = kitchen("run", kitchen.target, "--quiet")
    assert result.output == ""


def test_config_and_seed_reach_the_run(kitchen: Kitchen) -> None:
    (kitchen.folder / "c.toml").write_text("epochs = 1\nbatches = 2\n")
    kitchen(
        "run", kitchen.target, "c.toml", "batches=4", "model.width=3", "--id", "a", "--seed", "7"
    )
    told = kitchen.json("show", "a")
    assert told["seed"] == 7
    assert (told["config"]["epochs"], told["config"]["batches"]) == (1, 4)
    assert told["config"]["model"] == {"width": 3}
    assert kitchen.json("state", "a")["n"] == 4


def test_a_workflow_without_a_config_type(kitchen: Kitchen) -> None:
    kitchen("run", f"{kitchen.module}:untyped", "a=1", "b.c=[1, 2]", "d=word", "--id", "u")
    assert kitchen.json("state", "u")["config"] == [1, [1, 2], "word"]


def test_a_failed_run(kitchen: Kitchen) -> None:
    words = ["run", kitchen.target, "fail_at=4", "--id", "one", "--store", "my.db"]
    result = kitchen(*words, code=1)
    assert "error: run 'one' failed at epochs[1]/batches[1]/step" in result.stderr
    assert "ValueError: the loss is gone" in result.stderr
    assert "kitchen resume one --store my.db" in result.stderr
    told = kitchen.json("show", "one", "--store", "my.db")
    assert told["failure"]["at"] == "epochs[1]/batches[1]/step"
    assert "Traceback" in told["failure"]["traceback"]
    assert "the loss is gone" in kitchen("show", "one", "--store", "my.db").stdout
    (kitchen.folder / "mended").touch()
    result = kitchen("resume", "one", "--store", "my.db")
    assert "resuming one after a failure at seq" in result.stdout
    assert "run one completed" in result.stdout


def test_debug_shows_the_traceback_on_either_side(kitchen: Kitchen) -> None:
    from click.testing import CliRunner

    from kitchen.cli import cli

    for words in (["--debug", "show", "x"], ["show", "x", "--debug"]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert "error: there is no store" in result.stderr


def test_the_same_command_again(kitchen: Kitchen) -> None:
    words = ["run", kitchen.target, "--id", "one"]
    kitchen(*words)
    head = kitchen.head("one")
    assert "there is a run 'one' already" in kitchen(*words, code=2).stderr
    again = kitchen(*words, "--if-exists", "resume")
    assert again.stdout == "run one was completed before: nothing to do\n"
    other = kitchen(*words, "--if-exists", "resume", "epochs=3", "--seed", "1", code=2)
    assert "config.epochs: recorded 2, asked for 3" in other.stderr
    assert "seed: recorded 0, asked for 1" in other.stderr
    assert kitchen("resume", "one").stdout == again.stdout
    assert kitchen.head("one") == head


def test_resume_offers_the_newest_unfinished_run(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "done")
    assert "there is no unfinished run" in kitchen("resume", code=2).stderr
    kitchen("run", kitchen.target, "fail_at=2", "--id", "first", code=1)
    kitchen("run", kitchen.target, "fail_at=2", "--id", "second", code=1)
    result = kitchen("resume", code=2)
    assert "second (training, failed, " in result.stderr
    assert result.stderr.index("second") < result.stderr.index("first")
    assert "done" not in result.stderr
    (kitchen.folder / "mended").touch()
    assert "run second completed" in kitchen("resume", "--yes").stdout
    assert "run first completed" in kitchen("resume", "fir").stdout


def test_a_pipe_gets_few_lines_and_its_end_does_not_end_the_run(kitchen: Kitchen) -> None:
    process = kitchen.start("run", kitchen.target, "batches=200", "--id", "one")
    assert process.stdout is not None
    assert process.stdout.readline() == "run one started: training, seed 0\n"
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert kitchen.json("show", "one")["status"] == "completed"


def test_a_display_that_fails_is_told_once_and_the_run_goes_on(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no glyphs")

    monkeypatch.setattr(PlainLines, "on_facts", fail)
    result = kitchen("run", kitchen.target, "--id", "one")
    assert result.stderr == "the display has failed, the run goes on: RuntimeError: no glyphs\n"
    assert "run one completed" in result.stdout


def test_lines_become_rarer_as_time_goes_by(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = PlainLines(clock=lambda: now)
    for _ in range(100_000):
        now += 0.1
        lines.on_progress("r", Address("step"), 1, 2)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["0.5s", "step", "1/2"]
    assert 1_000 < len(printed) < 1_500  # of 10,000 seconds


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_resumed(kitchen: Kitchen, number: signal.Signals, code: int) -> None:
    process = kitchen.slow_run("one")
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert "interrupted: run 'one' was interrupted at seq" in err
    assert "kitchen resume one" in err
    assert "Traceback" not in err
    assert kitchen.json("show", "one")["status"] == "interrupted"
    (kitchen.folder / "slow").unlink()
    resumed = kitchen("resume", "one").stdout
    assert resumed.startswith("resuming one after an interruption at seq")
    _equals_unkilled(kitchen)


def test_killed_and_resumed(kitchen: Kitchen) -> None:
    kill(kitchen.slow_run("one"))
    assert kitchen("verify").stdout == "1 run(s) verified, nothing found\n"
    kill(kitchen.start("resume", "one"))
    (kitchen.folder / "slow").unlink()
    first = kitchen("resume", "--yes").stdout.splitlines()[0]
    told = kitchen.json("show", "one")
    assert first.startswith("resuming one after a crash at seq ")
    assert "net was touched since the checkpoint at" in first
    assert told["rewinds"] >= 1
    _equals_unkilled(kitchen)


def _equals_unkilled(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "epochs=4", "batches=20", "--id", "unkilled", "--quiet")
    assert kitchen.outcome("one") == kitchen.outcome("unkilled")
    assert kitchen("verify").stdout == "2 run(s) verified, nothing found\n"


def test_a_run_that_another_process_holds(kitchen: Kitchen) -> None:
    process = kitchen.slow_run("one")
    for words in (
        ["resume", "one"],
        ["run", kitchen.target, "epochs=4", "batches=20", "--id", "one", "--if-exists", "resume"],
    ):
        result = kitchen(*words, code=1)
        assert f"held by process {process.pid}" in result.stderr
    kill(process)
    assert kitchen("log", "one", "--type", "RunResumed").stdout == ""


@pytest.mark.parametrize("ending", ["completes", "is interrupted", "fails"])
def test_a_terminal_gets_bars_and_is_left_as_it_was(kitchen: Kitchen, ending: str) -> None:
    (kitchen.folder / "slow").touch()
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    words = ["run", kitchen.target, "batches=15", "--id", "one"]
    words += ["fail_at=20"] if ending == "fails" else []
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "30"}
    process = kitchen.start(*words, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.set_blocking(master, False)
    seen = bytearray()
    if ending == "is interrupted":
        until(lambda: _read(master, seen) and kitchen.head("one") > 60)
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        _read(master, seen)
        time.sleep(0.01)
    _read(master, seen)
    after = termios.tcgetattr(slave)
    os.close(slave)
    os.close(master)
    text = seen.decode()
    assert process.returncode == {"completes": 0, "is interrupted": 130, "fails": 1}[ending], text
    assert after == before
    assert "run one started" in text
    assert "━" in text
    assert " left" in text
    assert "epochs[0]/batches[" in text
    assert "\x1b[?25l" not in text, "the cursor was hidden"
    assert "Traceback" not in text
    if ending == "is interrupted":
        assert "SIGINT: stopping after the running stage" in text
    last = text.rstrip().splitlines()[-1]
    assert {"completes": "run one completed", "is interrupted": "hint", "fails": "hint"}[
        ending
    ] in last
    assert text.endswith("\n")


def _read(master: int, seen: bytearray) -> bool:
    while True:
        try:
            seen += os.read(master, 65_536)
        except (BlockingIOError, OSError):
            return True


def test_plain_on_a_terminal_and_the_question_of_resume(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "fail_at=2", "--id", "one", code=1)
    (kitchen.folder / "mended").touch()
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm"}
    process = kitchen.start("resume", "--plain", stdin=slave, stdout=slave, stderr=slave, env=env)
    os.write(master, b"y\n")
    os.set_blocking(master, False)
    seen = bytearray()
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        _read(master, seen)
        time.sleep(0.01)
    _read(master, seen)
    os.close(slave)
    os.close(master)
    text = seen.decode()
    assert process.returncode == 0, text
    assert "resume one (training, failed, " in text
    assert "━" not in text
    assert "run one completed" in text

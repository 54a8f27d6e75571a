"""Cancelling, interrupting and waiting: what the terminal says of it, and the exit codes."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from kitchen.cli.exits import code_of
from kitchen.cli.stopping import Asked
from kitchen.errors import EffectUndecided, RunCancelled, RunError, RunHeld, RunInterrupted
from kitchen.machine.events import Failure
from kitchen.runner.stopping import GRACE
from tests.cli import troubled
from tests.cli.calling import DEADLINE, Kitchen, kill, until


@pytest.fixture
def module(kitchen: Kitchen) -> str:
    return troubled.write(kitchen)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunError("x"), 1),
        (RunHeld("x"), 1),
        (RunCancelled("x"), 3),
        (EffectUndecided("x"), 4),
        (RunError("x", run=SimpleNamespace(failure=Failure("EffectUndecided"))), 4),
        (RunError("x", run=SimpleNamespace(failure=Failure("ValueError"))), 1),
        (RunInterrupted("x", signal="SIGTERM"), 143),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert code_of(error) == code


# --- cancel -----------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_cancelled_from_outside(kitchen: Kitchen, module: str) -> None:
    process = kitchen.start("run", f"{module}:waiting", "--id", "waits-long")
    until(lambda: "RetryScheduled" in troubled.types(kitchen, "waits-long"))

    told = kitchen.json("show", "waits-long")
    assert told["status"] == "running"
    (retry,) = told["retries"]
    assert (retry["at"], retry["attempt"]) == ("limit/bad", "attempt 2 of 4")
    assert retry["after"] == "ValueError: not today"
    assert 0 < retry["left"] <= 1_000
    (limit,) = told["limits"]
    assert (limit["at"], limit["seconds"]) == ("limit", 5_000)
    assert 0 < limit["left"] < 5_000
    shown = kitchen("show", "waits-long").stdout
    assert "waiting to be tried again\n  limit/bad  attempt 2 of 4, at 20" in shown
    assert "time limits\n  limit  8" in shown
    assert " min left of 83 min" in shown

    ended = kitchen("cancel", "waits").stdout
    assert f"asking pid {process.pid} on " in ended
    assert "run waits-long was cancelled at seq " in ended
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3
    assert "limit/bad: attempt 2 of 4 in 17 min: ValueError: not today\n" in out
    assert err.startswith("cancelled: run 'waits-long' was cancelled at seq ")
    assert "a cancelled run is over; start another" in err


def test_a_cancelled_run_is_over(kitchen: Kitchen, module: str) -> None:
    kitchen("run", f"{module}:failing", "--id", "f", "-q", code=1)
    assert kitchen("cancel", "f").stdout.startswith("run f was cancelled at seq ")
    head = kitchen.head("f")
    assert kitchen("cancel", "f").stdout == "run f was cancelled before: nothing to cancel\n"
    for words in (
        ["resume", "f"],
        ["run", f"{module}:failing", "--id", "f", "--if-exists", "resume"],
    ):
        assert "cancelled: run 'f' was cancelled at seq" in kitchen(*words, code=3).stderr
    assert [one["id"] for one in kitchen.json("runs", "--status", "cancelled")] == ["f"]
    told = kitchen.json("show", "f")
    assert told["cancelled_by"].startswith(f"pid {os.getpid()} on ")
    assert "resume" not in told
    assert kitchen("show", "f").stdout.endswith(": it is over\n")
    assert f"RunCancelled          by pid {os.getpid()} on " in kitchen("log", "f").stdout
    assert "there is no unfinished run" in kitchen("resume", code=2).stderr
    assert kitchen.head("f") == head


def test_a_crashed_run_is_cancelled_here(kitchen: Kitchen, module: str) -> None:
    process = kitchen.start("run", f"{module}:hanging", "--id", "h")
    until(lambda: "StageStarted" in troubled.types(kitchen, "h"))
    (limit,) = kitchen.json("show", "h")["limits"]
    assert limit["at"] == "endless"
    assert 0 < limit["left"] < 5_000
    kill(process)
    assert kitchen.json("show", "h")["limits"] == []  # an attempt's time ends with the attempt
    assert "asking" not in kitchen("cancel", "h").stdout
    assert kitchen.json("show", "h")["status"] == "cancelled"


def test_what_cannot_be_cancelled(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "done", "-q")
    assert kitchen("cancel", "done").stdout == "run done was completed before: nothing to cancel\n"
    assert "no run 'x'" in kitchen("cancel", "x", code=2).stderr
    assert "there is no store" in kitchen("cancel", "x", "--store", "other.db", code=2).stderr


def test_a_run_that_does_not_end_in_time(kitchen: Kitchen, module: str) -> None:
    process = kitchen.start("run", f"{module}:held", "--id", "h")
    until(lambda: "StageStarted" in troubled.types(kitchen, "h"))
    result = kitchen("cancel", "h", "--wait", "0", code=1)
    assert "error: run 'h' has not ended within 0 s\n" in result.stderr
    assert f"held by process {process.pid}" in result.stderr
    assert "kitchen show h" in result.stderr
    kill(process)


# --- interruption -----------------------------------------------------------------------------------


def test_the_grace_period_is_said_and_kept(kitchen: Kitchen, module: str) -> None:
    process = kitchen.start("run", f"{module}:hanging", "--id", "h", "--grace", "0.01")
    until(lambda: "StageStarted" in troubled.types(kitchen, "h"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "stopped in the middle: endless\n" in out
    assert "SIGINT: stopping after the running stage (for 0.01 s at most); once more" in err
    assert "interrupted: run 'h' was interrupted at seq 4\n  hint: kitchen resume h\n" in err
    resuming = kitchen.start("resume", "h", "--grace", "0")
    until(lambda: "RunResumed" in troubled.types(kitchen, "h"))
    resuming.send_signal(signal.SIGTERM)
    resuming.communicate(timeout=DEADLINE)
    assert resuming.returncode == 143


def test_the_default_is_that_of_the_library(kitchen: Kitchen) -> None:
    assert GRACE == 30.0
    for command in ("run", "resume"):
        assert "30.0" in kitchen(command, "--help").stdout


def test_a_grace_period_that_is_none(kitchen: Kitchen, module: str) -> None:
    for wrong in ("-1", "nan", "soon"):
        kitchen("run", f"{module}:hanging", "--id", "h", "--grace", wrong, code=2)
    assert kitchen.head("h") == 0


@contextmanager
def handlers() -> Generator[list[str]]:
    """What the runner's handlers heard; the host's are put back."""
    heard: list[str] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {
        number: signal.signal(number, lambda n, _: heard.append(signal.Signals(n).name))
        for number in numbers
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_time_that_is_left_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    with handlers() as heard:
        asked = Asked(30.0, clock=lambda: now)
        for _ in range(3):
            asked.listen()
        assert asked.told is None
        signal.raise_signal(signal.SIGUSR1)
        assert asked.told == (
            "SIGUSR1: saving what has changed as soon as nothing runs, then going on"
        )
        asked.saved()
        assert asked.told is None
        signal.raise_signal(signal.SIGUSR1)
        now = 110.0
        assert asked.told is None  # nothing had changed, and nothing says so
        now = 100.0
        signal.raise_signal(signal.SIGTERM)
        now = 107.0
        assert asked.told == (
            "SIGTERM: stopping after the running stage (for 23 s at most); once more to end at once"
        )
        now = 131.0
        assert asked.told is not None
        assert "the grace period is over, what runs is being stopped" in asked.told
        assert capfd.readouterr().err == ""
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == "\nSIGINT: ended at once\n"
        assert heard == ["SIGUSR1", "SIGUSR1", "SIGTERM", "SIGINT"]  # each once, by the runner


@pytest.mark.parametrize("again", [False, True])
def test_a_terminal_counts_what_is_waited_for(kitchen: Kitchen, module: str, again: bool) -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    name = "held" if again else "waiting"
    words = ["run", f"{module}:{name}", "--id", "w", "--grace", "3000"]
    process = kitchen.start(*words, stdin=slave, stdout=slave, stderr=slave, env=env)
    seen = bytearray()

    def shows(text: str) -> bool:
        with suppress(OSError):  # among them that there is nothing to read
            seen.extend(os.read(master, 65_536))
        return text in seen.decode(errors="replace")

    until(lambda: shows("stubborn" if again else "limit/bad  waits: attempt 2 of 4 in 17 min"))
    process.send_signal(signal.SIGUSR1)
    until(lambda: shows("SIGUSR1: saving what has changed"))
    process.send_signal(signal.SIGINT)
    until(lambda: shows("SIGINT: stopping after the running stage (for 50 min at most)"))
    if again:
        process.send_signal(signal.SIGINT)
        until(lambda: shows("SIGINT: ended at once"))
    else:
        until(lambda: shows("interrupted: ") or shows("kitchen resume w"))
    process.wait(DEADLINE)
    os.close(slave)
    os.close(master)
    assert process.returncode == 130
    assert kitchen.json("show", "w")["status"] == ("crashed" if again else "interrupted")

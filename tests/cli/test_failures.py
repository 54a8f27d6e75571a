"""What the command line tells of failures: retries, rewinds, handlers, rollbacks, and why it failed."""

from __future__ import annotations

import pytest

from tests.cli import troubled
from tests.cli.calling import DEADLINE, Kitchen


@pytest.fixture
def module(kitchen: Kitchen) -> str:
    return troubled.write(kitchen)


def test_a_failed_run_is_shown_whole(kitchen: Kitchen, module: str) -> None:
    result = kitchen("run", f"{module}:failing", "--id", "f", "--store", "my db", code=1)
    assert (
        "steps[0]/broken: attempt 2 of 3 in 0.0 s: ExceptionGroup: both (2 sub-exceptions)\n"
        "steps[0]/broken: attempt 3 of 3 in 0.0 s: ExceptionGroup: both (2 sub-exceptions)\n"
    ) in result.stdout
    assert "hint: kitchen show f --store 'my db', then kitchen resume f --store 'my db'" in (
        result.stderr
    )
    kitchen.forget()
    (kitchen.folder / f"{module}.py").unlink()

    told = kitchen.json("show", "f", "--store", "my db")
    assert told["resume"] == "kitchen resume f --store 'my db'"
    failure = told["failure"]
    assert (failure["at"], failure["path"], failure["visit"]) == (
        "steps[0]/broken", "steps/broken", [0],
    )  # fmt: skip
    assert [(one["attempt"], one["ended"]) for one in failure["attempts"]] == [
        (1, "failed"), (2, "failed"), (3, "failed"),
    ]  # fmt: skip
    assert failure["retries"] == {"used": 2, "of": 2, "waits": [0.002, 0.004]}
    assert [tuple(one.values()) for one in failure["discarded"]] == [
        ("n", "put", "0", "99"),
        ("seen", "append", "[1]", "[2]"),
        ("names", "merge", "{}", '{"a": 1}'),
        ("old", "delete", '"x"', "(deleted)"),
        ("loss", "put", "(not there)", '"nan"'),
    ]
    traceback = failure["traceback"]
    assert f'File "{module}.py", line' in traceback  # relative to the project
    assert traceback.index("KeyError: 'k'") < traceback.index("direct cause")
    assert traceback.index("direct cause") < traceback.index("RuntimeError: no k")
    assert traceback.index("RuntimeError: no k") < traceback.index("ValueError: and this")
    assert str(kitchen.folder) not in traceback

    shown = kitchen("show", "f", "--store", "my db").stdout
    for part in (
        "failed at steps[0]/broken\n  ExceptionGroup: both (2 sub-exceptions)\n  |   + Exception",
        "retries used: 2 of 2, after 0.0 s, 0.0 s\n",
        "attempts there\n  attempt 1  seq ",
        "what the failed attempt would have written, after what the state has\n"
        "  n      0            ->  99\n"
        "  seen   [1]          +   [2]\n"
        '  names  {}           |   {"a": 1}\n'
        '  old    "x"          ->  (deleted)\n'
        '  loss   (not there)  ->  "nan"\n',
    ):
        assert part in shown
    assert shown.endswith("to go on: kitchen resume f --store 'my db'\n")


def test_the_budget_that_is_shown_is_that_since_the_last_resume(
    kitchen: Kitchen, module: str
) -> None:
    kitchen("run", f"{module}:failing", "--id", "f", code=1)
    kitchen("resume", "f", code=1)
    failure = kitchen.json("show", "f")["failure"]
    assert failure["retries"]["used"] == 2
    assert [one["attempt"] for one in failure["attempts"]] == [1, 2, 3, 4, 5, 6]
    (kitchen.folder / "mended").touch()
    assert "run f completed" in kitchen("resume", "f").stdout
    told = kitchen.json("show", "f")
    assert (told["failure"], told["state"]["seen"]) == (None, "[1, 2, 2]")


def test_what_is_taken_care_of_is_told_with_what_it_cost(kitchen: Kitchen, module: str) -> None:
    printed = kitchen("run", f"{module}:recovering", "--id", "r")
    expected = [
        "steps[2]/flaky: attempt 2 of 4: ConnectionError: the service is away",
        "optional failed and is skipped: ValueError: not today",
        "limit failed: StageTimeout: the block limit took longer than its 0.01 s; limit ends, and "
        "its handler goes on",
        "limit has ended; its failure is handled",
    ]
    lines = printed.stdout.splitlines()
    assert [line for line in lines if line in expected] == expected
    (rewound,) = [line for line in lines if line.startswith("rewound")]
    assert "as net had been touched: " in rewound
    assert rewound.endswith(" events and 2 stages are done again")
    assert printed.stderr == ""  # it is not logged as well

    incidents = kitchen.json("show", "r")["incidents"]
    assert incidents["counts"] == {"rewound": 1, "skipped": 1, "block_failed": 1, "handled": 1}
    superseded = kitchen.json("show", "r")["superseded"]
    assert incidents["events_again"] == superseded > 0
    assert f" {superseded} events and 2 stages" in rewound
    shown = kitchen("show", "r").stdout
    assert "what went wrong on the way\n" in shown
    assert f": {superseded} events done again (net had been touched)" in shown
    assert "optional  skipped: ValueError: not today" in shown


def test_the_log_says_each_of_it_in_a_line(kitchen: Kitchen, module: str) -> None:
    kitchen("run", f"{module}:recovering", "--id", "r", "-q")
    kitchen("run", f"{module}:compensating", "--id", "c", "-q", code=1)
    log = kitchen("log", "r").stdout
    for line in (
        "steps[2]/flaky  ConnectionError: the service is away",
        "RetryScheduled      steps[2]/flaky  at once",
        "at once, counted from seq ",
        "StageSkipped        optional  ValueError: not today",
        "TimeLimitStarted    limit  0.01 s",
        "StageInterrupted    limit/slow",
        "BlockFailed         limit  ends the block, from limit: StageTimeout: the block limit took",
        "FailureHandled      limit",
    ):
        assert line in log
    log = kitchen("log", "c").stdout
    for line in (
        "ends the run, from bad: ValueError: not today  (2 to roll back)",
        "StageRolledBack     kept  not possible: OSError: it is not mine",
        "StageRolledBack     gone\n",
    ):
        assert line in log


def test_a_run_that_was_rolled_back_is_over(kitchen: Kitchen, module: str) -> None:
    failed = kitchen("run", f"{module}:compensating", "--id", "c", code=1)
    assert (
        "bad failed: ValueError: not today; rolling back 2 stages\n"
        "kept could not be rolled back: OSError: it is not mine\n"
        "gone is rolled back\n"
    ) in failed.stdout
    assert "kitchen show c; its completed stages were rolled back" in failed.stderr
    assert "kitchen resume" not in failed.stderr
    told = kitchen.json("show", "c")
    assert told["taken_back"] is True
    assert "resume" not in told
    assert told["incidents"]["counts"] == {"block_failed": 1, "rolled_back": 2}
    assert kitchen("show", "c").stdout.endswith("cannot be resumed; start another run\n")
    assert "there is no unfinished run" in kitchen("resume", code=2).stderr
    assert "rolled back" in kitchen("resume", "c", code=1).stderr


def test_a_run_that_died_while_it_was_rolled_back(kitchen: Kitchen, module: str) -> None:
    (kitchen.folder / "dies").touch()
    kitchen.start("run", f"{module}:compensating", "--id", "c").communicate(timeout=DEADLINE)
    told = kitchen.json("show", "c")
    assert told["status"] == "crashed"
    (failing,) = told["failing"]
    assert (failing["block"], failing["ends"], failing["at"]) == ("the run", "run", "bad")
    assert failing["undo"] == ["kept", "gone"]
    shown = kitchen("show", "c").stdout
    assert (
        "the run is ending: bad failed\n  ValueError: not today\n  to be rolled back: kept, gone\n"
    ) in shown
    assert shown.endswith("to go on: kitchen resume c\n")
    (kitchen.folder / "dies").unlink()
    assert "gone is rolled back\n" in kitchen("resume", "c", code=1).stdout


def test_an_exception_that_cannot_say_what_it_is(kitchen: Kitchen, module: str) -> None:
    kitchen("run", f"{module}:wordless", "--id", "w", code=1)
    failure = kitchen.json("show", "w")["failure"]
    assert failure["type"] == f"{module}.Mute"
    assert failure["message"] == "(its text cannot be had: RuntimeError)"

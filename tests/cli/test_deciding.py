"""Effects that must not happen twice: what the command line says of a run that waits for a decision."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from kitchen.cli.deciding import decisions
from kitchen.cli.exits import Usage
from tests.cli import troubled
from tests.cli.calling import DEADLINE, Kitchen, kill, until


@pytest.fixture
def module(kitchen: Kitchen) -> str:
    return troubled.write(kitchen)


@pytest.fixture
def stopped(kitchen: Kitchen, module: str) -> Kitchen:
    """A run `p` that was killed in the middle of `e[0]/push`."""
    (kitchen.folder / "dies").touch()
    process = kitchen.start("run", f"{module}:pushing", "--id", "p")
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGKILL
    return kitchen


@pytest.mark.parametrize(
    ("decided", "changes", "expected"),
    [
        ([], [], {}),
        (["a=retry"], [], {"a": "retry"}),
        (["a=skip"], [], {"a": {}}),
        (["e[2]/a=skip"], ["k=1", "w=word"], {"e[2]/a": {"k": 1, "w": "word"}}),
        (["a=skip", "b=retry"], ['k={"x": [1]}'], {"a": {"k": {"x": [1]}}, "b": "retry"}),
        (["a=skip", "b=skip"], ["b:k=1", "a:k=2"], {"a": {"k": 2}, "b": {"k": 1}}),
        (["a=skip"], ["a:k=1", "c=x=y"], {"a": {"k": 1, "c": "x=y"}}),
    ],
)
def test_the_words_become_a_decision(
    decided: list[str], changes: list[str], expected: dict[str, Any]
) -> None:
    assert decisions(decided, changes) == expected


@pytest.mark.parametrize(
    ("decided", "changes", "message"),
    [
        (["a"], [], "neither PATH=retry nor PATH=skip"),
        (["a=maybe"], [], "neither PATH=retry nor PATH=skip"),
        (["a=skip", "a=retry"], [], "decided twice"),
        (["a=skip"], ["k"], "is not KEY=VALUE"),
        ([], ["k=1"], "belongs to a stage that is skipped, and none is"),
        (["a=retry"], ["k=1"], "belongs to a stage that is skipped, and none is"),
        (["a=skip", "b=skip"], ["k=1"], "may belong to a or b"),
    ],
)
def test_what_is_not_clear_is_refused(decided: list[str], changes: list[str], message: str) -> None:
    with pytest.raises(Usage, match=message):
        decisions(decided, changes)


def test_a_run_that_waits_is_listed_and_shown_without_its_code(stopped: Kitchen) -> None:
    for file in stopped.folder.glob("job_*.py"):
        file.unlink()
    assert stopped("runs").stdout.splitlines()[1].split()[:3] == ["p", "pushing", "undecided"]
    assert [one["id"] for one in stopped.json("runs", "--status", "undecided")] == ["p"]
    assert stopped.json("runs", "--status", "crashed") == []
    told = stopped.json("show", "p")
    assert (told["status"], told["undecided"]) == ("undecided", ["e[0]/push"])
    assert told["resume"] == "kitchen resume p --decide 'e[0]/push=retry'"
    assert told["resume_skipping"] == "kitchen resume p --decide 'e[0]/push=skip'"
    assert stopped("show", "p").stdout.endswith(
        "must not happen twice, and may have happened\n  e[0]/push\n"
        "if it has not, to run it again:   kitchen resume p --decide 'e[0]/push=retry'\n"
        "if it has, to go on behind it:    kitchen resume p --decide 'e[0]/push=skip'\n"
        "  and --set KEY=VALUE for what it would have put into the state\n"
    )
    assert "p (pushing, undecided, " in stopped("resume", code=2).stderr
    followed = stopped("log", "p", "--follow").stderr
    assert followed == "run 'p' has stopped, and waits for a decision\n"


def test_nothing_goes_on_without_a_decision(stopped: Kitchen) -> None:
    head = stopped.head("p")
    for words in (["resume", "p"], ["resume", "--yes"]):
        result = stopped(*words, code=4)
        assert result.stderr.startswith("undecided: run 'p' cannot go on")  # and no plan before it
        assert "kitchen resume p --decide 'e[0]/push=retry'\n" in result.stderr
        assert "kitchen resume p --decide 'e[0]/push=skip'\n" in result.stderr
    assert "did you mean" in stopped("resume", "p", "--decide", "e[1]/push=retry", code=2).stderr
    assert stopped.head("p") == head


def test_it_runs_again_where_that_is_decided(stopped: Kitchen) -> None:
    printed = stopped("resume", "p", "--decide", "e/push=retry").stdout
    assert "e[0]/push runs again, as was decided\n" in printed
    assert stopped.json("state", "p") == {"pushed": 1}
    assert "EffectDecided       e[0]/push  retry" in stopped("log", "p").stdout


def test_it_is_skipped_with_what_it_would_have_done(stopped: Kitchen) -> None:
    words = ["--decide", "e[0]/push=skip", "--set", "other=[1, 2]", "--set", "name=word"]
    printed = stopped("resume", "p", *words).stdout
    assert "e[0]/push is skipped, as was decided; set: other, name\n" in printed
    assert "e[0]/push must not happen twice: what it did holds" in printed
    assert stopped.json("state", "p") == {"other": [1, 2], "name": "word", "pushed": 1}
    log = stopped("log", "p").stdout
    assert 'EffectDecided       e[0]/push  skip: other=[1, 2], name="word"' in log
    assert "known: it did not run again" in log
    (decided,) = stopped.json("show", "p")["incidents"]["last"]
    assert (decided["at"], decided["told"]) == ("e[0]/push", "decided: skip")


def test_one_that_took_too_long_ends_the_run(kitchen: Kitchen, module: str) -> None:
    (kitchen.folder / "hangs").touch()
    failed = kitchen("run", f"{module}:pushing", "--id", "p", code=4)
    assert failed.stderr.startswith("undecided: run 'p' failed at e[0]/push\n")
    assert "kitchen resume p --decide 'e[0]/push=skip'\n" in failed.stderr
    told = kitchen.json("show", "p")
    assert (told["status"], told["failure"]["type"]) == ("undecided", "EffectUndecided")
    (attempt,) = told["failure"]["attempts"]
    assert (attempt["ended"], attempt["type"]) == ("undecided", "StageTimeout")
    assert [one["key"] for one in told["failure"]["discarded"]] == ["pushed"]
    shown = kitchen("show", "p").stdout
    assert "StageTimeout: took longer than its timeout of 0.05 s  (undecided)" in shown
    assert "(1 change discarded)  (undecided)" in kitchen("log", "p").stdout


def test_several_are_decided_each_for_itself(kitchen: Kitchen, module: str) -> None:
    process = kitchen.start("run", f"{module}:two_pushes", "--id", "t")
    until(lambda: troubled.types(kitchen, "t").count("StageStarted") == 2)
    assert kitchen.json("show", "t")["status"] == "running"
    kill(process)
    assert kitchen.json("show", "t")["undecided"] == ["both/left", "both/right"]
    both = ["--decide", "both/left=skip", "--decide", "both/right=skip"]
    told = kitchen("resume", "t", *both[:2], code=4).stderr
    assert "\n  both/right\n" in told
    assert "may belong to both/left or both/right" in kitchen(
        "resume", "t", *both, "--set", "a=1", code=2
    ).stderr  # fmt: skip
    kitchen("resume", "t", *both, "--set", "both/left:a=1", "--set", "both/right:b=2")
    assert kitchen.json("state", "t") == {"a": 1, "b": 2}

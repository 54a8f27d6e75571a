"""resume --at, resume --plan and fork: another way from an earlier event, told before it is gone."""

from __future__ import annotations

import json
import shlex
import signal

import pytest

from tests.cli import troubled
from tests.cli.calling import DEADLINE, Kitchen, until


@pytest.fixture
def failed(kitchen: Kitchen) -> Kitchen:
    """A run `one` that failed at epochs[1]/batches[1]/step, and would not fail again."""
    kitchen("run", kitchen.target, "fail_at=4", "--id", "one", code=1)
    (kitchen.folder / "mended").touch()
    return kitchen


@pytest.fixture
def done(kitchen: Kitchen) -> Kitchen:
    """A completed run `one`; seq 30 lies where its second epoch begins, which is a cut."""
    kitchen("run", kitchen.target, "--id", "one", "--quiet")
    return kitchen


def _again(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[0] == "kitchen"
    return words[1:]


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_tells_what_is_kept_rewound_and_done_again(failed: Kitchen) -> None:
    head = failed.head("one")
    plan = failed.json("resume", "one", "--plan")
    assert (plan["head"], plan["goes_on"], plan["status"]) == (head, True, "failed")
    assert [one["name"] for one in plan["touched"]] == ["net"]
    assert plan["touched"][0]["where"] == "epochs[1]/batches[0]/step"
    assert [(one["path"], one["completed"]) for one in plan["again"]] == [
        ("epochs/batches/step", 1)
    ]
    told = failed("resume", "one", "--plan").stdout
    assert f"keeps  what counts of the events 1 to {plan['cut']}, of {head}\n" in told
    assert "rewinds  " in told
    assert f"net  first by epochs[1]/batches[0]/step  seq {plan['touched'][0]['seq']}\n" in told
    assert "epochs/batches/step  1 completed" in told
    assert told.endswith("to do it: kitchen resume one\n")
    assert failed.head("one") == head
    result = failed(*_again(plan["command"]))
    assert result.stdout.startswith(f"{plan['told']}\n")
    assert f"rewound to seq {plan['cut']}" in result.stdout


def test_the_plan_is_one_line_before_a_run_is_taken_up_by_run(failed: Kitchen) -> None:
    told = failed.json("resume", "one", "--plan")["told"]
    words = ["run", failed.target, "fail_at=4", "--id", "one", "--if-exists", "resume"]
    assert failed(*words).stdout.startswith(f"{told}\n")


def test_quiet_says_nothing_of_the_plan(failed: Kitchen) -> None:
    assert failed("resume", "one", "--quiet").output == ""


def test_the_command_of_a_plan_with_edits_does_what_it_says(done: Kitchen) -> None:
    words = ["resume", "one", "--at", "30", "rate=0.5", "--state", "n=40", "--seed", "3"]
    result = done(*words, "--plan", "--store", "kitchen.db")
    assert "~ config" in result.stdout
    assert "~ seed = 3" in result.stdout
    assert "~ state.n" in result.stdout
    plan = json.loads(done(*words, "--plan", "--json", "--store", "kitchen.db").stdout)
    assert plan["asked"] == 30
    assert "--store kitchen.db" in plan["command"]
    done(*_again(plan["command"]))
    told = done.json("show", "one")
    assert (told["config"]["rate"], told["seed"], told["state"]["n"]) == (0.5, 3, "43")


def test_a_plan_where_there_is_nothing_to_do(done: Kitchen) -> None:
    assert "there is nothing to resume: it is completed" in done("resume", "one", "--plan").stdout
    assert done.json("resume", "one", "--plan")["command"] is None
    done("fork", "one", "--at", "30", "--id", "two")
    done("cancel", "two")
    told = done("resume", "two", "--plan", code=3).stdout
    assert "there is nothing to resume: it is cancelled" in told


def test_a_plan_of_a_workflow_that_has_changed_too_much_is_refused(failed: Kitchen) -> None:
    target = failed.variant(('wf.stage("step", step)', 'wf.stage("other", step)'))
    words = ["resume", "one", "--workflow", target, "--plan"]
    told = failed(*words, code=1).stdout
    assert "cannot go on: run 'one' cannot go on with workflow 'training' as it is now" in told
    assert "--rename OLD=NEW" in told
    assert json.loads(failed(*words, "--json", code=1).stdout)["command"] is None
    named = [*words, "--rename", "epochs/batches/step=epochs/batches/other"]
    told = failed(*named).stdout
    assert "→ epochs/batches/step -> epochs/batches/other" in told
    failed(*_again(json.loads(failed(*named, "--json").stdout)["command"]))
    log = failed("log", "one", "--type", "WorkflowChanged").stdout
    assert "renamed: epochs/batches/step -> epochs/batches/other" in log
    assert failed.json("show", "one")["checkpoint"]["at"] == "epochs[1]/save"
    assert failed.json("state", "one")["n"] == 6


def test_a_plan_of_a_run_that_waits_for_a_decision(kitchen: Kitchen) -> None:
    module = troubled.write(kitchen)
    (kitchen.folder / "dies").touch()
    kitchen.start("run", f"{module}:pushing", "--id", "p").communicate(timeout=DEADLINE)
    told = kitchen("resume", "p", "--plan", code=4).stdout
    assert "waits for a decision\n  e[0]/push\n" in told
    assert "kitchen resume p --decide 'e[0]/push=retry'" in told
    assert "leave --decide out" in kitchen(
        "resume", "p", "--plan", "--decide", "e/push=retry", code=2
    ).stderr  # fmt: skip


def test_a_plan_of_a_run_that_goes_on(kitchen: Kitchen) -> None:
    process = kitchen.slow_run("one")
    told = kitchen("resume", "one", "--plan", code=1).stdout
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert "another process executes it" in told


def test_a_plan_says_which_blobs_are_missing(kitchen: Kitchen) -> None:
    target = kitchen.variant(
        ('ctx.state["n"] = n\n', 'ctx.state["n"] = n; ctx.state["big"] = "x" * 99_999\n')
    )
    kitchen("run", target, "fail_at=4", "--id", "one", code=1)
    for blob in (kitchen.folder / "kitchen.db.blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    told = kitchen("resume", "one", "--plan", code=1).stdout
    assert "needed by state.big" in told
    assert "cannot go on before the missing blobs are back" in told


def test_json_is_for_plans(done: Kitchen) -> None:
    assert "--json is for --plan" in done("resume", "one", "--json", code=2).stderr


# --- resume --at ----------------------------------------------------------------------------------


def test_resumed_from_an_earlier_event_it_ends_as_a_fork_from_there_does(done: Kitchen) -> None:
    done("fork", "one", "--at", "30", "rate=0.5", "--id", "two", "--run")
    result = done("resume", "one", "--at", "30", "rate=0.5")
    assert "resuming one from seq 30, back from seq" in result.stdout
    assert "edited: config\n" in result.stdout
    assert done.outcome("one") == done.outcome("two")
    edit = done("log", "one", "--type", "RunEdited").stdout
    assert edit.rstrip().endswith("config.rate=0.5")
    rewound = done("log", "one", "--type", "RunRewound").stdout
    assert "to seq 30, as was asked: event 30 was asked for" in rewound


def test_edits_are_converted_and_checked_as_at_run(done: Kitchen) -> None:
    head = done.head("one")
    at = ["resume", "one", "--at", "30"]
    wrong = done(*at, "epochs=many", code=2).stderr
    assert "config.epochs: expected `int`, got `str`" in wrong
    assert "did you mean 'epochs'" in done(*at, "epoch=3", code=2).stderr
    assert "is a whole config" in done(*at, "c.toml", code=2).stderr
    assert "neither name=value nor" in done(*at, "word", code=2).stderr
    assert "--state 'n' is not KEY=VALUE" in done(*at, "--state", "n", code=2).stderr
    assert "did you mean 'raw'" in done(*at, "--state", "rav=1", code=2).stderr
    assert "--rename 'x' is not OLD=NEW" in done(*at, "--rename", "x", code=2).stderr
    assert "or --at SEQ" in done("resume", "one", "rate=1", code=2).stderr
    assert "has the events 1 to" in done("resume", "one", "--at", "999", code=2).stderr
    assert done.head("one") == head
    done(*at, "epochs=3", "model.width=4", "names=[a]", "label=null", code=2)  # [a] is no JSON
    done(*at, "epochs=3", "model.width=4", 'names=["a"]', "--quiet")
    told = done.json("show", "one")["config"]
    assert (told["epochs"], told["model"], told["names"]) == (3, {"width": 4}, ["a"])
    assert done.json("state", "one")["n"] == 6  # the collection was entered before event 30


def test_edits_without_types_need_no_code(kitchen: Kitchen) -> None:
    kitchen("run", f"{kitchen.module}:untyped", "a=1", "b.c=2", "d=x", "--id", "u", "--quiet")
    kitchen.forget()
    kitchen("fork", "u", "--at", "1", "b.c=[1, 2]", "d=env:HOME", "--id", "v")
    assert kitchen.json("show", "v")["config"]["b"] == {"c": [1, 2]}
    edit = kitchen("log", "v", "--type", "RunEdited").stdout
    assert "config.b.c=[1, 2], config.d=(a secret)" in edit


def test_what_was_superseded_counts_again_where_a_run_goes_back_there(done: Kitchen) -> None:
    first = done.head("one")
    done("resume", "one", "--at", "30", "rate=0.5", "--quiet")
    marked = [line for line in done("log", "one").stdout.splitlines() if line.startswith("~")]
    assert len(marked) == first - 30
    assert done.json("show", "one")["superseded"] == first - 30
    second = done.head("one")
    done("resume", "one", "--at", str(first - 1), "--quiet")
    counting = {
        event["seq"]: event["counts"]
        for event in map(json.loads, done("log", "one", "--json").stdout.splitlines())
    }
    assert all(counting[seq] for seq in range(1, first - 3))
    assert not any(counting[seq] for seq in range(first + 1, second + 1))
    told = done.json("show", "one")
    assert (told["rewinds"], told["config"]["rate"]) == (2, 0.1)
    sent = [one for one in told["incidents"]["last"] if one["what"] == "sent_back"]
    assert [one["events_again"] for one in sent] == [0, 0]
    assert f"sent back to seq 30: {first - 30} events no longer count" in sent[0]["told"]
    marked = sum(not counts for counts in counting.values())
    assert told["superseded"] == marked


def test_why_a_run_failed_is_told_behind_turns_and_in_forks(failed: Kitchen) -> None:
    (failed.folder / "mended").unlink()
    failed("resume", "one", code=1)
    failed("resume", "one", "--at", "30", "rate=0.5", code=1)
    told = failed.json("show", "one")["failure"]
    assert told["at"] == "epochs[1]/batches[1]/step"
    assert [one["counts"] for one in told["attempts"]] == [False, False, True]
    assert told["discarded"] == []
    failed("fork", "one", "--at", "30", "--id", "two", "--run", code=1)
    told = failed.json("show", "two")
    assert (told["status"], told["parent"], told["forked_at"]) == ("failed", "one", 30)
    assert told["failure"]["at"] == "epochs[1]/batches[1]/step"
    assert len(told["failure"]["attempts"]) == 1


# --- fork -----------------------------------------------------------------------------------------


def test_a_fork_says_where_it_begins_and_how_it_is_run(done: Kitchen) -> None:
    head = done.head("one")
    asked = done("fork", "one", "--at", "34", "rate=0.5", "--state", "n=7", "--id", "two")
    lines = asked.stdout.splitlines()
    assert lines[0] == "forked one at event 30 (asked for 34: net was touched since the cut) as two"
    assert lines[1:] == ["  ~ config.rate=0.5", "  ~ state.n=7", "to run it: kitchen resume two"]
    assert done.head("one") == head
    assert done("resume", "two").stdout.splitlines()[-1].startswith("run two completed")
    assert done.json("state", "two")["n"] == 10


def test_a_fork_of_where_a_run_stands_as_json(failed: Kitchen) -> None:
    made = failed.json("fork", "one", "--seed", "5", "--store", "kitchen.db")
    assert made["parent"] == "one"
    assert made["asked"] == failed.head("one")
    assert made["edits"] == ["seed=5"]
    assert made["resume"] == f"kitchen resume {made['id']} --store kitchen.db"
    (listed,) = failed.json("runs", "--status", "forked")
    assert (listed["parent"], listed["forked_at"]) == ("one", made["forked_at"])
    assert failed.json("resume", made["id"], "--plan")["status"] == "forked"


def test_forks_are_shown_under_their_parents(done: Kitchen) -> None:
    done("fork", "one", "--at", "30", "--id", "two")
    done("fork", "two", "--id", "three")
    done("fork", "one", "--at", "5", "--id", "four")
    lines = done("runs", "--tree").stdout.splitlines()
    assert [line.partition("  training")[0] for line in lines] == [
        "one", "├── at 30 two", "│   └── at 31 three", "└── at 5 four",
    ]  # fmt: skip
    assert done("runs").stdout.splitlines()[0].split()[-2:] == ["FORKED", "FROM"]
    assert done("runs").stdout.splitlines()[2].endswith("one at 30")
    assert "forked from two at 31" in done("runs", "--tree", "-n", "2").stdout
    assert "forked from  one at event 30\n" in done("show", "two").stdout
    assert "to go on: kitchen resume two\n" in done("show", "two").stdout


def test_the_newest_fork_is_offered(done: Kitchen) -> None:
    done("fork", "one", "--at", "30", "--id", "two")
    assert "two (training, forked, " in done("resume", code=2).stderr
    assert "run two completed" in done("resume", "--yes").stdout


def test_a_fork_that_is_run_ends_with_the_codes_of_resume(failed: Kitchen) -> None:
    (failed.folder / "mended").unlink()
    result = failed("fork", "one", "--at", "30", "--id", "two", "--run", code=1)
    assert "error: run 'two' failed at epochs[1]/batches[1]/step" in result.stderr
    assert "kitchen resume two" in result.stderr
    assert "run 'two' exists already" in failed("fork", "one", "--id", "two", code=2).stderr
    assert "do not go together" in failed("fork", "one", "--run", "--json", code=2).stderr
    assert "Did you mean 'one'" in failed("fork", "onn", code=2).stderr
    (failed.folder / "slow").touch()
    words = ["fork", "one", "--at", "5", "fail_at=-1", "batches=50", "--id", "three", "--run"]
    process = failed.start(*words)
    until(lambda: failed.head("three") > 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "kitchen resume three" in err
    assert failed.json("show", "three")["status"] == "interrupted"

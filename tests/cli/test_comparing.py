"""replay, diff, trace, show --tree and check: what a run did, looked at again."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

from kitchen.cli.tree import drawn
from tests.cli.calling import DEADLINE, WORKFLOW, Kitchen, until

CHANCE = ("ctx.rng.random()", '(time.time() if os.path.exists("chance") else ctx.rng.random())')
HANG = ("def step(ctx):\n", "async def step(ctx):\n    await hang()\n")
HANGING = """
async def hang():
    if os.path.exists("hang"):
        open("entered", "w").close()
        import anyio
        await anyio.sleep_forever()


class Model("""
ADAPTERS = """
fakes = {"scale": 2.0}
broken = 3


def doubled(config):
    return {"scale": config.rate * 20}


def own():
    return {"scale": 1.0}


@kitchen.workflow(config=Config, adapters=own)
def training("""
SCALED = (
    ("@kitchen.workflow(config=Config)\ndef training(", ADAPTERS),
    ("net.weight += ", 'net.weight += ctx.adapters["scale"] * '),
)


@pytest.fixture
def done(kitchen: Kitchen) -> Kitchen:
    """A completed run `one`."""
    kitchen("run", kitchen.target, "--id", "one", "--quiet")
    return kitchen


# --- replay ---------------------------------------------------------------------------------------


def test_replay_folds_without_the_code(done: Kitchen) -> None:
    done.forget()
    told = done("replay", "one").stdout
    assert told.startswith(f"folded one up to event {done.head('one')}, in ")
    assert "stage visits  6\n" in told
    assert told.endswith("no divergence\n")
    found = done.json("replay", "one", "--until", "20")
    assert (found["ok"], found["until"], found["divergences"]) == (True, 20, [])
    assert "has the events 1 to" in done("replay", "one", "--until", "999", code=2).stderr
    assert "there is no module" in done("replay", "one", "--execute", code=1).stderr


def test_replay_executes_what_is_the_same(done: Kitchen) -> None:
    head = done.head("one")
    told = done("replay", "one", "--execute").stdout
    assert told.startswith("executed one up to event")
    assert "bodies called  6\n" in told
    assert told.endswith("no divergence\n")
    assert done.head("one") == head


def test_replay_shows_the_first_divergence_and_counts_the_others(kitchen: Kitchen) -> None:
    target = kitchen.variant(CHANCE)
    kitchen("run", target, "--id", "one", "--quiet")
    (kitchen.folder / "chance").touch()
    lines = kitchen("replay", "one", "--execute", code=1).stdout.splitlines()
    shown = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines[5:11]}
    assert lines[4].startswith("the first divergence: ")
    assert shown["path"] == "epochs[0]/batches[0]/step"
    assert shown["visit"] == "0, 0"
    assert shown["key"] == "metric.loss"
    assert float(shown["recorded"]) < 1 < float(shown["found"])
    found = json.loads(kitchen("replay", "one", "--execute", "--json", code=1).stdout)
    assert found["divergences"][0]["seq"] == int(shown["seq"])
    assert f"and {len(found['divergences']) - 1} more:" in lines
    assert "  epochs/batches/step  metric.loss           5" in lines
    assert any("ctx.rng" in line for line in lines[-5:])


def test_replay_of_code_that_was_changed_names_the_stage(done: Kitchen) -> None:
    target = done.variant(('ctx.state["n"] = n\n', 'ctx.state["n"] = n + (n > 4)\n'))
    words = ["replay", "one", "--execute", "--workflow", target]
    found = json.loads(done(*words, "--json", code=1).stdout)
    first = found["divergences"][0]
    assert (first["path"], first["visit"], first["key"]) == (
        "epochs/batches/step",
        [1, 1],
        "state.n",
    )
    assert done(*words, "--until", "30").stdout.endswith("no divergence\n")
    assert done(*words, "--only", "epochs/save").stdout.endswith("no divergence\n")


def test_replay_with_other_adapters(kitchen: Kitchen) -> None:
    target = kitchen.variant(*SCALED)
    kitchen("run", target, "--id", "one", "--quiet")
    words = ["replay", "one", "--execute"]
    kitchen(*words)
    for name in ("fakes", f"{target.partition(':')[0]}:fakes", "doubled"):
        assert "metric.loss" in kitchen(*words, "--adapters", name, code=1).stdout
    kitchen(*words, "--adapters", "own")
    kitchen(*words, "--adapters", "fakes", "--tolerance", "0.6")
    assert "did you mean 'fakes'" in kitchen(*words, "--adapters", "fake", code=2).stderr
    assert "is a int" in kitchen(*words, "--adapters", "broken", code=2).stderr
    assert "importing nowhere failed" in kitchen(*words, "--adapters", "nowhere:x", code=2).stderr


def test_replay_refuses_what_needs_execution(done: Kitchen) -> None:
    for words in (["--only", "epochs"], ["--tolerance", "1"], ["--adapters", "x"]):
        assert f"{words[0]} is for --execute" in done("replay", "one", *words, code=2).stderr
    assert "did you mean 'epochs/batches'" in done(
        "replay", "one", "--execute", "--only", "epochs/batch", code=2
    ).stderr  # fmt: skip


def test_replay_is_ended_by_ctrl_c(kitchen: Kitchen) -> None:
    target = kitchen.variant(HANG, ("\n\nclass Model(", HANGING))
    kitchen("run", target, "--id", "one", "--quiet")
    head = kitchen.head("one")
    (kitchen.folder / "hang").touch()
    process = kitchen.start("replay", "one", "--execute")
    until((kitchen.folder / "entered").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert out + err.strip() == ""
    assert kitchen.head("one") == head


# --- diff -----------------------------------------------------------------------------------------


def test_diff_of_the_same(done: Kitchen) -> None:
    done("run", done.target, "fail_at=4", "--id", "two", code=1)
    done("run", done.target, "--id", "three", "--quiet")
    done.forget()
    assert done("diff", "one", "one").stdout.startswith("one and one are the same\n")
    assert done("diff", "one", "three").stdout.startswith("one and three are the same\n")
    assert done.json("diff", "one", "three")["same"] is True


def test_diff_tells_what_differs(done: Kitchen) -> None:
    done("run", done.target, "rate=0.5", "epochs=1", "--seed", "3", "--id", "two", "--quiet")
    told = done("diff", "one", "two", code=1).stdout
    lines = [line.split() for line in told.splitlines()]
    assert told.startswith("the first difference: ")
    assert ["seed", "0", "3"] in lines
    assert ["rate", "0.1", "0.5"] in lines
    assert ["n", "6", "3"] in lines
    assert "epochs/batches/step\n" in told
    metric = next(line for line in told.splitlines() if line.startswith("  metric loss"))
    assert "3 visits (first at 0, 0)" in metric
    assert "apart" in metric
    found = json.loads(done("diff", "one", "two", "--json", code=1).stdout)
    assert found["same"] is False
    assert found["config"] == [["epochs", "2", "1"], ["rate", "0.1", "0.5"]]
    assert found["first"]["path"].startswith("epochs")
    assert "Did you mean 'one'" in done("diff", "one", "onn", code=2).stderr


def test_diff_of_two_stores_and_with_a_tolerance(done: Kitchen) -> None:
    words = ["run", done.target, "rate=0.1000001", "--id", "one", "--store", "other.db", "--quiet"]
    done(*words)
    told = done("diff", "one", "one", "--other", "other.db", code=1).stdout
    assert "one (other)" in told
    found = json.loads(
        done(
            "diff", "one", "one", "--other", "other.db", "--tolerance", "1e-3", "--json", code=1
        ).stdout
    )
    assert found["paths"] == {}
    assert [field for field, *_ in found["config"]] == ["rate"]
    done.forget()
    missing = done("diff", "one", "one", "--other", "none.db", code=2).stderr
    assert f"there is no store at {done.folder / 'none.db'}" in missing


# --- trace and tree -------------------------------------------------------------------------------


def test_traces_of_runs_that_did_the_same_are_the_same(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one", "--quiet")
    kitchen("run", kitchen.target, "--id", "two", "--quiet")
    kitchen("resume", "two", "--at", "30", "--quiet")
    kitchen.forget()
    for level in ("stages", "events", "state"):
        told = kitchen("trace", "one", "--level", level).stdout
        assert told == kitchen("trace", "two", "--level", level).stdout
        assert "epochs[1]/batches[2]/step: completed\n" in told
        assert told.endswith("run completed\n")
    events = kitchen("trace", "one").stdout
    loss = kitchen.json("show", "one")["metrics"]["loss"]["value"]
    assert f"metric loss = {loss}" in events
    assert f"metric loss = {loss:.3g} at" in kitchen("trace", "one", "--digits", "3").stdout


def test_the_tree_of_visits(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "batches=20", "fail_at=25", "--id", "one", code=1)
    kitchen.forget()
    lines = kitchen("show", "one", "--tree").stdout.splitlines()
    assert lines[0].startswith("workflow training failed ")
    assert "└── loop epochs " in "\n".join(lines)
    assert "    │   │   ├── … 8 more" in lines
    assert any("step failed" in line for line in lines)
    everything = kitchen("show", "one", "--tree", "--all").stdout
    assert "more" not in everything
    assert everything.count("─ step ") == 26
    root = kitchen.json("show", "one", "--tree")
    assert (root["kind"], root["status"], root["name"]) == ("workflow", "failed", "training")


def test_a_deep_tree_is_drawn() -> None:
    children = {str(n): [str(n + 1)] for n in range(3_000)}
    lines = list(drawn(["0"], str, lambda node: children.get(node, [])))
    assert len(lines) == 3_001
    assert lines[2] == "    └── 2"


# --- check ----------------------------------------------------------------------------------------


def test_check_lists_which_runs_can_go_on(kitchen: Kitchen) -> None:
    target = kitchen.target
    assert "there is no store" in kitchen("check", target, code=2).stderr
    kitchen("run", target, "--id", "one", "--quiet")
    assert "no unfinished run of training" in kitchen("check", target).stderr
    kitchen("run", target, "fail_at=4", "--id", "two", code=1)
    assert kitchen("check", target).stdout.splitlines()[1].split() == ["two", "failed", "yes"]
    saved = '        wf.checkpoint("save")'
    ahead = kitchen.variant((saved, f'{saved}\n    wf.stage("more", step)'))
    behind = kitchen.variant(('wf.stage("step", step)', 'wf.stage("other", step)'))
    assert "two:\n  + more\n" in kitchen("check", ahead).stdout
    told = kitchen("check", ahead, "--all", code=1).stdout
    assert [line.split() for line in told.splitlines()[1:3]] == [
        ["two", "failed", "yes"], ["one", "completed", "no"],
    ]  # fmt: skip
    told = kitchen("check", behind, code=1).stdout
    assert "two:\n  run 'two' cannot go on with workflow 'training' as it is now.\n" in told
    found = json.loads(kitchen("check", behind, "--json", code=1).stdout)
    assert [(one["run"], one["ok"]) for one in found] == [("two", False)]
    assert "there is no module" in kitchen("check", "nowhere:x", code=2).stderr


def test_these_commands_change_no_store(done: Kitchen) -> None:
    before = (done.folder / "kitchen.db").read_bytes()
    shutil.copy(done.folder / "kitchen.db", done.folder / "copy.db")
    for words in (
        ["replay", "one", "--execute"], ["replay", "one"], ["diff", "one", "one"],
        ["trace", "one"], ["show", "one", "--tree"], ["check", done.target], ["runs", "--tree"],
        ["resume", "one", "--plan", "--at", "30"], ["gc", "--keep-last", "0", "--dry-run"],
        ["export", "one"],
    ):  # fmt: skip
        done(*words)
    assert (done.folder / "kitchen.db").read_bytes() == before
    assert "def training" in WORKFLOW

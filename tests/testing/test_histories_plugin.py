"""`@kitchen_histories`: a test for each run in the stores that were kept."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen import WorkflowBuilder
from kitchen.testing import RecordedRun, kitchen_histories
from kitchen.workflow.definition import Locator
from store import open_store
from tests.histories.changing import extra, today
from tests.histories.versions import ledger_1

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests" / "histories"

COUNTING = """
import kitchen

def count(ctx):
    ctx.increment("n")

@kitchen.workflow
def counting(wf):
    wf.stage("count", count)
    wf.stage("again", count)

@kitchen.workflow
def other(wf):
    wf.stage("count", count)
"""


def count(ctx: Any) -> None:
    ctx.increment("n")


@kitchen.workflow
def counting(wf: WorkflowBuilder) -> None:
    """The same as in the project, where its runs are looked for."""
    wf.stage("count", count)
    wf.stage("again", count)


GATE = """
from kitchen.testing import kitchen_histories

@kitchen_histories({arguments})
def test_it(recorded_run):
    assert recorded_run.fits, recorded_run.why
"""

QUIET = ("-p", "no:cacheprovider", "-W", "error")


@pytest.fixture
def gate(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a workflow, importable as `counted`, and an empty folder of histories."""
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    monkeypatch.syspath_prepend(str(pytester.path))
    pytester.makepyfile(counted=COUNTING)
    pytester.mkdir("histories")
    return pytester


def record(gate: pytest.Pytester, file: str, *runs: str) -> Path:
    """Runs of the workflow of the project, in a store of its own."""
    there = dataclasses.replace(counting, locator=Locator("counted", "counting", ""))
    for run in runs:
        kitchen.run(there, store=gate.path / file, run_id=run)
    return gate.path / file


def collected(gate: pytest.Pytester, *arguments: str) -> list[str]:
    result = gate.runpytest_subprocess(*QUIET, "--collect-only", "-q", *arguments)
    return [line for line in result.outlines if "::" in line]


def test_a_test_for_each_run(gate: pytest.Pytester) -> None:
    record(gate, "histories/b.db", "two", "one")
    record(gate, "histories/a.db", "one")
    record(gate, "histories/ä b.store", "x y")
    gate.makepyfile(test_gate=GATE.format(arguments='"histories/*.db", "histories/*.store"'))
    told = collected(gate)
    names = [line.rpartition("::")[2] for line in told]
    assert names[:3] == ["test_it[a-one]", "test_it[b-one]", "test_it[b-two]"]
    assert len(names) == 4
    before = sorted(os.listdir(gate.path / "histories"))
    gate.runpytest_subprocess(*QUIET).assert_outcomes(passed=4)
    gate.runpytest_subprocess(*QUIET, "-n", "2").assert_outcomes(passed=4)
    assert collected(gate) == told
    assert sorted(os.listdir(gate.path / "histories")) == before


def test_it_fails_where_the_workflow_has_changed(gate: pytest.Pytester) -> None:
    record(gate, "histories/a.db", "one")
    gate.makepyfile(counted=COUNTING.replace('"again"', '"anew"', 1))
    gate.makepyfile(test_gate=GATE.format(arguments='"histories/*.db"'))
    result = gate.runpytest_subprocess(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*recorded: event 5 is StageStarted at again"])


def test_files_of_one_name_are_told_by_their_folders(gate: pytest.Pytester) -> None:
    record(gate, "histories/a.db", "r")
    gate.mkdir("old")
    shutil.copy(gate.path / "histories/a.db", gate.path / "old/a.db")
    gate.makepyfile(test_gate=GATE.format(arguments='"**/*.db"'))
    names = [line.rpartition("::")[2] for line in collected(gate)]
    assert names == ["test_it[histories/a.db-r]", "test_it[old/a.db-r]"]


NOTHING_TO_TEST = {
    '"histories/*.db"': "no file fits 'histories/?.db'",
    '"counted.py"': "*counted.py*",
    '"empty.db"': "there is no run in *empty.db",
    '"kept.db", workflow="counted:other"': "there is no run of 'other' in *kept.db",
    '"kept.db", workflow="counted:nothing"': "*counted:nothing*is not there*",
    '"kept.db", unfinished=True': "all 1 runs are over",
    "": "kitchen_histories takes the paths of stores, not ()",
    "3": "kitchen_histories takes the paths of stores, not (3,)",
    '"kept.db", workflow=3': "expected a workflow, got 3",
}


def test_what_would_test_nothing_is_an_error(gate: pytest.Pytester) -> None:
    record(gate, "kept.db", "r")
    open_store(gate.path / "empty.db").close()
    for number, arguments in enumerate(NOTHING_TO_TEST):
        gate.makepyfile(**{f"test_{number}": GATE.format(arguments=arguments)})
    result = gate.runpytest_subprocess(*QUIET)
    result.assert_outcomes(errors=len(NOTHING_TO_TEST))
    for told in NOTHING_TO_TEST.values():
        result.stdout.fnmatch_lines([f"*{told}*"])


def test_a_mark_and_a_fixture_belong_together(gate: pytest.Pytester) -> None:
    record(gate, "kept.db", "r")
    unmarked = "def test_it(recorded_run):\n    pass"
    marked = GATE.format(arguments='"kept.db"').partition("(recorded_run)")[0] + "():\n    pass"
    gate.makepyfile(test_unmarked=unmarked, test_marked=marked)
    result = gate.runpytest_subprocess(*QUIET, "--continue-on-collection-errors")
    result.assert_outcomes(errors=2)
    for told in (
        "test_it takes 'recorded_run' and does not say of which stores",
        "test_it is marked kitchen_histories and takes no 'recorded_run'",
    ):
        result.stdout.fnmatch_lines([f"*{told}*"])


def test_classes_parameters_and_async_tests(gate: pytest.Pytester) -> None:
    record(gate, "kept.db", "one", "two")
    gate.makepyfile(
        test_gate="""
        import pytest
        from kitchen.testing import kitchen_histories

        @kitchen_histories("kept.db", workflow="counted:counting")
        class TestGate:
            def test_it(self, recorded_run):
                assert recorded_run.fits

            @pytest.mark.parametrize("n", [1, 2])
            def test_more(self, recorded_run, n):
                assert recorded_run.status == "completed"
                assert recorded_run.history.state_at() == {"n": 2}

            def test_something_else(self):
                pass

            @pytest.mark.anyio
            async def test_in_a_loop(self, recorded_run, anyio_backend):
                assert recorded_run.check().ok
        """
    )
    gate.runpytest_subprocess(*QUIET).assert_outcomes(passed=2 + 4 + 1 + 4)


def test_only_what_can_go_on(gate: pytest.Pytester) -> None:
    for name in ("begin", "failed", "completed", "cancelled"):
        shutil.copy(STORED / f"{name}.sqlite", gate.path / "histories")
    gate.makepyfile(test_gate=GATE.format(arguments='"histories/*.sqlite", unfinished=True'))
    names = [line.rpartition("::")[2] for line in collected(gate)]
    assert names == ["test_it[begin-r]", "test_it[failed-r]"]


def test_a_workflow_that_is_not_found_is_told(gate: pytest.Pytester) -> None:
    record(gate, "kept.db", "r")
    gate.makepyfile(counted="")
    gate.makepyfile(test_gate=GATE.format(arguments='"kept.db"'))
    result = gate.runpytest_subprocess(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*counted:counting*was not found*", '*workflow="module:name"*'])


def test_an_absolute_path_and_a_folder_that_is_read_only(gate: pytest.Pytester) -> None:
    file = record(gate, "histories/a.db", "r")
    gate.makepyfile(test_gate=GATE.format(arguments=repr(str(file))))
    file.chmod(0o444)
    file.parent.chmod(0o555)
    try:
        gate.runpytest_subprocess(*QUIET).assert_outcomes(passed=1)
    finally:
        file.parent.chmod(0o755)


def test_without_pytest_around_it() -> None:
    file = STORED / "train.sqlite"
    run = RecordedRun("r", file, "ledger", "crashed", today(before={"": extra("late")}))
    assert run.fits
    assert any("late" in change for change in run.differences)
    gone = RecordedRun("r", file, "ledger", "crashed", today(without={"begin"}))
    assert not gone.fits
    assert "begin" in gone.why
    assert gone.check().why == gone.why
    assert repr(gone) == f"<RecordedRun 'r' in {file}: crashed>"
    assert run.history.status == "crashed"
    assert ledger_1.ledger.name == run.workflow_name
    with pytest.raises(kitchen.ArgumentError):
        kitchen_histories()

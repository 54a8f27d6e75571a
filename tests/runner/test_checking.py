"""Which stored runs can go on with the workflow as it is now: a gate for CI."""

from __future__ import annotations

from pathlib import Path

import pytest

import kitchen
from tests.histories.changing import extra, stored, today
from tests.histories.make import HISTORIES
from tests.runner.test_renaming import UNFINISHED


def test_all_can_go_on_with_the_code_as_it_was(tmp_path: Path) -> None:
    for name in sorted(HISTORIES.keys() - {"undone"}):
        with stored(name, tmp_path) as store:
            before = [store.head(info.run) for info in store.runs()]
            checked = kitchen.check_runs(today(), store=store, every=True)
            assert [(each.ok, each.changes) for each in checked] == [(True, ())] * len(before)
            assert [store.head(info.run) for info in store.runs()] == before


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_check_says_what_a_resume_does(name: str, tmp_path: Path) -> None:
    for change in (
        {"without": {"mourn"}, "before": {"mourn": extra("weep")}},
        {"names": {"celebrate": "cheer"}},
    ):
        workflow = today(**change)
        with stored(name, tmp_path) as store:
            (checked,) = kitchen.check_runs(workflow, store=store)
            try:
                said = {"pay": "retry"} if name == "pay" else None
                kitchen.resume("r", workflow, store=store, adapters={}, decide=said)
            except kitchen.WorkflowChanged as error:
                assert not checked.ok
                assert (checked.why,) == (error.message,)  # noqa: PT017  (it may also go on)
            else:
                assert checked.ok
                assert len(checked.changes) > 0


def test_only_what_is_not_over_and_only_of_that_workflow(tmp_path: Path) -> None:
    with stored("completed", tmp_path) as store:
        assert kitchen.check_runs(today(), store=store) == []
        assert len(kitchen.check_runs(today(), store=store, every=True)) == 1
    with stored("undone", tmp_path) as store:
        assert kitchen.check_runs(today(), store=store, every=True) == []

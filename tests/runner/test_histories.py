"""Every history that was ever stored still opens, folds, replays and goes on, on today's code.

Rules: a history is written once (`tests/histories/make.py`) and kept for ever. Where this fails, it
is today's code that is wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import kitchen
from kitchen.history.history import History
from kitchen.history.replay import replayed
from kitchen.log.reader import LogReader, recorded_ir
from kitchen.machine.chart import compile_workflow
from kitchen.machine.state import State
from kitchen.workflow import ir as IR
from tests.histories.changing import HERE, logged, stored
from tests.histories.make import HISTORIES, LEDGER, UNDONE
from tests.histories.versions import ledger_1

NAMES = sorted(file.stem for file in HERE.glob("*.sqlite"))
OVER = {"completed", "cancelled", "undone"}


def test_all_are_there() -> None:
    assert set(HISTORIES) <= set(NAMES)
    assert len(NAMES) >= 16


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_folds_and_replays(name: str, tmp_path: Path) -> None:
    with stored(name, tmp_path) as store:
        assert store.verify() == []
        assert store.runs()
        for info in store.runs():
            replay = replayed(store, info.run)
            assert replay.divergences == ()
            assert replay.events == store.head(info.run)
            told = kitchen.history(info.run, store=store)
            assert told.state_at(1) == {}
            assert told.trace()
            assert all(point.value is not None for point in told.metrics("value"))


@pytest.mark.parametrize("name", NAMES)
def test_its_workflow_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    """What the code of that day compiled is what today's makes of the same source."""
    code = {each.name: each for each in (ledger_1.ledger, ledger_1.undone)}
    with stored(name, tmp_path) as store:
        for info in store.runs():
            recorded = recorded_ir(store, info.run)
            assert IR.fingerprint(recorded) == code[info.name].fingerprint


@pytest.mark.parametrize("name", sorted(set(NAMES) - OVER - {"turned"}))
def test_it_goes_on_and_comes_to_the_end_of_the_whole_run(name: str, tmp_path: Path) -> None:
    with stored("completed", tmp_path) as store:
        expected, values = logged(store), kitchen.history("r", store=store).metrics("value")
    with stored(name, tmp_path) as store:
        said = {"pay": "retry"} if name == "pay" else None
        run = kitchen.resume("r", LEDGER, store=store, adapters={}, decide=said)
        assert logged(store) == expected
        assert [p.value for p in run.metrics["value"]] == [p.value for p in values]
        assert not [r for r in store.read("r") if r.type in ("RewindDiverged", "WorkflowChanged")]
        assert replayed(store, "r").divergences == ()


def test_forks_and_turns_go_on(tmp_path: Path) -> None:
    with stored("turned", tmp_path) as store:
        for run in ("r", "f", "ff"):
            assert kitchen.resume(run, LEDGER, store=store, adapters={}).status == "completed"
            assert replayed(store, run).divergences == ()
        assert logged(store, "f") == logged(store, "ff")
        assert logged(store, "f") != logged(store)
        assert kitchen.history("r", store=store).config == {"rate": 2}


def test_every_event_of_every_history_can_be_forked_from(tmp_path: Path) -> None:
    with stored("completed", tmp_path) as store:
        expected = logged(store)
        for at in range(1, store.head("r"), 9):
            name = kitchen.fork("r", at=at, store=store, new_run_id=f"f{at}")
            kitchen.resume(name, LEDGER, store=store, adapters={})
            assert logged(store, name) == expected


@pytest.mark.parametrize("name", sorted(OVER))
def test_what_is_over_stays_so(name: str, tmp_path: Path) -> None:
    with stored(name, tmp_path) as store:
        head = store.head("r")
        workflow = UNDONE if name == "undone" else LEDGER
        if name == "completed":
            assert kitchen.resume("r", workflow, store=store).status == "completed"
        else:
            over = kitchen.RunCancelled if name == "cancelled" else kitchen.NotResumable
            with pytest.raises(over):
                kitchen.resume("r", workflow, store=store)
        assert store.head("r") == head


@pytest.mark.parametrize("name", NAMES)
def test_from_the_last_snapshot_as_from_nothing(name: str, tmp_path: Path) -> None:
    with stored(name, tmp_path) as store:
        for info in store.runs():
            program = compile_workflow(recorded_ir(store, info.run))
            reader = LogReader(store, info.run, program)
            whole = reader.folded(State(), None)
            assert reader.state_at(None) == whole
            for seq in range(1, store.head(info.run), 10):
                assert History(store, info.run).folded(seq) == reader.folded(State(), seq)

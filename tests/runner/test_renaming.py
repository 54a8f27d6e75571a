"""Stored runs of an older version of a workflow, taken up with today's.

1. A change ahead of where a run stands is accepted; one behind it that leaves every recorded event
   legal is accepted and told; any other is refused, with the first event that does not fit.
2. `rename=` says that a node is the same under another name: what is told of the run has the new
   one, also of before; crashes, rewinds and further names behind it change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.history.replay import replayed
from kitchen.workflow import ir as IR
from kitchen.workflow.changes import moved
from store import MemoryStore
from tests.crash.test_crash_matrix import Killed
from tests.histories.changing import extra, logged, stored, today
from tests.histories.make import HISTORIES
from tests.histories.versions import ledger_1

ENDED = {"completed", "undone", "turned", "cancelled"}
UNFINISHED = sorted(HISTORIES.keys() - ENDED)


def other(ctx: Any) -> None:
    ledger_1.note(ctx)


def resumed(store: Any, workflow: Any, **given: Any) -> Any:
    return kitchen.resume("r", workflow, store=store, adapters={}, **given)


def told(store: Any) -> tuple[str, ...]:
    """What the log says of the last change."""
    found: Any = [
        r.event for r in kitchen.history("r", store=store).events if r.type == "WorkflowChanged"
    ]
    return found[-1].differences if found else ()


def told_apart(value: Any) -> str:
    """A name for a case; the same in every process."""
    return value if isinstance(value, str) else ""


# --- changes --------------------------------------------------------------------------------------

AHEAD: list[tuple[str, dict[str, Any], str]] = [
    ("train", {"without": {"report"}}, "removed: report"),
    ("train", {"without": {"mourn"}, "before": {"mourn": extra("weep")}}, "removed: epochs/first/otherwise/mourn"),
    ("train", {"before": {"report": extra("late")}}, "added: late"),
    ("train", {"before": {"": extra("last")}}, "added: last"),
    ("train", {"names": {"report": "summary"}}, "added: summary"),
    ("train", {"names": {"lines": "rows"}}, "added: rows/read"),
    ("train", {"given": {"report": {"options": {"loud": False}}}}, "changed: report (options)"),
    ("train", {"given": {"report": {"retries": 4}}}, "changed: report (retry)"),
    ("train", {"given": {"report": {"body": other}}}, "changed: report (body)"),
    ("train", {"given": {"made": {"buffer_size": 3}}}, "changed: made (buffer_size)"),
    ("train", {"around": {"pay"}}, "added: around/pay"),
    ("read", {"without": {"consume"}, "before": {"consume": extra("eat")}}, "removed: made/consume"),
    ("consume", {"without": {"pay", "report"}}, "removed: pay"),
    ("report", {"before": {"": extra("last")}}, "added: last"),
]  # fmt: skip

BEHIND: list[tuple[str, dict[str, Any], str]] = [
    ("train", {"given": {"begin": {"body": other}}}, "changed: begin (body)"),
    ("train", {"given": {"begin": {"options": {"x": 1}}}}, "changed: begin (options)"),
    ("train", {"given": {"begin": {"retries": 2}}}, "changed: begin (retry)"),
    ("train", {"given": {"train": {"body": other}}}, "changed: epochs/train (body)"),
    ("far", {"given": {"near": {"body": other}}}, "changed: epochs/sides/right/near (body)"),
    ("consume", {"given": {"read": {"timeout": 60}}}, "changed: lines/read (timeout)"),
    ("failed", {"given": {"report": {"body": other}}}, "changed: report (body)"),
]

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("train", {"without": {"begin"}}, "begin", "removed: begin"),
    ("train", {"before": {"begin": extra("earlier")}}, "begin", "added: earlier"),
    ("train", {"before": {"train": extra("warm_up")}}, "epochs/train", "added: epochs/warm_up"),
    ("train", {"names": {"eval": "exam"}}, "epochs/eval/score", "removed: epochs/eval"),
    ("train", {"names": {"epochs": "rounds"}}, "epochs", "removed: epochs"),
    ("train", {"names": {"left": "port"}}, "epochs/sides/left", "removed: epochs/sides/left"),
    ("train", {"around": {"begin"}}, "begin", "added: around"),
    ("begin", {"without": {"begin"}}, "begin", "removed: begin"),
    ("begin", {"names": {"begin": "start"}}, "begin", "added: start"),
    ("begin", {"before": {"begin": extra("earlier")}}, "begin", "added: earlier"),
    ("far", {"without": {"near"}}, "epochs/sides/right/near", "removed: epochs/sides/right/near"),
    ("far", {"before": {"left": extra("third")}}, "epochs/sides", "added: epochs/sides/third"),
    ("read", {"names": {"read": "parse"}}, "lines/read", "removed: lines/read"),
    ("pay", {"around": {"pay"}}, "pay", "added: around"),
    ("mend", {"names": {"mend": "patch"}}, "epochs/rescue/mend", "removed: epochs/rescue/mend"),
]  # fmt: skip


def changed(change: dict[str, Any]) -> Any:
    return today(**change)


@pytest.mark.parametrize(("name", "change", "what"), AHEAD, ids=told_apart)
def test_a_change_ahead_is_accepted_and_told(
    name: str, change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    workflow = changed(change)
    with stored(name, tmp_path) as store:
        before = logged(store)
        plan = kitchen.plan_resume("r", workflow, store=store)
        assert plan.refused is None
        assert what in plan.changes
        run = resumed(store, workflow)
        assert run.status == "completed"
        assert what in told(store) == plan.changes
        assert logged(store)[: len(before)] == before
        stages = {p for p, node in IR.walk(workflow.ir) if isinstance(node, IR.StageNode)}
        assert {line.split()[0] for line in logged(store)[len(before) :]} <= stages
        assert replayed(store, "r").divergences == ()


@pytest.mark.parametrize(("name", "change", "what"), BEHIND, ids=told_apart)
def test_a_change_behind_that_leaves_the_log_legal_is_told(
    name: str, change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    workflow = changed(change)
    with stored("completed", tmp_path) as store:
        whole = logged(store)
    with stored(name, tmp_path) as store:
        run = resumed(store, workflow)
        assert run.status == "completed"
        assert told(store) == (what,)
        assert logged(store) == whole
        assert kitchen.history("r", store=store).ir == workflow.ir


@pytest.mark.parametrize(("name", "change", "where", "what"), REFUSED, ids=told_apart)
def test_a_change_at_or_behind_that_does_not_fit_is_refused(
    name: str, change: dict[str, Any], where: str, what: str, tmp_path: Path
) -> None:
    """With the first event that is not legal, what the old one did and what the new one would."""
    workflow = changed(change)
    with stored(name, tmp_path) as store:
        head = store.head("r")
        with pytest.raises(kitchen.WorkflowChanged) as caught:
            resumed(store, workflow)
        message = caught.value.message
        found = re.search(r"recorded: event (\d+) is (\w+) at (\S+)", message)
        assert found, message
        seq, kind, place = found.groups()
        assert re.sub(r"\[\d+\]", "", place) == where
        (record,) = [r for r in store.read("r") if r.seq == int(seq)]
        assert record.type == kind
        assert "now: " in message
        assert what in message
        assert "--rename" in str(caught.value.hint)
        assert store.head("r") == head
        plan = kitchen.plan_resume("r", workflow, store=store)
        assert plan.refused
        assert what in plan.refused
        (checked,) = kitchen.check_runs(workflow, store=store)
        assert (checked.run, checked.ok) == ("r", False)
        assert what in checked.why
        # Up to that event the two are the same: a fork from before it goes on.
        assert f"kitchen fork r --at {int(seq) - 1}" in str(caught.value.hint)
        new = kitchen.fork("r", at=int(seq) - 1, store=store)
        assert kitchen.resume(new, workflow, store=store, adapters={}).status == "completed"


# --- renames --------------------------------------------------------------------------------------

RENAMES: list[dict[str, str]] = [
    {"begin": "start"},
    {"epochs": "rounds"},
    {"epochs/first": "epochs/initial"},
    {"epochs/first/celebrate": "epochs/first/cheer"},
    {"epochs/careful": "epochs/guarded"},
    {"epochs/careful/risky": "epochs/careful/daring"},
    {"epochs/rescue": "epochs/repair"},
    {"epochs/sides": "epochs/flanks"},
    {"epochs/sides/left": "epochs/sides/port"},
    {"epochs/sides/right": "epochs/sides/starboard"},
    {"epochs/sides/right/near": "epochs/sides/right/far", "epochs/sides/right/far": "epochs/sides/right/near"},
    {"epochs/eval": "epochs/exam"},
    {"epochs/saved": "epochs/kept"},
    {"lines": "rows"},
    {"made": "given", "made/consume": "given/eat"},
    {"pay": "settle", "report": "summary"},
    {"epochs": "rounds", "epochs/sides": "rounds/flanks", "epochs/sides/right": "rounds/flanks/starboard"},
]  # fmt: skip


def renamed(names: Mapping[str, str]) -> Any:
    last = {old.rpartition("/")[2]: new.rpartition("/")[2] for old, new in names.items()}
    return today(names=last)


def expected(names: Mapping[str, str], tmp_path: Path) -> list[str]:
    """Where the stages of the whole run ran, as they are called now."""
    with stored("completed", tmp_path) as store:
        return as_now(store, names)


def as_now(store: Any, names: Mapping[str, str]) -> list[str]:
    """Where each stage ran, as that is called now, and what it drew; of names that were swapped,
    what was drawn alone: the texts do not tell which they mean."""
    lines = (line.split(" ", 1) for line in kitchen.history("r", store=store).state_at()["log"])
    if names.keys() & set(names.values()):
        return sorted(rest for _, rest in lines)
    return sorted(f"{moved(path, names)} {rest}" for path, rest in lines)


def died(store: Any, workflow: Any, after: int, **given: Any) -> bool:
    try:
        mortal: Any = Dying(store, after)
        kitchen.resume("r", workflow, store=mortal, adapters={}, **given)
    except Killed:
        return True
    return False


class Dying:
    """A store whose process dies behind so many appends."""

    def __init__(self, store: Any, after: int) -> None:
        self._store = store
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, *args: Any, **given: Any) -> int:
        head = self._store.append(*args, **given)
        self._left -= 1
        if self._left < 0:
            raise Killed
        return head


@pytest.mark.parametrize("names", RENAMES, ids=",".join)
def test_a_renamed_node_is_the_same_node(names: dict[str, str], tmp_path: Path) -> None:
    """In every unfinished history, with deaths behind it."""
    workflow = renamed(names)
    whole = expected(names, tmp_path)
    for name in UNFINISHED:
        for after in (0, 5):
            with stored(name, tmp_path) as store:
                say: Any = {names.get("pay", "pay"): "retry"} if name == "pay" else None
                plan = kitchen.plan_resume("r", workflow, store=store, rename=names)
                assert plan.refused is None
                assert any(change.startswith("renamed: ") for change in plan.changes)
                if died(store, workflow, after, rename=names, decide=say):
                    waiting = kitchen.plan_resume("r", workflow, store=store)
                    assert waiting.changes == ()  # the log has it already
                    resumed(store, workflow, decide=dict.fromkeys(waiting.undecided, "retry"))
                assert as_now(store, names) == whole
                told_as_now(store, workflow)
                assert replayed(store, "r").divergences == ()


def told_as_now(store: Any, workflow: Any) -> None:
    """All that is told of the run has today's paths."""
    past = kitchen.history("r", store=store)
    paths = {path for path, _ in IR.walk(workflow.ir)}
    assert past.status == "completed"
    assert len(past.metrics("value")) == 3
    assert {point.path for point in past.metrics("value")} <= paths
    assert past.trace()


def test_names_change_twice(tmp_path: Path) -> None:
    """With a death behind each; then an old name is taken by another node."""
    first, second = {"epochs": "rounds"}, {"rounds": "turns", "report": "summary"}
    with stored("far", tmp_path) as store:
        assert died(store, renamed(first), 3, rename=first)
        last = today(names={"epochs": "turns", "report": "summary"}, before={"": extra("report")})
        assert died(store, last, 12, rename=second)
        run = resumed(store, last)
        assert run.status == "completed"
        told_as_now(store, last)
        assert replayed(store, "r").divergences == ()
        drawn = {line.split()[0]: line.split()[-1] for line in run.state["log"]}
        assert drawn["report"] != drawn["summary"]
    with stored("completed", tmp_path) as store:
        assert (
            drawn["summary"] == kitchen.history("r", store=store).state_at()["log"][-1].split()[-1]
        )


def test_a_renamed_effect_has_the_key_that_it_had(tmp_path: Path) -> None:
    """Whoever it is sent to again must know it again."""
    keys: list[str] = []

    def paid(ctx: Any) -> None:
        keys.append(ctx.idempotency_key)

    for name in ("pay", "settle"):
        with stored("pay", tmp_path) as store:
            workflow = today(names={"pay": name}, given={"pay": {"body": paid}})
            names = {} if name == "pay" else {"pay": name}
            resumed(store, workflow, rename=names, decide={name: "retry"})
    assert keys == ["r/pay/0", "r/pay/0"]


WRONG: list[tuple[dict[str, str], dict[str, str], str, str]] = [
    ({"begin": "start"}, {"begn": "start"}, "the run has no node 'begn'", "begin"),
    ({"begin": "start"}, {"begin": "strat"}, "the workflow has no node 'strat'", "start"),
    ({"begin": "start"}, {"begin": "epochs"}, "'begin' was a Stage, and 'epochs' is a Loop", ""),
    ({"box": "chest"}, {"box": "chest"}, "'box' cannot be renamed", "keep the name"),
]


@pytest.mark.parametrize(("names", "said", "why", "hint"), WRONG, ids=told_apart)
def test_a_renaming_that_cannot_be_is_refused(
    names: dict[str, str], said: dict[str, str], why: str, hint: str, tmp_path: Path
) -> None:
    with stored("train", tmp_path) as store:
        head = store.head("r")
        with pytest.raises(kitchen.ArgumentError, match=re.escape(why)) as caught:
            resumed(store, today(names=names), rename=said)
        assert hint in str(caught.value.hint)
        assert store.head("r") == head


def test_the_same_command_may_be_given_again() -> None:
    broken = [True]

    def fails(ctx: Any) -> None:
        if broken[0]:
            raise RuntimeError("no")

    def version(name: str) -> Any:
        @kitchen.workflow(name="again")
        def workflow(wf: Any) -> None:
            wf.stage(name, lambda ctx: None)
            wf.stage("last", fails)

        return workflow

    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        kitchen.run(version("first"), store=store, run_id="r")
    with pytest.raises(kitchen.RunError):
        kitchen.resume("r", version("begin"), store=store, rename={"first": "begin"})
    broken[0] = False
    for _ in range(2):  # a completed run is returned as it is
        told = kitchen.resume("r", version("begin"), store=store, rename={"first": "begin"})
        assert told.status == "completed"

"""Recorded histories as tests: `@kitchen_histories("tests/histories/*.db")` and `recorded_run`.

Rules:

1. Patterns are relative to pytest's root folder. The test is run once for each run in the stores
   that they name, in the order of their names, under an id that says file and run.
2. A gate that tests nothing is none: where no file fits, a file is no store, or none of its runs is
   one of the workflow, that is an error of the collection.
3. Stores are opened for reading, each time for as long as it takes. Nothing is left open or written.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from kitchen.adapters.event_store import opened
from kitchen.api.reading import history
from kitchen.api.running import check_workflow, code_of
from kitchen.errors import ArgumentError, KitchenError, NotResumable
from kitchen.history.history import History, status_of
from kitchen.runner.locate import workflow_at
from kitchen.runner.planning import Checked, checked
from kitchen.testing.plugin import MARK
from kitchen.workflow.definition import Workflow

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore

FIXTURE = "recorded_run"
_OVER = ("completed", "cancelled")

Code = Workflow[Any, Any] | str


def kitchen_histories(
    *patterns: str | Path, workflow: Code | None = None, unfinished: bool = False
) -> pytest.MarkDecorator:
    """Runs a test that takes `recorded_run` for each run in the stores that fit.

    `workflow`: the code that they are checked against, an object or "module:name", and then only
    its runs are taken; None: the one that each log names. `unfinished=True`: only runs that can
    still go on, as `kitchen check` does without --all.

    Raises `ArgumentError`.
    """
    given = cast("tuple[object, ...]", patterns)
    if not given or not all(isinstance(each, str | Path) for each in given):
        raise ArgumentError(
            f"{MARK} takes the paths of stores, not {given!r}",
            hint=f'@{MARK}("tests/histories/*.db")',
        )
    if workflow is not None and not isinstance(workflow, str):
        check_workflow(workflow)
    texts = tuple(map(str, patterns))
    return pytest.mark.kitchen_histories(*texts, workflow=workflow, unfinished=unfinished)


@dataclass(frozen=True, repr=False)
class RecordedRun:
    """A run in a store that was kept: `assert recorded_run.fits, recorded_run.why`.

    `store`: the file. `status`: how it stood when it was collected. `workflow`: the code that it is
    checked against; None: the one that its log names.
    """

    run_id: str
    store: Path
    workflow_name: str
    status: str
    workflow: Code | None = None

    @property
    def history(self) -> History:
        """What its log says, as `kitchen.history`; the store is open while that is in use."""
        return history(self.run_id, store=self.store)

    def check(self) -> Checked:
        """Whether it can go on with today's code: it is folded on it, and no stage runs.

        A workflow that is not found is told in `why`. Raises `StoreError`.
        """
        return self._checked

    @property
    def fits(self) -> bool:
        """Whether today's code allows all that it did."""
        return self._checked.ok

    @property
    def why(self) -> str:
        """Why it does not fit: the first event that is not legal; "" where it does."""
        return self._checked.why

    @property
    def differences(self) -> tuple[str, ...]:
        """How today's workflow differs from the recorded one, where that is legal."""
        return self._checked.changes

    @cached_property
    def _checked(self) -> Checked:
        with opened(self.store, create=False, read_only=True) as events:
            try:
                code = code_of(self.workflow, events, self.run_id, needed=True)
            except NotResumable as error:
                hint = f'@{MARK}(…, workflow="module:name") says which workflow it is'
                return Checked(self.run_id, self.status, False, f"{error.message}\n  hint: {hint}")
            assert code is not None
            return checked(events, self.run_id, self.status, code)

    def __repr__(self) -> str:
        return f"<RecordedRun {self.run_id!r} in {self.store}: {self.status}>"


# --- what the plugin calls ------------------------------------------------------------------------


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Have a test that is marked run once for each recorded run."""
    if FIXTURE not in metafunc.fixturenames:
        if any(mark.name == MARK for mark in metafunc.definition.own_markers):
            name = metafunc.definition.nodeid
            pytest.fail(f"{name} is marked {MARK} and takes no {FIXTURE!r}", pytrace=False)
        return  # it is the class, or the module, that is marked
    runs: list[RecordedRun] = []
    try:
        for mark in metafunc.definition.iter_markers(MARK):
            runs += _named(metafunc.config.rootpath, mark)
    except (KitchenError, OSError) as error:
        pytest.fail(f"{metafunc.definition.nodeid}: {error}", pytrace=False)
    runs = list(dict.fromkeys(runs))
    ids = _ids(runs, metafunc.config.rootpath)
    metafunc.parametrize(FIXTURE, runs, ids=ids, indirect=True)


def recorded(request: pytest.FixtureRequest) -> RecordedRun:
    """The run of this test. Raises `ArgumentError` where it is not marked."""
    found = getattr(request, "param", None)
    if not isinstance(found, RecordedRun):
        raise ArgumentError(
            f"{request.node.nodeid} takes {FIXTURE!r} and does not say of which stores",
            hint=f'mark it: @kitchen.testing.{MARK}("tests/histories/*.db")',
        )
    return found


def _named(root: Path, mark: pytest.Mark) -> list[RecordedRun]:
    """The runs that a mark names.

    Raises `ArgumentError` where there are none, `StoreError`, `UnknownWorkflow`.
    """
    workflow: Code | None = mark.kwargs.get("workflow")
    code = workflow_at(workflow) if isinstance(workflow, str) else workflow
    unfinished: bool = mark.kwargs.get("unfinished", False)
    found: dict[Path, list[RecordedRun]] = {}
    for pattern in mark.args:
        files = sorted(
            Path(root, name) for name in glob.glob(pattern, root_dir=root, recursive=True)
        )
        if not files:
            raise ArgumentError(
                f"no file fits {pattern!r}", hint=f"patterns are relative to {root}"
            )
        for file in files:
            found.setdefault(file, _runs(file, code))
    runs = [run for each in found.values() for run in each]
    taken = [run for run in runs if not (unfinished and run.status in _OVER)]
    if not taken:
        raise ArgumentError(
            f"all {len(runs)} runs are over", hint="unfinished=False takes completed ones too"
        )
    return taken


def _runs(file: Path, code: Workflow[Any, Any] | None) -> list[RecordedRun]:
    """The runs in a store, of this workflow. Raises `ArgumentError` where there is none."""
    with opened(file, create=False, read_only=True) as events:
        told = list(_told(events, file, code))
        if told:
            return told
        names = ", ".join(sorted({info.name for info in events.runs()}))
    if code is None or not names:
        raise ArgumentError(f"there is no run in {file}")
    raise ArgumentError(
        f"there is no run of {code.name!r} in {file}", hint=f"its runs are of {names}"
    )


def _told(events: EventStore, file: Path, code: Workflow[Any, Any] | None) -> Iterator[RecordedRun]:
    for info in sorted(events.runs(), key=lambda info: info.run):
        if code is None or info.name == code.name:
            yield RecordedRun(info.run, file, info.name, status_of(events, info.run), code)


def _ids(runs: list[RecordedRun], root: Path) -> list[str]:
    """`file-run`: the file's name alone where no other file is called so."""
    files = {run.store for run in runs}
    known = Counter(file.stem for file in files)
    return [
        f"{run.store.stem if known[run.store.stem] == 1 else _relative(run.store, root)}-{run.run_id}"
        for run in runs
    ]


def _relative(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()

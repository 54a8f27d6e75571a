"""The verbs about going another way: plan a resume, fork, and look who could go on at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kitchen.adapters.event_store import StoreLike, opened
from kitchen.api.running import check_id, check_workflow, code_of
from kitchen.errors import NotResumable
from kitchen.history.history import status_of
from kitchen.log.reader import recorded_ir, started
from kitchen.ports.event_store import EventStore
from kitchen.runner import forking, planning, start
from kitchen.runner.edits import Edits
from kitchen.runner.locate import workflow_at
from kitchen.runner.planning import Checked, ResumePlan
from kitchen.workflow.definition import Workflow

_OVER = ("completed", "cancelled")


def plan_resume(
    run_id: str,
    workflow: Workflow[Any, Any] | str | None = None,
    *,
    store: StoreLike = None,
    at: int | None = None,
    config: Any = None,
    state: Mapping[str, Any] | None = None,
    seed: int | None = None,
    rename: Mapping[str, str] | None = None,
    strict: bool = True,
) -> ResumePlan:
    """What `resume` would do with the same arguments. Nothing is appended, and no stage runs.

    A run that cannot go on is told in the plan's `refused`. Raises `UnknownRun`, `ArgumentError`,
    `ConfigError`, `StoreError`, and `NotResumable` where the code is not found.
    """
    with opened(store, create=False, read_only=True) as events:
        found = code_of(workflow, events, run_id, needed=True)
        assert found is not None
        edits = Edits(config, state, seed, strict)
        plan = planning.plan_resume(events, run_id, found, at, edits, rename or {})
        return plan._replace(status=status_of(events, run_id))


def fork(
    run_id: str,
    *,
    at: int | None,
    config: Any = None,
    state: Mapping[str, Any] | None = None,
    seed: int | None = None,
    new_run_id: str | None = None,
    workflow: Workflow[Any, Any] | str | None = None,
    store: StoreLike = None,
) -> str:
    """Make a run that shares the beginning of another, and goes its own way from there; its id.

    It begins at the latest consistent cut at or before seq `at` (None: the last event), with the
    fields of `config`, the keys of `state` and the `seed` edited. `kitchen.resume` runs it. The
    parent may be running, and stays as it is.

    Raises `ArgumentError`, `ConfigError`, `StateError`, `NotResumable`, `RunExists`, `UnknownRun`,
    `StoreError`.
    """
    edits = Edits(config, state, seed)
    return forked(run_id, at, edits, new_run_id, workflow, store).run


def forked(
    run_id: str,
    at: int | None,
    edits: Edits,
    new: str | None,
    workflow: Workflow[Any, Any] | str | None,
    store: StoreLike,
) -> forking.Forked:
    """`fork`, and where that was."""
    check_id(new)
    with opened(store, create=False) as events:
        events.run(run_id)
        name = start.new_run_id(started(events, run_id).workflow) if new is None else new
        with events.lease(name, note="fork"):
            code = _typed(workflow, events, run_id, edits)
            return forking.fork(events, run_id, name, at, edits, code, start.this_host())


def _typed(
    workflow: Workflow[Any, Any] | str | None, events: EventStore, run_id: str, edits: Edits
) -> Workflow[Any, Any] | None:
    """The code, where edits are to be held to the types that it declares."""
    ir = recorded_ir(events, run_id)
    wanted = (edits.config and ir.config is not None) or (edits.state and ir.state is not None)
    if workflow is None and not wanted:
        return None
    try:
        return code_of(workflow, events, run_id, needed=True, verb="fork")
    except NotResumable as error:
        raise NotResumable(
            f"edits are checked against the types of the workflow: {error.message}",
            hint="say where the workflow is: workflow=, or --workflow module:name",
        ) from error


def check_runs(
    workflow: Workflow[Any, Any] | str, *, store: StoreLike = None, every: bool = False
) -> list[Checked]:
    """Which unfinished runs of a workflow can go on with its code as it is now; with `every`, all
    of its runs. Each is folded; nothing is appended, and no stage runs.

    Raises `StoreError`, `UnknownWorkflow`.
    """
    code = workflow_at(workflow) if isinstance(workflow, str) else workflow
    check_workflow(code)
    with opened(store, create=False, read_only=True) as events:
        told: list[Checked] = []
        for info in events.runs():
            if info.name == code.name:
                status = status_of(events, info.run)
                if every or status not in _OVER:
                    told.append(planning.checked(events, info.run, status, code))
        return told

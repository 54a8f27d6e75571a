"""Taking a run up again: fold, rewind if need be, have the resources back, go on.

Rules:

1. The log decides. A run whose stateful resources were touched since the last cut is rewound to
   it; any other goes on from its last event.
2. A changed workflow may go on if every recorded event is legal on it. If not, the error names
   the first that is not, and what the recorded workflow did there. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from kitchen.errors import ArgumentError, IllegalEvent, WorkflowChanged
from kitchen.log.journal import Journal
from kitchen.log.reader import recorded_ir
from kitchen.log.renaming import Names
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import compile_workflow
from kitchen.machine.commands import Command
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore
from kitchen.runner.declared import initial_state, suggest
from kitchen.runner.loop import Execution
from kitchen.runner.restoring import bring_back
from kitchen.runner.scope import Scope
from kitchen.workflow import ir as IR
from kitchen.workflow.changes import differences
from kitchen.workflow.definition import Workflow
from kitchen.workflow.ir import WorkflowIR

NO_NAMES: Names = MappingProxyType[str, str]({})
LIFE = ("RunForked", "RunResumed", "RunRewound", "RunCompleted")


def open_journal(
    store: EventStore,
    run: str,
    workflow: Workflow[Any, Any],
    *,
    names: Names = NO_NAMES,
    again: bool = False,
) -> tuple[Journal, tuple[str, ...]]:
    """The run folded on today's workflow, and what differs from the recorded one.

    `names`: the new paths of nodes by their old ones. `again`: it goes on even if it is completed.
    Raises `WorkflowChanged` where the recorded history is not legal on it, `ArgumentError` where
    a name is not one.
    """
    recorded = recorded_ir(store, run)
    ended = store.latest(run, LIFE, path="")
    over = not again and ended is not None and ended.type == "RunCompleted"
    ir = recorded if over else workflow.ir  # what is over is no matter of today's workflow
    if ir.name != recorded.name:
        raise WorkflowChanged(
            f"run {run!r} is of the workflow {recorded.name!r}, and was given {ir.name!r}",
            hint=f"resume it with {recorded.name!r}; if that was renamed, keep the name: "
            f"@kitchen.workflow(name={recorded.name!r})",
        )
    journal = Journal(store, run, compile_workflow(ir))
    names = {was: now for was, now in names.items() if not _is_said(journal, was, now)}
    if names and not over:
        check_names(recorded, ir, names)
        journal.rename(names)
    changes = differences(recorded, ir, names)
    if not names and IR.fingerprint(recorded) == journal.program.fingerprint:
        journal.load()
    else:
        _refold(journal, changes)
    return journal, changes


def _refold(journal: Journal, changes: tuple[str, ...]) -> None:
    """Fold the whole log on a changed workflow: snapshots of the old one do not serve."""
    journal.check(0)
    state = State()
    try:
        journal.state = journal.folded(state, None)
    except IllegalEvent as error:
        new = journal.program.ir
        lines = "\n  ".join(changes) or "(only the order)"
        raise WorkflowChanged(
            f"run {journal.run!r} cannot go on with workflow {new.name!r} as it is now.\n"
            f"  {_told(journal, state.seq, error)}\n  what changed:\n  {lines}",
            hint="resume with the code that started it; or, if a node only has another name, with "
            "--rename OLD=NEW; or fork it before what differs: kitchen fork "
            f"{journal.run} --at {state.seq - 1}",
        ) from None


def _told(journal: Journal, seq: int, error: IllegalEvent) -> str:
    """What the recorded workflow did at a seq, and why that cannot be now."""
    was, now = f"event {seq}", error.message
    loops = compile_workflow(recorded_ir(journal.store, journal.run)).loops
    for record in journal.store.read(journal.run, after=seq - 1, until=seq):
        where = E.spell(record.path, record.visit, loops.get(record.path)) or "the run"
        was = f"event {seq} is {record.type} at {where}"
        path = journal.renaming.path(seq, record.path)
        if path and path not in journal.program.nodes:
            now = f"the workflow has no {path!r}"
    return f"recorded: {was}\n  now: {now}"


async def take_up(execution: Execution, given: C.Resume) -> Sequence[Command]:
    """Resume: the commands with which the run goes on.

    A resource that cannot be had again fails the run.
    """
    scope = execution.scope
    execution.step(given)
    execution.rewound = False  # nothing is open yet
    if scope.journal.state.status != "running":
        return ()  # the crash budget is spent
    return await bring_back(execution)


def workflow_changed(
    scope: Scope, changed: tuple[str, ...], names: Names = NO_NAMES
) -> E.WorkflowChanged | None:
    """The event that tells a change, if there is one, with the defaults of fields that the state
    has gained."""
    if not changed:
        return None
    program, state = scope.journal.program, scope.journal.state
    assert state.started is not None
    known = state.core.data.keys() | state.started.state.keys()
    declared = initial_state(scope.workflow.state_type, scope.codec)
    gained = {key: value for key, value in declared.items() if key not in known}
    ir = E.Raw(IR.to_json(program.ir))
    return E.WorkflowChanged(ir, program.fingerprint, changed, gained, dict(names))


def _is_said(journal: Journal, was: str, now: str) -> bool:
    """Whether the log says already that a node is called so."""
    return bool(journal.renaming) and journal.renaming.path(1, was) == now


def check_names(old: WorkflowIR, new: WorkflowIR, names: Names) -> None:
    """Whether nodes can have been renamed so.

    Raises `ArgumentError`.
    """
    before, after = dict(IR.walk(old)), dict(IR.walk(new))
    for was, now in names.items():
        if was not in before:
            raise ArgumentError(f"the run has no node {was!r}", hint=suggest(was, before))
        if now not in after:
            raise ArgumentError(f"the workflow has no node {now!r}", hint=suggest(now, after))
        if type(before[was]) is not type(after[now]):
            kinds = (type(node).__name__.removesuffix("Node") for node in (before[was], after[now]))
            raise ArgumentError(f"{was!r} was a {next(kinds)}, and {now!r} is a {next(kinds)}")
        inside = [path for path in before if path == was or path.startswith(f"{was}/")]
        held = [path for path in inside if isinstance(before[path], IR.ResourceNode)]
        if held:
            raise ArgumentError(
                f"{was!r} cannot be renamed: the log calls resources by their names, and {held[0]!r} is one",
                hint="keep the name",
            )

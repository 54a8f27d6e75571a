"""Taking a run up again: fold, rewind if need be, have the resources back, go on.

Rules:

1. The log decides. A run whose stateful resources were touched since the last cut is rewound to
   it; any other goes on from its last event.
2. A changed workflow may go on if every recorded event is legal on it. If not, the error names
   the first that is not, and what the recorded workflow did there. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kitchen.errors import IllegalEvent, WorkflowChanged
from kitchen.log.journal import Journal
from kitchen.log.reader import recorded_ir
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import compile_workflow
from kitchen.machine.commands import Command, Decided
from kitchen.machine.events import Host
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore
from kitchen.runner.declared import initial_state
from kitchen.runner.loop import Execution
from kitchen.runner.restoring import bring_back
from kitchen.runner.scope import Scope
from kitchen.workflow import ir as IR
from kitchen.workflow.definition import Workflow
from kitchen.workflow.ir import WorkflowIR


def open_journal(
    store: EventStore, run: str, workflow: Workflow[Any, Any]
) -> tuple[Journal, tuple[str, ...]]:
    """The run folded on today's workflow, and what differs from the recorded one.

    Raises `WorkflowChanged` where the recorded history is not legal on it.
    """
    recorded = recorded_ir(store, run)
    ended = store.latest(run, ["RunCompleted"]) is not None  # then today's workflow is no matter
    ir = recorded if ended else workflow.ir
    if ir.name != recorded.name:
        raise WorkflowChanged(
            f"run {run!r} is of the workflow {recorded.name!r}, and was given {ir.name!r}",
            hint=f"resume it with {recorded.name!r}; if that was renamed, keep the name: "
            f"@kitchen.workflow(name={recorded.name!r})",
        )
    journal = Journal(store, run, compile_workflow(ir))
    changes = differences(recorded, ir)
    if IR.fingerprint(recorded) == journal.program.fingerprint:
        journal.load()
    else:
        _refold(journal, recorded)
    return journal, changes


def _refold(journal: Journal, recorded: WorkflowIR) -> None:
    """Fold the whole log on a changed workflow: snapshots of the old one do not serve."""
    journal.check(0)
    state = State()
    try:
        journal.state = journal.folded(state, None)
    except IllegalEvent as error:
        new = journal.program.ir
        lines = "\n  ".join(differences(recorded, new)) or "(only the order)"
        raise WorkflowChanged(
            f"run {journal.run!r} cannot go on with workflow {new.name!r} as it is now.\n"
            f"  recorded: {_told(journal.store, journal.run, state.seq)}\n"
            f"  now: {error.message}\n  what changed:\n  {lines}",
            hint="resume with the code that started it, or start a new run",
        ) from None


def _told(store: EventStore, run: str, seq: int) -> str:
    for record in store.read(run, after=seq - 1, until=seq):
        return f"event {seq} is {record.type} at {E.spell(record.path, record.visit) or 'the run'}"
    return f"event {seq}"


def differences(old: WorkflowIR, new: WorkflowIR) -> tuple[str, ...]:
    """What differs between two versions of a workflow, node by node, in words."""
    before, after = dict(IR.walk(old)), dict(IR.walk(new))
    told = [
        f"changed: {name} of the workflow"
        for name in ("name", "seed_globals", "compensate", "config", "state")
        if _code(getattr(old, name)) != _code(getattr(new, name))
    ]
    told += [f"removed: {path}" for path in before if path not in after]
    told += [f"added: {path}" for path in after if path not in before]
    for path in before.keys() & after.keys():
        was, now = before[path], after[path]
        if type(was) is not type(now):
            told.append(f"changed kind: {path}")
        elif _own(was) != _own(now):
            before_own, after_own = _own(was), _own(now)
            fields = [name for name in after_own if before_own[name] != after_own[name]]
            told.append(f"changed: {path} ({', '.join(fields)})")
    kept = [path for path in before if path in after]
    if kept != [path for path in after if path in before]:
        told.append("the order of the nodes")
    return tuple(sorted(told))


def _own(node: Any) -> dict[str, Any]:
    """A node's own fields, without its children."""
    inner = {"then", "otherwise", "branches"}
    inner |= set[str]() if isinstance(node, IR.StageNode) else {"body"}
    own = {name: getattr(node, name) for name in node.__struct_fields__ if name not in inner}
    return {name: _code(value) for name, value in own.items()}


def _code(value: Any) -> Any:
    """A script is the same module under any name, so the name is left out."""
    if isinstance(value, dict):  # the reducers of a parallel, or a stage's options
        return {key: _code(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, IR.Reducer):
        return value.name, _code(value.code)
    return (value.qualname, value.digest) if isinstance(value, IR.CodeRef) else value


async def take_up(
    execution: Execution, host: Host, changed: tuple[str, ...], decided: tuple[Decided, ...] = ()
) -> Sequence[Command]:
    """Resume: the commands with which the run goes on.

    A resource that cannot be had again fails the run.
    """
    scope = execution.scope
    told = _workflow_changed(scope, changed) if changed else None
    execution.step(C.Resume(host, told, decided))
    execution.rewound = False  # nothing is open yet
    if scope.journal.state.status != "running":
        return ()  # the crash budget is spent
    return await bring_back(execution)


def _workflow_changed(scope: Scope, changed: tuple[str, ...]) -> E.WorkflowChanged:
    """The event that tells a change, with the defaults of fields that the state has gained."""
    program, state = scope.journal.program, scope.journal.state
    assert state.started is not None
    known = state.core.data.keys() | state.started.state.keys()
    declared = initial_state(scope.workflow.state_type, scope.codec)
    gained = {key: value for key, value in declared.items() if key not in known}
    ir = E.Raw(IR.to_json(program.ir))
    return E.WorkflowChanged(ir, program.fingerprint, changed, gained)

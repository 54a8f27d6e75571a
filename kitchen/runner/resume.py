"""Taking a run up again: fold, rewind if need be, open the resources anew, go on.

Rules:

1. The log decides. A run whose stateful resources were touched since the last cut is rewound to
   it; any other goes on from its last event.
2. Resources are opened in their old order, each factory with the state that it saw then, and each
   is loaded before the next factory may look at it. One that a later factory used is loaded again
   at the end: an optimiser's factory may do to its model what it likes.
3. A changed workflow may go on if every recorded event is legal on it. If not, the error names
   the first that is not, and what the recorded workflow did there. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyio import to_thread

from kitchen.errors import IllegalEvent, NotResumable, WorkflowChanged
from kitchen.log.journal import Journal
from kitchen.log.reader import read_facts, recorded_ir
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine.chart import compile_workflow
from kitchen.machine.commands import Command
from kitchen.machine.events import Address, Host
from kitchen.machine.fold import apply
from kitchen.machine.state import ResourceState, State
from kitchen.ports.event_store import EventStore
from kitchen.runner import checkpoint
from kitchen.runner.failure import describe
from kitchen.runner.loop import Execution
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
    journal = Journal(store, run, compile_workflow(ir))
    changes = differences(recorded, ir)
    if IR.fingerprint(recorded) == journal.program.fingerprint:
        journal.load()
    else:
        _refold(journal, recorded)
    return journal, changes


def _refold(journal: Journal, recorded: WorkflowIR) -> None:
    """Fold the whole log on a changed workflow: snapshots of the old one do not serve."""
    state = State()
    try:
        for fact in read_facts(journal.store, journal.run):
            apply(journal.program, state, fact, journal)
    except IllegalEvent as error:
        new = journal.program.ir
        lines = "\n  ".join(differences(recorded, new)) or "(only the order)"
        raise WorkflowChanged(
            f"run {journal.run!r} cannot go on with workflow {new.name!r} as it is now.\n"
            f"  recorded: {_told(journal.store, journal.run, state.seq)}\n"
            f"  now: {error.message}\n  what changed:\n  {lines}",
            hint="resume with the code that started it, or start a new run",
        ) from None
    journal.state = state


def _told(store: EventStore, run: str, seq: int) -> str:
    for record in store.read(run, after=seq - 1, until=seq):
        return f"event {seq} is {record.type} at {E.spell(record.path, record.visit) or 'the run'}"
    return f"event {seq}"


def differences(old: WorkflowIR, new: WorkflowIR) -> tuple[str, ...]:
    """What differs between two versions of a workflow, node by node, in words."""
    before, after = dict(IR.walk(old)), dict(IR.walk(new))
    told = [
        f"changed: {name} of the workflow"
        for name in ("name", "seed_globals")
        if getattr(old, name) != getattr(new, name)
    ]
    told += [f"removed: {path}" for path in before if path not in after]
    told += [f"added: {path}" for path in after if path not in before]
    for path in before.keys() & after.keys():
        was, now = before[path], after[path]
        if type(was) is not type(now):
            told.append(f"changed kind: {path}")
        elif _own(was) != _own(now):
            told.append(f"changed: {path}")
    kept = [path for path in before if path in after]
    if kept != [path for path in after if path in before]:
        told.append("the order of the nodes")
    return tuple(sorted(told))


def _own(node: Any) -> dict[str, Any]:
    """A node's own fields, without its children. A script is the same module under any name."""
    inner = {"then", "otherwise"} | ({"body"} if isinstance(node, IR.LoopNode) else set[str]())
    own = {name: getattr(node, name) for name in node.__struct_fields__ if name not in inner}
    for name, value in own.items():
        if isinstance(value, IR.CodeRef):
            own[name] = (value.qualname, value.digest)
    return own


async def take_up(execution: Execution, host: Host, changes: tuple[str, ...]) -> Sequence[Command]:
    """Resume: the commands with which the run goes on.

    A resource that cannot be had again fails the run, and raises what `run` would raise.
    """
    scope = execution.scope
    if changes:
        program = scope.journal.program
        ir = E.Raw(IR.to_json(program.ir))
        execution.record([E.Fact(E.WorkflowChanged(ir, program.fingerprint, changes))])
    execution.step(C.Resume(host))
    resources = list(scope.journal.state.core.resources.items())
    used: set[str] = set()
    at = Address("")
    try:
        for name, known in resources:
            at = Address(known.path, known.visit)
            used |= await _reopen(execution, name, known)
            await _load(execution, name, known)
        for name, known in resources:
            if name in used:
                at = Address(known.path, known.visit)
                await _load(execution, name, known)
    except (Exception, SystemExit) as error:
        execution.performer.failed = error
        execution.step(C.CommandFailed(at, describe(error)))
        return ()
    for name, known in resources:
        execution.step(C.ResourceReturned(name, known.saved))
    return execution.step(C.Continue())


async def _reopen(execution: Execution, name: str, known: ResourceState) -> set[str]:
    """Call a factory again, with the state that it saw; the resources that it used."""
    address = Address(known.path, known.visit)
    attempt = execution.performer.past_attempt(address, known.opened - 1, "factory")
    attempt.touched |= await execution.performer.ensure_items(address)
    stateful = await execution.performer.open(name, address, attempt)
    if known.stateful and not stateful:
        raise NotResumable(
            f"resource {name!r} was stateful when it was opened; now it has no state_dict()",
            hint="resume with the code that started the run",
        )
    return attempt.touched


async def _load(execution: Execution, name: str, known: ResourceState) -> None:
    """Load what its last checkpoint holds, if there is one."""
    scope, manifest = execution.scope, known.manifest
    if manifest is None:
        return
    live = scope.live.get(name).value
    await to_thread.run_sync(checkpoint.load, name, live, manifest, scope.journal)

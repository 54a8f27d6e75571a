"""Forking: a new run that shares the beginning of another.

Rules:

1. The events of the parent up to a cut are the fork's as well, by reference. What is the fork's own
   begins with `RunForked`, then `RunEdited` if something is changed; both are one append.
2. The parent stays as it is, and may be running: what is recorded does not change any more.
3. The fork waits to be resumed. Attempts that were running at the cut are the parent's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kitchen.errors import NotResumable
from kitchen.log.journal import new_event
from kitchen.log.reader import LogReader, recorded_ir
from kitchen.machine.chart import compile_workflow
from kitchen.machine.events import Fact, RunEdited, RunForked
from kitchen.machine.fold import apply
from kitchen.ports.event_store import EventStore
from kitchen.runner.edits import Edits, edit, fields_of
from kitchen.runner.start import this_host
from kitchen.runner.turning import Cut, cut_for
from kitchen.workflow.definition import Workflow


class Forked(NamedTuple):
    """A fork that was made, and where."""

    run: str
    parent: str
    cut: Cut
    edited: RunEdited | None


def fork(
    store: EventStore,
    parent: str,
    new: str,
    asked: int | None,
    edits: Edits,
    workflow: Workflow[Any, Any] | None,
) -> Forked:
    """Make a run that goes on from the cut of `parent` before a seq (None: where it stands).

    `workflow`: today's code, for edits of what it declares types of. Raises `ArgumentError`,
    `NotResumable`, `RunExists`, and for edits `ConfigError`, `StateError`, `UnknownKey`.
    """
    log = LogReader(store, parent, compile_workflow(recorded_ir(store, parent)))
    cut = cut_for(log, store.head(parent) if asked is None else asked)
    _check_done(log, cut)
    assert cut.state.started is not None
    fields = fields_of(workflow, log.program.loops)
    edited = edit(edits, cut.state.started, cut.state, workflow, fields, store.blobs)
    facts = [Fact(RunForked(parent, this_host())), *([Fact(edited)] if edited else [])]
    state = cut.state.copy()
    for fact in facts:
        apply(log.program, state, fact, log)
    name = cut.state.started.workflow
    store.fork_run(new, name, parent, cut.seq, [new_event(fact) for fact in facts])
    return Forked(new, parent, cut, edited)


def _check_done(log: LogReader, cut: Cut) -> None:
    """Raises `NotResumable` where stages before the cut were rolled back since."""
    done = cut.state.done or cut.state.compensated
    if done and log.state_at(None).compensated:
        raise NotResumable(
            f"run {log.run!r} has failed, and the stages that it had completed by event {cut.seq} "
            "were rolled back",
            hint="fork it before the first of them, or start another run",
        )

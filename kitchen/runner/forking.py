"""Forking: a new run that shares the beginning of another.

Rules:

1. The events of the parent up to a cut are the fork's as well, by reference. What is the fork's own
   begins with `RunForked`, then `RunEdited` if something is changed; both are one append.
2. The parent stays as it is, and may be running: what is recorded does not change any more.
3. The fork waits to be resumed. Attempts that were running at the cut are the parent's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kitchen.errors import ConfigError, NotResumable
from kitchen.log.journal import new_event
from kitchen.log.reader import LogReader, recorded_ir
from kitchen.machine.chart import compile_workflow
from kitchen.machine.events import Fact, Host, RunEdited, RunForked
from kitchen.machine.fold import apply
from kitchen.ports.event_store import EventStore
from kitchen.runner import config as configs
from kitchen.runner.edits import Edits, edit, fields_of
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
    host: Host,
) -> Forked:
    """Make a run that goes on from the cut of `parent` before a seq (None: where it stands).

    `workflow`: today's code, for edits of what it declares types of. Raises `ArgumentError`,
    `NotResumable`, `RunExists`, and for edits `ConfigError`, `StateError`, `UnknownKey`.
    """
    log = LogReader(store, parent, compile_workflow(recorded_ir(store, parent)))
    cut = cut_for(log, store.head(parent) if asked is None else asked)
    check_shared(store, parent, cut.seq)
    assert cut.state.started is not None
    fields = fields_of(workflow, log.program.loops)
    if edits.config:
        _refuse_texts(edits.changed(cut.state.started, workflow.config_type if workflow else None))
    edited = edit(edits, cut.state.started, cut.state, workflow, fields, store.blobs)
    facts = [Fact(RunForked(parent, host)), *([Fact(edited)] if edited else [])]
    state = cut.state.copy()
    for fact in facts:
        apply(log.program, state, fact, log)
    name = cut.state.started.workflow
    store.fork_run(new, name, parent, cut.seq, [new_event(fact) for fact in facts])
    return Forked(new, parent, cut, edited)


def _refuse_texts(config: Any) -> None:
    """Raises `ConfigError` for secrets that the process which runs the fork would not have."""
    places = configs.texts_in(config)
    if places:
        raise ConfigError(
            f"{', '.join(places)}: a fork keeps no secret that is given as a text",
            hint='set its variable when you resume the fork, or give Secret(env="NAME")',
        )


def check_shared(store: EventStore, run: str, until: int) -> None:
    """Whether what a run shares with its parents, up to event `until`, still stands.

    Raises `NotResumable` where one of them has rolled back a stage of it since.
    """
    parent: str | None = run
    while parent is not None:
        log = LogReader(store, parent, compile_workflow(recorded_ir(store, parent)))
        if not log.program.ir.compensate:
            return
        then = log.state_at(until)
        if (then.done or then.compensated) and log.state_at(None).compensated:
            raise NotResumable(
                f"run {parent!r} has failed, and the stages that it had completed by event {until} "
                "were rolled back",
                hint="fork it before the first of them, or start another run",
            )
        info = store.run(parent)
        parent, until = info.parent, min(until, info.forked_at)

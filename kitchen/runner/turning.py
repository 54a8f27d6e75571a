"""From where a run goes another way: the cut that serves a seq.

Rules:

1. A run goes on from a *consistent cut* only: the latest seq, not after the one that was named, at
   which every stateful resource is saved, just opened, or untouched since.
2. Half of what a stage has committed is no place to go on from; nor is the end of a run.
3. Any seq will do, also one in what a rewind has superseded: the run then goes back there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kitchen.errors import ArgumentError, NotResumable
from kitchen.log.journal import Journal
from kitchen.log.reader import LogReader
from kitchen.machine import commands as C
from kitchen.machine.decide import decide
from kitchen.machine.events import Host, LoopStopped, Mutation
from kitchen.machine.fold import apply
from kitchen.machine.state import State
from kitchen.runner.edits import Edits, Large, edit, fields_of
from kitchen.workflow.definition import Workflow

_CHUNK = 1_000  # events that are looked at together


class Cut(NamedTuple):
    """Where a run can go on, for the seq that was asked for; `state` is that at the cut."""

    asked: int
    seq: int
    state: State
    why: str = ""


def cut_for(log: LogReader, asked: int) -> Cut:
    """The latest cut at or before a seq.

    Raises `ArgumentError` where there is no such seq, `NotResumable` where nothing is before it.
    """
    head = log.store.head(log.run)
    if type(asked) is not int or not 1 <= asked <= head:
        raise ArgumentError(
            f"run {log.run!r} has the events 1 to {head}, not {asked}",
            hint=f"kitchen log {log.run} shows them with their numbers",
        )
    seq, why = asked, ""
    while seq > 0:
        settled = _settled(log, seq)
        state = log.state_at(settled)
        if settled != seq:
            why = why or "a stage was being committed there"
        if not _goes_on(state):
            seq, why = settled - 1, why or "the run was over there"
        elif state.cut != settled:
            seq, why = state.cut, f"{', '.join(state.dirty)} was touched since the cut"
        else:
            return Cut(asked, settled, state, why)
    raise NotResumable(f"run {log.run!r} has no cut at or before event {asked}")


def _settled(log: LogReader, seq: int) -> int:
    """The latest seq at which no attempt is half committed."""
    while seq > 0:
        first = max(seq - _CHUNK, 0)
        for fact in reversed(list(log.facts(first, seq + 1))):
            if not isinstance(fact.event, Mutation | LoopStopped):
                return seq
            seq -= 1
    return seq


def _goes_on(state: State) -> bool:
    control = state.core.control
    return bool(control.active or control.forks or control.feeds)


def turn_for(
    journal: Journal, workflow: Workflow[Any, Any], asked: int, edits: Edits, blobs: Large
) -> C.Turn:
    """The wish that a run goes another way from the cut before a seq. `blobs`: where edits go that
    are large.

    Raises what `cut_for` and `edit` raise.
    """
    cut = cut_for(journal, asked)
    assert cut.state.started is not None
    fields = fields_of(workflow, journal.program.loops)
    edited = edit(edits, cut.state.started, cut.state, workflow, fields, blobs)
    why = f"event {asked} was asked for"
    return C.Turn(cut.seq, f"{why}, and {cut.why}" if cut.why else why, edited)


def check_wish(journal: Journal, at: int | None, edits: Edits) -> None:
    """Whether a run can go another way.

    Raises `ArgumentError`, `NotResumable`.
    """
    if at is None and edits:
        raise ArgumentError(
            "config, state and seed are edited where a run goes another way: at=, or --at SEQ",
            hint=f"at={journal.state.seq} is where it stands; kitchen.fork leaves it as it is",
        )
    if at is not None and journal.state.compensated:
        raise NotResumable(
            f"run {journal.run!r} has failed, and stages that it had completed are rolled back",
            hint="start another run, under another id",
        )
    if at is not None and journal.state.status == "cancelled":
        raise NotResumable(
            f"run {journal.run!r} was cancelled: it is over",
            hint=f"fork it: kitchen fork {journal.run} --at {at} --run",
        )


class Nowhere:
    """Where a plan puts what is large: it is read by nobody."""

    def put(self, data: bytes | bytearray | memoryview) -> str:
        """Nothing."""
        del data
        return ""


def after_turn(journal: Journal, turn: C.Turn) -> State:
    """The state of a run that has been sent another way, before anything runs there."""
    state = journal.state.copy()
    decision = decide(journal.program, state, C.Resume(Host(), turn=turn))
    for fact in decision.facts:
        apply(journal.program, state, fact, journal)
    return state

"""What a resume will do, before anything runs.

Rules:

1. A plan is read from the log and today's workflow. Nothing is appended, nothing of the user's is
   called.
2. What runs again is told by path, with the time that it took; `lost` is the time in which the run
   was executed, between the cut and its last event.
3. A run that cannot go on has a plan too: it says why not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kitchen.errors import ConfigError, KitchenError, NotResumable
from kitchen.log.journal import Journal
from kitchen.log.live import Live, live
from kitchen.log.reader import fact_of
from kitchen.log.renaming import Names
from kitchen.machine import commands as C
from kitchen.machine.events import Address, ResourceTouched, spell
from kitchen.machine.outstanding import undecided
from kitchen.machine.state import Once, State
from kitchen.ports.event_store import EventStore, Record
from kitchen.runner import config as configs
from kitchen.runner.edits import Edits
from kitchen.runner.resume import open_journal
from kitchen.runner.turning import Nowhere, after_turn, check_wish, turn_for
from kitchen.workflow.definition import Workflow

_DAY = 86_400.0
_TAKEN_UP = (
    "WorkflowChanged",
    "RunResumed",
    "RunRewound",
    "RunForked",
)  # nobody was at work before


class Again(NamedTuple):
    """A stage of which visits run again: how many were completed, how many were under way, and
    how many seconds they took."""

    path: str
    completed: int
    running: int
    seconds: float


class Touch(NamedTuple):
    """Where a resource was touched first since it was saved or opened."""

    name: str
    where: str
    seq: int


class Missing(NamedTuple):
    """A blob that is not there, and what needs it: "resource model", "state.weights" or "the log"."""

    digest: str
    needed_by: str


class ResumePlan(NamedTuple):
    """What `resume` would do.

    Events 1 to `cut` are kept, `superseded` events no longer count. `asked`: the seq of `at=`.
    `after`: what it is taken up after, a "crash", "failure", "interruption" or "fork". `why`: why
    the run goes back. `edits`: what is changed. `refused`: why it cannot go on, None if it can.
    """

    run: str
    workflow: str
    status: str
    head: int
    cut: int
    asked: int | None = None
    why: str = ""
    superseded: int = 0
    touched: tuple[Touch, ...] = ()
    again: tuple[Again, ...] = ()
    lost: float = 0.0
    missing: tuple[Missing, ...] = ()
    changes: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    refused: str | None = None
    after: str = "crash"

    def __str__(self) -> str:
        if self.refused is not None:
            return self.refused.splitlines()[0]
        if self.status in ("completed", "cancelled") and self.asked is None:
            return f"run {self.run} is {self.status}: there is nothing to resume"
        if self.undecided:
            return f"run {self.run} waits for a decision: {', '.join(self.undecided)}"
        return "".join((self._whence(), *self._again(), *self._counts()))

    def _whence(self) -> str:
        if self.asked is not None:
            return f"resuming {self.run} from seq {self.cut}, back from seq {self.head}: {self.why}"
        article = "an" if self.after[:1] in "aeiou" else "a"
        told = f"resuming {self.run} after {article} {self.after} at seq {self.head}: "
        if self.cut == self.head:
            return told + "nothing was lost, going on from there"
        return told + f"rewound to seq {self.cut} ({self.why})"

    def _again(self) -> Iterator[str]:
        count = sum(each.completed + each.running for each in self.again)
        if count:
            told = "1 stage runs again" if count == 1 else f"{count} stages run again"
            yield f", {told}, {spelled(self.lost)} of work"

    def _counts(self) -> Iterator[str]:
        for one, many, count in (
            ("change of the workflow", "changes of the workflow", len(self.changes)),
            ("edit", "edits", len(self.edits)),
            ("blob is missing", "blobs are missing", len(self.missing)),
        ):
            if count:
                yield f"; {count} {one if count == 1 else many}"


def spelled(seconds: float) -> str:
    """A time as people say it: "0.4 s", "41 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < _DAY:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // _DAY:.0f} d {seconds % _DAY // 3600:.0f} h"


def plan_resume(
    store: EventStore,
    run: str,
    workflow: Workflow[Any, Any],
    at: int | None,
    edits: Edits,
    names: Names,
) -> ResumePlan:
    """What `resume` would do with these; a run that cannot go on is told in `refused`.

    Raises `UnknownRun`, `ArgumentError`, `StoreError`.
    """
    head = store.head(run)
    turning = at is not None
    try:
        journal, changes = open_journal(store, run, workflow, names=names, again=turning)
        check_wish(journal, at, edits)
        turn = turn_for(journal, workflow, at, edits, Nowhere()) if at is not None else None
    except NotResumable as error:
        return ResumePlan(run, workflow.name, "", head, head, at, refused=_told(error))
    plan = planned(journal, changes, turn, at)
    try:
        fits(journal.state if turn is None else after_turn(journal, turn), workflow)
    except ConfigError as error:
        return plan._replace(refused=_told(error))
    return plan


def _told(error: KitchenError) -> str:
    return error.message if error.hint is None else f"{error.message}\n  {error.hint}"


def planned(
    journal: Journal, changes: tuple[str, ...], turn: C.Turn | None, asked: int | None = None
) -> ResumePlan:
    """The plan for a run that is folded already."""
    state = journal.state
    goes_on = state.status not in ("completed", "cancelled") and not state.is_taken_back
    if turn is not None:
        cut, why, behind = turn.to, turn.why, after_turn(journal, turn)
    elif state.dirty and goes_on:
        cut, why, behind = state.cut, _touched(state), state
    else:
        cut, why, behind = state.seq, "", state
    lost, kept = _lost(journal, cut) if cut != state.seq else ([], set[Address]())
    kept |= {at for at, known in behind.memo.items() if isinstance(known, Once) and known.effects}
    waiting = [*undecided(journal.program, behind)]
    if turn is not None:
        waiting += [at for at, known in behind.memo.items() if known == Once(None)]
    base = ResumePlan(
        journal.run,
        journal.program.ir.name,
        state.status,
        state.seq,
        cut,
        asked,
        why,
        len(lost),
        tuple(_touches(journal, lost, state.dirty or behind.core.resources)),
        tuple(_again(journal, lost, kept)),
        _executed(lost),
        tuple(_missing(journal, behind)) if goes_on or turn is not None else (),
        changes,
        tuple(_edits(turn)),
        tuple(spell(*at, journal.program.loops.get(at.path)) for at in dict.fromkeys(waiting)),
        after=_after(journal),
    )
    if state.is_taken_back:
        told = f"run {journal.run!r} has failed, and its completed stages were rolled back"
        return base._replace(refused=told)
    return base


def _after(journal: Journal) -> str:
    last = journal.store.latest(journal.run, path="")
    if last is not None and last.type in ("RunForked", "RunEdited"):
        return "fork"
    return {"failed": "failure", "interrupted": "interruption"}.get(journal.state.status, "crash")


def _touched(state: State) -> str:
    """Why a run goes back to its cut."""
    names, known = state.dirty, state.core.resources
    saved = max((known[name].saved or 0 for name in names), default=0)
    since = f"the checkpoint at {saved}" if saved else "it was opened"
    return f"{', '.join(names)} {'were' if len(names) > 1 else 'was'} touched since {since}"


def _lost(journal: Journal, cut: int) -> tuple[list[Record], set[Address]]:
    """The events that count now, and will not once the run has gone back to `cut`; and what was
    completed in those that will count again."""
    now, then = live(journal.store, journal.run), live(journal.store, journal.run, cut)
    lost: list[Record] = []
    kept: set[Address] = set()
    for record in journal.store.read(journal.run, after=_common(now, then)):
        counts, will = now.counts(record.seq), then.counts(record.seq)
        if counts and not will:
            lost.append(record)
        elif will and not counts and record.type == "StageCompleted":
            kept.add(_address(journal, record))
    return lost, kept


def _common(now: Live, then: Live) -> int:
    """Up to which event the same events count in both."""
    last = 0
    for one, other in zip(now.stretches, then.stretches, strict=False):
        if one[0] != other[0]:
            break
        last = min(one[1], other[1])
        if one[1] != other[1]:
            break
    return last


def _touches(journal: Journal, lost: Iterable[Record], names: Iterable[str]) -> Iterator[Touch]:
    wanted = set(names)
    for record in lost:
        if record.type == ResourceTouched.__name__:
            event: Any = fact_of(record).event
            if event.name in wanted:
                wanted.discard(event.name)
                yield Touch(event.name, _spelled(journal, record), record.seq)


def _address(journal: Journal, record: Record) -> Address:
    return Address(journal.renaming.path(record.seq, record.path), record.visit)


def _spelled(journal: Journal, record: Record) -> str:
    at = _address(journal, record)
    return spell(*at, journal.program.loops.get(at.path))


def _again(journal: Journal, lost: list[Record], kept: set[Address]) -> Iterator[Again]:
    """The stages of which visits run again, in the order in which they first ran."""
    began: dict[tuple[Address, int], Record] = {}
    found: dict[str, Again] = {}
    for record in lost:
        at = _address(journal, record)
        key, known = (at, record.attempt), found.get(at.path, Again(at.path, 0, 0, 0.0))
        if at in kept:
            continue
        if record.type == "StageStarted":
            began[key] = record
            found.setdefault(at.path, known)
        elif record.type == "StageCompleted":
            start = began.pop(key, record)
            took = max(record.at - start.at, 0) / 1e9
            found[at.path] = known._replace(
                completed=known.completed + 1, seconds=known.seconds + took
            )
        elif record.type in ("StageFailed", "StageSkipped"):
            began.pop(key, None)
    for (at, _), start in began.items():
        known = found[at.path]
        took = max(lost[-1].at - start.at, 0) / 1e9
        found[at.path] = known._replace(running=known.running + 1, seconds=known.seconds + took)
    yield from (each for each in found.values() if each.completed or each.running)


def _executed(lost: list[Record]) -> float:
    """Seconds between these events, but for the time in which nobody executed the run."""
    pairs = itertools.pairwise(lost)
    return sum(max(b.at - a.at, 0) for a, b in pairs if b.type not in _TAKEN_UP) / 1e9


def _missing(journal: Journal, state: State) -> Iterator[Missing]:
    """Blobs that the run names and that are not there, and what of the cut needs them."""
    has = journal.store.blobs.has
    gone = [digest for digest in journal.store.named_blobs(journal.run) if not has(digest)]
    if not gone:
        return
    texts = {
        f"resource {n}": r.manifest.tree for n, r in state.core.resources.items() if r.manifest
    }
    texts |= {f"state.{key}": cell.base for key, cell in state.core.data.items()}
    for digest in gone:
        users = [what for what, text in texts.items() if digest.encode() in bytes(text)]
        yield Missing(digest, ", ".join(users) or "the log")


def _edits(turn: C.Turn | None) -> Iterator[str]:
    edited = None if turn is None else turn.edited
    if edited is None:
        return
    if bytes(edited.config):
        yield "config"
    if edited.seed is not None:
        yield f"seed = {edited.seed}"
    for key in edited.state:
        yield f"state.{key}"


def fits(state: State, workflow: Workflow[Any, Any]) -> None:
    """Whether the recorded config fits the type that is declared now.

    Raises `ConfigError`.
    """
    assert state.started is not None
    configs.restore(state.started.config, workflow.config_type)


class Checked(NamedTuple):
    """Whether a run can go on with a workflow as it is now, and `why` not."""

    run: str
    status: str
    ok: bool
    why: str = ""
    changes: tuple[str, ...] = ()


def checked(store: EventStore, run: str, status: str, workflow: Workflow[Any, Any]) -> Checked:
    """Fold a run on today's code.

    Raises `StoreError` where the store does not read.
    """
    try:
        journal, changes = open_journal(store, run, workflow, again=True)
        fits(journal.state, workflow)
    except KitchenError as error:
        return Checked(run, status, False, error.message)
    return Checked(run, status, True, "", changes)

"""A run as a tree of places: what counts of it, by path and visit, in the order of the program.

Rules:

1. A place is an address: a node under the indices of the loops around it. A loop's place holds one
   for each of its visits, which holds what the body came to there. Nothing depends on what ran
   beside what, or finished first.
2. What an attempt did counts once it is committed. How many came to nothing is counted, whether a
   rewind has superseded them or not: they are not made again behind it. Where somebody sent the
   run another way, they are.
3. A production that nobody consumed leaves nothing: whether it was made in time is chance. Nor do
   the branches of a parallel whose failure was handled.
4. Seconds are those during which a process executed the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kitchen.history.counted import counted
from kitchen.log.live import Live, live
from kitchen.log.reader import fact_of, recorded_renaming
from kitchen.log.renaming import Renaming
from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Visit
from kitchen.ports.event_store import EventStore, Record
from kitchen.workflow.ir import PRODUCER, REPEATING, STOP_WHEN, walk

EFFECTS = frozenset((
    "StatePut", "StateDeleted", "StateAppended", "StateIncremented", "StateMerged",
    "MetricRecorded", "LoopStopped",
))  # fmt: skip
_BEFORE = frozenset((
    "LoopEntered", "ItemTaken", "ItemProduced", "ItemDiscarded", "ConditionEvaluated",
    "BranchesStarted", "ResourceOpened", "CheckpointSaved",
))  # fmt: skip
_BEHIND = frozenset((
    "LoopExited", "BranchesJoined", "BranchCompleted", "BranchFailed", "ResourcesClosed",
    "StageSkipped", "StageRolledBack", "FailureHandled",
))  # fmt: skip
_ATTEMPTS = {
    "StageStarted": "running",
    "StageCompleted": "completed",
    "StageFailed": "failed",
    "StageInterrupted": "interrupted",
    "RetryScheduled": "waiting",
    "StageSkipped": "skipped",
    "BranchFailed": "failed",
    "FailureHandled": "failed",
}
_TAKEN_UP = frozenset(("RunResumed", "RunForked", "RunEdited", "RunRewound", "WorkflowChanged"))
_LEFT = '"left"'


@dataclass(slots=True, eq=False)
class Place:
    """What is known of an address.

    `kind`: the node's, or "visit" for one of a loop; "" for the run. `before` and `behind`: the
    events before and behind those of the places in it. `effects`: of the attempt that was
    committed. `ended`: how the last attempt did, "" where there was none, and `told`: the seq that
    says so. `failed` and `interrupted`: how many attempts were. `seconds`: of attempts; of a place
    with others in it, from the first to the last.
    """

    path: str
    visit: Visit
    name: str
    kind: str
    order: tuple[int, int]
    inner: dict[tuple[str, Visit], Place] = field(default_factory=dict[Any, Any])
    before: tuple[Record, ...] = ()
    behind: tuple[Record, ...] = ()
    effects: tuple[Record, ...] = ()
    ended: str = ""
    committed: int = 0
    attempt: int = 0
    told: int = 0
    failed: int = 0
    interrupted: int = 0
    first: int = 0
    last: int = 0
    began: int = 0
    executed: int = 0

    @property
    def seconds(self) -> float:
        """How long it took, while a process executed it."""
        return (self.executed if self.kind == "stage" else self.last - self.first) / 1e9

    @property
    def is_spare(self) -> bool:
        """Whether it is an item that was made, and not taken."""
        return bool(self.before) and all(told.type == "ItemProduced" for told in self.before)

    @property
    def came_to_nothing(self) -> bool:
        """Whether all that was done there has failed. Whether that leaves a place is chance: behind
        the rewind that takes it back, what has failed for good is not begun again."""
        own = self.before or self.effects or self.behind or self.committed
        failed = not own and self.ended in ("", "failed")
        return failed and all(each.came_to_nothing for each in self.inner.values())

    def children(self) -> list[Place]:
        """The places in it, in the order of the program."""
        found = (each for each in self.inner.values() if not each.is_spare)
        return sorted(found, key=lambda each: each.order)


def places(store: EventStore, run: str, program: Program) -> Place:
    """The root of the tree of a run. Raises as reading the log does."""
    renaming = recorded_renaming(store, run)
    gathering = _Gathering(program, renaming)
    gathering.take(counted(store, run, renaming))
    for record in _lost(store, run, live(store, run)):
        place = gathering.known.get((renaming.path(record.seq, record.path), record.visit))
        if place is None:
            continue
        if record.type == "StageFailed":
            place.failed += 1
        else:
            place.interrupted += 1
        if record.seq > place.told:  # its beginning counts, and a rewind has taken back its end
            place.ended = _ATTEMPTS[record.type]
    return gathering.root


def _lost(store: EventStore, run: str, counting: Live) -> Iterator[Record]:
    """The attempts that came to nothing, of which nobody has said that the run shall go another way."""
    asked: list[tuple[int, int]] = []
    for record in store.read(run, types=["RunRewound"], path=""):
        event: Any = fact_of(record).event
        if event.asked:
            asked.append((event.to, record.seq))
    for record in store.read(run, types=["StageFailed", "StageInterrupted"]):
        gone = any(low < record.seq < high for low, high in asked)
        if counting.counts(record.seq) or not gone:
            yield record


class _Gathering:
    """Puts records where they belong."""

    def __init__(self, program: Program, renaming: Renaming) -> None:
        self._program = program
        self._renaming = renaming
        self._ranks = {path: rank for rank, (path, _) in enumerate(walk(program.ir))}
        self.root = Place("", (), "", "", (0, 0))
        self.known: dict[tuple[str, Visit], Place] = {("", ()): self.root}
        self._clock = 0
        self._stood: dict[tuple[str, Visit], Address] = {}
        self._running: dict[Place, None] = {}
        self._effects: dict[tuple[str, Visit], list[Record]] = {}

    def take(self, records: Iterator[Record]) -> None:
        at = 0
        for record in records:
            if record.path == "" and record.type in _TAKEN_UP:
                for place in list(self._running):
                    self._stop(place)
            elif at:
                self._clock += max(0, record.at - at)
            at = record.at
            self._put(record)

    def _put(self, record: Record) -> None:
        kind = record.type
        if kind in EFFECTS:
            self._effects.setdefault((record.path, record.visit), []).append(record)
            return
        if kind == "RunFailed" or kind.startswith("ResourceT") or kind == "ResourceRestored":
            return  # the run's last turn is asked for where it is told; the others are chance
        place = self._at(record.path, record.visit)
        place.last = self._clock
        if kind == "FailureHandled":
            self._leave(self._stood.pop((record.path, record.visit), None))
        if kind in _ATTEMPTS:
            self._attempt(place, record)
        if kind in _BEFORE:
            self._decided(place, record)
        elif kind in _BEHIND:
            if kind.startswith("Branch"):  # one that had failed may have been tried again
                place.behind = tuple(t for t in place.behind if t.type != "BranchFailed")
            place.behind += (record,)
        if kind == "BlockFailed":
            event: Any = fact_of(record).event
            path, visit = event.stood
            stood = Address(self._renaming.path(record.seq, path), visit)
            self._stood[record.path, record.visit] = stood

    def _decided(self, place: Place, record: Record) -> None:
        if record.type == "ConditionEvaluated" and place.kind == "visit":
            place.behind += (record,)  # whether the loop shall stop is asked behind the body
        elif record.type != "ItemDiscarded" or _LEFT not in record.payload:
            place.before += (record,)

    def _attempt(self, place: Place, record: Record) -> None:
        place.ended, place.told = _ATTEMPTS[record.type], record.seq
        key = (record.path, record.visit)
        if record.type == "StageStarted":
            self._effects.pop(key, None)
            place.began, place.attempt = self._clock, record.attempt
            self._running[place] = None
        elif record.type in ("StageCompleted", "StageFailed", "StageInterrupted"):
            self._stop(place)
            effects = self._effects.pop(key, [])
            if record.type == "StageCompleted":
                place.effects, place.committed = tuple(effects), record.seq

    def _stop(self, place: Place) -> None:
        """Its attempt runs no more."""
        if place in self._running:
            del self._running[place]
            place.executed += self._clock - place.began

    def _leave(self, stood: Address | None) -> None:
        """What a parallel did that failed leaves nothing: behind a rewind it is not entered again."""
        place = self.known.get((stood.path, stood.visit)) if stood and stood.path else None
        if place is not None:
            place.inner.clear()
            place.before = place.behind = ()

    def _at(self, path: str, visit: Visit) -> Place:
        """The place of an address; with those around it, where they are not there yet."""
        known = self.known.get((path, visit))
        return known if known is not None else self._made(path, visit)

    def _made(self, path: str, visit: Visit) -> Place:
        if not path:
            return self.root
        node: Any = self._program.nodes.get(path)
        if node is None:  # what an async loop asks, or a segment such as `otherwise`
            above, _, segment = path.rpartition("/")
            asked = segment in (PRODUCER, STOP_WHEN)
            found = self._at(above, visit if asked else self._cut(above, visit))
            self.known[path, visit] = found
            return found
        depth = len(self._program.loops.get(path, ()))
        if isinstance(node, REPEATING) and len(visit) > depth:
            around = self._at(path, visit[:depth])
            order, kind, name = (0, visit[-1]), "visit", f"{node.name}[{visit[-1]}]"
        else:
            around = self._around(path, visit)
            order, kind, name = (self._ranks[path], 0), _kind(node), node.name
        made = Place(path, visit, name, kind, order, first=self._clock, last=self._clock)
        around.inner[path, visit] = self.known[path, visit] = made
        return made

    def _around(self, path: str, visit: Visit) -> Place:
        above = path.rpartition("/")[0]
        return self._at(above, self._cut(above, visit)) if above else self.root

    def _cut(self, path: str, visit: Visit) -> Visit:
        """As much of a visit as a place around has, a loop's own index included."""
        node = self._program.nodes.get(path)
        if node is None:
            return visit
        depth = len(self._program.loops.get(path, ()))
        return visit[: depth + isinstance(node, REPEATING)]


def _kind(node: Any) -> str:
    return str(node.__struct_config__.tag)

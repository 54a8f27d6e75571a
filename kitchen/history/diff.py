"""How two runs differ.

Rules:

1. They are aligned by path and visit, never by position, and only what counts is compared. So a run
   that was killed and resumed is the same as one that was not: how often is told apart.
2. Times are told, and are no difference.
3. The logs may be in two stores. No user code is needed, and nothing of `Diff` needs the stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from kitchen.errors import CorruptValue, KitchenError
from kitchen.history.differences import NOTHING, Comparing, Part
from kitchen.history.history import History
from kitchen.history.places import Place, places
from kitchen.history.values import opened, same, short, tree_of
from kitchen.log.reader import fact_of
from kitchen.machine import cells
from kitchen.machine.codec import Codec
from kitchen.machine.events import Visit, spell
from kitchen.machine.state import Cell
from kitchen.workflow.changes import differences

__all__ = ["Diff", "Difference", "Durations", "First", "compare"]


class Difference(NamedTuple):
    """What differs at a node, in so many of its `visits`; `visit` and the values are of the first.

    `kind`: "visits" (`a` or `b` is "nothing" where it was not entered), "decision" (`key`: answer,
    items, count, item, version, stop_loop), "state" and "metric" (`key`: which), "checkpoint"
    (`key`: the resource), "attempts", "outcome". `largest`: how far a metric's numbers are apart at
    most, in any visit.
    """

    kind: str
    key: str
    visits: int
    visit: Visit
    a: str
    b: str
    largest: float | None = None


class First(NamedTuple):
    """The first difference, in the order of the program. A seq is None where there is no event."""

    path: str
    visit: Visit
    kind: str
    key: str
    a: str
    b: str
    seq_a: int | None
    seq_b: int | None
    message: str


class Durations(NamedTuple):
    """How many visits of a node there are in either run, and how many seconds they took."""

    visits_a: int
    seconds_a: float
    visits_b: int
    seconds_b: float


@dataclass(frozen=True)
class Diff:
    """How the runs `a` and `b` differ.

    `config`: (dotted path, value in a, in b). `seed`, `status`: both, whether they differ or not.
    `failure`: how either failed, where that differs. `workflow`: what differs between the versions
    of the workflow. `paths`: the differences by node. `state`: (key, value in a, in b) of the state
    at the end. `durations`, by node, and `interruptions`, how often either was taken up after a
    crash or a stop, are told, and are no difference. Values are told in a line each.
    """

    a: str
    b: str
    seed: tuple[int, int]
    status: tuple[str, str]
    failure: tuple[str, str] | None
    config: list[tuple[str, str, str]]
    workflow: tuple[str, ...]
    first: First | None
    paths: dict[str, list[Difference]]
    state: list[tuple[str, str, str]]
    durations: dict[str, Durations]
    interruptions: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether nothing differs but the time that it took."""
        told = (self.config, self.workflow, self.paths, self.state, self.failure)
        pairs = (self.seed, self.status)
        return not any(told) and all(one == other for one, other in pairs)

    def __bool__(self) -> bool:
        """Whether anything differs, as of any list of differences."""
        return not self.same


def compare(a: History, b: History, *, tolerance: float = 0.0) -> Diff:
    """Compare two runs. `tolerance`: what floats may differ by, absolutely and as a share.

    Raises `HistoryError` and `CorruptStore` where a log does not read.
    """
    taken_up = _taken_up(a), _taken_up(b)
    how = Comparing(tolerance, a.fetch, b.fetch, disturbed=any(taken_up))
    trees = places(a.store, a.run_id, a.program), places(b.store, b.run_id, b.program)
    walking = _Walking(how, a.loops, b.loops)
    walking.both(*trees)
    failures = _failure(a), _failure(b)
    return Diff(
        a.run_id,
        b.run_id,
        (a.begun.seed, b.begun.seed),
        (a.status, b.status),
        failures if failures[0] != failures[1] else None,
        list(_config(_given(a), _given(b))),
        differences(a.ir, b.ir),
        walking.first,
        {path: list(found.values()) for path, found in walking.found.items()},
        list(_states(how, a, b)),
        _durations(*trees),
        taken_up,
    )


@dataclass
class _Walking:
    """Goes over two trees at once, and counts what it finds."""

    how: Comparing
    loops_a: Mapping[str, tuple[str, ...]]
    loops_b: Mapping[str, tuple[str, ...]]
    first: First | None = None
    found: dict[str, dict[tuple[str, str, bool], Difference]] = field(
        default_factory=dict[str, dict[tuple[str, str, bool], Difference]]
    )

    def both(self, a: Place, b: Place) -> None:
        """Compare two places of one address, and all in them."""
        if a.kind == b.kind:
            for part in self.how.parts(a, b):
                self._note(a, part)
        for one, other in _pairs(a, b):
            if one is not None and other is not None:
                self.both(one, other)
            else:
                found = one or other
                assert found is not None
                self._alone(found, in_a=one is not None)
        if a.kind == b.kind:
            for part in self.how.last_parts(a, b):
                self._note(a, part)

    def _alone(self, place: Place, *, in_a: bool) -> None:
        """A place that only one run has come to, with all in it."""
        if place.came_to_nothing:
            return
        events = place.before or place.effects or place.behind
        seq = events[0].seq if events else place.committed or None
        told = ("entered", NOTHING) if in_a else (NOTHING, "entered")
        self._note(place, Part("visits", "", *told, *((seq, None) if in_a else (None, seq))))
        for child in place.children():
            self._alone(child, in_a=in_a)

    def _note(self, place: Place, part: Part) -> None:
        kind, key, a, b, _, _, apart = part
        if self.first is None:
            loops = self.loops_a.get(place.path) or self.loops_b.get(place.path)
            where = spell(place.path, place.visit, loops)
            what = f"{kind} {key}".rstrip()
            message = f"{where}: {what} is {a} in the first run, {b} in the second"
            self.first = First(place.path, place.visit, *part[:6], message)
        known = self.found.setdefault(place.path, {})
        label = (kind, key, kind == "visits" and a == NOTHING)
        before = known.get(label)
        if before is None:
            known[label] = Difference(kind, key, 1, place.visit, a, b, apart)
        else:
            largest = max((x for x in (before.largest, apart) if x is not None), default=None)
            known[label] = before._replace(visits=before.visits + 1, largest=largest)


def _pairs(a: Place, b: Place) -> Iterator[tuple[Place | None, Place | None]]:
    """What is in two places, side by side; what only `b` has comes where it stands there."""
    here = {(each.path, each.visit): each for each in a.children()}
    there = {(each.path, each.visit): each for each in b.children()}
    alone = [each for at, each in there.items() if at not in here]
    for at, one in here.items():
        other = there.get(at)
        while other is not None and alone and alone[0].order < other.order:
            yield None, alone.pop(0)
        yield one, other
    for each in alone:
        yield None, each


def _given(history: History) -> Any:
    try:
        return tree_of(history.begun.config)
    except CorruptValue:
        _ = history.config  # raises, and names the event
        raise


def _config(a: Any, b: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(a, dict) and isinstance(b, dict):
        here, there = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        if "$" not in here and "$" not in there:
            for key in dict.fromkeys((*here, *there)):
                inner = f"{place}.{key}" if place else key
                if key not in here or key not in there:
                    was, now = (short(d[key]) if key in d else NOTHING for d in (here, there))
                    yield inner, was, now
                else:
                    yield from _config(here[key], there[key], inner)
            return
    if not same(a, b):
        yield place, short(a), short(b)


def _states(how: Comparing, a: History, b: History) -> Iterator[tuple[str, str, str]]:
    """The keys of the state at the end that differ."""
    here, there = a.folded().core.data, b.folded().core.data
    for key in dict.fromkeys((*here, *there)):
        one, other = here.get(key), there.get(key)
        if one is not None and other is not None and one == other:
            continue
        try:
            was = NOTHING if one is None else _tree(a, key, one)
            now = NOTHING if other is None else _tree(b, key, other)
        except CorruptValue:
            a.state_at()  # one of these raises, and names the event
            b.state_at()
            raise
        if one is None or other is None or not same(was, now, how.tolerance):
            told = [
                NOTHING if cell is None else short(tree)
                for cell, tree in ((one, was), (other, now))
            ]
            yield key, told[0], told[1]


def _tree(history: History, key: str, cell: Cell) -> Any:
    """The tree of a value, its deltas applied; of its first text where that cannot be."""
    if not cell.deltas:
        return opened(tree_of(cell.base), history.fetch)
    codec = Codec()
    try:
        value = codec.encode(cells.read(cell, codec, history.fetch, key))
    except KitchenError:
        return tree_of(cell.base)
    return opened(tree_of(value.json), lambda digest: value.blobs[digest])


def _failure(history: History) -> str:
    where, failure = history.failed
    return f"{where}: {failure.type}: {failure.message}" if failure is not None else ""


def _taken_up(history: History) -> int:
    """How often a process took the run up again, unless it was sent another way."""
    records = history.store.read(history.run_id, types=["RunResumed"], path="")
    events: list[Any] = [fact_of(record).event for record in records]
    return sum(event.after != "rewind" for event in events)


def _durations(a: Place, b: Place) -> dict[str, Durations]:
    here: dict[str, list[float]] = {}
    there: dict[str, list[float]] = {}
    _add_up(a, here)
    _add_up(b, there)
    none = [0, 0.0]
    return {
        path: Durations(
            int(here.get(path, none)[0]),
            here.get(path, none)[1],
            int(there.get(path, none)[0]),
            there.get(path, none)[1],
        )
        for path in dict.fromkeys((*here, *there))
    }


def _add_up(place: Place, totals: dict[str, list[float]]) -> int:
    """Add what places took to their nodes' totals; when the last in this one happened."""
    last = max((place.last, *(_add_up(child, totals) for child in place.children())))
    if place.kind and place.kind != "visit":
        total = totals.setdefault(place.path, [0, 0.0])
        seconds = place.seconds if place.kind == "stage" else (last - place.first) / 1e9
        total[0] += 1
        total[1] += seconds
    return last

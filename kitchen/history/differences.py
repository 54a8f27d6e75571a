"""How two places of two runs differ, one part at a time.

Rules:

1. What two events say is compared as text first; only where that differs is it looked into.
2. What the machine alone settled, and what differs between a run and its resumed twin, is not
   compared: limits, who looked at what, the state of a source, which resources a checkpoint named.
3. The changes that a visit made are compared key by key, its metrics name by name.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from kitchen.errors import CorruptValue
from kitchen.history.places import Place
from kitchen.history.values import number, opened, same, short, tree_of
from kitchen.log.reader import blamed, fact_of
from kitchen.machine import events as E
from kitchen.machine.cells import Fetch
from kitchen.ports.event_store import Record

NOTHING = "nothing"
_OUTCOMES = frozenset(("StageSkipped", "StageRolledBack", "FailureHandled", "BranchFailed"))
_DECISIONS = frozenset(
    ("LoopEntered", "ItemTaken", "ItemProduced", "ItemDiscarded", "ConditionEvaluated",
     "BranchesStarted"),
)  # fmt: skip


class Part(NamedTuple):
    """What differs: `a` and `b` are the values, told; `apart` how far two numbers are."""

    kind: str
    key: str
    a: str
    b: str
    seq_a: int | None
    seq_b: int | None
    apart: float | None = None


class Comparing(NamedTuple):
    """How values are compared. Large ones are fetched only where floats need not be equal.

    `disturbed`: a run was taken up on the way, so that attempts may have been made twice.
    """

    tolerance: float
    fetch_a: Fetch
    fetch_b: Fetch
    disturbed: bool = False

    def same(self, a: Any, b: Any) -> bool:
        """Whether two recorded values are the same."""
        if a == b:
            return True
        one, other = tree_of(a), tree_of(b)
        if self.tolerance:
            one, other = opened(one, self.fetch_a), opened(other, self.fetch_b)
        return same(one, other, self.tolerance)

    def parts(self, a: Place, b: Place) -> Iterator[Part]:
        """What differs before anything in the places themselves comes to pass."""
        if _texts(a.before) != _texts(b.before):
            yield from self._events(a.before, b.before)
        yield from self._effects(a, b)

    def last_parts(self, a: Place, b: Place) -> Iterator[Part]:
        """What differs behind it."""
        if _texts(a.behind) != _texts(b.behind):
            yield from self._events(a.behind, b.behind)
        if a.kind == "stage":
            yield from self._ends(a, b)

    def _ends(self, a: Place, b: Place) -> Iterator[Part]:
        ended = [each.ended if each.ended in _TOLD else "not completed" for each in (a, b)]
        if ended[0] != ended[1]:
            yield Part("outcome", "", ended[0], ended[1], a.committed or None, b.committed or None)
        # A process that dies may leave a failure as an interruption.
        one, other = (each.failed + bool(each.committed) for each in (a, b))
        apart = one > other + b.interrupted or other > one + a.interrupted
        if apart and not self.disturbed:
            seqs = (a.committed or None, b.committed or None)
            yield Part("attempts", "", str(one), str(other), *seqs)

    def _events(self, a: tuple[Record, ...], b: tuple[Record, ...]) -> Iterator[Part]:
        here, there = _by_type(a), _by_type(b)
        for kind in dict.fromkeys((*here, *there)):
            one, other = here.get(kind), there.get(kind)
            if one is None or other is None:
                found = one or other
                assert found is not None
                if kind in _DECISIONS or kind in _OUTCOMES:
                    side = "decision" if kind in _DECISIONS else "outcome"
                    words = _LACKING.get(kind, kind)
                    seqs = (one and one.seq, other and other.seq)
                    told = (words if one else NOTHING, words if other else NOTHING)
                    yield Part(side, "", *told, *seqs)
            elif one.payload != other.payload and kind in _LOOK:
                was, now = fact_of(one).event, fact_of(other).event
                with blaming(one, other):
                    for part in _LOOK[kind](self, was, now):
                        yield part._replace(seq_a=one.seq, seq_b=other.seq)

    def _effects(self, a: Place, b: Place) -> Iterator[Part]:
        if _texts(a.effects) == _texts(b.effects):
            return
        if bool(a.committed) != bool(b.committed):
            return  # how it ended is told; one that was not committed changed nothing
        here, there = _by_key(a.effects), _by_key(b.effects)
        for kind, key in dict.fromkeys((*here, *there)):
            ones, others = here.get((kind, key), []), there.get((kind, key), [])
            for index in range(max(len(ones), len(others))):
                one = ones[index] if index < len(ones) else None
                other = others[index] if index < len(others) else None
                with blaming(*(each[0] for each in (one, other) if each is not None)):
                    part = self._effect(kind, key, one, other)
                if part is not None:
                    yield part
                    break

    def _effect(
        self, kind: str, key: str, one: tuple[Record, Any] | None, other: tuple[Record, Any] | None
    ) -> Part | None:
        apart: float | None = None
        if one is not None and other is not None:
            was, now = one[1], other[1]
            if type(was) is type(now) and getattr(was, "step", None) == getattr(now, "step", None):
                values = _value(was), _value(now)
                if self.same(*values):
                    return None
                apart = _apart(*values) if kind == "metric" else None
        seqs = (one[0].seq if one else None, other[0].seq if other else None)
        told = (_told(one[1]) if one else NOTHING, _told(other[1]) if other else NOTHING)
        return Part(kind, key, *told, *seqs, apart)


_TOLD = ("completed", "skipped", "failed")
_LACKING = {
    "LoopEntered": "entered",
    "ItemTaken": "taken",
    "ItemProduced": "produced",
    "ItemDiscarded": "discarded",
    "ConditionEvaluated": "asked",
    "BranchesStarted": "entered",
    "StageSkipped": "skipped",
    "StageRolledBack": "rolled back",
    "FailureHandled": "failure handled",
    "BranchFailed": "failed",
}
_SIGNS = {"StateAppended": "+ ", "StateIncremented": "+ ", "StateMerged": "| "}


@contextmanager
def blaming(*records: Record) -> Generator[None]:
    """Values that do not decode are told with one of the events that may hold them."""
    try:
        yield
    except CorruptValue as error:
        raise blamed(error, records[0]) from None


def _texts(records: tuple[Record, ...]) -> list[tuple[str, str]]:
    return [(record.type, record.payload) for record in records]


def _by_type(events: tuple[Record, ...]) -> dict[str, Record]:
    return {told.type: told for told in events}


def _by_key(effects: tuple[Record, ...]) -> dict[tuple[str, str], list[tuple[Record, Any]]]:
    found: dict[tuple[str, str], list[tuple[Record, Any]]] = {}
    for told in effects:
        event: Any = fact_of(told).event
        if isinstance(event, E.MetricRecorded):
            label = ("metric", event.name)
        elif isinstance(event, E.LoopStopped):
            label = ("decision", "stop_loop")
        else:
            label = ("state", event.key)
        found.setdefault(label, []).append((told, event))
    return found


def _value(event: Any) -> Any:
    match event:
        case E.StateAppended() | E.StateMerged():
            return event.values
        case E.StateIncremented():
            return event.by
        case E.StatePut() | E.MetricRecorded():
            return event.value
        case _:
            return b"true"


def _told(event: Any) -> str:
    if isinstance(event, E.StateDeleted):
        return "deleted"
    step = getattr(event, "step", None)
    words = _SIGNS.get(type(event).__name__, "") + short(tree_of(_value(event)))
    return words if step is None else f"{words} at step {step}"


def _apart(a: Any, b: Any) -> float | None:
    one, other = number(tree_of(a)), number(tree_of(b))
    return None if one is None or other is None else abs(one - other)


# --- what events say ------------------------------------------------------------------------------


def _decision(key: str, a: Any, b: Any) -> Part:
    return Part("decision", key, str(a), str(b), None, None)


def _answer(_: Comparing, a: E.ConditionEvaluated, b: E.ConditionEvaluated) -> Iterator[Part]:
    if a.answer != b.answer:
        yield _decision("answer", a.answer, b.answer)


def _entered(comparing: Comparing, a: E.LoopEntered, b: E.LoopEntered) -> Iterator[Part]:
    yield from _items(comparing, a.items, b.items)


def _started(comparing: Comparing, a: E.BranchesStarted, b: E.BranchesStarted) -> Iterator[Part]:
    if a.count != b.count:
        yield _decision("count", a.count, b.count)
    if a.items is not None and b.items is not None:
        yield from _items(comparing, a.items, b.items)


def _items(comparing: Comparing, a: Any, b: Any) -> Iterator[Part]:
    if isinstance(a, E.InlineItems) and isinstance(b, E.InlineItems):
        equal = comparing.same(a.values, b.values)
    else:
        equal = a == b
    if a.count != b.count:
        yield _decision("count", a.count, b.count)
    elif not equal:
        yield _decision("items", _collection(a), _collection(b))


def _collection(items: Any) -> str:
    match items:
        case E.RangeItems():
            return f"range({items.start}, …, step {items.step})"
        case E.InlineItems():
            return short(tree_of(items.values))
        case E.BlobItems() | E.RefItems():
            return f"{items.count} items #{items.blob[:8]}"
        case _:
            return "one at a time"


def _taken(comparing: Comparing, a: E.ItemTaken, b: E.ItemTaken) -> Iterator[Part]:
    if bytes(a.value) and bytes(b.value):
        equal = comparing.same(a.value, b.value)
    else:
        equal = a.digest == b.digest
    if not equal:
        yield _decision("item", _item(a), _item(b))


def _item(event: E.ItemTaken) -> str:
    return short(tree_of(event.value)) if bytes(event.value) else f"#{event.digest[:8]}"


def _produced(comparing: Comparing, a: E.ItemProduced, b: E.ItemProduced) -> Iterator[Part]:
    if a.failure is not None or b.failure is not None:
        was, now = (each.failure.type if each.failure else "produced" for each in (a, b))
        if was != now:
            yield _decision("item", was, now)
    elif not comparing.same(a.value, b.value):
        yield _decision("item", short(tree_of(a.value)), short(tree_of(b.value)))
    if a.version != b.version:
        yield _decision("version", a.version, b.version)


def _joined(comparing: Comparing, a: E.BranchesJoined, b: E.BranchesJoined) -> Iterator[Part]:
    for key in sorted(a.merged.keys() | b.merged.keys()):
        one, other = a.merged.get(key), b.merged.get(key)
        if one is None or other is None or not comparing.same(one, other):
            was, now = (NOTHING if each is None else short(tree_of(each)) for each in (one, other))
            yield Part("state", key, was, now, None, None)


def _saved(comparing: Comparing, a: E.CheckpointSaved, b: E.CheckpointSaved) -> Iterator[Part]:
    for name in sorted(a.resources.keys() & b.resources.keys()):
        one, other = a.resources[name].tree, b.resources[name].tree
        if not comparing.same(one, other):
            yield Part("checkpoint", name, short(tree_of(one)), short(tree_of(other)), None, None)


def _failed(_: Comparing, a: Any, b: Any) -> Iterator[Part]:
    if (a.failure and a.failure.type) != (b.failure and b.failure.type):
        was, now = (each.failure.type if each.failure else NOTHING for each in (a, b))
        yield Part("outcome", "failure", was, now, None, None)


_LOOK: dict[str, Callable[[Comparing, Any, Any], Iterator[Part]]] = {
    "ConditionEvaluated": _answer,
    "LoopEntered": _entered,
    "BranchesStarted": _started,
    "ItemTaken": _taken,
    "ItemProduced": _produced,
    "BranchesJoined": _joined,
    "CheckpointSaved": _saved,
    "StageSkipped": _failed,
    "StageRolledBack": _failed,
    "FailureHandled": _failed,
    "BranchFailed": _failed,
}

"""A run told as text that is the same for runs that did the same.

Rules:

1. A line an event that counts, in the order of the program. What ran beside what, and what finished
   first, leaves no mark; nor do retries, crashes, rewinds and interruptions.
2. No times, durations, seqs, ids, processes, hosts or files. Values are short, the same text for
   the same value; a secret is the mark that the log has.
3. With `life`, what happened to the run as a whole is told behind all else, and how often a stage
   was tried beside its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kitchen.errors import ArgumentError, CorruptValue
from kitchen.history.places import Place
from kitchen.history.values import short, tree_of
from kitchen.log.reader import blamed, fact_of
from kitchen.machine import events as E
from kitchen.machine.events import Failure, RunStarted, spell
from kitchen.ports.event_store import Record
from kitchen.workflow.ir import PRODUCER, STOP_WHEN

LEVELS = ("stages", "events", "state")
TURNS = (
    "RunForked", "RunEdited", "RunResumed", "RunRewound", "RunInterrupted", "WorkflowChanged",
)  # fmt: skip
_CHANGES = ("StatePut", "StateDeleted", "StateAppended", "StateIncremented", "StateMerged")


class Teller:
    """Tells places. `loops`: the paths of the loops around each node."""

    def __init__(
        self,
        level: str,
        loops: dict[str, tuple[str, ...]],
        *,
        digits: int | None = None,
        life: bool = False,
    ) -> None:
        """Raises `ArgumentError` for a level that there is not."""
        if level not in LEVELS:
            raise ArgumentError(
                f"there is no level {level!r} of a trace", hint=f"one of: {', '.join(LEVELS)}"
            )
        self._level = level
        self._loops = loops
        self._digits = digits
        self._life = life

    def beginning(self, begun: RunStarted) -> Iterator[str]:
        """What the run was begun with."""
        yield f"workflow {begun.workflow}, seed {begun.seed}"
        config = tree_of(begun.config)
        if isinstance(config, dict):
            for key, value in config.items():  # pyright: ignore[reportUnknownVariableType]
                yield f"config.{key} = {short(value, self._digits)}"
        if self._level != "stages":
            for key, value in begun.state.items():
                yield f"state.{key} = {self._value(value)}"

    def lines(self, place: Place) -> Iterator[str]:
        """What came to pass in a place, in the order of the program."""
        for child in place.children():
            if child.kind == "stage":
                yield from self._stage(child)
                continue
            yield from self._events(child, child.before)
            yield from self.lines(child)
            yield from self._events(child, child.behind)

    def _stage(self, place: Place) -> Iterator[str]:
        told = self._level != "stages"
        if place.committed:
            if self._level == "events":
                yield self._line(place, "started")
            for effect in place.effects if told else ():
                if self._level == "events" or effect.type in _CHANGES:
                    yield self._line(place, self._words(effect), 1)
            tries = place.failed + 1
            often = f" at attempt {tries}" if self._life and place.failed else ""
            yield self._line(place, f"completed{often}")
        for event in place.behind:
            if event.type != "BranchCompleted" or self._level == "events":
                yield self._line(place, self._words(event))

    def _events(self, place: Place, events: tuple[Record, ...]) -> Iterator[str]:
        if self._level != "events":
            return
        for event in events:
            segment = _ASKED.get(event.type, "") if place.kind == "visit" else ""
            yield self._line(place, self._words(event), segment=segment)

    def _line(self, place: Place, words: str, deeper: int = 0, segment: str = "") -> str:
        where = spell(place.path, place.visit, self._loops.get(place.path))
        where = f"{where}/{segment}" if segment else where
        return f"{'  ' * (where.count('/') + deeper)}{where}: {words}"

    def _value(self, raw: Any) -> str:
        return short(tree_of(raw), self._digits)

    def _words(self, told: Record) -> str:
        words = _WORDS[told.type]
        if isinstance(words, str):
            return words
        event: Any = fact_of(told).event
        try:
            return words(self._value, event)
        except CorruptValue as error:
            raise blamed(error, told) from None


def ending(status: str, failed: str, failure: Failure | None) -> str:
    """How the run stands; `failed`: where it failed, and of what."""
    told = f": {_failure(failure)}" if failure is not None else ""
    return f"run {status}{f' at {failed}' if failed else ''}{told}"


def turn(event: E.Event) -> str:
    """What happened to the run as a whole."""
    match event:
        case E.RunResumed():
            return f"run resumed after {event.after}"
        case E.RunRewound():
            return f"run rewound{', as was asked' if event.asked else ''}"
        case E.RunForked():
            return "run forked"
        case E.RunEdited():
            return "run edited"
        case E.WorkflowChanged():
            return f"workflow changed: {'; '.join(event.differences)}"
        case _:
            return "run interrupted"


def _failure(failure: Failure) -> str:
    first = failure.message.partition("\n")[0]
    return f"{failure.type}: {first[:200]}"


def _items(value: Callable[[Any], str], items: Any) -> str:
    match items:
        case E.RangeItems():
            return f"{items.count} items, from {items.start} by {items.step}"
        case E.InlineItems():
            return f"{items.count} items, {value(items.values)}"
        case E.BlobItems() | E.RefItems():
            return f"{items.count} items #{items.blob[:8]}"
        case _:
            return "one at a time"


def _taken(value: Callable[[Any], str], event: E.ItemTaken) -> str:
    if bytes(event.value):
        return f"item {value(event.value)}"
    return f"item #{event.digest[:8]}" if event.digest else "item"


def _produced(value: Callable[[Any], str], event: E.ItemProduced) -> str:
    if event.failure is not None:
        return f"failed, {_failure(event.failure)}"
    return f"produced {value(event.value)} from version {event.version}"


def _branches(value: Callable[[Any], str], event: E.BranchesStarted) -> str:
    items = _items(value, event.items) if event.items is not None else ""
    return f"{event.count} branches{', over ' + items if items else ''}"


def _joined(value: Callable[[Any], str], event: E.BranchesJoined) -> str:
    merged = ", ".join(f"{key} = {value(raw)}" for key, raw in sorted(event.merged.items()))
    return f"joined{', ' + merged if merged else ''}"


def _metric(value: Callable[[Any], str], event: E.MetricRecorded) -> str:
    step = f" at step {event.step}" if event.step is not None else ""
    return f"metric {event.name} = {value(event.value)}{step}"


def _rolled_back(_value: Callable[[Any], str], event: E.StageRolledBack) -> str:
    return f"not rolled back, {_failure(event.failure)}" if event.failure else "rolled back"


_ASKED = {"ItemProduced": PRODUCER, "ConditionEvaluated": STOP_WHEN}
_WORDS: dict[str, str | Callable[[Callable[[Any], str], Any], str]] = {
    "LoopEntered": lambda value, e: f"entered, {_items(value, e.items)}",
    "ItemTaken": _taken,
    "ItemProduced": _produced,
    "ItemDiscarded": lambda _, e: f"discarded, {e.reason}",
    "ConditionEvaluated": lambda _, e: "yes" if e.answer else "no",
    "BranchesStarted": _branches,
    "ResourceOpened": "opened",
    "CheckpointSaved": "saved",
    "LoopExited": "exited",
    "BranchesJoined": _joined,
    "BranchCompleted": "branch completed",
    "BranchFailed": lambda _, e: f"branch failed, {_failure(e.failure)}",
    "ResourcesClosed": lambda _, e: f"closed {', '.join(e.names)}",
    "StageSkipped": lambda _, e: f"skipped, {_failure(e.failure)}",
    "StageRolledBack": _rolled_back,
    "FailureHandled": "failure handled",
    "LoopStopped": "asked the loop to end",
    "MetricRecorded": _metric,
    "StatePut": lambda value, e: f"{e.key} = {value(e.value)}",
    "StateDeleted": lambda _, e: f"{e.key} deleted",
    "StateAppended": lambda value, e: f"{e.key} + {value(e.values)}",
    "StateIncremented": lambda value, e: f"{e.key} + {value(e.by)}",
    "StateMerged": lambda value, e: f"{e.key} | {value(e.values)}",
}

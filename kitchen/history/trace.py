"""A run told as text that is the same for runs that did the same.

Rules:

1. A line an event that counts, in the order of the program. What ran beside what, and what finished
   first, leaves no mark; nor do retries, crashes, rewinds and interruptions.
2. No times, durations, seqs, ids, processes, hosts or files. Values are short, the same text for
   the same value; a secret is the mark that the log has.
3. With `life`, what happened to the run as a whole is told behind all else, and how often a stage
   was tried beside its end.
4. What is left out (`patterns`) leaves no mark, and what is hidden (`hide`) is hidden before a
   digest is taken of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from kitchen.errors import ArgumentError, CorruptValue
from kitchen.history.patterns import EVERYTHING, Patterns
from kitchen.history.places import Place
from kitchen.history.values import hidden, short, tree_of
from kitchen.log.reader import blamed, fact_of
from kitchen.machine import events as E
from kitchen.machine.events import Failure, RunStarted, spell
from kitchen.ports.event_store import Record
from kitchen.workflow.ir import PRODUCER, STOP_WHEN

LEVELS = ("stages", "events", "state")
TURNS = (
    "RunForked", "RunEdited", "RunResumed", "RunRewound", "RunInterrupted", "WorkflowChanged",
)  # fmt: skip
CHANGES = ("StatePut", "StateDeleted", "StateAppended", "StateIncremented", "StateMerged")

Hide = Callable[[str], str]


def check_level(level: str) -> None:
    """Raises `ArgumentError` for a level that there is not."""
    if level not in LEVELS:
        raise ArgumentError(
            f"there is no level {level!r} of a trace", hint=f"one of: {', '.join(LEVELS)}"
        )


class Teller:
    """Tells places. `loops`: the paths of the loops around each node. `hide` is given each text of a
    value, and of a failure; what it gives back is told."""

    def __init__(
        self,
        level: str,
        loops: dict[str, tuple[str, ...]],
        *,
        digits: int | None = None,
        life: bool = False,
        patterns: Patterns = EVERYTHING,
        hide: Hide | None = None,
    ) -> None:
        """Raises `ArgumentError` for a level that there is not."""
        check_level(level)
        self._level = level
        self._loops = loops
        self._digits = digits
        self._life = life
        self._patterns = patterns
        self._hide = hide

    def beginning(self, begun: RunStarted) -> Iterator[str]:
        """What the run was begun with."""
        yield f"workflow {begun.workflow}, seed {begun.seed}"
        config = tree_of(begun.config)
        if isinstance(config, dict):
            for key, value in cast("dict[str, Any]", config).items():
                if self._patterns.tells("config", key):
                    yield f"config.{self.name(key)} = {self._short(value)}"
        if self._level != "stages":
            for key, value in begun.state.items():
                if self._patterns.tells("state", key):
                    yield f"state.{self.name(key)} = {self.value(value)}"

    def ending(self, status: str, failed: str, failure: Failure | None) -> str:
        """How the run stands; `failed`: where it failed, and of what."""
        told = f": {self.failure(failure)}" if failure is not None else ""
        return f"run {status}{f' at {failed}' if failed else ''}{told}"

    def lines(self, place: Place) -> Iterator[str]:
        """What came to pass in a place, in the order of the program."""
        for child in place.children():
            if child.kind == "stage":
                if self._patterns.shows(child.path):
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
                if self._tells(effect):
                    yield self._line(place, self._words(effect), 1)
            tries = place.failed + 1
            often = f" at attempt {tries}" if self._life and place.failed else ""
            yield self._line(place, f"completed{often}")
        for event in place.behind:
            if event.type != "BranchCompleted" or self._level == "events":
                yield self._line(place, self._words(event))

    def _tells(self, effect: Record) -> bool:
        """Whether a change of the state, or a metric, is told."""
        if self._level != "events" and effect.type not in CHANGES:
            return False
        if self._patterns is EVERYTHING:
            return True
        event: Any = fact_of(effect).event
        if effect.type == "MetricRecorded":
            return self._patterns.tells("metric", event.name)
        return effect.type not in CHANGES or self._patterns.tells("state", event.key)

    def _events(self, place: Place, events: tuple[Record, ...]) -> Iterator[str]:
        if self._level != "events" or not self._patterns.shows(place.path):
            return
        for event in events:
            segment = _ASKED.get(event.type, "") if place.kind == "visit" else ""
            yield self._line(place, self._words(event), segment=segment)

    def _line(self, place: Place, words: str, deeper: int = 0, segment: str = "") -> str:
        where = spell(place.path, place.visit, self._loops.get(place.path))
        where = f"{where}/{segment}" if segment else where
        return f"{'  ' * (where.count('/') + deeper)}{where}: {words}"

    def name(self, text: str) -> str:
        """A name that user code gave to something."""
        return text if self._hide is None else self._hide(text)

    def value(self, raw: Any) -> str:
        return self._short(tree_of(raw))

    def _short(self, tree: Any) -> str:
        return short(tree if self._hide is None else hidden(tree, self._hide), self._digits)

    def failure(self, failure: Failure) -> str:
        """Of what something failed, in a line."""
        message = failure.message if self._hide is None else self._hide(failure.message)
        return f"{failure.type}: {message.partition(chr(10))[0][:200]}"

    def _words(self, told: Record) -> str:
        words = _WORDS[told.type]
        if isinstance(words, str):
            return words
        event: Any = fact_of(told).event
        try:
            return words(self, event)
        except CorruptValue as error:
            raise blamed(error, told) from None


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


def _items(tell: Teller, items: Any) -> str:
    match items:
        case E.RangeItems():
            return f"{items.count} items, from {items.start} by {items.step}"
        case E.InlineItems():
            return f"{items.count} items, {tell.value(items.values)}"
        case E.BlobItems() | E.RefItems():
            return f"{items.count} items #{items.blob[:8]}"
        case _:
            return "one at a time"


def _taken(tell: Teller, event: E.ItemTaken) -> str:
    if bytes(event.value):
        return f"item {tell.value(event.value)}"
    return f"item #{event.digest[:8]}" if event.digest else "item"


def _produced(tell: Teller, event: E.ItemProduced) -> str:
    if event.failure is not None:
        return f"failed, {tell.failure(event.failure)}"
    return f"produced {tell.value(event.value)} from version {event.version}"


def _branches(tell: Teller, event: E.BranchesStarted) -> str:
    items = _items(tell, event.items) if event.items is not None else ""
    return f"{event.count} branches{', over ' + items if items else ''}"


def _joined(tell: Teller, event: E.BranchesJoined) -> str:
    merged = ", ".join(
        f"{tell.name(key)} = {tell.value(raw)}" for key, raw in sorted(event.merged.items())
    )
    return f"joined{', ' + merged if merged else ''}"


def _metric(tell: Teller, event: E.MetricRecorded) -> str:
    step = f" at step {event.step}" if event.step is not None else ""
    return f"metric {tell.name(event.name)} = {tell.value(event.value)}{step}"


def _rolled_back(tell: Teller, event: E.StageRolledBack) -> str:
    return f"not rolled back, {tell.failure(event.failure)}" if event.failure else "rolled back"


def _handled(tell: Teller, event: E.FailureHandled) -> str:
    return f"failure handled{', ' + tell.failure(event.failure) if event.failure else ''}"


_ASKED = {"ItemProduced": PRODUCER, "ConditionEvaluated": STOP_WHEN}
_WORDS: dict[str, str | Callable[[Teller, Any], str]] = {
    "LoopEntered": lambda tell, e: f"entered, {_items(tell, e.items)}",
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
    "BranchFailed": lambda tell, e: f"branch failed, {tell.failure(e.failure)}",
    "ResourcesClosed": lambda _, e: f"closed {', '.join(e.names)}",
    "StageSkipped": lambda tell, e: f"skipped, {tell.failure(e.failure)}",
    "StageRolledBack": _rolled_back,
    "FailureHandled": _handled,
    "LoopStopped": "asked the loop to end",
    "MetricRecorded": _metric,
    "StatePut": lambda tell, e: f"{tell.name(e.key)} = {tell.value(e.value)}",
    "StateDeleted": lambda tell, e: f"{tell.name(e.key)} deleted",
    "StateAppended": lambda tell, e: f"{tell.name(e.key)} + {tell.value(e.values)}",
    "StateIncremented": lambda tell, e: f"{tell.name(e.key)} + {tell.value(e.by)}",
    "StateMerged": lambda tell, e: f"{tell.name(e.key)} | {tell.value(e.values)}",
}

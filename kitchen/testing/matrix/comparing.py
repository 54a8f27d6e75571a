"""How a run that was killed and resumed differs from the whole run.

Rules:

1. Compared are: how the run ended, items and decisions, state, metrics and checkpoints by path and
   visit, the state at the end to the bit, and what resources held when they were closed. Addresses
   and temporary folders in the message of a failure are not: they are others each time. Nor is how
   often a stage was tried.
2. One difference is told, the first in the order of the program; a failure that the whole run did
   not have comes before all.
3. What was excluded is not compared. Neither is what already differed between two whole runs among
   the attributes of resources: that is chance.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from kitchen.history import metrics
from kitchen.history.diff import Diff, compare
from kitchen.history.history import History, last_turn
from kitchen.history.patterns import Patterns
from kitchen.machine import cells
from kitchen.machine.codec import Codec
from kitchen.machine.events import Visit, spell
from kitchen.machine.state import Cell
from kitchen.ports.event_store import EventStore
from kitchen.testing.matrix.contents import STATE, above
from kitchen.testing.matrix.lives import RUN
from kitchen.testing.matrix.points import Point
from kitchen.testing.matrix.watching import Key, Note

NOTHING = "nothing"
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/[^/\s'\"]+")
_PATTERNED = {"state": "state", "metric": "metric", "checkpoint": "resource"}

Noise = Collection[tuple[str, str]]


class Crash(NamedTuple):
    """Where a run died: which append of its first life, behind which seq, and what that tells."""

    number: int
    head: int
    events: list[tuple[str, str, Visit]]


class Plan(NamedTuple):
    """What the first resume did: from which seq it went on, and which stages ran again behind it."""

    head: int
    cut: int
    again: list[tuple[str, int, int]]


class Difference(NamedTuple):
    """The first thing that differs, and where. `kind`: "visits", "decision", "state", "metric",
    "checkpoint", "outcome", "resource", "ended" (how the run ended) or "error" (of the resume)."""

    kind: str
    key: str
    path: str
    visit: Visit
    where: str
    whole: str
    found: str


@dataclass
class Outcome:
    """What came of a run, whole or killed at `point` and resumed.

    `lives`: the notes of each life. `error`: what came out of the last that should not have. `died`:
    whether it came to its point. `hung`: whether a thread of this process is at it for ever.
    """

    point: Point | None
    store: EventStore
    lives: list[list[Note]]
    error: str = ""
    died: bool = False
    hung: bool = False

    @cached_property
    def history(self) -> History:
        """Its log."""
        return History(self.store, RUN)

    def notes(self, name: str, life: int | None = None) -> Iterator[Any]:
        """What was noted under a name, in one life or in all."""
        for number, notes in enumerate(self.lives):
            if life is None or life == number:
                yield from (told for kind, told in notes if kind == name)

    @property
    def appends(self) -> int:
        """How many appends the first life has made."""
        return max((told[0] for told in self.notes("append", 0)), default=0)

    @property
    def failed_at(self) -> str | None:
        """The path of what failed; None where the run has not."""
        last = last_turn(self.store, RUN)
        return last.path if last is not None and last.type == "RunFailed" else None

    @property
    def crash(self) -> Crash | None:
        """Where it died first."""
        last = list(self.notes("append", 0))[-1:]
        return Crash(*last[0]) if last and self.died else None

    @property
    def plan(self) -> Plan | None:
        """How it was taken up first."""
        return next((Plan(*told) for told in self.notes("plan", 1)), None)

    @property
    def resources(self) -> dict[Key, tuple[str, dict[str, str]]]:
        """The name and the contents of each resource that was closed at its end, by place."""
        return {key: (name, found) for key, name, found in self.notes("closed")}


def difference(
    whole: Outcome, found: Outcome, patterns: Patterns, noise: Noise = ()
) -> Difference | None:
    """How `found` differs from the whole run; None where it does not."""
    if found.error:
        return Difference("error", "", "", (), "", "", found.error)
    diff = compare(whole.history, found.history)
    if whole.history.status != found.history.status or diff.failure:
        told = _ended(whole, found, diff, patterns)
        if told is not None:
            return told
    for each in _differences(whole, found, diff, patterns):
        return each
    for each in resource_differences(whole, found):
        chance = any((each.path, item) in noise for item in above(_item(each)))
        if _is_told(patterns, each) and not chance:
            return each
    return None


def noise_of(whole: Outcome, other: Outcome) -> set[tuple[str, str]]:
    """Which attributes of resources differ between two whole runs, by path and name."""
    found = resource_differences(whole, other)
    return {(each.path, _item(each)) for each in found if STATE not in each.key}


def resource_differences(whole: Outcome, found: Outcome) -> Iterator[Difference]:
    """How the resources differ that both runs have closed at their end."""
    there = found.resources
    for key, (name, was) in whole.resources.items():
        if key not in there:
            continue
        now = there[key][1]
        where = spell(*key, whole.history.loops.get(key[0]))
        for item in dict.fromkeys((*was, *now)):
            before, after = was.get(item, NOTHING), now.get(item, NOTHING)
            if before != after:
                yield Difference("resource", f"{name} {item}", *key, where, before, after)


def _item(found: Difference) -> str:
    return found.key.partition(" ")[2]


def _is_told(patterns: Patterns, found: Difference) -> bool:
    name, _, item = found.key.partition(" ")
    plain = name.partition("[")[0]
    parts = ("", *above(item))
    names = {f"{one}{part}" for one in (name, plain) for part in parts}
    return patterns.shows(found.path) and all(patterns.tells("resource", each) for each in names)


def _ended(whole: Outcome, found: Outcome, diff: Diff, patterns: Patterns) -> Difference | None:
    """How they ended; without of what they failed, where that is a place that is left out."""
    told = list(diff.status)
    failures = [each.failed_at for each in (whole, found)]
    if diff.failure and all(at is None or patterns.shows(at) for at in failures):
        told = [
            f"{one}, {text}" if text else one for one, text in zip(told, diff.failure, strict=True)
        ]
    if _plain(told[0]) == _plain(told[1]):
        return None
    return Difference("ended", "", "", (), "", *told)


def _plain(text: str) -> str:
    """Without what is another one each time: addresses, temporary files."""
    return _TEMPORARY.sub("<tmp>", _ADDRESS.sub("0x", text))


def _differences(
    whole: Outcome, found: Outcome, diff: Diff, patterns: Patterns
) -> Iterator[Difference]:
    for path, known in diff.paths.items():
        for each in known:
            kind = _PATTERNED.get(each.kind)
            if each.kind == "outcome" and _plain(each.a) == _plain(each.b):
                continue
            if (
                each.kind == "attempts"
            ):  # of two branches that fail, who is first takes the other back
                continue
            if patterns.shows(path) and (kind is None or patterns.tells(kind, each.key)):
                where = spell(path, each.visit, whole.history.loops.get(path))
                yield Difference(each.kind, each.key, path, each.visit, where, each.a, each.b)
    for key, was, now in (*diff.state, *_inexact(whole.history, found.history)):
        if patterns.tells("state", key):
            yield Difference("state", key, "", (), "the end of the run", was, now)
    yield from _metrics(whole, found, patterns)


def _inexact(whole: History, found: History) -> Iterator[tuple[str, str, str]]:
    """The keys of the state at the end whose values differ in a bit."""
    here, there = whole.folded().core.data, found.folded().core.data
    for key in here.keys() & there.keys():
        if here[key] != there[key]:
            was, now = _text(whole, key, here[key]), _text(found, key, there[key])
            if was != now:
                yield key, was.decode(), now.decode()


def _text(history: History, key: str, cell: Cell) -> bytes:
    codec = Codec()
    return codec.encode(cells.read(cell, codec, history.fetch, key)).json


def _metrics(whole: Outcome, found: Outcome, patterns: Patterns) -> Iterator[Difference]:
    """The metrics that count, whatever the places say."""
    here, there = (_series(each) for each in (whole, found))
    for name in sorted(here.keys() | there.keys()):
        was, now = here.get(name, []), there.get(name, [])
        shown = [[point for point in points if patterns.shows(point[2])] for points in (was, now)]
        if shown[0] != shown[1] and patterns.tells("metric", name):
            one, other = next(pair for pair in _zipped(*shown) if pair[0] != pair[1])
            at = one or other
            where = spell(at[2], at[3], whole.history.loops.get(at[2]))
            told = [
                NOTHING if not each else f"{each[0]} at step {each[1]}" for each in (one, other)
            ]
            yield Difference("metric", name, at[2], at[3], where, *told)


def _zipped(a: list[Any], b: list[Any]) -> Iterator[tuple[Any, Any]]:
    for n in range(max(len(a), len(b))):
        yield (a[n] if n < len(a) else ()), (b[n] if n < len(b) else ())


def _series(outcome: Outcome) -> dict[str, list[tuple[Any, ...]]]:
    known = metrics.series(outcome.store, RUN)
    told = {n: [(repr(p.value), p.step, p.path, p.visit) for p in ps] for n, ps in known.items()}
    return {name: sorted(points, key=lambda p: p[2:]) for name, points in told.items()}

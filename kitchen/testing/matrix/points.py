"""Crash points: where in its log a run dies, as text and as data.

Rules:

1. `before:7` is the moment before the 7th append of the run: what it tells has happened, and the log
   does not have it. `after:7` is the moment behind it: the log has it, and nothing of what it asks
   for has been done. Appends are counted from 1; behind the last there is nothing to resume.
2. `before:7+after:2` dies once more, at the 2nd append of the resume.
3. `fresh:before:7` dies in a process of its own, by SIGKILL, and is resumed in another.
4. Points are spread evenly, so that the first and the last are always among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from kitchen.errors import ArgumentError

Points: TypeAlias = "int | str | Sequence[str]"

_POINT = re.compile(r"(fresh:)?(before|after):([1-9]\d*)(?:\+(before|after):([1-9]\d*))?")
_SECOND = (1, 2, 3, 5, 8)


class Point(NamedTuple):
    """`moment` ("before" or "after") of the append `number`; `again`: that of the resume."""

    moment: str
    number: int
    again: tuple[str, int] | None = None
    fresh: bool = False

    def __str__(self) -> str:
        second = "" if self.again is None else f"+{self.again[0]}:{self.again[1]}"
        return f"{'fresh:' if self.fresh else ''}{self.moment}:{self.number}{second}"

    @property
    def rank(self) -> tuple[int, bool, bool]:
        """By which they stand in the order of the run."""
        return self.number, self.moment == "after", self.again is not None


def deaths(point: Point | None) -> list[str]:
    """The append at which each life dies, but the last."""
    if point is None:
        return []
    second = [] if point.again is None else [f"{point.again[0]}:{point.again[1]}"]
    return [f"{point.moment}:{point.number}", *second]


def point_of(text: object) -> Point:
    """The point that a text means. Raises `ArgumentError`."""
    found = _POINT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ArgumentError(
            f"{text!r} is no crash point",
            hint='"before:7", "after:7", "before:7+after:2" or "fresh:before:7", as a report names it',
        )
    fresh, moment, number, then, count = found.groups()
    again = None if then is None else (then, int(count))
    return Point(moment, int(number), again, fresh is not None)


def check_points(points: object) -> list[Point] | None:
    """The points of a list; None where they are to be chosen. Raises `ArgumentError`."""
    if points == "all" or (type(points) is int and points > 0):
        return None
    if isinstance(points, str):
        return [point_of(points)]
    if isinstance(points, Iterable):
        made = [point_of(each) for each in list(points)]  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
        if made:
            return made
    raise ArgumentError(
        f'points= is "all", how many at most (from 1 on), or a list of points, not {points!r}'
    )


def every_point(appends: int) -> list[Point]:
    """All points of a run of so many appends, in order."""
    made = [Point(moment, n) for n in range(1, appends + 1) for moment in ("before", "after")]
    return made[:-1]


def chosen(points: int | str, appends: int) -> list[Point]:
    """At most so many of them, spread evenly; and a few that die again in the resume."""
    known = every_point(appends)
    if isinstance(points, int) and points < len(known):
        known = _spread(known, points)
    started = [each for each in known if each.number > 1]
    twice = _spread(started, max(1, len(known) // 10)) if started else []
    seconds = [
        each._replace(again=("before" if n % 2 else "after", _SECOND[n % len(_SECOND)]))
        for n, each in enumerate(twice)
    ]
    return known + seconds


def in_processes(count: int, appends: int) -> list[Point]:
    """So many points for fresh processes, between the first append and the last, both moments."""
    made: dict[Point, None] = {}
    for n in range(count):
        number = 1 + round((n + 0.5) * (appends - 1) / count)
        moment = "after" if n % 2 == 0 and number < appends else "before"
        made[Point(moment, max(number, 1), None, True)] = None
    return [each for each in made if each.number > 1 or each.moment == "after"]


def _spread(known: list[Point], count: int) -> list[Point]:
    if count >= len(known):
        return known
    if count == 1:
        return [known[len(known) // 2]]
    step = (len(known) - 1) / (count - 1)
    return [known[round(n * step)] for n in range(count)]

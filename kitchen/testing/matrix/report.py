"""What a crash matrix gives: a report in a line, or a failure that says where and why.

Rules: a failure names the crash point, the first difference and the stage where it arose, what it can
come from, the likely first, and the call that runs the one point again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kitchen.errors import KitchenError
from kitchen.machine.events import spell
from kitchen.testing.matrix.comparing import Difference, Outcome
from kitchen.testing.matrix.points import Point

_MOST_CAUSES = 5
_LONGEST = 400


class CrashMatrixFailed(KitchenError, AssertionError):
    """A run that was killed and resumed differs from the whole run, or two whole runs differ, or the
    whole run did not end as it is to.

    `point`: the crash point, "" where nothing was killed. `difference`: the first, as text. `cause`:
    the likeliest. `place`: the stage where it arose, by path and visit.
    """

    def __init__(
        self,
        message: str,
        *,
        point: str = "",
        difference: str = "",
        cause: str = "",
        place: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.point = point
        self.difference = difference
        self.cause = cause
        self.place = place


class Cause(NamedTuple):
    """What a difference can come from. `name` in a few words; `score`: how much speaks for it, 100
    is proven; `place`: the stage where it arose, if this tells."""

    name: str
    score: int
    text: str
    place: str = ""


@dataclass(frozen=True)
class CrashReport:
    """How it went. `appends`: of the whole run. `points`: how many crash points in this process, and
    `processes` in fresh ones, came out equal. `early`: how many runs more had ended before their
    point, as what runs side by side needs more appends or fewer. `status`: how the whole run ended.
    `seconds`: what it all took.
    """

    workflow: str
    status: str
    appends: int
    points: int
    processes: int
    early: int
    seconds: float

    def __str__(self) -> str:
        points = f"{self.points} point{'' if self.points == 1 else 's'}"
        early = f"; {self.early} more had ended before theirs" if self.early else ""
        return (
            f"{self.workflow}: {self.status} after {self.appends} appends; the same after a crash at "
            f"{points}, and at {self.processes} in fresh processes{early} ({self.seconds:.1f} s)"
        )


def shown(text: str) -> str:
    """A text cut to what a report has room for."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def ended_otherwise(workflow: str, whole: Outcome, status: str) -> CrashMatrixFailed:
    """The failure that the whole run did not end as it is to, told."""
    history = whole.history
    where, failure = history.failed
    ended = f"{history.status} at {where}" if where else history.status
    why = whole.error
    if failure is not None:
        why = f"{failure.type}: {failure.message}"
    told = f"{workflow}: the whole run {ended}" + (f": {shown(why)}" if why else "")
    hint = 'a run that fails is what is tested? status="failed"' if status == "completed" else None
    return CrashMatrixFailed(
        f"{told}\n  Nobody killed it, and it is to end as {status!r}; nothing was compared",
        difference=f"{ended}: {why}" if why else ended,
        cause="the workflow itself",
        place=where,
        hint=hint,
    )


def failure_of(
    name: str,
    outcome: Outcome,
    found: Difference,
    causes: Sequence[Cause],
    counts: str,
    title: str,
    again: str,
) -> CrashMatrixFailed:
    """The failure of the workflow of this name, told. `again`: the call that finds it again."""
    point = outcome.point
    place = next((cause.place for cause in causes[:1] if cause.place), found.where)
    told = _told(found)
    lines = [f"{name}: {title}"]
    if point is not None:
        lines += [f"  killed:    {_crash(outcome, point)}"]
    lines += [f"  differs:   {told}", f"  arose in:  {place or 'the run as a whole'}"]
    if counts:
        lines += [f"  points:    {counts}"]
    lines += ["  it can come from, the likeliest first:"]
    for number, cause in enumerate(causes[:_MOST_CAUSES], 1):
        lines += [f"    {number}. {cause.name}: {cause.text}"]
    lines += [f"  again:     {again}"]
    return CrashMatrixFailed(
        "\n".join(lines),
        point="" if point is None else str(point),
        difference=told,
        cause=causes[0].name if causes else "",
        place=place,
    )


def _told(found: Difference) -> str:
    if found.kind == "error":
        return f"it did not come through: {shown(found.found)}"
    what = {
        "ended": "how the run ended",
        "resource": f"{found.key.replace(' ', '', 1)}, when it was closed,",
        "visits": "it",
    }.get(found.kind, f"{found.kind} {found.key}".rstrip())
    where = f"{found.where}: " if found.where else ""
    return (
        f"{where}{what} is {shown(found.whole)} in the whole run, {shown(found.found)} in this one"
    )


def _crash(outcome: Outcome, point: Point) -> str:
    crash = outcome.crash
    if crash is None:
        return f"{point}, which the run did not come to"
    loops = outcome.history.loops
    events = [
        f"{kind} {spell(path, visit, loops.get(path))}".rstrip()
        for kind, path, visit in crash.events
    ]
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    where = "in a fresh process, by SIGKILL" if point.fresh else "in this process"
    again = (
        f", and again {point.again[0]} append {point.again[1]} of the resume" if point.again else ""
    )
    return (
        f"{point.moment} append {crash.number}, at seq {crash.head + 1} ({events[0]}{more}), "
        f"{where}{again}"
    )

"""What a resume would do, as `kitchen resume --plan` tells it; and changes of a workflow in signs.

Rules:

1. A part with nothing in it is left out. The command that does it stands last.
2. `+` was added, `-` removed, `~` changed, `→` renamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kitchen.cli import render
from kitchen.cli.exits import CANCELLED, COMPLETED, FAILED, UNDECIDED
from kitchen.runner.planning import ResumePlan

_SIGNS = {"added": "+", "removed": "-", "renamed": "→", "changed": "~"}
_THE_LOG = "the log"
_OVER = ("completed", "cancelled")


def code_of(plan: ResumePlan) -> int:
    """The exit code that a plan becomes."""
    if plan.refused is not None or plan.status == "running" or _wanting(plan):
        return FAILED
    if plan.status == "cancelled":
        return CANCELLED
    return UNDECIDED if plan.undecided else COMPLETED


def _wanting(plan: ResumePlan) -> bool:
    """Whether what it goes on with cannot be read. What only the log names may be missing."""
    return any(one.needed_by != _THE_LOG for one in plan.missing)


def describe(plan: ResumePlan, command: str) -> dict[str, Any]:
    """All that is told, as built-ins. `command`: the one that does it."""
    over = plan.status in _OVER and plan.asked is None
    return {
        **plan._asdict(),
        "touched": [one._asdict() for one in plan.touched],
        "again": [one._asdict() for one in plan.again],
        "missing": [one._asdict() for one in plan.missing],
        "goes_on": code_of(plan) == COMPLETED and not over,
        "told": str(plan),
        "command": None if over or code_of(plan) == FAILED else command,
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"{told['run']}  {told['workflow']}, {told['status'] or 'not to be folded'}"
    if told["refused"] is not None:
        yield f"cannot go on: {told['refused']}"
        return
    if told["status"] in _OVER and told["asked"] is None:
        yield f"there is nothing to resume: it is {told['status']}"
        return
    yield from _rows([("keeps", _kept(told))])
    if told["superseded"]:
        yield from _rows([("rewinds", f"{_many(told['superseded'], 'event')}, as {told['why']}")])
    yield from section(
        "touched since the cut",
        [(one["name"], f"first by {one['where'] or 'the run'}", f"seq {one['seq']}")
         for one in told["touched"]],
    )  # fmt: skip
    yield from section("runs again", [_again(one) for one in told["again"]])
    if told["superseded"]:
        yield f"lost work: {render.took(told['lost'])}"
    yield from section(
        "blobs that are missing",
        [(one["digest"][:16], f"needed by {one['needed_by']}") for one in told["missing"]],
    )
    yield from section("the workflow has changed", [(signed(one),) for one in told["changes"]])
    yield from section("edits", [(f"~ {one}",) for one in told["edits"]])
    yield from section("waits for a decision", [(at,) for at in told["undecided"]])
    if told["status"] == "running":
        yield "another process executes it: it can be resumed once that has ended"
    elif told["command"] is None:
        yield "cannot go on before the missing blobs are back beside the store"
    elif told["undecided"]:
        yield f"to do it, if it has not happened: {told['command']}"
        yield "  and if it has: skip in the place of retry"
    else:
        yield f"to do it: {told['command']}"


def _kept(told: dict[str, Any]) -> str:
    if not told["superseded"] and told["cut"] == told["head"]:
        return f"all of its {_many(told['head'], 'event')}: nothing is lost"
    asked = told["asked"]
    wish = f" (asked for {asked})" if asked not in (None, told["cut"]) else ""
    return f"what counts of the events 1 to {told['cut']}{wish}, of {told['head']}"


def _again(one: dict[str, Any]) -> tuple[str, str, str, str]:
    running = f"{one['running']} under way" if one["running"] else ""
    done = f"{one['completed']} completed" if one["completed"] else ""
    return one["path"], done, running, render.took(one["seconds"])


def signed(change: str) -> str:
    """A change of a workflow, in a sign and few words."""
    what, _, rest = change.partition(": ")
    word, _, kind = what.partition(" ")
    if word not in _SIGNS or not rest:
        return f"~ {change}"
    return f"{_SIGNS[word]} {rest}" + (f" ({kind})" if kind else "")


def section(title: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A title, if there is one, and its rows; nothing where there are none."""
    listed = list(rows)
    if listed:
        yield from (title,) if title else ()
        yield from _rows(listed)


def _rows(rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield from (f"  {line}" for line in render.table(rows))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

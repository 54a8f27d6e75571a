"""What `kitchen show` prints, line by line, of what it found.

Rules: the newest and what to do about it stand last, where the eye is; a part with nothing in it is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kitchen.cli import render

_INCIDENTS = 10
_ARROWS = {"put": "->", "append": "+", "merge": "|", "add": "+", "delete": "->"}


def lines(told: dict[str, Any]) -> Iterator[str]:
    yield f"{told['id']}  {told['status']}"
    rows = [("workflow", f"{told['locator'] or told['workflow']}  ({told['fingerprint']})")]
    if told["parent"]:
        rows.append(("forked from", f"{told['parent']} at event {told['forked_at']}"))
    rows.append(
        (
            "started",
            f"{render.local(told['started'])}, by pid {told['host']['pid']} on {told['host']['host']}",
        )
    )
    rows.append(("last event", f"{render.local(told['last_event'])}, seq {told['events']}"))
    if told["rewinds"]:
        what = f"{told['superseded']} events superseded, {told['rewinds']} rewind(s)"
        rows.append(("rewound", what))
    if told["owner"]:
        rows.append(("held by", f"pid {told['owner']['pid']} on {told['owner']['host']}"))
    rows += [("at", place) for place in told["at"]]
    if told["checkpoint"]:
        saved = told["checkpoint"]
        rows.append(("checkpoint", f"seq {saved['seq']} at {saved['at'] or 'an interruption'}"))
    rows.append(("seed", str(told["seed"])))
    yield from (f"  {line}" for line in render.table(rows))
    yield from _expected(told)
    yield from _section("config", _pairs(told["config"]))
    yield from _section("resources", [_resource(one) for one in told["resources"]])
    yield from _section("state", list(told["state"].items()))
    for branch, values in told["branches"].items():
        yield from _section(f"written by {branch}, until it is joined", list(values.items()))
    buffers = [(loop, ", ".join(map(str, made))) for loop, made in told["buffers"].items() if made]
    yield from _section("items made and not consumed", buffers)
    points = told["metrics"].items()
    yield from _section("metrics", [
        (name, render.number(p["value"]) + (f"  (step {p['step']})" if p["step"] is not None else ""))
        for name, p in points
    ])  # fmt: skip
    yield from _incidents(told["incidents"])
    if told["failure"]:
        yield from _failure(told["failure"], waits=bool(told["undecided"]))
    yield from _going_on(told)


def _expected(told: dict[str, Any]) -> Iterator[str]:
    """What the run waits for, or is about to end."""
    rows = [
        (
            one["at"],
            f"{one['attempt']}, {_due(one)}",
            f"after {one['after']}" if one["after"] else "",
        )
        for one in told["retries"]
    ]
    yield from _section("waiting to be tried again", rows)
    rows = [
        (one["at"], f"{render.seconds(one['left'])} left of {render.seconds(one['seconds'])}")
        for one in told["limits"]
    ]
    yield from _section("time limits", rows)
    for one in told["failing"]:
        yield f"{one['block']} is ending: {one['at']} failed"
        yield f"  {one['type']}: {one['message']}"
        if one["undo"]:
            yield f"  to be rolled back: {', '.join(one['undo'])}"
    failed = [
        (one["branch"], f"{one['type']}: {one['message']}") for one in told["failed_branches"]
    ]
    yield from _section("branches that failed", failed)


def _due(one: dict[str, Any]) -> str:
    if one["due"] is None:
        return "at once"
    return f"at {render.local(one['due'])} (in {render.seconds(one['left'])})"


def _incidents(told: dict[str, Any]) -> Iterator[str]:
    last = told["last"][-_INCIDENTS:]
    more = sum(told["counts"].values()) - len(last)
    title = "what went wrong on the way" + (
        f" (the last {len(last)} of {len(last) + more})" if more else ""
    )
    rows = [
        (f"seq {one['seq']}", render.local(one["time"]), one["at"] or "the run", one["told"])
        for one in last
    ]
    yield from _section(title, rows)


def _failure(told: dict[str, Any], *, waits: bool) -> Iterator[str]:
    """`waits`: somebody has to decide, and how is told below."""
    yield f"failed at {told['at'] or 'its start or its end'}"
    yield f"  {told['type']}: {told['message']}"
    if told["hint"] and not waits:
        yield f"  hint: {told['hint']}"
    if 'File "' in told["traceback"]:  # without a frame it says nothing new
        yield from (f"  | {line}" for line in told["traceback"].rstrip().splitlines())
    if told["retries"]:
        retries = told["retries"]
        after = ", ".join(render.seconds(wait) for wait in retries["waits"])
        yield f"retries used: {retries['used']} of {retries['of']}" + (
            f", after {after}" if after else ""
        )
    if any(one["type"] != told["type"] for one in told["attempts"]) or len(told["attempts"]) > 1:
        yield from _section("attempts there", [_attempt(one) for one in told["attempts"]])
    writes = [
        (one["key"], one["before"], _ARROWS[one["change"]], one["value"])
        for one in told["discarded"]
    ]
    yield from _section(
        "what the failed attempt would have written, after what the state has", writes
    )


def _attempt(one: dict[str, Any]) -> tuple[str, str, str, str]:
    what = f"{one['type']}: {one['message']}" if one["type"] else one["ended"]
    if one["type"] and one["ended"] == "undecided":
        what += "  (undecided)"
    gone = "" if one["counts"] else "  (superseded)"
    return f"attempt {one['attempt']}", f"seq {one['seq']}", render.local(one["time"]), what + gone


def _going_on(told: dict[str, Any]) -> Iterator[str]:
    if told["cancelled_by"] is not None:
        yield f"cancelled by {told['cancelled_by'] or 'somebody'}: it is over"
    if told["taken_back"]:
        yield "its completed stages were rolled back: it cannot be resumed; start another run"
    elif told["undecided"]:
        yield from _section(
            "must not happen twice, and may have happened", [(at,) for at in told["undecided"]]
        )
        yield f"if it has not, to run it again:   {told['resume']}"
        yield f"if it has, to go on behind it:    {told['resume_skipping']}"
        yield "  and --set KEY=VALUE for what it would have put into the state"
    elif "resume" in told:
        yield f"to go on: {told['resume']}"


def _pairs(config: Any) -> list[tuple[str, str]]:
    return [(str(key), render.preview(value)) for key, value in config.items()]


def _resource(one: dict[str, Any]) -> tuple[str, str]:
    if not one["stateful"]:
        return one["name"], f"opened at seq {one['opened']}, without state"
    saved = f"saved at seq {one['saved']}" if one["saved"] else f"opened at seq {one['opened']}"
    return one["name"], f"{saved}, {'touched since' if one['touched'] else 'untouched since'}"


def _section(title: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield title
        yield from (f"  {line}" for line in render.table(rows))

"""`kitchen show`: one run at a glance, from its log alone.

Rules: what is damaged is told where it stands and does not hide the rest: a state value whose blob
is gone is one line, not the end of the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options
from kitchen.cli.exits import in_this_store

if TYPE_CHECKING:
    from kitchen.history.history import History
    from kitchen.machine.state import Cell, State


@click.command(short_help="Show where a run stands, and why.")
@click.argument("run")
@options.as_json
@options.common
@click.pass_context
def show(ctx: click.Context, run: str, as_json: bool, store: str | None) -> None:
    """Show where a run stands, and why.

    \b
    Example:
      kitchen show training-20260131-142501-3f9a
    """
    from kitchen.cli import render

    with options.one_run(store, run) as history:
        told = describe(history)
    if told["status"] in ("crashed", "interrupted", "failed"):
        told["resume"] = in_this_store(ctx, f"kitchen resume {told['id']}")
    click.echo(render.jsoned(told) if as_json else "\n".join(_lines(told)))


def describe(history: History) -> dict[str, Any]:
    """All that `show` tells, as built-ins."""
    from kitchen.cli import render

    run, status = history.store.run(history.run_id), history.status
    started, state = history.started, history.folded()
    last = history.store.latest(history.run_id)
    active = [render.place(a.path, a.visit, history.loops) for a in state.core.control.active]
    stretches = history.superseded
    return {
        "id": history.run_id,
        "workflow": started.workflow,
        "status": status,
        "started": render.iso(run.created_at),
        "last_event": render.iso(last.at) if last else None,
        "events": run.head,
        "superseded": _superseded(stretches),
        "rewinds": len(stretches),
        "owner": run.owner._asdict() if run.owner else None,
        "locator": str(started.locator) if started.locator else None,
        "fingerprint": started.fingerprint,
        "seed": started.seed,
        "host": {"pid": started.host.pid, "host": started.host.host, **started.host.versions},
        "config": render.builtin(history.config),
        "at": [] if status == "completed" else active,
        "cut": state.cut,
        "resources": _resources(history, state),
        "checkpoint": _checkpoint(history),
        "state": _values(history, state.core.data),
        "branches": _branches(history, state),
        "buffers": _buffers(history, state),
        "metrics": {
            name: {"value": render.builtin(points[-1].value), "step": points[-1].step}
            for name, points in history.all_metrics.items()
        },
        "failure": _failure(history) if status == "failed" else None,
    }


def _superseded(stretches: list[tuple[int, int]]) -> int:
    """How many events no longer count; the stretches may overlap."""
    count, upto = 0, 0
    for low, high in sorted(stretches):
        count += max(0, high - 1 - max(low, upto))
        upto = max(upto, high - 1)
    return count


def _resources(history: History, state: State) -> list[dict[str, Any]]:
    from kitchen.cli import render

    return [
        {
            "name": name,
            "opened": known.opened,
            "at": render.place(known.path, known.visit, history.loops),
            "stateful": known.stateful,
            "saved": known.saved,
            "touched": known.touched,
        }
        for name, known in state.core.resources.items()
    ]


def _checkpoint(history: History) -> dict[str, Any] | None:
    from kitchen.cli import render

    stretches = history.superseded
    found = None
    for record in history.store.read(history.run_id, types=["CheckpointSaved"]):
        if not any(low < record.seq < high for low, high in stretches):
            found = record
    if found is None:
        return None
    where = render.place(found.path, found.visit, history.loops)
    return {"seq": found.seq, "saved": render.iso(found.at), "at": where}


def _branches(history: History, state: State) -> dict[str, dict[str, str]]:
    """What branches have written that are not joined yet."""
    from kitchen.cli import render

    return {
        render.place(*at, history.loops): _values(history, overlay)
        for at, overlay in state.core.overlays.items()
        if overlay
    }


def _buffers(history: History, state: State) -> dict[str, list[int]]:
    """The items of async loops that are made and not consumed."""
    from kitchen.cli import render

    return {
        render.place(*at, history.loops): [made.number for made in feed.made]
        for at, feed in state.core.control.feeds.items()
    }


def _values(history: History, cells_by_key: Mapping[str, Cell | None]) -> dict[str, str]:
    from kitchen.cli import render
    from kitchen.errors import KitchenError
    from kitchen.machine import cells
    from kitchen.machine.codec import Codec

    codec, shown = Codec(), dict[str, str]()
    for key, cell in cells_by_key.items():
        if cell is None:
            shown[key] = "(deleted)"
            continue
        try:
            shown[key] = render.preview(cells.read(cell, codec, history.store.blobs.get, key))
        except KitchenError as error:
            shown[key] = f"(cannot be read: {error.message})"
    return shown


def _failure(history: History) -> dict[str, Any] | None:
    from kitchen.cli import render
    from kitchen.log.reader import fact_of

    record = history.store.latest(history.run_id, ["RunFailed"])
    if record is None:
        return None
    event: Any = fact_of(record).event
    told = {name: getattr(event.failure, name) for name in ("type", "message", "hint", "traceback")}
    return {"at": render.place(record.path, record.visit, history.loops), **told}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    from kitchen.cli import render

    yield f"{told['id']}  {told['status']}"
    rows = [("workflow", f"{told['locator'] or told['workflow']}  ({told['fingerprint']})")]
    rows.append(
        (
            "started",
            f"{render.local(told['started'])}, by pid {told['host']['pid']} on {told['host']['host']}",
        )
    )
    rows.append(("last event", f"{render.local(told['last_event'])}, seq {told['events']}"))
    if told["rewinds"]:
        what = f"{told['superseded']} events superseded by {told['rewinds']} rewind(s)"
        rows.append(("rewound", what))
    if told["owner"]:
        rows.append(("held by", f"pid {told['owner']['pid']} on {told['owner']['host']}"))
    rows += [("at", place) for place in told["at"]]
    if told["checkpoint"]:
        saved = told["checkpoint"]
        rows.append(("checkpoint", f"seq {saved['seq']} at {saved['at'] or 'an interruption'}"))
    rows.append(("seed", str(told["seed"])))
    yield from (f"  {line}" for line in render.table(rows))
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
    failure = told["failure"]
    if failure:
        yield f"failed at {failure['at'] or 'its start'}"
        yield f"  {failure['type']}: {failure['message']}"
        if failure["hint"]:
            yield f"  hint: {failure['hint']}"
        yield from (f"  | {line}" for line in failure["traceback"].rstrip().splitlines())
    if "resume" in told:
        yield f"to go on: {told['resume']}"


def _pairs(config: Any) -> list[tuple[str, str]]:
    from kitchen.cli import render

    return [(str(key), render.preview(value)) for key, value in config.items()]


def _resource(one: dict[str, Any]) -> tuple[str, str]:
    if not one["stateful"]:
        return one["name"], f"opened at seq {one['opened']}, without state"
    saved = f"saved at seq {one['saved']}" if one["saved"] else f"opened at seq {one['opened']}"
    return one["name"], f"{saved}, {'touched since' if one['touched'] else 'untouched since'}"


def _section(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    from kitchen.cli import render

    if rows:
        yield title
        yield from (f"  {line}" for line in render.table(rows))

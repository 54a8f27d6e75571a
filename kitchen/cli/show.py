"""`kitchen show`: one run at a glance, from its log alone.

Rules: what is damaged is told where it stands and does not hide the rest: a state value whose blob
is gone is one line, not the end of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options
from kitchen.cli.exits import in_this_store
from kitchen.cli.inert import inert

if TYPE_CHECKING:
    from kitchen.history.history import History
    from kitchen.machine.state import Cell, State


@click.command(short_help="Show where a run stands, and why.")
@click.argument("run")
@click.option("--tree", is_flag=True, help="Show its visits as a tree.")
@click.option("--all", "everything", is_flag=True, help="With --tree: leave nothing out.")
@options.as_json
@options.common
@click.pass_context
def show(
    ctx: click.Context, run: str, tree: bool, everything: bool, as_json: bool, store: str | None
) -> None:
    """Show where a run stands, and why.

    \b
    Example:
      kitchen show training-20260131-142501-3f9a
      kitchen show first --tree
    """
    from kitchen.cli import render
    from kitchen.cli.choosing import UNFINISHED
    from kitchen.cli.deciding import resume_command
    from kitchen.cli.sheet import lines

    with options.one_run(store, run) as history:
        if tree:
            _tree(history, everything=everything, as_json=as_json)
            return
        told = describe(history)
    if told["status"] in UNFINISHED and not told["taken_back"]:
        for key, choice in (("resume", "retry"), ("resume_skipping", "skip")):
            if key == "resume" or told["undecided"]:
                command = resume_command(told["id"], told["undecided"], choice)
                told[key] = in_this_store(ctx, command)
    click.echo(render.jsoned(told) if as_json else inert("\n".join(lines(told))))


def _tree(history: History, *, everything: bool, as_json: bool) -> None:
    from kitchen.cli import render, tree

    root = history.tree()
    drawn = tree.of_visits(root, everything=everything)
    click.echo(render.jsoned(tree.described(root)) if as_json else inert("\n".join(drawn)))


def describe(history: History) -> dict[str, Any]:
    """All that `show` tells, as built-ins."""
    from kitchen.cli import expected, render, wrong
    from kitchen.history.history import is_taken_back

    run, status = history.store.run(history.run_id), history.status
    started, state = history.started, history.folded()
    last = history.store.latest(history.run_id)
    active = [render.place(a.path, a.visit, history.loops) for a in state.core.control.active]
    rewinds = history.store.read(history.run_id, types=["RunRewound"], path="")
    return {
        "id": history.run_id,
        "parent": run.parent,
        "forked_at": run.forked_at or None,
        "workflow": started.workflow,
        "status": status,
        "started": render.iso(run.created_at),
        "last_event": render.iso(last.at) if last else None,
        "events": run.head,
        "superseded": sum(high - 1 - low for low, high in history.superseded),
        "rewinds": sum(1 for _ in rewinds),
        "owner": run.owner._asdict() if run.owner else None,
        "locator": str(started.locator) if started.locator else None,
        "fingerprint": started.fingerprint,
        "seed": history.begun.seed,
        "host": _host(history),
        "config": render.builtin(history.config),
        "at": [] if status == "completed" else active,
        "undecided": list(history.undecided),
        **expected.describe(history, state, status),
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
        "incidents": wrong.incidents(history),
        "failure": wrong.failure(history) if state.status == "failed" else None,
        "taken_back": is_taken_back(history.store, history.run_id),
        "cancelled_by": _canceller(history) if status == "cancelled" else None,
    }


def _host(history: History) -> dict[str, Any]:
    """Where the run was made: a fork is another's up to where it was forked."""
    from kitchen.log.reader import fact_of

    made = history.store.latest(history.run_id, ["RunForked"], path="")
    event: Any = history.started if made is None else fact_of(made).event
    return {"pid": event.host.pid, "host": event.host.host, **event.host.versions}


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
    from kitchen.history.counted import counted
    from kitchen.log.reader import LogReader

    store, run = history.store, history.run_id
    renaming = LogReader(store, run, history.program).renaming
    found = None
    for record in counted(store, run, renaming, ["CheckpointSaved"]):
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
            shown[key] = render.preview(cells.read(cell, codec, history.fetch, key))
        except KitchenError as error:
            shown[key] = f"(cannot be read: {error.message})"
    return shown


def _canceller(history: History) -> str | None:
    from kitchen.log.reader import fact_of

    record = history.store.latest(history.run_id, ["RunCancelled"])
    event: Any = fact_of(record).event if record is not None else None
    return event.by if event is not None else None

"""`kitchen runs`: what is in a store, the newest last, where the eye is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options
from kitchen.cli.inert import inert, one_line

if TYPE_CHECKING:
    from kitchen.cli.choosing import Candidate
    from kitchen.ports.event_store import RunInfo

STATUSES = (
    "running", "crashed", "interrupted", "undecided", "forked", "failed", "cancelled", "completed",
)  # fmt: skip
_SHOWN = 20


@click.command(short_help="List the runs of a store.")
@click.option("-n", "count", type=click.IntRange(1), default=_SHOWN, metavar="N",
              help=f"How many of the newest to list [default: {_SHOWN}].")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="List all of them.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that stand so.")
@click.option("--tree", is_flag=True, help="Forks under the runs that they were forked from.")
@options.as_json
@options.common
def runs(
    count: int,
    everything: bool,
    status: str | None,
    tree: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """List the runs of a store.

    \b
    Example:
      kitchen runs --status crashed
    """
    from kitchen.cli import render
    from kitchen.cli.choosing import candidates

    with options.reading(store) as opened:
        found = [one for one in candidates(opened) if status in (None, one.status)]
        total = len(found)
        found = found if everything else found[:count]
        found.reverse()
        if as_json:
            click.echo(render.jsoned([_described(one) for one in found]))
            return
        if not found:
            click.echo("no runs" if status is None else f"no runs that are {status}", err=True)
            return
        click.echo(inert("\n".join(_forest(found) if tree else _table(found))))
        if total > len(found):
            click.echo(f"({total - len(found)} older ones: --all)", err=True)


def _described(one: Candidate) -> dict[str, Any]:
    from kitchen.cli import render

    info, stands, last = one
    return {
        "id": info.run,
        "workflow": info.name,
        "status": stands,
        "started": render.iso(info.created_at),
        "last_event": render.iso(last),
        "events": info.head,
        "owner": info.owner._asdict() if info.owner else None,
        "parent": info.parent,
        "forked_at": info.forked_at or None,
    }


def _table(found: list[Candidate]) -> list[str]:
    from kitchen.cli import render

    forks = any(one.info.parent for one in found)
    rows: list[tuple[str, ...]] = [
        ("ID", "WORKFLOW", "STATUS", "STARTED", "LAST EVENT", "EVENTS", "OWNER")
    ]
    if forks:
        rows = [(*rows[0], "FORKED FROM")]
    for info, stands, last in found:
        started, ago = render.moment(info.created_at), f"{render.age(last)} ago"
        owner = f"pid {info.owner.pid} on {info.owner.host}" if info.owner else ""
        row = (info.run, info.name, stands, started, ago, str(info.head), owner)
        rows.append((*row, _origin(info)) if forks else row)
    return render.table(rows)


def _forest(found: list[Candidate]) -> Iterator[str]:
    from kitchen.cli import render
    from kitchen.cli.tree import drawn, under_parents

    known = {one.info.run: one for one in found}
    roots, forks = under_parents([one.info for one in found])

    def label(info: RunInfo) -> str:
        _, stands, last = known[info.run]
        origin = f"at {info.forked_at} " if info.parent in known else ""
        lost = f", forked from {_origin(info)}" if info.parent and not origin else ""
        told = f"{stands}, {info.head} events, {render.age(last)} ago{lost}"
        return one_line(f"{origin}{info.run}  {info.name}  {told}", 300)

    return drawn(roots, label, lambda info: forks.get(info.run, ()))


def _origin(info: RunInfo) -> str:
    return f"{info.parent} at {info.forked_at}" if info.parent else ""

"""`kitchen runs`: what is in a store, the newest last, where the eye is."""

from __future__ import annotations

import click

from kitchen.cli import options

STATUSES = (
    "running", "crashed", "interrupted", "undecided", "failed", "cancelled", "completed",
)  # fmt: skip
_SHOWN = 20


@click.command(short_help="List the runs of a store.")
@click.option("-n", "count", type=click.IntRange(1), default=_SHOWN, metavar="N",
              help=f"How many of the newest to list [default: {_SHOWN}].")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="List all of them.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that stand so.")
@options.as_json
@options.common
def runs(
    count: int, everything: bool, status: str | None, as_json: bool, store: str | None
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
            listed = [
                {
                    "id": info.run,
                    "workflow": info.name,
                    "status": stands,
                    "started": render.iso(info.created_at),
                    "last_event": render.iso(last),
                    "events": info.head,
                    "owner": info.owner._asdict() if info.owner else None,
                }
                for info, stands, last in found
            ]
            click.echo(render.jsoned(listed))
            return
        if not found:
            click.echo("no runs" if status is None else f"no runs that are {status}", err=True)
            return
        rows = [("ID", "WORKFLOW", "STATUS", "STARTED", "LAST EVENT", "EVENTS", "OWNER")]
        for info, stands, last in found:
            started, ago = render.moment(info.created_at), f"{render.age(last)} ago"
            owner = f"pid {info.owner.pid} on {info.owner.host}" if info.owner else ""
            rows.append((info.run, info.name, stands, started, ago, str(info.head), owner))
        click.echo("\n".join(render.table(rows)))
        if total > len(found):
            click.echo(f"({total - len(found)} older ones: --all)", err=True)

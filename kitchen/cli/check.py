"""`kitchen check`: which runs can go on with a workflow as it is now. A gate for CI.

Rules: each run is folded on today's code; nothing is appended, and no stage runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.runner.planning import Checked


@click.command(short_help="Tell which runs can go on with a workflow as it is now.")
@click.argument("target", metavar="MODULE:WORKFLOW")
@click.option("--all", "every", is_flag=True, help="Completed and cancelled runs too.")
@options.as_json
@options.common
@click.pass_context
def check(ctx: click.Context, target: str, every: bool, as_json: bool, store: str | None) -> None:
    """Tell which unfinished runs of a workflow can go on with its code as it is now.

    The exit code is 1 if some cannot.

    \b
    Example:
      kitchen check training:workflow --store runs.db
    """
    from kitchen.api.turning import check_runs
    from kitchen.cli import render
    from kitchen.cli.execute import workflow_named
    from kitchen.cli.inert import inert

    workflow = workflow_named(target)
    with options.reading(store) as opened:
        found = check_runs(workflow, store=opened, every=every)
    if as_json:
        click.echo(render.jsoned([one._asdict() for one in found]))
    elif not found:
        which = "no run" if every else "no unfinished run"
        click.echo(f"there is {which} of {workflow.name} in this store", err=True)
    else:
        click.echo(inert("\n".join(_lines(found))))
    ctx.exit(0 if all(one.ok for one in found) else 1)


def _lines(found: list[Checked]) -> list[str]:
    from kitchen.cli import render
    from kitchen.cli.planned import signed

    rows: list[tuple[Any, ...]] = [("ID", "STATUS", "GOES ON")]
    rows += [(one.run, one.status, "yes" if one.ok else "no") for one in found]
    lines = render.table(rows)
    for one in found:
        if one.changes or not one.ok:
            lines.append(f"{one.run}:")
        lines += [f"  {line}" for line in one.why.splitlines()]
        lines += [f"  {signed(change)}" for change in one.changes]
    return lines

"""`kitchen verify`: whether a store holds what was written, and whether it can be folded.

Rules: it reports all that it finds, and changes nothing. Every event of a run that the store finds
whole is also read and folded on the recorded workflow, past the snapshots: an event that cannot
be there is a finding of the kind "history".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore


@click.command(short_help="Check that a store holds what was written.")
@click.argument("run", required=False)
@options.as_json
@options.common
@click.pass_context
def verify(ctx: click.Context, run: str | None, as_json: bool, store: str | None) -> None:
    """Check that a store holds what was written: one run, or all.

    \b
    Example:
      kitchen verify first
    """
    from kitchen.cli import render
    from kitchen.cli.choosing import named
    from kitchen.cli.inert import inert
    from kitchen.ports.event_store import Finding

    with options.reading(store) as opened:
        chosen = named(opened, run) if run is not None else None
        findings = opened.verify(chosen)
        wounded = {finding.run for finding in findings}
        runs = [chosen] if chosen is not None else _runs(opened)
        for one in runs:
            fault = _folding_fault(opened, one) if one not in wounded else None
            if fault is not None:
                findings.append(Finding("history", one, None, fault))
    if as_json:
        click.echo(render.jsoned([finding._asdict() for finding in findings]))
    elif findings:
        click.echo("\n".join(inert(f"{finding.kind}: {finding}") for finding in findings))
        click.echo(f"{len(findings)} finding(s)", err=True)
    else:
        click.echo(f"{len(runs)} run(s) verified, nothing found")
    if findings:
        ctx.exit(1)


def _runs(store: EventStore) -> list[str]:
    from kitchen.errors import KitchenError

    try:
        return [info.run for info in store.runs()]
    except KitchenError:
        return []  # what is wrong with the file is among the findings


def _folding_fault(store: EventStore, run: str) -> str | None:
    from kitchen.errors import KitchenError
    from kitchen.log.reader import LogReader, recorded_ir
    from kitchen.machine.chart import compile_workflow
    from kitchen.machine.state import State

    try:
        reader = LogReader(store, run, compile_workflow(recorded_ir(store, run)))
        reader.folded(State(), None)
    except KitchenError as error:
        return error.message
    return None

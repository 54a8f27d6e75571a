"""`kitchen trace`: a run as stable text, the same for runs that did the same."""

from __future__ import annotations

import click

from kitchen.cli import options


@click.command(short_help="Print what a run did, as text that two runs can be compared by.")
@click.argument("run")
@click.option("--level", type=click.Choice(["stages", "events", "state"]), default="events",
              show_default=True, help="Committed stages, all events, or stages with what they changed.")  # fmt: skip
@click.option("--digits", type=click.IntRange(1, 17), metavar="N",
              help="Round floats to N significant digits.")  # fmt: skip
@options.common
def trace(run: str, level: str, digits: int | None, store: str | None) -> None:
    """Print what a run did, as text that two runs can be compared by.

    Crashes, rewinds and retries leave no mark in it, nor do times, ids and processes.

    \b
    Example:
      kitchen trace first --level state > first.txt
    """
    from kitchen.cli.inert import inert

    with options.one_run(store, run) as history:
        told = history.trace(level, digits=digits)
    click.echo(inert(told), nl=False)

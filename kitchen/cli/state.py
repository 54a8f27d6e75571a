"""`kitchen state`: the state that a run's log gives, at its head or at any event before it."""

from __future__ import annotations

import click

from kitchen.cli import options


@click.command(short_help="Print a run's state, now or at any event.")
@click.argument("run")
@click.argument("key", required=False)
@click.option("--at", type=int, metavar="SEQ", help="As it was after this event.")
@options.as_json
@options.common
def state(run: str, key: str | None, at: int | None, as_json: bool, store: str | None) -> None:
    """Print a run's state, now or at any event.

    Without KEY, each key with a short view of its value; with it, that value whole.

    \b
    Example:
      kitchen state first loss --at 812
    """
    from kitchen.cli import render
    from kitchen.cli.exits import Usage
    from kitchen.errors import HistoryError
    from kitchen.runner.config import suggest

    with options.one_run(store, run) as history:
        options.check_seq(history.store, history.run_id, at)
        try:
            values = history.state_at(at)
        except HistoryError as error:
            error.hint = error.hint or f"kitchen verify {history.run_id}"
            raise
    if key is not None:
        if key not in values:
            when = f" at seq {at}" if at is not None else ""
            raise Usage(f"the state{when} has no key {key!r}", hint=suggest(key, values))
        click.echo(render.jsoned(values[key]))
    elif as_json:
        click.echo(render.jsoned(values))
    elif values:
        rows = [(name, render.preview(value, 100)) for name, value in values.items()]
        click.echo("\n".join(render.table(rows)))
    else:
        click.echo("(the state is empty)", err=True)

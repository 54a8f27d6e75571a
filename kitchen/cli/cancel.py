"""`kitchen cancel`: ending a run for good.

Rules: what has ended before is told, and is no error. A run that another process executes is ended by
that process, and waited for; where it does not end in time, that is told: it may still end by it.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore


@click.command(short_help="End a run for good.")
@click.argument("run")
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True,
              metavar="SECONDS", help="How long to wait for the process that executes it.")  # fmt: skip
@options.common
def cancel(run: str, wait: float, store: str | None) -> None:
    """End a run for good. It cannot be resumed afterwards.

    A run that another process executes is ended by that process.

    \b
    Example:
      kitchen cancel first --wait 300
    """
    from kitchen.cli.choosing import named
    from kitchen.cli.inert import inert
    from kitchen.history.history import status_of

    with options.writing(store, create=False) as opened:
        chosen = named(opened, run)
        before = status_of(opened, chosen)
        if before in ("completed", "cancelled"):
            click.echo(inert(f"run {chosen} was {before} before: nothing to cancel"))
            return
        told = _ended(opened, chosen, wait)
        click.echo(inert(f"run {chosen} {told}"))


def _ended(store: EventStore, run: str, wait: float) -> str:
    """End it; what became of it, in words."""
    from kitchen.api import running as api
    from kitchen.cli.inert import inert
    from kitchen.errors import RunHeld

    owner = store.run(run).owner
    if owner is not None:
        who = f"pid {owner.pid} on {owner.host}"
        with suppress(OSError):  # a reader that is gone must not spare the run
            click.echo(inert(f"asking {who}, which executes run {run}, to end it"))
    try:
        status = api.cancel(run, store=store, wait=wait)
    except RunHeld as error:
        raise RunHeld(
            f"run {run!r} has not ended within {wait:g} s\n  {error.message}",
            hint="it was asked to, and what cannot be stopped has its grace period first: "
            f"kitchen show {shlex.quote(run)}",
        ) from error
    if status != "cancelled":
        return f"came to its end before it could be cancelled: {status}"
    return f"was cancelled at seq {store.head(run)}: it is over, and cannot be resumed"

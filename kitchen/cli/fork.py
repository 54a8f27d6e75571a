"""`kitchen fork`: a run that shares the beginning of another and goes its own way from there.

Rules: where the fork begins is told, and why not at the event that was asked for. With `--run` it is
resumed at once, as `kitchen resume` would.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import editing, executing, options
from kitchen.cli.editing import Wish

if TYPE_CHECKING:
    from kitchen.runner.forking import Forked


@click.command(short_help="Make a run that goes another way from an event of this one.")
@click.argument("run")
@click.argument("words", metavar="[NAME=VALUE]...", nargs=-1)
@editing.options
@click.option("--id", "new", metavar="NEW", help="The fork's name [default: made up].")
@click.option("--workflow", "target", metavar="MODULE:NAME",
              help="Its code, where the log alone does not lead to it.")  # fmt: skip
@click.option("--run", "at_once", is_flag=True, help="Resume the fork at once.")
@executing.executed
@options.as_json
@options.common
@click.pass_context
def fork(
    ctx: click.Context,
    run: str,
    words: tuple[str, ...],
    at: int | None,
    changes: tuple[str, ...],
    seed: int | None,
    new: str | None,
    target: str | None,
    at_once: bool,
    durability: str | None,
    grace: float,
    plain: bool,
    quiet: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """Make a run that shares the beginning of RUN, and goes another way from there.

    Without --at it begins where RUN stands. RUN stays as it is, and may be running.

    \b
    Example:
      kitchen fork first --at 120 learning_rate=1e-4 --run
    """
    from kitchen.api import running, turning
    from kitchen.cli import render
    from kitchen.cli.choosing import named
    from kitchen.cli.exits import Usage, in_this_store
    from kitchen.cli.inert import inert

    if as_json and at_once:
        raise Usage("--json and --run do not go together", hint="kitchen resume runs the fork")
    wish = Wish(words, at, changes, seed, target)
    with options.writing(store, create=False) as opened:
        parent = named(opened, run)
        edits = wish.edits(opened, parent)
        made = turning.forked(parent, at, edits, new, target, opened)
        told = _describe(made, in_this_store(ctx, _resume(made.run, target)))
        if as_json:
            click.echo(render.jsoned(told))
        elif not quiet:
            click.echo(inert("\n".join(_lines(made, told, at, at_once=at_once))))
        if at_once:
            call = partial(
                running.resume_async, made.run, target, store=opened, durability=durability,
                grace=grace, signals=True, on_plan=None if quiet else executing.tell,
            )  # fmt: skip
            executing.execute(call, opened, made.run, grace, plain=plain, quiet=quiet)


def _resume(run: str, target: str | None) -> str:
    from kitchen.cli.deciding import resume_command

    return resume_command(run, more=Wish(target=target).typed)


def _describe(made: Forked, command: str) -> dict[str, Any]:
    from kitchen.cli.detail import edited

    cut = made.cut
    assert cut.state.started is not None
    return {
        "id": made.run, "parent": made.parent, "forked_at": cut.seq, "asked": cut.asked,
        "why": cut.why,
        "edits": edited(made.edited, cut.state.started.config) if made.edited else [],
        "resume": command,
    }  # fmt: skip


def _lines(made: Forked, told: dict[str, Any], at: int | None, *, at_once: bool) -> list[str]:
    cut = made.cut
    where = f" (asked for {cut.asked}: {cut.why})" if at is not None and cut.seq != at else ""
    if at is None and cut.seq != cut.asked:
        where = f" (it has {cut.asked}: {cut.why})"
    lines = [f"forked {made.parent} at event {cut.seq}{where} as {made.run}"]
    lines += [f"  ~ {edit}" for edit in told["edits"]]
    return lines if at_once else [*lines, f"to run it: {told['resume']}"]

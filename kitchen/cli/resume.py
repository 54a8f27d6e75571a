"""`kitchen resume`: taking a run up, where it was left or from an earlier event; and its plan.

Rules: `--plan` tells what would be done, and nothing is; its exit code is that with which the resume
would be refused, or 0 (see `planned.code_of`).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import editing, executing, options
from kitchen.cli.editing import Wish

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore


@click.command(short_help="Take a run up where it was left.")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.argument("words", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--plan", is_flag=True, help="Only tell what would be done.")
@editing.options
@click.option("--rename", "renamed", multiple=True, metavar="OLD=NEW",
              help="The new path of a node that was renamed; may be repeated.")  # fmt: skip
@click.option("--workflow", "target", metavar="MODULE:NAME",
              help="Its code, where the log alone does not lead to it.")  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Without RUN: resume the newest without asking.")
@click.option("--decide", "decided", multiple=True, metavar="PATH=retry|skip",
              help='Of a stage with effect="once" that was stopped: run it again, or go on behind'
              " it; may be repeated.")  # fmt: skip
@click.option("--set", "skipped", multiple=True, metavar="KEY=VALUE",
              help="What the skipped stage would have put into the state; may be repeated."
              " Of several: PATH:KEY=VALUE.")  # fmt: skip
@executing.executed
@click.option("--json", "as_json", is_flag=True, help="With --plan: print JSON.")
@options.common
@click.pass_context
def resume(
    ctx: click.Context,
    run_id: str | None,
    words: tuple[str, ...],
    plan: bool,
    at: int | None,
    changes: tuple[str, ...],
    seed: int | None,
    renamed: tuple[str, ...],
    target: str | None,
    yes: bool,
    decided: tuple[str, ...],
    skipped: tuple[str, ...],
    durability: str | None,
    grace: float,
    plain: bool,
    quiet: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """Take a run up where it was left, and run it to its end.

    Without RUN, the newest run that is not finished is offered. With --at, the run goes another way
    from there: config, state and seed may then be edited.

    \b
    Example:
      kitchen resume first
      kitchen resume first --at 120 learning_rate=1e-4 --plan
      kitchen resume first --decide publish=skip --set version=3
    """
    from kitchen.api import running
    from kitchen.cli.choosing import named
    from kitchen.cli.deciding import decisions

    _check(plan=plan, as_json=as_json, decided=decided)
    wish, names = Wish(words, at, changes, seed, target), editing.pairs(renamed, "--rename")
    decide = decisions(decided, skipped)
    opening = options.reading(store) if plan else options.writing(store, create=False)
    with opening as opened:
        chosen = named(opened, run_id) if run_id is not None else _offered(opened, yes=yes)
        if chosen is None:
            return
        edits = wish.edits(opened, chosen)
        wished: dict[str, Any] = {
            "store": opened, "at": at, "config": edits.config, "state": edits.state, "seed": seed,
            "strict": edits.strict, "rename": names,
        }  # fmt: skip
        if plan:
            _plan(ctx, chosen, wish, renamed, wished, as_json=as_json)
            return
        call = partial(
            running.resume_async, chosen, target, **wished, durability=durability,
            decide=decide or None, grace=grace, signals=True,
            on_plan=None if quiet else executing.tell,
        )  # fmt: skip
        executing.execute(call, opened, chosen, grace, plain=plain, quiet=quiet)


def _check(*, plan: bool, as_json: bool, decided: tuple[str, ...]) -> None:
    from kitchen.cli.exits import Usage

    if as_json and not plan:
        raise Usage("--json is for --plan", hint="kitchen show RUN --json tells how a run stands")
    if plan and decided:
        raise Usage("--plan tells what is to be decided: leave --decide out")


def _plan(
    ctx: click.Context,
    run: str,
    wish: Wish,
    renamed: tuple[str, ...],
    wished: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    import shlex

    from kitchen.api.turning import plan_resume
    from kitchen.cli import planned, render
    from kitchen.cli.deciding import resume_command
    from kitchen.cli.exits import in_this_store
    from kitchen.cli.inert import inert
    from kitchen.runner.secret import redacted

    plan = plan_resume(run, wish.target, **wished)
    more = [word for name in renamed for word in ("--rename", shlex.quote(name))]
    command = resume_command(run, plan.undecided, more=[*wish.typed, *more])
    told = planned.describe(plan, in_this_store(ctx, command))
    text = render.jsoned(told) if as_json else inert("\n".join(planned.lines(told)))
    click.echo(redacted(text))
    ctx.exit(planned.code_of(plan))


def _offered(store: EventStore, *, yes: bool) -> str | None:
    """The newest unfinished run, if that is what is wanted."""
    from kitchen.cli import render
    from kitchen.cli.choosing import Candidate, unfinished
    from kitchen.cli.exits import Usage

    def told(one: Candidate) -> str:
        return f"{one.info.run} ({one.info.name}, {one.status}, {render.age(one.last_at)} ago)"

    found = unfinished(store)
    if not found:
        raise Usage("there is no unfinished run in this store", hint="kitchen runs lists them all")
    if yes:
        return found[0].info.run
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        listed = "\n".join(f"  {told(one)}" for one in found[:10])
        raise Usage(
            f"which run is to be resumed? Unfinished are:\n{listed}",
            hint="kitchen resume RUN, or --yes for the newest",
        )
    if click.confirm(f"resume {told(found[0])}?", default=True):
        return found[0].info.run
    click.echo("nothing was resumed")
    return None

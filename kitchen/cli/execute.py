"""`kitchen run` and `kitchen resume`: executing a run in this process.

Rules:

1. Whatever can be refused is refused before a store is made: the workflow is found and the config
   converted first.
2. What is shown while it runs is an observer; nothing that goes wrong there reaches the run.
3. A run's end is an exit code (see `kitchen.cli`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options
from kitchen.errors import UnknownWorkflow

if TYPE_CHECKING:
    from kitchen.api import Run
    from kitchen.ports.event_store import EventStore
    from kitchen.ports.observer import RunObserver
    from kitchen.workflow.definition import Workflow

_durability = click.option(
    "--durability", type=click.Choice(["process", "power"]),
    help="What the log survives: kill -9, or the loss of power too (slower)"
    " [default: process; at a resume, as the run was started].",
)  # fmt: skip
_quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
_plain = click.option("--plain", is_flag=True, help="Print lines, also on a terminal.")


@click.command(short_help="Run a workflow to its end.")
@click.argument("target", metavar="MODULE:WORKFLOW")
@click.argument("words", metavar="[CONFIG.toml] [NAME=VALUE]...", nargs=-1)
@click.option("--id", "run_id", metavar="ID", help="The run's name [default: made up].")
@click.option("--seed", type=int, default=0, show_default=True, help="What all randomness is from.")
@click.option("--if-exists", type=click.Choice(["error", "resume"]), default="error",
              show_default=True, help="What to do where there is a run of that id.")  # fmt: skip
@_durability
@_plain
@_quiet
@options.common
def run(
    target: str,
    words: tuple[str, ...],
    run_id: str | None,
    seed: int,
    if_exists: str,
    durability: str | None,
    plain: bool,
    quiet: bool,
    store: str | None,
) -> None:
    """Run a workflow to its end.

    \b
    Example:
      kitchen run training:workflow config.toml epochs=3 model.width=64 --id first
    """
    from kitchen.cli.arguments import config_from
    from kitchen.cli.exits import Usage

    if run_id is not None and not run_id.strip():
        raise Usage("--id needs a name that is not empty")
    workflow = workflow_named(target)
    config = config_from(words, workflow.config_type)
    given = config if workflow.config_type is not None else dict(config)
    from kitchen import api

    with options.writing(store, create=True) as opened:

        def execute(observers: list[RunObserver]) -> Run[Any, Any]:
            return api.run(
                workflow, given, store=opened, run_id=run_id, seed=seed, if_exists=if_exists,
                durability=durability or "process", observers=observers,
            )  # fmt: skip

        _execute(execute, opened, plain=plain, quiet=quiet)


@click.command(short_help="Take a run up where it was left.")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--workflow", "target", metavar="MODULE:NAME",
              help="Its code, where the log alone does not lead to it.")  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Without RUN: resume the newest without asking.")
@_durability
@_plain
@_quiet
@options.common
def resume(
    run_id: str | None,
    target: str | None,
    yes: bool,
    durability: str | None,
    plain: bool,
    quiet: bool,
    store: str | None,
) -> None:
    """Take a run up where it was left, and run it to its end.

    Without RUN, the newest run that is not finished is offered.

    \b
    Example:
      kitchen resume first
    """
    from kitchen import api
    from kitchen.cli.choosing import named

    with options.writing(store, create=False) as opened:
        chosen = named(opened, run_id) if run_id is not None else _offered(opened, yes=yes)
        if chosen is None:
            return

        def execute(observers: list[RunObserver]) -> Run[Any, Any]:
            return api.resume(
                chosen, target, store=opened, durability=durability, observers=observers
            )

        _execute(execute, opened, plain=plain, quiet=quiet)


def workflow_named(target: str) -> Workflow[Any, Any]:
    """The workflow that `module:name` leads to.

    Raises `UnknownWorkflow`.
    """
    from kitchen.runner.locate import workflow_at

    try:
        return workflow_at(target)
    except UnknownWorkflow as error:
        for own in (Path("store.py"), Path("store", "__init__.py")):
            if own.exists() and "store" in error.message:
                error.hint = (
                    f"{own.resolve()} has the name of a package that kitchen brings along, and "
                    "`import store` finds that one; rename yours"
                )
        raise


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


def _execute(
    execute: Callable[[list[RunObserver]], Run[Any, Any]],
    store: EventStore,
    *,
    plain: bool,
    quiet: bool,
) -> None:
    from kitchen.cli.tracking import Harmless

    with _display(plain=plain, quiet=quiet) as display:
        observer = Harmless(display)
        ended = execute([observer])
    if quiet:
        return
    if not observer.seen:
        click.echo(f"run {ended.id} was completed before: nothing to do")
        return
    metrics = " ".join(_last_metrics(ended))
    told = f"run {ended.id} completed: {store.head(ended.id)} events"
    try:
        click.echo(f"{told}  {metrics}".rstrip())
    except OSError:
        from kitchen.cli.exits import mute_stdout

        mute_stdout()  # the run is completed, whoever reads of it


def _last_metrics(ended: Run[Any, Any]) -> Iterator[str]:
    from kitchen.cli import render

    for name, points in list(ended.metrics.items())[:8]:
        yield f"{name}={render.number(points[-1].value)}"


@contextmanager
def _display(*, plain: bool, quiet: bool) -> Generator[RunObserver]:
    if quiet:
        from kitchen.cli.tracking import Silence

        yield Silence()
    elif plain or not sys.stdout.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        from kitchen.cli.plain import PlainLines

        yield PlainLines()
    else:
        from kitchen.cli.progress import LiveProgress

        with LiveProgress() as live:
            yield live

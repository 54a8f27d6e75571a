"""`kitchen run` and `kitchen resume`: executing a run in this process.

Rules:

1. Whatever can be refused is refused before a store is made: the workflow is found and the config
   converted first.
2. What is shown while it runs is an observer; nothing that goes wrong there reaches the run. What it
   shows is not logged as well.
3. A run's end is an exit code (see `kitchen.cli`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options
from kitchen.errors import EffectUndecided, RunError, UnknownWorkflow

if TYPE_CHECKING:
    from kitchen.ended import Run
    from kitchen.ports.event_store import EventStore
    from kitchen.ports.observer import RunObserver
    from kitchen.workflow.definition import Workflow

# What the log of the runner says and the displays say too.
_TOLD = (
    "run %s: %s",
    "run %s: saved, as it was asked to",
    "run %s: %s could not be rolled back: %s",
)
_durability = click.option(
    "--durability", type=click.Choice(["process", "power"]),
    help="What the log survives: kill -9, or the loss of power too (slower)"
    " [default: process; at a resume, as the run was started].",
)  # fmt: skip
_grace = click.option(
    "--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long what runs may take to end once the run is to stop.",
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
@_grace
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
    grace: float,
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
        execute = partial(
            api.run_async, workflow, given, store=opened, run_id=run_id, seed=seed,
            if_exists=if_exists, durability=durability or "process", grace=grace, signals=True,
        )  # fmt: skip
        _execute(execute, opened, _kind(plain=plain, quiet=quiet), run_id, grace)


@click.command(short_help="Take a run up where it was left.")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--workflow", "target", metavar="MODULE:NAME",
              help="Its code, where the log alone does not lead to it.")  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Without RUN: resume the newest without asking.")
@click.option("--decide", "decided", multiple=True, metavar="PATH=retry|skip",
              help='Of a stage with effect="once" that was stopped: run it again, or go on behind'
              " it; may be repeated.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE",
              help="What the skipped stage would have put into the state; may be repeated."
              " Of several: PATH:KEY=VALUE.")  # fmt: skip
@_durability
@_grace
@_plain
@_quiet
@options.common
def resume(
    run_id: str | None,
    target: str | None,
    yes: bool,
    decided: tuple[str, ...],
    changes: tuple[str, ...],
    durability: str | None,
    grace: float,
    plain: bool,
    quiet: bool,
    store: str | None,
) -> None:
    """Take a run up where it was left, and run it to its end.

    Without RUN, the newest run that is not finished is offered.

    \b
    Example:
      kitchen resume first
      kitchen resume first --decide publish=skip --set version=3
    """
    from kitchen import api
    from kitchen.cli.choosing import named
    from kitchen.cli.deciding import decisions

    decide = decisions(decided, changes)
    with options.writing(store, create=False) as opened:
        chosen = named(opened, run_id) if run_id is not None else _offered(opened, yes=yes)
        if chosen is None:
            return
        execute = partial(
            api.resume_async, chosen, target, store=opened, durability=durability, decide=decide or None,
            grace=grace, signals=True,
        )  # fmt: skip
        _execute(execute, opened, _kind(plain=plain, quiet=quiet), chosen, grace)


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
    execute: Callable[..., Awaitable[Run[Any, Any]]],
    store: EventStore,
    kind: str,
    run: str | None,
    grace: float,
) -> None:
    import anyio

    from kitchen.cli.tracking import Harmless

    with _display(kind, grace) as display, _told_here():
        observer = Harmless(display)
        with _advised(store, run):
            # The live display says itself that the run is to stop; a line would tear it.
            call = partial(execute, observers=[observer], quiet=kind == "live")
            ended = anyio.run(call)
    if kind == "quiet":
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


@contextmanager
def _advised(store: EventStore, run: str | None) -> Generator[None]:
    """An error with which a run ended says what to do about it here, at the command line."""
    from kitchen.cli.deciding import advice, after_failure
    from kitchen.cli.exits import is_undecided
    from kitchen.history.history import is_taken_back, undecided_of

    try:
        yield
    except (EffectUndecided, RunError) as error:
        ended = error.run if isinstance(error, RunError) else None
        name = ended.id if ended is not None else run
        waiting = undecided_of(store, name) if name is not None and is_undecided(error) else ()
        if name is not None and waiting:
            error.hint = advice(name, waiting)
        elif ended is not None:
            own = ended.failure.hint if ended.failure is not None else ""
            todo = after_failure(ended.id, over=is_taken_back(store, ended.id))
            error.hint = f"{own}\n  then: {todo}" if own else todo
        raise


@contextmanager
def _told_here() -> Generator[None]:
    """What the displays tell is not logged as well; what `--quiet` leaves out neither."""
    logger = logging.getLogger("kitchen.run")

    def wanted(record: logging.LogRecord) -> bool:
        return record.msg not in _TOLD

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _last_metrics(ended: Run[Any, Any]) -> Iterator[str]:
    from kitchen.cli import render

    for name, points in list(ended.metrics.items())[:8]:
        yield f"{name}={render.number(points[-1].value)}"


def _kind(*, plain: bool, quiet: bool) -> str:
    """How to show it: "quiet", "plain" or "live"."""
    if quiet:
        return "quiet"
    dumb = os.environ.get("TERM") in (None, "", "dumb")
    return "plain" if plain or dumb or not sys.stdout.isatty() else "live"


@contextmanager
def _display(kind: str, grace: float) -> Generator[RunObserver]:
    if kind == "quiet":
        from kitchen.cli.tracking import Silence

        yield Silence()
    elif kind == "plain":
        from kitchen.cli.plain import PlainLines

        yield PlainLines()
    else:
        from kitchen.cli.progress import LiveProgress

        with LiveProgress(grace=grace) as live:
            yield live

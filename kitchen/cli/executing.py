"""Executing a run in this process: the options for it, what is shown, and how it ends.

Rules:

1. What a resume will do is one line on stderr, before anything runs.
2. What is shown while it runs is an observer; nothing that goes wrong there reaches the run. What it
   shows is not logged as well.
3. A run's end is an exit code (see `kitchen.cli`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kitchen.errors import EffectUndecided, RunError

if TYPE_CHECKING:
    from kitchen.ended import Run
    from kitchen.ports.event_store import EventStore
    from kitchen.ports.observer import RunObserver
    from kitchen.runner.planning import ResumePlan

F = TypeVar("F", bound=Callable[..., Any])

# What the log of the runner says and the displays say too.
_TOLD = (
    "run %s: %s",
    "run %s: saved, as it was asked to",
    "run %s: %s could not be rolled back: %s",
)


def executed(command: F) -> F:
    """`--durability`, `--grace`, `--plain` and `--quiet`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--durability", type=click.Choice(["process", "power"]),
        help="What the log survives: kill -9, or the loss of power too (slower)"
        " [default: process; at a resume, as the run was started].",
    ),
    click.option(
        "--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
        help="How long what runs may take to end once the run is to stop.",
    ),
    click.option("--plain", is_flag=True, help="Print lines, also on a terminal."),
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors."),
)  # fmt: skip


def execute(
    call: Callable[..., Awaitable[Run[Any, Any]]],
    store: EventStore,
    run: str | None,
    grace: float,
    *,
    plain: bool,
    quiet: bool,
) -> None:
    """Execute a run, show how it goes, and tell how it ended. `call`: a verb of `kitchen`, which
    still lacks its observers.

    Raises what the verb raises, with a hint that says what to do about it here.
    """
    import anyio

    from kitchen.cli.tracking import Harmless

    kind = _kind(plain=plain, quiet=quiet)
    with _display(kind, grace) as display, _told_here():
        observer = Harmless(display)
        with _advised(store, run):
            # The live display says itself that the run is to stop; a line would tear it.
            ended = anyio.run(partial(call, observers=[observer], quiet=kind == "live"))
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


def tell(plan: ResumePlan) -> None:
    """What a resume does, in one line."""
    from kitchen.cli.inert import inert

    with suppress(OSError):  # a reader that is gone must not keep the run from going on
        click.echo(inert(str(plan)))


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

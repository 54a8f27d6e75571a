"""How a command ends: what is printed on stderr, and the exit code.

Rules:

1. The codes are those of the table in `kitchen.cli`. An error's class decides, and where the same
   class can mean both, when it was raised: a store that cannot be opened is `StoreRefused`.
2. An error of kitchen's is told without a traceback, and so is one of user code that got here
   (an `adapters=` provider, say). `--debug` shows the traceback as well. Secrets are not shown.
3. A reader that has gone away (`| head`) is no error: the command ends quietly.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress

import click

from kitchen.cli.inert import inert
from kitchen.errors import (
    ArgumentError,
    ConfigError,
    EffectUndecided,
    ForeignStore,
    HistoryError,
    KitchenError,
    RunCancelled,
    RunError,
    RunExists,
    RunInterrupted,
    RunMismatch,
    StateError,
    StoreError,
    UnknownKey,
    UnknownRun,
    WorkflowError,
)

COMPLETED, FAILED, USAGE, CANCELLED, UNDECIDED = 0, 1, 2, 3, 4
SIGNALS = {"SIGINT": 130, "SIGTERM": 143}
_OF_USAGE = (
    ArgumentError,
    ConfigError,
    ForeignStore,
    RunExists,
    RunMismatch,
    StateError,
    UnknownKey,
    UnknownRun,
    WorkflowError,
)
_COMMAND = re.compile(
    r"\bkitchen (?:(?:resume|fork|cancel|show|log|state|export)\b(?: (?!--)(?:'[^']*'|[^\s,;]+))?|verify\b)"
)


class Usage(KitchenError, ValueError):
    """What was asked for on the command line cannot be done as it was asked for."""


class StoreRefused(StoreError):
    """The store could not be opened."""


def code_of(error: BaseException) -> int:
    """The exit code that an error becomes."""
    if isinstance(error, RunInterrupted):
        return SIGNALS.get(error.signal, 130)
    if isinstance(error, KeyboardInterrupt):
        return SIGNALS["SIGINT"]
    if isinstance(error, RunCancelled):
        return CANCELLED
    if is_undecided(error):
        return UNDECIDED
    return USAGE if isinstance(error, (*_OF_USAGE, Usage, StoreRefused)) else FAILED


def is_undecided(error: BaseException) -> bool:
    """Whether a run waits for a decision: it was not taken up without one, or it ended for want of
    one."""
    failure = error.run.failure if isinstance(error, RunError) and error.run is not None else None
    ended = failure is not None and failure.type == EffectUndecided.__name__
    return ended or isinstance(error, EffectUndecided)


@contextmanager
def guarded(ctx: click.Context) -> Generator[None]:
    """Tell what is raised inside, and exit with its code."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except BrokenPipeError:
        mute_stdout()
        raise click.exceptions.Exit(COMPLETED) from None
    except KeyboardInterrupt as error:
        click.echo(err=True)
        raise click.exceptions.Exit(code_of(error)) from None
    except Exception as error:
        tell(ctx, error)
        raise click.exceptions.Exit(code_of(error)) from None


def tell(ctx: click.Context, error: Exception) -> None:
    """Print an error on stderr."""
    from kitchen.runner.secret import redacted

    with suppress(OSError):
        if wants_debug(ctx):
            click.echo(
                inert(redacted("".join(traceback.format_exception(error)))), err=True, nl=False
            )
        label = click.style(_label(error), fg="red", bold=True)
        click.echo(f"{label}: {inert(redacted(_message(error)))}", err=True)
        hint = _hint(ctx, error)
        if hint:
            click.echo(f"  {click.style('hint', bold=True)}: {inert(redacted(hint))}", err=True)


def wants_debug(ctx: click.Context) -> bool:
    """Whether `--debug` was given, on either side of the command."""
    return bool(ctx.meta.get("kitchen.debug"))


def mute_stdout() -> None:
    """Send what is still to be written to nowhere: its reader is gone."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _label(error: Exception) -> str:
    if isinstance(error, RunInterrupted):
        return "interrupted"
    if isinstance(error, RunCancelled):
        return "cancelled"
    return "undecided" if is_undecided(error) else "error"


def _message(error: Exception) -> str:
    return error.message if isinstance(error, KitchenError) else f"{type(error).__name__}: {error}"


def _hint(ctx: click.Context, error: Exception) -> str | None:
    if not isinstance(error, KitchenError):
        return "run it again with --debug for the traceback"
    hint = error.hint
    if hint is None and isinstance(error, HistoryError):
        hint = "kitchen verify tells what is wrong with the log"
    return in_this_store(ctx, hint) if hint else None


def in_this_store(ctx: click.Context, text: str) -> str:
    """The commands in a text, with the `--store` that this one was given."""
    where = ctx.meta.get("kitchen.store")
    return _COMMAND.sub(rf"\g<0> --store {where}", text) if where else text

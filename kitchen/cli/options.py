"""The options that commands share, and opening the store that they name.

Rules:

1. `--debug` stands before the command or after it.
2. A reading command opens the store read-only. Where there is none it says which path it looked
   at and how to name another; it makes no file.
3. Wherever a run's id is asked for, a unique prefix of it serves.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kitchen.cli.exits import StoreRefused, Usage

if TYPE_CHECKING:
    from kitchen.history.history import History
    from kitchen.ports.event_store import EventStore

F = TypeVar("F", bound=Callable[..., Any])


def _debug(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta["kitchen.debug"] = True


def _store(ctx: click.Context, _param: click.Parameter, path: str | None) -> str | None:
    if ctx.resilient_parsing:
        return path
    from kitchen.errors import StoreError

    try:
        # Before any code of the user's, which may stand beside a `store.py` of its own.
        import kitchen.adapters.event_store  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except StoreError as error:
        raise StoreRefused(error.message, hint=error.hint) from error
    if path is not None:
        ctx.meta["kitchen.store"] = shlex.quote(path)
    return path


def common(command: F) -> F:
    """`--store` and `--debug`."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks."
    )(command)
    return click.option(
        "--store", metavar="FILE", callback=_store,
        help="The store [default: $KITCHEN_STORE or kitchen.db].",
    )(command)  # fmt: skip


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def reading(path: str | None) -> Generator[EventStore]:
    """The store, for reading only."""
    with _opened(path, create=False, read_only=True) as store:
        yield store


@contextmanager
def writing(path: str | None, *, create: bool) -> Generator[EventStore]:
    """The store, for a run to write to."""
    with _opened(path, create=create) as store:
        yield store


@contextmanager
def one_run(path: str | None, given: str) -> Generator[History]:
    """The history of the run that an id, or a prefix of one, stands for."""
    from kitchen.cli.choosing import named
    from kitchen.history.history import History

    with reading(path) as store:
        yield History(store, named(store, given))


def check_seq(store: EventStore, run: str, seq: int | None) -> None:
    """Raises `Usage` where a run has no such event; None is any."""
    head = store.head(run)
    if seq is not None and not 0 < seq <= head:
        raise Usage(f"run {run!r} has the events 1 to {head}, not {seq}")


@contextmanager
def _opened(path: str | None, **options: Any) -> Generator[EventStore]:
    from kitchen.adapters.event_store import default_path, opened
    from kitchen.errors import CorruptStore, ForeignStore, StoreError

    where = path if path is not None else default_path()
    if not options["create"] and not os.path.lexists(where):
        raise StoreRefused(
            f"there is no store at {os.path.abspath(where)}",
            hint="name one with --store FILE, or in the variable KITCHEN_STORE",
        )
    opening = opened(where, **options)
    try:
        store = opening.__enter__()
    except (CorruptStore, ForeignStore):
        raise
    except StoreError as error:
        raise StoreRefused(error.message, hint=error.hint) from error
    try:
        yield store
    finally:
        opening.__exit__(None, None, None)

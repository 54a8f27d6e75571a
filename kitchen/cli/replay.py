"""`kitchen replay`: a run gone through again, and compared with what was recorded.

Rules:

1. Without `--execute` no code of the user's is imported. With it, adapters may be replaced: by a name
   in the workflow's module, or `module:name`; a mapping, or a function as for `adapters=`.
2. The first difference is told whole, of the others only where they are: they often come of it.
3. Nothing is appended, so Ctrl-C ends it at any time.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.history.replay import Replay
    from kitchen.workflow.definition import Workflow

_SHOWN = 20  # of the further places that differ
_SOURCES = (
    "randomness without a seed: take ctx.rng",
    "a global, or a file, that an earlier stage changed",
    "the time, the environment, a service",
    "a body that was changed since",
    "a resource without state_dict, or one whose state_dict forgets a field",
)


@click.command(short_help="Go through a run again, and compare with what was recorded.")
@click.argument("run")
@click.option("--execute", is_flag=True, help="Execute its stages again, in a sandbox.")
@click.option("--until", type=int, metavar="SEQ", help="No event behind this one.")
@click.option("--only", metavar="PATH", help="Compare only this node and those inside it.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, metavar="X",
              help="How far numbers may differ, absolutely and relatively.")  # fmt: skip
@click.option("--adapters", "fakes", metavar="NAME",
              help="Instead of the workflow's own: a name in its module, or module:name.")  # fmt: skip
@click.option("--workflow", "target", metavar="MODULE:NAME",
              help="Its code, where the log alone does not lead to it.")  # fmt: skip
@options.as_json
@options.common
@click.pass_context
def replay(
    ctx: click.Context,
    run: str,
    execute: bool,
    until: int | None,
    only: str | None,
    tolerance: float,
    fakes: str | None,
    target: str | None,
    as_json: bool,
    store: str | None,
) -> None:
    """Go through a run again, and compare with what was recorded.

    Its log is checked and folded. With --execute, each committed visit of a stage is executed again
    from its recorded inputs, in a sandbox; stages with effect="once" are not. The exit code is 1 if
    anything differs.

    \b
    Example:
      kitchen replay first --execute --adapters fakes
    """
    from kitchen.api import reading, running
    from kitchen.cli import render
    from kitchen.cli.choosing import named
    from kitchen.cli.inert import inert
    from kitchen.runner.secret import redacted

    _check(execute, {"--only": only, "--tolerance": tolerance, "--adapters": fakes,
                     "--workflow": target})  # fmt: skip
    with options.reading(store) as opened:
        chosen = named(opened, run)
        options.check_seq(opened, chosen, until)
        if execute:
            code: Workflow[Any, Any] | None = running.code_of(target, opened, chosen, needed=True)
            assert code is not None
            code = code if fakes is None else _with(code, fakes)
            with _progress() as progress:
                found = reading.replay(
                    chosen, code, store=opened, execute=True, until=until, only=only,
                    tolerance=tolerance, progress=progress,
                )  # fmt: skip
        else:
            found = reading.replay(chosen, store=opened, until=until)
        told = _described(found)
        text = (
            render.jsoned(told)
            if as_json
            else inert("\n".join(_lines(found, executed=execute, loops=_loops(opened, chosen))))
        )
    click.echo(redacted(text))
    ctx.exit(0 if found.ok else 1)


def _check(execute: bool, given: Mapping[str, Any]) -> None:
    from kitchen.cli.exits import Usage

    for option, value in given.items():
        if value and not execute:
            raise Usage(f"{option} is for --execute: without it no stage is executed")


# --- adapters -------------------------------------------------------------------------------------


def _with(code: Workflow[Any, Any], name: str) -> Workflow[Any, Any]:
    """The workflow with other adapters.

    Raises `Usage` where the name leads to none.
    """
    import dataclasses

    from kitchen.cli.exits import Usage
    from kitchen.runner.config import suggest

    module, _, attribute = name.rpartition(":")
    module = module or code.locator.module
    there = vars(_module(module))
    if attribute not in there:
        near = suggest(attribute, [name for name in there if not name.startswith("__")])
        raise Usage(f"{module} has no {attribute!r} for --adapters", hint=near)
    found: Any = there[attribute]
    if isinstance(found, Mapping):
        made = cast("Mapping[str, Any]", found)
        return dataclasses.replace(code, adapters=lambda: made)
    if not callable(found):
        raise Usage(
            f"{module}:{attribute} is a {type(found).__name__}",
            hint="--adapters names a mapping of adapters, or a function that returns one",
        )
    return dataclasses.replace(code, adapters=found)


def _module(name: str) -> ModuleType:
    from importlib import import_module

    from kitchen.cli.exits import Usage

    if name in sys.modules:
        return sys.modules[name]
    try:
        return import_module(name)
    except ImportError as error:
        raise Usage(f"--adapters: importing {name} failed: {error}") from error


# --- told -----------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Generator[Callable[[int, int], None] | None]:
    """A line on a terminal that is gone when it is over; nothing elsewhere."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        yield None
        return

    def told(seq: int, last: int) -> None:
        click.echo(f"\rreplaying: event {seq} of {last}\x1b[K", nl=False, err=True)

    try:
        yield told
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


def _loops(store: Any, run: str) -> dict[str, tuple[str, ...]]:
    """The loops around each node, for spelling places; none where the log does not read."""
    from kitchen.errors import KitchenError
    from kitchen.history.history import History

    try:
        return History(store, run).loops
    except KitchenError:
        return {}


def _described(found: Replay) -> dict[str, Any]:
    return {
        **found._asdict(),
        "ok": found.ok,
        "divergences": [one._asdict() for one in found.divergences],
    }


def _lines(found: Replay, *, executed: bool, loops: dict[str, tuple[str, ...]]) -> Iterator[str]:
    from kitchen.cli import render

    did = "executed" if executed else "folded"
    yield f"{did} {found.run} up to event {found.until}, in {render.took(found.seconds)}"
    rows = [("events", str(found.events)), ("stage visits", str(found.visits))]
    if executed:
        rows.append(("bodies called", str(found.executed)))
    rows += [("not executed", f"{count}  ({why})") for why, count in found.skipped.items()]
    yield from (f"  {line}" for line in render.table(rows))
    first = found.first
    if first is None:
        yield "no divergence"
        return
    yield f"the first divergence: {first.message}"
    at = render.place(first.path, first.visit, loops)
    rows = [
        ("path", at or "the run"),
        ("visit", ", ".join(map(str, first.visit)) or "-"),
        ("seq", str(first.seq)),
        ("key", first.key),
        ("recorded", first.recorded),
        ("found", first.found),
    ]
    yield from (f"  {line}" for line in render.table(rows))
    yield from _others(found)
    if first.key != "event":
        yield "what it can come from:"
        yield from (f"  - {source}" for source in _SOURCES)


def _others(found: Replay) -> Iterator[str]:
    from kitchen.cli import render

    counts = Counter((one.path or "the run", one.key) for one in found.divergences[1:])
    if not counts:
        return
    yield f"and {counts.total()} more:"
    rows = [(path, key, str(count)) for (path, key), count in counts.items()]
    yield from (f"  {line}" for line in render.table(rows[:_SHOWN]))
    if len(rows) > _SHOWN:
        yield f"  and {len(rows) - _SHOWN} other places: --json lists all"

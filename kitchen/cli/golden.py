"""`kitchen golden`: a recorded run as a test, with its trace.

Rules: what there is already is found before anything is written, and left as it is. Both files are
written beside their place, and renamed once they are whole.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.api.golden import GoldenTest


@click.command(short_help="Make a test of a run, with its golden trace.")
@click.argument("run")
@click.option("-o", "--output", metavar="PATH", required=True,
              help="The test module, a .py file, or the folder for it.")  # fmt: skip
@click.option("--level", type=click.Choice(["stages", "events", "state"]), default="events",
              show_default=True, help="Committed stages, all events, or stages with what they changed.")  # fmt: skip
@click.option("--round", "digits", type=click.IntRange(1, 17), metavar="N", default=6,
              show_default=True, help="Round floats to N significant digits.")  # fmt: skip
@click.option("--include", multiple=True, metavar="PATTERN",
              help="Tell only this of its kind: a path, state.KEY, metric.NAME, config.KEY; may be repeated.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="PATTERN",
              help="Do not tell this; may be repeated.")  # fmt: skip
@click.option("--life", is_flag=True, help="Tell of rewinds and failed attempts too.")
@click.option("--name", metavar="NAME", help="The test's name [default: made of the run's id].")
@click.option("--workflow", metavar="MODULE:NAME",
              help="What the test imports, where the log does not tell.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that are there.")
@options.common
def golden(
    run: str,
    output: str,
    level: str,
    digits: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    life: bool,
    name: str | None,
    workflow: str | None,
    force: bool,
    store: str | None,
) -> None:
    """Make a test of a run: it does the run again, and compares what it did with its trace.

    \b
    Example:
      kitchen golden first --store runs.db -o tests/test_training.py
    """
    from kitchen.api.golden import golden_test
    from kitchen.cli.choosing import named
    from kitchen.cli.inert import inert
    from kitchen.history.golden import Telling
    from kitchen.history.patterns import patterns

    telling = Telling(level, patterns(include, exclude), digits, life)
    with options.reading(store) as opened:
        made = golden_test(
            named(opened, run), output, telling=telling, workflow=workflow, name=name, store=opened
        )
    _write(made, force=force)
    lines = [f"wrote {made.module}", f"wrote {made.golden}", *(f"note: {n}" for n in made.notes)]
    lines.append(f"to run it: python -m pytest {shlex.quote(str(made.module))}")
    click.echo(inert("\n".join(lines)))


def _write(made: GoldenTest, *, force: bool) -> None:
    """Write both files, or none."""
    from kitchen.cli.exits import Usage

    texts = {made.golden: made.trace, made.module: made.source}
    there = [path for path in texts if os.path.lexists(path)]
    if there and not force:
        raise Usage(
            f"{' and '.join(map(str, there))} exists already, and was left as it is",
            hint="name another file with -o or another test with --name, or have it replaced: --force",
        )
    beside = {path: path.with_name(f".{os.getpid()}.{path.name[-80:]}") for path in texts}
    try:
        _check(texts)
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside[path].write_bytes(text.encode("utf-8", "backslashreplace"))
        for path, temporary in beside.items():
            temporary.replace(path)
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename}"
        raise Usage(f"the test cannot be written: {what}") from None
    finally:
        for temporary in beside.values():
            with suppress(OSError):
                temporary.unlink()


def _check(paths: dict[Path, str]) -> None:
    """Raises `IsADirectoryError` for what no file can replace."""
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder", str(path))

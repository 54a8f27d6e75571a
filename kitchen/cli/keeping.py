"""`kitchen gc`, `export` and `import`: what is kept, and taking runs from store to store.

Rules: what goes, or would go, is told run by run, and so is what stays and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitchen.cli import options
from kitchen.cli.runs import STATUSES

if TYPE_CHECKING:
    from kitchen.log.retention import Collected

_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@click.command(short_help="Remove runs that are over, and blobs that no run names.")
@click.option("--keep-last", type=click.IntRange(0), metavar="N",
              help="Keep the newest N runs of each workflow.")  # fmt: skip
@click.option("--older-than", metavar="AGE", help="Only runs whose last event is so old: 12h, 30d.")
@click.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES),
              help="Only runs that stand so; may be repeated [default: completed, cancelled].")  # fmt: skip
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--compact", is_flag=True, help="Give the room back to the file system.")
@options.as_json
@options.common
def gc(
    keep_last: int | None,
    older_than: str | None,
    statuses: tuple[str, ...],
    workflow: str | None,
    dry_run: bool,
    compact: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """Remove runs that are over, and blobs that no run names.

    A run that a process holds stays, and so does one with a fork that stays.

    \b
    Example:
      kitchen gc --keep-last 10 --older-than 30d --dry-run
    """
    from kitchen.api.keeping import collect_runs
    from kitchen.cli import render
    from kitchen.cli.inert import inert
    from kitchen.log.retention import FINISHED

    opening = options.reading(store) if dry_run else options.writing(store, create=False)
    with opening as opened:
        found = collect_runs(
            keep_last=keep_last, older_than=older_than, statuses=statuses or FINISHED,
            workflow=workflow, dry_run=dry_run, compact=compact, store=opened,
        )  # fmt: skip
    if as_json:
        told = {
            **found._asdict(),
            "removed": [{**o._asdict(), "last": render.iso(o.last)} for o in found.removed],
            "kept": [one._asdict() for one in found.kept],
        }
        click.echo(render.jsoned(told))
    else:
        click.echo(inert("\n".join(_lines(found))))


def _lines(found: Collected) -> Iterator[str]:
    from kitchen.cli import render

    if found.removed:
        yield "would go" if found.dry_run else "removed"
        rows = [
            (
                one.run,
                one.workflow,
                one.status,
                f"{one.events} events",
                f"{render.age(one.last)} ago",
            )
            for one in found.removed
        ]
        yield from (f"  {line}" for line in render.table(rows))
    if found.kept:
        yield "kept"
        yield from (f"  {line}" for line in render.table([(k.run, k.why) for k in found.kept]))
    verb = "would free" if found.dry_run else "freed"
    yield (
        f"{verb}: {len(found.removed)} run(s), {found.events} events, "
        f"{found.blobs} blob(s) of {size(found.blob_bytes)}"
    )


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, each in _SIZES:
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count} bytes"


@click.command("export", short_help="Write a run with its blobs to one file.")
@click.argument("run")
@click.option("-o", "--output", metavar="FILE", help="The file [default: RUN.kitchen].")
@click.option("--replace", is_flag=True, help="Replace the file if it is there.")
@options.common
def export(run: str, output: str | None, replace: bool, store: str | None) -> None:
    """Write a run with its blobs to one file, complete or not at all.

    \b
    Example:
      kitchen export first -o first.kitchen
    """
    from kitchen.api.keeping import export_run
    from kitchen.cli.choosing import named
    from kitchen.cli.inert import inert

    with options.reading(store) as opened:
        made = export_run(named(opened, run), output, replace=replace, store=opened)
    told = f"{made.events} events, {made.blobs} blob(s), {size(made.size)}"
    click.echo(inert(f"exported {made.run} to {made.path}: {told}"))


@click.command("import", short_help="Read an exported run into a store.")
@click.argument("file")
@click.option("--id", "new", metavar="NEW", help="Another name for it than it had.")
@options.common
def import_(file: str, new: str | None, store: str | None) -> None:
    """Read an exported run into a store, which is made if it is not there.

    \b
    Example:
      kitchen import first.kitchen --store other.db
    """
    from kitchen.api.keeping import import_run
    from kitchen.cli.exits import Usage
    from kitchen.cli.inert import inert

    if new is not None and not new.strip():
        raise Usage("--id needs a name that is not empty")
    if not Path(file).is_file():  # before a store is made
        raise Usage(f"there is no file {file}", hint=f"looked in {Path.cwd()}")
    with options.writing(store, create=True) as opened:
        run = import_run(file, run_id=new, store=opened)
        told = f"imported {run}: {opened.head(run)} events"
    click.echo(inert(told))

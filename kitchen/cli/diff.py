"""`kitchen diff`: how two runs differ, aligned by path and visit.

Rules: the first difference stands first; then what the runs were given, what differs by node, and how
they ended. Times are told last, and are no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.history.diff import Diff, Difference


@click.command(short_help="Tell how two runs differ.")
@click.argument("a")
@click.argument("b")
@click.option("--other", metavar="FILE", help="The store of B, where it is another.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, metavar="X",
              help="How far numbers may differ, absolutely and relatively.")  # fmt: skip
@options.as_json
@options.common
@click.pass_context
def diff(
    ctx: click.Context,
    a: str,
    b: str,
    other: str | None,
    tolerance: float,
    as_json: bool,
    store: str | None,
) -> None:
    """Tell how the runs A and B differ, aligned by path and visit.

    The exit code is 0 if they are the same, and 1 if they differ. Times, and how often a run was
    taken up, are no difference.

    \b
    Example:
      kitchen diff first second --tolerance 1e-6
    """
    from kitchen.api import reading
    from kitchen.cli import render
    from kitchen.cli.choosing import named
    from kitchen.cli.inert import inert

    with ExitStack() as stack:
        one = stack.enter_context(options.reading(store))
        two = one if other is None else stack.enter_context(options.reading(other))
        found = reading.diff(
            named(one, a), named(two, b), store=one, other=two, tolerance=tolerance
        )
    click.echo(render.jsoned(_told(found)) if as_json else inert("\n".join(_lines(found))))
    ctx.exit(0 if found.same else 1)


def _told(found: Diff) -> dict[str, Any]:
    told = {name: getattr(found, name) for name in found.__dataclass_fields__}
    told["first"] = found.first._asdict() if found.first is not None else None
    told["paths"] = {path: [one._asdict() for one in all_] for path, all_ in found.paths.items()}
    told["durations"] = {path: one._asdict() for path, one in found.durations.items()}
    return {**told, "same": found.same}


def _lines(found: Diff) -> Iterator[str]:
    from kitchen.cli.planned import section, signed

    if found.same:
        yield f"{found.a} and {found.b} are the same"
    if found.a == found.b:  # in two stores
        found = replace(found, b=f"{found.b} (other)")
    if found.first is not None:
        yield f"the first difference: {found.first.message}"
        yield from section("", list(_first(found)))
    facts: list[tuple[str, str, str]] = []
    facts += (
        [("seed", str(found.seed[0]), str(found.seed[1]))] if found.seed[0] != found.seed[1] else []
    )
    facts += [("status", *found.status)] if found.status[0] != found.status[1] else []
    facts += [("failure", *found.failure)] if found.failure is not None else []
    yield from section("", _headed(found, facts))
    yield from section("config", _headed(found, found.config))
    yield from section("workflow", [(signed(one),) for one in found.workflow])
    for path, all_ in found.paths.items():
        rows = [_difference(one) for one in all_]
        yield from section(path or "the run", [("", "", found.a, found.b, ""), *rows])
    yield from section("state at the end", _headed(found, found.state))
    yield from section("times", list(_times(found)))


def _headed(found: Diff, rows: list[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    return [("", found.a, found.b), *rows] if rows else []


def _first(found: Diff) -> Iterator[tuple[str, ...]]:
    first = found.first
    assert first is not None
    yield "path", first.path or "the run"
    yield "visit", ", ".join(map(str, first.visit)) or "-"
    yield "what", f"{first.kind} {first.key}".rstrip()
    for run, value, seq in ((found.a, first.a, first.seq_a), (found.b, first.b, first.seq_b)):
        yield run, value + (f"  (seq {seq})" if seq is not None else "")


def _difference(one: Difference) -> tuple[str, ...]:
    where = f" (first at {', '.join(map(str, one.visit))})" if one.visit else ""
    times = f"{one.visits} visit{'' if one.visits == 1 else 's'}{where}"
    apart = f"at most {one.largest:.3g} apart" if one.largest is not None else ""
    return f"{one.kind} {one.key}".rstrip(), times, one.a, one.b, apart


def _times(found: Diff) -> Iterator[tuple[str, ...]]:
    from kitchen.cli import render

    if found.durations:
        yield "", found.a, found.b
    for path, one in found.durations.items():
        yield (
            path,
            f"{render.took(one.seconds_a)} in {one.visits_a}",
            f"{render.took(one.seconds_b)} in {one.visits_b}",
        )
    if any(found.interruptions):
        yield "times taken up", *map(str, found.interruptions)

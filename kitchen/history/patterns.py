"""What of a run is told: patterns of paths, of state keys, metrics and config fields.

Rules:

1. `epochs/train` is that node and all below it; `epochs/*/loss` has a `*` for one segment, as file
   names do. `state.KEY`, `metric.NAME`, `config.KEY` and `resource.NAME` are what they say, and may
   have a `*` too.
2. What is excluded is not told, whatever is included. Where a kind has a pattern among those that
   are included, only what fits one of it is told of that kind; other kinds are not touched by it.
3. A path that fits no node of the workflow is a mistake, and told as one. So is a name that fits
   nothing, where it would be told or where there is one much like it; another may only have no part
   in this run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from kitchen.errors import ArgumentError
from kitchen.workflow.ir import WorkflowIR, walk

KINDS = ("state", "metric", "config", "resource")


class Patterns(NamedTuple):
    """What is told, as patterns."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def shows(self, path: str) -> bool:
        """Whether a node is told."""
        if any(_is_path(one) and _around(one, path) for one in self.exclude):
            return False
        wanted = [one for one in self.include if _is_path(one)]
        return not wanted or any(_around(one, path) for one in wanted)

    def tells(self, kind: str, key: str) -> bool:
        """Whether something of a kind in `KINDS` is told."""
        name = f"{kind}.{key}"
        if any(fnmatchcase(name, one) for one in self.exclude):
            return False
        wanted = [one for one in self.include if one.startswith(f"{kind}.")]
        return not wanted or any(fnmatchcase(name, one) for one in wanted)

    def check(self, ir: WorkflowIR) -> None:
        """Raises `ArgumentError` for a path that fits no node."""
        paths = [path for path, _ in walk(ir)]
        for one in (*self.include, *self.exclude):
            if _is_path(one) and not any(_around(one, path) for path in paths):
                near = get_close_matches(one, paths, n=1)
                raise ArgumentError(
                    f"the pattern {one!r} fits no node of the workflow {ir.name!r}",
                    hint=f"did you mean {near[0]!r}?"
                    if near
                    else f"a path such as {paths[0]!r}, or one of: "
                    + ", ".join(f"{kind}.NAME" for kind in KINDS),
                )

    def kinds(self) -> set[str]:
        """The kinds of things that any pattern speaks of."""
        return {one.partition(".")[0] for one in (*self.include, *self.exclude)} & set(KINDS)

    def check_names(self, kind: str, names: Collection[str]) -> None:
        """Raises `ArgumentError` for a pattern of this kind that fits none of the names, and is a
        mistake."""
        known = sorted(f"{kind}.{name}" for name in names)
        for one in (*self.include, *self.exclude):
            if not one.startswith(f"{kind}.") or any(fnmatchcase(name, one) for name in known):
                continue
            near = get_close_matches(one, known, n=1, cutoff=0.75)
            if near or one in self.include:
                raise ArgumentError(
                    f"the pattern {one!r} fits nothing in this run",
                    hint=f"did you mean {near[0]!r}?"
                    if near
                    else f"there is {', '.join(known[:10]) or f'no {kind} at all'}",
                )


EVERYTHING = Patterns()


def patterns(include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()) -> Patterns:
    """Patterns, of one text or several. Raises `ArgumentError` for what is no text."""
    made = Patterns(_texts("include", include), _texts("exclude", exclude))
    return EVERYTHING if made == EVERYTHING else made


def _texts(what: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        given = (given,)
    if isinstance(given, Iterable):
        texts: list[object] = list(given)  # pyright: ignore[reportUnknownArgumentType]
        if all(isinstance(one, str) and one for one in texts):
            return tuple(str(one) for one in texts)
    raise ArgumentError(f"{what}= is a pattern or several, not {given!r}")


def _is_path(pattern: str) -> bool:
    return pattern.partition(".")[0] not in KINDS


def _around(pattern: str, path: str) -> bool:
    """Whether a path is at or below what a pattern of paths fits."""
    wanted, segments = pattern.strip("/").split("/"), path.split("/")
    pairs = zip(segments, wanted, strict=False)
    return len(wanted) <= len(segments) and all(fnmatchcase(one, other) for one, other in pairs)

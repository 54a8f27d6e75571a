"""What to do about a run that has stopped: the commands, and `--decide` and `--set`, which say what
became of effects that must not happen twice.

Rules:

1. A decision is for one place, and each place is decided once.
2. `--set` says what a skipped stage would have put into the state: of the one that is skipped, or,
   where several are, of the one whose place stands before it: `--set PATH:KEY=VALUE`.
3. A value is read as a config's without a type: JSON, then TOML, else a text.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from kitchen.cli.arguments import parse
from kitchen.cli.exits import Usage

CHOICES = ("retry", "skip")


def decisions(decided: Sequence[str], changes: Sequence[str]) -> dict[str, Any]:
    """The `decide=` of `kitchen.resume` that these words make. Raises `Usage`."""
    made: dict[str, Any] = {}
    for word in decided:
        path, _, choice = word.rpartition("=")
        if not path or choice not in CHOICES:
            raise Usage(
                f"--decide {word!r} is neither PATH=retry nor PATH=skip",
                hint="retry: run it again; skip: it has happened, or is not to",
            )
        if path in made:
            raise Usage(f"{path!r} is decided twice")
        made[path] = {} if choice == "skip" else choice
    skipped = [path for path, choice in made.items() if choice != "retry"]
    for word in changes:
        path, key, value = _change(word, skipped)
        made[path][key] = value
    return made


def _change(word: str, skipped: list[str]) -> tuple[str, str, Any]:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise Usage(f"--set {name!r} is not KEY=VALUE")
    for path in skipped:
        if name.startswith(f"{path}:"):
            return path, name.removeprefix(f"{path}:"), parse(text)
    if ":" in name:
        raise Usage(
            f"--set {name!r}: {name.partition(':')[0]!r} is no place that is skipped",
            hint=f"these are: {', '.join(skipped) or 'none'}",
        )
    if len(skipped) == 1:
        return skipped[0], name, parse(text)
    if not skipped:
        raise Usage(
            f"--set {name!r} belongs to a stage that is skipped, and none is",
            hint="--decide PATH=skip --set KEY=VALUE",
        )
    raise Usage(
        f"--set {name!r} may belong to {' or '.join(skipped)}",
        hint=f"--set {shlex.quote(f'{skipped[0]}:{name}=VALUE')}",
    )


def resume_command(
    run: str, waiting: Sequence[str] = (), choice: str = "retry", more: Sequence[str] = ()
) -> str:
    """The command that takes a run up, as it is typed; `more`: further words of it."""
    words = ["kitchen", "resume", shlex.quote(run), *more]
    for place in waiting:
        words += ["--decide", shlex.quote(f"{place}={choice}")]
    return " ".join(words)


def advice(run: str, waiting: Sequence[str]) -> str:
    """What to do about a run that waits for a decision."""
    it = "they have" if len(waiting) > 1 else "it has"
    return (
        f"find out whether {it} happened, then\n"
        f"    if not, to run again:    {resume_command(run, waiting)}\n"
        f"    if so, to go on behind:  {resume_command(run, waiting, 'skip')}\n"
        "  and --set KEY=VALUE for what a skipped stage would have put into the state"
    )


def after_failure(run: str, *, over: bool) -> str:
    """What to do about a run that failed; `over`: what it had done was taken back."""
    shown = f"kitchen show {shlex.quote(run)}"
    if over:
        return f"{shown}; its completed stages were rolled back, so start another run"
    return f"{shown}, then {resume_command(run)}"

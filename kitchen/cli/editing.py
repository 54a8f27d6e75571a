"""What a person changes in a run that goes another way: `name=value`, `--state` and `--seed`.

Rules:

1. `name=value` is read as at `kitchen run`: where the workflow declares a config type, texts are
   converted to the types of its fields. A whole TOML file is no edit.
2. A value of `--state` is read as a config's without a type: JSON, then TOML, else a text. What the
   workflow declares of its state holds. Of two values for one key, the later counts.
3. The code is looked for only where a type of it is needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from kitchen.ports.event_store import EventStore
    from kitchen.runner.edits import Edits

F = TypeVar("F", bound=Callable[..., Any])


class Wish(NamedTuple):
    """Where a run is to go on from and what is edited there, as it was typed."""

    words: tuple[str, ...] = ()
    at: int | None = None
    changes: tuple[str, ...] = ()
    seed: int | None = None
    target: str | None = None

    def edits(self, store: EventStore, run: str) -> Edits:
        """The edits. Raises `Usage`, `ConfigError`, and `NotResumable` where code is missing."""
        from kitchen.runner.edits import Edits

        config = self._config(store, run) if self.words else None
        return Edits(config, pairs(self.changes, "--state", _value) or None, self.seed, False)

    def _config(self, store: EventStore, run: str) -> dict[str, Any]:
        from kitchen.api.running import code_of
        from kitchen.cli.arguments import edits_from
        from kitchen.log.reader import recorded_ir

        declared = None
        if self.target is not None or recorded_ir(store, run).config is not None:
            code = code_of(self.target, store, run, needed=True)
            declared = code.config_type if code is not None else None
        return edits_from(self.words, declared)

    @property
    def typed(self) -> list[str]:
        """The words of the command line that say this, behind the run's id."""
        said = [shlex.quote(word) for word in self.words]
        for option, value in (("--at", self.at), ("--seed", self.seed)):
            said += [option, str(value)] if value is not None else []
        for change in self.changes:
            said += ["--state", shlex.quote(change)]
        return said + (["--workflow", shlex.quote(self.target)] if self.target is not None else [])


def options(command: F) -> F:
    """`--at`, `--state` and `--seed`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--at", type=int, metavar="SEQ",
        help="Go another way, from the latest consistent cut at or before this event.",
    ),
    click.option(
        "--state", "changes", multiple=True, metavar="KEY=VALUE",
        help="Edit a key of the state there; may be repeated.",
    ),
    click.option("--seed", type=int, metavar="N", help="Another seed from there on."),
)  # fmt: skip


def pairs(words: Sequence[str], option: str, value: Callable[[str], Any] = str) -> dict[str, Any]:
    """What an option says that is given as KEY=VALUE. Raises `Usage`; the value is not shown."""
    from kitchen.cli.exits import Usage

    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise Usage(f"{option} {key!r} is not {'OLD=NEW' if value is str else 'KEY=VALUE'}")
        found[key] = value(text)
    return found


def _value(text: str) -> Any:
    from kitchen.cli.arguments import parse

    return parse(text)

"""What a run is given that is in no log: its adapters, by name.

Rules: they are those that `adapters=` gave, all of them, or those that the workflow's provider makes;
every process that executes the run needs them anew. A name that is not there is told with where it
could have come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from kitchen.errors import ArgumentError, UnknownAdapter
from kitchen.runner.declared import suggest
from kitchen.workflow.definition import Workflow

_GIVE = "adapters={…} where it is run or resumed, or a provider: @kitchen.workflow(adapters=…)"


class Adapters(Mapping[str, Any]):
    """The adapters of one run, to be read. `nobody` says of them why one may not be there."""

    __slots__ = ("_given", "_nobody")

    def __init__(self, given: Mapping[str, Any], nobody: str) -> None:
        self._given = given
        self._nobody = nobody

    def __getitem__(self, name: str) -> Any:
        """Raises `UnknownAdapter`, and what a mapping of the user's raises."""
        try:
            return self._given[name]
        except KeyError:
            if name in self._given:
                raise
        hint = suggest(name, self._given) if self._given else _GIVE
        raise UnknownAdapter(f"there is no adapter {name!r}: {self._nobody}", hint=hint)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __repr__(self) -> str:
        return f"Adapters({', '.join(map(repr, self._given))})"


def adapters_of(workflow: Workflow[Any, Any], config: Any, given: object) -> Adapters:
    """Those that were given, or else (None) those that the workflow's provider makes.

    Raises `ArgumentError` for what is no mapping, and what the provider raises.
    """
    if given is not None:
        made, source = given, "adapters="
        nobody = "adapters= does not have it, and takes the place of the workflow's own"
    elif workflow.adapters is not None:
        made, source = workflow.adapters_for(config), f"the provider of {workflow.name!r}"
        nobody = f"{source} does not make it"
    else:
        return Adapters({}, "none were given, and the workflow makes none")
    if not isinstance(made, Mapping):
        raise ArgumentError(
            f"{source} is to give a mapping of names to adapters, not a {type(made).__qualname__}",
            hint='{"registry": Registry()}, for instance',
        )
    return Adapters(cast("Mapping[str, Any]", made), nobody)

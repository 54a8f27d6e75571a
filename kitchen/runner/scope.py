"""The scope of an execution: what all contexts of one process's run share.

Rules: everything here is fixed when the execution begins, but for `live` (the open resources)
and what the journal's state says. A scope belongs to one process and one run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kitchen.log.journal import Journal
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address
from kitchen.runner.config import same
from kitchen.workflow.definition import Binding, Workflow

if TYPE_CHECKING:
    from kitchen.runner.resources import LiveResources


@dataclass(slots=True)
class Scope:
    """One run, as this process executes it."""

    workflow: Workflow[Any, Any]
    journal: Journal
    config: Any
    pristine: Any
    codec: Codec
    seed: int
    adapters: Mapping[str, Any]
    live: LiveResources
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reserved: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    on_progress: Callable[[Address, float, float | None], None] | None = None
    items: dict[Address, Any] = field(default_factory=dict[Address, Any])

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.journal.run

    def binding(self, path: str) -> Binding:
        """The user's callable at a path."""
        return self.workflow.bindings[path]

    def origin(self, path: str) -> str:
        """The path that a node had at first, by which its random numbers and its key go."""
        return self.journal.renaming.origin(path)

    def logger(self, path: str) -> logging.Logger:
        """The standard logger of a node."""
        return logging.getLogger(f"kitchen.run.{path.replace('/', '.')}")


def loop_variables(loops: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, str]]:
    """The names by which state reads loop variables: name -> (loop's name, "item" or "index")."""
    names: dict[str, tuple[str, str]] = {}
    for enclosing in loops.values():
        for path in enclosing:
            loop = path.rpartition("/")[2]
            names[f"{loop}_current"] = (loop, "item")
            names[f"{loop}_index"] = (loop, "index")
    return names


def config_untouched(scope: Scope) -> bool:
    """Whether user code left the config as it was."""
    return scope.config == scope.pristine or same(scope.config, scope.pristine)

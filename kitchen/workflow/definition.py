"""A workflow as it is once it is built: frozen data, and the callables that it names.

Rules:

1. `Workflow.ir` is data. What can be called stands beside it, in `bindings`, by node path. What
   an async_loop asks has paths of its own below it (`ir.PRODUCER`, `ir.STOP_WHEN`); what a
   parallel asks beside its `over` stands under `limit_key` and `reducer_key`, and what a stage with
   retries asks, of the exception, under `retry_key`.
2. A workflow is run, never called.
3. The `locator` is what a later process needs to find the same workflow by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

import msgspec

from kitchen.workflow import check, diagram
from kitchen.workflow.ir import WorkflowIR, walk
from kitchen.workflow.stage import Stage
from kitchen.workflow.where import Site, fault, here

ConfigT = TypeVar("ConfigT")
StateT = TypeVar("StateT")

Binding: TypeAlias = Callable[..., Any] | Stage
"""What a node runs: a stage's body, a loop's `over`, a predicate, a resource's factory. All are
functions of ctx, but a reducer, which is one of the value before and the branches' values, and what
is asked whether to try again, which is one of the exception."""

AdapterProvider: TypeAlias = Callable[..., Mapping[str, Any]]
"""A function of nothing, or of the config."""


def limit_key(path: str) -> str:
    """The key in `bindings` of the function that is max_concurrency= of a parallel."""
    return f"{path}?max_concurrency"


def reducer_key(path: str, key: str) -> str:
    """The key in `bindings` of the function that merges a state key at a parallel's join."""
    return f"{path}?merge:{key}"


def retry_key(path: str) -> str:
    """The key in `bindings` of what says whether an exception of a stage is tried again."""
    return f"{path}?retry"


class Locator(msgspec.Struct, frozen=True):
    """Where a workflow can be imported from again."""

    module: str
    qualname: str
    file: str

    def __str__(self) -> str:
        return f"{self.module}:{self.qualname}"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Workflow(Generic[ConfigT, StateT]):
    """What `@kitchen.workflow` makes of a function. `kitchen.run` runs it.

    `config_type` and `state_type` are the declared types; None stands for a mapping. `sites` has
    the line at which each node was said, by path, and that of the workflow itself under "".
    """

    ir: WorkflowIR
    fingerprint: str
    bindings: Mapping[str, Binding]
    locator: Locator
    config_type: type[ConfigT] | None = None
    state_type: type[StateT] | None = None
    adapters: AdapterProvider | None = None
    sites: Mapping[str, Site] = field(default_factory=lambda: MappingProxyType[str, Site]({}))

    @property
    def name(self) -> str:
        """The function's name, or what `name=` said."""
        return self.ir.name

    def adapters_for(self, config: Any) -> Mapping[str, Any]:
        """What the `adapters=` provider makes; nothing where there is none.

        The provider is given the config if its first parameter is required or is called
        `config`. Raises what the provider raises.
        """
        if self.adapters is None:
            return {}
        return self.adapters(config) if check.takes_config(self.adapters) else self.adapters()

    def to_mermaid(self) -> str:
        """The workflow as a Mermaid flowchart."""
        return diagram.to_mermaid(self.ir)

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Raises `WorkflowError`: a workflow is run, not called."""
        raise fault(
            here(),
            f"the workflow {self.name!r} was called as if it were a function",
            f"kitchen.run({self.name}, config)",
        )

    def __repr__(self) -> str:
        count = sum(1 for _ in walk(self.ir))
        nodes = "1 node" if count == 1 else f"{count} nodes"
        return f"<Workflow {self.name!r} ({self.locator}): {nodes}, {self.fingerprint}>"

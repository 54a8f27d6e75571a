"""`@workflow`: from a function that says what to run to a frozen `Workflow`.

Rules:

1. The function runs once, when it is decorated. What it raises is raised there.
2. It is given a builder and returns nothing; it takes no other argument, so that a workflow
   is the same wherever it is imported.
3. Types flow: `config=` and `state=` are the parameters of the `Workflow` that results.
"""

from __future__ import annotations

import inspect
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from kitchen.workflow import check, ir
from kitchen.workflow.assembly import Assembly
from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.definition import AdapterProvider, Locator, Workflow
from kitchen.workflow.inclusion import Terms
from kitchen.workflow.provenance import code_ref
from kitchen.workflow.where import Site, fault, here, site_of

if TYPE_CHECKING:
    from collections.abc import Callable

C = TypeVar("C")
S = TypeVar("S")


@overload
def workflow(fn: Callable[[WorkflowBuilder], None], /) -> Workflow[Any, Any]: ...
@overload
def workflow(
    *,
    config: type[C],
    state: type[S],
    adapters: AdapterProvider | None = None,
    seed_globals: bool = False,
    compensate: bool = False,
    name: str | None = None,
) -> Callable[[Callable[[WorkflowBuilder], None]], Workflow[C, S]]: ...
@overload
def workflow(
    *,
    config: type[C],
    state: None = None,
    adapters: AdapterProvider | None = None,
    seed_globals: bool = False,
    compensate: bool = False,
    name: str | None = None,
) -> Callable[[Callable[[WorkflowBuilder], None]], Workflow[C, Any]]: ...
@overload
def workflow(
    *,
    config: None = None,
    state: type[S],
    adapters: AdapterProvider | None = None,
    seed_globals: bool = False,
    compensate: bool = False,
    name: str | None = None,
) -> Callable[[Callable[[WorkflowBuilder], None]], Workflow[Any, S]]: ...
@overload
def workflow(
    *,
    config: None = None,
    state: None = None,
    adapters: AdapterProvider | None = None,
    seed_globals: bool = False,
    compensate: bool = False,
    name: str | None = None,
) -> Callable[[Callable[[WorkflowBuilder], None]], Workflow[Any, Any]]: ...
def workflow(
    fn: Callable[[WorkflowBuilder], None] | None = None,
    /,
    *,
    config: type[Any] | None = None,
    state: type[Any] | None = None,
    adapters: AdapterProvider | None = None,
    seed_globals: bool = False,
    compensate: bool = False,
    name: str | None = None,
) -> Any:
    """Makes a workflow of a function of `wf`; bare, or with keywords.

    `config` and `state` are `msgspec.Struct` classes or dataclasses; left out, both are
    mappings. `adapters` makes the adapters of a run, from its config or from nothing.
    `seed_globals=True` seeds the global random generators before each call of user code.
    `compensate=True`: a run that fails rolls back, newest first, the completed stages that have a
    `rollback`. The workflow is called what the function is called, unless `name` says otherwise.

    Raises `WorkflowError`, and whatever the function raises.
    """
    site = here()
    check.declared_type(config, "config", site)
    check.declared_type(state, "state", site)
    check.adapters(adapters, site)
    check.flag(seed_globals, "seed_globals", site)
    check.flag(compensate, "compensate", site)

    def decorate(function: Callable[[WorkflowBuilder], None]) -> Workflow[Any, Any]:
        author = _author(function, site)
        named = check.name(author.__name__ if name is None else name, "workflow", site)
        terms = Terms(config, state, adapters, seed_globals, compensate)
        assembly = Assembly(named, site_of(author), terms)
        try:
            author(WorkflowBuilder(assembly))
            written = assembly.finish()
        finally:
            assembly.end()
        root = ir.WorkflowIR(
            name=named,
            body=tuple(written.nodes),
            config=None if config is None else code_ref(config),
            state=None if state is None else code_ref(state),
            seed_globals=seed_globals,
            compensate=compensate,
        )
        return Workflow(
            ir=root,
            fingerprint=ir.fingerprint(root),
            bindings=MappingProxyType(written.bindings),
            locator=Locator(author.__module__, author.__qualname__, site_of(author).file),
            config_type=config,
            state_type=state,
            adapters=adapters,
            sites=MappingProxyType({"": site_of(author), **written.sites}),
        )

    return decorate if fn is None else decorate(fn)


def _author(function: object, site: Site) -> FunctionType:
    """The decorated function, if it is one that can be run once with a builder."""
    if not isinstance(function, FunctionType):
        raise fault(
            site,
            f"@workflow decorates a function, not {check.told(function)}",
            "@kitchen.workflow(config=Config) and below it: def training(wf): ...",
        )
    site = site_of(function)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        hint = "write def instead of async def; the stages in it may be async"
        raise fault(site, f"the workflow {function.__name__!r} is an async function", hint)
    if inspect.isgeneratorfunction(function):
        hint = "a workflow's function calls wf and returns; it has no yield"
        raise fault(site, f"the workflow {function.__name__!r} is a generator function", hint)
    if not check.accepts(function, 1):
        raise fault(
            site,
            f"the workflow {function.__name__!r} is called with wf alone, but takes "
            f"{inspect.signature(function)}",
            f"def {function.__name__}(wf: kitchen.WorkflowBuilder) -> None:",
        )
    return function

"""What one workflow must have in common with another that it includes.

Rules:

1. Config, state, adapters and seeded generators are shared: what the included workflow declares,
   the including one declares too, so that its stages find what they were written for. Rolling
   back is of a whole run: both say `compensate`, or neither.
2. A declared type may be another one, if it has all the fields of the included one's, by name.
3. What was refused, and where, is told with the line of the include and that of the included
   workflow.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from kitchen.workflow.check import told
from kitchen.workflow.definition import AdapterProvider, Workflow
from kitchen.workflow.ir import StageNode, walk
from kitchen.workflow.scope import Scope, Written
from kitchen.workflow.where import Site, fault

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Terms:
    """What a workflow declares of itself, in its decorator."""

    config: type[Any] | None = None
    state: type[Any] | None = None
    adapters: AdapterProvider | None = None
    seed_globals: bool = False
    compensate: bool = False

    def refuse_unknown_keys(self, keys: Iterable[str], what: str, site: Site) -> None:
        """Refuses state keys that the declared state has not; `what` says who names them."""
        if self.state is None:
            return
        known = field_names(self.state)
        for key in keys:
            if key in known:
                continue
            near = difflib.get_close_matches(key, known, n=1)
            there = f"its fields are: {', '.join(known) or 'none'}"
            raise fault(
                site,
                f"{what} names the state key {key!r}, which {self.state.__name__} has not",
                f"did you mean {near[0]!r}?" if near else there,
            )


def field_names(declared: type[Any]) -> list[str]:
    """The fields of a msgspec.Struct or a dataclass, by the names of its attributes."""
    if issubclass(declared, msgspec.Struct):
        return list(declared.__struct_fields__)
    return [each.name for each in dataclasses.fields(declared)]


def includable(value: object, site: Site) -> Workflow[Any, Any]:
    """A workflow that can be put into another. Raises `WorkflowError`."""
    if isinstance(value, Workflow):
        return cast("Workflow[Any, Any]", value)
    named = getattr(value, "__name__", "")
    if callable(value) and named and not isinstance(value, type):
        raise fault(
            site,
            f"wf.include takes a workflow; {named} is a function",
            f"decorate it with @kitchen.workflow, or call it here: {named}(wf)",
        )
    raise fault(
        site,
        f"wf.include takes a workflow, not {told(value)}",
        "wf.include(evaluation), where @kitchen.workflow stands above def evaluation(wf): ...",
    )


def refuse_misfit(included: Workflow[Any, Any], terms: Terms, site: Site) -> None:
    """Refuses a workflow whose declarations the including one does not share."""
    called = named(included, site)
    _refuse_type(called, "config", included.config_type, terms.config, site)
    _refuse_type(called, "state", included.state_type, terms.state, site)
    if included.ir.seed_globals and not terms.seed_globals:
        raise fault(
            site,
            f"{called} has seed_globals=True, and the one that includes it has not",
            "@kitchen.workflow(seed_globals=True) on the including workflow: the global "
            "generators are seeded for a whole run or not at all",
        )
    if included.ir.compensate != terms.compensate:
        says, says_not = f"{called} has compensate=True", "the one that includes it"
        if terms.compensate:
            says, says_not = "the workflow that includes has compensate=True", called
        raise fault(
            site,
            f"{says}, and {says_not} has not",
            "@kitchen.workflow(compensate=True) on both, or on neither: a run that fails rolls "
            "all of its completed stages back, or none",
        )
    if included.adapters is not None and terms.adapters is None:
        provider = getattr(included.adapters, "__name__", "provider")
        raise fault(
            site,
            f"{called} declares adapters={provider}, and the one that includes it declares none",
            f"pass them on: @kitchen.workflow(adapters={provider}) on the including workflow",
        )
    for path, node in walk(included.ir):
        if isinstance(node, StageNode) and node.writes:
            what = f"writes= of the stage {path!r} of {called}"
            terms.refuse_unknown_keys(node.writes, what, site)


def scope_of(included: Workflow[Any, Any], name: str, site: Site) -> Scope:
    """The included workflow as a block that has just ended."""
    scope = Scope("include", name, site, segment=name, nodes=list(included.ir.body))
    scope.sites |= {path: at for path, at in included.sites.items() if path}
    scope.bindings |= included.bindings
    for path, node in walk(included.ir):
        for key in (node.writes or ()) if isinstance(node, StageNode) else ():
            own = included.sites.get(path, site)
            scope.writes.setdefault(key, Written(path, site, own))
    return scope


def named(included: Workflow[Any, Any], site: Site) -> str:
    """How a message calls the included workflow: with its line, if that is known."""
    at = included.sites.get("")
    return f"the workflow {included.name!r}" + (f" of {at.seen_from(site)}" if at else "")


def _refuse_type(
    called: str, keyword: str, wanted: type[Any] | None, given: type[Any] | None, site: Site
) -> None:
    if wanted is None:
        return
    if given is None:
        raise fault(
            site,
            f"{called} declares {keyword}={wanted.__name__}, and the one that includes it "
            f"declares no {keyword}",
            f"@kitchen.workflow({keyword}={wanted.__name__}) on the including workflow, or a type "
            f"that has its fields: {', '.join(field_names(wanted)) or 'none'}",
        )
    missing = [name for name in field_names(wanted) if name not in field_names(given)]
    if missing:
        fields = "field" if len(missing) == 1 else "fields"
        raise fault(
            site,
            f"{called} declares {keyword}={wanted.__name__}; {keyword}={given.__name__} of the one "
            f"that includes it lacks the {fields} {', '.join(map(repr, missing))}",
            f"add what is missing to {given.__name__}, or derive it from {wanted.__name__}",
        )

"""The blocks of a workflow while its function runs.

Rules:

1. Blocks end inside out. A block becomes a node of the block around it when it ends, and
   not before; one that an exception leaves becomes nothing, and leaves no name behind.
2. A block that was made must be entered before anything else happens: a forgotten `with`
   is told at its own line.
3. After the workflow's function has ended, nothing can be added.
4. Everything that needs the surroundings of a call (is the name free, is there a resource
   to save) is asked here; what an argument itself may be is asked in `check`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from kitchen.workflow import check
from kitchen.workflow.definition import Binding
from kitchen.workflow.ir import ConditionalNode, Node, ResourceNode, join
from kitchen.workflow.where import Site, fault, here

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


@dataclass(slots=True)
class Scope:
    """What one block holds so far. `segment`: the part of the path its children stand under."""

    kind: str
    name: str
    site: Site
    segment: str = ""
    nodes: list[Node] = field(default_factory=list[Node])
    sites: dict[str, Site] = field(default_factory=dict[str, Site])
    resources: dict[str, Site] = field(default_factory=dict[str, Site])
    bindings: dict[str, Binding] = field(default_factory=dict[str, Binding])
    can_save: bool = False

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r}" if self.name else f"the {self.kind}"


class Block:
    """What `wf.loop`, `wf.conditional` and `wf.otherwise` return, for a `with` to enter."""

    def __init__(
        self, assembly: Assembly, scope: Scope, seal: Callable[[tuple[Node, ...]], Node]
    ) -> None:
        self._assembly = assembly
        self.scope = scope
        self.seal = seal

    def __enter__(self) -> None:
        self._assembly.enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._assembly.leave(self, failed=kind is not None)

    def __bool__(self) -> NoReturn:
        raise fault(
            here(),
            f"{self.scope} was used as a truth value; it has none while the workflow is built",
            f"with wf.{self.scope.kind}(...): the run decides",
        )


class Assembly:
    """The stack of open blocks. The first is the workflow itself."""

    def __init__(self, name: str, site: Site) -> None:
        self._root = Scope("workflow", name, site)
        self._open: list[tuple[Scope, Block | None]] = [(self._root, None)]
        self._waiting: Block | None = None
        self._ended = False

    def call_site(self) -> Site:
        """The line of the builder call that is being made, if one may be made now."""
        site = here()
        if self._ended:
            raise fault(
                site,
                f"the workflow {self._root.name!r} is built already; nothing can be added",
                "use wf only while the decorated function runs",
            )
        self._refuse_waiting()
        return site

    def claim(self, name: str, kind: str, site: Site) -> None:
        """Refuses a name that a sibling has; for a loop, also that of a loop around it."""
        check.unique(name, kind, self._top.sites, site)
        for scope, _ in self._open if kind == "loop" else ():
            if scope.kind == "loop" and scope.name == name:
                raise fault(
                    site,
                    f"loop {name!r} stands inside the loop {name!r} of "
                    f"{scope.site.seen_from(site)}, so ctx.item({name!r}) could mean either",
                    "give one of the two another name",
                )

    def claim_resource(self, name: str, site: Site) -> None:
        """Refuses a resource name that is taken anywhere in the workflow."""
        self.claim(name, "resource", site)
        for scope, _ in self._open:
            if name in scope.resources:
                raise fault(
                    site,
                    f"resource {name!r}: the name is taken by the resource of "
                    f"{scope.resources[name].seen_from(site)}",
                    "resource names are unique in the whole workflow; declare it once, in the "
                    "outermost block that uses it, or give one of the two another name",
                )

    def require_resource(self, site: Site) -> None:
        """Refuses a checkpoint where no resource that it could save is open."""
        if not any(scope.can_save for scope, _ in self._open):
            raise fault(
                site,
                "a checkpoint saves the stateful resources that are open here, and there is none",
                "declare one before it, in this block or around it: wf.resource(SESSION); "
                "what ctx.state holds is recorded anyway",
            )

    def last_conditional(self, site: Site) -> ConditionalNode:
        """The conditional right before, which an `otherwise` belongs to."""
        last = self._top.nodes[-1] if self._top.nodes else None
        if not isinstance(last, ConditionalNode):
            raise fault(
                site,
                "otherwise without a conditional right before it",
                "with wf.conditional(...): ... and then, as its next sibling, "
                "with wf.otherwise(): ...",
            )
        if last.otherwise:
            raise fault(
                site,
                f"the conditional {last.name!r} of "
                f"{self._top.sites[last.name].seen_from(site)} has an otherwise already",
                "put both into one otherwise, or nest a conditional inside it",
            )
        return last

    def add(self, node: Node, site: Site, binding: Binding | None = None) -> None:
        """Puts a node without a block of its own into the innermost block."""
        scope = self._top
        scope.nodes.append(node)
        scope.sites[node.name] = site
        if binding is not None:
            scope.bindings[node.name] = binding
        if isinstance(node, ResourceNode):
            scope.resources[node.name] = site
            scope.can_save = scope.can_save or node.stateful is not False

    def block(self, scope: Scope, seal: Callable[[tuple[Node, ...]], Node]) -> Block:
        """A block that waits for its `with`; `seal` makes its node once its body is known."""
        self._waiting = Block(self, scope, seal)
        return self._waiting

    def enter(self, block: Block) -> None:
        """The `with` of a block begins."""
        if block is self._waiting and not self._ended:
            self._waiting = None
            self._open.append((block.scope, block))
            return
        self.call_site()
        raise fault(
            here(),
            f"{block.scope} of {block.scope.site} was entered already; a block is used once",
            "call the builder again for another block",
        )

    def leave(self, block: Block, *, failed: bool) -> None:
        """The `with` of a block ends; an exception that ended it is never replaced."""
        depth = next((i for i, (_, of) in enumerate(self._open) if of is block), None)
        if failed:
            self._waiting = None
            del self._open[len(self._open) if depth is None else depth :]
            return
        self._refuse_waiting()
        if self._ended or depth is None or depth != len(self._open) - 1:
            raise fault(
                here(),
                f"{block.scope} of {block.scope.site} ended out of order",
                "enter and leave blocks by `with` alone",
            )
        scope, _ = self._open.pop()
        _refuse_empty(scope)
        self._settle(scope, block.seal(tuple(scope.nodes)))

    def finish(self) -> tuple[tuple[Node, ...], dict[str, Binding]]:
        """The body of the workflow and its bindings by path; the function has returned."""
        self._refuse_waiting()
        scope = self._top
        if scope is not self._root:
            raise fault(scope.site, f"{scope} was entered and never left", "enter it by `with`")
        _refuse_empty(scope)
        return tuple(scope.nodes), scope.bindings

    def end(self) -> None:
        """From now on, the builder can no longer be used."""
        self._ended = True

    @property
    def _top(self) -> Scope:
        return self._open[-1][0]

    def _settle(self, scope: Scope, node: Node) -> None:
        """An ended block becomes a node of the block around it."""
        outer = self._top
        if scope.kind == "otherwise":
            outer.nodes[-1] = node
        else:
            outer.nodes.append(node)
            outer.sites[node.name] = scope.site
        outer.resources |= scope.resources
        for path, binding in scope.bindings.items():
            # "" is the block's own: a loop's over, a conditional's predicate.
            outer.bindings[join(scope.segment, path)] = binding

    def _refuse_waiting(self) -> None:
        if self._waiting is not None:
            scope = self._waiting.scope
            raise fault(
                scope.site,
                f"{scope} was never entered: its `with` is missing",
                f"with wf.{scope.kind}(...):",
            )


def _refuse_empty(scope: Scope) -> None:
    if not scope.nodes:
        hint = "put a stage into it, or leave it out"
        raise fault(scope.site, f"{scope} is empty", hint)

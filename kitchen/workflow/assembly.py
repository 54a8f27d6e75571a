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

from typing import TYPE_CHECKING, NoReturn

from kitchen.workflow import check, inclusion
from kitchen.workflow.definition import retry_key
from kitchen.workflow.ir import (
    PRODUCER,
    STOP_WHEN,
    AsyncLoopNode,
    CheckpointNode,
    ConditionalNode,
    HandlerNode,
    IncludeNode,
    LoopNode,
    Node,
    ParallelOverNode,
    ResourceNode,
    StageNode,
    StreamLoopNode,
    walk,
)
from kitchen.workflow.scope import Scope, Written
from kitchen.workflow.where import Site, fault, here

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from kitchen.workflow.definition import Binding, Workflow
    from kitchen.workflow.inclusion import Terms


class Block:
    """What `wf.loop`, `wf.parallel` and their like return, for a `with` to enter."""

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

    def __init__(self, name: str, site: Site, terms: Terms) -> None:
        self.terms = terms
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

    def claim(self, name: str, kind: str, site: Site, *, has_item: bool = False) -> None:
        """Refuses a name that a sibling has; where it names items, also one of a block around."""
        check.unique(name, kind, self._top.sites, site)
        if self._top.kind == "async_loop" and name in (PRODUCER, STOP_WHEN):
            raise fault(
                site,
                f"{name!r} is a reserved name in {self._top} of {self._top.site.seen_from(site)}",
                f"choose another name for the {kind}",
            )
        if has_item:
            self._refuse_item(name, f"{kind} {name!r}", site)

    def claim_resource(self, name: str, site: Site) -> None:
        """Refuses a resource name that is taken in this block or in one around it: of two that are
        open at once, only one could be reached. Blocks beside each other may use the same."""
        self.claim(name, "resource", site)
        self._refuse_resource(name, f"resource {name!r}", site)
        if self._top.forks:
            raise fault(
                site,
                f"resource {name!r} stands directly in {self._top} of "
                f"{self._top.site.seen_from(site)}, among its branches",
                "declare it before the parallel, or inside the branch that uses it: "
                "with wf.branch(...):",
            )

    def claim_checkpoint(self, name: str, site: Site) -> None:
        """Refuses a checkpoint where there is no cut, or nothing that it could save."""
        self.claim(name, "checkpoint", site)
        self._refuse_cut(f"checkpoint {name!r} stands", site)
        if not any(scope.can_save for scope, _ in self._open):
            raise fault(
                site,
                "a checkpoint saves the stateful resources that are open here, and there is none",
                "declare one before it, in this block or around it: wf.resource(SESSION); "
                "what ctx.state holds is recorded anyway",
            )

    def claim_branch(self, name: str, site: Site) -> None:
        """Refuses a branch anywhere but among the branches of a parallel."""
        if not self._top.forks:
            over = self._top.kind == "parallel"
            raise fault(
                site,
                f"branch {name!r} stands in {self._top}, not directly in a parallel"
                + (" without over=" if over else ""),
                "leave it out: the whole block runs once per item"
                if over
                else "with wf.parallel(): and directly in it, with wf.branch(...):",
            )
        self.claim(name, "branch", site)

    def claim_handler(self, name: str, site: Site) -> None:
        """Refuses an on_error where no failure could reach it."""
        if self._top.forks:
            raise fault(
                site,
                f"on_error {name!r} stands directly in {self._top} of "
                f"{self._top.site.seen_from(site)}, among its branches",
                "put it into a wf.branch, right behind what it handles; or behind the parallel, "
                "to handle the failure of any branch",
            )
        last = self._top.nodes[-1] if self._top.nodes else None
        if last is None:
            raise fault(
                site,
                f"on_error {name!r} is the first in {self._top}, and handles what stands right "
                "before it",
                "wf.stage(...), or another block, and then, as its next sibling, "
                "with wf.on_error(): ...",
            )
        line = self._top.sites[last.name].seen_from(site)
        if isinstance(last, HandlerNode):
            raise fault(
                site,
                f"on_error {name!r} stands behind the on_error {last.name!r} of {line}",
                "put both into one; what fails inside an on_error is handled inside it",
            )
        if isinstance(last, StageNode) and last.on_error == "skip":
            raise fault(
                site,
                f"on_error {name!r} could never run: the stage {last.name!r} of {line} says "
                "on_error='skip'",
                "leave one of the two out",
            )
        self.claim(name, "on_error", site)

    def last_conditional(self, site: Site) -> ConditionalNode:
        """The conditional right before, which an `otherwise` belongs to."""
        last = self._top.nodes[-1] if self._top.nodes else None
        if isinstance(last, HandlerNode):
            raise fault(
                site,
                f"otherwise stands behind the on_error {last.name!r} of "
                f"{self._top.sites[last.name].seen_from(site)}",
                "otherwise stands right behind its conditional, and on_error behind both",
            )
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

    def add(
        self,
        node: Node,
        site: Site,
        binding: Binding | None = None,
        wants: Binding | None = None,
    ) -> None:
        """Puts a node without a block of its own into the innermost block.

        `wants`: what says after which exceptions a stage is tried again.
        """
        scope = self._top
        if isinstance(node, StageNode):
            found = {key: Written(node.name, site, site) for key in node.writes or ()}
            scope.refuse_writes(found)
            scope.writes = found | scope.writes
        scope.nodes.append(node)
        scope.sites[node.name] = site
        if binding is not None:
            scope.bindings[node.name] = binding
        if wants is not None:
            scope.bindings[retry_key(node.name)] = wants
        if isinstance(node, ResourceNode):
            scope.resources[node.name] = site
            scope.can_save = scope.can_save or node.stateful is not False

    def include(self, included: Workflow[Any, Any], name: str, site: Site) -> None:
        """Puts the nodes of another workflow into the innermost block, as a block of their own."""
        self.claim(name, "include", site)
        inclusion.refuse_misfit(included, self.terms, site)
        scope = inclusion.scope_of(included, name, site)
        for path, node in walk(included.ir):
            self._refuse_included(included, path, node, site)
        body = tuple(scope.nodes)
        self._settle(scope, IncludeNode(name=name, workflow=included.name, body=body))

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
        scope.refuse_empty()
        self._settle(scope, block.seal(tuple(scope.nodes)))

    def finish(self) -> Scope:
        """What the workflow holds; its function has returned."""
        self._refuse_waiting()
        scope = self._top
        if scope is not self._root:
            raise fault(scope.site, f"{scope} was entered and never left", "enter it by `with`")
        scope.refuse_empty()
        return scope

    def end(self) -> None:
        """From now on, the builder can no longer be used."""
        self._ended = True

    @property
    def _top(self) -> Scope:
        return self._open[-1][0]

    def _settle(self, scope: Scope, node: Node) -> None:
        """An ended block becomes a node of the block around it."""
        outer = self._top
        scope.refuse_own_writes()
        outer.refuse_writes({key: each.under(scope.segment) for key, each in scope.writes.items()})
        if scope.kind == "otherwise":
            outer.nodes[-1] = node
        else:
            outer.nodes.append(node)
            outer.sites[node.name] = scope.site
        outer.take_over(scope)

    def _refuse_item(self, name: str, what: str, site: Site) -> None:
        for scope, _ in self._open:
            if scope.has_item and scope.name == name:
                raise fault(
                    site,
                    f"{what} stands inside {scope} of {scope.site.seen_from(site)}, so "
                    f"ctx.item({name!r}) could mean either",
                    "give one of the two another name",
                )

    def _refuse_resource(self, name: str, what: str, site: Site) -> None:
        for scope, _ in self._open:
            if name in scope.resources:
                raise fault(
                    site,
                    f"{what}: the name is taken by the resource of "
                    f"{scope.resources[name].seen_from(site)}",
                    "while the one is open, the other could not be reached; declare it once, in the "
                    "outermost block that uses it, or give one of the two another name",
                )

    def _refuse_cut(self, what: str, site: Site) -> None:
        for scope, _ in self._open:
            if scope.kind == "parallel":
                raise fault(
                    site,
                    f"{what} inside {scope} of {scope.site.seen_from(site)}: there is no cut "
                    "among running siblings",
                    "put it after the parallel",
                )

    def _refuse_included(
        self, included: Workflow[Any, Any], path: str, node: Node, site: Site
    ) -> None:
        """Refuses a node of an included workflow that could not stand here by itself."""
        at = included.sites.get(path)
        line = f" of {at.seen_from(site)}" if at else ""
        what = f"{path!r}{line} in the workflow {included.name!r}"
        match node:
            case ResourceNode():
                self._refuse_resource(node.name, f"resource {what}", site)
            case LoopNode() | StreamLoopNode() | AsyncLoopNode() | ParallelOverNode():
                self._refuse_item(node.name, what, site)
            case CheckpointNode():
                self._refuse_cut(f"checkpoint {what}, included here, stands", site)
            case _:
                pass

    def _refuse_waiting(self) -> None:
        if self._waiting is not None:
            scope = self._waiting.scope
            raise fault(
                scope.site,
                f"{scope} was never entered: its `with` is missing",
                f"with wf.{scope.kind}(...):",
            )

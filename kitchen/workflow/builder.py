"""The DSL: what a workflow's function says to its `wf`.

Rules:

1. A call records; it runs nothing of the user's (but makes the instance of a stage class).
2. The builder is handed to the function. There is no current workflow, so helper functions
   that are given `wf` are all that composition needs.
3. A keyword means something from the day on which it is accepted.
4. Every mistake is a `WorkflowError` that names the line of the call.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import msgspec

from kitchen.workflow import check
from kitchen.workflow.assembly import Assembly, Block, Scope
from kitchen.workflow.bodies import stage_body
from kitchen.workflow.ir import (
    OTHERWISE,
    CheckpointNode,
    ConditionalNode,
    LoopNode,
    Node,
    ResourceNode,
    StageNode,
    join,
)
from kitchen.workflow.options import plain_options
from kitchen.workflow.provenance import code_ref, simple_name
from kitchen.workflow.stage import Resource
from kitchen.workflow.where import fault, here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kitchen.workflow.stage import Stage


class WorkflowBuilder:
    """What a function decorated with `@kitchen.workflow` is given, as `wf`."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    def stage(
        self,
        name: str,
        body: Callable[[Any], Any] | type[Stage] | Stage,
        *,
        options: Mapping[str, Any] | None = None,
        thread: bool = True,
    ) -> None:
        """A unit of work: `body(ctx)`, sync or async, or a `Stage` class or instance.

        `options` are plain data, read as `ctx.options`. A sync body runs in a worker thread
        unless `thread=False`. Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        check.name(name, "stage", site)
        self._assembly.claim(name, "stage", site)
        found = stage_body(body, name, site)
        node = StageNode(
            name=name,
            body=code_ref(found),
            options=plain_options(options, site),
            thread=check.flag(thread, "thread", site),
        )
        self._assembly.add(node, site, found)

    def loop(self, name: str, over: Callable[[Any], Any]) -> Block:
        """`with wf.loop("epochs", over=epochs):`, the block once per item of `epochs(ctx)`.

        `over` is asked once, where the loop is entered. Inside, `ctx.item(name)` is the item.
        Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        check.name(name, "loop", site)
        self._assembly.claim(name, "loop", site)
        items = check.over(over, name, site)

        def seal(body: tuple[Node, ...]) -> Node:
            return LoopNode(name=name, over=code_ref(items), body=body)

        scope = Scope("loop", name, site, segment=name, bindings={"": items})
        return self._assembly.block(scope, seal)

    def conditional(self, predicate: Callable[[Any], Any], name: str | None = None) -> Block:
        """`with wf.conditional(should_eval):`, the block if `should_eval(ctx)` is true.

        It is called what its predicate is called, unless `name` says otherwise. Raises
        `WorkflowError`.
        """
        site = self._assembly.call_site()
        asked = check.predicate(predicate, site)
        if name is None:
            own = simple_name(asked)
            name = "conditional" if own == "<lambda>" else own
        check.name(name, "conditional", site)
        self._assembly.claim(name, "conditional", site)
        named = name

        def seal(body: tuple[Node, ...]) -> Node:
            return ConditionalNode(name=named, predicate=code_ref(asked), then=body)

        scope = Scope("conditional", named, site, segment=named, bindings={"": asked})
        return self._assembly.block(scope, seal)

    def otherwise(self) -> Block:
        """`with wf.otherwise():`, right after a conditional: the block if its answer is no.

        Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        conditional = self._assembly.last_conditional(site)

        def seal(body: tuple[Node, ...]) -> Node:
            return msgspec.structs.replace(conditional, otherwise=body)

        segment = join(conditional.name, OTHERWISE)
        scope = Scope("otherwise", "", site, segment=segment)
        return self._assembly.block(scope, seal)

    def resource(
        self,
        key_or_name: Resource[Any] | str,
        factory: Callable[[Any], Any] | None = None,
        stateful: bool | None = None,
    ) -> None:
        """Opens a live object here, for the rest of the block: `wf.resource(SESSION)`.

        Takes a `Resource` key, or a name and a factory. Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        if not isinstance(key_or_name, Resource):
            check.name(key_or_name, "resource", site)
            opened = check.factory(factory, key_or_name, site)
            name, says = key_or_name, check.stateful(stateful, site)
        elif factory is not None or stateful is not None:
            raise fault(
                site,
                f"{key_or_name!r} says by itself how it is opened and whether it is stateful",
                "pass the key alone, and put factory and stateful= where the key is made",
            )
        else:
            name, opened, says = key_or_name.name, key_or_name.factory, key_or_name.stateful
        self._assembly.claim_resource(name, site)
        node = ResourceNode(name=name, factory=code_ref(opened), stateful=says)
        self._assembly.add(node, site, opened)

    def checkpoint(self, name: str = "checkpoint") -> None:
        """Saves the stateful resources that are open here: a place to resume from.

        Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        check.name(name, "checkpoint", site)
        self._assembly.claim(name, "checkpoint", site)
        self._assembly.require_resource(site)
        self._assembly.add(CheckpointNode(name=name), site)

    if not TYPE_CHECKING:  # a type checker knows the names by itself, and reports typos

        def __getattr__(self, name: str) -> Any:
            known = [each for each in vars(type(self)) if not each.startswith("_")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean wf.{near[0]}?" if near else f"there are {', '.join(known)}"
            message = f"{here()}: the workflow builder has no {name!r}\n  hint: {hint}"
            raise AttributeError(message)

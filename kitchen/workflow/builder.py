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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from kitchen.workflow import check, concurrent, failing
from kitchen.workflow.assembly import Assembly, Block
from kitchen.workflow.bodies import stage_body
from kitchen.workflow.definition import limit_key
from kitchen.workflow.inclusion import includable
from kitchen.workflow.ir import (
    OTHERWISE,
    PRODUCER,
    STOP_WHEN,
    AsyncLoopNode,
    BranchNode,
    CheckpointNode,
    ConditionalNode,
    HandlerNode,
    LoopNode,
    Node,
    ParallelNode,
    ParallelOverNode,
    ResourceNode,
    StageNode,
    StreamLoopNode,
    TimeoutNode,
    join,
)
from kitchen.workflow.options import plain_options
from kitchen.workflow.provenance import code_ref, simple_name
from kitchen.workflow.retry import Retry, retry
from kitchen.workflow.scope import Scope
from kitchen.workflow.stage import Resource
from kitchen.workflow.where import fault, here

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta

    from kitchen.workflow.definition import Binding, Workflow
    from kitchen.workflow.stage import Stage
    from kitchen.workflow.where import Site

Merge: TypeAlias = Literal["sum", "extend", "union", "max", "min"] | Callable[[Any, Any], Any]
"""How the values that several branches gave one state key become one."""


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
        retries: int | Retry = 0,
        timeout: float | timedelta | None = None,
        effect: Literal["repeatable", "once"] = "repeatable",
        thread: bool = True,
        process: bool = False,
        writes: Iterable[str] | None = None,
        on_error: Literal["fail", "skip"] = "fail",
    ) -> None:
        """A unit of work: `body(ctx)`, sync or async, or a `Stage` class or instance.

        `options` are plain data, read as `ctx.options`. `retries`: further attempts after one that
        raised. `timeout`: how many seconds an attempt may take. `effect="once"`: it must not
        silently run twice. A sync body runs in a worker thread, in the event loop's own with
        `thread=False`, in a worker process with `process=True`. `writes`: the only state keys that
        it may change, so that two branches of a parallel that write one key are told now.
        `on_error="skip"`: the run goes on behind it when it fails. Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        name = check.name(name, "stage", site)
        self._assembly.claim(name, "stage", site)
        found = stage_body(body, name, site)
        keys = concurrent.writes(writes, name, site)
        self._assembly.terms.refuse_unknown_keys(keys or (), f"writes= of the stage {name!r}", site)
        tried = retry(retries, site)
        threaded = check.flag(thread, "thread", site)
        terms = {"timeout": timeout, "effect": effect, "process": process, "on_error": on_error}
        node = StageNode(
            name=name,
            body=code_ref(found),
            options=plain_options(options, site),
            thread=threaded,
            writes=keys,
            retry=tried.ir if tried else None,
            **failing.terms(found, name, site, thread=threaded, **terms),
        )
        self._assembly.add(node, site, found, tried.wants if tried else None)

    def loop(self, name: str, over: Callable[[Any], Any]) -> Block:
        """`with wf.loop("epochs", over=epochs):`, the block once per item of `epochs(ctx)`.

        `over` is asked once, where the loop is entered. Inside, `ctx.item(name)` is the item.
        Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        name = self._claim_loop(name, "loop", site)
        items = check.over(over, "loop", name, site)

        def seal(body: tuple[Node, ...]) -> Node:
            return LoopNode(name=name, over=code_ref(items), body=body)

        scope = Scope("loop", name, site, segment=name, bindings={"": items}, has_item=True)
        return self._assembly.block(scope, seal)

    def stream_loop(self, name: str, over: Callable[[Any], Any], prefetch: int = 2) -> Block:
        """`with wf.stream_loop("batches", over=batches):`, a loop that pulls its items lazily.

        `over(ctx)` gives an iterable or an async iterable, and may be a generator function. At
        most `prefetch` items are pulled ahead of the body; it may be endless. Raises
        `WorkflowError`.
        """
        site = self._assembly.call_site()
        name = self._claim_loop(name, "stream_loop", site)
        items = check.over(over, "stream_loop", name, site)
        ahead = concurrent.count(prefetch, "prefetch", site)

        def seal(body: tuple[Node, ...]) -> Node:
            return StreamLoopNode(name=name, over=code_ref(items), body=body, prefetch=ahead)

        scope = Scope("stream_loop", name, site, segment=name, bindings={"": items}, has_item=True)
        return self._assembly.block(scope, seal)

    def async_loop(
        self,
        name: str,
        producer: Callable[[Any], Any],
        stop_when: Callable[[Any], Any],
        buffer_size: int = 4,
        producers: int = 1,
        pacing: Literal["paced", "free"] = "paced",
        max_staleness: int | None = None,
    ) -> Block:
        """`with wf.async_loop("off_policy", producer=collect, stop_when=done):`.

        `producer(ctx)` makes one item after the other beside the block, at most `buffer_size`
        ahead, by `producers` calls at a time; the block consumes them in order until
        `stop_when(ctx)`, asked after each, is true. What production k sees is the state as
        committed by consumption k - buffer_size (`pacing="paced"`), or the latest ("free"). An
        item made from a state more than `max_staleness` consumptions old is discarded. Raises
        `WorkflowError`.
        """
        site = self._assembly.call_site()
        name = self._claim_loop(name, "async_loop", site)
        made = concurrent.producer(producer, name, site)
        asked = check.predicate(stop_when, site, f"stop_when= of the async_loop {name!r}")
        size, makers = concurrent.ahead(buffer_size, producers, site)
        paced = concurrent.choice(pacing, concurrent.PACINGS, "pacing", site)
        stale = None
        if max_staleness is not None:
            stale = concurrent.count(max_staleness, "max_staleness", site, least=0)

        def seal(body: tuple[Node, ...]) -> Node:
            return AsyncLoopNode(
                name=name,
                producer=code_ref(made),
                stop_when=code_ref(asked),
                body=body,
                buffer_size=size,
                producers=makers,
                pacing=paced,
                max_staleness=stale,
            )

        bindings: dict[str, Binding] = {PRODUCER: made, STOP_WHEN: asked}
        scope = Scope("async_loop", name, site, segment=name, bindings=bindings, has_item=True)
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
        named = check.name(name, "conditional", site)
        self._assembly.claim(named, "conditional", site)

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

    def parallel(
        self,
        name: str | None = None,
        over: Callable[[Any], Any] | None = None,
        max_concurrency: int | Callable[[Any], Any] | None = None,
        on_error: Literal["cancel", "finish"] = "cancel",
        merge: Mapping[str, Merge] | None = None,
    ) -> Block:
        """`with wf.parallel():`, everything directly in the block beside each other.

        With `over`, the whole block once per item of `over(ctx)`, and `ctx.item(name)` is the
        item. At most `max_concurrency` run at a time: a number, or a function of ctx. When one
        fails, the others are cancelled, or end (`on_error="finish"`). `merge` says for a state
        key that several write how their values become one: "sum", "extend", "union", "max",
        "min", or a function of the value before and of the list of theirs. Raises
        `WorkflowError`.
        """
        site = self._assembly.call_site()
        if over is None:
            named = check.name("parallel" if name is None else name, "parallel", site)
            self._assembly.claim(named, "parallel", site)
            items = None
        else:
            named = check.name_of_items(name, "parallel", site)
            self._claim_loop(named, "parallel", site)
            items = check.over(over, "parallel", named, site)
        most = concurrent.limit(max_concurrency, named, site)
        reducers, bindings = concurrent.merge(merge, named, site)
        self._assembly.terms.refuse_unknown_keys(
            reducers, f"merge= of the parallel {named!r}", site
        )
        if callable(most):
            bindings[limit_key("")] = most
        common: dict[str, Any] = {
            "max_concurrency": None if callable(most) else most,
            "limit": code_ref(most) if callable(most) else None,
            "on_error": concurrent.choice(on_error, concurrent.ON_ERROR, "on_error", site),
            "merge": reducers,
        }

        def seal(body: tuple[Node, ...]) -> Node:
            if items is None:
                return ParallelNode(name=named, branches=body, **common)
            return ParallelOverNode(name=named, over=code_ref(items), body=body, **common)

        asked: dict[str, Binding] = {} if items is None else {"": items}
        scope = Scope(
            "parallel",
            named,
            site,
            segment=named,
            bindings=asked | bindings,
            merge=frozenset(reducers),
            has_item=items is not None,
            forks=items is None,
        )
        return self._assembly.block(scope, seal)

    def branch(self, name: str) -> Block:
        """`with wf.branch("validation"):`, directly in a parallel: several nodes as one arm.

        Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        name = check.name(name, "branch", site)
        self._assembly.claim_branch(name, site)

        def seal(body: tuple[Node, ...]) -> Node:
            return BranchNode(name=name, body=body)

        return self._assembly.block(Scope("branch", name, site, segment=name), seal)

    def include(self, workflow: Workflow[Any, Any], name: str | None = None) -> None:
        """`wf.include(evaluation)`: the nodes of another workflow, under a path of their own.

        It shares config, state and adapters with this one, and what resources are open here.
        Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        included = includable(workflow, site)
        named = check.name(included.name if name is None else name, "include", site)
        self._assembly.include(included, named, site)

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
            name = check.name(key_or_name, "resource", site)
            opened = check.factory(factory, name, site)
            says = check.stateful(stateful, site)
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
        name = check.name(name, "checkpoint", site)
        self._assembly.claim_checkpoint(name, site)
        self._assembly.add(CheckpointNode(name=name), site)

    def timeout(self, seconds: float | timedelta, name: str | None = None) -> Block:
        """`with wf.timeout(3600):`, a block that may take so many seconds of executing time.

        Where it takes longer, what runs in it is stopped, and it fails with `StageTimeout`. It is
        called "timeout", unless `name` says otherwise. Raises `WorkflowError`.
        """
        site = self._assembly.call_site()
        most = failing.seconds(seconds, "a timeout", "with wf.timeout(3600):", site)
        named = check.name("timeout" if name is None else name, "timeout", site)
        self._assembly.claim(named, "timeout", site)

        def seal(body: tuple[Node, ...]) -> Node:
            return TimeoutNode(name=named, seconds=most, body=body)

        return self._assembly.block(Scope("timeout", named, site, segment=named), seal)

    def on_error(self, name: str = "on_error") -> Block:
        """`with wf.on_error():`, right behind a stage or a block: runs if that fails for good.

        The run then goes on behind it. It may be empty: `pass` just goes on. Raises
        `WorkflowError`.
        """
        site = self._assembly.call_site()
        name = check.name(name, "on_error", site)
        self._assembly.claim_handler(name, site)

        def seal(body: tuple[Node, ...]) -> Node:
            return HandlerNode(name=name, body=body)

        scope = Scope("on_error", name, site, segment=name, may_be_empty=True)
        return self._assembly.block(scope, seal)

    def _claim_loop(self, name: str, kind: str, site: Site) -> str:
        named = check.name(name, kind, site)
        self._assembly.claim(named, kind, site, has_item=True)
        return named

    if not TYPE_CHECKING:  # a type checker knows the names by itself, and reports typos

        def __getattr__(self, name: str) -> Any:
            known = [each for each in vars(type(self)) if not each.startswith("_")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean wf.{near[0]}?" if near else f"there are {', '.join(known)}"
            message = f"{here()}: the workflow builder has no {name!r}\n  hint: {hint}"
            raise AttributeError(message)

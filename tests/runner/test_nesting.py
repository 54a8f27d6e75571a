"""Everything in everything, fifty levels deep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

import kitchen
from kitchen import WorkflowBuilder
from store import MemoryStore

LEVELS = 50


def one(_ctx: Any) -> list[int]:
    return [7]


def yes(_ctx: Any) -> bool:
    return True


def item(_ctx: Any) -> int:
    return 7


KINDS: dict[str, Callable[[WorkflowBuilder, str], list[AbstractContextManager[Any]]]] = {
    "loop": lambda wf, name: [wf.loop(name, over=one)],
    "parallel": lambda wf, name: [wf.parallel(name)],
    "conditional": lambda wf, name: [wf.conditional(yes, name=name)],
    "stream_loop": lambda wf, name: [wf.stream_loop(name, over=one)],
    "parallel_over": lambda wf, name: [wf.parallel(name, over=one)],
    "async_loop": lambda wf, name: [wf.async_loop(name, producer=item, stop_when=yes)],
}
LOOPS = {"loop", "stream_loop", "parallel_over", "async_loop"}


def look(ctx: Any) -> None:
    ctx.state["visit"] = list(ctx.visit)
    ctx.state["near"] = ctx.item() if ctx.visit else None
    ctx.state["random"] = ctx.rng.random()


def nested(kinds: list[str]) -> Any:
    """A stage under fifty blocks of these kinds, in turns."""

    @kitchen.workflow
    def deep(wf: WorkflowBuilder) -> None:
        with ExitStack() as stack:
            for level in range(LEVELS):
                kind = KINDS[kinds[level % len(kinds)]]
                for block in kind(wf, f"n{level}"):
                    stack.enter_context(block)
            wf.stage("look", look)

    return deep


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [list(KINDS)], ids="+".join)
def test_fifty_levels(kinds: list[str]) -> None:
    run = kitchen.run(nested(kinds), store=MemoryStore(), run_id="r")
    loops = sum(kinds[level % len(kinds)] in LOOPS for level in range(LEVELS))
    assert run.state["visit"] == [0] * loops
    assert run.state["near"] == (7 if loops else None)


class Stopped(Exception):
    pass


def test_fifty_levels_are_taken_up_again() -> None:
    """A run that fails at the bottom goes on there."""
    kinds, fails = list(KINDS), [True]

    def sometimes(ctx: Any) -> None:
        if fails:
            raise Stopped
        look(ctx)

    @kitchen.workflow
    def deep(wf: WorkflowBuilder) -> None:
        with ExitStack() as stack:
            for level in range(LEVELS):
                for block in KINDS[kinds[level % len(kinds)]](wf, f"n{level}"):
                    stack.enter_context(block)
            wf.stage("look", sometimes)

    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        kitchen.run(deep, store=store, run_id="r")
    fails.clear()
    run = kitchen.resume("r", deep, store=store)
    whole = kitchen.run(deep, store=MemoryStore(), run_id="r")
    assert dict(run.state) == dict(whole.state)

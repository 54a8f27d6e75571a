"""What differs between two versions of a workflow, in words."""

from __future__ import annotations

from typing import Any

import pytest

from kitchen.workflow.changes import differences, moved
from tests.runner.running import flow


def work(ctx: Any) -> None: ...


def other(ctx: Any) -> None: ...


def ir(name: str = "l", stage: str = "s", body: Any = work, **given: Any) -> Any:
    def build(wf: Any) -> None:
        with wf.loop(name, over=lambda ctx: range(2)):
            wf.stage(stage, body, **given)
        wf.stage("end", work)

    return flow(build).ir


def test_a_workflow_does_not_differ_from_itself() -> None:
    assert differences(ir(), ir()) == ()


def test_nodes_that_come_go_and_change() -> None:
    assert differences(ir(), ir(stage="t")) == ("added: l/t", "removed: l/s")
    assert differences(ir(), ir(body=other)) == ("changed: l/s (body)",)
    assert differences(ir(), ir(retries=2, timeout=3)) == ("changed: l/s (retry, timeout)",)
    assert differences(flow(lambda wf: wf.stage("x", work)).ir, flow(one_loop).ir) == (
        "added: x/s", "changed kind: x",
    )  # fmt: skip


def one_loop(wf: Any) -> None:
    with wf.loop("x", over=lambda ctx: []):
        wf.stage("s", work)


def test_the_order_and_what_is_said_of_the_whole() -> None:
    def turned(wf: Any) -> None:
        wf.stage("b", work)
        wf.stage("a", work)

    def plain(wf: Any) -> None:
        wf.stage("a", work)
        wf.stage("b", work)

    assert differences(flow(plain).ir, flow(turned).ir) == ("the order of the nodes",)
    told = differences(flow(plain).ir, flow(plain, compensate=True).ir)
    assert told == ("changed: compensate of the workflow",)


def test_a_node_that_was_renamed_is_the_same_node_with_what_is_in_it() -> None:
    assert differences(ir(), ir(name="m"), {"l": "m"}) == ("renamed: l -> m",)
    assert differences(ir(), ir(name="m")) == (
        "added: m",
        "added: m/s",
        "removed: l",
        "removed: l/s",
    )
    assert differences(ir(), ir(stage="t", body=other), {"l/s": "l/t"}) == (
        "changed: l/t (body)", "renamed: l/s -> l/t",
    )  # fmt: skip
    both = {"l": "m", "l/s": "m/t"}
    assert differences(ir(), ir(name="m", stage="t"), both) == (
        "renamed: l -> m", "renamed: l/s -> m/t",
    )  # fmt: skip


def test_names_that_are_swapped() -> None:
    def build(first: Any, second: Any) -> Any:
        def author(wf: Any) -> None:
            wf.stage("a", first)
            wf.stage("b", second)

        return flow(author).ir

    told = differences(build(work, other), build(other, work), {"a": "b", "b": "a"})
    assert told == ("renamed: a -> b", "renamed: b -> a", "the order of the nodes")


@pytest.mark.parametrize(
    ("path", "new"),
    [("l", "m"), ("l/s", "m/s"), ("l/deep/er", "m/n/er"), ("loop", "loop"), ("k/l", "k/l")],
)
def test_paths_below_a_renamed_one_move_with_it(path: str, new: str) -> None:
    assert moved(path, {"l": "m", "l/deep": "m/n"}) == new

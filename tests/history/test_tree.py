"""The tree of a run's visits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kitchen
from kitchen.history.history import History
from kitchen.history.tree import TreeNode
from store import MemoryStore, NewEvent
from tests.history.telling import ALL, killed, whole
from tests.runner.running import Box, Dying, Killed, done, flow


def every(node: TreeNode) -> Iterator[TreeNode]:
    yield node
    for child in node.children:
        yield from every(child)


def outline(node: TreeNode) -> Any:
    inner = [outline(child) for child in node.children]
    return (node.name, node.status, inner) if inner else (node.name, node.status)


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_every_committed_visit_is_there_once_and_completed(workflow: Any) -> None:
    for past in (whole(workflow), killed(workflow, 5, 7, 9)):
        tree = past.tree()
        nodes = list(every(tree))
        assert len({(n.path, n.visit, n.kind) for n in nodes}) == len(nodes)
        stages = {(n.path, n.visit) for n in nodes if n.kind == "stage"}
        live = [r for r in past.events if r.counts]
        assert stages == {(r.path, r.visit) for r in live if r.type == "StageCompleted"}
        assert {n.status for n in nodes} == {"completed"}
        assert tree.name == workflow.name
        assert all(n.seconds >= 0 for n in nodes)


def test_the_order_is_that_of_the_program() -> None:
    def build(wf: Any) -> None:
        with wf.parallel("p"):
            wf.stage("a", lambda ctx: None)
            with wf.branch("b"):
                with wf.loop("l", over=lambda ctx: range(2)):
                    wf.stage("s", lambda ctx: None)
        with wf.conditional(lambda ctx: False, name="c"):
            wf.stage("yes", lambda ctx: None)
        with wf.otherwise():
            wf.stage("no", lambda ctx: None)

    done(flow(build), store=(store := MemoryStore()))
    ok = "completed"
    visits = [(f"l[{i}]", ok, [("s", ok)]) for i in range(2)]
    assert outline(History(store, "r").tree()) == (
        "w", ok,
        [("p", ok, [("a", ok), ("b", ok, [("l", ok, visits)])]), ("c", ok, [("no", ok)])],
    )  # fmt: skip


def looping(body: Any) -> Any:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("s", body)
        wf.stage("end", lambda ctx: None)

    return flow(build)


def status_of(past: History) -> dict[str, str]:
    return {node.name: node.status for node in every(past.tree())}


def test_where_a_run_stands_that_is_running_crashed_and_taken_up() -> None:
    seen: list[dict[str, str]] = []
    store, die = MemoryStore(), Dying(1)

    def body(ctx: Any) -> None:
        seen.append(status_of(History(store, "r")))
        die()

    with pytest.raises(Killed):
        done(looping(body), store=store)
    assert [(at["w"], at["l"], at["s"]) for at in seen] == [("running",) * 3] * 2
    assert seen[1]["l[0]"] == "completed"
    assert seen[1]["l[1]"] == "running"
    crashed = status_of(History(store, "r"))
    assert (crashed["w"], crashed["l"], crashed["l[0]"], crashed["l[1]"]) == (
        "crashed", "interrupted", "completed", "interrupted",
    )  # fmt: skip
    kitchen.resume("r", looping(body), store=store)
    tree = History(store, "r").tree()
    assert {node.status for node in every(tree)} == {"completed"}
    assert [node.attempts for node in every(tree) if node.name == "s"] == [1, 2, 1]


def test_what_failed_and_what_was_skipped() -> None:
    def build(wf: Any) -> None:
        wf.stage("a", fail, on_error="skip")
        wf.stage("b", fail, retries=kitchen.Retry(1, backoff=0))

    def fail(ctx: Any) -> None:
        raise ValueError

    store = MemoryStore()
    with pytest.raises(kitchen.RunError):
        done(flow(build), store=store)
    tree = History(store, "r").tree()
    assert outline(tree) == ("w", "failed", [("a", "skipped"), ("b", "failed")])
    assert [node.attempts for node in tree.children] == [1, 2]


def test_time_goes_by_only_while_a_process_executes_the_run() -> None:
    """The times of a log, spread by hand: ten seconds between two events, a day where it was dead."""
    store, die = MemoryStore(), Dying(1)
    with pytest.raises(Killed):
        done(looping(lambda ctx: die()), store=store)
    kitchen.resume("r", looping(lambda ctx: die()), store=store)
    at, events = 0, []
    for record in store.read("r"):
        at += 86_400 * 10**9 if record.type == "RunResumed" else 10**10
        plain = NewEvent(record.type, record.path, record.visit, record.attempt, record.payload)
        events.append((at, plain))
    other = MemoryStore()
    other.adopt_run("r", "w", 0, events)
    found = {(n.name, n.visit): n for n in every(History(other, "r").tree())}
    assert found["s", (0,)].seconds == 10
    assert found["s", (1,)].seconds == 10  # it was dead before anything else
    assert found["l", ()].seconds < 300

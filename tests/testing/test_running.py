"""`run_workflow`, its awaitable twin, `kitchen_store`, and what a failing test says of its runs."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Any, Literal, assert_type

import anyio
import msgspec
import pytest

import kitchen
from kitchen import Context, Retry, WorkflowBuilder
from kitchen.ports.event_store import EventStore
from kitchen.testing import RunWorkflow, RunWorkflowAsync, VirtualClock


class Config(msgspec.Struct):
    by: int = 1


class State(msgspec.Struct):
    total: int = 0


async def add(ctx: Context[Config, State]) -> None:
    ctx.state.total += ctx.config.by + ctx.adapters.get("more", 0)
    ctx.record_metric("draw", ctx.rng.random())


@kitchen.workflow(config=Config, state=State)
def adding(wf: WorkflowBuilder) -> None:
    wf.stage("add", add)


def fails(ctx: Any) -> None:
    raise ValueError("as told")


@kitchen.workflow
def failing(wf: WorkflowBuilder) -> None:
    wf.stage("fails", fails)


def test_a_run(run_workflow: RunWorkflow, kitchen_store: EventStore, tmp_path: Path) -> None:
    run = run_workflow(adding, {"by": 2}, adapters={"more": 10}, run_id="r")
    assert_type(run, kitchen.Run[Config, State])
    assert (run.id, run.status, run.state.total) == ("r", "completed", 12)
    assert kitchen_store.path == tmp_path / "kitchen.db"
    assert [info.run for info in kitchen_store.runs()] == ["r"]
    assert kitchen.history("r").status == "completed"  # in the store that it names by default


def test_the_seed(run_workflow: RunWorkflow) -> None:
    draws = [run_workflow(adding, seed=seed).metrics["draw"][0].value for seed in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]


def test_the_same_id_twice(run_workflow: RunWorkflow) -> None:
    first = run_workflow(adding, Config(by=3), run_id="r")
    with pytest.raises(kitchen.RunExists):
        run_workflow(adding, Config(by=3), run_id="r")
    again = run_workflow(adding, Config(by=3), run_id="r", if_exists="resume")
    assert again.state.total == first.state.total == 3


def test_a_run_that_fails(run_workflow: RunWorkflow) -> None:
    with pytest.raises(kitchen.RunError, match="as told") as raised:
        run_workflow(failing)
    assert raised.value.run.status == "failed"


def test_the_cause_of_a_failure_is_what_was_raised(run_workflow: RunWorkflow) -> None:
    raised = ValueError("this one")

    def raises(ctx: Any) -> None:
        raise raised

    @kitchen.workflow
    def raising(wf: WorkflowBuilder) -> None:
        wf.stage("raises", raises)

    with pytest.raises(kitchen.RunError) as failed:
        run_workflow(raising)
    assert failed.value.__cause__ is raised
    assert [entry.name for entry in traceback.extract_tb(raised.__traceback__)] == ["raises"]


def test_observers(run_workflow: RunWorkflow) -> None:
    class Watching:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_facts(self, run_id: str, facts: Any, state: Any) -> None:
            self.seen += [type(fact.event).__name__ for fact in facts]

        def on_progress(self, run_id: str, address: Any, done: float, total: Any) -> None: ...

    watching = Watching()
    run_workflow(adding, observers=[watching])
    assert (watching.seen[0], watching.seen[-1]) == ("RunStarted", "RunCompleted")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_event_loop(run_workflow: RunWorkflow, backend: Literal["asyncio", "trio"]) -> None:
    async def note(ctx: Any) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            ctx.state["loop"] = "trio"
        else:
            ctx.state["loop"] = "asyncio"

    @kitchen.workflow
    def noting(wf: WorkflowBuilder) -> None:
        wf.stage("note", note)

    assert run_workflow(noting, backend=backend).state["loop"] == backend


def test_another_event_loop(run_workflow: RunWorkflow) -> None:
    with pytest.raises(kitchen.ArgumentError, match='"asyncio" or "trio"'):
        run_workflow(adding, backend="uvloop")  # type: ignore[arg-type]


def test_adapters_that_a_function_makes(run_workflow: RunWorkflow) -> None:
    made: list[dict[str, int]] = []

    def make() -> dict[str, int]:
        made.append({"more": 5})
        return made[-1]

    assert [run_workflow(adding, adapters=make).state.total for _ in range(2)] == [6, 6]
    assert len(made) == 2


@pytest.mark.parametrize("given", [5, "more", ["more"], lambda: None, lambda: 5])
def test_adapters_that_are_none(run_workflow: RunWorkflow, given: Any) -> None:
    with pytest.raises(kitchen.ArgumentError, match="adapters= is a mapping, or a function"):
        run_workflow(adding, adapters=given)


def test_a_clock_that_is_none(run_workflow: RunWorkflow) -> None:
    with pytest.raises(kitchen.ArgumentError, match="clock= is a VirtualClock, not 5"):
        run_workflow(adding, clock=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_hours_on_a_virtual_clock(
    run_workflow: RunWorkflow, virtual_clock: VirtualClock, backend: Literal["asyncio", "trio"]
) -> None:
    calls: list[int] = []

    async def works_at_last(ctx: Any) -> None:
        calls.append(ctx.attempt)
        await anyio.sleep(3600)
        if ctx.attempt < 3:
            raise ValueError("not yet")

    @kitchen.workflow
    def waiting(wf: WorkflowBuilder) -> None:
        wf.stage("wait", works_at_last, retries=Retry(3, backoff=7200, max_delay=7200, jitter=0))

    run = run_workflow(waiting, clock=virtual_clock, backend=backend, run_id="r")
    assert (run.status, calls) == ("completed", [1, 2, 3])
    assert virtual_clock.elapsed >= 3 * 3600 + 2 * 7200
    times = [record.at for record in kitchen.history("r").events]
    assert times[-1] - times[0] >= (3 * 3600 + 2 * 7200) * 10**9


@pytest.mark.anyio
async def test_in_an_event_loop(
    run_workflow_async: RunWorkflowAsync, run_workflow: RunWorkflow
) -> None:
    run = await run_workflow_async(adding, {"by": 4}, run_id="r")
    assert_type(run, kitchen.Run[Config, State])
    assert run.state.total == 4
    assert (await run_workflow_async(adding, adapters=lambda: {"more": 1})).state.total == 2
    with pytest.raises(kitchen.RunExists):
        await run_workflow_async(adding, {"by": 4}, run_id="r")
    with pytest.raises(kitchen.KitchenError, match=r"await run_workflow_async\("):
        run_workflow(adding)
    with pytest.raises(kitchen.RunError, match="as told"):
        await run_workflow_async(failing)


# --- in a session of its own ----------------------------------------------------------------------

WORKFLOW = """
import kitchen
import pytest

def body(ctx):
    if ctx.config.get("fail"):
        raise ValueError("as told")

@kitchen.workflow
def tiny(wf):
    wf.stage("body", body)
"""


def sections(result: pytest.RunResult) -> list[str]:
    """The lines of the sections "kitchen"."""
    lines, inside = [], False
    for line in result.outlines:
        if line.startswith(("---", "===", "___")):
            inside = line.strip("- ") == "kitchen"
        elif inside:
            lines.append(line)
    return lines


def test_a_failing_test_says_where_its_runs_are(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        WORKFLOW
        + """
def test_passes(run_workflow):
    run_workflow(tiny)

def test_asserts(run_workflow):
    run_workflow(tiny, run_id="first")
    assert False

def test_raises(run_workflow):
    run_workflow(tiny, run_id="whole")
    run_workflow(tiny, {"fail": True}, run_id="b r")

def test_by_default(kitchen_store):
    kitchen.run(tiny, run_id="by-default")
    assert False

def test_without_a_run(run_workflow):
    assert False

@pytest.fixture
def made(run_workflow):
    run_workflow(tiny, {"fail": True}, run_id="in-a-fixture")

def test_of_a_fixture(made):
    pass

def test_without_a_store():
    assert False
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1, failed=5, errors=1)
    told = sections(result)
    runs = [line.strip() for line in told if line.startswith("  ") and not line.startswith("   ")]
    assert runs == [
        "in-a-fixture (tiny): failed",
        "first (tiny): completed",
        "b r (tiny): failed",
        "whole (tiny): completed",
        "by-default (tiny): completed",
    ]
    (shown,) = [line.strip() for line in told if "'b r'" in line]
    folder = next(pytester.path.parent.rglob("test_raises0")) / "kitchen.db"
    assert shown == f"kitchen show 'b r' --store {folder}"
    assert folder.is_file()


def test_it_is_told_from_workers_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        WORKFLOW
        + """
@pytest.mark.parametrize("n", range(4))
def test_asserts(run_workflow, n):
    run_workflow(tiny, run_id=f"r{n}")
    assert n % 2

class TestOfAClass:
    def test_one(self, run_workflow):
        assert run_workflow(tiny, run_id="same").status == "completed"

    def test_other(self, run_workflow):
        assert run_workflow(tiny, run_id="same").status == "completed"
"""
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-n", "2"
    )
    result.assert_outcomes(passed=4, failed=2)
    told = "\n".join(sections(result))
    assert "r0 (tiny): completed" in told
    assert "r2 (tiny): completed" in told
    assert "r1" not in told


def test_async_tests_on_both_event_loops(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        WORKFLOW
        + """
@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.mark.anyio
class TestAsync:
    @pytest.mark.parametrize("n", [1, 2])
    async def test_it(self, run_workflow_async, kitchen_store, n):
        run = await run_workflow_async(tiny, {"n": n})
        assert run.config.n == n
        assert len(kitchen_store.runs()) == 1
"""
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "error"
    )
    result.assert_outcomes(passed=4)

"""What pytest shows of a run by `run_workflow`: why it failed, and what it waits for."""

from __future__ import annotations

import re

import pytest

FAILING = """
import kitchen
import pytest

def deep(what):
    raise ValueError(what)

def sync_body(ctx):
    deep("as told")

async def async_body(ctx):
    deep("as told")

def puts(ctx):
    ctx.state["as told"] = object()

def stage(body):
    @kitchen.workflow
    def of_a_stage(wf):
        wf.stage("body", body)
    return of_a_stage

@kitchen.workflow
def of_a_factory(wf):
    wf.resource("model", sync_body)

@kitchen.workflow
def of_a_predicate(wf):
    with wf.conditional(sync_body):
        wf.stage("body", puts)

WORKFLOWS = [stage(sync_body), stage(async_body), stage(puts), of_a_factory, of_a_predicate]

@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", range(5))
def test_fails(run_workflow, number, backend):
    run_workflow(WORKFLOWS[number], backend=backend)  # called here

@pytest.mark.anyio
@pytest.mark.parametrize("number", range(5))
async def test_fails_async(run_workflow_async, number):
    await run_workflow_async(WORKFLOWS[number])  # called here
"""


def test_the_report_of_a_failure_shows_the_code_of_the_user(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    result.assert_outcomes(failed=20)
    reports = re.split(r"^_+ test_fails.* _+$", result.stdout.str(), flags=re.MULTILINE)[1:]
    assert len(reports) == 20
    for report in reports:
        assert re.search(r"^> .*(as told|deep)", report, re.MULTILINE)
        assert re.search(r"^> .*# called here", report, re.MULTILINE)
        assert "RunError: run '" in report
        assert not re.search(r"\S*/(kitchen|anyio|asyncio|trio)/\S*\.py:\d+", report)


WAITING = """
import kitchen
import pytest
from kitchen.machine.events import RetryScheduled
from kitchen.testing import SimulatedCrash
from kitchen.testing.running import RunWorkflow

class Impatient:
    def on_facts(self, run_id, facts, state):
        if any(isinstance(fact.event, RetryScheduled) for fact in facts):
            raise SimulatedCrash

    def on_progress(self, run_id, address, done, total): ...

def download(ctx):
    raise ConnectionError("away")

@kitchen.workflow
def downloading(wf):
    wf.stage("download", download, retries=kitchen.Retry(2, backoff=1800, jitter=0, max_delay=1800))

def test_waits(kitchen_store, request, virtual_clock):
    running = RunWorkflow(kitchen_store, request.config)
    with pytest.raises(SimulatedCrash):
        running(downloading, observers=[Impatient()])
    with pytest.raises(kitchen.RunError):
        running(downloading, clock=virtual_clock)
"""


@pytest.mark.parametrize(
    ("options", "times"), [((), 1), (("-s",), 1), (("--capture=sys",), 1), (("-n", "1"), 0)]
)
def test_a_long_wait_in_real_time_is_told(
    pytester: pytest.Pytester, options: tuple[str, ...], times: int
) -> None:
    pytester.makepyfile(WAITING)
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options
    )
    result.assert_outcomes(passed=1)
    told = "kitchen: waits 1800 s before attempt 2 of download: "
    assert result.stderr.str().count(told) == times

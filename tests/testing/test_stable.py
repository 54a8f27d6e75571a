"""Goldens that are kept in this repository: the same on any machine, and any Python that we run on.

Rules: what they tell was written once, by Python 3.11, and compared on the others. Nobody updates
them without a reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.testing import Golden, RunWorkflow
from tests.crash import kitchens, side_by_side
from tests.testing.test_golden import beside

HISTORIES = Path(__file__).parents[1] / "histories"
ALL = [kitchens.plain, kitchens.items, beside, *side_by_side.ALL[:3]]


@pytest.mark.parametrize("name", ["train", "consume", "turned", "risky"])
@pytest.mark.parametrize("level", ["events", "state"])
def test_a_recorded_run_is_told_the_same(name: str, level: Any, golden: Golden) -> None:
    path = HISTORIES / f"{name}.sqlite"
    with opened(path, create=False, read_only=True) as store:
        runs = [info.run for info in store.runs()]
    told = kitchen.history(runs[0], store=path)
    assert told == golden(level=level, life=True)


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_is_told_the_same(
    workflow: Any, backend: Any, run_workflow: RunWorkflow, golden: Golden
) -> None:
    assert run_workflow(workflow, seed=7, run_id="r", backend=backend) == golden

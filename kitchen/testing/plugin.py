"""The pytest plugin: fixtures and hooks, each a few lines that lead to the module that does it.

Rules:

1. Where nothing of it is used it costs nothing: this module imports pytest and nothing else that is
   not there anyway, and every fixture imports what it needs when it is asked for.
2. `store` and what needs it are imported by fixtures alone: by then a user's own module of that
   name has been imported, and is not replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from kitchen.ports.event_store import EventStore
    from kitchen.testing.clock.clock import VirtualClock
    from kitchen.testing.golden import Golden
    from kitchen.testing.histories import RecordedRun
    from kitchen.testing.matrix.fixture import CrashMatrix
    from kitchen.testing.running import RunWorkflow, RunWorkflowAsync
    from kitchen.testing.stages import StageContexts

MARK = "kitchen_histories"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(*patterns, workflow=None): the test is run for each run in the stores that fit; "
        "use it as @kitchen.testing.kitchen_histories(…)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each recorded run, where a test asks for them."""
    if next(metafunc.definition.iter_markers(MARK), None) is not None:
        from kitchen.testing.histories import parametrize

        parametrize(metafunc)


@pytest.fixture
def kitchen_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[EventStore]:
    """A store of its own for each test, `kitchen.db` in its `tmp_path`, open; and the one that
    kitchen uses in the test where none is named."""
    from kitchen.testing.running import store_of

    path = tmp_path / "kitchen.db"
    monkeypatch.setenv("KITCHEN_STORE", str(path))
    with store_of(request, path) as store:
        yield store


@pytest.fixture
def run_workflow(kitchen_store: EventStore, request: pytest.FixtureRequest) -> RunWorkflow:
    """Runs a workflow in `kitchen_store`, as `kitchen.run` does: `run_workflow(workflow, config)`."""
    from kitchen.testing.running import RunWorkflow

    return RunWorkflow(kitchen_store, request.config)


@pytest.fixture
def run_workflow_async(kitchen_store: EventStore) -> RunWorkflowAsync:
    """The same, to be awaited, for tests that run in an event loop."""
    from kitchen.testing.running import RunWorkflowAsync

    return RunWorkflowAsync(kitchen_store)


@pytest.fixture
def stage_context() -> StageContexts:
    """Makes a `ctx`, to call a stage as a function: `ctx = stage_context(config=…, state=…)`."""
    from kitchen.testing.stages import StageContexts

    return StageContexts()


@pytest.fixture
def crash_matrix(request: pytest.FixtureRequest) -> CrashMatrix:
    """Runs a workflow, kills it at every point, resumes it, and compares:
    `crash_matrix(workflow, config)`."""
    from kitchen.testing.matrix.fixture import CrashMatrix

    return CrashMatrix(request.config)


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that skips what a run would wait: `run_workflow(workflow, clock=virtual_clock)`."""
    from kitchen.testing.clock.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def recorded_run(request: pytest.FixtureRequest) -> RecordedRun:
    """A run in a store that was kept, of a test marked `@kitchen_histories(…)`."""
    from kitchen.testing.histories import recorded

    return recorded(request)


if find_spec("syrupy") is not None:

    @pytest.fixture
    def golden(request: pytest.FixtureRequest, tmp_path: Path, snapshot: Any) -> Iterator[Golden]:
        """The trace that a run is to have, kept beside the test: `assert run == golden`."""
        from kitchen.testing.golden import golden_of

        yield from golden_of(request, tmp_path, snapshot)

else:

    @pytest.fixture
    def golden(request: pytest.FixtureRequest) -> Golden:  # noqa: ARG001
        """The trace that a run is to have; it needs syrupy."""
        from kitchen.errors import KitchenError

        raise KitchenError(
            "the fixture `golden` needs syrupy", hint="pip install 'crucible-kitchen[test]'"
        )

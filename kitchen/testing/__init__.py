"""For tests of workflows: what the fixtures of the pytest plugin give, fakes, and a virtual clock.

Rules: everything is imported when it is first asked for, as pytest imports this package whether
anybody uses it or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock
    from kitchen.testing.fakes.event_store import FakeEventStore
    from kitchen.testing.fakes.faults import FakeFailure, Faults, SimulatedCrash, faulty
    from kitchen.testing.fakes.observer import FakeObserver
    from kitchen.testing.fakes.text import FakeTextCorpus
    from kitchen.testing.fakes.training import FakeTrainingSession
    from kitchen.testing.golden import Golden
    from kitchen.testing.histories import RecordedRun, kitchen_histories
    from kitchen.testing.matrix.fixture import CrashMatrix
    from kitchen.testing.matrix.matrix import crash_matrix
    from kitchen.testing.matrix.report import CrashMatrixFailed, CrashReport
    from kitchen.testing.running import RunWorkflow, RunWorkflowAsync
    from kitchen.testing.stages import StageContext, StageContexts

__all__ = [
    "CrashMatrix",
    "CrashMatrixFailed",
    "CrashReport",
    "FakeEventStore",
    "FakeFailure",
    "FakeObserver",
    "FakeTextCorpus",
    "FakeTrainingSession",
    "Faults",
    "Golden",
    "RecordedRun",
    "RunWorkflow",
    "RunWorkflowAsync",
    "SimulatedCrash",
    "StageContext",
    "StageContexts",
    "VirtualClock",
    "crash_matrix",
    "faulty",
    "kitchen_histories",
]

_WHERE = {
    "CrashMatrix": "matrix.fixture",
    "CrashMatrixFailed": "matrix.report",
    "CrashReport": "matrix.report",
    "FakeEventStore": "fakes.event_store",
    "FakeFailure": "fakes.faults",
    "FakeObserver": "fakes.observer",
    "FakeTextCorpus": "fakes.text",
    "FakeTrainingSession": "fakes.training",
    "Faults": "fakes.faults",
    "Golden": "golden",
    "RecordedRun": "histories",
    "RunWorkflow": "running",
    "RunWorkflowAsync": "running",
    "SimulatedCrash": "fakes.faults",
    "StageContext": "stages",
    "StageContexts": "stages",
    "VirtualClock": "clock.clock",
    "crash_matrix": "matrix.matrix",
    "faulty": "fakes.faults",
    "kitchen_histories": "histories",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name in _WHERE:
        from importlib import import_module

        value = getattr(import_module(f"kitchen.testing.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'kitchen.testing' has no attribute {name!r}")

"""Crucible Kitchen: durable training workflows. kill -9 at any moment, resume bit for bit.

The public names, by floor:

- what to run: `workflow`, `WorkflowBuilder`, `Workflow`, `Stage`, `Resource`, `Retry`,
  `Secret`
- what user code is handed: `Context`, `Failure`
- make it happen: `run`, `resume`, `run_async`, `resume_async`, `cancel`, `Run`
- go another way: `plan_resume`, `ResumePlan`, `fork`, `check_runs`
- what happened: `history`, `History`, `replay`, `replay_async`, `Replay`, `Divergence`, `diff`,
  `Diff`
- what is kept: `collect_runs`, `export_run`, `import_run`
- what can go wrong: everything in `kitchen.errors`, each by its name here too
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kitchen import errors
    from kitchen.api.keeping import collect_runs, export_run, import_run
    from kitchen.api.reading import diff, history, replay, replay_async
    from kitchen.api.running import cancel, resume, resume_async, run, run_async
    from kitchen.api.turning import check_runs, fork, plan_resume
    from kitchen.ended import Run
    from kitchen.errors import (
        ArgumentError,
        BlobLost,
        ConfigError,
        CorruptStore,
        CorruptValue,
        EffectUndecided,
        Fatal,
        ForeignStore,
        FrozenValue,
        HistoryError,
        IllegalEvent,
        IllegalOutcome,
        ItemsError,
        KitchenError,
        NotResumable,
        NotResumableWarning,
        ResourceError,
        RunCancelled,
        RunError,
        RunExists,
        RunHeld,
        RunInterrupted,
        RunInUse,
        RunLost,
        RunMismatch,
        StageRefused,
        StageTimeout,
        StaleContext,
        StateError,
        StoreError,
        UnencodableValue,
        UnknownAdapter,
        UnknownKey,
        UnknownResource,
        UnknownRun,
        UnknownWorkflow,
        WorkerLost,
        WorkflowChanged,
        WorkflowError,
    )
    from kitchen.history.diff import Diff
    from kitchen.history.history import History
    from kitchen.history.replay import Divergence, Replay
    from kitchen.machine.parts import Failure
    from kitchen.runner.context import Context
    from kitchen.runner.planning import ResumePlan
    from kitchen.runner.secret import Secret
    from kitchen.workflow.builder import WorkflowBuilder
    from kitchen.workflow.decorator import workflow
    from kitchen.workflow.definition import Workflow
    from kitchen.workflow.retry import Retry
    from kitchen.workflow.stage import Resource, Stage

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BlobLost",
    "ConfigError",
    "Context",
    "CorruptStore",
    "CorruptValue",
    "Diff",
    "Divergence",
    "EffectUndecided",
    "Failure",
    "Fatal",
    "ForeignStore",
    "FrozenValue",
    "History",
    "HistoryError",
    "IllegalEvent",
    "IllegalOutcome",
    "ItemsError",
    "KitchenError",
    "NotResumable",
    "NotResumableWarning",
    "Replay",
    "Resource",
    "ResourceError",
    "ResumePlan",
    "Retry",
    "Run",
    "RunCancelled",
    "RunError",
    "RunExists",
    "RunHeld",
    "RunInUse",
    "RunInterrupted",
    "RunLost",
    "RunMismatch",
    "Secret",
    "Stage",
    "StageRefused",
    "StageTimeout",
    "StaleContext",
    "StateError",
    "StoreError",
    "UnencodableValue",
    "UnknownAdapter",
    "UnknownKey",
    "UnknownResource",
    "UnknownRun",
    "UnknownWorkflow",
    "WorkerLost",
    "Workflow",
    "WorkflowBuilder",
    "WorkflowChanged",
    "WorkflowError",
    "cancel",
    "check_runs",
    "collect_runs",
    "diff",
    "errors",
    "export_run",
    "fork",
    "history",
    "import_run",
    "plan_resume",
    "replay",
    "replay_async",
    "resume",
    "resume_async",
    "run",
    "run_async",
    "workflow",
]

_WHERE = {
    "Context": "kitchen.runner.context",
    "Diff": "kitchen.history.diff",
    "Divergence": "kitchen.history.replay",
    "Failure": "kitchen.machine.parts",
    "History": "kitchen.history.history",
    "Replay": "kitchen.history.replay",
    "Resource": "kitchen.workflow.stage",
    "ResumePlan": "kitchen.runner.planning",
    "Retry": "kitchen.workflow.retry",
    "Run": "kitchen.ended",
    "Secret": "kitchen.runner.secret",
    "Stage": "kitchen.workflow.stage",
    "Workflow": "kitchen.workflow.definition",
    "WorkflowBuilder": "kitchen.workflow.builder",
    "cancel": "kitchen.api.running",
    "check_runs": "kitchen.api.turning",
    "collect_runs": "kitchen.api.keeping",
    "diff": "kitchen.api.reading",
    "export_run": "kitchen.api.keeping",
    "fork": "kitchen.api.turning",
    "history": "kitchen.api.reading",
    "import_run": "kitchen.api.keeping",
    "plan_resume": "kitchen.api.turning",
    "replay": "kitchen.api.reading",
    "replay_async": "kitchen.api.reading",
    "resume": "kitchen.api.running",
    "resume_async": "kitchen.api.running",
    "run": "kitchen.api.running",
    "run_async": "kitchen.api.running",
    "workflow": "kitchen.workflow.decorator",
}


class _Kitchen(ModuleType):
    """The package itself: its names are imported when they are first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'kitchen' has no attribute {name!r}")
        errors = import_module("kitchen.errors")
        if name == "errors":
            return errors
        value = getattr(import_module(_WHERE[name]) if name in _WHERE else errors, name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a package sets it here by its name, and two are called as functions of ours are.
        if not (name in __all__ and name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Kitchen

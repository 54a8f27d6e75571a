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

from typing import TYPE_CHECKING, Any

# The package `history` is imported before the function of that name is defined: importing a
# package for the first time binds its name here. (`workflow` below does that by itself.)
from kitchen import errors
from kitchen import history as _history_package  # noqa: F401  # pyright: ignore[reportUnusedImport]
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
    UnknownKey,
    UnknownResource,
    UnknownRun,
    UnknownWorkflow,
    WorkerLost,
    WorkflowChanged,
    WorkflowError,
)
from kitchen.runner.secret import Secret
from kitchen.workflow.builder import WorkflowBuilder
from kitchen.workflow.decorator import workflow
from kitchen.workflow.definition import Workflow
from kitchen.workflow.retry import Retry
from kitchen.workflow.stage import Resource, Stage

if TYPE_CHECKING:
    from kitchen.adapters.event_store import StoreLike
    from kitchen.api.keeping import collect_runs, export_run, import_run
    from kitchen.api.reading import diff, replay, replay_async
    from kitchen.api.running import cancel, resume, resume_async, run, run_async
    from kitchen.api.turning import check_runs, fork, plan_resume
    from kitchen.ended import Run
    from kitchen.history.diff import Diff
    from kitchen.history.history import History
    from kitchen.history.replay import Divergence, Replay
    from kitchen.machine.parts import Failure
    from kitchen.runner.context import Context
    from kitchen.runner.planning import ResumePlan

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

_LAZY = {
    "Context": "kitchen.runner.context",
    "Diff": "kitchen.history.diff",
    "Divergence": "kitchen.history.replay",
    "Failure": "kitchen.machine.parts",
    "History": "kitchen.history.history",
    "Replay": "kitchen.history.replay",
    "ResumePlan": "kitchen.runner.planning",
    "Run": "kitchen.ended",
    "cancel": "kitchen.api.running",
    "check_runs": "kitchen.api.turning",
    "collect_runs": "kitchen.api.keeping",
    "diff": "kitchen.api.reading",
    "export_run": "kitchen.api.keeping",
    "fork": "kitchen.api.turning",
    "import_run": "kitchen.api.keeping",
    "plan_resume": "kitchen.api.turning",
    "replay": "kitchen.api.reading",
    "replay_async": "kitchen.api.reading",
    "resume": "kitchen.api.running",
    "resume_async": "kitchen.api.running",
    "run": "kitchen.api.running",
    "run_async": "kitchen.api.running",
}


def history(run_id: str, *, store: StoreLike = None) -> History:
    """What a run's log says, without any code of the user's.

    Raises `UnknownRun`, `StoreError`.
    """
    from kitchen.api.reading import open_history

    return open_history(run_id, store=store)


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for."""
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'kitchen' has no attribute {name!r}")

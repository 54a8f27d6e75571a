"""What may be the body of a stage.

Rules:

1. A body is a function of ctx (sync, async, partial, bound method, callable object), a
   `Stage` class, which is instantiated here and only here, or a `Stage` instance.
2. Any other class is refused: calling it would make an object and do nothing.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

from kitchen.workflow import check, failing
from kitchen.workflow.definition import Binding, Workflow
from kitchen.workflow.stage import Stage
from kitchen.workflow.where import Site, fault

if TYPE_CHECKING:
    from typing import Any


def stage_body(value: object, stage: str, site: Site) -> Binding:
    """The body of a stage, ready to be run. Raises `WorkflowError`."""
    if isinstance(value, Workflow):
        named = cast("Workflow[Any, Any]", value).name
        raise fault(
            site,
            f"the body of the stage {stage!r} is the workflow {named!r}",
            f"put it here with all its stages: wf.include({named}, name={stage!r})",
        )
    if isinstance(value, type):
        return _instance(cast("type[object]", value), stage, site)
    if isinstance(value, Stage):
        return _checked(value, stage, site)
    return check.body(value, stage, site)


def _instance(kind: type[object], stage: str, site: Site) -> Stage:
    named = kind.__name__
    if not issubclass(kind, Stage):
        raise fault(
            site,
            f"the body of the stage {stage!r} is {named}, a class that is no Stage",
            f"class {named}(kitchen.Stage): def execute(self, ctx): ...",
        )
    if inspect.isabstract(kind):
        raise fault(
            site,
            f"the stage class {named} has no execute of its own",
            f"class {named}(Stage): def execute(self, ctx): ...",
        )
    if not check.accepts(kind, 0):
        raise fault(
            site,
            f"the stage class {named} needs arguments: {inspect.signature(kind)}",
            f"pass an instance: wf.stage({stage!r}, {named}(...))",
        )
    try:
        made = kind()
    except Exception as error:
        raise fault(
            site,
            f"the stage class {named} could not be instantiated: {type(error).__name__}: {error}",
            f"pass an instance that you made yourself: wf.stage({stage!r}, {named}(...))",
        ) from error
    return _checked(made, stage, site)


def _checked(made: Stage, stage: str, site: Site) -> Stage:
    check.body(made.execute, stage, site)
    failing.hooks(made, stage, site)
    return made

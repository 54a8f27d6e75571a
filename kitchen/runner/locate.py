"""Finding a workflow's code, from `module:name` or from what a log recorded.

Rules: the current folder is importable, as under `python -m`. `file.py:name` is taken too. What
is imported is named by the person at the terminal, or by the locator of a run that they chose
to resume; reading commands never come here.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from kitchen.errors import NotResumable, UnknownWorkflow
from kitchen.workflow.definition import Locator, Workflow


def workflow_at(target: str) -> Workflow[Any, Any]:
    """The workflow that `module:name`, `package.module:name` or `file.py:name` leads to.

    Raises `UnknownWorkflow`; what the module itself raises is its cause.
    """
    module_name, colon, name = target.rpartition(":") if ":" in target else (target, "", "")
    if not module_name:
        raise UnknownWorkflow(f"{target!r} names no module", hint="write module:workflow")
    module = _module(module_name)
    workflows: dict[str, Workflow[Any, Any]] = {
        key: value for key, value in vars(module).items() if isinstance(value, Workflow)
    }
    if not colon and len(workflows) == 1:
        return next(iter(workflows.values()))
    found: Any = module
    for part in name.split(".") if name else ():
        found = getattr(found, part, None)
    if isinstance(found, Workflow):
        return _named(found, module, name)  # pyright: ignore[reportUnknownArgumentType]
    what = (
        f"is a {type(found).__name__}, not a workflow"
        if name and found is not None
        else ("is not there" if name else "is not named")
    )
    near = get_close_matches(name, workflows, n=1)
    there = (
        f"did you mean {near[0]!r}?"
        if near
        else (f"workflows in {module_name}: {', '.join(workflows) or 'none'}")
    )
    raise UnknownWorkflow(f"{target}: the workflow {name!r} {what}", hint=there)


def _named(workflow: Workflow[Any, Any], module: ModuleType, name: str) -> Workflow[Any, Any]:
    """The workflow, locatable by the name that led to it: a function that made it has none."""
    if "<locals>" not in workflow.locator.qualname:
        return workflow
    locator = Locator(module.__name__, name, getattr(module, "__file__", None) or "")
    return dataclasses.replace(workflow, locator=locator)


def locator_of(workflow: Workflow[Any, Any]) -> Locator:
    """Where a later process finds a workflow; one that a function made, by its name in the module."""
    module = sys.modules.get(workflow.locator.module)
    if "<locals>" in workflow.locator.qualname and module is not None:
        for name, value in vars(module).items():
            if value is workflow:
                return _named(workflow, module, name).locator
    return workflow.locator


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        if name.endswith(".py"):
            return _from_file(Path(name))
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UnknownWorkflow(
                f"there is no module {name!r}",
                hint=f"looked in {Path.cwd()} and in the environment of {sys.executable}",
            ) from None
        raise _broken(name, error) from error
    except UnknownWorkflow:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> UnknownWorkflow:
    return UnknownWorkflow(
        f"importing {name} failed{_at(error)}: {type(error).__name__}: {error}",
        hint="run again with --debug for the traceback",
    )


def _at(error: Exception) -> str:
    """The last line of the user's own code that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).resolve().parents[1])
    own = [f for f in frames if not f.filename.startswith((ours, "<frozen"))]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownWorkflow(f"there is no file {path}")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def recorded_workflow(
    locator: Locator | None, run: str, verb: str = "resume"
) -> Workflow[Any, Any]:
    """The workflow of a run, by its recorded locator.

    Raises `NotResumable` with the command or the call that resumes the run by hand.
    """
    by_hand = f"kitchen {verb} {run} --workflow module:name"
    if locator is None:
        raise NotResumable(f"run {run!r} does not say where its workflow is", hint=by_hand)
    if locator.module == "__main__":
        name = Path(locator.file).name or "script.py"
        raise NotResumable(
            f"run {run!r} was started by the script {locator.file or '?'}, which cannot be imported "
            "by name",
            hint=f"kitchen {verb} {run} --workflow {name}:{locator.qualname}\n"
            f"  or, in the script: kitchen.{verb}({run!r}, {locator.qualname})",
        )
    names = (*locator.qualname.split("."), *locator.module.split("."))
    if names[-1] == "py" or not all(name.isidentifier() for name in names):
        # `file.py:name` is for a person to type: a log names modules, and never a file to run.
        raise NotResumable(
            f"the log of run {run!r} names {str(locator)[:200]!r} as its workflow, which is no module "
            "and name in it",
            hint=f"say where the workflow is: {by_hand}",
        )
    try:
        return workflow_at(str(locator))
    except UnknownWorkflow as error:
        raise NotResumable(
            f"the workflow of run {run!r} ({locator}) was not found: {error.message}",
            hint=f"run this where that module can be imported, or say {by_hand}",
        ) from error

"""What crosses to a fresh process, and what is told where something cannot.

Rules:

1. Everything is checked before anything runs. The workflow goes by its name in its module; config,
   adapters and decisions go as a pickle that our own child reads.
2. The child has the `sys.path`, the arguments, the folder and the environment that this process had
   before anything ran: what a run changes of them is gone with a process. A module that is not
   on the path here (pytest imports test modules by file) is had from its file there too, under its
   name here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from kitchen.errors import ArgumentError
from kitchen.runner.locate import locator_of
from kitchen.runner.workers.messages import Main, pack
from kitchen.testing.matrix.lives import Subject
from kitchen.workflow.definition import Workflow

_HINT = "; or leave fresh processes out: processes=0"


class Parcel(NamedTuple):
    """A subject on its way. `subject` is a pickle; the rest is what it takes to read it."""

    path: list[str]
    argv: list[str]
    files: dict[str, str]
    main: Main | None
    subject: bytes
    folder: str
    environ: dict[str, str]


class Named(NamedTuple):
    """A workflow, by where it is found. `fingerprint`: which it must be."""

    module: str
    qualname: str
    fingerprint: str


class Sent(NamedTuple):
    """A subject, as it is pickled."""

    workflow: Named
    config: Any
    adapters: Any
    seed: int
    backend: str
    virtual: bool
    decide: Any


def parcel_of(subject: Subject) -> Parcel:
    """What a fresh process needs to run the same. Raises `ArgumentError` where that cannot be."""
    named = _named(subject.workflow)
    _check_adapters(subject.adapters)
    for what, given in (("the config", subject.config), ("decide=", subject.decide)):
        _packed(
            what, given, "give what can be pickled: plain data, classes of a module's top level"
        )
    sent = Sent(
        named,
        subject.config,
        subject.adapters,
        subject.seed,
        subject.backend,
        subject.clock is not None,
        subject.decide,
    )
    text = _packed("what is run", sent, "define it at the top level of a module")
    folder, environ = os.getcwd(), dict(os.environ)
    return Parcel(list(sys.path), list(sys.argv), _by_file(), _main(), text, folder, environ)


def _named(workflow: Workflow[Any, Any]) -> Named:
    locator = locator_of(workflow)
    module = sys.modules.get(locator.module)
    found: Any = module
    for part in locator.qualname.split("."):
        found = getattr(found, part, None)
    same = isinstance(found, Workflow) and dict(found.bindings) == dict(workflow.bindings)
    if not same or (locator.module == "__main__" and _main() is None):
        where = "at the top level of a module"
        if "<locals>" in locator.qualname:
            where = f"as a name of the module where its function is defined, {locator.module}"
        raise ArgumentError(
            f"a fresh process cannot find the workflow {workflow.name!r}: nothing of the name "
            f"{locator} leads to it",
            hint=f"have it {where}{_HINT}",
        )
    return Named(locator.module, locator.qualname, workflow.fingerprint)


def _check_adapters(adapters: Any) -> None:
    if callable(adapters):
        _packed("adapters=", adapters, "define the function at the top level of a module")
    elif isinstance(adapters, Mapping):
        for name, each in adapters.items():  # pyright: ignore[reportUnknownVariableType]
            _packed(
                f"the adapter {name!r}",
                each,
                "give a function that makes the adapters, from the top level of a module: "
                "adapters=make_adapters",
            )


def _packed(what: str, value: Any, hint: str) -> bytes:
    try:
        return pack(value)
    except Exception as error:  # pickling calls the user's code
        _refuse(what, error, hint)


def _refuse(what: str, error: Exception, hint: str) -> NoReturn:
    raise ArgumentError(
        f"{what} cannot be sent to a fresh process: {type(error).__name__}: {error}",
        hint=f"{hint}{_HINT}",
    ) from error


def _main() -> Main | None:
    """The script that was started, if there is a file of it."""
    main: Any = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if not file or not os.path.isfile(file):
        return None
    return Main(os.path.abspath(file), main.__package__)


def _by_file() -> dict[str, str]:
    """The modules that are here and that importing by name would not find, with their files."""
    folders = [Path(each or ".").resolve() for each in sys.path]
    found: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = _source(module)
        if file is None or name == "__main__" or "site-packages" in file.parts:
            continue
        relative = Path(*name.split("."))
        if file.name == "__init__.py":
            relative /= "__init__"
        if not any(folder / relative.with_suffix(".py") == file for folder in folders):
            found[name] = str(file)
    return found


def _source(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    return None if file.startswith(sys.base_prefix + os.sep) else Path(file).resolve()

"""In a fresh process: one life of a run, for a crash matrix that is elsewhere.

Rules:

1. It says nothing on its connection with the world but by the file of its notes, which it writes as
   it goes: what it has noted is there when it is killed.
2. Where it is to die it kills itself by SIGKILL: nothing is closed, flushed or unwound.
3. It ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pickle
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from kitchen.adapters.event_store import opened
from kitchen.errors import UnknownWorkflow
from kitchen.runner.workers.messages import import_main, unpack
from kitchen.testing.matrix.crossing import Named, Parcel, Sent
from kitchen.testing.matrix.lives import Subject, live, quiet
from kitchen.workflow.definition import Workflow

_PR_SET_PDEATHSIG = 1
CHANGED = "changed"


class Job(NamedTuple):
    """One life. `store` and `notes` are files."""

    parcel: Parcel
    store: str
    notes: str
    death: str
    probing: bool
    seeded: bool
    most: int


def main(given: str, parent: int) -> None:
    """Live as the job in this file says; the notes say how it came out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    job: Job = pickle.loads(Path(given).read_bytes())  # noqa: S301  (from our own parent)
    sys.meta_path.append(_ByFile(job.parcel.files))
    script = partial(import_main, job.parcel.main)
    with open(job.notes, "ab", buffering=0) as file:

        def tell(name: str, told: Any) -> None:
            if name != "raised":  # it is told in text
                file.write(pickle.dumps((name, told)))

        subject = _subject(unpack(job.parcel.subject, script), script, seeded=job.seeded)
        tell("begun", None)
        with opened(job.store) as store, quiet():
            told = live(
                subject,
                store,
                tell,
                death=job.death,
                probing=job.probing,
                dying=_die,
                most=job.most,
            )
        tell("ended", told)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _subject(sent: Sent, script: Any, *, seeded: bool) -> Subject:
    clock = None
    if sent.virtual:
        from kitchen.testing.clock.clock import VirtualClock

        clock = VirtualClock()
    return Subject(
        workflow=_workflow(sent.workflow, script),
        config=sent.config,
        adapters=sent.adapters,
        seed=sent.seed,
        backend=sent.backend,
        clock=clock,
        decide=sent.decide,
        seeded=seeded,
    )


def _workflow(named: Named, script: Any) -> Workflow[Any, Any]:
    module = script() if named.module == "__main__" else importlib.import_module(named.module)
    found: Any = module
    for part in named.qualname.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Workflow):
        raise UnknownWorkflow(f"{named.module}:{named.qualname} is no workflow in a fresh process")
    if found.fingerprint != named.fingerprint:
        raise UnknownWorkflow(
            f"{named.module}:{named.qualname} is another workflow in a fresh process: what its "
            "module does when it is imported differs"
        )
    return found  # pyright: ignore[reportUnknownVariableType]


class _ByFile(importlib.abc.MetaPathFinder):
    """Finds modules that are on no path by their files, and the packages that they are in."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /
    ) -> importlib.machinery.ModuleSpec | None:
        """As importing asks for it."""
        file = self._files.get(fullname)
        if file is not None:
            inside = [os.path.dirname(file)] if file.endswith("__init__.py") else None
            return importlib.util.spec_from_file_location(
                fullname, file, submodule_search_locations=inside
            )
        if any(name.startswith(f"{fullname}.") for name in self._files):
            return importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        return None

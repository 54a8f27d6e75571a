"""Lives in fresh processes: started, waited for, and read.

Rules:

1. Each life has a process of its own, a program like any other and no fork. They share a SQLite
   store in a temporary folder, and nothing else.
2. One at a time: what they do outside is the same outside.
3. One that does not come to an end within `PATIENCE` seconds is killed, with all that it started,
   and told.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kitchen.adapters.event_store import opened
from kitchen.errors import ArgumentError
from kitchen.testing.matrix.child import Job
from kitchen.testing.matrix.comparing import Outcome
from kitchen.testing.matrix.crossing import Parcel
from kitchen.testing.matrix.lives import DIED, has_ended
from kitchen.testing.matrix.points import Point, deaths
from kitchen.testing.matrix.watching import Note

PATIENCE = 300.0
_BOOT = """\
import pickle, sys
sys.path[:], sys.argv[:] = pickle.loads(bytes.fromhex(sys.stdin.read()))
from kitchen.testing.matrix.child import main
main({job!r}, {parent})
"""
_LONGEST = 2_000


class Process:
    """Runs lives of one subject in fresh processes, each run in a folder below `folder`."""

    def __init__(self, parcel: Parcel, folder: Path) -> None:
        self._parcel = parcel
        self._folder = folder
        self._count = 0
        self._open = ExitStack()

    def live(
        self,
        point: Point | None,
        *,
        probing: bool = False,
        seeded: bool = False,
        most: int = 0,
    ) -> Outcome:
        """A run that dies at the point and is taken up until it ends; whole without one.

        Raises `ArgumentError` where the workflow is not found there.
        """
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        lives: list[list[Note]] = []
        error = ""
        died = False
        for death in (*deaths(point), ""):
            files = str(folder / "run.db"), str(folder / "notes")
            job = Job(self._parcel, *files, death, probing, seeded, most)
            notes, error = self._life(job, folder)
            lives.append(notes)
            died = died or error == DIED
            if error != DIED:
                break
            error = ""
            if _has_ended(folder / "run.db"):
                break
        if not (folder / "run.db").exists():
            raise ArgumentError(f"a fresh process did nothing: {error}")
        store = self._open.enter_context(opened(folder / "run.db", create=False))
        return Outcome(point, store, lives, error, died)

    def close(self) -> None:
        """Close the stores of all outcomes."""
        self._open.close()

    def _life(self, job: Job, folder: Path) -> tuple[list[Note], str]:
        Path(job.notes).unlink(missing_ok=True)
        given = folder / "job"
        given.write_bytes(pickle.dumps(job))
        code, said = _started(given, self._parcel)
        notes = list(_read(Path(job.notes)))
        names = [name for name, _ in notes]
        if "begun" not in names:
            raise ArgumentError(
                f"the workflow could not be had in a fresh process:\n{said}",
                hint="what a fresh process imports must be there without this one: mend that, or "
                "leave fresh processes out: processes=0",
            )
        if "ended" in names:
            return notes, next(told for name, told in notes if name == "ended")
        if code == -signal.SIGKILL and job.death:
            return notes, DIED
        told = "was still at work" if code is None else f"ended with code {code}"
        return notes, f"a fresh process {told} after at most {PATIENCE:.0f} s\n{said}".rstrip()


def _has_ended(path: Path) -> bool:
    with opened(path, create=False) as store:
        return has_ended(store)


def _started(given: Path, parcel: Parcel) -> tuple[int | None, str]:
    """Have a process live; its exit code, None where it was killed for its time, and what it said."""
    boot = _BOOT.format(job=str(given), parent=os.getpid())
    flags = [f"-W{each}" for each in sys.warnoptions]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-P", *flags, "-c", boot],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            process_group=0,
            cwd=parcel.folder,
            env=parcel.environ,
        )
        code: int | None = None
        try:
            process.communicate(pickle.dumps((parcel.path, parcel.argv)).hex().encode(), PATIENCE)
            code = process.returncode
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return code, said.read().decode(errors="replace")[-_LONGEST:].strip()


def _read(notes: Path) -> Generator[Any]:
    if not notes.exists():
        return
    with notes.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)  # noqa: S301  (from our own child)
            except EOFError:
                return
            except pickle.UnpicklingError:  # killed in the middle of it
                return

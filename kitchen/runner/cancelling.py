"""Asking another process to end the run that it executes.

Rules: a request is a file beside the store, named for the run, with who asks in it. Whoever executes
the run looks for it twice a second. It stays until the run has ended: should the process die before,
whoever takes the run up finds it. Who owns a run by its lock needs to ask nobody.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from kitchen.log.journal import Journal
from kitchen.log.reader import recorded_ir
from kitchen.machine.chart import compile_workflow
from kitchen.machine.commands import Cancel
from kitchen.machine.decide import decide
from kitchen.ports.event_store import EventStore


def request_file(store: EventStore, run: str) -> Path | None:
    """Where a request lies; None where the store is in no file."""
    path = store.path
    if path is None:
        return None
    return Path(f"{path}.cancel-{blake2b(run.encode(), digest_size=8).hexdigest()}")


def ask(store: EventStore, run: str, who: str) -> Path | None:
    """Ask; the file that says so. Raises `OSError`."""
    file = request_file(store, run)
    if file is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileExistsError), os.fdopen(os.open(file, flags, 0o644), "w") as opened:
            opened.write(who)
    return file


def asked(store: EventStore, run: str) -> str | None:
    """Who asked, if anybody did."""
    file = request_file(store, run)
    if file is None:
        return None
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # there is none, or something else stands there
        return None
    with os.fdopen(fd, "rb") as opened:
        plain = stat.S_ISREG(os.fstat(fd).st_mode)
        who = opened.read(200).decode(errors="replace") if plain else ""
    return who or "somebody"


def end(store: EventStore, run: str, who: str) -> str:
    """End a run that no process executes; how it then stands. The caller holds the lock.

    Raises `CorruptStore`, `StoreError`.
    """
    journal = Journal(store, run, compile_workflow(recorded_ir(store, run)))
    journal.load()
    if journal.state.status not in ("completed", "cancelled"):
        places = journal.state.core.control.active
        begun = tuple(at for at, place in places.items() if place.open)
        decision = decide(journal.program, journal.state, Cancel(who, begun))
        journal.write(decision.facts, {}, decision.control)
    return journal.state.status


def forget(store: EventStore, run: str) -> None:
    """Take a request away: the run has ended."""
    file = request_file(store, run)
    if file is not None:
        with suppress(OSError):
            file.unlink(missing_ok=True)

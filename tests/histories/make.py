"""Makes the stored histories: `python tests/histories/make.py NAME ...`, or all that are missing.

Rules:

1. A history is written once, by the code of its day, and kept for ever: one that is there is not
   written again.
2. It is one small file, without a folder of blobs, and tells nothing of where it was made.
3. The versions of workflows that made them are in `versions/`, and stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kitchen
from kitchen.workflow.definition import Locator
from store import EventStore, open_store
from tests.histories.versions import ledger_1

HERE = Path(__file__).parent


def placed(workflow: Any, module: str) -> Any:
    """The workflow, found by its module alone."""
    where = Locator(f"tests.histories.versions.{module}", workflow.locator.qualname, "")
    return dataclasses.replace(workflow, locator=where)


LEDGER = placed(ledger_1.ledger, "ledger_1")
UNDONE = placed(ledger_1.undone, "ledger_1")


def dead(*where: str) -> Callable[[EventStore], None]:
    """A run that died there, again and again."""

    def make(store: EventStore) -> None:
        for place in where:
            with contextlib.suppress(ledger_1.Killed):
                adapters = {"die": (place,)}
                kitchen.run(
                    LEDGER, store=store, run_id="r", seed=7, adapters=adapters, if_exists="resume"
                )

    return make


def failed(workflow: Any, *paths: str) -> Callable[[EventStore], None]:
    """A run that failed there."""

    def make(store: EventStore) -> None:
        with contextlib.suppress(kitchen.RunError):
            kitchen.run(workflow, store=store, run_id="r", seed=7, adapters={"fail": paths})

    return make


def turned(store: EventStore) -> None:
    """Completed, sent back with edits and killed there; a fork of it, and one of that."""
    kitchen.run(LEDGER, {"rate": 1}, store=store, run_id="r", seed=7, adapters={})
    head = store.head("r")
    with contextlib.suppress(ledger_1.Killed):
        kitchen.resume(
            "r", LEDGER, store=store, at=head // 2, seed=8, config={"rate": 2},
            adapters={"die": ("lines/read[1]",)},
        )  # fmt: skip
    kitchen.fork("r", at=head // 3, state={"log": []}, new_run_id="f", store=store)
    with contextlib.suppress(ledger_1.Killed):
        kitchen.resume("f", LEDGER, store=store, adapters={"die": ("epochs/eval/judge[2]",)})
    kitchen.fork("f", at=None, new_run_id="ff", store=store)


def cancelled(store: EventStore) -> None:
    """Died, then cancelled."""
    dead("epochs/train[1]")(store)
    kitchen.cancel("r", store=store)


HISTORIES: dict[str, Callable[[EventStore], None]] = {
    "begin": dead("begin"),
    "train": dead("epochs/train[1]"),
    "risky": dead("epochs/careful/risky[1]"),
    "mend": dead("epochs/rescue/mend[0]"),
    "left": dead("epochs/sides/left[1]"),
    "far": dead("epochs/train[0]", "epochs/sides/right/far[1]"),
    "read": dead("lines/read[2]"),
    "consume": dead("epochs/eval/score[2]", "made/consume[1]"),
    "pay": dead("pay"),
    "report": dead("report"),
    "failed": failed(LEDGER, "report"),
    "branch": failed(LEDGER, "epochs/sides/left"),
    "undone": failed(UNDONE, "ship"),
    "completed": dead(""),
    "turned": turned,
    "cancelled": cancelled,
}


def write(name: str) -> None:
    """One history, as a single file."""
    target = HERE / f"{name}.sqlite"
    if target.exists():
        raise SystemExit(f"{target.name} is there; it is not written again")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "made.db")
        with open_store(file) as store:
            HISTORIES[name](store)
        with contextlib.closing(sqlite3.connect(file)) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raw.execute("PRAGMA journal_mode=DELETE")
            raw.execute("PRAGMA page_size=1024")
            raw.execute("VACUUM")
        if any(each.suffix == ".blobs" and any(each.iterdir()) for each in Path(folder).iterdir()):
            raise SystemExit(f"{name} has blobs: make its values smaller")
        shutil.copy(file, target)
    print(target.name, os.path.getsize(target))


if __name__ == "__main__":
    socket.gethostname = lambda: "somewhere"
    wanted = sys.argv[1:] or [n for n in HISTORIES if not (HERE / f"{n}.sqlite").exists()]
    for each in wanted:
        write(each)

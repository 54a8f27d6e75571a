"""What the tests of traces, trees and differences share: runs that are killed, or are not."""

from __future__ import annotations

from typing import Any

import kitchen
from kitchen.history.history import History
from store import MemoryStore
from tests.crash import kitchens, side_by_side
from tests.crash.test_crash_matrix import Killed, Mortal

ALL = kitchens.ALL + side_by_side.ALL


def whole(workflow: Any, config: Any = None, seed: int = 7) -> History:
    """The run that nobody kills."""
    store = MemoryStore()
    kitchen.run(workflow, config, store=store, run_id="r", seed=seed)
    return History(store, "r")


def killed(workflow: Any, *appends: int) -> History:
    """The run that dies after so many appends, again and again, and then comes to its end."""
    store = MemoryStore()
    for left in (*appends, 10**9):
        try:
            kitchen.run(
                workflow,
                store=Mortal(store, "after", left),
                run_id="r",
                seed=7,
                if_exists="resume",
            )
        except Killed:
            continue
        return History(store, "r")
    raise AssertionError("it never came to its end")

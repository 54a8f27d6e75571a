"""What is told while a test waits in real time for the next attempt of a stage.

Rules: it is told at once, past what pytest captures, as who waits has nothing else to look at; not
by workers of xdist, which have no terminal; and waits of some seconds are not worth a word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from kitchen.machine.events import RetryScheduled

if TYPE_CHECKING:
    import pytest

    from kitchen.machine.events import Address, Fact
    from kitchen.machine.state import State

_LONG = 10.0  # seconds


class LongWaits:
    """An observer of a run without a virtual clock: tells what it waits for."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:  # noqa: ARG002
        """Tell of each attempt that will be long in coming."""
        for fact in facts:
            if isinstance(fact.event, RetryScheduled) and fact.event.delay > _LONG:
                self._tell(
                    f"kitchen: waits {fact.event.delay:.0f} s before attempt {fact.attempt + 1} of "
                    f"{fact.path}: run_workflow(…, clock=virtual_clock) skips it"
                )

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """Nothing to tell."""

    def _tell(self, text: str) -> None:
        if os.environ.get("PYTEST_XDIST_WORKER"):
            return
        capturing: Any = self._config.pluginmanager.getplugin("capturemanager")
        with capturing.global_and_fixture_disabled() if capturing else nullcontext():
            if sys.__stderr__ is not None:
                print(f"\n{text}", file=sys.__stderr__, flush=True)

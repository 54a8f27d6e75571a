"""What is told while a test waits in real time for the next attempt of a stage.

Rules: it is told at once, past what pytest captures, as who waits has nothing else to look at; waits
of some seconds are not worth a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kitchen.machine.events import RetryScheduled
from kitchen.testing.terminal import terminal

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
        with terminal(self._config) as stream:
            if stream is not None:
                print(f"\n{text}", file=stream, flush=True)

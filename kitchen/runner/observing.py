"""Who watches a run while it is executed.

Rule: nothing that goes wrong there reaches the run. One that raises is told nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kitchen.machine.events import Address, Fact
from kitchen.ports.observer import RunObserver
from kitchen.runner.scope import Scope

_logger = logging.getLogger("kitchen.run")


class Observers:
    """The observers of one execution."""

    def __init__(self, scope: Scope, observers: Sequence[RunObserver]) -> None:
        self._scope = scope
        self._observers = list(observers)
        if observers:
            scope.on_progress = self._progress

    def facts(self, facts: Sequence[Fact]) -> None:
        """Tell what was appended."""
        if self._observers:
            journal = self._scope.journal
            self._tell(lambda who: who.on_facts(journal.run, facts, journal.state))

    def _progress(self, address: Address, done: float, total: float | None) -> None:
        self._tell(lambda who: who.on_progress(self._scope.run_id, address, done, total))

    def _tell(self, call: Callable[[RunObserver], None]) -> None:
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception:
                self._observers.remove(observer)
                _logger.exception(
                    "run %s: observer %r failed and is dropped", self._scope.run_id, observer
                )

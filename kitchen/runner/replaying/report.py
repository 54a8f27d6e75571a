"""What a replay has found so far.

Rules:

1. Differences are told in the order of the log, each with its place, both sides and what it is of.
2. What was found is of this process, so secrets that it knows are replaced in it.
"""

from __future__ import annotations

from kitchen.log.replayed import Divergence
from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Failure, spell
from kitchen.runner.replaying.values import Difference, shortened
from kitchen.runner.secret import redacted

RAISED = "raised"


class Report:
    """Differences and counts. `visits`: committed visits that were looked at; `executed`: bodies of
    stages that were called; `skipped`: how many were not, by reason."""

    def __init__(self, program: Program) -> None:
        self.divergences: list[Divergence] = []
        self.visits = 0
        self.executed = 0
        self.skipped: dict[str, int] = {}
        self._program = program
        self._changed: set[str] = set()

    def broken(self, found: Divergence) -> None:
        """Tell that the log itself is not right."""
        self.divergences.append(found)

    def skip(self, reason: str) -> None:
        """Count something that is not executed."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def differs(self, seq: int, at: Address, key: str, differs: Difference, note: str = "") -> None:
        """Tell a difference; one of a resource names the leaf in its key."""
        place, recorded, found = (redacted(text) for text in differs)
        if place and key.startswith("resource."):
            key = f"{key}: {place}"
        inside = f" at {place}" if place and not key.startswith("resource.") else ""
        where = spell(*at, self._program.loops.get(at.path)) or "the run"
        message = f"{where}: {key}{inside}: recorded {recorded}, found {found} (event {seq}){note}"
        self.divergences.append(Divergence(seq, *at, key, recorded, found, message))

    def raised(
        self, seq: int, at: Address, recorded: str, failure: Failure, note: str = ""
    ) -> None:
        """Tell that something raised where it had not."""
        told = shortened(" ".join(f"{failure.type}: {failure.message}".split()))
        self.differs(seq, at, RAISED, Difference("", recorded, told), note)

    def changed(self, seq: int, at: Address, recorded: str, found: str) -> None:
        """Tell, once, that a node is not what it was."""
        if at.path not in self._changed:
            self._changed.add(at.path)
            self.differs(seq, at, "node", Difference("", recorded, found))

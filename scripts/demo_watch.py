"""A run as its log tells it, followed by a process that has no part in it.

Rules:

1. Nothing is asked of the process that executes the run: its log is enough.
2. Times are those of the events, so whatever is told here can be read in the log again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import kitchen
from kitchen.machine.events import MetricRecorded, RunRewound, spell

if TYPE_CHECKING:
    from pathlib import Path

    from kitchen.history.history import Recorded

SECOND = 1_000_000_000


@dataclass
class Rewind:
    """What a crash cost: the updates from `back_to` to `reached`, to be done again."""

    back_to: int
    reached: int
    seconds: float

    @property
    def updates(self) -> int:
        """How many."""
        return self.reached - self.back_to


@dataclass
class Watch:
    """Where a run stands. `step` counts updates; `saved` is the step of the last checkpoint."""

    store: Path
    run: str
    step: int = 0
    saved: int = 0
    place: str = ""
    processes: int = 0
    is_working: bool = False
    """Whether the process that has the run now is done with starting or resuming it."""
    rewinds: list[Rewind] = field(default_factory=list[Rewind])
    _past: kitchen.History | None = None
    _seq: int = 0
    _at: int = 0
    _crashed_at: int = 0
    _working_since: int = 0

    @property
    def unsaved(self) -> int:
        """How many updates a crash would cost now."""
        return self.step - self.saved

    def look(self) -> None:
        """Read what was appended since the last look."""
        if self._past is None:
            try:
                self._past = kitchen.history(self.run, store=self.store)
            except (kitchen.StoreError, kitchen.UnknownRun):
                return  # its process is still starting
        for record in self._past.tail(self._seq):
            self._take(record, self._past)
            self._seq, self._at = record.seq, record.at

    def _take(self, record: Recorded, past: kitchen.History) -> None:
        if record.path:
            self.place = spell(record.path, record.visit, past.loops.get(record.path))
        match record.type, record.event:
            case "MetricRecorded", MetricRecorded(name="loss", step=int(step)):
                self.step = step
            case "RunStarted" | "RunResumed", _:
                self.processes += 1
                self.is_working, self._crashed_at = False, self._at
            case "RunRewound", RunRewound(to=kept):
                seconds = (self._crashed_at - self._working_since) / SECOND
                back_to = past.state_at(kept)["step"]
                self.rewinds.append(Rewind(back_to, self.step, seconds))
                self.step = self.saved = back_to
            case "StageStarted", _ if not self.is_working:
                self.is_working, self._working_since = True, record.at
            case "CheckpointSaved", _:
                self.saved, self._working_since = self.step, record.at
            case _:
                pass

"""Trials: one run, whole or killed at a point and taken up until it ends, here or elsewhere.

Rules:

1. Each trial has a store of its own, and `prepare` is called before it begins; not before a resume,
   which finds the world as the crash has left it. One that hangs is told, and not gone on with.
2. A trial of a fresh point has a fresh process for each life; any other is made in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kitchen.adapters.event_store import in_memory, opened
from kitchen.history.patterns import Patterns
from kitchen.testing.matrix.comparing import Difference, Noise, Outcome, difference
from kitchen.testing.matrix.fresh import Process
from kitchen.testing.matrix.lives import DIED, StillAtWork, Subject, has_ended, live, within
from kitchen.testing.matrix.points import Point, deaths
from kitchen.testing.matrix.watching import Note


@dataclass
class Trials:
    """Makes trials of one subject. `process`: where fresh processes are had, if anywhere.
    `most`, `patience`: how many appends a life may make, and how many seconds it may take in this
    process, once that is known."""

    subject: Subject
    patterns: Patterns
    prepare: Callable[[], object] | None = None
    process: Process | None = None
    noise: Noise = ()
    most: int = 0
    patience: float | None = None

    def run(
        self,
        point: Point | None = None,
        *,
        fresh: bool = False,
        probing: bool = False,
        seeded: bool = False,
    ) -> Outcome:
        """One trial. `probing`: with more notes, `seeded`: with the global generators seeded."""
        if self.prepare is not None:
            self.prepare()
        if fresh or (point is not None and point.fresh):
            assert self.process is not None
            return self.process.live(point, probing=probing, seeded=seeded, most=self.most)
        return self._here(point, probing=probing, seeded=seeded)

    def _here(self, point: Point | None, *, probing: bool, seeded: bool) -> Outcome:
        subject = _with(self.subject, seeded=seeded)
        with opened(in_memory()) as store:
            made = Outcome(point, store, [])
            for death in (*deaths(point), ""):
                notes: list[Note] = []

                def tell(name: str, told: Any, notes: list[Note] = notes) -> None:
                    notes.append((name, told))

                made.lives.append(notes)
                life = partial(
                    live, subject, store, tell, death=death, probing=probing, most=self.most
                )
                try:
                    made.error = within(self.patience, life)
                except StillAtWork:
                    made.error = (
                        f"it was still at work after {self.patience:.0f} s, and is left behind"
                    )
                    made.hung = True
                    break
                if made.error != DIED:
                    break
                made.error, made.died = "", True
                if has_ended(store):
                    break
        return made

    def difference(self, whole: Outcome, found: Outcome) -> Difference | None:
        """How they differ, but for what is left out."""
        return difference(whole, found, self.patterns, self.noise)


def _with(subject: Subject, *, seeded: bool) -> Subject:
    return replace(subject, seeded=seeded) if seeded else subject

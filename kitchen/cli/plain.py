"""Plain lines for a pipe or a file: what happens, and not too much of it.

Rules:

1. The start, a resumption, failures and what comes of them, and checkpoints are always told. Where the loops stand is told
   once in half a second at most, and more rarely the longer the run goes on.
2. A reader that goes away does not disturb the run: there are no more lines, that is all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import click

from kitchen.cli import render
from kitchen.cli.announcing import announcement
from kitchen.cli.exits import mute_stdout
from kitchen.cli.tracking import Tracker
from kitchen.machine import events as E
from kitchen.machine.events import Address, Fact
from kitchen.machine.state import State

LEAST_SECONDS, MOST_SECONDS = 0.5, 10.0
_METRICS = 6


class PlainLines:
    """A `RunObserver` that prints."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker = Tracker()
        self._clock = clock
        self._begun = self._told = clock()
        self._silent = False

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """Print what is worth a line."""
        self._tracker.on_facts(run_id, facts, state)
        moved = False
        for seq, fact in enumerate(facts, state.seq - len(facts) + 1):
            told = announcement(self._tracker, run_id, fact, facts, state)
            if told is not None:
                self.say(told)
            match fact.event:
                case E.CheckpointSaved() if fact.path:
                    self.say(self._line(f"checkpoint at seq {seq}"))
                case E.ItemTaken() | E.StageCompleted():
                    moved = True
                case _:
                    pass
        if moved and self._tracker.loops and self._due():
            self.say(self._line(""))

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """Keep it for the next line, or print one for a stage that takes long."""
        self._tracker.on_progress(run_id, address, done, total)
        if self._due():
            share = f"{done:g}/{total:g}" if total is not None else f"{done:g}"
            self.say(self._line(f"{address.path.rpartition('/')[2]} {share}"))

    def say(self, line: str) -> None:
        """Print a line, if there is somebody to read it."""
        self._told = self._clock()
        if self._silent:
            return
        try:
            click.echo(line)
        except OSError:
            self._silent = True
            mute_stdout()

    def _due(self) -> bool:
        now = self._clock()
        pause = min(MOST_SECONDS, max(LEAST_SECONDS, (now - self._begun) / 100))
        return now - self._told >= pause

    def _line(self, what: str) -> str:
        tracker = self._tracker
        loops = " ".join(loop.told for loop in tracker.loops)
        metrics = " ".join(
            f"{name}={render.number(value)}"
            for name, value in tracker.last_metrics(_METRICS).items()
        )
        clock = f"{self._clock() - self._begun:7.1f}s"
        return "  ".join(part for part in (clock, loops, what, metrics) if part)

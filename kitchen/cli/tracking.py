"""What a display knows of a run that goes on: where it stands, its progress, its last metrics.

Rules:

1. Being told is cheap: it happens between two stages. What is drawn is worked out when it is drawn.
2. Where the run stands is copied from the folded state, so rewinds and resumed loops need no
   care here, and the thread that draws never reads what the run changes.
3. A metric counts once its attempt is committed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import click

from kitchen.machine import events as E
from kitchen.machine.cells import no_blobs
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, Fact
from kitchen.machine.state import Control, State
from kitchen.ports.observer import RunObserver
from kitchen.workflow.ir import StageNode, from_json

_CODEC = Codec()


class Loop(NamedTuple):
    """A loop or a parallel being run: how much is done, of how much (None: nobody knows).

    `at`: what a line of text says, the number of the current item, or of the branches done.
    """

    address: Address
    done: int
    total: int | None
    at: int

    @property
    def name(self) -> str:
        """Its own name."""
        return self.address.path.rpartition("/")[2]

    @property
    def depth(self) -> int:
        """How many loops and parallels can be around it."""
        return self.address.path.count("/")

    @property
    def told(self) -> str:
        """`epochs 2/10`, or `batches 17`."""
        return f"{self.name} {self.at}" + ("" if self.total is None else f"/{self.total}")


class Waiting(NamedTuple):
    """A stage that waits for its next attempt; until when by the monotonic clock, if that is known."""

    address: Address
    attempt: str
    due: float | None


def loops_of(control: Control) -> tuple[Loop, ...]:
    """The loops and parallels being run, the outer before the inner."""
    found = [
        Loop(at, max(f.current, 0), f.total if f.total >= 0 else None, f.current + 1)
        for at, f in control.frames.items()
    ]
    found += [Loop(at, f.done, f.total, f.done) for at, f in control.forks.items()]
    found += [Loop(at, f.turn, None, f.turn + 1) for at, f in control.feeds.items()]
    return tuple(sorted(found, key=lambda loop: loop.depth))


class Tracker:
    """A `RunObserver` that keeps what a display shows."""

    def __init__(self) -> None:
        self.run_id = ""
        self.begun = time.monotonic()
        self.seq = 0
        self.loops: tuple[Loop, ...] = ()
        self.stages: tuple[Address, ...] = ()
        self.metrics: dict[str, Any] = {}
        self.progress: dict[Address, tuple[float, float | None]] = {}
        self.waiting: tuple[Waiting, ...] = ()
        self._program: Program | None = None
        self._due: dict[Address, float] = {}
        self._pending: dict[tuple[str, E.Visit, int], list[E.MetricRecorded]] = {}

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """Take note."""
        self.run_id = run_id
        self.seq = state.seq
        control = state.core.control
        self.loops = loops_of(control)
        if self._program is None and state.started is not None:
            self._program = compile_workflow(from_json(state.started.ir))
        self.stages = tuple(address for address, place in control.active.items() if place.open)
        for fact in facts:
            self._note(fact)
        waiting = [at for at, place in control.active.items() if place.waits]
        self.waiting = tuple(
            Waiting(at, self.attempt(at, state), self._due.get(at)) for at in waiting
        )

    def _note(self, fact: Fact) -> None:
        event = fact.event
        if isinstance(event, E.WorkflowChanged):
            self._program = compile_workflow(from_json(event.ir))
        elif isinstance(event, E.MetricRecorded):
            self._pending.setdefault((fact.path, fact.visit, fact.attempt), []).append(event)
        elif isinstance(event, E.StageCompleted):
            self.progress.pop(Address(fact.path, fact.visit), None)
            for metric in self._pending.pop((fact.path, fact.visit, fact.attempt), ()):
                # put last, so that the newest metrics stand at the end
                self.metrics.pop(metric.name, None)
                self.metrics[metric.name] = metric.value
        elif isinstance(event, E.RunRewound | E.StageFailed | E.StageInterrupted):
            self._pending.clear()
            self.progress.clear()
        elif isinstance(event, E.RetryScheduled) and not event.since:
            self._due[Address(fact.path, fact.visit)] = time.monotonic() + event.delay

    def attempt(self, address: Address, state: State) -> str:
        """`attempt 2 of 4`: which is next where some have failed, and how many there may be."""
        tried = state.tries.get(address)
        node = self._program.nodes.get(address.path) if self._program is not None else None
        retry = node.retry if isinstance(node, StageNode) else None
        told = f"attempt {(tried.failed if tried is not None else 0) + 1}"
        return f"{told} of {retry.retries + 1}" if retry is not None else told

    def on_progress(
        self,
        run_id: str,  # noqa: ARG002
        address: Address,
        done: float,
        total: float | None,
    ) -> None:
        """Take note; from any thread."""
        self.progress[address] = (done, total)

    def spelled(self, address: Address) -> str:
        """`epochs[2]/batches[17]/step`."""
        around = self._program.loops.get(address.path) if self._program is not None else None
        return E.spell(*address, around)

    def last_metrics(self, count: int) -> dict[str, Any]:
        """The values of the metrics recorded last."""
        names = list(self.metrics.copy().items())[-count:]
        return {name: _CODEC.decode(raw, no_blobs) for name, raw in names}


class Harmless:
    """An observer around one that may fail: where it does, it is told once and not asked again."""

    def __init__(self, inner: RunObserver) -> None:
        self._inner: RunObserver | None = inner
        self.seen = 0

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """Hand it on. `seen` is the seq that was told last."""
        self.seen = state.seq
        if self._inner is not None:
            try:
                self._inner.on_facts(run_id, facts, state)
            except Exception as error:
                self._give_up(error)

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """Hand it on."""
        if self._inner is not None:
            try:
                self._inner.on_progress(run_id, address, done, total)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._inner = None
        with suppress(OSError):
            told = f"{type(error).__name__}: {error}"
            click.echo(f"the display has failed, the run goes on: {told}", err=True)


class Silence:
    """The observer of `--quiet`."""

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """Say nothing."""

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """Say nothing."""

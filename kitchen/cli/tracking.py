"""What a display knows of a run that goes on: where it stands, its progress, its last metrics.

Rules:

1. Being told is cheap: it happens between two stages. What is drawn is worked out when it is drawn.
2. Where the run stands is copied from the folded state, so rewinds and resumed loops need no
   care here, and the thread that draws never reads what the run changes.
3. A metric counts once its attempt is committed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import click

from kitchen.machine import events as E
from kitchen.machine.cells import no_blobs
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, Fact
from kitchen.machine.state import Control, StageMemo, State
from kitchen.ports.observer import RunObserver
from kitchen.workflow.ir import from_json

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
        self._around: Mapping[str, tuple[str, ...]] = {}
        self._pending: dict[tuple[str, E.Visit, int], list[E.MetricRecorded]] = {}

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """Take note."""
        self.run_id = run_id
        self.seq = state.seq
        control = state.core.control
        self.loops = loops_of(control)
        if not self._around and state.started is not None:
            self._around = compile_workflow(from_json(state.started.ir)).loops
        self.stages = tuple(address for address, place in control.active.items() if place.open)
        for fact in facts:
            event = fact.event
            if isinstance(event, E.WorkflowChanged):
                self._around = compile_workflow(from_json(event.ir)).loops
            elif isinstance(event, E.MetricRecorded):
                key = (fact.path, fact.visit, fact.attempt)
                self._pending.setdefault(key, []).append(event)
            elif isinstance(event, E.StageCompleted):
                self.progress.pop(Address(fact.path, fact.visit), None)
                for metric in self._pending.pop((fact.path, fact.visit, fact.attempt), ()):
                    # put last, so that the newest metrics stand at the end
                    self.metrics.pop(metric.name, None)
                    self.metrics[metric.name] = metric.value
            elif isinstance(event, E.RunRewound | E.StageFailed | E.StageInterrupted):
                self._pending.clear()
                self.progress.clear()

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
        return E.spell(*address, self._around.get(address.path))

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


def announcement(
    tracker: Tracker, run_id: str, fact: Fact, facts: Sequence[Fact], state: State
) -> str | None:
    """What every display says of a fact; None where it says nothing, or something of its own."""
    match fact.event:
        case E.RunStarted() as event:
            return f"run {run_id} started: {event.workflow}, seed {event.seed}"
        case E.RunResumed():
            return resumed_line(run_id, facts, state) or ""
        case E.RewindDiverged() as event:
            where = tracker.spelled(Address(fact.path, fact.visit))
            return f"what runs again differs from what was recorded: {where}, {event.key}"
        case E.BranchFailed() as event:
            return f"{tracker.spelled(event.at)} failed: {_gist(event.failure)}; the others go on"
        case E.RunFailed() as event:
            left = [f for f in facts if isinstance(f.event, E.StageInterrupted)]
            if not left:
                return None
            where = tracker.spelled(Address(fact.path, fact.visit))
            others = ", ".join(tracker.spelled(Address(f.path, f.visit)) for f in left)
            return f"{where} failed: {_gist(event.failure)}; waiting for {others} to come back"
        case _:
            return None


def _gist(failure: E.Failure) -> str:
    return " ".join(f"{failure.type}: {failure.message}".split())[:200]


def resumed_line(run_id: str, facts: Sequence[Fact], state: State) -> str | None:
    """What resuming did, in one line; None where these facts do not begin a resumption."""
    resumed = next((fact.event for fact in facts if isinstance(fact.event, E.RunResumed)), None)
    if resumed is None:
        return None
    before = state.seq - len(facts)
    article = "an" if resumed.after[:1] in "aeiou" else "a"
    told = f"resuming {run_id} after {article} {resumed.after} at seq {before}: "
    rewound = next((fact.event for fact in facts if isinstance(fact.event, E.RunRewound)), None)
    if rewound is None:
        return told + "nothing was lost, going on from there"
    saved = [state.core.resources[n].saved for n in rewound.touched if n in state.core.resources]
    checkpoint = max((seq for seq in saved if seq is not None), default=None)
    since = f"the checkpoint at {checkpoint}" if checkpoint else "it was opened"
    again = sum(isinstance(known, StageMemo) for known in state.memo.values())
    names, was = ", ".join(rewound.touched), "were" if len(rewound.touched) > 1 else "was"
    stages = f"{again} stage{'' if again == 1 else 's'}"
    return (
        f"{told}rewound to seq {rewound.to} ({names} {was} touched since {since}), "
        f"{stages} {'runs' if again == 1 else 'run'} again"
    )

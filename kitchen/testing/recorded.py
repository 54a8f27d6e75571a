"""What a context has recorded so far, in a form that a test asserts on.

Rules:

1. It is what the stage's commit would write, were the stage to end now: mutations joined, objects
   that were changed in place put, and what a commit would refuse is refused.
2. To ask changes nothing: the stage may go on, and what is asked later tells more.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kitchen.machine import cells
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import Effect, LoopStopped, MetricRecorded
from kitchen.runner.attempt import Attempt

_NUMBERS = Codec()


class Metric(NamedTuple):
    """A number that was recorded."""

    name: str
    value: float
    step: int | None = None


@dataclass(frozen=True)
class Recorded:
    """What a stage has recorded, as `ctx.recorded` tells it.

    `state`: the keys that it has written, with their whole values as they now read; `deleted`: those
    that it has removed. `metrics`: the values by name, in order; `points`: the same with their steps.
    `touched`: the resources that it has got at; `peeked`: those that it has only peeked at.
    `progress`: what it has told of it, `(done, total)` each. `events`: the typed events, as the log
    would hold them, `StatePut` and its kin.
    """

    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    deleted: frozenset[str] = frozenset()
    metrics: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    points: tuple[Metric, ...] = ()
    touched: frozenset[str] = frozenset()
    peeked: frozenset[str] = frozenset()
    stopped_loop: bool = False
    progress: tuple[tuple[float, float | None], ...] = ()
    events: tuple[Effect, ...] = field(default=(), repr=False)


class OpenAttempt(Attempt):
    """An attempt that can be looked at before it ends."""

    def so_far(self, progress: Iterable[tuple[float, float | None]]) -> Recorded:
        """What would be recorded if it ended now. Raises what `finish` raises."""
        return self._twin()._told(tuple(progress))

    def _twin(self) -> OpenAttempt:
        twin = copy.copy(self)
        for name in ("_overlay", "_objects", "_lent", "blobs"):
            setattr(twin, name, dict(getattr(self, name)))
        twin._effects = {key: list(effects) for key, effects in self._effects.items()}
        twin.metrics = deque(self.metrics)
        return twin

    def _told(self, progress: tuple[tuple[float, float | None], ...]) -> Recorded:
        """Raises what `finish` raises. The attempt has then ended."""
        events = self.finish()
        written = dict.fromkeys(key for key, made in self._effects.items() if made)
        points = [_metric(event) for event in events if isinstance(event, MetricRecorded)]
        metrics: dict[str, list[float]] = {}
        for point in points:
            metrics.setdefault(point.name, []).append(point.value)
        return Recorded(
            state={key: self._value(key) for key in written if self._cell(key) is not None},
            deleted=frozenset(key for key in written if self._cell(key) is None),
            metrics=metrics,
            points=tuple(points),
            touched=frozenset(self.touched),
            peeked=frozenset(self.looked),
            stopped_loop=any(isinstance(event, LoopStopped) for event in events),
            progress=progress,
            events=events,
        )

    def _value(self, key: str) -> Any:
        cell = self._cell(key)
        assert cell is not None
        # A cell of its own: what is read is kept on it, and an object that the test changes would be.
        fresh = type(cell)(cell.base, cell.deltas)
        return cells.read(fresh, self._codec, self.fetch, key)


def _metric(event: MetricRecorded) -> Metric:
    return Metric(event.name, _NUMBERS.decode(event.value, no_blobs), event.step)

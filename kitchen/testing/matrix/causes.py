"""The causes that a crash matrix knows by name, and the case that they are to explain.

Rules: a name says in a few words what is wrong in the workflow. A case makes trials only when it is
asked, and each kind once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from kitchen.log.reader import fact_of
from kitchen.machine.events import Visit, spell
from kitchen.testing.matrix.comparing import Difference, Outcome
from kitchen.testing.matrix.points import Point
from kitchen.testing.matrix.trials import Trials
from kitchen.workflow.ir import ResourceNode, walk

RANDOM = "unseeded randomness"
GLOBAL = "a hidden global"
IMPORTED = "a hidden global, or what a module does when it is imported"
BODY = "a body that is not idempotent"
FORGETS = "a state_dict that forgets"
STATELESS = "a resource that changes and has no state"
DECLARED = "a resource that is declared stateful=False"
PEEKED = "a resource that is changed through peek()"
SHARED = "a load_state_dict that does not load in place"
SOURCE = "a loop source that differs on the second call"
TIME = "the time"
OUTSIDE = "something outside"
MEMORY = "an adapter that keeps something in memory"
FREE = "an async loop without pacing"
RESUME = "the resume"

PROVEN = 93
ENDS = frozenset({"StageCompleted", "StageFailed", "StageInterrupted"})

Holds = Mapping[str, str]


class Opened(NamedTuple):
    """A resource as the log knows it. `declared`: what `wf.resource` said of `stateful`; `since`:
    the seq of what it was loaded from in the first resume, or of its opening."""

    stateful: bool
    declared: bool | None
    since: int


@dataclass
class Case:
    """A difference to be explained. `elsewhere`: a whole run in a fresh process, if there is one."""

    trials: Trials
    whole: Outcome
    outcome: Outcome
    found: Difference
    elsewhere: Outcome | None

    @property
    def point(self) -> Point | None:
        """Where the run was killed; None where it was not."""
        return self.outcome.point

    @property
    def is_fresh(self) -> bool:
        """Whether it was seen in a fresh process."""
        return self.outcome is self.elsewhere if self.point is None else self.point.fresh

    @cached_property
    def probe(self) -> Outcome:
        """The same again, with more notes."""
        return self.trials.run(self.point, fresh=self.is_fresh, probing=True)

    def again(self, *, seeded: bool = False) -> Difference | None:
        """How two runs like these differ when both are made anew."""
        fresh = self.is_fresh and self.point is not None
        whole = self.trials.run(fresh=fresh, seeded=seeded)
        other = self.trials.run(self.point, fresh=self.is_fresh, seeded=seeded)
        return self.trials.difference(whole, other)

    def spelled(self, path: str, visit: Visit) -> str:
        """An address, as people say it."""
        return spell(path, visit, self.whole.history.loops.get(path))

    @cached_property
    def held(self) -> list[tuple[int, dict[str, dict[str, str]]]]:
        """What each open resource held in the probe's first life, by the seq it had come to."""
        return list(self.probe.notes("held", 0))

    def held_at(self, seq: int) -> dict[str, dict[str, str]]:
        """What each held when this was appended."""
        for at, holds in self.held:
            if at >= seq:
                return holds
        return {}

    @cached_property
    def opened(self) -> dict[str, Opened]:
        """The resources of the probe by name."""
        nodes = dict(walk(self.trials.subject.workflow.ir))
        found: dict[str, Opened] = {}
        for record in self.probe.store.read(self.probe.history.run_id):
            if record.type not in ("ResourceOpened", "ResourceRestored"):
                continue
            event: Any = fact_of(record).event
            if record.type == "ResourceOpened":
                node = nodes.get(record.path)
                declared = node.stateful if isinstance(node, ResourceNode) else None
                found[event.name] = Opened(event.stateful, declared, record.seq)
            elif event.name in found and event.saved is not None:
                found[event.name] = found[event.name]._replace(since=event.saved)
        return found

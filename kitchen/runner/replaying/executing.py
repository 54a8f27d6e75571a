"""Executing what a log holds: each thing where it was asked for, over the state as it was then.

Rules:

1. Before an event that counts is applied, what led to it is done again; its outcome is compared
   with what is recorded, and dropped. What follows goes by the record.
2. An attempt is executed under the number that it was committed under; compared is it where it was.
3. An effect that must not happen twice never happens here, whichever of the two versions of the
   workflow says so. Rollbacks are not called either.
4. What a `pacing="free"` producer saw is not known: it is executed only if it moves a resource on,
   and not compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Raw

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import feeds, lanes
from kitchen.machine.commands import Command
from kitchen.machine.events import Address, Fact
from kitchen.machine.layout import Role
from kitchen.runner import items
from kitchen.runner.outcome import Performed
from kitchen.runner.perform import Performer
from kitchen.runner.replaying.effects import Read, effects_apart, items_apart, values_apart
from kitchen.runner.replaying.plan import OWN, Key, Plan, key_of, start_of, wanted
from kitchen.runner.replaying.report import Report
from kitchen.runner.replaying.restored import Restored
from kitchen.runner.replaying.streams import Streams
from kitchen.runner.replaying.values import Difference
from kitchen.runner.scope import Scope
from kitchen.workflow import ir as IR
from kitchen.workflow.definition import limit_key, reducer_key

_ONCE, _FREE, _NODE = 'effect="once"', 'pacing="free"', "changed node"
_ROLLBACK = "rollback"


class _Done:
    """An attempt that was executed, or is not to be: its outcome, and what is recorded of it."""

    def __init__(self, performed: Performed | None) -> None:
        self.performed = performed
        self.recorded: list[tuple[int, Any]] = []


class Executing:
    """Executes what the plan says, event by event, and reports what differs."""

    def __init__(
        self,
        scope: Scope,
        performer: Performer,
        report: Report,
        plan: Plan,
        only: str | None,
        tolerance: float,
    ) -> None:
        self._scope = scope
        self._performer = performer
        self._report = report
        self._plan = plan
        self._only = only
        self._tolerance = tolerance
        self._running: dict[Key, _Done] = {}
        self._now = dict(IR.walk(scope.workflow.ir))
        self.resources = Restored(scope, performer, report, tolerance)
        self._streams = Streams(scope, performer, self.resources, report, tolerance)
        self._acts: dict[type[Any], Callable[[int, Fact], Any]] = {
            E.ConditionEvaluated: self._condition,
            E.LoopEntered: self._loop,
            E.ItemTaken: self._item,
            E.LoopExited: self._exit,
            E.ItemProduced: self._production,
            E.BranchesStarted: self._branches,
            E.BranchesJoined: self._join,
            E.ResourceOpened: self._opened,
            E.CheckpointSaved: self._saved,
        }

    async def before(self, seq: int, fact: Fact) -> None:
        """Do what led to an event, unless there is nothing to do, or it is not wanted."""
        kind = type(fact.event)
        if kind is E.StageRolledBack:
            self._report.skip(_ROLLBACK)
        elif kind in (E.StageFailed, E.StageInterrupted):
            self._running.pop(key_of(fact), None)
        if fact.attempt and isinstance(fact.event, (*OWN, E.LoopStopped)):
            await self._own(seq, fact)
            return
        act = self._acts.get(kind)
        if act is None:
            return
        if self._is_wanted(seq, fact):
            await act(seq, fact)
        elif kind in (E.ItemTaken, E.LoopExited):
            await self._streams.follow(seq, fact)
        elif kind in (E.ResourceOpened, E.CheckpointSaved):
            self.resources.stale = True

    async def after(self, seq: int, fact: Fact) -> None:
        """See to what an event ends, once it is applied."""
        kind, at = type(fact.event), Address(fact.path, fact.visit)
        state = self._scope.journal.state
        if kind in (E.LoopExited, E.BranchesJoined):
            self._scope.items.pop(at, None)
            if isinstance(self._scope.journal.program.nodes[fact.path], IR.AsyncLoopNode):
                self._performer.feeding.forget_notes(at)
        elif kind is E.FailureHandled:
            await self._streams.leave_all(seq, at)
        elif kind is E.CheckpointSaved and self._is_wanted(seq, fact):
            await self.resources.saved(seq, at, fact)
        elif kind in (E.RunRewound, E.RunForked, E.RunResumed):
            self.resources.stale = True
        if kind in (E.ResourcesClosed, E.FailureHandled, E.RunRewound):
            await self.resources.close_gone(seq, at)
        if state.core.control.feeds:
            self._performer.feeding.note(seq - 1)

    # --- stages ---

    async def _own(self, seq: int, fact: Fact) -> None:
        """An event of an attempt: the first executes it, the last compares it."""
        known = self._running.get(key_of(fact))
        if known is None:
            known = self._running[key_of(fact)] = _Done(await self._attempt(seq, fact))
        event: Any = fact.event
        if not isinstance(event, E.StageCompleted):
            if not isinstance(event, E.ResourceTouched):
                known.recorded.append((seq, event))
            return
        del self._running[key_of(fact)]
        if wanted(fact.path, self._only):
            self._report.visits += 1
            if known.performed is not None:
                self._compare(seq, fact, known.performed, known.recorded)
            elif self._is_once(fact.path):
                self._report.skip(_ONCE)

    async def _attempt(self, seq: int, fact: Fact) -> Performed | None:
        """Execute an attempt, if it is one that is; its outcome."""
        at = Address(fact.path, fact.visit)
        if start_of(self._scope.journal.state, fact) not in self._plan.commits:
            return None
        if not self._is_wanted(seq, fact) or self._is_once(fact.path) or not self._fits(seq, at):
            return None
        self._report.executed += 1
        return await self._do(seq, at, C.RunStage(at, fact.attempt))

    def _is_once(self, path: str) -> bool:
        nodes = (self._scope.journal.program.nodes.get(path), self._now.get(path))
        return any(isinstance(node, IR.StageNode) and node.effect == "once" for node in nodes)

    def _compare(self, seq: int, fact: Fact, done: Performed, recorded: list[Any]) -> None:
        at, outcome = Address(fact.path, fact.visit), done.outcome
        note = self.resources.told(outcome)
        if not isinstance(outcome, C.StageSucceeded):
            assert isinstance(outcome, C.StageRaised | C.CommandFailed)
            self._report.raised(seq, at, "completed", outcome.failure, note)
            return
        read = self._reading(done.blobs)
        effects = (*outcome.flushed, *outcome.effects)
        for apart in effects_apart(recorded, effects, read, self._tolerance):
            self._report.differs(apart.seq or seq, at, apart.key, apart.differs, note)
        self.resources.check_touches(seq, at, outcome.touched)

    # --- decisions ---

    async def _condition(self, seq: int, fact: Fact) -> None:
        at, state = Address(fact.path, fact.visit), self._scope.journal.state
        place = state.core.control.active.get(at)
        leaves = self._scope.journal.program.leaves
        turn = place is not None and leaves[place.leaf].role is Role.TURN
        if turn and state.core.control.feeds[feeds.loop_of(at)].stop:
            return  # a stage had asked for the loop to end, so nobody was asked
        event: Any = fact.event
        if not self._fits(seq, at):
            return
        done = await self._do(seq, at, C.EvaluateCondition(at))
        outcome = done.outcome
        if not isinstance(outcome, C.ConditionAnswered):
            self._failed(seq, at, f"answered {event.answer}", done)
        elif outcome.answer != event.answer and self._compares(at):
            differs = Difference("", str(event.answer), str(outcome.answer))
            self._report.differs(seq, at, "answer", differs, self.resources.told(outcome))

    async def _loop(self, seq: int, fact: Fact) -> None:
        at, event = Address(fact.path, fact.visit), fact.event
        assert isinstance(event, E.LoopEntered)
        if isinstance(event.items, E.OpenItems) or not self._fits(seq, at):
            return
        done = await self._do(seq, at, C.OpenLoop(at))
        if isinstance(done.outcome, C.CollectionOpened):
            self._compare_items(seq, at, event.items, done.outcome.items, done)
        else:
            self._failed(seq, at, f"{event.items.count} items", done)

    async def _branches(self, seq: int, fact: Fact) -> None:
        at, event = Address(fact.path, fact.visit), fact.event
        assert isinstance(event, E.BranchesStarted)
        node: Any = self._scope.journal.program.nodes[at.path]
        if (event.items is None and node.limit is None) or not self._fits(seq, at):
            return
        if node.limit is not None and limit_key(at.path) not in self._scope.workflow.bindings:
            self._report.changed(seq, at, "max_concurrency is a function", "it is none")
            return
        done = await self._do(seq, at, C.OpenBranches(at))
        outcome = done.outcome
        if not isinstance(outcome, C.BranchesOpened):
            self._failed(seq, at, f"{event.count} branches", done)
            return
        if node.limit is not None and outcome.limit != event.limit and self._compares(at):
            differs = Difference("", str(event.limit), str(outcome.limit))
            self._report.differs(seq, at, "limit", differs, self.resources.told(outcome))
        self._compare_items(seq, at, event.items, outcome.items, done)

    def _compare_items(
        self,
        seq: int,
        at: Address,
        was: E.Collection | None,
        now: E.Collection | None,
        done: Performed,
    ) -> None:
        scope = self._scope
        fetch, read = self._fetching(done.blobs), self._reading(done.blobs)
        differs = items_apart(was, now, fetch, read, self._tolerance)
        if was is None or was == now:
            return
        if differs is not None and self._compares(at):
            self._report.differs(seq, at, "items", differs, self.resources.told(done.outcome))
        # What follows is judged by the items that there were, where the log has them.
        recorded = items.recorded_items(was, scope.journal, scope.codec)
        if recorded is not None:
            scope.items[at] = recorded

    async def _join(self, seq: int, fact: Fact) -> None:
        at, event = Address(fact.path, fact.visit), fact.event
        assert isinstance(event, E.BranchesJoined)
        journal, bindings = self._scope.journal, self._scope.workflow.bindings
        keys = lanes.to_merge(journal.program, journal.state.core, at)
        if not keys or not self._fits(seq, at):
            return
        node: Any = journal.program.nodes[at.path]
        functions = [key for key in keys if node.merge[key].code is not None]
        missing = [key for key in functions if reducer_key(at.path, key) not in bindings]
        if missing:
            what = ", ".join(missing)
            self._report.changed(seq, at, f"functions that merge {what}", "there are none")
            return
        done = await self._do(seq, at, C.JoinBranches(at))
        outcome = done.outcome
        if not isinstance(outcome, C.BranchesMerged):
            self._failed(seq, at, f"merged {', '.join(keys)}", done)
            return
        effects = [E.StatePut(key, value) for key, value in outcome.merged.items()]
        recorded = [(seq, E.StatePut(key, value)) for key, value in event.merged.items()]
        if self._compares(at):
            read = self._reading(done.blobs)
            for apart in effects_apart(recorded, effects, read, self._tolerance):
                self._report.differs(seq, at, apart.key, apart.differs)

    # --- items that come one at a time ---

    async def _item(self, seq: int, fact: Fact) -> None:
        if self._streams.is_one(fact.path) and self._fits(seq, Address(fact.path, fact.visit[:-1])):
            await self._streams.take(seq, fact, compared=wanted(fact.path, self._only))

    async def _exit(self, seq: int, fact: Fact) -> None:
        if self._streams.is_one(fact.path) and self._fits(seq, Address(fact.path, fact.visit)):
            await self._streams.exit(seq, fact, compared=wanted(fact.path, self._only))

    async def _production(self, seq: int, fact: Fact) -> None:
        at, event = Address(fact.path, fact.visit), fact.event
        assert isinstance(event, E.ItemProduced)
        loop = feeds.loop_of(at)
        free = feeds.node_of(self._scope.journal.program, loop.path).pacing == "free"
        if free:
            self._report.skip(_FREE)
        if event.failure is not None or not self._fits(seq, at) or (free and not event.touched):
            return
        done = await self._do(seq, at, C.Produce(at))
        outcome = done.outcome
        self._scope.items.get(loop, {}).pop(at.visit[-1], None)  # the body sees what is recorded
        if free:
            self.resources.unsure |= {*event.touched, *getattr(outcome, "touched", ())}
        elif not isinstance(outcome, C.ItemMade):
            self._failed(seq, at, "an item", done)
        elif self._compares(at):
            read = self._reading(done.blobs)
            differs = values_apart(event.value, outcome.value, read, self._tolerance)
            if differs is not None:
                self._report.differs(seq, at, "item", differs, self.resources.told(outcome))

    # --- resources ---

    async def _opened(self, seq: int, fact: Fact) -> None:
        at, event = Address(fact.path, fact.visit), fact.event
        assert isinstance(event, E.ResourceOpened)
        if not self._fits(seq, at):
            return
        done = await self._do(seq, at, C.OpenResource(at, event.name))
        outcome = done.outcome
        if not isinstance(outcome, C.ResourceReady):
            self._failed(seq, at, f"opened {event.name}", done)
        elif outcome.stateful != event.stateful and self._compares(at):
            told = [
                "with a state" if has else "without" for has in (event.stateful, outcome.stateful)
            ]
            self._report.differs(seq, at, f"resource.{event.name}", Difference("", *told))

    async def _saved(self, seq: int, fact: Fact) -> None:
        event: Any = fact.event
        if event.resources:
            await self.resources.ready(seq)
            compared = wanted(fact.path, self._only)
            await self.resources.compare_saved(seq, fact, compared=compared)

    # --- what they share ---

    async def _do(self, seq: int, at: Address, command: Command) -> Performed:
        """Perform a command over the resources as they were."""
        await self.resources.ready(seq)
        with self.resources.watching() as peeks:
            done = await self._performer.perform(command)
        if self._compares(at):
            self.resources.tell_peeks(seq, at, peeks, done.outcome)
        await self.resources.drop_lost(seq, at)
        return done

    def _failed(self, seq: int, at: Address, recorded: str, done: Performed) -> None:
        if self._compares(at):
            assert isinstance(done.outcome, C.CommandFailed)
            told = self.resources.told(done.outcome)
            self._report.raised(seq, at, recorded, done.outcome.failure, told)

    def _is_wanted(self, seq: int, fact: Fact) -> bool:
        return wanted(fact.path, self._only) or self._plan.within(seq)

    def _compares(self, at: Address) -> bool:
        return wanted(at.path, self._only)

    def _fits(self, seq: int, at: Address) -> bool:
        """Whether the workflow that is given has that node, of the kind that is recorded."""
        then = self._scope.journal.program.nodes
        path = at.path if at.path in then else at.path.rpartition("/")[0]  # what a loop asks
        if type(then[path]) is type(self._now.get(path)):
            return True
        self._report.skip(_NODE)
        now = self._now.get(path)
        found = "no such node" if now is None else _kind(now)
        self._report.changed(seq, Address(path, at.visit), _kind(then[path]), found)
        return False

    def _fetching(self, blobs: Mapping[str, bytes]) -> Callable[[str], bytes]:
        def fetch(digest: str) -> bytes:
            found = blobs.get(digest)
            return self._scope.journal.fetch(digest) if found is None else found

        return fetch

    def _reading(self, blobs: Mapping[str, bytes]) -> Read:
        fetch = self._fetching(blobs)

        def read(raw: Raw) -> Any:
            return self._scope.codec.decode(raw, fetch)

        return read


def _kind(node: Any) -> str:
    """The kind of a node, as the builder's method for it is called."""
    words = re.findall("[A-Z][a-z]*", type(node).__name__.removesuffix("Node"))
    return f"wf.{'_'.join(words).lower()}"

"""The journal: one run's log and the state that follows from it, kept together.

Rules:

1. `write` appends, then applies: the state never holds what the log does not. After an append
   that failed the state is unchanged; after an `apply` that failed the journal is broken.
   `stage` applies at once and `commit` appends what was staged, so that several decisions share a
   transaction; nothing may be performed in between, and after a commit that failed the journal is
   broken.
2. Every append names the head it expects, so a process that no longer owns the run fails.
3. Blobs that events name are stored before the events.
4. A snapshot is taken every `EVERY` events (more rarely when they are large), at checkpoints and
   at rewinds, and kept: the state at any event of a long run is then a moment away.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from kitchen.errors import StoreError
from kitchen.log.reader import LogReader, check, snapshot_key
from kitchen.machine import snapshot
from kitchen.machine.chart import Program
from kitchen.machine.events import CheckpointSaved, Fact, RunRewound, RunStarted, to_json
from kitchen.machine.fold import apply
from kitchen.machine.state import Control, State
from kitchen.ports.event_store import EventStore, NewEvent

_logger = logging.getLogger("kitchen.run")

EVERY = 2_000
_BYTES_AN_EVENT = 50  # so that snapshots, which are kept, take less room than the log
_MARKS = frozenset({CheckpointSaved, RunRewound})


def new_event(fact: Fact) -> NewEvent:
    """A fact on its way into the log."""
    event, path, visit, attempt = fact
    return NewEvent(type(event).__name__, path, visit, attempt, to_json(event))


class Journal(LogReader):
    """The log of `run` in `store`, folded on `program`, as the process that owns it sees it."""

    def __init__(self, store: EventStore, run: str, program: Program) -> None:
        super().__init__(store, run, program)
        self.state = State()
        self._snapshot_at = 0
        self._due = EVERY
        self._staged: list[Fact] = []
        self._blobs: dict[str, bytes] = {}

    def write(
        self,
        facts: Sequence[Fact],
        blobs: Mapping[str, bytes] | None = None,
        control: Control | None = None,
    ) -> int:
        """Append the facts in one transaction and apply them; the new head.

        `control`: where the run stands after them, if `decide` knows.

        Raises `RunLost` where somebody else has appended, `StoreError` where nothing was appended.
        """
        head = self._append(facts, blobs)
        self._apply(facts, control)
        self._cache(facts)
        return head

    def stage(
        self,
        facts: Sequence[Fact],
        blobs: Mapping[str, bytes] | None = None,
        control: Control | None = None,
    ) -> None:
        """Apply the facts, which `commit` will append."""
        self._staged += facts
        self._blobs.update(blobs or {})
        self._apply(facts, control)

    def commit(self) -> int:
        """Append what was staged, in one transaction; the new head.

        Raises what `write` raises; the state is then thrown away, since the log does not hold it.
        """
        facts, self._staged = self._staged, []
        blobs, self._blobs = self._blobs, {}
        self.state.seq -= len(facts)
        try:
            head = self._append(facts, blobs)
        except BaseException:
            self.state = State()
            raise
        self.state.seq = head
        self._cache(facts)
        return head

    def _append(self, facts: Sequence[Fact], blobs: Mapping[str, bytes] | None) -> int:
        if blobs:
            for data in blobs.values():
                self.store.blobs.put(data)
        new = [new_event(fact) for fact in facts]
        if self.state.seq == 0:
            first = facts[0].event
            assert isinstance(first, RunStarted)
            return self.store.create_run(self.run, first.workflow, new)
        return self.store.append(self.run, self.state.seq, new)

    def _apply(self, facts: Sequence[Fact], control: Control | None) -> None:
        for fact in facts:
            apply(self.program, self.state, fact, self, moved=control is not None)
        if control is not None:
            self.state.core.control = control

    def load(self) -> State:
        """Fold the log, from a snapshot if one serves, and make that the state.

        Raises `CorruptStore` where what is folded is damaged, `IllegalEvent` where it is not legal
        on the program.
        """
        state = self.nearest(None)
        self.check(state.seq)
        self.state = self.folded(state, None)
        return self.state

    def check(self, after: int) -> None:
        """Whether the log behind `after` is whole: its chain, no gaps, no tail that was cut off.

        Raises `CorruptStore`.
        """
        check(self.store, self.run, after)

    def _cache(self, facts: Sequence[Fact]) -> None:
        """Take a snapshot if it is time to."""
        state = self.state
        due = state.seq - self._snapshot_at >= self._due
        if not due and not any(type(fact.event) in _MARKS for fact in facts):
            return
        body = snapshot.dump(state)
        self._snapshot_at = state.seq
        self._due = max(EVERY, len(body) // _BYTES_AN_EVENT)
        key = snapshot_key(self.program)
        try:
            self.store.save_snapshot(self.run, state.seq, key, body)
        except StoreError as error:  # the log has the events; without it, folding takes longer
            _logger.warning("run %s: a snapshot could not be saved: %s", self.run, error.message)

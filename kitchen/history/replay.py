"""Replay without execution: the whole log, folded from nothing and checked.

Rules:

1. No user code, and nothing is written. Snapshots are not relied on: one serves only once folding
   has come to the same state, and one that is another state is a divergence.
2. The chain is checked, and each event for legality on the machine of the recorded workflow. What
   is wrong is told, not raised, unless there is no such run or it has no events.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from contextlib import suppress
from hashlib import sha256
from typing import Any

from kitchen.errors import CorruptStore, HistoryError
from kitchen.log.live import Live, live
from kitchen.log.reader import recorded_ir, snapshot_key
from kitchen.log.replayed import Divergence, Replay, Stepping, broken_at, last_event
from kitchen.machine import snapshot
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.state import State
from kitchen.ports.event_store import EventStore

__all__ = ["Divergence", "Replay", "replayed"]

_SNAPSHOT = "snapshot"


def replayed(store: EventStore, run: str, until: int | None = None) -> Replay:
    """Fold a run's log from nothing, up to and including `until` (None: its head).

    Raises `UnknownRun`, `NotResumable` where its log is empty, `HistoryError` where there is no
    such seq.
    """
    began = time.perf_counter()
    last = last_event(store, run, until)
    found = [
        broken_at(each.seq or 0, CorruptStore(str(each)))
        for each in store.check(run, after=0, until=until)
    ]
    seen, visits = 0, 0
    try:
        program = compile_workflow(recorded_ir(store, run))
        counting = live(store, run, last)
    except (CorruptStore, HistoryError) as error:
        found = found or [broken_at(1, error)]
    else:
        seen, visits = _folded(store, run, program, counting, last, found)
    found.sort(key=lambda each: each.seq)
    seconds = time.perf_counter() - began
    return Replay(run, last, seen, visits, 0, {}, tuple(found), seconds)


def _folded(
    store: EventStore,
    run: str,
    program: Program,
    counting: Live,
    last: int,
    found: list[Divergence],
) -> tuple[int, int]:
    """Fold; how many events were read, and how many committed visits count."""
    trusted = _Trusted(store)
    reader = Stepping(trusted.store_view, run, program)
    due = _snapshots(store, run, program, last)
    state = State()
    visits = 0
    for record, _ in reader.steps(state, last, found.append):
        # What is given has not been applied, so the state is that of the event before.
        if state.seq in due:
            _compare(store, run, program, state, due.pop(state.seq), trusted, found)
        visits += record.type == "StageCompleted" and counting.counts(record.seq)
    if state.seq in due:
        _compare(store, run, program, state, due.pop(state.seq), trusted, found)
    return state.seq, visits


class _Trusted:
    """A store, of whose snapshots only those are given out that were found right."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.seqs: list[int] = []
        self.store_view: Any = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def snapshot(self, run: str, at_most: int, key: str) -> tuple[int, bytes] | None:
        """The latest of these at or before a seq."""
        before = bisect_right(self.seqs, at_most)
        return self._store.snapshot(run, self.seqs[before - 1], key) if before else None


def _snapshots(store: EventStore, run: str, program: Program, last: int) -> dict[int, bytes]:
    """The snapshots that there are: a digest of each, by its seq."""
    known: dict[int, bytes] = {}
    key = snapshot_key(program)
    while last > 0 and (found := store.snapshot(run, last, key)) is not None:
        seq, body = found
        known[seq] = sha256(body).digest()
        last = seq - 1
    return known


def _compare(
    store: EventStore,
    run: str,
    program: Program,
    state: State,
    digest: bytes,
    trusted: _Trusted,
    found: list[Divergence],
) -> None:
    """Whether the snapshot at a seq is the state that folding has come to."""
    same = sha256(snapshot.dump(state)).digest() == digest
    if not same:  # the order of its keys is no difference
        kept = store.snapshot(run, state.seq, snapshot_key(program))
        with suppress(HistoryError):
            same = kept is not None and snapshot.load(kept[1]) == state
    if same:
        trusted.seqs.append(state.seq)
        return
    message = (
        f"the snapshot at event {state.seq} is not the state that the events up to there give; it "
        "is a cache, and can be deleted"
    )
    sides = ("the folded state", "another state")
    found.append(Divergence(state.seq, "", (), _SNAPSHOT, *sides, message))

"""The memo: what is known of a future that a rewind has superseded.

Rules:

1. It is made of events that no longer count, by path and visit, and of nothing else.
2. Decisions and collections are taken from it instead of being asked for again, unless asking
   touched a stateful resource: then the question is put again, so that the resource sees what
   it saw, and the answer is compared.
3. What a stage commits again is compared key by key. The first difference ends the memo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kitchen.machine.events import (
    Address,
    BranchesStarted,
    ConditionEvaluated,
    Effect,
    Fact,
    ItemProduced,
    ItemTaken,
    LoopEntered,
    LoopStopped,
    MetricRecorded,
    StageCompleted,
    StateAppended,
    StateDeleted,
    StateIncremented,
    StateMerged,
    StatePut,
    to_json,
)
from kitchen.machine.state import Remembered, StageMemo

_EFFECTS = (
    StatePut,
    StateDeleted,
    StateAppended,
    StateIncremented,
    StateMerged,
    MetricRecorded,
    LoopStopped,
)
_DECISIONS = (ConditionEvaluated, LoopEntered, BranchesStarted, ItemProduced)


def remember(facts: Iterable[Fact]) -> dict[Address, Remembered]:
    """The memo that a stretch of superseded events leaves behind."""
    memo: dict[Address, Remembered] = {}
    effects: dict[tuple[Address, int], list[Effect]] = {}
    for event, path, visit, attempt in facts:
        address = Address(path, visit)
        if isinstance(event, _EFFECTS):
            effects.setdefault((address, attempt), []).append(event)
        elif isinstance(event, StageCompleted):
            memo[address] = StageMemo(digests(effects.pop((address, attempt), ())))
        elif isinstance(event, ItemProduced) and event.failure is not None:
            memo.pop(address, None)
        elif isinstance(event, _DECISIONS) or (isinstance(event, ItemTaken) and event.digest):
            memo[address] = event
    return memo


def digests(effects: Iterable[Effect]) -> dict[str, str]:
    """A digest for each key and each metric that was changed, over the changes in their order."""
    hashes: dict[str, hashlib.blake2b] = {}
    for event in effects:
        if isinstance(event, MetricRecorded):
            label = f"metric.{event.name}"
        elif isinstance(event, LoopStopped):
            label = "stop_loop"
        else:
            label = f"state.{event.key}"
        known = hashes.get(label)
        if known is None:
            known = hashes[label] = hashlib.blake2b(digest_size=8)
        known.update(f"{type(event).__name__}{to_json(event)}\n".encode())
    return {label: value.hexdigest() for label, value in hashes.items()}


def difference(recorded: StageMemo, found: dict[str, str]) -> tuple[str, str, str] | None:
    """The first key that differs, with both digests ("" where one side has none)."""
    for label in sorted(recorded.digests.keys() | found.keys()):
        was, now = recorded.digests.get(label, ""), found.get(label, "")
        if was != now:
            return label, was, now
    return None

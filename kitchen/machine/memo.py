"""The memo: what is known of a future that a rewind has superseded.

Rules:

1. It is made of events that no longer count, by path and visit, and of nothing else.
2. Decisions and collections are taken from it instead of being asked for again, unless asking
   touched a stateful resource: then the question is put again, so that the resource sees what
   it saw, and the answer is compared.
3. What a stage commits again is compared key by key. The first difference ends the memo.
4. Of a stage whose effect must not happen twice the memo holds what it committed, or that it may
   have done something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from kitchen.machine.chart import Program
from kitchen.machine.events import (
    Address,
    BranchesStarted,
    ConditionEvaluated,
    Effect,
    EffectDecided,
    Event,
    Fact,
    ItemProduced,
    ItemTaken,
    LoopEntered,
    LoopStopped,
    MetricRecorded,
    RunForked,
    RunRewound,
    StageCompleted,
    StageFailed,
    StageInterrupted,
    StageStarted,
    StateAppended,
    StateDeleted,
    StateIncremented,
    StateMerged,
    StatePut,
    to_json,
)
from kitchen.machine.state import Once, Remembered, StageMemo
from kitchen.workflow.ir import StageNode

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


def remember(
    program: Program, facts: Iterable[Fact], begun: Iterable[Address] = ()
) -> dict[Address, Remembered]:
    """The memo that a stretch of superseded events leaves behind.

    `begun`: where attempts were running as it began.
    """
    once = once_paths(program)
    memo: dict[Address, Remembered] = {at: Once(None) for at in begun if at.path in once}
    effects: dict[tuple[Address, int], list[Effect]] = {}
    for event, path, visit, attempt in facts:
        address = Address(path, visit)
        if path in once:
            _remember_once(memo, effects, Fact(event, path, visit, attempt))
        elif isinstance(event, _EFFECTS):
            effects.setdefault((address, attempt), []).append(event)
        elif isinstance(event, StageCompleted):
            memo[address] = StageMemo(digests(effects.pop((address, attempt), ())))
        elif isinstance(event, ItemProduced) and event.failure is not None:
            memo.pop(address, None)
        elif isinstance(event, _DECISIONS) or (isinstance(event, ItemTaken) and event.digest):
            memo[address] = event
    return memo


def once_paths(program: Program) -> set[str]:
    """The stages whose effect must not happen twice."""
    return {p for p, n in program.nodes.items() if isinstance(n, StageNode) and n.effect == "once"}


def happened(
    program: Program,
    facts: Iterable[Fact],
    known: Mapping[Address, Remembered],
    begun: Iterable[Address],
) -> dict[Address, Remembered]:
    """What a stretch of events, whether they count or not, leaves known of effects that must not
    happen twice.

    `known`, `begun`: the memo, and where attempts were running, as it began.
    """
    once = once_paths(program)
    memo = {at: each for at, each in known.items() if isinstance(each, Once)}
    running = {at for at in begun if at.path in once and at not in memo}
    found: dict[Address, Remembered] = {**memo, **{at: Once(None) for at in running}}
    effects: dict[tuple[Address, int], list[Effect]] = {}
    for fact in facts:
        address = Address(fact.path, fact.visit)
        if isinstance(fact.event, RunForked):  # what was running there is the parent's
            for at in running:
                found.pop(at, None)
        if isinstance(fact.event, RunForked | RunRewound):
            running.clear()
        if fact.path not in once:
            continue
        if isinstance(fact.event, StageStarted) and address not in found:
            running.add(address)
        elif isinstance(fact.event, StageCompleted | StageFailed | StageInterrupted):
            running.discard(address)
        _remember_once(found, effects, fact)
    return found


def _remember_once(
    memo: dict[Address, Remembered], effects: dict[tuple[Address, int], list[Effect]], fact: Fact
) -> None:
    event, path, visit, attempt = fact
    address = Address(path, visit)
    if isinstance(event, _EFFECTS):
        effects.setdefault((address, attempt), []).append(event)
    elif isinstance(event, StageStarted):
        effects.pop((address, attempt), None)  # of one before a rewind, with the same number
        memo.setdefault(address, Once(None))  # what is known already is being taken over
    elif isinstance(event, StageCompleted):
        memo[address] = Once(tuple(effects.pop((address, attempt), ())))
    elif isinstance(event, EffectDecided) and event.choice == "skip":
        memo[address] = decided(event)
    elif _is_known(event):
        memo.pop(address, None)


def _is_known(event: Event) -> bool:
    """Whether it tells that an effect which must not happen twice has not happened."""
    failed = isinstance(event, StageFailed) and not event.undecided
    not_begun = isinstance(event, StageInterrupted) and not event.begun
    return failed or not_begun or isinstance(event, EffectDecided)


def decided(event: EffectDecided) -> Once:
    """What somebody said that a stage had done."""
    puts = tuple(StatePut(key, value) for key, value in event.changes.items())
    return Once(puts, decided=True)


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

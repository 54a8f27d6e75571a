"""Stages: how an attempt begins, is committed, fails, and is tried again.

Rules:

1. A touch is told before the mutations of who touched. The cut is the seq before it, or where the
   attempt began.
2. An attempt that failed is followed by another as long as its stage's `retries` last. If it had
   touched a stateful resource, or a thread that could not be stopped may still use one, the run is
   rewound before: no update is ever applied twice.
3. How long to wait follows from the run's seed, the address and the number of the failure, so it is
   the same in every process. The wait counts from when it was scheduled, whatever happens meanwhile.
4. Of a stage whose effect must not happen twice, what is known to have happened is taken over.
   Where nobody knows, the run ends until somebody says.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import failures, lanes
from kitchen.machine.events import Address, Fact
from kitchen.machine.layout import Role
from kitchen.machine.memo import difference, digests
from kitchen.machine.outstanding import unwinding
from kitchen.machine.state import Once, Place, StageMemo
from kitchen.workflow.ir import Retries, StageNode

if TYPE_CHECKING:
    from kitchen.machine.draft import Draft

# Events without fields, made once.
STARTED, _COMPLETED = E.StageStarted(), E.StageCompleted()


def begin(draft: Draft, address: Address, place: Place) -> tuple[Address, ...]:
    """Begin a stage, or have its next attempt waited for; where that led."""
    known = draft.memo.get(address) if draft.memo else None
    if isinstance(known, Once):
        return _known(draft, address, place, known)
    tried = draft.state.tries.get(address) if draft.state.tries else None
    late = tried is not None and not place.waits and tried.attempt >= place.attempt
    if tried is not None and tried.since and late:  # behind a rewind
        _try_again(draft, address, tried.attempt, tried.delay, tried.since)
    elif place.waits:
        draft.commands.append(C.AwaitRetry(address, place.attempt + 1))
    else:
        draft.ask(address, C.RunStage(address, place.attempt + 1), place.attempt + 1)
    return ()


def _try_again(draft: Draft, address: Address, attempt: int, delay: float, since: int = 0) -> None:
    """Schedule the attempt after this one."""
    draft.emit(E.RetryScheduled(delay, since), *address, attempt)
    if delay > 0:
        draft.commands.append(C.AwaitRetry(address, attempt + 1))
    else:
        draft.ask(address, C.RunStage(address, attempt + 1), attempt + 1)


def _known(draft: Draft, address: Address, place: Place, known: Once) -> tuple[Address, ...]:
    """A stage whose effect must not happen twice, and has happened, or may have."""
    path, visit = address
    if known.effects is None:
        failures.end(draft, address, failures.undecided(draft.program, address))
        return ()
    keys = [effect.key for effect in known.effects if isinstance(effect, E.Mutation)]
    clash = draft.clash(address, keys)
    if clash is not None:
        draft.fail(address, clash)
        return ()
    number = place.attempt + 1
    draft.emit(STARTED, path, visit, number)
    for effect in known.effects:
        draft.emit(effect, path, visit, number)
    return draft.emit(E.StageCompleted(known=True), path, visit, number)


def succeeded(draft: Draft, given: C.StageSucceeded) -> None:
    """An attempt is committed."""
    address, attempt = given.address, given.attempt
    draft.attempt(address, attempt)
    if draft.state.core.claims:
        keys = [e.key for e in given.effects if isinstance(e, E.Mutation)]
        clash = draft.clash(address, keys, given.touched, given.looked)
        if clash is not None:
            failed = C.StageRaised(address, attempt, clash, given.effects, given.touched)
            raised(draft, failed)
            return
    recorded = draft.memo.get(address) if draft.memo else None
    if isinstance(recorded, StageMemo):
        differs = difference(recorded, digests((*given.flushed, *given.effects)))
        if differs:
            draft.diverge(address, *differs)
    path, visit = address
    stops = [effect for effect in given.effects if type(effect) is E.LoopStopped]
    facts = [
        Fact(effect, path, visit, attempt)
        for effect in given.effects
        if type(effect) is not E.LoopStopped
    ]
    if given.touched:
        # Metrics that are in the log early come before it too: the order must not tell when.
        draft.add([fact for fact in facts if type(fact.event) is E.MetricRecorded])
        facts = [fact for fact in facts if type(fact.event) is not E.MetricRecorded]
        draft.touch(given.touched, address, attempt)
    draft.add(facts)
    for event in stops:
        draft.emit(event, path, visit, attempt)
    looked = draft.looked(given.looked, address)
    completed = E.StageCompleted(looked) if looked else _COMPLETED
    draft.settle(draft.emit(completed, path, visit, attempt))


def raised(draft: Draft, given: C.StageRaised) -> None:
    """An attempt raised: try again, or fail."""
    address, number = given.address, given.attempt
    draft.attempt(address, number)
    program, place = draft.program, draft.control.active[address]
    node = program.nodes[address.path]
    assert isinstance(node, StageNode)
    unsure = given.stopped and node.effect == "once"
    delay = None if unsure or not given.again else _delay(draft, address, node)
    touched = draft.state.stateful(given.touched)
    half = (*touched, *(name for name in given.lost if name not in touched))
    ends = failures.target_of(program, draft.control, address).ends
    taken = delay is not None or ends in ("stage", "block")
    if touched and (taken or draft.in_branch(address)):
        # None of those who go on may use what is half changed, and a resume rewinds.
        draft.touch(touched, address, number)
    discarded = tuple(
        Raw(msgspec.json.encode({"type": type(e).__name__, "event": Raw(E.to_json(e).encode())}))
        for e in given.effects
    )
    draft.emit(E.StageFailed(given.failure, discarded, unsure), *address, number)
    if unsure:
        failures.end(draft, address, failures.undecided(program, address))
    elif delay is None:
        draft.fail(address, given.failure, half, place.started)
    elif half:
        draft.emit(E.RetryScheduled(delay), *address, number)
        draft.rewind(half, address, place.started)
    else:
        _try_again(draft, address, number, delay)


def due(draft: Draft, given: C.RetryDue) -> None:
    """The wait is over."""
    place = draft.place(given.address, Role.STAGE)
    if not place.waits or given.attempt != place.attempt + 1:
        raise draft.refusal(given.address, place)
    draft.ask(given.address, C.RunStage(given.address, given.attempt), given.attempt)


def rolled_back(draft: Draft, given: C.RolledBack) -> None:
    """A stage has taken back what it did, or could not."""
    failing = draft.control.failing.get(given.block)
    asked = C.RollBack(given.address, given.block)
    if failing is None or unwinding(given.block, failing) != asked:
        raise draft.refusal(given.address, None)
    lane, block = (_lane(draft, at) for at in (given.address, given.block))
    if lane == block and failing.ends != "branch":  # else they are of a branch that leaves nothing
        draft.add([Fact(effect, *given.address) for effect in given.effects])
    draft.emit(E.StageRolledBack(given.failure), *given.address)
    failures.unwind(draft, given.block)


def _lane(draft: Draft, address: Address) -> Address | None:
    """The innermost branch around an address that has not been joined."""
    there = draft.state.core.overlays  # one that is joined is a branch no more
    found = [at for lane, at in lanes.around(draft.program, address) if lane.data and at in there]
    return found[-1] if found else None


def flushed(draft: Draft, given: C.MetricsFlushed) -> None:
    """Metrics of an attempt that goes on."""
    draft.attempt(given.address, given.attempt)
    for metric in given.metrics:
        draft.emit(metric, *given.address, given.attempt)


def _delay(draft: Draft, address: Address, node: StageNode) -> float | None:
    """How long to wait before the next attempt, in seconds; None where there is to be none."""
    tried = draft.state.tries.get(address)
    failed = (tried.failed if tried is not None else 0) + 1
    retry = node.retry
    if retry is None or failed > retry.retries:
        return None
    started = draft.state.started
    return delay(retry, started.seed if started is not None else 0, address, failed)


def delay(retry: Retries, seed: int, address: Address, failed: int) -> float:
    """The wait in seconds before the attempt that follows the failure of that number, from 1."""
    wait = min(retry.max_delay, retry.backoff * 2.0 ** min(failed - 1, 64))
    text = f"{seed}/{address.path}/{address.visit}/{failed}".encode()
    chance = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
    return wait * (1 + retry.jitter * (2 * chance - 1))

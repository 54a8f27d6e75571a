"""What went wrong in a run, and what came of it, from its log.

Rules:

1. A failure is told with every attempt at its place, with what the last of them would have written
   and what the state has instead, and with how much of its retry budget is spent.
2. What was taken care of is told too: what was skipped, handled, rolled back, rewound and at which
   cost, and decided.
3. A fork, and a run that somebody sent another way, has fresh budgets from there on.
4. What of it does not read is told where it stands, and does not hide the rest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from kitchen.cli import render
from kitchen.errors import KitchenError
from kitchen.history.history import last_turn
from kitchen.log.live import Live, live, of_rewinds
from kitchen.log.reader import LogReader, fact_of
from kitchen.machine import cells, lanes
from kitchen.machine import events as E
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address
from kitchen.machine.state import State
from kitchen.workflow.ir import StageNode

if TYPE_CHECKING:
    from kitchen.history.history import History
    from kitchen.ports.event_store import Record

_ATTEMPTS, _LAST, _WIDTH = 50, 100, 100
_TRIES = (
    "StageFailed", "StageInterrupted", "RetryScheduled", "RunResumed", "RunRewound", "RunForked",
)  # fmt: skip
_OF_THE_RUN = (E.RunResumed, E.RunRewound, E.RunForked)
_CHANGES = {
    E.StatePut: ("put", "value"),
    E.StateAppended: ("append", "values"),
    E.StateMerged: ("merge", "values"),
    E.StateIncremented: ("add", "by"),
    E.StateDeleted: ("delete", ""),
}
_CODEC = Codec()


def failure(history: History) -> dict[str, Any] | None:
    """Why a run has failed."""
    record = last_turn(history.store, history.run_id)
    if record is None or record.type != E.RunFailed.__name__:
        return None
    event: Any = fact_of(record).event
    told = {name: getattr(event.failure, name) for name in ("type", "message", "hint", "traceback")}
    at = Address(record.path, record.visit)
    attempts, waits, last = _tries(history, at)
    node = history.program.nodes.get(at.path)
    retry = node.retry if isinstance(node, StageNode) else None
    if not told["traceback"] and last is not None:
        failed: Any = fact_of(last).event
        same = (failed.failure.type, failed.failure.message) == (told["type"], told["message"])
        told["traceback"] = failed.failure.traceback if same else ""
    return {
        "at": render.place(*at, history.loops),
        "path": at.path,
        "visit": list(at.visit),
        **told,
        "attempts": attempts,
        "retries": {"used": len(waits), "of": retry.retries, "waits": waits} if retry else None,
        "discarded": _discarded(history, last) if last is not None else [],
    }


def _tries(
    history: History, at: Address
) -> tuple[list[dict[str, Any]], list[float], Record | None]:
    """The attempts at an address that came to nothing; the waits since the retry budget was last
    fresh; the record of the last failure."""
    attempts: deque[dict[str, Any]] = deque(maxlen=_ATTEMPTS)
    waits: list[float] = []
    last: Record | None = None
    counting = live(history.store, history.run_id)
    names = LogReader(history.store, history.run_id, history.program).renaming
    for record in history.store.read(history.run_id, types=_TRIES):
        event: Any = fact_of(record).event
        if isinstance(event, _OF_THE_RUN):
            waits = [] if _is_fresh(event) else waits
        elif (names.path(record.seq, record.path), record.visit) != at:
            continue
        elif isinstance(event, E.RetryScheduled):
            waits += [event.delay] if not event.since else []
        else:
            attempts.append(_attempt(record, event, counting))
            last = record if isinstance(event, E.StageFailed) else last
    return list(attempts), waits, last


def _is_fresh(event: Any) -> bool:
    """Whether retry budgets are fresh behind what happened to the run."""
    if isinstance(event, E.RunResumed):
        return event.after == "failure"
    return isinstance(event, E.RunForked) or event.asked


def _attempt(record: Record, event: Any, counting: Live) -> dict[str, Any]:
    found: E.Failure | None = None
    if isinstance(event, E.StageInterrupted):
        ended = "interrupted" if event.begun else "not begun"
    else:
        ended = "undecided" if event.undecided else "failed"
        found = event.failure
    return {
        "attempt": record.attempt,
        "seq": record.seq,
        "time": render.iso(record.at),
        "ended": ended,
        "type": found.type if found is not None else None,
        "message": found.message if found is not None else None,
        "counts": counting.counts(record.seq),
    }


# --- what the failed attempt would have written ---------------------------------------------------


def _discarded(history: History, failed: Record) -> list[dict[str, Any]]:
    """Its changes to the state, each beside what the state had."""
    event: Any = fact_of(failed).event
    changes = [_change(raw) for raw in event.discarded]
    if not any(changes):
        return []
    try:
        before = history.folded(failed.seq - 1)
    except KitchenError as error:
        before = error
    at = Address(failed.path, failed.visit)
    return [
        {
            "key": change.key,
            "change": _CHANGES[type(change)][0],
            "before": _before(history, before, at, change.key),
            "value": _value(history, change),
        }
        for change in changes
        if change is not None
    ]


def _change(raw: msgspec.Raw) -> Any:
    """The change that was discarded; None for what is none."""
    try:
        told = msgspec.json.decode(raw, type=_Discarded)
        event = E.from_json(told.type, bytes(told.event))
    except (msgspec.DecodeError, KitchenError, RecursionError):
        return None
    return event if type(event) in _CHANGES else None


class _Discarded(msgspec.Struct):
    type: str
    event: msgspec.Raw


def _before(history: History, state: State | KitchenError, at: Address, key: str) -> str:
    if isinstance(state, KitchenError):
        return f"(cannot be read: {state.message})"
    cell = lanes.read(history.program, state.core, at, key)
    if cell is None:
        return "(not there)"
    try:
        return render.preview(cells.read(cell, _CODEC, history.fetch, key), _WIDTH)
    except KitchenError as error:
        return f"(cannot be read: {error.message})"


def _value(history: History, change: Any) -> str:
    name = _CHANGES[type(change)][1]
    if not name:
        return "(deleted)"
    try:
        return render.preview(_CODEC.decode(getattr(change, name), history.fetch), _WIDTH)
    except KitchenError as error:
        return f"(cannot be read: {error.message})"


# --- what was taken care of -----------------------------------------------------------------------


def incidents(history: History) -> dict[str, Any]:
    """How often what happened, how many events were done again, and the last ones in words."""
    counts: Counter[str] = Counter()
    again = 0
    last: deque[dict[str, Any]] = deque(maxlen=_LAST)
    for record, what, told, cost in _incidents(history):
        counts[what] += 1
        again += cost
        last.append(
            {
                "seq": record.seq,
                "time": render.iso(record.at),
                "at": render.place(record.path, record.visit, history.loops),
                "what": what,
                "told": told,
                "events_again": cost,
            }
        )
    return {"counts": dict(counts), "events_again": again, "last": list(last)}


def _incidents(history: History) -> Iterator[tuple[Record, str, str, int]]:
    """An incident's record, kind, words, and how many events a rewind has superseded."""
    names = LogReader(history.store, history.run_id, history.program).renaming
    backs: list[tuple[int, int]] = []
    for record in history.store.read(history.run_id, types=list(_KINDS)):
        event: Any = fact_of(record).event
        what, cost = _KINDS[record.type], 0
        if isinstance(event, E.RunRewound):
            cost = _superseded(backs, record.seq - 1, event.to)
            backs.append((record.seq, event.to))
            told = _rewound(event, cost)
            what, cost = ("sent_back", 0) if event.asked else (what, cost)
        elif isinstance(event, E.EffectDecided):
            told = f"decided: {event.choice}"
        elif isinstance(event, E.FailureHandled):
            told = "its failure was handled"
        else:
            told = _words(event)
        yield record._replace(path=names.path(record.seq, record.path)), what, told, cost


def _superseded(backs: list[tuple[int, int]], last: int, to: int) -> int:
    """How many events that count at `last` do not count any more when the run goes back to `to`."""
    now, then = of_rewinds(backs, last).stretches, of_rewinds(backs, to).stretches
    cost = sum(high - low + 1 for low, high in now)
    for one, other in zip(now, then, strict=False):
        if one[0] != other[0]:
            break  # what lies behind is not shared either: where a stretch begins tells all before
        cost -= min(one[1], other[1]) - one[0] + 1
    return cost


def _rewound(event: E.RunRewound, cost: int) -> str:
    if event.asked:
        return f"sent back to seq {event.to}: {cost} events no longer count"
    names = ", ".join(event.touched)
    why = f" ({names} had been touched)" if names else ""
    return f"rewound to seq {event.to}: {cost} events done again{why}"


def _words(event: Any) -> str:
    found = event.failure
    gist = " ".join(f"{found.type}: {found.message}".split()) if found is not None else ""
    if isinstance(event, E.StageSkipped):
        return f"skipped: {gist}"
    if isinstance(event, E.StageRolledBack):
        return f"could not be rolled back: {gist}" if gist else "rolled back"
    return f"failed: {gist}"


_KINDS = {
    "StageSkipped": "skipped",
    "BlockFailed": "block_failed",
    "FailureHandled": "handled",
    "StageRolledBack": "rolled_back",
    "RunRewound": "rewound",
    "BranchFailed": "branch_failed",
    "EffectDecided": "decided",
}

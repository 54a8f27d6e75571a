"""What a run waits for: attempts that are due later, time limits, and what a failure is ending.

Rules: a limit counts executing time, so what lies between a crash and its resume is left out; of a
run that goes on, what has passed since its last event counts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kitchen.cli import render
from kitchen.log.reader import fact_of
from kitchen.machine.events import Address
from kitchen.machine.state import ACTIVE, Place, State
from kitchen.workflow.ir import StageNode

if TYPE_CHECKING:
    from kitchen.history.history import History

_DAY = 86_400 * 365.0


def describe(history: History, state: State, status: str) -> dict[str, Any]:
    """All of it, as built-ins; nothing of a run that has ended."""
    if state.status != ACTIVE and status != "interrupted":
        return {
            "retries": [],
            "limits": [],
            "failing": [],
            "failed_branches": _halted(history, state),
        }
    control = state.core.control
    due = [at for at, place in control.active.items() if place.waits]
    return {
        "retries": [_retry(history, state, at) for at in due],
        "limits": _limits(history, state, goes_on=status == "running"),
        "failing": [
            {
                "block": _place(history, block) or "the run",
                "ends": one.ends,
                "at": _place(history, one.at),
                "type": one.failure.type,
                "message": one.failure.message,
                "undo": [_place(history, at) for at in one.undo],
            }
            for block, one in control.failing.items()
        ],
        "failed_branches": _halted(history, state),
    }


def _halted(history: History, state: State) -> list[dict[str, Any]]:
    return [
        {
            "branch": _place(history, branch),
            "at": _place(history, one.at),
            "type": one.failure.type,
            "message": one.failure.message,
        }
        for branch, one in state.core.control.halted.items()
    ]


def _place(history: History, at: Address) -> str:
    return render.place(at.path, at.visit, history.loops)


def _retry(history: History, state: State, at: Address) -> dict[str, Any]:
    tried = state.tries.get(at)
    node = history.program.nodes.get(at.path)
    retry = node.retry if isinstance(node, StageNode) else None
    failed = tried.failed if tried is not None else 0
    begun = _time(history, tried.since) if tried is not None else None
    delay = min(max(tried.delay, 0.0), _DAY) if tried is not None else 0.0
    due = begun + int(delay * 1e9) if begun is not None else None
    return {
        "at": _place(history, at),
        "attempt": f"attempt {failed + 1}" + (f" of {retry.retries + 1}" if retry else ""),
        "after": _last_failure(history, at),
        "due": render.iso(due) if due is not None else None,
        "left": max(0.0, (due - time.time_ns()) / 1e9) if due is not None else 0.0,
    }


def _last_failure(history: History, at: Address) -> str | None:
    told = None
    for record in history.store.read(history.run_id, types=["StageFailed"]):
        if (record.path, record.visit) == at:
            event: Any = fact_of(record).event
            told = f"{event.failure.type}: {event.failure.message}"
    return told


def _limits(history: History, state: State, *, goes_on: bool) -> list[dict[str, Any]]:
    """Of blocks, and of the attempts that are running."""
    control = state.core.control
    found = [(at, limit.seconds, limit.entered) for at, limit in control.limits.items()]
    if goes_on:
        for at, place in control.active.items():
            seconds = _of_attempt(history, at, place)
            if seconds is not None:
                found.append((at, seconds, place.started))
    told: list[dict[str, Any]] = []
    for at, seconds, since in found:
        left = max(0.0, seconds - _executed(history, since, goes_on=goes_on))
        told.append({"at": _place(history, at), "seconds": seconds, "left": left})
    return told


def _of_attempt(history: History, at: Address, place: Place) -> float | None:
    node = history.program.nodes.get(at.path)
    return node.timeout if place.open and isinstance(node, StageNode) else None


def _executed(history: History, since: int, *, goes_on: bool) -> float:
    """For how many seconds the run was executed since an event."""
    total, before = 0, 0
    for record in history.store.read(history.run_id, after=since - 1):
        if before and record.type != "RunResumed":
            total += max(record.at - before, 0)
        before = record.at
    if before and goes_on:
        total += max(time.time_ns() - before, 0)
    return total / 1e9


def _time(history: History, seq: int) -> int | None:
    """When an event was recorded."""
    for record in history.store.read(history.run_id, after=seq - 1, until=seq):
        return record.at
    return None

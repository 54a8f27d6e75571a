"""What an event says, in a few words for the end of its line in `kitchen log`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kitchen.cli import render
from kitchen.errors import KitchenError
from kitchen.log.reader import fact_of
from kitchen.machine.codec import Codec
from kitchen.ports.event_store import Record

_CODEC = Codec()


def detail(record: Record) -> str:
    """The gist of an event; that it does not read, where it does not."""
    try:
        event: Any = fact_of(record).event
    except KitchenError as error:
        return f"! {error.message}"
    told = _DETAILS.get(record.type)
    return told(event) if told is not None else ""


def _value(raw: Any) -> str:
    text = bytes(raw)
    if b'"blob"' in text:
        return "(a blob)"  # its text tells nothing, and fetching it here would cost too much
    try:
        return render.preview(_CODEC.decode(text, lambda _digest: b""))
    except KitchenError:
        return text.decode(errors="replace")[:60]


def _started(event: Any) -> str:
    return f"{event.workflow} {event.fingerprint} seed={event.seed}"


def _resumed(event: Any) -> str:
    return (
        f"after {'an' if event.after[0] in 'aeiou' else 'a'} {event.after}, by pid {event.host.pid}"
    )


def _rewound(event: Any) -> str:
    return f"to seq {event.to}: {event.reason or ', '.join(event.touched)}"


def _diverged(event: Any) -> str:
    return f"{event.key}: recorded {event.recorded}, found {event.found}"


def _failed(event: Any) -> str:
    return " ".join(f"{event.failure.type}: {event.failure.message}".split())[:100]


def _metric(event: Any) -> str:
    step = f" (step {event.step})" if event.step is not None else ""
    return f"{event.name}={_value(event.value)}{step}"


def _opened(event: Any) -> str:
    return event.name + (" (stateful)" if event.stateful else "")


def _restored(event: Any) -> str:
    return f"{event.name} " + (f"as saved at seq {event.saved}" if event.saved else "as it opens")


def _saved(event: Any) -> str:
    return ", ".join(event.resources)


_DETAILS: dict[str, Callable[[Any], str]] = {
    "RunStarted": _started,
    "RunResumed": _resumed,
    "RunRewound": _rewound,
    "RewindDiverged": _diverged,
    "RunInterrupted": lambda event: event.signal,
    "RunFailed": _failed,
    "StageFailed": _failed,
    "WorkflowChanged": lambda event: "; ".join(event.differences),
    "StatePut": lambda event: f"{event.key}={_value(event.value)}",
    "StateDeleted": lambda event: event.key,
    "StateAppended": lambda event: f"{event.key}+={_value(event.values)}",
    "StateIncremented": lambda event: f"{event.key}+={_value(event.by)}",
    "StateMerged": lambda event: f"{event.key}|={_value(event.values)}",
    "MetricRecorded": _metric,
    "ConditionEvaluated": lambda event: "yes" if event.answer else "no",
    "LoopEntered": lambda event: "" if event.items.count < 0 else f"{event.items.count} items",
    "ItemTaken": lambda event: _value(event.value) if bytes(event.value) else event.digest,
    "ItemProduced": lambda event: (
        f"{_value(event.value)} (from version {event.version})"
        if event.failure is None
        else f"not made: {_failed(event)}"
    ),
    "ItemDiscarded": lambda event: event.reason,
    "BranchesStarted": lambda event: f"{event.count} branches, at most {event.limit} at a time",
    "BranchFailed": _failed,
    "BranchesJoined": lambda event: ", ".join(event.merged),
    "ResourceOpened": _opened,
    "ResourceTouched": lambda event: event.name,
    "ResourceRestored": _restored,
    "ResourcesClosed": lambda event: ", ".join(event.names),
    "CheckpointSaved": _saved,
}

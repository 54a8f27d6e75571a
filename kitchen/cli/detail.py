"""What an event says, in a few words for the end of its line in `kitchen log`.

Rules: of a config that was edited, the fields that differ are told, with their new values; of a
secret, that it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from kitchen.cli import render
from kitchen.errors import KitchenError
from kitchen.log.live import live
from kitchen.log.reader import fact_of
from kitchen.machine.codec import Codec
from kitchen.machine.events import NOTHING, Failure, RunEdited
from kitchen.ports.event_store import Record

if TYPE_CHECKING:
    from kitchen.history.history import History

_CODEC = Codec()
_MISSING: Any = object()


def detail(record: Record, history: History | None = None) -> str:
    """The gist of an event; that it does not read, where it does not. `history`: that of its run,
    from which alone it is known which fields of a config were edited.
    """
    try:
        event: Any = fact_of(record).event
        if isinstance(event, RunEdited):
            before = NOTHING if history is None else _config_before(history, record.seq)
            return ", ".join(edited(event, before))
    except KitchenError as error:
        return f"! {error.message}"
    told = _DETAILS.get(record.type)
    return told(event) if told is not None else ""


def edited(event: RunEdited, before: msgspec.Raw) -> list[str]:
    """What somebody changed; `before`: the config until then."""
    told: list[str] = []
    if bytes(event.config):
        told += _differing(_tree(before), _tree(event.config), "config")
    if event.seed is not None:
        told.append(f"seed={event.seed}")
    return told + [f"state.{key}={_value(raw)}" for key, raw in event.state.items()]


def _config_before(history: History, seq: int) -> msgspec.Raw:
    store, run = history.store, history.run_id
    counting, config = live(store, run, seq - 1), history.started.config
    for record in store.read(run, until=seq - 1, types=["RunEdited"], path=""):
        event: Any = fact_of(record).event
        if bytes(event.config) and counting.counts(record.seq):
            config = event.config
    return config


def _tree(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return {}


def _differing(before: Any, after: Any, where: str) -> Iterator[str]:
    if before == after:
        return
    secret = isinstance(after, Mapping) and "$secret" in after
    if secret or not (isinstance(after, Mapping) and isinstance(before, Mapping)):
        yield f"{where}=" + ("(a secret)" if secret else _value(msgspec.json.encode(after)))
        return
    old, new = cast("Mapping[str, Any]", before), cast("Mapping[str, Any]", after)
    for name, value in new.items():
        yield from _differing(old.get(name, _MISSING), value, f"{where}.{name}")
    yield from (f"{where}.{name} is gone" for name in old if name not in new)


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
        f"after {'an' if event.after[:1] in tuple('aeiou') else 'a'} {event.after}, "
        f"by pid {event.host.pid}"
    )


def _rewound(event: Any) -> str:
    asked = ", as was asked" if event.asked else ""
    return f"to seq {event.to}{asked}: {event.reason or ', '.join(event.touched)}"


def _changed(event: Any) -> str:
    told = [each for each in event.differences if not each.startswith("renamed: ")]
    return "; ".join([*told, *(f"renamed: {was} -> {now}" for was, now in event.renamed.items())])


def _diverged(event: Any) -> str:
    return f"{event.key}: recorded {event.recorded}, found {event.found}"


def _failed(event: Any) -> str:
    return _gist(event.failure)


def _gist(failure: Failure) -> str:
    return " ".join(f"{failure.type}: {failure.message}".split())[:100]


def _attempt_failed(event: Any) -> str:
    told = _gist(event.failure)
    if event.discarded:
        told += f"  ({len(event.discarded)} change{_s(event.discarded)} discarded)"
    return f"{told}  (undecided)" if event.undecided else told


def _retry(event: Any) -> str:
    told = f"in {render.seconds(event.delay)}" if event.delay else "at once"
    return f"{told}, counted from seq {event.since}" if event.since else told


def _rolled_back(event: Any) -> str:
    return "" if event.failure is None else f"not possible: {_gist(event.failure)}"


def _decided(event: Any) -> str:
    changes = ", ".join(f"{key}={_value(value)}" for key, value in event.changes.items())
    return f"{event.choice}: {changes}" if changes else event.choice


def _block_failed(event: Any) -> str:
    told = f"ends the {event.ends}, from {event.at}: {_gist(event.failure)}"
    return f"{told}  ({len(event.undo)} to roll back)" if event.undo else told


def _handled(event: Any) -> str:
    return f"closed {', '.join(event.closed)}" if event.closed else ""


def _s(things: Sequence[Any]) -> str:
    return "" if len(things) == 1 else "s"


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
    "RunForked": lambda event: f"from {event.parent}, by pid {event.host.pid}",
    "RunResumed": _resumed,
    "RunRewound": _rewound,
    "RewindDiverged": _diverged,
    "RunInterrupted": lambda event: event.signal,
    "RunFailed": _failed,
    "RunCancelled": lambda event: f"by {event.by}" if event.by else "",
    "StageFailed": _attempt_failed,
    "StageInterrupted": lambda event: "" if event.begun else "not begun",
    "StageCompleted": lambda event: "known: it did not run again" if event.known else "",
    "RetryScheduled": _retry,
    "StageSkipped": _failed,
    "StageRolledBack": _rolled_back,
    "EffectDecided": _decided,
    "BlockFailed": _block_failed,
    "FailureHandled": _handled,
    "TimeLimitStarted": lambda event: f"{event.seconds:g} s",
    "WorkflowChanged": _changed,
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

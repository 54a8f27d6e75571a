"""What a log holds compared with what an outcome holds: effects of stages, items, saved states.

Rules:

1. Effects are compared by key: of each key of the state and each metric, what was done to it, in
   order. Which key came first is no difference.
2. Texts that are equal are not decoded. One that does not decode is compared as it stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from kitchen.errors import KitchenError
from kitchen.machine.codec.arrays import Packed, unpack_state
from kitchen.machine.events import (
    BlobItems,
    Collection,
    Effect,
    InlineItems,
    LoopStopped,
    Manifest,
    MetricRecorded,
    RangeItems,
    RefItems,
    StateAppended,
    StateDeleted,
    StateIncremented,
    StateMerged,
    StatePut,
    to_json,
)
from kitchen.runner.replaying.values import Difference, difference, shortened, shown

Read = Callable[[Raw], Any]
"""The value of a text. Raises `KitchenError`."""

NOTHING = "nothing"
_VERBS: dict[type[Any], str] = {
    StatePut: "",
    StateAppended: "append ",
    StateIncremented: "add ",
    StateMerged: "merge ",
    StateDeleted: "deleted",
    LoopStopped: "asked for",
}


class Apart(NamedTuple):
    """A key under which recorded and found differ, at `seq` (0: nothing is recorded there)."""

    key: str
    differs: Difference
    seq: int = 0


def effects_apart(
    recorded: Sequence[tuple[int, Effect]], found: Iterable[Effect], read: Read, tolerance: float
) -> Iterator[Apart]:
    """Every key whose effects differ; the recorded ones come with their seqs."""
    before: dict[str, list[tuple[int, Effect]]] = {}
    after: dict[str, list[Effect]] = {}
    for seq, effect in recorded:
        before.setdefault(_label(effect), []).append((seq, effect))
    for effect in found:
        after.setdefault(_label(effect), []).append(effect)
    for key in dict.fromkeys((*before, *after)):
        then, now = before.get(key, []), after.get(key, [])
        differs = _apart([effect for _, effect in then], now, read, tolerance)
        if differs is not None:
            yield Apart(key, differs, then[0][0] if then else 0)


def values_apart(was: Raw, now: Raw, read: Read, tolerance: float) -> Difference | None:
    """Where two encoded values differ."""
    if bytes(was) == bytes(now):
        return None
    try:
        return difference(read(was), read(now), tolerance)
    except KitchenError:
        return Difference("", _text(was), _text(now))


def _text(raw: Raw) -> str:
    return shortened(bytes(raw).decode("utf-8", "backslashreplace"))


def _label(effect: Effect) -> str:
    if isinstance(effect, MetricRecorded):
        return f"metric.{effect.name}"
    return "stop_loop" if isinstance(effect, LoopStopped) else f"state.{effect.key}"


def _apart(
    then: Sequence[Effect], now: Sequence[Effect], read: Read, tolerance: float
) -> Difference | None:
    if [_json(effect) for effect in then] == [_json(effect) for effect in now]:
        return None
    if len(then) != len(now):
        return Difference("", _all_told(then, read), _all_told(now, read))
    for one, other in zip(then, now, strict=True):
        found = _one_apart(one, other, read, tolerance)
        if found is not None:
            return found
    return None


def _json(effect: Effect) -> tuple[str, str]:
    return type(effect).__name__, to_json(effect)


def _one_apart(one: Effect, other: Effect, read: Read, tolerance: float) -> Difference | None:
    was, now = _raw(one), _raw(other)
    steps = [effect.step for effect in (one, other) if isinstance(effect, MetricRecorded)]
    if type(one) is not type(other) or was is None or now is None or len(set(steps)) > 1:
        return Difference("", _told(one, read), _told(other, read))
    found = values_apart(was, now, read, tolerance)
    if found is None or found.place:
        return found
    verb = _VERBS.get(type(one), "")
    return found._replace(recorded=verb + found.recorded, found=verb + found.found)


def _raw(effect: Effect) -> Raw | None:
    match effect:
        case StatePut() | MetricRecorded():
            return effect.value
        case StateAppended() | StateMerged():
            return effect.values
        case StateIncremented():
            return effect.by
        case _:
            return None


def _all_told(effects: Sequence[Effect], read: Read) -> str:
    if not effects:
        return NOTHING
    return shortened(", ".join(_told(effect, read) for effect in effects))


def _told(effect: Effect, read: Read) -> str:
    """An effect in a few words."""
    raw = _raw(effect)
    if raw is None:
        return _VERBS[type(effect)]
    try:
        text = shown(read(raw))
    except KitchenError:
        text = _text(raw)
    if isinstance(effect, MetricRecorded) and effect.step is not None:
        text = f"{text} at step {effect.step}"
    return _VERBS.get(type(effect), "") + text


# --- the items of a loop --------------------------------------------------------------------------


def items_apart(
    was: Collection | None,
    now: Collection | None,
    fetch: Callable[[str], bytes],
    read: Read,
    tolerance: float,
) -> Difference | None:
    """Where two recorded collections differ."""
    if was == now or was is None or now is None:
        return None
    by_digest = isinstance(was, RefItems) or isinstance(now, RefItems)
    then, again = (_texts(items, fetch, digests=by_digest) for items in (was, now))
    for index, (one, other) in enumerate(zip(then, again, strict=False)):
        if by_digest:
            differs = None if one == other else Difference("", _text(one), _text(other))
        else:
            differs = values_apart(one, other, read, tolerance)
        if differs is not None:
            return differs._replace(place=f"[{index}]{differs.place and '.'}{differs.place}")
    if was.count != now.count:
        return Difference("", f"{was.count} items", f"{now.count} items")
    return None


def _texts(items: Collection, fetch: Callable[[str], bytes], *, digests: bool) -> list[Raw]:
    """The text of each item, or its digest: of some, that is all that is kept."""
    if digests and not isinstance(items, RefItems):
        whole = _texts(items, fetch, digests=False)
        return [Raw(msgspec.json.encode(hashlib.sha256(bytes(text)).hexdigest())) for text in whole]
    match items:
        case RangeItems():
            stop = items.start + items.count * items.step
            return [Raw(str(i).encode()) for i in range(items.start, stop, items.step)]
        case InlineItems():
            return msgspec.json.decode(items.values, type=list[Raw])
        case BlobItems() | RefItems():
            return msgspec.json.decode(fetch(items.blob), type=list[Raw])
        case _:
            return []


# --- saved states ---------------------------------------------------------------------------------


def states_apart(
    was: Manifest | Packed, now: Packed, fetch: Callable[[str], bytes], tolerance: float
) -> Difference | None:
    """The first leaf at which two state dicts differ.

    Raises `KitchenError` where one does not decode, or a blob is missing.
    """
    if bytes(was.tree) == bytes(now.tree):
        return None
    known: Mapping[str, bytes] = {**(was.blobs if isinstance(was, Packed) else {}), **now.blobs}

    def have(digest: str) -> bytes:
        found = known.get(digest)
        return fetch(digest) if found is None else found

    return difference(unpack_state(was.tree, have), unpack_state(now.tree, have), tolerance)

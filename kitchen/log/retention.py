"""Which runs are no longer wanted, and removing them.

Rules:

1. A run goes whole or not at all, and only what was asked for goes: it has one of the statuses, its
   last event is old enough, and it is not among the newest of its workflow.
2. A run that somebody holds stays, and so does one with a fork that stays. Forks go before what
   they were forked of, each run in a transaction of its own.
3. Runs first, then blobs: a kill in between leaves blobs that no run names, which the next call
   takes. A young blob stays, as blobs are stored before the event that names them.
4. What a dry run tells is what the call then does, as long as nothing else happens to the store.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from graphlib import CycleError, TopologicalSorter
from math import isfinite
from typing import NamedTuple, TypeAlias

from kitchen.errors import (
    ArgumentError,
    BlobLost,
    CorruptStore,
    KitchenError,
    RunHeld,
    RunInUse,
    UnknownRun,
)
from kitchen.ports.event_store import EventStore, RunInfo

FINISHED = ("completed", "cancelled")
Status: TypeAlias = "Callable[[EventStore, str], str]"

_YOUNG = 3600.0  # seconds for which a blob may wait for the event that names it
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])")
_SHOWN = 5  # names in a message


class Gone(NamedTuple):
    """A run that goes. `events`: without those of a parent; `last`: the time of its last event, in
    ns since the epoch."""

    run: str
    workflow: str
    status: str
    events: int
    last: int


class Kept(NamedTuple):
    """A run that stays, and why."""

    run: str
    why: str


class Collected(NamedTuple):
    """What went, or would go; the newest run comes first. `events`: of all removed runs; `blobs`
    and `blob_bytes`: how many blobs no run names any more, and how large they are."""

    removed: tuple[Gone, ...]
    kept: tuple[Kept, ...]
    events: int
    blobs: int
    blob_bytes: int
    dry_run: bool


class _Asked(NamedTuple):
    """Which runs are to go, and at what time (seconds since the epoch) that is asked."""

    status: Status
    statuses: Collection[str]
    keep_last: int | None
    older_than: float | None
    now: float


def parse_age(text: str) -> float:
    """An age like "45m", "12h", "30d" or "2w", in seconds.

    Raises `ArgumentError`.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise ArgumentError(
            f"{text!r} is no age: expected a number and a unit",
            hint="write 45m, 12h, 30d or 2w (s, m, h, d, w)",
        )
    return float(found[1]) * _UNITS[found[2]]


def collect(
    store: EventStore,
    *,
    status: Status,
    keep_last: int | None = None,
    older_than: float | None = None,
    statuses: Collection[str] = FINISHED,
    workflow: str | None = None,
    dry_run: bool = False,
    compact: bool = False,
    now: float | None = None,
) -> Collected:
    """Remove runs that are no longer wanted, and all blobs that no run names.

    `status`: tells a run's status. `keep_last`: how many runs stay of each workflow, whatever their
    status. `older_than`: how long ago the last event must be, in seconds. `workflow`: the only
    workflow whose runs are looked at. `dry_run`: change nothing. `compact`: give the space back to
    the file system. `now`: the time for `older_than`, in seconds since the epoch; None: the clock.

    Raises `ArgumentError` where neither `keep_last` nor `older_than` is given, `StoreError`.
    """
    _check_arguments(keep_last, older_than, statuses)
    moment = time.time() if now is None else now
    asked = _Asked(status, frozenset(statuses), keep_last, older_than, moment)
    infos = store.runs()
    plan, kept = _planned(store, infos, asked, workflow)
    if dry_run:
        named = {
            digest
            for info in infos
            if info.run not in plan
            for digest in store.named_blobs(info.run)
        }
    else:
        plan = _removed(store, infos, plan, kept)
        named = set(store.named_blobs())
    blobs, size = _clear(store, named, dry_run=dry_run)
    if compact and not dry_run:
        store.compact()
    removed = tuple(plan[info.run] for info in infos if info.run in plan)
    stay = tuple(Kept(info.run, kept[info.run]) for info in infos if info.run in kept)
    events = sum(gone.events for gone in removed)
    return Collected(removed, stay, events, blobs, size, dry_run)


def _check_arguments(
    keep_last: int | None, older_than: float | None, statuses: Collection[str]
) -> None:
    if keep_last is None and older_than is None:
        raise ArgumentError(
            "nothing says which runs are no longer wanted",
            hint="give keep_last (--keep-last 10), older_than (--older-than 30d), or both",
        )
    if keep_last is not None and keep_last < 0:
        raise ArgumentError(f"keep_last is {keep_last}: expected a number of runs, 0 or more")
    if older_than is not None and not (isfinite(older_than) and older_than >= 0):
        raise ArgumentError(f"older_than is {older_than}: expected seconds, 0 or more")
    if isinstance(statuses, str):
        raise ArgumentError(f"statuses is the text {statuses!r}: expected several, in a tuple")


def _planned(
    store: EventStore, infos: list[RunInfo], asked: _Asked, workflow: str | None
) -> tuple[dict[str, Gone], dict[str, str]]:
    """What goes, forks first, and why the others of the workflow stay."""
    newest = _newest(infos, asked.keep_last)
    known = {info.run: info for info in infos}
    forks = _forks(infos)
    going: dict[str, Gone] = {}
    kept: dict[str, str] = {}
    for run in _forks_first(infos, forks):
        info = known[run]
        if workflow is not None and info.name != workflow:
            continue
        found = _fate(store, info, asked, run in newest)
        needed = [fork for fork in forks[run] if fork not in going]
        if isinstance(found, str):
            kept[run] = found
        elif needed:
            kept[run] = _forked(needed)
        else:
            going[run] = found
    return going, kept


def _newest(infos: list[RunInfo], keep_last: int | None) -> set[str]:
    """The last runs of each workflow; `infos` has the newest first."""
    newest: set[str] = set()
    counts: dict[str, int] = {}
    for info in infos:
        counts[info.name] = counts.get(info.name, 0) + 1
        if keep_last is not None and counts[info.name] <= keep_last:
            newest.add(info.run)
    return newest


def _forks(infos: list[RunInfo]) -> dict[str, list[str]]:
    """The forks of each run."""
    forks: dict[str, list[str]] = {info.run: [] for info in infos}
    for info in infos:
        if info.parent in forks:
            forks[info.parent].append(info.run)
    return forks


def _forks_first(infos: list[RunInfo], forks: dict[str, list[str]]) -> list[str]:
    try:
        return list(TopologicalSorter({info.run: forks[info.run] for info in infos}).static_order())
    except CycleError as error:
        raise CorruptStore(
            f"runs are said to be forks of each other: {', '.join(map(repr, error.args[1]))}",
            hint="kitchen verify tells all that is wrong; restore the store from a copy",
        ) from None


def _fate(store: EventStore, info: RunInfo, asked: _Asked, is_newest: bool) -> Gone | str:
    """The run as one that goes, or why it stays; its forks are another matter."""
    if info.owner is not None:
        note = f" ({info.owner.note})" if info.owner.note else ""
        return f"process {info.owner.pid} on {info.owner.host} holds it{note}"
    if is_newest:
        return f"it is among the newest {asked.keep_last} of its workflow"
    try:
        record = store.latest(info.run)
        last = info.created_at if record is None else record.at
        age = asked.now - last / 1e9
        if asked.older_than is not None and age <= asked.older_than:
            return (
                f"its last event is {_spelled(age)} old, not more than {_spelled(asked.older_than)}"
            )
        status = asked.status(store, info.run)
    except KitchenError as error:  # what is damaged may be all that somebody has left
        return f"its log does not read: {error.message}"
    if status not in asked.statuses:
        return f"its status is {status}"
    return Gone(info.run, info.name, status, info.head - info.forked_at, last)


def _removed(
    store: EventStore, infos: list[RunInfo], plan: dict[str, Gone], kept: dict[str, str]
) -> dict[str, Gone]:
    """Remove what goes; what cannot go by now is added to what is kept."""
    heads = {info.run: info.head for info in infos}
    forks = _forks(infos)
    gone: dict[str, Gone] = {}
    for run, told in plan.items():
        if needed := [fork for fork in forks[run] if fork in kept]:
            kept[run] = _forked(needed)
            continue
        try:
            if store.head(run) != heads[run]:
                kept[run] = "it has gone on since it was looked at"
                continue
            store.remove_runs([run])
        except UnknownRun:  # somebody else has removed it
            continue
        except (RunHeld, RunInUse) as error:  # taken up, or forked, since it was looked at
            kept[run] = error.message
            continue
        gone[run] = told
    return gone


def _clear(store: EventStore, named: set[str], *, dry_run: bool) -> tuple[int, int]:
    """Remove the blobs that are not named; how many, and their bytes."""
    blobs, count, total = store.blobs, 0, 0
    for digest in blobs.digests():
        if digest in named:
            continue
        try:
            size = blobs.size(digest)
            goes = blobs.remove(digest, older_than=_YOUNG, dry_run=dry_run)
        except BlobLost:  # somebody else was faster
            continue
        if goes:
            count, total = count + 1, total + size
    return count, total


def _forked(forks: list[str]) -> str:
    more = f" and {len(forks) - _SHOWN} more" if len(forks) > _SHOWN else ""
    return f"forks of it stay: {', '.join(map(repr, forks[:_SHOWN]))}{more}"


def _spelled(seconds: float) -> str:
    """A time in the largest unit that it fills."""
    for unit, size in reversed(_UNITS.items()):
        if seconds >= size:
            return f"{seconds / size:.3g}{unit}"
    return f"{max(seconds, 0.0):.3g}s"

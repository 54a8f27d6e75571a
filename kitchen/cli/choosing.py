"""Which run is meant: by its id, by a prefix of it, or because it is the newest unfinished one.

Rules: an id that is there is always that run, also where it is a prefix of others. Of several that
a prefix fits none is chosen: they are listed.
"""

from __future__ import annotations

from typing import NamedTuple

from kitchen.errors import UnknownRun
from kitchen.history.history import is_taken_back, status_of
from kitchen.ports.event_store import EventStore, RunInfo

UNFINISHED = ("crashed", "failed", "forked", "interrupted", "undecided")


class Candidate(NamedTuple):
    """A run and how it stands; `last_at` is when its last event was recorded."""

    info: RunInfo
    status: str
    last_at: int


def named(store: EventStore, given: str) -> str:
    """The id of the run that is meant.

    Raises `UnknownRun`: there is none, or more than one.
    """
    infos = sorted(store.runs(), key=lambda info: info.created_at)
    ids = [info.run for info in infos]
    if given in ids:
        return given
    fitting = [run for run in ids if run.startswith(given)] if given else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        shown = "\n".join(f"  {run}" for run in fitting[-20:])
        raise UnknownRun(
            f"{given!r} is the beginning of {len(fitting)} runs:\n{shown}", hint="give more of it"
        )
    return store.run(given).run  # names the near matches, where it has not begun meanwhile


def candidates(store: EventStore) -> list[Candidate]:
    """All runs, the newest first."""
    infos = sorted(store.runs(), key=lambda info: info.created_at, reverse=True)
    return [look(store, info) for info in infos]


def look(store: EventStore, info: RunInfo) -> Candidate:
    """How a run stands."""
    last = store.latest(info.run)
    return Candidate(info, status_of(store, info.run), last.at if last else info.created_at)


def unfinished(store: EventStore) -> list[Candidate]:
    """The runs that can be resumed, the newest first."""
    found = [one for one in candidates(store) if one.status in UNFINISHED]
    return [one for one in found if not is_taken_back(store, one.info.run)]

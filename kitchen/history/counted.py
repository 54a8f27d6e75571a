"""The events of a run that count, under the paths that their nodes have today.

Rules:

1. What a rewind superseded is left out. Rewinds themselves, and what else happened to the run as a
   whole, are not.
2. A node that was renamed has its new path in all that is told, also of before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kitchen.log.live import live
from kitchen.log.renaming import Renaming
from kitchen.ports.event_store import EventStore, Record


def counted(
    store: EventStore, run: str, renaming: Renaming, types: Collection[str] | None = None
) -> Iterator[Record]:
    """The records that count, in their order, with today's paths."""
    for first, last in live(store, run).stretches:
        for record in store.read(run, after=first - 1, until=last, types=types):
            if renaming:
                yield record._replace(path=renaming.path(record.seq, record.path))
            else:
                yield record

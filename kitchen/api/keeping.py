"""The verbs about what is kept: removing runs, and taking them from store to store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kitchen.adapters.event_store import StoreLike, opened
from kitchen.api.running import check_id
from kitchen.history.history import status_of
from kitchen.log import archive, retention
from kitchen.log.archive import Exported
from kitchen.log.retention import Collected


def collect_runs(
    *,
    keep_last: int | None = None,
    older_than: float | str | None = None,
    statuses: Sequence[str] = retention.FINISHED,
    workflow: str | None = None,
    dry_run: bool = False,
    compact: bool = False,
    store: StoreLike = None,
) -> Collected:
    """Remove runs that are over, and the blobs that no run names any more.

    A run goes if it is among none of the newest `keep_last` of its workflow, its last event is
    `older_than` (seconds, or a text like "30d"), and it has one of the `statuses`. One that somebody
    executes stays, and so does one with a fork that stays. `dry_run`: only tell. `compact`: give the
    room back to the file system.

    Raises `ArgumentError`, `StoreError`.
    """
    age = retention.parse_age(older_than) if isinstance(older_than, str) else older_than
    with opened(store, create=False, read_only=dry_run) as events:
        return retention.collect(
            events,
            status=status_of,
            keep_last=keep_last,
            older_than=age,
            statuses=statuses,
            workflow=workflow,
            dry_run=dry_run,
            compact=compact,
        )


def export_run(
    run_id: str,
    target: str | os.PathLike[str] | None = None,
    *,
    replace: bool = False,
    store: StoreLike = None,
) -> Exported:
    """Write a run with its blobs to one file (None: `<run>.kitchen` in the current folder), complete
    or not at all. `replace`: one that is there already.

    Raises `UnknownRun`, `CorruptStore`, `BlobLost`, `StoreError`.
    """
    path = Path(target) if target is not None else Path(f"{run_id.replace('/', '-')}.kitchen")
    with opened(store, create=False, read_only=True) as events:
        return archive.export(events, run_id, path, replace=replace)


def import_run(
    source: str | os.PathLike[str], *, run_id: str | None = None, store: StoreLike = None
) -> str:
    """Read a run from a file that `export_run` wrote; its id, which is the one that it had or
    `run_id`.

    Raises `RunExists`, `ForeignStore`, `CorruptStore`, `StoreError`.
    """
    check_id(run_id)
    with opened(store) as events:
        return archive.import_run(events, Path(source), run=run_id)

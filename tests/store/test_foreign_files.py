"""A store that somebody else made: what stands where a table or a blob should is not followed."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from store import BlobCorrupt, CorruptLog, open_store

DIGEST = "ab" + "0" * 62


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_store(tmp_path / "k.db"):
        pass
    return tmp_path / "k.db"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_table_that_is_a_view_without_end_is_refused(path: Path, *, read_only: bool) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE events")
        db.execute(
            "CREATE VIEW events AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
            "SELECT id, 1 AT, 1 type, 1 path, '' visit, 0 attempt, '{}' payload, x'' chain FROM n"
        )
    db.close()
    with pytest.raises(CorruptLog, match="events is a view"), open_store(path, read_only=read_only):
        pass


@pytest.mark.parametrize("kind", ["link", "device", "pipe"])
def test_a_blob_that_is_no_file_is_not_read(path: Path, kind: str) -> None:
    folder = path.with_name("k.db.blobs") / "ab"
    folder.mkdir(parents=True)
    place = folder / DIGEST[2:]
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else __file__)
    with open_store(path, read_only=True) as store, pytest.raises(BlobCorrupt, match="no file"):
        store.blobs.get(DIGEST)

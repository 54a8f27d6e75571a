"""The contract of event stores, held by the fake and by the store on a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kitchen.testing import FakeEventStore, VirtualClock
from store import MemoryStore, open_store
from tests.store.test_contract import *  # noqa: F403  (its tests, with the stores below)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "events.db"


@pytest.fixture(params=["fake", "fake around a file", "on a clock"])
def store(request: pytest.FixtureRequest, file: Path) -> Iterator[Any]:
    """An empty store of each kind."""
    if request.param == "fake":
        made: Any = FakeEventStore(crash_at=10**9)
    elif request.param == "on a clock":
        made = VirtualClock().store(MemoryStore())
    else:
        made = FakeEventStore(open_store(file), fail_at=10**9)
    with made as opened:
        yield opened

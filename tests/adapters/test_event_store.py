"""What the event store refuses, told in kitchen's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kitchen import errors
from kitchen.adapters.event_store import Translating, opened
from store import MemoryStore, NewEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T = NewEvent("T")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    where: Any = tmp_path / "kitchen.db" if request.param == "file" else MemoryStore()
    with opened(where) as found:
        found.create_run("p", "n", [T, T])
        found.fork_run("f", "n", "p", 1, [T])
        yield found


def test_what_is_refused_becomes_an_error_of_ours(store: Any) -> None:
    assert isinstance(store, Translating)
    for use, error in (
        (lambda: store.fork_run("new", "n", "p", 3, [T]), errors.ArgumentError),
        (lambda: store.fork_run("new", "n", "nope", 1, [T]), errors.UnknownRun),
        (lambda: store.fork_run("f", "n", "p", 1, [T]), errors.RunExists),
        (lambda: store.adopt_run("f", "n", 1, [(1, T)]), errors.RunExists),
        (lambda: store.remove_runs(["p"]), errors.StoreError),
        (lambda: store.remove_runs(["nope"]), errors.UnknownRun),
        (lambda: list(store.named_blobs("nope")), errors.UnknownRun),
    ):
        with pytest.raises(error):
            use()
    with store.lease("f"), pytest.raises(errors.RunHeld):
        store.remove_runs(["f"])
    assert sorted(info.run for info in store.runs()) == ["f", "p"]


def test_the_rest_passes(store: Any) -> None:
    assert store.adopt_run("a", "n", 1, [(1, T)]) == 1
    assert list(store.named_blobs()) == []
    assert store.latest("f", ["T"], "").seq == 2
    assert store.remove_runs(["p", "f"])[:2] == (2, 3)
    store.compact()
    assert [info.run for info in store.runs()] == ["a"]

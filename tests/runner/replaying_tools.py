"""What the tests of replays share: running, killing and replaying small workflows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import kitchen
from kitchen.log.replayed import Divergence, Replay
from kitchen.runner.replaying.rehearse import rehearse
from store import MemoryStore
from tests.runner.running import Killed, done, flow


def ran(build: Callable[[Any], Any], store: Any = None, **given: Any) -> Any:
    """The store in which a workflow has run as `r`."""
    store = MemoryStore() if store is None else store
    done(flow(build), store=store, **given)
    return store


def ran_and_killed(build: Callable[[Any], Any], store: Any = None) -> Any:
    """The store in which it was killed and then came to its end."""
    store = MemoryStore() if store is None else store
    with pytest.raises(Killed):
        done(flow(build), store=store)
    kitchen.resume("r", flow(build), store=store)
    return store


def rehearsed(
    build: Callable[[Any], Any], store: Any, *, backend: str = "asyncio", **given: Any
) -> Replay:
    """The replay of the run `r` with this workflow."""
    declared = given.pop("declared", {})
    return anyio.run(
        partial(rehearse, flow(build, **declared), store, "r", **given), backend=backend
    )


def keys(replay: Replay) -> list[tuple[str, tuple[int, ...], str]]:
    """Where it found differences, and in what."""
    return [(each.path, each.visit, each.key) for each in replay.divergences]


def only_one(replay: Replay) -> Divergence:
    """The one difference that there is."""
    (found,) = replay.divergences
    return found

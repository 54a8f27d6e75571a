"""The causes of a crash matrix tell apart what looks alike, and say what to do.

Rules: the right cause is the first; behind one that is proven stand two others at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kitchen.testing import CrashMatrixFailed, crash_matrix
from tests.testing import planted, planted_causes

FORGETS = "a state_dict that forgets"
STATELESS = "a resource that changes and has no state"
DECLARED = "a resource that is declared stateful=False"
PEEKED = "a resource that is changed through peek()"
SHARED = "a load_state_dict that does not load in place"
SOURCE = "a loop source that differs on the second call"
OUTSIDE = "something outside"
MEMORY = "an adapter that keeps something in memory"
GLOBAL = "a hidden global"
IMPORTED = "a hidden global, or what a module does when it is imported"
BODY = "a body that is not idempotent"


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    yield
    planted.put_back()
    planted_causes.CACHE.unlink(missing_ok=True)


def found(workflow: Any, *, processes: int = 0, **how: Any) -> CrashMatrixFailed:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(workflow, processes=processes, **how)
    return caught.value


def test_a_state_dict_that_is_empty_is_one() -> None:
    failed = found(planted_causes.empty_state)
    assert (failed.cause, failed.place) == (FORGETS, "rounds[0]/push")
    assert "buffer.items was [0], and came back as []" in str(failed)


def test_a_state_dict_that_is_not_used() -> None:
    failed = found(planted_causes.declared)
    assert (failed.cause, failed.place) == (DECLARED, "rounds[0]/update")
    assert "'average' has state_dict() and load_state_dict(), and is declared" in str(failed)


def test_no_state_dict_and_nothing_declared() -> None:
    assert ", and no stateful=False" not in str(found(planted.stateless_momentum))
    assert ", and no stateful=False" in str(found(planted.stateless_counter))


def test_changed_through_peek() -> None:
    failed = found(planted_causes.peeks)
    assert (failed.cause, failed.place) == (PEEKED, "rounds[0]/update_peeked")
    assert "To change it, take ctx.resources['average']" in str(failed)
    assert FORGETS not in str(failed)


def test_shared_before_the_crash_and_not_after() -> None:
    failed = found(planted_causes.loads_not_in_place)
    assert (failed.cause, failed.place) == (SHARED, "rounds[0]/train")
    assert "optimizer.params was the same as in 'model' before the crash, and not after" in str(
        failed
    )


@pytest.mark.parametrize(
    ("workflow", "how"),
    [
        (planted_causes.remembers, {"adapters": planted_causes.services}),
        (planted_causes.remembers_provided, {}),
    ],
    ids=["function", "provider"],
)
def test_adapters_that_remember(workflow: Any, how: dict[str, Any]) -> None:
    failed = found(workflow, **how)
    assert (failed.cause, failed.place) == (MEMORY, "rounds[1]/call")


def test_adapters_that_have_nothing_to_do_with_it() -> None:
    failed = found(planted.file_grows, adapters=planted_causes.services, prepare=planted.put_back)
    assert failed.cause == BODY
    assert MEMORY not in str(failed)


def test_a_file_that_the_first_run_has_left() -> None:
    failed = found(planted_causes.caches_in_a_file)
    assert (failed.cause, failed.place) == (OUTSIDE, "make_or_read")
    assert "(prepare= puts it back)" in str(failed)
    put_back = planted_causes.CACHE.unlink
    report = crash_matrix(
        planted_causes.caches_in_a_file,
        processes=0,
        points=["before:1"],
        prepare=lambda: put_back(missing_ok=True),
    )
    assert report.status == "completed"


def test_chance_that_no_seed_takes_away_is_not_outside() -> None:
    failed = found(planted_causes.own_chance)
    assert failed.cause == "unseeded randomness"
    assert "uuid4" in str(failed)


def test_an_attribute_that_is_a_mere_cache() -> None:
    failed = found(planted_causes.counts_calls)
    assert failed.cause == FORGETS
    assert 'leave it out: exclude="resource.average.calls"' in str(failed)
    report = crash_matrix(
        planted_causes.counts_calls, processes=0, exclude="resource.average.calls"
    )
    assert report.status == "completed"
    assert "leave it out: exclude=" not in str(found(planted.forgets_a_field))


def test_a_resource_of_which_nothing_can_be_seen() -> None:
    failed = found(planted_causes.generator)
    assert failed.cause == STATELESS
    assert "'numbers' (generator) has no state that could be saved or compared" in str(failed)


def test_a_global_that_cannot_be_looked_into() -> None:
    failed = found(planted_causes.thread_local)
    assert failed.cause == GLOBAL
    assert "these could not be looked into: LOCAL (local)" in str(failed)
    assert "LOCAL" not in str(found(planted_causes.beside_a_thread_local))


def test_a_stream_that_its_own_state_has_put_back() -> None:
    failed = found(planted_causes.stream_put_back, points=["after:76"])
    assert failed.cause == SOURCE
    assert "Its load_state_dict() put it back to item 32" in str(failed)
    assert "`over` must give the same items" not in str(failed)


@pytest.mark.slow
def test_what_a_test_has_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_causes, "RATE", 2)
    failed = found(planted_causes.patched, processes=1)
    assert failed.cause == IMPORTED
    assert "(monkeypatch, fixtures, conftest) does not reach a fresh process" in str(failed)


def test_how_many_causes_are_told() -> None:
    proven, guessed = found(planted_causes.peeks), found(planted.file_grows)
    assert "    3. " in str(proven)
    assert "    4. " not in str(proven)
    assert "    4. " in str(guessed)

"""The crash matrix finds every planted mistake, names the stage where it arose, and the cause first.

Rules: each mistake is there in more than one shape. Those that only a fresh process shows are tried
in fresh processes; the others also without, where less can be known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kitchen.testing import CrashMatrixFailed, crash_matrix
from tests.testing import planted

RANDOM = "unseeded randomness"
GLOBAL = "a hidden global"
IMPORTED = "a hidden global, or what a module does when it is imported"
BODY = "a body that is not idempotent"
FORGETS = "a state_dict that forgets"
STATELESS = "a resource that changes and has no state"
SOURCE = "a loop source that differs on the second call"
TIME = "the time"


def name_of(value: Any) -> str:
    return str(getattr(value, "name", "")) or "-"


HERE = [
    (planted.stateless_counter, STATELESS, "rounds[0]/count_up", "counter.count was 1"),
    (planted.stateless_momentum, STATELESS, "rounds[0]/step", "momentum.velocity"),
    (planted.stateless_buffer, STATELESS, "rounds[0]/collect", "buffer was [0.33"),
    (planted.global_count, GLOBAL, "rounds[0]/count_globally", "count"),
    (planted.class_attribute, GLOBAL, "rounds[0]/register", "Registry.made"),
    (planted.unseeded_python, RANDOM, "roll", "state rolled"),
    (planted.unseeded_numpy, RANDOM, "roll_numpy", "metric rolled"),
    (planted.seeded_once, RANDOM, "rounds[0]/roll", "seed_globals=True"),
    (planted.unseeded_own, RANDOM, "roll_own", "ctx.rng"),
    (planted.file_grows, BODY, "rounds[0]/write_line", "state lines is 3"),
    (planted.written_again_behind_a_rewind, BODY, "rounds[0]/train_and_write", "lines is 3"),
    (planted.producer_counts, BODY, "tickets[0]/producer", "decision item"),
    (planted.forgets_a_field, FORGETS, "rounds[0]/update", "model.used was 1"),
    (planted.forgets_inside, FORGETS, "rounds[0]/update", "model.schedule.rate was 0.5"),
    (planted.does_not_load, FORGETS, "rounds[0]/update", "state_dict()['used'] was 1"),
    (planted.forgets_in_silence, FORGETS, "rounds[0]/touch_only", "model.used was 1"),
    (planted.source_of_objects, SOURCE, "objects", "item 0.value of the loop objects was 10"),
    (planted.source_of_a_stream, SOURCE, "objects", "item 0.value of the loop objects was 10"),
    (planted.source_of_numbers, SOURCE, "numbers", "item 0 of the loop numbers was 10"),
    (planted.source_of_large_items, SOURCE, "large", "item 0 of the loop large"),
    (planted.takes_the_time, TIME, "note_time", "exclude="),
]
ELSEWHERE = [
    (
        planted.global_count,
        GLOBAL,
        "rounds[0]/count_globally",
        "every fresh process gives the same",
    ),
    (planted.global_table, GLOBAL, "sum_up", "in a fresh process, by SIGKILL"),
    (planted.class_attribute, GLOBAL, "rounds[0]/register", "Registry.made"),
    (planted.imported, IMPORTED, "note_birth", "nobody killed either"),
    (planted.file_grows, BODY, "rounds[0]/write_line", "state lines is 3"),
    (planted.forgets_a_field, FORGETS, "rounds[0]/update", "model.used was 1"),
    (planted.source_of_a_stream, SOURCE, "objects", "item 0.value of the loop objects"),
]


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    yield
    planted.put_back()


def found(workflow: Any, **how: Any) -> CrashMatrixFailed:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(workflow, prepare=planted.put_back, **how)
    return caught.value


@pytest.mark.parametrize(("workflow", "cause", "place", "told"), HERE, ids=name_of)
def test_found_in_this_process(workflow: Any, cause: str, place: str, told: str) -> None:
    failed = found(workflow, processes=0)
    assert (failed.cause, failed.place) == (cause, place)
    assert f"1. {cause}: " in str(failed)
    assert f"arose in:  {place}\n" in str(failed)
    assert told in str(failed)


@pytest.mark.slow
@pytest.mark.parametrize(("workflow", "cause", "place", "told"), ELSEWHERE, ids=name_of)
def test_found_with_fresh_processes(workflow: Any, cause: str, place: str, told: str) -> None:
    failed = found(workflow, processes=2)
    assert (failed.cause, failed.place) == (cause, place)
    assert told in str(failed)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_adapter_that_counts_calls(backend: str) -> None:
    ledger = planted.Ledger()

    def put_back() -> None:
        ledger.paid = 0

    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(
            planted.pays_twice,
            adapters={"ledger": ledger},
            prepare=put_back,
            processes=0,
            backend=backend,
        )
    assert (caught.value.cause, caught.value.place) == (BODY, "rounds[0]/pay")


def test_the_point_that_is_named_fails_again_alone() -> None:
    failed = found(planted.forgets_a_field, processes=0)
    call = str(failed).rpartition("again:")[2]
    assert "crash_matrix(forgets_a_field, " in call
    assert f'points=["{failed.point}"])' in call
    again = found(planted.forgets_a_field, points=[failed.point])
    assert again.difference == failed.difference
    assert again.cause == failed.cause
    assert "1 of 1 failed" in str(again)


def test_what_is_excluded_is_not_compared() -> None:
    report = crash_matrix(planted.stateless_buffer, processes=0, exclude="resource.buffer")
    assert report.status == "completed"
    report = crash_matrix(planted.takes_the_time, processes=0, exclude=["state.at"])
    assert report.points > 3
    failed = found(planted.forgets_a_field, processes=0, exclude=["state.sums"])
    assert failed.difference.startswith("rounds[1]/checkpoint: checkpoint model is ")

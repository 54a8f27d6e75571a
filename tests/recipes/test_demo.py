"""How the demonstration compares two runs: it must see a difference where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import kitchen
from kitchen.recipes.char_lm import char_lm
from scripts.demo_compare import Aspect, aspects

if TYPE_CHECKING:
    from pathlib import Path

TINY = {
    "epochs": 1, "batches": 4, "batch_size": 8, "context": 2, "embedding": 2, "hidden": 3,
    "evaluate_on": 8, "evaluate_every": 2, "checkpoint_every": 3, "warmup": 1,
}  # fmt: skip


def compared(folder: Path, seeds: tuple[int, int]) -> dict[str, Aspect]:
    store = folder / "kitchen.db"
    for run, seed in zip("ab", seeds, strict=True):
        kitchen.run(char_lm, TINY, store=store, run_id=run, seed=seed)
    found = aspects(*(kitchen.history(run, store=store) for run in "ab"))
    return {aspect.name: aspect for aspect in found}


def test_equal_runs_are_equal_in_all_aspects(tmp_path: Path) -> None:
    found = compared(tmp_path, (3, 3))
    assert {"weights", "Adam's moments", "loss", "state", "the way taken"} < found.keys()
    for aspect in found.values():
        assert aspect.left, aspect.name
        assert aspect.difference == "", aspect.name
        assert len(set(aspect.digests)) == 1, aspect.name


def test_another_seed_is_told_by_its_first_difference(tmp_path: Path) -> None:
    found = compared(tmp_path, (3, 4))
    assert found["weights"].difference.startswith("params.embedding: ")
    assert found["loss"].difference.startswith("point 1, update 1: ")
    assert found["state"].difference.startswith("best_validation_loss: ")
    assert found["the way taken"].difference == ""
    assert len(set(found["weights"].digests)) == 2


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        (0.0, -0.0, "x: 0.0 and -0.0"),
        (1, 1.0, "x: 1 and 1.0"),
        (np.zeros(3), np.zeros(4), "x: float64(3,) and float64(4,)"),
        (np.zeros((2, 2)), np.array([[0.0, 0.0], [-0.0, 1.0]]), "at [1, 0] (2 of 4 differ)"),
    ],
)
def test_bits_count_and_not_only_values(left: Any, right: Any, told: str) -> None:
    assert told in Aspect("a", "", {"x": left}, {"x": right}).difference
    assert Aspect("a", "", {"x": left}, {"x": left}).difference == ""


def test_what_only_one_has_is_a_difference() -> None:
    assert Aspect("a", "", {}, {"x": 1}).difference == "x is in the second run only"

"""Two runs, bit for bit: weights, optimiser, metrics, state, and the way that they took.

Rules:

1. Everything is read from the store: the runs' processes are gone.
2. Two values are equal if their bits are: NaN equals NaN, and 0.0 is not -0.0.
3. What is unequal is told by its first difference.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from kitchen.machine.codec.arrays import unpack_state
from kitchen.machine.events import CheckpointSaved, ConditionEvaluated, Manifest, spell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kitchen import History
    from kitchen.history.history import Recorded

DECISIONS = ("LoopEntered", "ItemTaken", "ConditionEvaluated", "StageCompleted", "CheckpointSaved")


class Aspect(NamedTuple):
    """One thing that both runs have. The values by name, in the order in which they came."""

    name: str
    size: str
    left: Mapping[str, Any]
    right: Mapping[str, Any]

    @property
    def digests(self) -> tuple[str, str]:
        """SHA-256 over all bits of each side."""
        return _digest(self.left), _digest(self.right)

    @property
    def difference(self) -> str:
        """Where the two first differ, and how; empty where they do not."""
        for name in {**self.left, **self.right}:
            if name not in self.left or name not in self.right:
                side = "second" if name in self.right else "first"
                return f"{name} is in the {side} run only"
            left, right = self.left[name], self.right[name]
            if _bits(left) != _bits(right):
                return f"{name}: {_first_difference(left, right)}"
        return ""


def aspects(left: History, right: History) -> list[Aspect]:
    """Everything that must be equal."""
    found: list[Aspect] = []
    events = left.events, right.events
    saved = [_saved_arrays(past, log) for past, log in zip((left, right), events, strict=True)]
    for name, groups in (
        ("weights", ["params"]),
        ("Adam's moments", ["adam_mean", "adam_variance"]),
    ):
        sides = [{k: v for k, v in state.items() if k.split(".")[0] in groups} for state in saved]
        count = sum(array.size for array in sides[0].values())
        found.append(Aspect(name, f"{count:,} float32", *sides))
    for name in left.all_metrics | right.all_metrics:
        series = [
            # Numbered, so that a point that was counted twice is a difference.
            {f"point {i}, update {p.step}": p.value for i, p in enumerate(past.metrics(name), 1)}
            for past in (left, right)
        ]
        found.append(Aspect(name, f"{len(series[0]):,} points", *series))
    states = left.state_at(), right.state_at()
    found.append(Aspect("state", f"{len(states[0])} keys", *states))
    ways = [dict(_way(past, log)) for past, log in zip((left, right), events, strict=True)]
    found.append(Aspect("the way taken", f"{len(ways[0]):,} decisions", *ways))
    return found


def _saved_arrays(past: History, log: list[Recorded]) -> dict[str, Any]:
    """The session as the last checkpoint that counts saved it, flat."""
    manifests: dict[str, Manifest] = {}
    for record in log:
        if record.counts and isinstance(record.event, CheckpointSaved):
            manifests |= record.event.resources
    return dict(_flat(unpack_state(manifests["session"].tree, past.store.blobs.get)))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _way(past: History, log: list[Recorded]) -> Iterator[tuple[str, str]]:
    counted = (record for record in log if record.counts and record.type in DECISIONS)
    for number, record in enumerate(counted, 1):
        answer = record.event.answer if isinstance(record.event, ConditionEvaluated) else ""
        where = spell(record.path, record.visit, past.loops.get(record.path))
        yield f"decision {number}, {record.type} {where}", str(answer)


def _bits(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        return f"{array.dtype}{array.shape}".encode() + array.tobytes()
    return repr(value).encode()  # of floats it is exact


def _digest(values: Mapping[str, Any]) -> str:
    seen = hashlib.sha256()
    for name, value in values.items():
        bits = _bits(value)
        seen.update(f"{len(name)} {name} {len(bits)} ".encode() + bits)
    return seen.hexdigest()


def _first_difference(left: Any, right: Any) -> str:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        one, other = cast("list[np.ndarray[Any, Any]]", [left, right])
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return f"{one.dtype}{one.shape} and {other.dtype}{other.shape}"
        size = one.dtype.itemsize
        unequal = [a.reshape(-1).view(np.uint8).reshape(-1, size) for a in (one, other)]
        places = (unequal[0] != unequal[1]).any(axis=1).nonzero()[0]
        at = tuple(int(index) for index in np.unravel_index(int(places[0]), one.shape))
        return (
            f"{one[at]!r} and {other[at]!r} at {list(at)} ({len(places):,} of {one.size:,} differ)"
        )
    return f"{left!r} and {right!r}"

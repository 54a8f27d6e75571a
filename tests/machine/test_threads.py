"""Branches run in threads of their own: what they share is read and encoded by several at once.

Threads change places as often as the interpreter lets them; what must not depend on luck is shown
by a cell that is filled between two looks at it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Raw

from kitchen.machine import cells
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.codec.arrays import pack_state, unpack_state
from kitchen.machine.state import Cell, Delta

THREADS = 8


class Point(msgspec.Struct):
    x: Any
    y: Any = None


CODEC = Codec.for_types(Point)


class FilledMeanwhile(Cell):
    """A cell that another thread has read by the second look at its cache."""

    looks = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "cache":
            self.looks += 1
            return None if self.looks == 1 else (0, [1, 2])
        return super().__getattribute__(name)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads change places all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[], Any]) -> list[Any]:
    """What each of the threads got, which all begin at once."""
    gate = threading.Barrier(THREADS)

    def begin() -> Any:
        gate.wait()
        return work()

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(begin) for _ in range(THREADS)]]


def test_a_cell_may_be_read_by_another_between_two_looks() -> None:
    cell = FilledMeanwhile(Raw(b"[1,2]"))
    assert cells.read(cell, CODEC, no_blobs) == [1, 2]
    cell = FilledMeanwhile(Raw(b"[1,2]"), [Delta("append", Raw(b"[3]"))])
    assert cells.read(cell, CODEC, no_blobs) == [1, 2, 3]


def test_many_that_decode_one_cell_at_the_same_time_get_its_value() -> None:
    """All are inside of `decode` at once, where a blob is fetched."""
    text, blobs = CODEC.encode({"big": ["x" * 100] * 1000, "p": Point((1, 2))})
    grown = CODEC.encode({"more": 1}).json
    cell = Cell(Raw(text), [Delta("merge", Raw(grown))])
    inside = threading.Barrier(THREADS, timeout=30)

    def fetch(digest: str) -> bytes:
        inside.wait()
        return blobs[digest]

    wanted = {"big": ["x" * 100] * 1000, "p": Point((1, 2)), "more": 1}
    assert together(lambda: cells.read(cell, CODEC, fetch)) == [wanted] * THREADS
    assert cell.cache == (1, wanted)


@pytest.mark.usefixtures("hasty")
def test_cells_are_read_and_grown_by_many() -> None:
    for _ in range(60):
        cell = Cell(Raw(b"[0]"))

        def work(cell: Cell = cell) -> list[Any]:
            mine = cell
            for index in range(1, 6):
                assert cells.read(mine, CODEC, no_blobs) == list(range(index))
                mine = mine.with_delta(Delta("append", Raw(b"[%d]" % index)))
            assert mine.holds_objects() is False
            return cells.read(mine, CODEC, no_blobs)

        assert together(work) == [[0, 1, 2, 3, 4, 5]] * THREADS
        assert cells.read(cell, CODEC, no_blobs) == [0]


@pytest.mark.usefixtures("hasty")
def test_one_codec_serves_many() -> None:
    value = {
        "plain": [1, 2.5, None, "a"],
        "tagged": (1, {2, 3}, b"bytes", float("inf"), {"$": {1: [Point(1, [(2,)])]}}),
        "points": [Point({"a": (i,)}, [i]) for i in range(20)],
        "array": np.arange(12).reshape(3, 4).T,
        "large": np.arange(20_000),
    }
    text, blobs = CODEC.encode(value)

    def work() -> None:
        for _ in range(30):
            assert CODEC.encode(value) == (text, blobs)
            back = CODEC.decode(text, blobs.__getitem__)
            assert type(back["points"][3].y) is list
            assert CODEC.encode(back) == (text, blobs)

    together(work)


@pytest.mark.usefixtures("hasty")
def test_states_are_packed_by_many() -> None:
    tree = {"w": np.arange(5.0), "n": (1, 2), "deep": [{"b": np.ones((2, 3))}] * 3}
    packed = pack_state(tree)

    def work() -> None:
        for _ in range(20):
            assert pack_state(tree) == packed
            assert pack_state(unpack_state(packed.tree, packed.blobs.__getitem__)) == packed

    together(work)

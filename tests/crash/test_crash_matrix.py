"""The crash matrix: die at every append, before and after it, resume, compare with the whole run.

"Before" is the moment between a stage's effect and its commit; "after" is the moment when the
log has it and nothing has been performed yet; "blob" is the moment when blobs are written that
no event names yet. The same holds for a run that is asked to stop at every append.

Where things run side by side, how many appends there are depends on what finishes together: then
the points are those of the run that was seen, and a run that ends before its death is compared too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest

import kitchen
from kitchen.machine.codec import Codec
from store import MemoryStore, NewEvent
from tests.crash import kitchens, side_by_side
from tests.crash.kitchens import TRACE

ALL = kitchens.ALL + side_by_side.ALL
EVERY_POINT = 80  # more than so many points are sampled


class Killed(BaseException):
    """The process is gone."""


class Mortal(MemoryStore):
    """A store whose process dies at the nth append: "before" it, "after" it, or at a "blob"."""

    def __init__(self, store: MemoryStore, when: str, at: int) -> None:
        super().__init__()
        self.__dict__.update(store.__dict__)  # the runs outlive the process
        self.when = when
        self.left = at
        self.blobs: Any = _MortalBlobs(self, store.blobs)

    def create_run(
        self, run: str, name: str, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        self.die("before")
        head = super().create_run(run, name, events, at)
        self.die("after")
        return head

    def append(
        self, run: str, expected: int, events: Sequence[NewEvent], at: int | None = None
    ) -> int:
        self.die("before")
        head = super().append(run, expected, events, at)
        self.die("after")
        return head

    def die(self, moment: str) -> None:
        if moment == self.when:
            self.left -= 1
            if self.left < 0:
                raise Killed


class _MortalBlobs:
    def __init__(self, mortal: Mortal, blobs: Any) -> None:
        self._mortal = mortal
        self._blobs = blobs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def put(self, data: bytes) -> str:
        digest = self._blobs.put(data)
        self._mortal.die("blob")
        return digest


def whole_run(workflow: Any) -> tuple[Any, int, int]:
    """The run that is never killed, and how many appends and blobs it wrote."""
    many = 10**9
    appends = Mortal(MemoryStore(), "after", many)
    run = kitchen.run(workflow, store=appends, run_id="r", seed=7)
    blobs = Mortal(MemoryStore(), "blob", many)
    kitchen.run(workflow, store=blobs, run_id="r", seed=7)
    return run, many - appends.left, many - blobs.left


def essence(run: Any) -> tuple[bytes, Any]:
    """What must be equal: the state to the bit, and the metrics that count."""
    codec = Codec.for_types(kitchens.PlainState)
    state = {key: codec.encode(run.state[key]) for key in sorted(run.state)}
    metrics = {
        name: [(repr(p.value), p.step, p.path, p.visit) for p in points]
        for name, points in run.metrics.items()
    }
    return repr(state).encode(), metrics


def points(count: int) -> range:
    """Every point of so many, or a sample."""
    return range(0, count, 1 + count // EVERY_POINT)


def killed(workflow: Any, store: Mortal) -> Any:
    """Run it in a store that dies; the run, where it ended before."""
    try:
        run = kitchen.run(workflow, store=store, run_id="r", seed=7)
    except Killed:
        return None
    assert workflow in side_by_side.ALL, "it should have died"
    return run


def die_and_resume(workflow: Any, when: str, at: int) -> tuple[Any, MemoryStore]:
    store = MemoryStore()
    TRACE.clear()
    ended = killed(workflow, Mortal(store, when, at))
    if ended is not None:
        return ended, store
    if not store.runs():
        return kitchen.run(workflow, store=store, run_id="r", seed=7), store
    committed = [(r.path, r.visit) for r in store.read("r") if r.type == "StageCompleted"]
    before = len(TRACE)
    run = kitchen.resume("r", workflow, store=store)
    rewound = any(r.type == "RunRewound" for r in store.read("r"))
    if not rewound:
        again = {(path, visit) for path, visit, _ in TRACE[before:]}
        assert not again & set(committed)
    assert store.verify() == []
    return run, store


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
@pytest.mark.parametrize("when", ["before", "after", "blob"])
def test_crash_at_every_point(workflow: Any, when: str) -> None:
    whole, appends, blobs = whole_run(workflow)
    expected = essence(whole)
    count = blobs if when == "blob" else appends
    # After the last append there is nothing left to resume: the run is completed.
    for at in points(count - (when == "after")):
        run, _ = die_and_resume(workflow, when, at)
        assert essence(run) == expected, f"killed {when} append {at}"


def test_the_matrix_is_not_vacuous() -> None:
    """There are resources, rewinds, blobs and metrics in it."""
    run, _, blobs = whole_run(kitchens.training)
    assert blobs >= 2
    assert set(run.metrics) == {"loss"}
    _, store = die_and_resume(kitchens.training, "after", 20)
    types = {record.type for record in store.read("r")}
    assert {"RunRewound", "CheckpointSaved", "ResourceTouched", "ResourceRestored"} <= types


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_crash_of_the_resume_itself(workflow: Any) -> None:
    whole, appends, _ = whole_run(workflow)
    expected = essence(whole)
    for first in range(2, appends - 1, 5 + appends // EVERY_POINT * 7):
        for second in range(0, 12, 3):
            store = MemoryStore()
            if killed(workflow, Mortal(store, "after", first)) is not None:
                continue
            try:
                run = kitchen.resume("r", workflow, store=Mortal(store, "before", second))
            except Killed:
                run = kitchen.resume("r", workflow, store=store)
            assert essence(run) == expected


class Stopping:
    """An observer that sends SIGINT, once, when so many batches of facts have been written."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.sent = False

    def on_facts(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left < 0 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)

    def on_progress(self, *_: Any, **__: Any) -> None: ...


def stop(workflow: Any, store: MemoryStore, at: int) -> bool:
    """Start or resume it, and stop it by Ctrl-C; whether it stopped before its end."""
    try:
        kitchen.run(
            workflow,
            store=store,
            run_id="r",
            seed=7,
            if_exists="resume",
            observers=[Stopping(at)],
        )
    except kitchen.RunInterrupted:
        return True
    return False


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_stopped_by_ctrl_c_at_every_point(workflow: Any) -> None:
    """What was touched is saved at the stop, so nothing is taken back, and nothing is lost."""
    whole, appends, _ = whole_run(workflow)
    expected = essence(whole)
    stopped = 0
    for at in points(appends):
        store = MemoryStore()
        stopped += stop(workflow, store, at)
        run = kitchen.run(workflow, store=store, run_id="r", seed=7, if_exists="resume")
        assert essence(run) == expected, f"stopped behind append {at}"
        assert not [record for record in store.read("r") if record.type == "RunRewound"]
        assert store.verify() == []
    assert stopped > len(points(appends)) / 2


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_stopped_then_killed_then_stopped(workflow: Any) -> None:
    """Rewinds go to the checkpoint that a stop has saved as to any other."""
    whole, appends, _ = whole_run(workflow)
    expected = essence(whole)
    for at in points(appends)[1::4]:
        store = MemoryStore()
        if not stop(workflow, store, at):
            continue
        try:
            run = kitchen.resume("r", workflow, store=Mortal(store, "after", 9))
        except Killed:
            stop(workflow, store, 7)
            run = kitchen.run(workflow, store=store, run_id="r", seed=7, if_exists="resume")
        assert essence(run) == expected, f"stopped behind append {at}"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_on_asyncio_and_trio(backend: str) -> None:
    """A run killed on one and resumed on the other equals the whole run."""
    expected = essence(whole_run(kitchens.training)[0])
    other = {"asyncio": "trio", "trio": "asyncio"}[backend]
    store = MemoryStore()

    async def first() -> None:
        await kitchen.run_async(
            kitchens.training, store=Mortal(store, "after", 17), run_id="r", seed=7
        )

    async def second() -> Any:
        return await kitchen.resume_async("r", kitchens.training, store=store)

    with pytest.raises(Killed):
        anyio.run(first, backend=backend)
    assert essence(anyio.run(second, backend=other)) == expected


def test_what_the_arrays_hold_is_equal_to_the_bit() -> None:
    whole, _, _ = whole_run(kitchens.training)
    run, _ = die_and_resume(kitchens.training, "before", 25)
    for name in ("model", "optimiser"):
        for key, value in whole.state[name].items():
            found = run.state[name][key]
            if isinstance(value, np.ndarray):
                assert value.tobytes() == found.tobytes()
            else:
                assert value == found

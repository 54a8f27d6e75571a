"""`state_at` at every seq, beside what the run itself had there, and what folding in memory says."""

from __future__ import annotations

from typing import Any

import pytest

import kitchen
from kitchen.history.history import History
from kitchen.machine import cells
from kitchen.machine.codec import Codec
from kitchen.machine.events import Fact
from kitchen.machine.fold import fold
from kitchen.machine.state import State
from store import MemoryStore
from tests.crash.test_crash_matrix import Killed, Mortal
from tests.history.telling import ALL


class Keeping:
    """The data of the live state behind every append: its keys, and the texts of their values."""

    def __init__(self) -> None:
        self.found: dict[int, Any] = {}

    def on_facts(self, run_id: str, facts: Any, state: State) -> None:
        self.found[state.seq] = texts(state)

    def on_progress(self, *args: Any, **kwargs: Any) -> None: ...


def texts(state: State) -> dict[str, Any]:
    return {key: (bytes(cell.base), cell.deltas) for key, cell in state.core.data.items()}


def read(state: State, store: Any) -> str:
    codec = Codec()
    values = {k: cells.read(c, codec, store.blobs.get, k) for k, c in state.core.data.items()}
    return repr(values)


@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_at_every_seq_of_a_run_that_was_killed_and_rewound(workflow: Any) -> None:
    store, keeping = MemoryStore(), Keeping()
    for left in (9, 14, 11, 10**9):
        try:
            kitchen.run(
                workflow,
                store=Mortal(store, "after", left),
                run_id="r",
                seed=7,
                if_exists="resume",
                observers=[keeping],
            )
        except Killed:
            continue
        break
    past = History(store, "r")
    facts = [Fact(r.event, r.path, r.visit, r.attempt) for r in past.events]
    assert len(keeping.found) > len(facts) / 8
    for seq, live in keeping.found.items():
        assert texts(past.folded(seq)) == live, seq
    for seq in range(1, len(facts) + 1, 1 + len(facts) // 90):
        state = fold(past.program, facts[:seq])
        assert past.folded(seq).core == state.core, seq
        assert repr(past.state_at(seq)) == read(state, store), seq

"""Measures what can be asked of a long log: its state at any event, a fork, a diff, a replay.

Rules: the run is a real one, of stages with two puts and a metric; each figure is a median over
rounds at random places, with the smallest and the largest; nothing is asserted.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kitchen
from kitchen.history.replay import replayed
from scripts.bench import told
from store import open_store


async def body(ctx: Any) -> None:
    """An async body with two puts and a metric."""
    ctx.state["step"] = ctx.item()
    ctx.state["loss"] = 0.125 * ctx.config.scale
    ctx.record_metric("loss", ctx.item() * 0.5, step=ctx.item())


@kitchen.workflow
def long(wf: kitchen.WorkflowBuilder) -> None:
    """One stage, many visits."""
    with wf.loop("steps", over=lambda ctx: range(ctx.config.steps)):
        wf.stage("step", body)


EVENTS_A_STAGE = 6


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def size_of(path: Path) -> int:
    """Bytes of a store's file, its log written back."""
    with open_store(path) as store:
        store.compact()
    return path.stat().st_size


def states(path: Path, run: str, rounds: int) -> None:
    """The state at random events."""
    past = kitchen.history(run, store=path)
    head = past.store.head(run)
    dice = random.Random(1)
    first = seconds(lambda: past.state_at(dice.randint(1, head)))
    taken = [seconds(lambda: past.state_at(dice.randint(1, head))) * 1e3 for _ in range(rounds)]
    print(f"events of the run{head:>43,}")
    print(told("the first state_at, with opening", [first * 1e3], "ms"))
    print(told("state_at at a random event", taken, "ms"))
    print(told("status", [seconds(lambda: past.status) * 1e3 for _ in range(rounds)], "ms"))


def forks(path: Path, run: str, count: int) -> None:
    """What a fork takes, and how much room."""
    before = size_of(path)
    with open_store(path) as store:
        head = store.head(run)
        dice = random.Random(2)
        taken = [
            seconds(lambda: kitchen.fork(run, at=dice.randint(1, head), store=store)) * 1e3
            for _ in range(count)
        ]
    print(told("a fork at a random event", taken, "ms"))
    print(f"{'bytes a fork':<46}{(size_of(path) - before) / count:>10.0f}")


def diffs(path: Path, steps: int, rounds: int) -> None:
    """Two runs of that many stages, alike but for what a config field changes."""
    kitchen.run(long, {"steps": steps, "scale": 1.0}, store=path, run_id="a")
    kitchen.run(long, {"steps": steps, "scale": 1.0}, store=path, run_id="same")
    kitchen.run(long, {"steps": steps, "scale": 2.0}, store=path, run_id="other")
    with open_store(path) as store:
        print(f"events of each{store.head('a'):>46,}")
    for other in ("same", "other"):
        taken = [seconds(lambda: kitchen.diff("a", other, store=path)) for _ in range(rounds)]  # noqa: B023
        print(told(f"diff with {other}", taken, "s"))


def replays(path: Path, run: str, rounds: int) -> None:
    """Folding with all that is checked, and executing again."""
    with open_store(path) as store:
        head = store.head(run)
        folded = [head / seconds(lambda: replayed(store, run)) / 1e3 for _ in range(rounds)]
    executed = [
        seconds(lambda: kitchen.replay(run, long, store=path, execute=True)) for _ in range(rounds)
    ]
    print(told("replay, folding", folded, "thousand events/s"))
    print(told("replay, executing", executed, "s"))


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kitchen-bench-") as name:
        path = Path(name) / "long.db"
        steps = given.events // EVENTS_A_STAGE
        taken = seconds(
            lambda: kitchen.run(long, {"steps": steps, "scale": 1.0}, store=path, run_id="long")
        )
        print(told("the long run itself", [taken], "s"))
        states(path, "long", given.rounds * 20)
        forks(path, "long", 20)
        short = Path(name) / "short.db"
        diffs(short, steps // 10, given.rounds)
        replays(short, "a", given.rounds)


if __name__ == "__main__":
    main()

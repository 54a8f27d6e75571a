"""Measures what runs side by side, beside the same work done one after the other.

Rules: as in bench.py. Work is waiting (a sleep), so that the figures do not depend on how many
CPUs there are; the memory of a stream is that of a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kitchen
from scripts.bench import told

WAIT = 0.02
ITEMS = 40


def wait(_ctx: Any) -> None:
    """Work that takes 0.2 s."""
    time.sleep(0.2)


def work(_ctx: Any) -> None:
    """Work on an item."""
    time.sleep(WAIT)


def fetch(ctx: Any) -> int:
    """An item that takes as long to have as to work on."""
    time.sleep(WAIT)
    return ctx.visit[-1] if ctx.visit else 0


def fetch_and_work(ctx: Any) -> None:
    """Both, one after the other."""
    fetch(ctx)
    work(ctx)


def source(_ctx: Any) -> Iterator[int]:
    """A slow source."""
    for number in range(ITEMS):
        time.sleep(WAIT)
        yield number


@kitchen.workflow
def four(wf: kitchen.WorkflowBuilder) -> None:
    """Four branches."""
    with wf.parallel(max_concurrency=4):
        for name in "abcd":
            wf.stage(name, wait)


@kitchen.workflow
def one_by_one(wf: kitchen.WorkflowBuilder) -> None:
    """The same four stages in a row."""
    for name in "abcd":
        wf.stage(name, wait)


@kitchen.workflow
def streamed(wf: kitchen.WorkflowBuilder) -> None:
    """A slow source, pulled ahead."""
    with wf.stream_loop("items", over=source):
        wf.stage("work", work)


@kitchen.workflow
def produced(wf: kitchen.WorkflowBuilder) -> None:
    """A slow producer, beside the body."""
    with wf.async_loop("items", producer=fetch, stop_when=lambda ctx: ctx.index() >= ITEMS - 1):
        wf.stage("work", work)


@kitchen.workflow
def in_a_row(wf: kitchen.WorkflowBuilder) -> None:
    """Fetch, work, fetch, work."""
    with wf.loop("items", over=lambda _ctx: range(ITEMS)):
        wf.stage("work", fetch_and_work)


def endless(_ctx: Any) -> Iterator[dict[str, int]]:
    """A source that does not end."""
    number = 0
    while True:
        yield {"number": number}
        number += 1


def keep_nothing(ctx: Any) -> None:
    """A body that keeps nothing."""
    if ctx.index() + 1 >= ctx.config.limit:
        ctx.stop_loop()


@kitchen.workflow
def stream(wf: kitchen.WorkflowBuilder) -> None:
    """Many items of a stream that does not end."""
    with wf.stream_loop("items", over=endless, prefetch=8):
        wf.stage("look", keep_nothing, thread=False)


def seconds(workflow: Any, folder: Path) -> float:
    """Seconds for a run."""
    begin = time.perf_counter()
    kitchen.run(workflow, store=folder / f"{time.monotonic_ns()}.db", run_id="r")
    return time.perf_counter() - begin


def beside(label: str, apart: Any, together: Any, folder: Path, rounds: int) -> None:
    """Seconds one after the other, and side by side."""
    slow: list[float] = []
    fast: list[float] = []
    for _ in range(rounds):
        slow.append(seconds(apart, folder))
        fast.append(seconds(together, folder))
    print(told(f"{label}, one after the other", slow, "s"))
    print(told(f"{label}, side by side", fast, "s"))
    print(told("  ratio", [b / a for a, b in zip(slow, fast, strict=True)], "x"))


_MEMORY = """
import resource, sys, kitchen
from scripts.bench_concurrent import stream
kitchen.run(stream, {"limit": int(sys.argv[1])}, store=sys.argv[2], run_id="r")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def memory(items: int, folder: Path) -> tuple[float, float]:
    """Peak resident memory (MiB) of a process that streams so many items, and its seconds."""
    begin = time.perf_counter()
    arguments = [sys.executable, "-c", _MEMORY, str(items), str(folder / f"{items}.db")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return float(done.stdout), time.perf_counter() - begin


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, nargs="*", default=[10_000, 100_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beside("four stages of 0.2 s", one_by_one, four, folder, given.rounds)
        beside(f"{ITEMS} items streamed", in_a_row, streamed, folder, given.rounds)
        beside(f"{ITEMS} items produced", in_a_row, produced, folder, given.rounds)
        for items in given.items:
            peak, took = memory(items, folder)
            each = took / items * 1e6
            print(f"{f'{items:,} items of a stream':<46}{peak:>10.0f} MiB, {each:.0f} µs an item")


if __name__ == "__main__":
    main()

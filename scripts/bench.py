"""Measures what a durable stage costs, beside a raw SQLite transaction with the same rows.

Rules: baseline and subject alternate in one process, so that a noisy machine is noisy for both;
every figure is a median over rounds, with the smallest and the largest; nothing is asserted.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kitchen
from kitchen.history.history import History
from store import open_store


async def body(ctx: Any) -> None:
    """An async body with two puts."""
    ctx.state["step"] = ctx.item()
    ctx.state["loss"] = 0.125


@kitchen.workflow
def bare(wf: kitchen.WorkflowBuilder) -> None:
    """One stage, many visits."""
    with wf.loop("steps", over=lambda ctx: range(ctx.config.steps)):
        wf.stage("step", body)


def kitchen_seconds(folder: Path, steps: int, durability: str) -> float:
    """Seconds for a run of that many stages, from the call to its return."""
    path = folder / f"kitchen-{time.monotonic_ns()}.db"
    kitchen.run(bare, {"steps": 1}, store=path, run_id="warm", durability=durability)
    begin = time.perf_counter()
    kitchen.run(bare, {"steps": steps}, store=path, run_id="r", durability=durability)
    return time.perf_counter() - begin


def raw_rows(folder: Path) -> list[tuple[Any, ...]]:
    """The rows of one visit as the store writes them."""
    path = folder / f"rows-{time.monotonic_ns()}.db"
    kitchen.run(bare, {"steps": 3}, store=path, run_id="r")
    connection = sqlite3.connect(path)
    columns = [row[1] for row in connection.execute("pragma table_info(events)")]
    rows = connection.execute(f"select {', '.join(columns)} from events order by 1").fetchall()
    connection.close()
    at = [i for i, row in enumerate(rows) if row[1:] and i >= 10][:5]
    return [rows[i] for i in at]


def raw_seconds(folder: Path, rows: list[tuple[Any, ...]], steps: int, durability: str) -> float:
    """Seconds for that many transactions of those rows on a bare connection."""
    path = folder / f"raw-{time.monotonic_ns()}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute(f"pragma synchronous={'normal' if durability == 'process' else 'full'}")
    width = len(rows[0])
    columns = ", ".join(f"c{i}" for i in range(1, width))
    connection.execute(f"create table events (id integer primary key, {columns})")
    insert = f"insert into events values ({', '.join('?' * width)})"
    begin = time.perf_counter()
    key = 0
    for _ in range(steps):
        batch: list[tuple[Any, ...]] = []
        for row in rows:
            key += 1
            batch.append((key, *row[1:]))
        connection.execute("begin immediate")
        connection.executemany(insert, batch)
        connection.execute("commit")
    took = time.perf_counter() - begin
    connection.close()
    return took


def told(label: str, values: list[float], unit: str) -> str:
    """Median, smallest and largest."""
    middle = statistics.median(values)
    return f"{label:<46}{middle:>10.2f}  ({min(values):.2f} to {max(values):.2f}) {unit}"


def hot_path(folder: Path, steps: int, rounds: int, durability: str) -> None:
    """µs a durable stage, and its ratio to the raw transaction."""
    rows = raw_rows(folder)
    ours: list[float] = []
    raw: list[float] = []
    for _ in range(rounds):
        raw.append(raw_seconds(folder, rows, steps, durability) / steps * 1e6)
        ours.append(kitchen_seconds(folder, steps, durability) / steps * 1e6)
    print(told(f"raw transaction of {len(rows)} rows ({durability})", raw, "µs"))
    print(told(f"durable stage, async, two puts ({durability})", ours, "µs"))
    ratios = [a / b for a, b in zip(ours, raw, strict=True)]
    print(told("  ratio", ratios, "x"))


def fold_speed(folder: Path, steps: int, rounds: int) -> None:
    """Events folded in a second from a file, and bytes of log a stage."""
    path = folder / "fold.db"
    kitchen.run(bare, {"steps": steps}, store=path, run_id="r")
    size = sum(file.stat().st_size for file in folder.glob("fold.db*") if file.is_file())
    with open_store(path) as store:
        events = store.head("r")
        past = History(store, "r")
        reader: Any = past._reader  # pyright: ignore[reportPrivateUsage]

        def fresh(_seq: int | None) -> Any:
            from kitchen.machine.state import State

            return State()

        reader.nearest = fresh
        speeds: list[float] = []
        for _ in range(rounds):
            begin = time.perf_counter()
            reader.state_at(None)
            speeds.append(events / (time.perf_counter() - begin) / 1e3)
    print(told("fold from the file, no snapshot", speeds, "thousand events/s"))
    print(f"{'bytes of log a stage (5 events)':<46}{size / steps:>10.0f}")


def command_seconds(arguments: list[str], rounds: int) -> list[float]:
    """Wall time of a command, in ms."""
    taken: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(arguments, check=True, capture_output=True)
        taken.append((time.perf_counter() - begin) * 1e3)
    return taken


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kitchen-bench-") as name:
        folder = Path(name)
        sections: list[Callable[[], None]] = [
            lambda: hot_path(folder, given.steps, given.rounds, "process"),
            lambda: hot_path(folder, max(100, given.steps // 10), given.rounds, "power"),
            lambda: fold_speed(folder, given.steps * 4, given.rounds),
        ]
        for section in sections:
            section()
    python = [sys.executable, "-c", "pass"]
    cli = [sys.executable, "-m", "kitchen", "--help"]
    print(told("python -c pass", command_seconds(python, given.rounds * 2), "ms"))
    print(told("kitchen --help", command_seconds(cli, given.rounds * 2), "ms"))


if __name__ == "__main__":
    main()

"""Workflows with a mistake planted in each: what a crash matrix is to find, and to name.

Every mistake stands here in more than one shape. `WORLD` is a file outside; `put_back` puts it back.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

import kitchen
from kitchen import Context, WorkflowBuilder

_OWN = Path(tempfile.gettempdir()) / f"kitchen-planted-{os.getpid()}"
WORLD = Path(os.environ.setdefault("KITCHEN_PLANTED", str(_OWN)))  # fresh processes have the same


def put_back() -> None:
    WORLD.unlink(missing_ok=True)


def lines() -> int:
    return len(WORLD.read_text().splitlines()) if WORLD.exists() else 0


def add_line(text: str = "x") -> None:
    with WORLD.open("a") as file:
        file.write(f"{text}\n")


def quiet_step(ctx: Context) -> None:
    ctx.increment("steps")


def three(ctx: Any) -> range:
    return range(3)


# --- a resource that is changed, and is not stateful ----------------------------------------------


class Counter:
    def __init__(self) -> None:
        self.count = 0


def count_up(ctx: Context) -> None:
    ctx.resources["counter"].count += 1
    ctx.state["count"] = ctx.resources["counter"].count


@kitchen.workflow
def stateless_counter(wf: WorkflowBuilder) -> None:
    wf.resource("counter", lambda ctx: Counter(), stateful=False)
    with wf.loop("rounds", over=three):
        wf.stage("count_up", count_up)


class Weights:
    def __init__(self) -> None:
        self.value = np.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"].copy()


class Momentum:
    """Stateless by its looks: it has no state_dict, and nobody said that it had one."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.velocity = 0.0

    def step(self, by: float) -> float:
        self.velocity = self.velocity * 0.5 + by
        self.weights.value = self.weights.value + self.velocity
        return float(self.weights.value.sum())


def step(ctx: Context) -> None:
    ctx.record_metric("loss", ctx.resources["momentum"].step(ctx.rng.random()))


@kitchen.workflow
def stateless_momentum(wf: WorkflowBuilder) -> None:
    wf.resource("weights", lambda ctx: Weights())
    wf.resource("momentum", lambda ctx: Momentum(ctx.resources["weights"]))
    with wf.loop("rounds", over=three):
        wf.stage("step", step)
        wf.checkpoint()


@asynccontextmanager
async def open_buffer(ctx: Any) -> AsyncGenerator[list[float]]:
    yield []


def collect(ctx: Context) -> None:
    ctx.resources["buffer"].append(ctx.rng.random())


@kitchen.workflow
def stateless_buffer(wf: WorkflowBuilder) -> None:
    """Nothing of it comes to the state: only what the buffer holds in the end tells."""
    wf.resource("buffer", open_buffer, stateful=False)
    with wf.loop("rounds", over=three):
        wf.stage("collect", collect)
        wf.stage("quiet_step", quiet_step)


# --- a hidden global ------------------------------------------------------------------------------

count = 0
TABLE: dict[str, int] = {}


def count_globally(ctx: Context) -> None:
    global count  # noqa: PLW0603
    count += 1
    ctx.state["count"] = count


@kitchen.workflow
def global_count(wf: WorkflowBuilder) -> None:
    with wf.loop("rounds", over=three):
        wf.stage("count_globally", count_globally)


def clear_table(ctx: Context) -> None:
    TABLE.clear()


def look_up(ctx: Context) -> None:
    TABLE[str(ctx.index("rounds"))] = 1 + ctx.index("rounds")


def sum_up(ctx: Context) -> None:
    ctx.state["sum"] = sum(TABLE.values())


@kitchen.workflow
def global_table(wf: WorkflowBuilder) -> None:
    """It is cleared at the beginning: only who begins in the middle misses something."""
    wf.stage("clear_table", clear_table)
    with wf.loop("rounds", over=three):
        wf.stage("look_up", look_up)
    wf.stage("sum_up", sum_up)


class Registry:
    made = 0


def start_registry(ctx: Context) -> None:
    Registry.made = 0


def register(ctx: Context) -> None:
    Registry.made += 1
    ctx.state["made"] = Registry.made


@kitchen.workflow
def class_attribute(wf: WorkflowBuilder) -> None:
    wf.stage("start_registry", start_registry)
    with wf.loop("rounds", over=three):
        wf.stage("register", register)


BORN = uuid.uuid4().hex


def note_birth(ctx: Context) -> None:
    ctx.state["born"] = BORN


@kitchen.workflow
def imported(wf: WorkflowBuilder) -> None:
    wf.stage("quiet_step", quiet_step)
    wf.stage("note_birth", note_birth)


# --- unseeded randomness --------------------------------------------------------------------------


def roll(ctx: Context) -> None:
    ctx.append("rolled", random.random())


@kitchen.workflow
def unseeded_python(wf: WorkflowBuilder) -> None:
    wf.stage("quiet_step", quiet_step)
    wf.stage("roll", roll)


def roll_numpy(ctx: Context) -> None:
    ctx.record_metric("rolled", float(ctx.resources["start"] + np.random.rand()))


@kitchen.workflow
def unseeded_numpy(wf: WorkflowBuilder) -> None:
    wf.resource("start", lambda ctx: float(np.random.rand()), stateful=False)
    wf.stage("roll_numpy", roll_numpy)


def seed_once(ctx: Context) -> None:
    random.seed(ctx.seed)


@kitchen.workflow
def seeded_once(wf: WorkflowBuilder) -> None:
    """As scripts do it: at the beginning, once. A resume does not begin at the beginning."""
    wf.stage("seed_once", seed_once)
    with wf.loop("rounds", over=three):
        wf.stage("roll", roll)


def roll_own(ctx: Context) -> None:
    ctx.append("rolled", random.Random().random())


@kitchen.workflow
def unseeded_own(wf: WorkflowBuilder) -> None:
    wf.stage("roll_own", roll_own)


# --- a body that is not idempotent ----------------------------------------------------------------


def write_line(ctx: Context) -> None:
    add_line()


def count_lines(ctx: Context) -> None:
    ctx.state["lines"] = lines()


@kitchen.workflow
def file_grows(wf: WorkflowBuilder) -> None:
    with wf.loop("rounds", over=three):
        wf.stage("write_line", write_line)
    wf.stage("count_lines", count_lines)


class Ledger:
    def __init__(self) -> None:
        self.paid = 0

    def pay(self) -> int:
        self.paid += 1
        return self.paid


def pay(ctx: Context) -> None:
    ctx.state["paid"] = ctx.adapters["ledger"].pay()


@kitchen.workflow
def pays_twice(wf: WorkflowBuilder) -> None:
    wf.stage("quiet_step", quiet_step)
    with wf.loop("rounds", over=three):
        wf.stage("pay", pay)


def train_and_write(ctx: Context) -> None:
    weights = ctx.resources["weights"]
    weights.value = weights.value + 1
    add_line()


@kitchen.workflow
def written_again_behind_a_rewind(wf: WorkflowBuilder) -> None:
    wf.resource("weights", lambda ctx: Weights())
    with wf.loop("rounds", over=three):
        wf.stage("train_and_write", train_and_write)
    wf.stage("count_lines", count_lines)


def draw_ticket(ctx: Any) -> int:
    add_line()
    return lines()


def use_ticket(ctx: Context) -> None:
    ctx.append("tickets", ctx.item("tickets"))


@kitchen.workflow
def producer_counts(wf: WorkflowBuilder) -> None:
    with wf.async_loop(
        "tickets",
        producer=draw_ticket,
        stop_when=lambda ctx: len(ctx.state.get("tickets", [])) > 2,
        buffer_size=1,
    ):
        wf.stage("use_ticket", use_ticket)


# --- a state_dict that forgets --------------------------------------------------------------------


class Forgetful(Weights):
    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def update(self) -> float:
        self.used += 1
        self.value = self.value + self.used
        return float(self.value.sum())


def update(ctx: Context) -> None:
    ctx.append("sums", ctx.resources["model"].update())


@kitchen.workflow
def forgets_a_field(wf: WorkflowBuilder) -> None:
    wf.resource("model", lambda ctx: Forgetful())
    with wf.loop("rounds", over=three):
        wf.stage("update", update)
        wf.checkpoint()


class Schedule:
    def __init__(self) -> None:
        self.rate = 1.0


class Scheduled(Weights):
    """What it forgets is in an object that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()

    def update(self) -> float:
        self.schedule.rate *= 0.5
        self.value = self.value + self.schedule.rate
        return float(self.value.sum())


@kitchen.workflow
def forgets_inside(wf: WorkflowBuilder) -> None:
    wf.resource("model", lambda ctx: Scheduled())
    with wf.loop("rounds", over=three):
        wf.stage("update", update)
        wf.checkpoint()
    wf.stage("quiet_step", quiet_step)


class Deaf(Forgetful):
    """It saves all, and does not load all."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value.copy(), "used": self.used}


@kitchen.workflow
def does_not_load(wf: WorkflowBuilder) -> None:
    wf.resource("model", lambda ctx: Deaf())
    with wf.loop("rounds", over=three):
        wf.stage("update", update)
        wf.checkpoint()


def touch_only(ctx: Context) -> None:
    ctx.resources["model"].used += 1


@kitchen.workflow
def forgets_in_silence(wf: WorkflowBuilder) -> None:
    """Nothing of it comes to the state."""
    wf.resource("model", lambda ctx: Forgetful())
    with wf.loop("rounds", over=three):
        wf.stage("touch_only", touch_only)
        wf.checkpoint()


# --- a loop source that differs on the second call ------------------------------------------------


class Opaque:
    """Not encodable: such items are recorded by position only."""

    def __init__(self, value: int) -> None:
        self.value = value


def take(ctx: Context) -> None:
    ctx.append("taken", ctx.item().value)


def other_objects(ctx: Any) -> list[Opaque]:
    add_line()
    return [Opaque(10 * lines() + n) for n in range(3)]


@kitchen.workflow
def source_of_objects(wf: WorkflowBuilder) -> None:
    with wf.loop("objects", over=other_objects):
        wf.stage("take", take)


def stream_of_objects(ctx: Any) -> Iterator[Opaque]:
    add_line()
    base = 10 * lines()
    for n in range(3):
        yield Opaque(base + n)


@kitchen.workflow
def source_of_a_stream(wf: WorkflowBuilder) -> None:
    with wf.stream_loop("objects", over=stream_of_objects, prefetch=1):
        wf.stage("take", take)


def take_number(ctx: Context) -> None:
    ctx.append("taken", ctx.item())


def stream_of_numbers(ctx: Any) -> Iterator[int]:
    add_line()
    base = 10 * lines()
    for n in range(4):
        yield base + n


@kitchen.workflow
def source_of_numbers(wf: WorkflowBuilder) -> None:
    with wf.stream_loop("numbers", over=stream_of_numbers, prefetch=1):
        wf.stage("take_number", take_number)


def large_items(ctx: Any) -> list[bytes]:
    add_line()
    return [bytes([lines()]) * 9_000_000 for _ in range(2)]


def measure(ctx: Context) -> None:
    ctx.append("sizes", ctx.item()[0])


@kitchen.workflow
def source_of_large_items(wf: WorkflowBuilder) -> None:
    """Too large for the log: they are asked for again, and compared by digest."""
    with wf.loop("large", over=large_items):
        wf.stage("measure", measure)


# --- other ----------------------------------------------------------------------------------------


def note_time(ctx: Context) -> None:
    ctx.state["at"] = time.time_ns()


@kitchen.workflow
def takes_the_time(wf: WorkflowBuilder) -> None:
    wf.stage("note_time", note_time)
    wf.stage("quiet_step", quiet_step)

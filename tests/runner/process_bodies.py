"""Bodies of stages that run in worker processes, found there by name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def learn(ctx: Any) -> None:
    """Reads and writes everything that a stage in a worker has."""
    ctx.increment("n", ctx.item("l"))
    ctx.append("drawn", ctx.rng.random())
    ctx.state["big"] = list(range(20_000 + ctx.index("l")))
    ctx.record_metric("loss", ctx.config.rate * ctx.state["n"], step=ctx.index("l"))


def hang(ctx: Any) -> None:
    Path(ctx.config.folder, "pid").write_text(str(os.getpid()))
    time.sleep(600)


def die_once(ctx: Any) -> None:
    mark = Path(ctx.config.folder, "died")
    if not mark.exists():
        mark.touch()
        os._exit(9)
    ctx.state["lived"] = True


def fail(ctx: Any) -> None:
    ctx.state["never"] = True
    raise LookupError("not there")

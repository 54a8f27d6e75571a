"""Live progress on a terminal: a bar for each loop, what runs now, the last metrics.

Rules:

1. This is the only module that imports rich, and it is imported only where it is shown.
2. The cursor is never hidden: so however the process ends, a second Ctrl-C and kill -9 included,
   the terminal is as it was.
3. What is drawn is read from the tracker, at the pace of the display. A display that fails goes
   away; the run does not notice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)
from rich.text import Text

from kitchen.cli import render
from kitchen.cli.announcing import announcement
from kitchen.cli.stopping import Asked
from kitchen.cli.tracking import Loop, Tracker, Waiting
from kitchen.machine.events import Address, CheckpointSaved, Fact, Visit
from kitchen.machine.state import State

PER_SECOND = 8
_METRICS, _STAGES = 8, 4


class SteadyConsole(Console):
    """A console that leaves the cursor visible."""

    def show_cursor(self, show: bool = True) -> bool:
        """Only ever show it."""
        return super().show_cursor(True) if show else False


class _Bar(NamedTuple):
    """A loop's bar: since when and from which item on it is shown, and when it last moved."""

    task: TaskID
    visit: Visit
    since: float
    first: int
    moved: float
    done: int

    def seconds_left(self, now: float, total: int, share: float) -> float | None:
        """What the items so far let expect; before there is one, the `share` of the first."""
        if self.done > self.first:
            each = (self.moved - self.since) / (self.done - self.first)
            return max(0.0, each * (total - self.done) - (now - self.moved))
        if share > 0:
            return (now - self.since) / share * (total - self.done) - (now - self.since)
        return None


class LiveProgress:
    """A `RunObserver` that draws, from entering to leaving it as a context manager."""

    def __init__(self, console: Console | None = None, grace: float = 30.0) -> None:
        self._tracker = Tracker()
        self._asked = Asked(grace)
        self._console = console or SteadyConsole()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            auto_refresh=False,
        )
        self._tasks: dict[str, _Bar] = {}
        self._live = Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=PER_SECOND
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._live.stop()

    def on_facts(self, run_id: str, facts: Sequence[Fact], state: State) -> None:
        """Take note; print what stays on the screen."""
        self._asked.listen()  # the first time, since the run's own handlers are there by now
        self._tracker.on_facts(run_id, facts, state)
        for fact in facts:
            if isinstance(fact.event, CheckpointSaved) and not fact.path:
                self._asked.saved()
            told = announcement(self._tracker, run_id, fact, facts, state)
            if told is not None:
                self.say(told)

    def on_progress(self, run_id: str, address: Address, done: float, total: float | None) -> None:
        """Take note."""
        self._tracker.on_progress(run_id, address, done, total)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        with suppress(OSError):
            self._console.print(line, markup=False, highlight=False)

    def _draw(self) -> RenderableType:
        try:
            return self._drawn()
        except Exception:  # in rich's thread, or at the end: neither may harm the run
            return Text("")

    def _drawn(self) -> RenderableType:
        tracker = self._tracker
        loops = tracker.loops
        for loop, inner in zip(loops, [*loops[1:], None], strict=False):  # none: no bars
            self._sync(loop, inner)
        shown = {loop.address.path for loop in loops}
        for path in [path for path in self._tasks if path not in shown]:
            # Hidden, not removed: the loop is likely to be entered again.
            self._bars.update(self._tasks[path].task, visible=False)
        parts: list[RenderableType] = [self._bars] if loops else []
        parts += [
            Text(f"{tracker.spelled(address)}{self._share(address)}", style="cyan")
            for address in tracker.stages[:_STAGES]
        ]
        parts += [Text(self._waiting(one), style="yellow") for one in tracker.waiting[:_STAGES]]
        values = tracker.last_metrics(_METRICS).items()
        if values:
            told = "  ".join(f"{name} {render.number(value)}" for name, value in values)
            parts.append(Text(told, style="dim", no_wrap=True, overflow="ellipsis"))
        asked = self._asked.told
        if asked is not None:
            parts.append(Text(asked, style="bold yellow"))
        return Group(*parts)

    def _waiting(self, one: Waiting) -> str:
        left = "" if one.due is None else f" in {render.seconds(one.due - time.monotonic())}"
        return f"{self._tracker.spelled(one.address)}  waits: {one.attempt}{left}"

    def _share(self, address: Address) -> str:
        done, total = self._tracker.progress.get(address, (None, None))
        if done is None:
            return ""
        return f"  {done:g}/{total:g} ({done / total:.0%})" if total else f"  {done:g}"

    def _sync(self, loop: Loop, inner: Loop | None) -> None:
        (path, visit), done, now = loop.address, loop.done, time.monotonic()
        bar = self._tasks.get(path)
        if bar is None:
            label = "  " * loop.depth + loop.name
            task = self._bars.add_task(label, total=loop.total, completed=done, left="")
            bar = self._tasks[path] = _Bar(task, visit, now, done, now, done)
        elif bar.visit != visit or done < bar.done:  # entered again, or behind a rewind
            bar = self._tasks[path] = _Bar(bar.task, visit, now, done, now, done)
        elif done > bar.done:
            bar = self._tasks[path] = bar._replace(moved=now, done=done)
        inside = inner is not None and inner.address.path.startswith(f"{path}/")
        share = inner.done / inner.total if inner is not None and inside and inner.total else 0.0
        left = None if loop.total is None else bar.seconds_left(now, loop.total, share)
        told = f"{timedelta(seconds=round(left))} left" if left is not None else ""
        self._bars.update(bar.task, completed=done, total=loop.total, visible=True, left=told)

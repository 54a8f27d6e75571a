"""The fixture `crash_matrix`: the function of that name, with a progress bar where somebody looks on.

Rules: the bar is drawn on a terminal only, by whoever owns it, once it has taken a while; and it is
wiped out at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kitchen.errors import KitchenError
from kitchen.testing.given import Adapters
from kitchen.testing.matrix.matrix import crash_matrix
from kitchen.testing.matrix.report import CrashReport
from kitchen.testing.terminal import terminal
from kitchen.workflow.definition import Workflow

if TYPE_CHECKING:
    import pytest

    from kitchen.testing.clock.clock import VirtualClock

_PATIENCE = 1.0  # seconds; what is done by then needs no bar


class How(TypedDict, total=False):
    """The arguments of `crash_matrix`, beside what is run."""

    adapters: Adapters
    points: int | str | Sequence[str]
    processes: int
    seed: int
    backend: str
    clock: VirtualClock | None
    prepare: Callable[[], object] | None
    exclude: str | Iterable[str]
    status: str
    decide: str | Mapping[str, Any] | None


class CrashMatrix:
    """What the fixture gives: `crash_matrix(workflow, config, points="all", processes=8)`."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __call__(
        self, workflow: Workflow[Any, Any], config: Any = None, **how: Unpack[How]
    ) -> CrashReport:
        """See `kitchen.testing.crash_matrix`, which has the same arguments and raises the same."""
        __tracebackhide__ = True
        try:
            with self._bar(f"crash matrix of {getattr(workflow, 'name', workflow)}") as progress:
                return crash_matrix(workflow, config, progress=progress, **how)
        except KitchenError as error:
            # What a reader wants is the report, and the line of the test; not where we were.
            raise error.with_traceback(None) from error.__cause__

    @contextmanager
    def _bar(self, title: str) -> Generator[Callable[[int, int, str], None] | None]:
        """What tells how far it is; None where nobody would see it."""
        with terminal(self._config, interactive=True) as stream:
            if stream is None:
                yield None
                return
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
            console = Console(file=stream)
            bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            task = bar.add_task(title)
            began, shown = time.monotonic(), False

            def tell(done: int, total: int, what: str) -> None:
                nonlocal shown
                if not shown and time.monotonic() - began > _PATIENCE:
                    shown = True
                    bar.start()
                bar.update(task, completed=done, total=total, description=f"{title}: {what}")

            try:
                yield tell
            finally:
                bar.stop()

"""Stores to test, and child processes to test them with.

Rules: a child is started with `python -c`, talks by lines on its pipes and never sleeps: it says
"ready" when it is, and waits for its standard input to close. Every store is closed by its test.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import MemoryStore, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from store import EventStore

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A Python process that runs a script with the arguments in `sys.argv[1:]`."""

    def __init__(self, script: str, *args: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        return self.stdout.readline().strip()

    def say(self, line: str) -> None:
        self.stdin.write(line + "\n")
        self.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> str:
        """Close its input, wait for its end, and give back what else it said."""
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output
        return output.strip()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.stdin.close()
        self.stdout.close()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(script: str, *args: object) -> Child:
        children.append(Child(script, *args))
        return children[-1]

    yield start
    for one in children:
        one.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "events.db"


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, file: Path) -> Iterator[EventStore]:
    """An empty store of either kind."""
    with open_store(file) if request.param == "sqlite" else MemoryStore() as opened:
        yield opened

"""Today's versions of the workflow whose runs are stored: as it was, but for some changes.

A `Changed` builder writes down what `ledger_body` says, with nodes that are left out, renamed,
added, wrapped, or given other arguments.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kitchen
from kitchen import Workflow, WorkflowBuilder
from store import EventStore, open_store
from tests.histories.versions import ledger_1

HERE = Path(__file__).parent

Before = Callable[[WorkflowBuilder], Any]


@dataclass
class Changes:
    """What is different, by the name that a node had. `before`: what is added right before it, ""
    at the very end. `given`: other arguments; "body" among them is another body."""

    without: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    before: Mapping[str, Before] = field(default_factory=dict[str, Before])
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    around: frozenset[str] = frozenset()


class Changed:
    """A builder that says something else than it is told."""

    def __init__(self, wf: WorkflowBuilder, changes: Changes) -> None:
        self._wf = wf
        self._changes = changes

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        if kind == "otherwise":
            return self._wf.otherwise
        plain = kind in ("stage", "resource", "checkpoint", "include")
        return self._said(kind) if plain else self._around(kind)

    def _said(self, kind: str) -> Callable[..., Any]:
        def say(*args: Any, **given: Any) -> None:
            name = given.get("name", args[0])
            if not self._begin(name):
                return
            args, given = self._altered(name, args, given)
            if name in self._changes.around:
                with self._wf.loop("around", over=lambda ctx: range(1)):
                    getattr(self._wf, kind)(*args, **given)
                return
            getattr(self._wf, kind)(*args, **given)

        return say

    def _around(self, kind: str) -> Callable[..., Any]:
        @contextmanager
        def say(*args: Any, **given: Any) -> Generator[None]:
            name = given.get("name", args[0])
            assert name not in self._changes.without
            self._begin(name)
            args, given = self._altered(name, args, given)
            with getattr(self._wf, kind)(*args, **given):
                yield

        return say

    def _begin(self, name: str) -> bool:
        if name in self._changes.before:
            self._changes.before[name](self._wf)
        return name not in self._changes.without

    def _altered(self, name: str, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        new = {**given, **self._changes.given.get(name, {})}
        body = new.pop("body", None)
        now = self._changes.names.get(name, name)
        if "name" in new:
            new["name"] = now
        else:
            args = (now, *args[1:])
        return (args if body is None else (args[0], body)), new


def today(**changed: Any) -> Workflow[Any, Any]:
    """The workflow with these changes."""
    sets = {key: frozenset(value) for key, value in changed.items() if isinstance(value, set)}
    given: Any = {**changed, **sets}
    changes = Changes(**given)

    @kitchen.workflow(name="ledger")
    def ledger(wf: WorkflowBuilder) -> None:
        ledger_1.ledger_body(Changed(wf, changes))
        if "" in changes.before:
            changes.before[""](wf)

    return ledger


def extra(name: str) -> Before:
    """One more stage."""
    return lambda wf: wf.stage(name, ledger_1.note)


@contextmanager
def stored(name: str, folder: Path) -> Generator[EventStore]:
    """A copy of a stored history: the file itself is never written."""
    file = folder / f"{name}.db"
    shutil.copy(HERE / f"{name}.sqlite", file)
    with open_store(file) as store:
        yield store


def logged(store: EventStore, run: str = "r") -> list[str]:
    """Where the stages ran that count, in the order of the log, and how often."""
    return [line.rpartition(" ")[0] for line in kitchen.history(run, store=store).state_at()["log"]]

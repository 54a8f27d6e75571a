"""Nodes that were given another name while a run was under way.

Rules:

1. The log keeps the path that a node had. What is folded is told today's path: for an event before
   a `WorkflowChanged` that says so, the new one; of several changes, one after the other.
2. A path below a renamed one is renamed with it. Paths within an event are too.
3. A node keeps what is derived from its path (its random numbers, its idempotency key): that goes by
   the path that it had at first. Another node that has got an old path is another node.
4. Resources go by their names, in the log and for their users: they are not renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec

from kitchen.machine.events import Address, BlockFailed, BranchFailed, Event, Fact
from kitchen.workflow.changes import moved

Names: TypeAlias = Mapping[str, str]


class Renamed(NamedTuple):
    """Events before `seq` have the old paths of these."""

    seq: int
    names: Names


class Renaming:
    """All changes of names of a run, in their order."""

    def __init__(self, changes: tuple[Renamed, ...] = ()) -> None:
        self._changes = changes
        self._until = max((change.seq for change in changes), default=0)

    def __bool__(self) -> bool:
        return bool(self._changes)

    def path(self, seq: int, path: str) -> str:
        """Today's path of what an event calls by this one."""
        if seq < self._until:
            for change in self._changes:
                if seq < change.seq:
                    path = moved(path, change.names)
        return path

    def origin(self, path: str) -> str:
        """The path that a node had at first, by today's; unlike any other node's."""
        for change in reversed(self._changes):
            before = moved(path, {now: was for was, now in change.names.items()})
            if before == path and moved(path, change.names) != path:
                return f"{path}@{change.seq}"  # it is new, under a path that another had
            path = before
        return path

    def fact(self, seq: int, fact: Fact) -> Fact:
        """The fact with today's paths."""
        if seq >= self._until:
            return fact
        return fact._replace(
            path=self.path(seq, fact.path),
            event=self._event(seq, fact.event),
        )

    def _event(self, seq: int, event: Event) -> Event:
        if not isinstance(event, BlockFailed | BranchFailed):
            return event
        known: Any = event
        new = {"at": self._address(seq, known.at), "stood": self._address(seq, known.stood)}
        if isinstance(event, BlockFailed):
            undo = tuple(self._address(seq, each) for each in event.undo)
            return msgspec.structs.replace(event, undo=undo, **new)
        return msgspec.structs.replace(event, **new)

    def _address(self, seq: int, address: Address) -> Address:
        return Address(self.path(seq, address.path), address.visit)

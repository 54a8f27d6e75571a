"""What the kernel is told of a run as a whole. Outcomes of commands stand in `commands`, which
names these too.

Rules: each is data; what follows from it is decided in `life`.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Raw

from kitchen.machine.events import Address, Host, Manifest, RunEdited, RunStarted, WorkflowChanged


class Start(NamedTuple):
    """Begin a new run."""

    started: RunStarted


class Resume(NamedTuple):
    """Take up a run that a process left, whatever way it left it.

    `changed`: how the workflow differs from the one that was recorded, if it does. `turn`: where it
    is to go another way from.
    """

    host: Host
    changed: WorkflowChanged | None = None
    decided: tuple[Decided, ...] = ()
    turn: Turn | None = None


class Turn(NamedTuple):
    """A wish that a run goes another way, from the cut `to` on. `edited`: with what."""

    to: int
    why: str
    edited: RunEdited | None = None


class Decided(NamedTuple):
    """What became of an effect that must not happen twice: "retry" or "skip", with the changes."""

    address: Address
    choice: str
    changes: dict[str, Raw]


class Continue(NamedTuple):
    """The resources are back: go on from every active place."""


class Interrupt(NamedTuple):
    """Stop here; nothing is being performed. `begun`: the stages whose bodies were stopped."""

    signal: str
    begun: tuple[Address, ...] = ()


class Cancel(NamedTuple):
    """End the run for good; nothing is being performed."""

    by: str
    begun: tuple[Address, ...] = ()


class Preserved(NamedTuple):
    """Everything is saved between two commands, none of which is being performed: go on."""

    resources: dict[str, Manifest]

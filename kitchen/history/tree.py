"""The tree of a run's visits, as it stands at its last event.

Rules: what counts, and nothing else. A block that the run stands in is not completed, whatever in it
is. Time goes by only while a process executes the run.
"""

from __future__ import annotations

from typing import NamedTuple

from kitchen.history.places import Place
from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Visit
from kitchen.machine.state import Control
from kitchen.workflow.ir import REPEATING


class TreeNode(NamedTuple):
    """A node under the indices of the loops around it, or one visit of a loop.

    `kind`: "stage", "loop" and so on, as in the IR; "visit" for one of a loop; "workflow" for the
    root. `status`: "completed", "failed", "skipped", "running", "interrupted" or "waiting"; of the
    root, the run's. `attempts`: the number of a stage's last attempt. `seconds`: how long its
    attempts took; of a node with others in it, from its first event to its last.
    """

    name: str
    path: str
    visit: Visit
    kind: str
    status: str
    attempts: int
    seconds: float
    children: tuple[TreeNode, ...]


def tree_of(root: Place, program: Program, control: Control, status: str) -> TreeNode:
    """The tree under the root of `places`. `control` is where the run stands, `status` its status."""
    standing = _standing(program, control) if status != "completed" else set[Address]()
    paused = "running" if status == "running" else "interrupted"
    found, last = _frozen(root, standing, paused)
    return found._replace(
        name=program.ir.name, kind="workflow", status=status, seconds=(last - root.first) / 1e9
    )


def _standing(program: Program, control: Control) -> set[Address]:
    """The addresses of all blocks in which the run stands."""
    found: set[Address] = set()
    for path, visit in (*control.active, *control.forks, *control.feeds):
        names = path.split("/")
        for count in range(1, len(names) + 1):
            around = "/".join(names[:count])
            depth = len(program.loops.get(around, ()))
            found.add(Address(around, visit[:depth]))
            if isinstance(program.nodes.get(around), REPEATING):
                found.add(Address(around, visit[: depth + 1]))
    return found


def _frozen(place: Place, standing: set[Address], paused: str) -> tuple[TreeNode, int]:
    """A place and what is in it; and when the last of it happened, in executing time."""
    inner = [_frozen(child, standing, paused) for child in place.children()]
    last = max((place.last, *(at for _, at in inner)))
    made = TreeNode(
        place.name,
        place.path,
        place.visit,
        place.kind,
        _status(place, standing, paused),
        place.attempt,
        place.seconds if place.kind == "stage" else (last - place.first) / 1e9,
        tuple(node for node, _ in inner),
    )
    return made, last


def _status(place: Place, standing: set[Address], paused: str) -> str:
    if place.kind == "stage" and place.ended:
        return paused if place.ended == "running" else place.ended
    if Address(place.path, place.visit) in standing:
        return paused
    return place.ended or "completed"

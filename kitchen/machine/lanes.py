"""Lanes: what runs side by side, who sees what, and who may write it.

Rules:

1. A branch sees the state as it was when its parallel was entered, and its own writes. They lie
   in its overlay until the join; then they are put, in branch order, where the parallel stands.
2. Two branches may not write one key, unless `merge` names it; two sides of a parallel or an
   async loop may not touch one stateful resource, nor may one peek at what another touches (but
   for an async loop that is "free"). Who was first has the claim.
3. While branches run, what lies below them stands still: nothing else writes there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Failure, Visit, spell
from kitchen.machine.layout import Lane
from kitchen.machine.state import Cell, Core, Overlay
from kitchen.workflow.ir import AsyncLoopNode, ParallelNode, ParallelOverNode


def around(program: Program, address: Address) -> Iterator[tuple[Lane, Address]]:
    """The lanes that an address is in, outermost first, with the address of each."""
    for lane in program.lanes.get(address.path, ()):
        if len(address.visit) >= lane.depth:
            yield lane, Address(lane.path, address.visit[: lane.depth])


def owner_of(lane: Lane, visit: Visit) -> Address:
    """The address of the parallel or async loop that a lane belongs to."""
    return Address(lane.owner, visit[: lane.around])


def lane_at(program: Program, address: Address) -> Lane | None:
    """The branch at an address, if there is one."""
    for lane in program.lanes.get(address.path, ()):
        if lane.data and lane.path == address.path and lane.depth == len(address.visit):
            return lane
    return None


def parallel_of(program: Program, branch: Address) -> Address | None:
    """The parallel that a branch belongs to, if there is a branch at that address."""
    lane = lane_at(program, branch)
    return None if lane is None else owner_of(lane, branch.visit)


def view(program: Program, core: Core, address: Address) -> Mapping[str, Cell]:
    """The state as it is seen from an address."""
    if not core.overlays:
        return core.data
    seen = core.data
    for _, at in _writable(program, core, address):
        overlay = core.overlays[at]
        if overlay:
            merged: Overlay = {**seen, **overlay}
            seen = {key: cell for key, cell in merged.items() if cell is not None}
    return seen


def read(program: Program, core: Core, address: Address, key: str) -> Cell | None:
    """One value as it is seen from an address."""
    if core.overlays:
        for _, at in reversed(list(_writable(program, core, address))):
            if key in core.overlays[at]:
                return core.overlays[at][key]
    return core.data.get(key)


def write(program: Program, core: Core, address: Address, key: str, cell: Cell | None) -> None:
    """Give a key a value, or none any more, where writes of an address go; claim the key there."""
    lanes = list(_writable(program, core, address)) if core.overlays else []
    if not lanes:
        if cell is None:
            core.data.pop(key, None)
        else:
            core.data[key] = cell
        return
    lane, at = lanes[-1]
    core.overlays[at][key] = cell
    if key not in merged_keys(program, lane.owner):
        owner = owner_of(lane, address.visit)
        core.claims.setdefault(owner, {}).setdefault(f"state {key}", at)


def touch(program: Program, core: Core, address: Address, name: str) -> None:
    """Claim a resource on all sides around."""
    for lane, at in around(program, address):
        owner = owner_of(lane, address.visit)
        core.claims.setdefault(owner, {}).setdefault(f"resource {name}", at)


def look(program: Program, core: Core, address: Address, name: str) -> None:
    """Note on all sides around that a resource was peeked at."""
    for lane, at in around(program, address):
        if _is_strict(program, lane.owner):
            owner = owner_of(lane, address.visit)
            core.claims.setdefault(owner, {}).setdefault(_peek(name, at), at)


def branches(program: Program, core: Core, parallel: Address) -> list[tuple[Address, Overlay]]:
    """The branches of a parallel that have been started, in their order."""
    return [
        (at, overlay)
        for at, overlay in core.overlays.items()
        if parallel_of(program, at) == parallel
    ]


def join(program: Program, core: Core, parallel: Address, merged: Mapping[str, Cell]) -> None:
    """Put what the branches wrote where the parallel stands, in branch order."""
    for at, overlay in branches(program, core, parallel):
        del core.overlays[at]
        for key, cell in overlay.items():
            if key not in merged:
                write(program, core, parallel, key, cell)
    for key, cell in merged.items():
        write(program, core, parallel, key, cell)
    core.claims.pop(parallel, None)


def merged_keys(program: Program, parallel: str) -> Mapping[str, object]:
    """The keys for which a parallel has a reducer."""
    node = program.nodes[parallel]
    return node.merge if isinstance(node, ParallelNode | ParallelOverNode) else {}


def to_merge(program: Program, core: Core, parallel: Address) -> list[str]:
    """The keys with a reducer that any branch has written, sorted."""
    keys = merged_keys(program, parallel.path)
    if not keys:
        return []
    return sorted(
        key for key in keys if any(key in o for _, o in branches(program, core, parallel))
    )


def sees(address: Address, path: str, visit: Visit) -> bool:
    """Whether what a block opened at that path and visit can be reached from an address: from the
    block itself, and no other."""
    block = path.rpartition("/")[0]
    inside = not block or address.path == block or address.path.startswith(f"{block}/")
    return inside and address.visit[: len(visit)] == visit


def instance(program: Program, address: Address, name: str) -> str:
    """The name of a resource opened there: each branch, and each item of a `parallel(over=…)`, has
    its own."""
    return next(names_seen(program, address, name))


def names_seen(program: Program, address: Address, name: str) -> Iterator[str]:
    """What a resource may be called as seen from there, the nearest first."""
    if address.path in program.lanes:
        inside = [
            str(at.visit[-1]) if lane.many else at.path.rpartition("/")[2]
            for lane, at in around(program, address)
            if lane.data
        ]
        for depth in range(len(inside), 0, -1):
            yield f"{name}[{','.join(inside[:depth])}]"
    yield name


class Conflict(NamedTuple):
    """Two sides want one thing: "state key", "resource name", or "peek name" where one of them
    only looks."""

    what: str
    owner: Address
    first: Address
    second: Address


def conflict(
    program: Program,
    core: Core,
    address: Address,
    keys: Iterable[str] = (),
    touched: Iterable[str] = (),
    looked: Iterable[str] = (),
) -> Conflict | None:
    """The first of these that another side has a claim on."""
    if not core.claims:
        return None
    wanted = [f"resource {name}" for name in touched]
    seen = [f"resource {name}" for name in looked]
    written = [f"state {key}" for key in keys]
    for lane, at in reversed(list(around(program, address))):
        owner = owner_of(lane, address.visit)
        claims = core.claims.get(owner, {})
        strict = _is_strict(program, lane.owner)
        for what in (*(written if lane.data else ()), *wanted, *(seen if strict else ())):
            first = claims.get(what)
            if first is not None and first != at:
                return Conflict(what if what not in seen else _only(what), owner, first, at)
        if strict and wanted:
            for what, first in claims.items():
                if first != at and what.startswith("peek ") and _touching(what) in wanted:
                    return Conflict(_only(_touching(what)), owner, first, at)
        if lane.data:
            written = []
    return None


def _is_strict(program: Program, owner: str) -> bool:
    """Whether what one side sees of a resource must not depend on what another does to it."""
    node = program.nodes[owner]
    return not (isinstance(node, AsyncLoopNode) and node.pacing == "free")


def _peek(name: str, at: Address) -> str:
    """The claim of one that looks: many may."""
    return f"peek {name} {at.path}{list(at.visit)}"


def _touching(peek: str) -> str:
    return f"resource {peek.split(' ')[1]}"


def _only(touching: str) -> str:
    return f"peek {touching.removeprefix('resource ')}"


def told(program: Program, found: Conflict) -> Failure:
    """The failure that a conflict is, with what to do."""
    one, other = sorted((found.first, found.second), key=lambda at: _order(program, at))
    kind, _, name = found.what.partition(" ")
    parallel = found.owner.path
    names = " and ".join(spell(*at, program.loops.get(at.path)) for at in (one, other))
    if kind == "state":
        message = f"two branches of the parallel {parallel!r} write state[{name!r}]: {names}"
        hint = (
            f'say how the values become one: wf.parallel(merge={{{name!r}: "sum"}}) (or "extend", '
            '"union", "max", "min", a function); or let the branches write different keys'
        )
    elif kind == "peek":
        looped = isinstance(program.nodes[parallel], AsyncLoopNode)
        sides = f"the producer and the body of the loop {parallel!r} use {name!r}"
        message = sides if looped else f"{names} use the resource {name!r}"
        message += " side by side: one peeks at what the other touches, and would see it by chance"
        hint = "put what has to be seen into ctx.state, where it is found as of the " + (
            'production\'s turn; or let chance decide with pacing="free"'
            if looped
            else "beginning of the parallel; or let one branch do both"
        )
    elif not isinstance(program.nodes[parallel], AsyncLoopNode):
        message = f"two branches of the parallel {parallel!r} touch the resource {name!r}: {names}"
        hint = (
            "give each branch a resource of its own, let one branch do it all, or use "
            "ctx.resources.peek if none of them changes it"
        )
    else:
        message = f"the producer and the body of the loop {parallel!r} touch {name!r}"
        hint = (
            "give the producer a resource of its own, and pass on through ctx.state what it needs "
            "to know of the other; ctx.resources.peek will do if neither side changes it"
        )
    return Failure("BranchConflict", message, "", hint)


def by_chance(producers: int, touched: tuple[str, ...]) -> Failure:
    """Why a production may not touch what it has touched."""
    names = ", ".join(touched)
    if producers > 1:
        message = f"{producers} producers at a time touch {names}: in which order would be chance"
        hint = "let the loop have producers=1, or use ctx.resources.peek if nobody changes it"
    else:
        message = f"the producer touches {names} now, and did not for its first item"
        hint = (
            "whether such an item is still made when the loop ends would be chance; a producer that "
            "uses a stateful resource gets it, ctx.resources[…], for every item"
        )
    return Failure("BranchConflict", message, hint=hint)


def _writable(program: Program, core: Core, address: Address) -> Iterator[tuple[Lane, Address]]:
    for lane, at in around(program, address):
        if lane.data and at in core.overlays:
            yield lane, at


def _order(program: Program, address: Address) -> tuple[int, Visit]:
    paths = list(program.nodes)
    return (paths.index(address.path) if address.path in program.nodes else -1, address.visit)

"""Entering loops and parallels, and joining branches.

Rules:

1. `over` is asked once, where the loop or the parallel is entered; how its items are recorded is
   `items`' business.
2. How many branches may run at a time is recorded with the entry, so that a resumed run need not
   ask again. Left out, it is the number of CPUs that this process may use.
3. A reducer sees the value at the fork and what the branches made of it, decoded, in branch order.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from msgspec import Raw

from kitchen.errors import ItemsError, KitchenError, WorkflowError
from kitchen.machine import cells, lanes
from kitchen.machine import commands as C
from kitchen.machine.events import Address, spell
from kitchen.machine.state import Cell
from kitchen.runner import items, merge
from kitchen.runner.attempt import Attempt
from kitchen.runner.calls import Calls
from kitchen.runner.declared import fit
from kitchen.runner.outcome import Performed
from kitchen.runner.scope import Scope
from kitchen.runner.surroundings import Surroundings
from kitchen.workflow.definition import limit_key, reducer_key
from kitchen.workflow.ir import ParallelNode, ParallelOverNode

FEW = 1_000


class Entering:
    """Opens collections and branches, and joins the latter."""

    def __init__(self, scope: Scope, calls: Calls, surroundings: Surroundings) -> None:
        self._scope = scope
        self._calls = calls
        self._surroundings = surroundings

    async def open_loop(self, command: C.OpenLoop) -> Performed:
        """Ask a loop's `over`."""
        recorded, attempt = await self._collection(command.address)
        touched, looked = tuple(attempt.touched), attempt.looked
        return Performed(
            C.CollectionOpened(command.address, recorded.collection, touched, looked),
            recorded.blobs,
        )

    async def open_branches(self, command: C.OpenBranches) -> Performed:
        """Ask for the limit, and the `over` of a `parallel(over=…)`."""
        address = command.address
        node = self._scope.journal.program.nodes[address.path]
        assert isinstance(node, ParallelNode | ParallelOverNode)
        asked = self._calls.attempt(address, 0, "`max_concurrency`")
        limit = await self._limit(node, asked)
        if isinstance(node, ParallelNode):
            touched = tuple(asked.touched)
            return Performed(C.BranchesOpened(address, limit, None, touched, asked.looked), {})
        recorded, attempt = await self._collection(address)
        touched = tuple(sorted(attempt.touched | asked.touched))
        looked = tuple(sorted({*attempt.looked, *asked.looked}))
        return Performed(
            C.BranchesOpened(address, limit, recorded.collection, touched, looked), recorded.blobs
        )

    async def join(self, command: C.JoinBranches) -> Performed:
        """Reduce what several branches gave to one key."""
        journal, address = self._scope.journal, command.address
        program, core = journal.program, journal.state.core
        node = program.nodes[address.path]
        assert isinstance(node, ParallelNode | ParallelOverNode)
        seen = self._calls.view(core, address)
        merged: dict[str, Raw] = {}
        blobs: dict[str, bytes] = {}
        for key in lanes.to_merge(program, core, address):
            values = [
                (_branch_name(at, program.loops), self._read(key, overlay[key]))
                for at, overlay in lanes.branches(program, core, address)
                if key in overlay
            ]
            reducer = node.merge[key]
            function: Any = None
            if reducer.code is not None:
                function = self._scope.binding(reducer_key(address.path, key))
            before = self._read(key, seen.get(key))
            try:
                reduced = await self._calls.in_thread(
                    partial(merge.reduce, reducer.name, function, key, before, values)
                )
            except KitchenError:
                raise
            except Exception as error:
                raise WorkflowError(
                    f"the reducer {reducer.name} of state[{key!r}], called where the parallel "
                    f"{spell(*address)} is joined, failed: {type(error).__name__}: {error}",
                    hint="it is called with the value at the fork (None if there was none) and the "
                    "list of what the branches gave; mend it, then resume the run",
                ) from error
            if key in self._scope.fields:
                reduced = fit(key, reduced, self._scope.fields[key])
            encoded = self._scope.codec.encode(reduced, where=f"state[{key!r}]")
            merged[key] = Raw(encoded.json)
            blobs.update(encoded.blobs)
        return Performed(C.BranchesMerged(address, merged), blobs)

    def _read(self, key: str, cell: Cell | None) -> Any:
        if cell is None:
            return merge.MISSING
        return cells.read(
            Cell(cell.base, cell.deltas), self._scope.codec, self._scope.journal.fetch, key
        )

    async def _limit(self, node: ParallelNode | ParallelOverNode, attempt: Attempt) -> int:
        """How many branches may run at a time."""
        if node.max_concurrency is not None:
            return node.max_concurrency
        if node.limit is None:
            return _cpus()
        address = attempt.address
        attempt.touched |= await self._surroundings.ensure(address)
        asked = await self._calls.ask(limit_key(address.path), attempt, thread=False)
        if type(asked) is not int or asked < 1:
            raise WorkflowError(
                f"max_concurrency of {spell(*address)} gave {asked!r}",
                hint="return a whole number, at least 1",
            )
        return asked

    async def _collection(self, address: Address) -> tuple[items.Recorded, Attempt]:
        scope = self._scope
        attempt = self._calls.attempt(address, 0, "`over`")
        attempt.touched |= await self._surroundings.ensure(address)
        collection = await self._surroundings.ask_over(address, attempt)
        looked = scope.journal.state.stateful(attempt.touched | attempt.peeked)
        record = partial(items.record, collection, scope.codec, address, keep=bool(looked))
        few = isinstance(collection, range) or len(collection) < FEW
        recorded = record() if few else await self._calls.in_thread(record)
        scope.items[address] = recorded.items
        if not recorded.checkable and looked:
            raise ItemsError(
                f"the items of the loop {address} cannot be encoded, and `over` used "
                f"{', '.join(looked)}: after a crash they could not be had again exactly",
                hint="give items that can be kept, or draw them in the body",
            )
        return recorded, attempt


def _branch_name(at: Address, loops: Any) -> str:
    return spell(*at, loops.get(at.path))


def _cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

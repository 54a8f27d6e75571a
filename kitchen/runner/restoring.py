"""Having the resources of a run back as its state says, in a new process or behind a rewind.

Rules: they are opened in their old order. Each factory sees the state that it saw then, and the
other resources as their last checkpoint before that had them. In the end all are loaded as the
cut has them: an optimiser's factory may do to its model what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anyio import to_thread

from kitchen.errors import NotResumable
from kitchen.machine import commands as C
from kitchen.machine.commands import Command
from kitchen.machine.events import Address, Manifest
from kitchen.machine.state import ResourceState
from kitchen.runner import checkpoint

if TYPE_CHECKING:
    from kitchen.runner.loop import Execution


async def bring_back(execution: Execution) -> Sequence[Command]:
    """Open what the state says is open, and go on; the commands to perform.

    A resource that cannot be had again fails the run.
    """
    scope = execution.scope
    resources = list(scope.journal.state.core.resources.items())
    restoring = _Restoring(execution)
    at = Address("")
    try:
        for name, known in resources:
            at = Address(known.path, known.visit)
            await restoring.open(name, known)
        for at in list(scope.journal.state.core.control.active):
            restoring.used |= await execution.performer.surroundings.ensure(at)
        for name, known in resources:
            at = Address(known.path, known.visit)
            await restoring.load(name, known.manifest, again=name in restoring.used)
    except (Exception, SystemExit) as error:
        failure = execution.performer.told(error)
        execution.step(C.CommandFailed(at, failure, everywhere=True))
        return ()
    for name, known in resources:
        execution.step(C.ResourceReturned(name, known.saved))
    return execution.step(C.Continue())


class _Restoring:
    """Resources as they come back; `used` are those that something got at while they did."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._loaded: dict[str, Manifest] = {}
        self.used: set[str] = set()

    async def open(self, name: str, known: ResourceState) -> None:
        """Call a factory again, with the state and the resources that it saw."""
        performer, journal = self._execution.performer, self._execution.scope.journal
        address = Address(known.path, known.visit)
        then = journal.state_at(known.opened - 1).core
        for other, was in then.resources.items():
            if other in self._execution.scope.live:
                await self.load(other, was.manifest, again=other in self.used)
        attempt = performer.surroundings.past_attempt(address, known.opened - 1, "factory")
        attempt.touched |= await performer.surroundings.ensure(address)
        stateful = await performer.open(name, address, attempt)
        if known.stateful and not stateful:
            raise NotResumable(
                f"resource {name!r} was stateful when it was opened; now it has no state_dict()",
                hint="resume with the code that started the run",
            )
        self.used |= attempt.touched

    async def load(self, name: str, manifest: Manifest | None, *, again: bool) -> None:
        """Load what a checkpoint holds, if that is not what is loaded already."""
        if manifest is None or (self._loaded.get(name) == manifest and not again):
            return
        scope = self._execution.scope
        value = scope.live.get(name).value
        await to_thread.run_sync(checkpoint.load, name, value, manifest, scope.journal)
        self._loaded[name] = manifest
        self.used.discard(name)

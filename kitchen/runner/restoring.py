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
    from kitchen.runner.perform import Performer
    from kitchen.runner.scope import Scope


async def bring_back(execution: Execution) -> Sequence[Command]:
    """Open what the state says is open, and go on; the commands to perform.

    A resource that cannot be had again fails the run.
    """
    resources = list(execution.scope.journal.state.core.resources.items())
    restoring = Restoring(execution.scope, execution.performer)
    try:
        await restoring.everything()
    except (Exception, SystemExit) as error:
        failure = execution.performer.told(error)
        execution.step(C.CommandFailed(restoring.at, failure, everywhere=True))
        return ()
    for name, known in resources:
        execution.step(C.ResourceReturned(name, known.saved))
    return execution.step(C.Continue())


class Restoring:
    """Resources as they come back; `used` are those that something got at while they did.

    `at`: where the one was opened that is coming back.
    """

    def __init__(self, scope: Scope, performer: Performer) -> None:
        self._scope = scope
        self._performer = performer
        self._loaded: dict[str, Manifest] = {}
        self.used: set[str] = set()
        self.at = Address("")

    async def everything(self) -> None:
        """Open what the state says is open, as it says. Raises what user code raises."""
        core = self._scope.journal.state.core
        resources = list(core.resources.items())
        for name, known in resources:
            self.at = Address(known.path, known.visit)
            await self._open(name, known)
        for at in list(core.control.active):
            self.at = at
            self.used |= await self._performer.surroundings.ensure(at)
        for name, known in resources:
            self.at = Address(known.path, known.visit)
            await self._load(name, known.manifest, again=name in self.used)

    async def _open(self, name: str, known: ResourceState) -> None:
        """Call a factory again, with the state and the resources that it saw."""
        performer, journal = self._performer, self._scope.journal
        then = journal.state_at(known.opened - 1).core
        for other, was in then.resources.items():
            if other in self._scope.live:
                await self._load(other, was.manifest, again=other in self.used)
        attempt = performer.surroundings.past_attempt(self.at, known.opened - 1, "factory")
        attempt.touched |= await performer.surroundings.ensure(self.at)
        stateful = await performer.open(name, self.at, attempt)
        if known.stateful and not stateful:
            raise NotResumable(
                f"resource {name!r} was stateful when it was opened; now it has no state_dict()",
                hint="resume with the code that started the run",
            )
        self.used |= attempt.touched

    async def _load(self, name: str, manifest: Manifest | None, *, again: bool) -> None:
        """Load what a checkpoint holds, if that is not what is loaded already."""
        if manifest is None or (self._loaded.get(name) == manifest and not again):
            return
        scope = self._scope
        value = scope.live.get(name).value
        await to_thread.run_sync(checkpoint.load, name, value, manifest, scope.journal)
        self._loaded[name] = manifest
        self.used.discard(name)

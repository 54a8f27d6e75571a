"""Leaving loops, and blocks that have failed: all that goes on in them is seen off first.

Rules:

1. A loop is left when its source is closed and no producer runs. A block that has failed is left
   when nothing goes on in it any more, its streams are closed, and so are the resources that were
   opened in it.
2. What was got at by somebody who was stopped, or whose outcome came too late, is told, so that the
   kernel can go back to the cut.
3. Stages are rolled back before, when nothing goes on in the block any more.
"""

from __future__ import annotations

import logging

from kitchen.errors import KitchenError
from kitchen.machine import commands as C
from kitchen.machine import feeds
from kitchen.machine.commands import Command
from kitchen.machine.events import Address
from kitchen.machine.outstanding import within
from kitchen.runner.crew import Crew
from kitchen.runner.outcome import Performed
from kitchen.runner.perform import Performer
from kitchen.runner.scope import Scope

_logger = logging.getLogger("kitchen.run")


class Leaving:
    """Sees off what goes on in a loop or a block, as the crew knows it."""

    def __init__(self, scope: Scope, performer: Performer, crew: Crew) -> None:
        self._scope = scope
        self._performer = performer
        self._crew = crew

    def take_part(self) -> None:
        """Have the commands that are about leaving performed here."""
        self._performer.on(C.LeaveLoop, self._leave_loop)
        self._performer.on(C.LeaveBlock, self._leave_block)
        self._performer.on(C.RollBack, self._roll_back)

    async def _leave_loop(self, command: C.LeaveLoop) -> Performed:
        loop = command.address
        await self._performer.feeding.leave(loop)
        await self._crew.gone(
            lambda other: isinstance(other, C.Produce) and feeds.loop_of(other.address) == loop
        )
        return Performed(C.LoopLeft(loop), {})

    async def _leave_block(self, command: C.LeaveBlock) -> Performed:
        block, performer, live = command.address, self._performer, self._scope.live
        await self._gone(block, command)
        try:
            await performer.feeding.leave_all(block)
        except Exception:  # the block has failed already
            _logger.exception("run %s: a stream could not be closed", self._scope.run_id)
        for late, (outcome, _) in self._crew.discard(lambda other: within(other.address, block)):
            performer.drop(late, outcome)
        core = self._scope.journal.state.core
        opened = {n: Address(r.path, r.visit) for n, r in core.resources.items()}
        opened |= performer.unclaimed
        names = [name for name, at in opened.items() if within(at, block)]
        reached = live.reach(live.managed(names))
        live.mark_worked(reached)
        touched, lost = tuple(sorted(performer.cut_short | live.lost)), tuple(sorted(live.lost))
        error = performer.exception(core.control.failing[block].failure)
        try:
            await live.close(names, error=error)
        except KitchenError:
            _logger.exception("run %s: a resource could not be closed", self._scope.run_id)
        performer.cut_short.difference_update(names)
        for name in names:
            performer.unclaimed.pop(name, None)
        return Performed(C.BlockLeft(block, touched, reached, lost), {})

    async def _roll_back(self, command: C.RollBack) -> Performed:
        await self._gone(command.block, command)
        return await self._performer.staging.roll_back(command)

    async def _gone(self, block: Address, command: Command) -> None:
        """Wait until nothing else goes on in the block, not even its own inner leaving."""
        await self._crew.gone(lambda other: other is not command and within(other.address, block))

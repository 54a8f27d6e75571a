"""What is asked of a run from outside: to stop, to be cancelled, to save what it has.

Rules:

1. A request is noted at once and honoured between two commands. What is being performed comes to
   its end, but for what only waits; once the grace period is over, it is stopped.
2. Whatever was stopped in the middle of something is told so. What it had got at is not what it
   was, so nothing is saved then, and a resume goes back to the cut.
3. A checkpoint that is asked for is saved where nothing runs, side by side included: what runs comes
   to its end, and nothing begins before everything is saved.
4. A run that is cancelled has ended for good.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kitchen.errors import KitchenError
from kitchen.machine import commands as C
from kitchen.machine.commands import Command
from kitchen.machine.outstanding import outstanding
from kitchen.machine.state import ACTIVE

if TYPE_CHECKING:
    from kitchen.runner.loop import Execution

_logger = logging.getLogger("kitchen.run")
_IDLE = (C.PullItem, C.AwaitRetry)
_WAITING = (*_IDLE, C.Produce)  # what a producer makes now is made again by whoever resumes
GRACE = 30.0


@dataclass
class Requests:
    """What was asked for. `signal`: to stop, by it; `canceller`: to end for good, by whom;
    `checkpoint`: to save. `grace`: how many seconds what runs may take to end."""

    grace: float = GRACE
    signal: str | None = None
    canceller: str | None = None
    checkpoint: bool = False
    _since: float | None = None

    @property
    def ending(self) -> bool:
        """Whether the run is to end before its end."""
        return self.signal is not None or self.canceller is not None

    @property
    def late(self) -> bool:
        """Whether what runs has had its time."""
        if not self.ending:
            return False
        if self._since is None:
            self._since = time.monotonic()
        # Who cancels a run wants it to end now; who interrupts it may lose a step by that.
        return self.canceller is not None or time.monotonic() - self._since >= self.grace


async def stop(execution: Execution) -> None:
    """Bring the run to a halt, and tell it."""
    requests, performer = execution.requests, execution.performer
    state = execution.scope.journal.state
    await _quiet(execution)
    if state.status != ACTIVE:
        return
    begun = tuple(performer.staging.begun)
    if requests.canceller is not None:
        execution.step(C.Cancel(requests.canceller, begun))
        return
    assert requests.signal is not None
    try:
        if _is_whole(execution):
            execution.step(C.CheckpointWritten(None, await performer.save()))
    except KitchenError:
        _logger.exception("run %s: nothing is saved", execution.scope.run_id)
    finally:  # without the checkpoint the run is rewound when it is resumed
        execution.step(C.Interrupt(requests.signal, begun))


async def preserve(execution: Execution) -> Sequence[Command]:
    """Save everything where the run stands; the commands to go on with."""
    execution.requests.checkpoint = False
    journal = execution.scope.journal
    await _quiet(execution, _IDLE)
    if execution.rewound or journal.state.status != ACTIVE:
        return ()
    if _is_whole(execution):
        try:
            saved = await execution.performer.save()
        except KitchenError:
            _logger.exception("run %s: the checkpoint that was asked for failed", journal.run)
        else:
            _logger.warning("run %s: saved, as it was asked to", journal.run)
            return execution.step(C.Preserved(saved))
    else:
        _logger.warning("run %s: there was nothing to save, or something half done", journal.run)
    return list(outstanding(journal.program, journal.state))


def _is_whole(execution: Execution) -> bool:
    """Whether there is something to save, and nothing of it half changed."""
    state = execution.scope.journal.state
    control = state.core.control
    half: Any = state.stateful(execution.performer.cut_short)
    return bool(state.dirty) and not (control.halted or control.failing or half)


async def _quiet(execution: Execution, waiting: tuple[type[Any], ...] = _WAITING) -> None:
    """Let what is being performed come to its end; what only waits is stopped."""
    state = execution.scope.journal.state
    execution.stop_commands(lambda command: isinstance(command, waiting))
    while not execution.idle and state.status == ACTIVE and not execution.rewound:
        await execution.take_outcomes()

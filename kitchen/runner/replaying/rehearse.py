"""Replay with execution: what a run did is done again in a sandbox, and compared with its log.

Rules:

1. The log is folded on the machine of the recorded workflow; what is called is the workflow that is
   given, which may have changed since. Where it lacks a node, that is a difference.
2. Nothing is appended and nothing written; what user code does elsewhere it does again.
3. Things are done one after the other, in the order of the log, whatever ran side by side.
4. However it ends, what is open is closed, in reverse order, by the task that opened it.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from kitchen.errors import ArgumentError, CorruptStore, HistoryError, KitchenError
from kitchen.log.reader import LogReader, recorded_ir, started
from kitchen.log.replayed import Divergence, Replay, broken_at, last_event
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import RunStarted
from kitchen.ports.event_store import EventStore
from kitchen.runner import config as configs
from kitchen.runner.adapters import adapters_of
from kitchen.runner.crew import Crew, bare
from kitchen.runner.declared import state_fields, suggest
from kitchen.runner.failure import being_cancelled
from kitchen.runner.perform import Performer
from kitchen.runner.replaying.executing import Executing
from kitchen.runner.replaying.plan import Plan, planned
from kitchen.runner.replaying.report import Report
from kitchen.runner.replaying.sandbox import Past, Sandbox
from kitchen.runner.resources import LiveResources
from kitchen.runner.scope import loop_variables
from kitchen.workflow import ir as IR
from kitchen.workflow.definition import Workflow

_logger = logging.getLogger("kitchen.run")

PATIENCE = 5.0  # seconds for a thread to end when the replay is stopped
YIELD_SECONDS = 0.02

Progress = Callable[[int, int], None]
"""Told the seq that was reached, and the last one."""


async def rehearse(
    workflow: Workflow[Any, Any],
    store: EventStore,
    run: str,
    *,
    until: int | None = None,
    only: str | None = None,
    tolerance: float = 0.0,
    adapters: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Execute what a run did again, up to and including `until` (None: its head), and compare.

    `only`: the path of a node; what it and all below it did is compared, and of the rest executed
    what that needs. `tolerance`: how far numbers may lie apart, relative and absolute. `adapters`:
    instead of the workflow's own.

    Raises `UnknownRun`, `NotResumable` where the log is empty, `HistoryError` where there is no such
    seq, `ArgumentError` for a path that is nowhere, `ConfigError` where a secret is missing.
    """
    began = time.perf_counter()
    last = last_event(store, run, until)
    broken: list[Divergence] = []
    try:
        program = compile_workflow(recorded_ir(store, run))
        begun = started(store, run)
        damage = store.check(run, after=0, until=last)
        broken += [broken_at(each.seq or 0, CorruptStore(str(each))) for each in damage]
        plan = planned(
            LogReader(store, run, program), program, last, _checked(only, program, workflow)
        )
    except (CorruptStore, HistoryError) as error:
        broken = broken or [broken_at(1, error)]
        seconds = time.perf_counter() - began
        return Replay(run, last, 0, 0, 0, {}, tuple(broken), seconds)
    report = Report(program)
    if broken:
        plan.last = min(plan.last, broken[0].seq - 1)
    rehearsal = _Rehearsal(workflow, store, run, begun, program, plan, report, adapters)
    await rehearsal.drive(only, tolerance, progress)
    found = sorted((*report.divergences, *(broken or plan.broken)), key=lambda each: each.seq)
    seconds = time.perf_counter() - began
    counts = (report.visits, report.executed, report.skipped)
    return Replay(run, last, plan.last, *counts, tuple(found), seconds)


def _checked(only: str | None, program: Program, workflow: Workflow[Any, Any]) -> str | None:
    """Raises `ArgumentError` for a path that neither version of the workflow has."""
    known = dict.fromkeys((*program.nodes, *(path for path, _ in IR.walk(workflow.ir))))
    if only is not None and only not in known:
        raise ArgumentError(f"the workflow has no node {only!r}", hint=suggest(only, known))
    return only


class _Rehearsal:
    """A run as it is executed again."""

    def __init__(
        self,
        workflow: Workflow[Any, Any],
        store: EventStore,
        run: str,
        begun: RunStarted,
        program: Program,
        plan: Plan,
        report: Report,
        adapters: Mapping[str, Any] | None,
    ) -> None:
        self._adapters = adapters
        self._plan = plan
        self._report = report
        self._begun = begun
        journal = Sandbox(store, run, program)
        self._journal = journal
        types = [t for t in (workflow.state_type,) if t is not None]
        reserved = loop_variables(program.loops)
        config = configs.unlocked(begun.config, workflow.config_type)
        self._scope = Past(
            workflow=workflow,
            journal=journal,
            config=config,
            pristine=copy.deepcopy(config),
            codec=Codec.for_types(*types),
            seed=begun.seed,
            adapters=adapters_of(workflow, config, adapters),
            live=LiveResources(),
            fields=state_fields(workflow.state_type, reserved),
            reserved=reserved,
        )
        self._performer = Performer(self._scope)
        self._performer.calls.patience = PATIENCE

    async def drive(self, only: str | None, tolerance: float, progress: Progress | None) -> None:
        """Go through the log; raises what means the end of the process."""

        async def all_of_it(beside: TaskGroup) -> None:
            crew = Crew(beside, self._performer.perform)
            self._scope.live.hosts = beside
            self._performer.feeding.host = crew.host
            executing = Executing(
                self._scope, self._performer, self._report, self._plan, only, tolerance
            )
            try:
                await self._through(executing, progress)
            finally:
                with anyio.CancelScope(shield=being_cancelled()):
                    await self._close(crew)

        await bare(all_of_it)

    async def _through(self, executing: Executing, progress: Progress | None) -> None:
        plan, applied = self._plan, None
        yielded = time.monotonic()
        steps = self._journal.steps(self._journal.state, plan.last, self._report.broken)
        for record, fact in steps:
            if applied is not None:
                await executing.after(*applied)
            applied = (record.seq, fact) if plan.counting.counts(record.seq) else None
            if applied is not None:
                self._settle(record.seq)
                await executing.before(*applied)
            if time.monotonic() - yielded > YIELD_SECONDS:
                await anyio.lowlevel.checkpoint()
                yielded = time.monotonic()
                if progress is not None:
                    progress(record.seq, plan.last)
        if applied is not None and self._journal.state.seq == applied[0]:
            await executing.after(*applied)

    def _settle(self, seq: int) -> None:
        """Have the run's name, its config and its seed as they were: a fork has another, and edits
        may have come, and been taken back."""
        begun, scope = self._journal.state.started, self._scope
        scope.called = self._plan.name_at(seq, scope.journal.run)
        if begun is None or begun is self._begun:
            return
        if (bytes(begun.config), begun.seed) != (bytes(self._begun.config), self._begun.seed):
            scope.config = configs.unlocked(begun.config, scope.workflow.config_type)
            scope.pristine = copy.deepcopy(scope.config)
            scope.seed = begun.seed
            if self._adapters is None:
                scope.adapters = adapters_of(scope.workflow, scope.config, None)
        self._begun = begun

    async def _close(self, crew: Crew) -> None:
        await crew.end()
        try:
            await self._scope.live.close()
        except KitchenError:
            _logger.exception("replay of %s: a resource could not be closed", self._scope.run_id)
        self._performer.calls.threads.end()

"""Running and resuming: who owns the run, what it is given, and the loop around it.

Rules:

1. Whoever calls holds the lock on the run, taken before any work and until the end.
2. Everything that can be refused is refused before the first event: config, state type, adapters.
3. Under a launcher of several ranks, rank 0 owns the run; the others are told so.
"""

from __future__ import annotations

import copy
import os
import platform
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple, cast

from kitchen.errors import KitchenError, NotResumable, RunMismatch
from kitchen.log.journal import Journal
from kitchen.log.renaming import Names
from kitchen.machine import commands as C
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.commands import Command
from kitchen.machine.events import Host, Raw, RunStarted
from kitchen.ports.event_store import EventStore
from kitchen.ports.observer import RunObserver
from kitchen.runner import cancelling, checkpoint
from kitchen.runner import config as configs
from kitchen.runner.adapters import adapters_of
from kitchen.runner.deciding import decisions
from kitchen.runner.declared import field_names, initial_state, state_fields
from kitchen.runner.edits import Edits
from kitchen.runner.forking import check_shared
from kitchen.runner.locate import locator_of
from kitchen.runner.loop import Execution
from kitchen.runner.planning import ResumePlan, planned
from kitchen.runner.resources import LiveResources
from kitchen.runner.resume import NO_NAMES, open_journal, take_up, workflow_changed
from kitchen.runner.scope import Scope, loop_variables
from kitchen.runner.signals import can_listen, listening
from kitchen.runner.stopping import GRACE
from kitchen.runner.turning import after_turn, check_wish, turn_for
from kitchen.runner.workers.attempts import packed
from kitchen.workflow import ir as IR
from kitchen.workflow.definition import Workflow, retry_key

_VERSIONED = ("crucible-kitchen", "numpy", "torch", "msgspec")
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


class Ended(NamedTuple):
    """A run that this process is done with; `cause` is what made it fail, if it failed here."""

    journal: Journal
    cause: BaseException | None = None


class Options(NamedTuple):
    """What `run` and `resume` share. `signals`: listen to SIGINT, SIGTERM and SIGUSR1. `grace`: how
    many seconds what runs may take to end once the run is to stop. `decide`: what became of
    effects that must not happen twice, by path. `at`: go another way from the cut before that seq,
    with `edits`. `names`: new paths of nodes, by their old ones. `on_plan` is told what a resume
    will do.
    """

    adapters: Mapping[str, Any] | None = None
    observers: Sequence[RunObserver] = ()
    signals: bool = True
    quiet: bool = False
    grace: float = GRACE
    decide: Mapping[str, Any] | None = None
    at: int | None = None
    edits: Edits = Edits()
    names: Names = NO_NAMES
    on_plan: Callable[[ResumePlan], object] | None = None


def new_run_id(name: str) -> str:
    """An id that sorts by time and is easy to say: `training-20260131-142501-3f9a07c2`."""
    now = datetime.now(UTC)
    return f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def check_rank() -> None:
    """Raises `KitchenError` in a process that is not rank 0 of its launcher.

    `KITCHEN_ANY_RANK=1` says that every rank has a run of its own.
    """
    if os.environ.get("KITCHEN_ANY_RANK") == "1":
        return
    for name in _RANKS:
        rank = os.environ.get(name, "0")
        if rank.isdigit() and int(rank) > 0:
            raise KitchenError(
                f"this process has {name}={rank}: rank 0 owns the run and its log",
                hint="call kitchen.run on rank 0 only, and let the other ranks serve its "
                "collectives; or set KITCHEN_ANY_RANK=1 if each has a run of its own",
            )


def this_host() -> Host:
    """Where this process runs, and on what."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        if name in ("numpy", "torch") and name not in sys.modules:
            continue
        version = _version(name)
        if version is not None:
            versions[name] = version
    return Host(os.getpid(), socket.gethostname(), versions)


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


async def start(
    workflow: Workflow[Any, Any],
    given: Any,
    store: EventStore,
    run_id: str,
    seed: int,
    options: Options,
) -> Ended:
    """Start a new run and drive it to its end; the caller holds the lock.

    Raises `ConfigError`, `RunExists`, `StoreError` before anything ran.
    """
    recorded, config = configs.begun(given, workflow.config_type)
    _check_workers(workflow, config)
    journal = Journal(store, run_id, compile_workflow(workflow.ir))
    scope = _scope(workflow, journal, config, seed, options)
    execution = Execution(scope, options.observers)
    started = RunStarted(
        workflow=workflow.name,
        ir=Raw(IR.to_json(workflow.ir)),
        fingerprint=workflow.fingerprint,
        config=recorded,
        state=initial_state(workflow.state_type, scope.codec),
        seed=seed,
        durability=store.durability,
        locator=locator_of(workflow),
        host=this_host(),
    )

    async def begin() -> Sequence[Command]:
        return execution.step(C.Start(started))

    cancelling.forget(store, run_id)  # one that was left by mistake, of a run that is no more

    await _drive(execution, options, begin)
    return Ended(journal, execution.cause)


async def take_up_run(
    workflow: Workflow[Any, Any],
    store: EventStore,
    run_id: str,
    options: Options,
    asked: Any = None,
) -> Ended:
    """Resume a run and drive it to its end; the caller holds the lock. A completed one is left
    as it is. `asked`: a config that was given again, for its secrets.

    Raises `ConfigError` where a secret is missing, `EffectUndecided`, `NotResumable`,
    `WorkflowChanged`, `CorruptStore`, `StoreError`.
    """
    turning = options.at is not None
    journal, changes = open_journal(store, run_id, workflow, names=options.names, again=turning)
    check_wish(journal, options.at, options.edits)
    if journal.state.status == "cancelled" or (journal.state.status == "completed" and not turning):
        return Ended(journal)
    if journal.state.is_taken_back:
        raise NotResumable(
            f"run {run_id!r} has failed, and its completed stages were rolled back",
            hint="there is nothing to go on from: start another run, under another id",
        )
    info = store.run(run_id)
    if info.parent is not None:
        check_shared(store, info.parent, info.forked_at)
    turn = None
    if options.at is not None:
        turn = turn_for(journal, workflow, options.at, options.edits, store.blobs)
    state = journal.state if turn is None else after_turn(journal, turn)
    checkpoint.check_saved(state, journal)
    begun = state.started
    assert begun is not None
    if asked is None and options.edits.config:  # it may hold secrets
        asked = options.edits.changed(begun, workflow.config_type)
    config = configs.unlocked(begun.config, workflow.config_type, asked)
    _check_workers(workflow, config)
    scope = _scope(workflow, journal, config, begun.seed, options)
    said = decisions(scope, options.decide, state)
    changed = workflow_changed(scope, changes, options.names)
    execution = Execution(scope, options.observers)
    resume = C.Resume(this_host(), changed, said, turn)
    if options.on_plan is not None:
        plan = planned(journal, changes, turn, options.at)
        options.on_plan(plan._replace(undecided=()))  # as somebody has decided
    await _drive(execution, options, lambda: take_up(execution, resume))
    return Ended(journal, execution.cause)


async def _drive(
    execution: Execution, options: Options, begin: Callable[[], Awaitable[Iterable[Command]]]
) -> None:
    execution.requests.grace = options.grace
    if options.signals and can_listen():
        with listening(execution, quiet=options.quiet):
            await execution.drive(begin)
    else:
        await execution.drive(begin)
    journal = execution.scope.journal
    if journal.state.status in ("completed", "cancelled", "failed"):
        cancelling.forget(journal.store, journal.run)


def _check_workers(workflow: Workflow[Any, Any], config: Any) -> None:
    """Raises `WorkflowError` where a stage cannot be sent to a worker process."""
    for path, node in IR.walk(workflow.ir):
        if isinstance(node, IR.StageNode) and node.process:
            wants: Any = workflow.bindings.get(retry_key(path))
            packed(path, workflow.bindings[path], config, workflow.state_type, wants)  # pyright: ignore[reportArgumentType]


def _scope(
    workflow: Workflow[Any, Any], journal: Journal, config: Any, seed: int, options: Options
) -> Scope:
    types = [t for t in (workflow.state_type,) if t is not None]
    reserved = loop_variables(journal.program.loops)
    return Scope(
        workflow=workflow,
        journal=journal,
        config=config,
        pristine=copy.deepcopy(config),
        codec=Codec.for_types(*types),
        seed=seed,
        adapters=adapters_of(workflow, config, options.adapters),
        live=LiveResources(),
        fields=state_fields(workflow.state_type, reserved),
        reserved=reserved,
    )


def check_same(
    journal_started: RunStarted, workflow: Workflow[Any, Any], given: Any, seed: int
) -> Any:
    """For `if_exists="resume"`: the run that is there must be the one that was asked for; the
    config that was.

    Raises `RunMismatch` naming the fields that differ.
    """
    if journal_started.workflow != workflow.name:
        raise RunMismatch(
            f"the run that is there is of workflow {journal_started.workflow!r}, not {workflow.name!r}",
            hint="choose another run_id",
        )
    asked = configs.convert(given, workflow.config_type)
    recorded = configs.restore(journal_started.config, workflow.config_type)
    lines = [
        f"  config.{name}: recorded {was!r}, asked for {now!r}"
        for name, was, now in _field_pairs(recorded, asked)
        if not configs.same(was, now)
    ]
    if journal_started.seed != seed:
        lines.append(f"  seed: recorded {journal_started.seed}, asked for {seed}")
    if lines:
        raise RunMismatch(
            "the run that is there was started differently:\n" + "\n".join(lines),
            hint="resume it with `kitchen resume`, or choose another run_id",
        )
    return asked


def _field_pairs(recorded: Any, asked: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(recorded, Mapping):
        before = dict(cast("Mapping[str, Any]", recorded))
        after = dict(cast("Mapping[str, Any]", asked))
        names = sorted(before.keys() | after.keys())
        return [(name, before.get(name), after.get(name)) for name in names]
    names = field_names(cast("type[Any]", type(recorded)))
    return [(name, getattr(recorded, name), getattr(asked, name)) for name in names]

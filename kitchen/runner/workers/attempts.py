"""Worker processes: the body of a stage in a process of its own, which can be killed.

Rules:

1. Each attempt has a new process, which ends with it: what an earlier one left behind (a module's
   globals, a broken CUDA context, memory) is not there, and a resumed run sees the same.
2. It is started like any program and not forked. It inherits the environment, the working folder,
   and where native code writes; nothing to read from.
3. Cancelling kills it, and what it has started, before the cancellation goes on.
4. What is sent is taken at once, and encoded and sent in a thread.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import anyio
import msgspec

from kitchen.errors import UnencodableValue, WorkflowError
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, Effect, Failure, from_json
from kitchen.machine.state import Cell
from kitchen.runner.attempt import Attempt
from kitchen.runner.scope import Scope
from kitchen.runner.secret import redacted
from kitchen.runner.threads import Threads, event_loop
from kitchen.runner.workers.messages import (
    Item,
    Main,
    Reply,
    Work,
    error_of,
    names_main,
    pack,
    this_main,
)
from kitchen.runner.workers.process import LAST_SECONDS, Worker

_NO_OPTIONS: Mapping[str, Any] = {}

Wants = Callable[[BaseException], bool]


class Answer(NamedTuple):
    """What came of an attempt in a worker. `failure` is None where the body has returned.

    `effects` and `blobs` are what it changed, or would have changed. `error` is the exception
    itself, if it comes back from a pickle; `wanted`, whether the retry policy wants it.
    """

    effects: tuple[Effect, ...]
    blobs: dict[str, bytes]
    failure: Failure | None = None
    error: BaseException | None = None
    wanted: bool = False


class Workers:
    """Runs the bodies of one execution's stages in worker processes."""

    def __init__(self, scope: Scope, threads: Threads) -> None:
        self._scope = scope
        self._threads = threads

    async def run(
        self,
        attempt: Attempt,
        data: Mapping[str, Cell],
        writes: tuple[str, ...] | None,
        body: Callable[[Any], Any],
        options: Mapping[str, Any] = _NO_OPTIONS,
        wants: Wants | None = None,
    ) -> Answer:
        """Do an attempt over the state `data` in a worker; what came of it.

        The items of the loops around must be there. Metrics are in the attempt as soon as they are
        recorded. Raises `WorkerLost` where the process dies, `WorkflowError` where something cannot
        be sent to it.
        """
        work = self._work(attempt.address, attempt.number, writes, body, wants)
        fill = partial(_filled, work, dict(data), dict(options), self._items(attempt), self._scope)
        worker = Worker(self._scope, attempt, fill)
        try:
            reply = await self._threads.run(worker.serve, patience=0, abandoned=worker.kill)
        except BaseException:
            worker.kill()
            with anyio.CancelScope(shield=True):
                await self._threads.run(partial(worker.gone.wait, LAST_SECONDS))
            raise
        return _answer(reply)

    def _work(
        self,
        address: Address,
        number: int,
        writes: tuple[str, ...] | None,
        body: Callable[[Any], Any],
        wants: Wants | None,
    ) -> Work:
        """All but the values, which may be large."""
        scope = self._scope
        program, state = scope.journal.program, scope.journal.state
        config, state_type = scope.config, scope.workflow.state_type
        loops = program.loops.get(address.path, ())[: len(address.visit)]
        around = [Address(path, address.visit[:depth]) for depth, path in enumerate(loops)]
        nodes: dict[str, Any] = {path: program.nodes[path] for path in loops}
        alone = address.path not in program.lanes
        feeds = state.core.control.feeds
        return Work(
            address=address,
            number=number,
            writes=writes,
            **packed(address.path, body, config, state_type, wants),
            options=b"",
            data={},
            loops=loops,
            nodes={path: msgspec.structs.replace(node, body=()) for path, node in nodes.items()},
            items={},
            feeds={at: feeds[at] for at in around if at in feeds},
            reserved=dict(scope.reserved),
            run_id=scope.run_id,
            seed=scope.seed,
            origins={path: scope.origin(path) for path in (address.path, *loops)},
            incarnation=state.incarnation,
            seed_globals=scope.workflow.ir.seed_globals and alone,
            event_loop=event_loop(),
            levels=_levels(),
            main=_main(),
        )

    def _items(self, attempt: Attempt) -> dict[Address, Any]:
        """The current items of the loops around."""
        path, visit = attempt.address
        loops = self._scope.journal.program.loops.get(path, ())[: len(visit)]
        around = [Address(loop, visit[:depth]) for depth, loop in enumerate(loops)]
        return {at: self._scope.items[at][visit[len(at.visit)]] for at in around}


# --- what goes in ---------------------------------------------------------------------------------


def packed(
    path: str,
    body: Callable[[Any], Any],
    config: Any,
    state_type: type[Any] | None,
    wants: Wants | None = None,
) -> dict[str, bytes]:
    """What a worker gets by reference. Raises `WorkflowError` where it would not be found there.

    Called when a run begins, it finds that out before anything has run.
    """
    parts = {"body": body, "config": config, "state_type": state_type, "wants": wants}
    names = {"state_type": "state type", "wants": "retry policy"}
    texts: dict[str, bytes] = {}
    for part, value in parts.items():
        problem = ""
        try:
            texts[part] = pack(value)
            if names_main(texts[part]) and _main() is None:
                problem = "it is not in a file"
        except Exception as error:  # pickling calls the user's code
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise WorkflowError(
                f"the {names.get(part, part)} of the stage {path!r}, which has process=True, cannot "
                f"be sent to a worker process: {problem}",
                hint="functions and classes are found by name: define them at the top level of a "
                "module or script; or leave process= out",
            )
    return texts


def _filled(
    work: Work,
    data: dict[str, Cell],
    options: dict[str, Any],
    items: dict[Address, Any],
    scope: Scope,
) -> bytes:
    """The work with its values, as it is sent."""
    cells = {
        key: (bytes(cell.base), tuple((kind, bytes(values)) for kind, values in cell.deltas))
        for key, cell in data.items()
    }
    return pickle.dumps(
        work._replace(
            data=cells,
            options=Codec().encode(options, where="options").json,
            items={at: _item(item, scope.codec) for at, item in items.items()},
        ),
        pickle.HIGHEST_PROTOCOL,
    )


def _item(item: Any, codec: Codec) -> Item:
    try:
        text, blobs = codec.encode(item)
        return Item(text, dict(blobs))
    except UnencodableValue:
        pass
    try:
        return Item(pickled=pack(item))
    except Exception as error:  # pickling calls the user's code
        return Item(problem=f"{type(error).__name__}: {error}")


def _main() -> Main | None:
    """The script that this process was started with, if a worker can import it."""
    main = this_main()
    file = getattr(main, "__file__", None)
    if not file or not os.path.isfile(file):
        return None
    return Main(os.path.abspath(file), main.__package__)


def _levels() -> dict[str, int]:
    """The levels of all loggers that have one, by name."""
    known = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    return {"root": logging.root.level} | {n: each.level for n, each in known.items() if each.level}


# --- what comes back ------------------------------------------------------------------------------


def _answer(reply: Reply) -> Answer:
    effects = tuple(cast("Effect", from_json(kind, text)) for kind, text in reply.effects)
    if reply.failure is None or reply.error is None:
        return Answer(effects, reply.blobs)
    failure = _redacted(reply.failure)
    error = error_of(reply.error, this_main)
    if error is not None:
        error.add_note(f"In the worker process:\n{failure.traceback.rstrip()}")
    return Answer(effects, reply.blobs, failure, error, reply.wanted)


def _redacted(failure: Failure) -> Failure:
    """Without the secrets that this process knows, and by the names that things have here."""
    texts = (failure.type, failure.message, failure.traceback, failure.hint)
    return Failure(*(redacted(text).replace("__mp_main__.", "__main__.") for text in texts))

"""In a worker process: one attempt of one stage, over a run that is elsewhere.

Rules:

1. A worker does one attempt and ends. Its `ctx` is a real context over a stand-in of the run: what
   is read came with the work (blobs are asked for when they are read), metrics and progress are
   told at once, mutations when the body has returned.
2. Nothing but messages goes through the connection. What is printed is a message too, and is
   written by the run's process; what native code or a child process writes goes where it goes there.
   Log records are handled by the loggers of the run's process.
3. It does not die of SIGINT or SIGTERM, which often reach all processes of a run: the run decides.
   It dies at once when the run's process is dead, and what it has started with it.
4. A process that it forks has nothing of this: it writes and dies as any other.
"""

from __future__ import annotations

import ctypes
import inspect
import logging
import os
import pickle
import signal
import sys
import threading
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, NoReturn

import anyio
from msgspec import Raw

from kitchen.errors import ItemsError, ResourceError, WorkflowError
from kitchen.machine.cells import no_blobs
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, Effect, to_json
from kitchen.machine.state import Cell, Control, Core, Delta, State
from kitchen.runner import config as configs
from kitchen.runner import randomness
from kitchen.runner.attempt import Attempt
from kitchen.runner.context import Context
from kitchen.runner.declared import state_fields
from kitchen.runner.failure import balanced, describe
from kitchen.runner.workers.messages import CLOSED, Item, Reply, Work, import_main, told, unpack
from kitchen.runner.workers.output import send_prints, send_records

_PR_SET_PDEATHSIG = 1


def main(connection: Connection[Any, Any], parent: int) -> NoReturn:
    """Do the work that comes through the connection, and end this process."""
    _guard(parent)
    channel = Channel(connection)
    work: Work = pickle.loads(connection.recv_bytes())  # noqa: S301  (from our own run)
    channel.watch()
    send_prints(channel)
    reply = _reply(work, channel)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    channel.tell("reply", reply)
    os._exit(0)  # a thread that the body has left must not keep the run waiting


def _guard(parent: int) -> None:
    """Live no longer than the run, and no shorter because of a signal to all."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        _die()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _ignore)
    os.register_at_fork(after_in_child=_unguard)


def _ignore(_number: int, _frame: object) -> None:
    """Not SIG_IGN, which programs that are started from here would inherit."""


def _unguard() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _die() -> NoReturn:
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class Channel:
    """The worker's end of the connection."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self.open = True
        self._connection = connection
        self._telling = threading.RLock()
        self._asking = threading.Lock()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        os.set_inheritable(connection.fileno(), False)
        os.register_at_fork(after_in_child=self._leave)

    def tell(self, *message: Any) -> None:
        """Send a message. Raises what pickling raises."""
        text = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with self._telling:
                self._connection.send_bytes(text)
        except OSError:
            os._exit(CLOSED)

    def progress(self, _address: Address, done: float, total: float | None) -> None:
        """Tell how far the stage is."""
        self.tell("progress", done, total)

    def fetch(self, digest: str) -> bytes:
        """A blob of the run's store. Raises `BlobLost`."""
        with self._asking:
            self.tell("blob", digest)
            answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def watch(self) -> None:
        """Take answers, in a thread; and die when there is nobody any more to give one."""
        threading.Thread(target=self._watch, daemon=True, name="kitchen-watch").start()

    def _watch(self) -> None:
        try:
            while True:
                self._answers.put(self._connection.recv())
        except EOFError:
            _die()
        except OSError:
            os._exit(CLOSED)

    def _leave(self) -> None:
        """In a process that was forked from this: have no part in it."""
        if self.open:
            self.open = False
            self._connection.close()


# --- the attempt ----------------------------------------------------------------------------------


class _Attempt(Attempt):
    """An attempt whose metrics are told at once."""

    channel: Channel

    def metric(self, name: str, value: Any, step: int | None) -> None:
        super().metric(name, value, step)
        for each in self.take_metrics():
            self.channel.tell("metric", each.name, bytes(each.value), each.step)


class _Scope(SimpleNamespace):
    """What a context asks of a run."""

    @property
    def adapters(self) -> NoReturn:
        raise WorkflowError(
            "a stage with process=True has no adapters: they live in the run's process",
            hint="make what it needs in the stage, from ctx.config; or leave process= out",
        )

    @property
    def live(self) -> NoReturn:
        raise ResourceError(
            "a stage with process=True has no resources: they live in the run's process",
            hint="pass what it needs in ctx.state, or as a file; or leave process= out",
        )

    def logger(self, path: str) -> logging.Logger:
        return logging.getLogger(f"kitchen.run.{path.replace('/', '.')}")


class _Items:
    """The items of one loop, of which one has come along."""

    def __init__(self, item: Item, where: str, codec: Codec, main: Any) -> None:
        self._item = item
        self._where = where
        self._codec = codec
        self._main = main

    def __getitem__(self, index: int) -> Any:
        text, blobs, pickled, problem = self._item
        if problem:
            raise ItemsError(
                f"item {index} of the loop {self._where} cannot be sent to a worker process: "
                f"{problem}",
                hint="have the loop go over what can be encoded, or leave process= out",
            )
        if pickled:
            return unpack(pickled, self._main)
        return self._codec.decode(text, blobs.__getitem__)


def _reply(work: Work, channel: Channel) -> Reply:
    """Do the work; what is to be answered."""
    attempt: Attempt | None = None
    found: dict[str, Any] = {}
    script = partial(import_main, work.main)
    try:
        found.update(_unpacked(work, script))
        send_records(channel, work.levels)
        scope, attempt = _surroundings(work, channel, found, script)
        options = Codec().decode(work.options, no_blobs, key="options")
        context: Context[Any, Any] = Context(scope, attempt, options)
        if work.seed_globals:
            randomness.seed_globals(context.seed)
        _call(found["body"], context, work.event_loop)
        effects = attempt.finish()
        _check_config(scope.config, unpack(work.config, script))
        return Reply(_texts(effects), attempt.blobs)
    except BaseException as error:
        wants = found.get("wants")
        return Reply(
            *_discarded(attempt),
            describe(error),
            told(error, script),
            wants is not None and bool(wants(error)),
        )


def _unpacked(work: Work, script: Any) -> dict[str, Any]:
    """What was pickled. Raises `WorkflowError` where something is not found here."""
    found: dict[str, Any] = {}
    for name in ("wants", "state_type", "config", "body"):
        try:
            found[name] = unpack(getattr(work, name), script)
        except WorkflowError:
            raise
        except Exception as error:
            raise WorkflowError(
                f"the {name} of {work.address} was not found in the worker process: "
                f"{type(error).__name__}: {error}",
                hint="it must stand at the top level of a module that can be imported",
            ) from error
    return found


def _surroundings(
    work: Work, channel: Channel, found: dict[str, Any], script: Any
) -> tuple[Any, Attempt]:
    """The stand-in of the run, and the attempt."""
    codec = Codec.for_types(*(t for t in (found["state_type"],) if t is not None))
    cells = {
        key: Cell(Raw(base), (Delta(kind, Raw(values)) for kind, values in deltas))
        for key, (base, deltas) in work.data.items()
    }
    attempt = _Attempt(work.address, work.number, cells, codec, channel.fetch, writes=work.writes)
    attempt.channel = channel
    program = SimpleNamespace(loops={work.address.path: work.loops}, nodes=work.nodes)
    state = State(core=Core(Control(feeds=work.feeds)), incarnation=work.incarnation)
    scope = _Scope(
        workflow=SimpleNamespace(state_type=found["state_type"]),
        journal=SimpleNamespace(program=program, state=state),
        config=found["config"],
        fields=state_fields(found["state_type"], work.reserved),
        reserved=work.reserved,
        items={at: _Items(item, str(at), codec, script) for at, item in work.items.items()},
        run_id=work.run_id,
        seed=work.seed,
        origin=work.origins.__getitem__,
        on_progress=channel.progress,
    )  # fmt: skip
    return scope, attempt


def _call(body: Any, context: Any, event_loop: str) -> None:
    """Call the body, in an event loop if it is async."""
    result = body(context)
    if inspect.isawaitable(result):
        anyio.run(balanced, result, backend=event_loop)


def _check_config(config: Any, pristine: Any) -> None:
    if not configs.same(config, pristine):
        raise WorkflowError(
            "the config was changed in place",
            hint="the config is a run's immutable input; what changes belongs into ctx.state",
        )


def _texts(effects: tuple[Effect, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((type(effect).__name__, to_json(effect)) for effect in effects)


def _discarded(attempt: Attempt | None) -> tuple[Any, dict[str, bytes]]:
    """What a body that failed would have changed."""
    if attempt is None:
        return (), {}
    try:
        return _texts(attempt.finish()), attempt.blobs
    except Exception:  # what made the stage fail may make this fail too, and is told already
        return (), {}

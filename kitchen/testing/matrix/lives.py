"""Lives of a run: what one process does with it, from taking it up to its end or its death.

Rules:

1. A life is a run or a resume in this process, on an event loop of its own, with signals left alone.
   The log says which it is: a run that is there is resumed.
2. How a run ended is in its log. What else comes out of a life is told as text: "" where the run has
   ended, `DIED` where it died as it was to, or else the error.
3. Adapters that a function makes are made anew for each life, as a new process would.
4. A life has a thread of its own, which is left behind where it takes longer than it may: nothing
   can end what blocks it.
5. What effect="once" leaves undecided is decided as the caller said, "retry" unless they did.
"""

from __future__ import annotations

import contextvars
import dataclasses
import logging
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import msgspec

from kitchen.api.running import check_no_loop, resume_async, run_async
from kitchen.errors import KitchenError, NotResumableWarning, RunCancelled, RunError, RunInterrupted
from kitchen.history.history import History, last_turn
from kitchen.log.reader import run_exists
from kitchen.ports.event_store import EventStore
from kitchen.runner.planning import ResumePlan
from kitchen.testing.fakes.event_store import FakeEventStore
from kitchen.testing.fakes.faults import SimulatedCrash
from kitchen.testing.given import Adapters
from kitchen.testing.matrix.watching import Endless, Tell, Watch, WatchedStore
from kitchen.workflow.definition import Workflow

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock

T = TypeVar("T")

RUN = "matrix"
DIED = "died"
_ENDED = (RunError, RunCancelled, RunInterrupted)


class StillAtWork(Exception):
    """A life takes longer than it should."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is run, and how. `seeded`: with the global generators seeded before each stage."""

    workflow: Workflow[Any, Any]
    config: Any = None
    adapters: Adapters = None
    seed: int = 0
    backend: str = "asyncio"
    clock: VirtualClock | None = None
    decide: Any = None
    seeded: bool = False

    def made(self) -> Mapping[str, Any] | None:
        """The adapters of one life."""
        return self.adapters() if callable(self.adapters) else self.adapters


def live(
    subject: Subject,
    store: EventStore,
    tell: Tell,
    *,
    death: str = "",
    probing: bool = False,
    dying: Callable[[], object] = lambda: None,
    most: int = 0,
) -> str:
    """One life of the run in this store; how it came out.

    `death`: the append before or behind which it dies, as `FakeEventStore` takes it;
    `dying` is called there, and may end the process. `most`: how many appends it may make, if it is
    known how many it should.
    """
    watch = Watch(tell, probing=probing)
    inner = store if subject.clock is None else subject.clock.store(store)
    mortal = FakeEventStore(inner, crash_at=death or None)
    watched: Any = WatchedStore(mortal, watch, dying, most)
    workflow = watch.wrapped(_seeded(subject.workflow) if subject.seeded else subject.workflow)
    clock = subject.clock
    options = None if clock is None else clock.backend_options(subject.backend)
    act = partial(_act, subject, workflow, watched, tell)
    try:
        anyio.run(act, backend=subject.backend, backend_options=options)
    except SimulatedCrash:
        return DIED if mortal.crashed else "SimulatedCrash: not by the matrix"
    except Endless:
        return f"it goes on and on: {most} appends were made, far more than by the whole run"
    except _ENDED:
        return ""
    except Exception as error:
        tell("raised", error)
        return _told(error)
    return ""


async def _act(subject: Subject, workflow: Workflow[Any, Any], store: Any, tell: Tell) -> None:
    adapters = subject.made()
    if not run_exists(store, RUN):
        await run_async(
            workflow, subject.config, store=store, run_id=RUN, adapters=adapters, seed=subject.seed
        )
        return

    def planned(plan: ResumePlan) -> None:
        tell("plan", (plan.head, plan.cut, [tuple(each)[:3] for each in plan.again]))

    await resume_async(
        RUN,
        workflow,
        store=store,
        adapters=adapters,
        decide=_decisions(subject.decide, store),
        on_plan=planned,
    )


def has_ended(store: EventStore) -> bool:
    """Whether a run has died behind its end: a failed one would be given another try."""
    last = last_turn(store, RUN) if run_exists(store, RUN) else None
    return last is not None and last.type in ("RunCompleted", "RunFailed", "RunCancelled")


def _decisions(said: Any, store: EventStore) -> dict[str, Any]:
    """What to say of each effect that is undecided."""
    names = History(store, RUN).undecided
    if not isinstance(said, Mapping):
        return dict.fromkeys(names, "retry" if said is None else said)
    known = cast("Mapping[str, Any]", said)
    return {name: known.get(name, known.get(path_of(name), "retry")) for name in names}


def path_of(name: str) -> str:
    """The path of the node that is named with its visit: `epochs/train` of `epochs[2]/train`."""
    return "/".join(part.partition("[")[0] for part in name.split("/"))


def _seeded(workflow: Workflow[Any, Any]) -> Workflow[Any, Any]:
    ir = msgspec.structs.replace(workflow.ir, seed_globals=True)
    return dataclasses.replace(workflow, ir=ir)


def _told(error: BaseException) -> str:
    text = str(error) if isinstance(error, KitchenError) else f"{error}"
    return f"{type(error).__name__}: {text}"


@contextmanager
def quiet() -> Generator[None]:
    """No word of what is expected here: crashes, rewinds, and resources that may not come back."""
    logger = logging.getLogger("kitchen.run")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotResumableWarning)
            yield
    finally:
        logger.setLevel(level)


def apart(work: Callable[[], T]) -> T:
    """Do the work in this thread; in one of its own where this runs an event loop already."""
    try:
        check_no_loop("")
    except KitchenError:
        return _in_thread(None, work)
    return work()


def within(seconds: float | None, work: Callable[[], T]) -> T:
    """Do the work in a thread of its own, with the context variables of this one. Raises `StillAtWork`
    after so many seconds, and leaves the thread behind."""
    return _in_thread(seconds, partial(contextvars.copy_context().run, work))


def _in_thread(seconds: float | None, work: Callable[[], T]) -> T:
    done: list[T] = []
    failed: list[BaseException] = []

    def in_thread() -> None:
        try:
            done.append(work())
        except BaseException as error:  # raised again below
            failed.append(error)

    thread = threading.Thread(target=in_thread, daemon=True, name="kitchen-crash-matrix")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StillAtWork
    if failed:
        raise failed[0] from None
    return done[0]

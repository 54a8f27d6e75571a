"""Faults: which call of which method fails, takes long, or is the last that the process makes.

Rules:

1. Calls of a method are counted from 1, and counted before anything else happens.
2. What is to happen at a call happens in this order: the delay, the failure, the crash "before"; then
   the call itself; then the crash "after". So a call that fails has changed nothing, and one that is
   crashed "after" has changed everything and told nobody.
3. One mechanism for all: the fakes have a `Faults`, and `faulty` puts one around any object.
4. A name that is no method is refused when it is given, not passed over when it would have counted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from kitchen.errors import ArgumentError
from kitchen.runner.declared import suggest

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock

T = TypeVar("T")

Raised: TypeAlias = BaseException | type[BaseException]
FailAt: TypeAlias = "Mapping[str, int | Collection[int] | Mapping[int, Raised]]"
"""By method: the calls that fail, by number; or what they raise, by number."""
Delay: TypeAlias = "float | Mapping[str, float]"
"""Seconds that each call takes, or those of each method."""
Point: TypeAlias = "int | str | tuple[int, str]"
"""A call to crash at: `3`, `"before:3"`, `"after:3"` or `(3, "after")`; a number alone is before."""
CrashAt: TypeAlias = "Mapping[str, Point | Collection[Point]]"

BEFORE, AFTER = "before", "after"


class FakeFailure(RuntimeError):
    """What a call raises that is to fail, where nothing else was asked for."""


class SimulatedCrash(BaseException):
    """The process is gone, as far as a run can tell: it comes out of `kitchen.run` as it is, and
    nothing is appended any more. Resume the run, as a process that begins anew would.

    Threads that are at work beside it are waited for, as they cannot be ended. In a stage with
    `process=True` it is no crash of the run's process, and so a failure of the stage.
    """


class Faults:
    """What is to go wrong with the calls of one object.

    `fail_at={"optim_step": 3}` fails the third call with a `FakeFailure`; `[3, 4]` for several,
    `{3: ValueError("no")}` for another exception. `delay`: seconds, on `clock` if there is one, else
    really (an async method waits on its event loop's clock in any case). `crash_at={"optim_step":
    "after:3"}` raises `SimulatedCrash` once the third call is done, `"before:3"` before it begins.

    `.calls` counts the calls of each method. Raises `ArgumentError` for what cannot be used.
    """

    def __init__(
        self,
        *,
        fail_at: FailAt | None = None,
        delay: Delay | None = None,
        crash_at: CrashAt | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        """How many calls each method has had, those that failed counted too."""
        self._fail_at = {name: _failures(name, given) for name, given in (fail_at or {}).items()}
        self._delay: Mapping[str, float] | float = 0.0 if delay is None else _delay(delay)
        self._crash_at = {name: _points(name, given) for name, given in (crash_at or {}).items()}
        self._clock = clock
        self._lock = threading.Lock()

    def check(self, methods: Iterable[str], owner: str) -> None:
        """Raises `ArgumentError` for a fault of a method that is not among these."""
        known = sorted(methods)
        delayed = self._delay if isinstance(self._delay, Mapping) else ()
        given: list[tuple[str, Iterable[str]]] = [
            ("fail_at", self._fail_at),
            ("delay", delayed),
            ("crash_at", self._crash_at),
        ]
        for argument, names in given:
            for name in names:
                if name not in known:
                    raise ArgumentError(
                        f"{argument} names {name!r}, and {owner} has no such method",
                        hint=suggest(name, known),
                    )

    def __call__(self, name: str) -> Call:
        """What to put around what a method does: `with` in a sync one, `async with` in an async one."""
        return Call(self, name)

    def before(self, name: str) -> int:
        """What comes before a call of a sync method; its number."""
        number, seconds = self._begin(name)
        if seconds:
            if self._clock is None:
                time.sleep(seconds)
            else:
                self._clock.stand_still(seconds)
        self._fail(name, number)
        return number

    async def before_async(self, name: str) -> int:
        """The same for an async method."""
        number, seconds = self._begin(name)
        if seconds:
            import anyio

            await anyio.sleep(seconds)
        self._fail(name, number)
        return number

    def after(self, name: str, number: int) -> None:
        """What comes after a call that has not failed."""
        self._crash(name, number, AFTER)

    def _begin(self, name: str) -> tuple[int, float]:
        """The number of the call that begins, and how long it takes."""
        with self._lock:
            self.calls[name] += 1
            number = self.calls[name]
        delay = self._delay
        return number, delay.get(name, 0.0) if isinstance(delay, Mapping) else delay

    def _fail(self, name: str, number: int) -> None:
        raised = self._fail_at.get(name, {}).get(number)
        if raised is not None:
            # The same exception object may be raised by several runs: no traceback of another.
            raise raised() if isinstance(raised, type) else raised.with_traceback(None)
        self._crash(name, number, BEFORE)

    def _crash(self, name: str, number: int, moment: str) -> None:
        if (number, moment) in self._crash_at.get(name, ()):
            raise SimulatedCrash(f"{moment} call {number} of {name}")


class Call:
    """One call of a method, between what comes before it and what comes after."""

    __slots__ = ("_faults", "_name", "_number")

    def __init__(self, faults: Faults, name: str) -> None:
        self._faults = faults
        self._name = name
        self._number = 0

    def __enter__(self) -> None:
        self._number = self._faults.before(self._name)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._faults.after(self._name, self._number)

    async def __aenter__(self) -> None:
        self._number = await self._faults.before_async(self._name)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self.__exit__(kind, error, trace)


def faulty(
    thing: T,
    *,
    fail_at: FailAt | None = None,
    delay: Delay | None = None,
    crash_at: CrashAt | None = None,
    clock: VirtualClock | None = None,
    faults: Faults | None = None,
) -> T:
    """An object that does what `thing` does, except where it is to fail: for adapters and resources
    of your own, sync and async methods alike.

    It has the methods of `thing`, `state_dict` and `load_state_dict` with them, and passes for an
    instance of its class; what `thing` calls on itself is not counted. To see how often each method
    was called, make the `Faults` and give it as `faults=`, instead of the others:

        faults = Faults(fail_at={"push": 1})
        registry = faulty(Registry(), faults=faults)
        …
        assert faults.calls["push"] == 2

    It is neither copied nor pickled: a `TypeError`, as the calls of one object are counted. Raises
    `ArgumentError`, also for a method that `thing` does not have.
    """
    from kitchen.testing.fakes.proxy import proxy

    if faults is None:
        faults = Faults(fail_at=fail_at, delay=delay, crash_at=crash_at, clock=clock)
    elif any(given is not None for given in (fail_at, delay, crash_at, clock)):
        raise ArgumentError("faults= says it all: give it alone, or the others without it")
    return cast("T", proxy(thing, faults))


def _failures(name: str, given: object) -> dict[int, Raised]:
    """What the calls of a method raise, by number."""
    where = f"fail_at[{name!r}]"
    if isinstance(given, Mapping):
        found = cast("Mapping[object, object]", given)
        return {_number(where, n): _raised(where, raised) for n, raised in found.items()}
    default = FakeFailure(f"{name} was to fail here")
    numbers = cast("Collection[object]", given if _is_several(given) else [given])
    return {_number(where, number): default for number in numbers}


def _raised(where: str, given: object) -> Raised:
    is_class = isinstance(given, type) and issubclass(given, BaseException)
    if is_class or isinstance(given, BaseException):
        return cast("Raised", given)
    raise ArgumentError(f"{where}: expected an exception to raise, got {given!r}")


def _delay(given: object) -> Mapping[str, float] | float:
    if isinstance(given, Mapping):
        found = cast("Mapping[str, object]", given)
        return {name: _seconds(f"delay[{name!r}]", each) for name, each in found.items()}
    return _seconds("delay", given)


def _seconds(where: str, given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf:
        return float(given)
    raise ArgumentError(f"{where}: expected seconds, from 0 on, got {given!r}")


def _points(name: str, given: object) -> frozenset[tuple[int, str]]:
    where = f"crash_at[{name!r}]"
    if _is_several(given) and not _is_pair(given):
        return frozenset(point_of(where, one) for one in cast("Collection[object]", given))
    return frozenset([point_of(where, given)])


def point_of(where: str, given: object) -> tuple[int, str]:
    """A call's number and the moment, of `3`, `"after:3"` or `(3, "after")`.

    Raises `ArgumentError`.
    """
    number, moment = given, BEFORE
    if isinstance(given, str):
        word, _, digits = given.rpartition(":")
        number, moment = int(digits) if digits.isdecimal() else given, word or BEFORE
    elif _is_pair(given):
        number, moment = cast("tuple[Any, str]", given)
    if moment not in (BEFORE, AFTER):
        raise ArgumentError(
            f"{where}: {given!r} is no point to crash at",
            hint='give a number, "before:3", "after:3", or (3, "after")',
        )
    return _number(where, number), moment


def _number(where: str, given: object) -> int:
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    raise ArgumentError(f"{where}: expected the number of a call, counted from 1, got {given!r}")


def _is_several(given: object) -> bool:
    return isinstance(given, Collection) and not isinstance(given, str | bytes)


def _is_pair(given: object) -> bool:
    """Whether it is `(3, "after")`, which is one point and not two."""
    return isinstance(given, tuple) and [type(x) for x in cast("tuple[Any, ...]", given)] == [
        int,
        str,
    ]

"""What tests give to run a workflow: adapters, and a clock.

Rule: what cannot be used is refused before anything runs, in the words of its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from kitchen.errors import ArgumentError

Adapters: TypeAlias = "Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None"
"""Adapters by name, or a function of no arguments that makes them; None: the workflow's own."""


def adapters_of(given: object) -> Mapping[str, Any] | None:
    """The adapters themselves, made now where a function makes them.

    Raises `ArgumentError`, and what the function raises.
    """
    check_adapters(given)
    if not callable(given):
        return cast("Mapping[str, Any] | None", given)
    made = given()
    if not isinstance(made, Mapping):
        raise _no_adapters(f"and {given!r} gave {made!r}")
    return cast("Mapping[str, Any]", made)


def check_adapters(given: object) -> None:
    """Raises `ArgumentError` for what is no mapping and cannot make one."""
    if not (given is None or isinstance(given, Mapping) or callable(given)):
        raise _no_adapters(f"not {given!r}")


def _no_adapters(told: str) -> ArgumentError:
    return ArgumentError(
        f"adapters= is a mapping, or a function of no arguments that makes one, {told}",
        hint='adapters={"registry": …}',
    )


def check_clock(clock: object) -> None:
    """Raises `ArgumentError` for what is no `VirtualClock`; None is real time."""
    from kitchen.testing.clock.clock import VirtualClock

    if clock is not None and not isinstance(clock, VirtualClock):
        raise ArgumentError(
            f"clock= is a VirtualClock, not {clock!r}",
            hint="clock=virtual_clock, the fixture of that name",
        )

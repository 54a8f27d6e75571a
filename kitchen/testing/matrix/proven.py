"""Causes that an experiment proves: something is changed, and the difference goes away.

Rules:

1. What goes away must not have gone away by itself: the same trials are made without the change too.
   Where these show no difference either, something outside has changed since.
2. Adapters that a function makes lose what they remember with each life. In an experiment they are
   made once, for all lives of a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from kitchen.testing.matrix import module_globals
from kitchen.testing.matrix.causes import GLOBAL, IMPORTED, MEMORY, OUTSIDE, RANDOM, Case
from kitchen.testing.matrix.lives import Subject
from kitchen.testing.matrix.points import Point
from kitchen.testing.matrix.report import Cause

_CONTROLS = 2  # pairs of runs
_PATCHED = (
    "; what a test has patched (monkeypatch, fixtures, conftest) does not reach a fresh process"
)


def seeded(case: Case) -> Iterator[Cause]:
    """Whether the difference goes away once the global generators are seeded, and not otherwise."""
    if case.trials.subject.workflow.ir.seed_globals or case.again(seeded=True) is not None:
        return
    if any(case.again() is not None for _ in range(_CONTROLS)):
        yield Cause(
            RANDOM,
            100,
            "with Python's, NumPy's and torch's global generators seeded before each stage nothing "
            "differs. Draw from ctx.rng, ctx.numpy_rng() or ctx.torch_generator(), or say "
            "@kitchen.workflow(seed_globals=True)",
        )
    else:
        prepared = case.trials.prepare is not None
        put_back = "put that back in prepare=, too" if prepared else "prepare= puts it back"
        yield Cause(
            OUTSIDE,
            94,
            "made once more, just the same, the runs do not differ: the first has left something "
            f"changed, a file, a cache or a service ({put_back}); or it was chance, as of threads",
        )


def remembered(case: Case) -> Iterator[Cause]:
    """Whether the difference goes away where adapters are made once, and not for each life."""
    trials, point = case.trials, case.point
    shared = _sharing(trials.subject)
    if point is None or shared is None:
        return
    here = point._replace(fresh=False)
    if point.fresh and trials.difference(case.whole, trials.run(here)) is None:
        return
    other = replace(trials, subject=shared).run(here)
    if trials.difference(case.whole, other) is None:
        yield Cause(
            MEMORY,
            100,
            "with adapters that are made once, and not anew for each life, nothing differs. What an "
            "adapter remembers is lost with its process: put it into ctx.state, or make it a "
            "resource with state_dict() and load_state_dict()",
        )


def _sharing(subject: Subject) -> Subject | None:
    """The same, whose adapters are made once; None where no function makes any."""
    adapters, provider = subject.adapters, subject.workflow.adapters
    if not callable(adapters) and provider is None:
        return None
    if callable(adapters):
        subject = replace(subject, adapters=_once(adapters))
    if provider is not None:
        subject = replace(subject, workflow=replace(subject.workflow, adapters=_once(provider)))
    return subject


def _once(make: Callable[..., Any]) -> Any:
    made: list[Any] = []

    @functools.wraps(make)
    def known(*given: Any) -> Any:
        if not made:
            made.append(make(*given))
        return made[0]

    return known


def hidden_globals(case: Case) -> Iterator[Cause]:
    """Whether this process remembers something that a fresh one does not."""
    if case.point is not None:
        yield from _globals_behind(case, case.point)
        return
    alike = _alike(case)
    if case.outcome is case.elsewhere:
        text = (
            "every fresh process gives the same, this one has run something before"
            if alike
            else "no two fresh processes give the same: what is made at import, or the order of a set"
        )
        yield Cause(IMPORTED, 95, text + _PATCHED)
        return
    changed = _changed_globals(case)
    seen = "every fresh process gives the same, this one remembers; " if alike else ""
    score = 88 if alike else 70 if changed and case.elsewhere is None else 40 if changed else 20
    yield Cause(GLOBAL, score, seen + _said(changed))


def _globals_behind(case: Case, point: Point) -> Iterator[Cause]:
    changed = _changed_globals(case)
    if _only_elsewhere(case, point):
        seen = "a process that ends takes it along: where nothing was half done, a crash changes nothing in this process and something in a fresh one"
        adapters = case.trials.subject.adapters
        if changed or not adapters or callable(adapters):
            yield Cause(GLOBAL, 94, f"{seen}; {_said(changed)}")
        else:
            yield Cause(MEMORY, 94 if point.fresh else 75, seen)
    elif changed:
        yield Cause(GLOBAL, 85 if case.trials.process is None else 40, _said(changed))
    else:
        opaque = module_globals.opaque(case.trials.subject.workflow)
        if opaque:
            text = f"{_said([])}; these could not be looked into: {', '.join(opaque[:5])}"
            yield Cause(GLOBAL, 70, text)


def _said(changed: list[str]) -> str:
    text = "what outlives a stage belongs into ctx.state or into a resource"
    names = ", ".join(changed[:5])
    return f"{text}; these changed while the workflow ran: {names}" if changed else text


def _alike(case: Case) -> bool:
    """Whether whole runs in fresh processes are the same."""
    trials, first = case.trials, case.elsewhere
    return first is not None and trials.difference(first, trials.run(fresh=True)) is None


def _changed_globals(case: Case) -> list[str]:
    """The globals that a whole run in this process changes."""
    trials = case.trials
    adapters = trials.subject.adapters
    known: set[int] = set()
    if isinstance(adapters, Mapping):
        known = {id(each) for each in cast("Mapping[str, Any]", adapters).values()}
    before = module_globals.globals_of(trials.subject.workflow, known)
    trials.run()
    return module_globals.changed(before, module_globals.globals_of(trials.subject.workflow, known))


def _only_elsewhere(case: Case, point: Point) -> bool:
    """Whether a crash that leaves nothing half done matters in fresh processes, and not here."""
    trials = case.trials
    if trials.process is None:
        return False
    numbers = (point.number - (point.moment == "before"), case.whole.appends * 3 // 4)
    for number in dict.fromkeys(each for each in numbers if each > 0):
        here = Point("after", number)
        if trials.difference(case.whole, trials.run(here)) is None:
            there = trials.run(here._replace(fresh=True))
            if trials.difference(case.whole, there) is not None:
                return True
    return False

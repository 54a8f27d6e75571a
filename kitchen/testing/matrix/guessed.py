"""Causes that nobody has seen: by where the run died, and by what is usual.

Rules: none of them is proven, but for what a workflow says of itself (an async loop without pacing).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from kitchen.machine.events import Visit
from kitchen.testing.matrix.causes import (
    BODY,
    ENDS,
    FORGETS,
    FREE,
    GLOBAL,
    OUTSIDE,
    RANDOM,
    SOURCE,
    STATELESS,
    TIME,
    Case,
)
from kitchen.testing.matrix.report import Cause
from kitchen.workflow.ir import AsyncLoopNode, ParallelNode, walk

_DAY = 86_400.0
_NUMBER = re.compile(r"\d{10,}(?:\.\d+)?")
_USER_CODE = {
    "ConditionEvaluated": "the predicate of ",
    "LoopEntered": "`over` of ",
    "BranchesStarted": "`over` of ",
    "ItemProduced": "",
    "ResourceOpened": "the factory of ",
}

USUAL = [
    Cause(
        BODY,
        14,
        "what it did outside of ctx is done again when it runs again, and ctx.attempt is another",
    ),
    Cause(RANDOM, 13, "draw from ctx.rng and its kin, or say @workflow(seed_globals=True)"),
    Cause(GLOBAL, 12, "what outlives a stage belongs into ctx.state or into a resource"),
    Cause(STATELESS, 11, "give it state_dict() and load_state_dict()"),
    Cause(SOURCE, 10, "`over` must give the same items when it is asked again"),
    Cause(FORGETS, 9, "all that a resource holds must go through its state_dict()"),
    Cause(TIME, 8, "take the time in a stage, once, and put it into ctx.state"),
]


def doubled(case: Case) -> Iterator[Cause]:
    """What ran twice: it was under way at the crash, or is made again behind a rewind."""
    half = _under_way(case)
    plan = case.outcome.plan
    again = [path for path, completed, _ in plan.again if completed] if plan is not None else []
    if half:
        text = (
            f"{', '.join(half[:3])} had run when the process died, was not committed, and ran again"
        )
        yield Cause(BODY, 80, f"{text}. What it did outside of ctx was done twice", half[0])
    elif plan is not None and again:
        text = f"{', '.join(again[:3])} ran again behind the rewind to event {plan.cut}"
        yield Cause(BODY, 80, f"{text}. What it did outside of ctx was done twice")


def _under_way(case: Case) -> list[str]:
    """What had begun by the crash, and was not in the log."""
    outcome, point = case.outcome, case.point
    crash = outcome.crash
    if crash is None or point is None:
        return []
    running: dict[tuple[str, Visit], None] = {}
    for record in outcome.store.read(outcome.history.run_id):
        if record.type == "RunResumed":
            break
        if record.type == "StageStarted" and record.seq <= crash.head:
            running[record.path, record.visit] = None
        elif record.type in ENDS and (record.seq <= crash.head or point.moment == "after"):
            running.pop((record.path, record.visit), None)
    made = [case.spelled(*at) for at in running]
    if point.moment == "before":
        nodes = outcome.history.program.nodes  # a parallel of branches asks for no items
        asked = [each for each in crash.events if not isinstance(nodes.get(each[1]), ParallelNode)]
        told = [each for each in asked if each[0] in _USER_CODE]
        made += [f"{_USER_CODE[kind]}{case.spelled(path, visit)}" for kind, path, visit in told]
    return made


def chance(case: Case) -> Iterator[Cause]:
    """What differs from run to run."""
    prepared = case.trials.prepare is not None
    text = "a file or a service that a run leaves changed: prepare= puts it back before each run"
    yield Cause(OUTSIDE, 15 if prepared else 50, text)
    own = "a generator of its own, uuid4, os.urandom, the order of a set: draw from ctx.rng instead"
    yield Cause(RANDOM, 55, own)
    now = [number for each in (case.found.whole, case.found.found) for number in _times(each)]
    score = 90 if len(now) > 1 else 45
    yield Cause(
        TIME, score, "what is of the moment cannot be the same again: leave it out, exclude="
    )


def _times(text: str) -> list[float]:
    """The numbers in it that are a time of today, in whatever unit."""
    numbers = [float(each) for each in _NUMBER.findall(text)]
    now = time.time()
    return [n for n in numbers if any(abs(n / unit - now) < _DAY for unit in (1, 1e3, 1e6, 1e9))]


def free(case: Case) -> Iterator[Cause]:
    """Async loops whose pace is chance."""
    for path, node in walk(case.trials.subject.workflow.ir):
        if isinstance(node, AsyncLoopNode) and node.pacing == "free":
            inside = f"{case.found.path}/".startswith(f"{path}/")
            text = (
                f'{path} has pacing="free", so what it produces is chance; leave it out: exclude='
            )
            yield Cause(FREE, 98 if inside else 65, text, path)

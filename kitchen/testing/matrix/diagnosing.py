"""What a difference can come from: by experiments, and by what is known of the crash.

Rules:

1. A cause is proven where the difference goes away with it (the global generators are seeded), or
   where it is seen at work: a resource that comes back other than it was, a loop that is given other
   items when it is asked again, a point that fails in a fresh process alone.
2. What is not seen is ranked by where the run died. No cause is ruled out by that: the usual ones
   are always named.
3. Experiments are trials like any other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from kitchen.machine.events import Visit, spell
from kitchen.testing.matrix import module_globals
from kitchen.testing.matrix.comparing import NOTHING, Difference, Outcome
from kitchen.testing.matrix.contents import STATE
from kitchen.testing.matrix.points import Point
from kitchen.testing.matrix.report import Cause
from kitchen.testing.matrix.trials import Trials
from kitchen.workflow.ir import AsyncLoopNode, walk

RANDOM = "unseeded randomness"
GLOBAL = "a hidden global"
IMPORTED = "a hidden global, or what a module does when it is imported"
BODY = "a body that is not idempotent"
FORGETS = "a state_dict that forgets"
STATELESS = "a resource that changes and has no state"
SOURCE = "a loop source that differs on the second call"
TIME = "the time"
OUTSIDE = "something outside"
MEMORY = "an adapter that keeps something in memory"
FREE = "an async loop without pacing"
RESUME = "the resume"

_PROVEN = 93
_DAY = 86_400.0
_NUMBER = re.compile(r"\d{10,}(?:\.\d+)?")
_USER_CODE = {
    "ConditionEvaluated": "the predicate of ",
    "LoopEntered": "`over` of ",
    "BranchesStarted": "`over` of ",
    "ItemProduced": "",
    "ResourceOpened": "the factory of ",
}
_ENDS = frozenset({"StageCompleted", "StageFailed", "StageInterrupted"})


@dataclass
class Case:
    """A difference to be explained. `elsewhere`: a whole run in a fresh process, if there is one."""

    trials: Trials
    whole: Outcome
    outcome: Outcome
    found: Difference
    elsewhere: Outcome | None

    @property
    def point(self) -> Point | None:
        """Where the run was killed; None where it was not."""
        return self.outcome.point

    @cached_property
    def probe(self) -> Outcome:
        """The same again, with more notes."""
        fresh = self.elsewhere is not None and self.outcome is self.elsewhere
        return self.trials.run(self.point, fresh=fresh, probing=True)

    def spelled(self, path: str, visit: Visit) -> str:
        """An address, as people say it."""
        return spell(path, visit, self.whole.history.loops.get(path))


def causes_of(case: Case) -> list[Cause]:
    """What the difference can come from, the likeliest first."""
    if case.found.kind == "error":
        return sorted([*_error(case), *_USUAL], key=lambda each: -each.score)
    looks = [_seeded, _sources]
    looks += [_chance, _free] if case.point is None else [_returned, _doubled, _free]
    found = [cause for look in looks for cause in look(case)]
    if max((each.score for each in found), default=0) < _PROVEN:
        found += _globals(case)
    found += [each for each in _USUAL if each.name not in {cause.name for cause in found}]
    best: dict[str, Cause] = {}
    for each in sorted(found, key=lambda each: -each.score):
        best.setdefault(each.name, each)
    return list(best.values())


_USUAL = [
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


# --- proven by experiment -------------------------------------------------------------------------


def _seeded(case: Case) -> Iterator[Cause]:
    """Whether the difference goes away once the global generators are seeded."""
    trials, point = case.trials, case.point
    if trials.subject.workflow.ir.seed_globals:
        return
    fresh = point.fresh if point is not None else case.outcome is case.elsewhere
    whole = trials.run(fresh=fresh and point is not None, seeded=True)
    other = trials.run(point, fresh=fresh, seeded=True)
    if trials.difference(whole, other) is None:
        yield Cause(
            RANDOM,
            100,
            "with Python's, NumPy's and torch's global generators seeded before each stage nothing "
            "differs. Draw from ctx.rng, ctx.numpy_rng() or ctx.torch_generator(), or say "
            "@kitchen.workflow(seed_globals=True)",
        )


def _globals(case: Case) -> Iterator[Cause]:
    point, names = case.point, ""
    if point is None and case.outcome is case.elsewhere:
        text = (
            "every fresh process gives the same, this one has run something before"
            if _alike(case)
            else "no two fresh processes give the same: what is made at import, or the order of a set"
        )
        yield Cause(IMPORTED, 95, text)
        return
    changed = _changed_globals(case)
    if changed:
        names = f"; these changed while the workflow ran: {', '.join(changed[:5])}"
    said = f"what outlives a stage belongs into ctx.state or into a resource{names}"
    if point is None:
        alike = _alike(case)
        seen = "every fresh process gives the same, this one remembers; "
        score = 88 if alike else 70 if changed and case.elsewhere is None else 40 if changed else 20
        yield Cause(GLOBAL, score, (seen if alike else "") + said)
    elif _only_elsewhere(case):
        seen = "a process that ends takes it along: where nothing was half done, a crash changes nothing in this process and something in a fresh one"
        if changed or not case.trials.subject.adapters:
            yield Cause(GLOBAL, 94, f"{seen}; {said}")
        else:
            yield Cause(MEMORY, 94 if point.fresh else 75, seen)
    elif changed:
        yield Cause(GLOBAL, 85 if case.trials.process is None else 40, said)


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


def _only_elsewhere(case: Case) -> bool:
    """Whether a crash that leaves nothing half done matters in fresh processes, and not here."""
    trials, point = case.trials, case.point
    assert point is not None
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


# --- seen at work ---------------------------------------------------------------------------------


def _returned(case: Case) -> Iterator[Cause]:
    """Resources that came back other than they were at the cut."""
    if "load_state_dict() of resource" in case.found.found:
        yield Cause(FORGETS, 93, "load_state_dict() does not take what state_dict() gave")
    plan = case.probe.plan
    if plan is None:
        return
    none: dict[str, dict[str, str]] = {}
    held = next((all_ for at, all_ in case.probe.notes("held", 0) if at >= plan.cut), none)
    returned: list[tuple[str, dict[str, str]]] = list(case.probe.notes("returned", 1))
    for name, now in returned:
        was = held.get(name, {})
        stateful = any(item.startswith(STATE) for item in (*was, *now))
        apart = [i for i in dict.fromkeys((*was, *now)) if was.get(i) != now.get(i)]
        apart = [item for item in apart if item not in {item for _, item in case.trials.noise}]
        if not apart:
            continue
        item = apart[0]
        told = (
            f"{name}{item} was {was.get(item, NOTHING)}, and came back as {now.get(item, NOTHING)}"
        )
        place = _changed_by(case, name, item, plan.cut)
        by = f"; it was changed by {place}" if place else ""
        if stateful:
            text = f"{told}{by}. Have state_dict() and load_state_dict() of {name!r} carry it"
        else:
            text = f"{told}{by}. Give {name!r} state_dict() and load_state_dict(), and no stateful=False"
        yield Cause(FORGETS if stateful else STATELESS, 95, text, place)


def _changed_by(case: Case, name: str, item: str, cut: int) -> str:
    """The stage that changed what a resource holds, the last before the cut."""
    place, before = "", None
    events: list[tuple[str, str, Visit]] = []
    for kind, told in case.probe.lives[0]:
        if kind == "append":
            events = told[2]
        elif kind == "held":
            at, all_ = told
            now = all_.get(name, {}).get(item)
            done = next((each for each in events if each[0] in _ENDS), None)
            if before is not None and now != before and done is not None:
                place = case.spelled(done[1], done[2])
            before = now
            if at >= cut:
                break
    return place


def _sources(case: Case) -> Iterator[Cause]:
    """Loops that were given other items when they were asked again."""
    again = (
        "`over` must give the same items each time it is asked: draw what is random from ctx.rng"
    )
    if "ItemsError" in case.found.found:
        yield Cause(SOURCE, 96, f"{case.found.found.partition('ItemsError: ')[2]}. {again}")
        return
    first: dict[Any, Any] = {}
    lives = list(case.probe.lives)
    if case.point is None:
        lives = [*case.trials.run(probing=True).lives, *lives]
    for notes in lives:
        for (path, visit), _, index, holds in (told for kind, told in notes if kind == "item"):
            known = first.setdefault((path, visit, index), holds)
            item = next((i for i in {**known, **holds} if known.get(i) != holds.get(i)), None)
            if item is not None:
                where = case.spelled(path, visit)
                was, now = known.get(item, NOTHING), holds.get(item, NOTHING)
                text = f"item {index}{item} of the loop {where} was {was}, and asked again {now}. {again}"
                yield Cause(SOURCE, 97 if case.point is not None else 90, text, where)
                return
    node = case.whole.history.program.nodes.get(case.found.path)
    asked = not isinstance(node, AsyncLoopNode)  # its items are made, and made again
    if asked and case.found.kind == "decision" and case.found.key in ("item", "items", "count"):
        yield Cause(SOURCE, 88 if case.point is not None else 60, again, case.found.where)


def _error(case: Case) -> Iterator[Cause]:
    """Of what did not come through its error says most; and it might take long to try again."""
    error = case.found.found
    if "load_state_dict() of resource" in error:
        yield Cause(FORGETS, 93, "load_state_dict() does not take what state_dict() gave")
    if "ItemsError" in error:
        yield Cause(SOURCE, 96, "`over` must give the same items when it is asked again")
    yield Cause(RESUME, 60, "it did not come through; its error says why")


# --- by where it died -----------------------------------------------------------------------------


def _doubled(case: Case) -> Iterator[Cause]:
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
        elif record.type in _ENDS and (record.seq <= crash.head or point.moment == "after"):
            running.pop((record.path, record.visit), None)
    made = [case.spelled(*at) for at in running]
    if point.moment == "before":
        told = [each for each in crash.events if each[0] in _USER_CODE]
        made += [f"{_USER_CODE[kind]}{case.spelled(path, visit)}" for kind, path, visit in told]
    return made


def _chance(case: Case) -> Iterator[Cause]:
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


def _free(case: Case) -> Iterator[Cause]:
    for path, node in walk(case.trials.subject.workflow.ir):
        if isinstance(node, AsyncLoopNode) and node.pacing == "free":
            inside = f"{case.found.path}/".startswith(f"{path}/")
            text = (
                f'{path} has pacing="free", so what it produces is chance; leave it out: exclude='
            )
            yield Cause(FREE, 98 if inside else 65, text, path)

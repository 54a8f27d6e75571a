"""What a difference can come from: by experiments, and by what is known of the crash.

Rules:

1. A cause is proven where the difference goes away with it (the global generators are seeded), or
   where it is seen at work: a resource that comes back other than it was, a loop that is given other
   items when it is asked again, a point that fails in a fresh process alone.
2. What is not seen is ranked by where the run died. No cause is ruled out by that: the usual ones
   are always named, but behind one that is proven there are two others at most.
3. Experiments are trials like any other.
"""

from __future__ import annotations

from kitchen.testing.matrix import guessed, proven, seen
from kitchen.testing.matrix.causes import PROVEN, Case
from kitchen.testing.matrix.comparing import resource_differences
from kitchen.testing.matrix.contents import STATE, above
from kitchen.testing.matrix.report import Cause

_OTHERS = 2  # behind one that is proven


def causes_of(case: Case) -> list[Cause]:
    """What the difference can come from, the likeliest first."""
    found: list[Cause]
    if case.found.kind == "error":
        found = list(seen.error(case))
    else:
        looks = [proven.seeded, seen.sources]
        if case.point is None:
            looks += [guessed.chance, guessed.free]
        else:
            looks += [seen.returned, proven.remembered, guessed.doubled, guessed.free]
        found = [cause for look in looks for cause in look(case)]
        if max((each.score for each in found), default=0) < PROVEN:
            found += proven.hidden_globals(case)
    named = {each.name for each in found}
    found += [each for each in guessed.USUAL if each.name not in named]
    best: dict[str, Cause] = {}
    for each in sorted(found, key=lambda each: -each.score):
        best.setdefault(each.name, each)
    causes = list(best.values())
    causes[0] = causes[0]._replace(text=causes[0].text + _left_out(case))
    return causes[: 1 + _OTHERS] if causes[0].score >= PROVEN else causes


def _left_out(case: Case) -> str:
    """How to leave out what differs, where that is nothing but attributes of resources."""
    if case.found.kind != "resource" or STATE in case.found.key:
        return ""
    wanted: dict[str, None] = {}
    for each in resource_differences(case.whole, case.outcome):
        name, _, item = each.key.partition(" ")
        if any((each.path, one) in case.trials.noise for one in above(item)):
            continue
        if item.startswith(STATE):
            return ""
        pattern = f"{name.partition('[')[0]}{item.partition('[')[0]}"
        if case.trials.patterns.tells("resource", pattern):
            wanted[f'"resource.{pattern}"'] = None
    given = ", ".join(wanted)
    given = given if len(wanted) == 1 else f"[{given}]"
    return f". If that is a mere cache, leave it out: exclude={given}" if wanted else ""

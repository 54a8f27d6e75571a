"""Causes that are seen at work: resources that come back other than they were, and loops that are
given other items when they are asked again.

Rules:

1. A resource is compared as it was at the cut with what came back there. The log says whether it was
   saved at all, and from which seq it was loaded.
2. One that the log takes for untouched and that is not what it was when it was saved was changed
   behind the runner's back.
3. What was the same in two resources and is no longer was shared: one object, of which there are two.
4. Of what cannot be compared nothing is seen; it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from kitchen.log.reader import fact_of
from kitchen.machine.events import Visit
from kitchen.testing.matrix.causes import (
    DECLARED,
    ENDS,
    FORGETS,
    PEEKED,
    RESUME,
    SHARED,
    SOURCE,
    STATELESS,
    Case,
    Holds,
)
from kitchen.testing.matrix.comparing import NOTHING
from kitchen.testing.matrix.contents import STATE
from kitchen.testing.matrix.report import Cause
from kitchen.workflow.ir import AsyncLoopNode, ResourceNode, walk

_AGAIN = "`over` must give the same items each time it is asked: draw what is random from ctx.rng"
_REFUSED = "load_state_dict() does not take what state_dict() gave"


def error(case: Case) -> Iterator[Cause]:
    """Of what did not come through its error says most; and it might take long to try again."""
    text = case.found.found
    if "load_state_dict() of resource" in text:
        yield Cause(FORGETS, 93, _REFUSED)
    if "ItemsError" in text:
        yield Cause(SOURCE, 96, "`over` must give the same items when it is asked again")
    yield Cause(RESUME, 60, "it did not come through; its error says why")


# --- resources ------------------------------------------------------------------------------------


def returned(case: Case) -> Iterator[Cause]:
    """Resources that came back other than they were at the cut."""
    if "load_state_dict() of resource" in case.found.found:
        yield Cause(FORGETS, 93, _REFUSED)
    plan = case.probe.plan
    if plan is None:
        return
    held = case.held_at(plan.cut)
    came: dict[str, dict[str, str]] = dict(case.probe.notes("returned", 1))
    noise = {item for _, item in case.trials.noise}
    blank: list[str] = []
    for name, now in came.items():
        was = held.get(name, {})
        items = [item for item in dict.fromkeys((*was, *now)) if item not in noise]
        apart = [item for item in items if was.get(item) != now.get(item)]
        shared = {item: other for item in apart for other in _shared(name, item, held, came)}
        lost = [item for item in apart if item not in shared]
        if lost:
            yield _lost(case, name, lost[0], was, now, plan.cut)
        for item, other in list(shared.items())[:1]:
            yield _no_longer_shared(case, name, item, other, plan.cut)
        if not was and not now:
            blank.append(name)
    if blank:
        yield _blank(case, blank)


def _lost(case: Case, name: str, item: str, was: Holds, now: Holds, cut: int) -> Cause:
    place = _changed_by(case, name, item, cut)
    by = f"; it was changed by {place}" if place else ""
    told = (
        f"{name}{item} was {was.get(item, NOTHING)}, and came back as {now.get(item, NOTHING)}{by}"
    )
    known = case.opened.get(name)
    both = "state_dict() and load_state_dict()"
    if known is not None and known.stateful:
        saved = case.held_at(known.since).get(name, {})
        if item.startswith(STATE) and saved and saved.get(item) != was.get(item):
            text = (
                f"{told}, which did not touch it: through ctx.resources.peek(), a reference that was "
                f"kept, or a thread. To change it, take ctx.resources[{name!r}]"
            )
            return Cause(PEEKED, 95, text, place)
        return Cause(FORGETS, 95, f"{told}. Have {both} of {name!r} carry it", place)
    declared = known is not None and known.declared is False
    if declared and any(each.startswith(STATE) for each in (*was, *now)):
        text = f"{told}. {name!r} has {both}, and is declared stateful=False: leave that out"
        return Cause(DECLARED, 95, text, place)
    no = ", and no stateful=False" if declared else ""
    return Cause(STATELESS, 95, f"{told}. Give {name!r} {both}{no}", place)


def _shared(
    name: str, item: str, held: Mapping[str, Holds], came: Mapping[str, Holds]
) -> Iterator[str]:
    """The resources that held the same as this item, and hold it still."""
    text = held.get(name, {}).get(item, "")
    if text in ("", "[]", "{}") or text[0] not in "[{<":  # numbers are the same by chance
        return
    for other, holds in held.items():
        if other != name and any(
            each == text and came.get(other, {}).get(key) == text for key, each in holds.items()
        ):
            yield other


def _no_longer_shared(case: Case, name: str, item: str, other: str, cut: int) -> Cause:
    place = _changed_by(case, name, item, cut)
    text = (
        f"{name}{item} was the same as in {other!r} before the crash, and not after: where "
        f"they share an object, load_state_dict() of {other!r} must load in place (array[...] = "
        f"saved), and not put another object there, of which {name!r} does not know"
    )
    return Cause(SHARED, 96, text, place)


def _blank(case: Case, names: list[str]) -> Cause:
    kinds = _kinds(case)
    told = ", ".join(repr(name) + kinds.get(name.partition("[")[0], "") for name in names[:5])
    has = "has" if len(names) == 1 else "have"
    text = (
        f"{told} {has} no state that could be saved or compared: give it state_dict() and "
        "load_state_dict(), if it changes"
    )
    return Cause(STATELESS, 75, text)


def _kinds(case: Case) -> dict[str, str]:
    """What the factories of the resources give, as `" (generator)"`, by name; but for what is
    awaited or entered first. It takes a run in this process."""
    subject = case.trials.subject
    bindings: dict[str, Any] = dict(subject.workflow.bindings)
    kinds: dict[str, str] = {}
    for path, node in walk(subject.workflow.ir):
        if isinstance(node, ResourceNode) and not iscoroutinefunction(bindings[path]):
            bindings[path] = _noting(bindings[path], node.name, kinds)
    workflow = replace(subject.workflow, bindings=bindings)
    replace(case.trials, subject=replace(subject, workflow=workflow)).run()
    return kinds


def _noting(make: Callable[[Any], Any], name: str, kinds: dict[str, str]) -> Callable[[Any], Any]:
    def noted(ctx: Any) -> Any:
        made = make(ctx)
        if (
            not isawaitable(made)
            and not hasattr(made, "__enter__")
            and not hasattr(made, "__aenter__")
        ):
            kinds[name] = f" ({type(made).__name__})"
        return made

    return noted


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
            done = next((each for each in events if each[0] in ENDS), None)
            if before is not None and now != before and done is not None:
                place = case.spelled(done[1], done[2])
            before = now
            if at >= cut:
                break
    return place


# --- loops ----------------------------------------------------------------------------------------


def sources(case: Case) -> Iterator[Cause]:
    """Loops that were given other items when they were asked again."""
    if "ItemsError" in case.found.found:
        told = case.found.found.partition("ItemsError: ")[2]
        index = _put_back(case, told)
        advice = (
            _AGAIN
            if index is None
            else f"Its load_state_dict() put it back to item {index}, from where it must give what it "
            "gave before: is all in state_dict() that decides on the next item, as it was once that "
            "item was out? Count before the yield"
        )
        yield Cause(SOURCE, 96, f"{told}. {advice}")
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
                text = f"item {index}{item} of the loop {where} was {was}, and asked again {now}. {_AGAIN}"
                yield Cause(SOURCE, 97 if case.point is not None else 90, text, where)
                return
    node = case.whole.history.program.nodes.get(case.found.path)
    asked = not isinstance(node, AsyncLoopNode)  # its items are made, and made again
    if asked and case.found.kind == "decision" and case.found.key in ("item", "items", "count"):
        yield Cause(SOURCE, 88 if case.point is not None else 60, _AGAIN, case.found.where)


def _put_back(case: Case, told: str) -> int | None:
    """To which item the stream of an error was put back by its own state; None where it was not."""
    plan, index = case.outcome.plan, None
    if plan is None:
        return None
    for record in case.outcome.store.read(case.outcome.history.run_id):
        if record.seq > plan.cut:
            break
        if record.type == "ItemTaken":
            event: Any = fact_of(record).event
            where = case.spelled(record.path, record.visit[:-1])
            if event.source is not None and f"the stream {where} " in told:
                index = record.visit[-1] + 1
    return index

"""Deciding what became of effects that must not happen twice.

Rules:

1. A run with an effect that is undecided is not taken up before somebody has said "retry" or "skip"
   for it. What was said is recorded.
2. Who says "skip" may give what the stage would have put into the state; a mapping of these means
   "skip" too. It is held to the declared state as a stage's own changes are.
3. An effect is named by its path, or where that is not enough by path and visit, as errors spell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kitchen.errors import ArgumentError, EffectUndecided
from kitchen.machine.commands import Decided
from kitchen.machine.events import Address, spell
from kitchen.machine.outstanding import is_halted, undecided
from kitchen.machine.state import Once, State
from kitchen.runner.declared import suggest
from kitchen.runner.edits import Fields
from kitchen.runner.scope import Scope

RETRY, SKIP = "retry", "skip"


def decisions(
    scope: Scope, given: Mapping[str, Any] | None, state: State | None = None
) -> tuple[Decided, ...]:
    """What was said of each effect that is undecided; in the state that the run goes on from, if
    that is not the one in which it stands.

    Raises `EffectUndecided` where nothing was said of one, `ArgumentError` where something was said
    that cannot be, or of something else.
    """
    journal = scope.journal
    state = journal.state if state is None else state
    waiting = undecided(journal.program, state)
    ahead = [at for at, known in state.memo.items() if known == Once(None)]
    names = {spell(*at, journal.program.loops.get(at.path)): at for at in (*waiting, *ahead)}
    made: dict[Address, Decided] = {}
    for name, said in (given or {}).items():
        at = _named(name, names)
        if at in made:
            raise ArgumentError(f"{name!r} is decided twice")
        made[at] = _decided(scope, name, at, said)
        if made[at].changes and is_halted(state.core.control, at):
            raise ArgumentError(
                f"what {name!r} would have changed counts no more: the block around it has failed",
                hint='decide it by "retry" (it has not happened) or "skip" (it has), without changes; '
                "it is not run again either way",
            )
    left = [name for name, at in names.items() if at not in made and at in waiting]
    if left:
        shown = "\n".join(f"  {name}" for name in left)
        raise EffectUndecided(
            f"run {scope.run_id!r} cannot go on: it is not known whether this has happened, and it "
            f"must not happen twice:\n{shown}",
            hint=f"find out, then: kitchen resume {scope.run_id} --decide '{left[0]}=retry', or "
            f"'{left[0]}=skip' with the changes that it would have made: --set key=value",
        )
    return tuple(made.values())


def _named(name: str, names: Mapping[str, Address]) -> Address:
    if name in names:
        return names[name]
    fitting = [at for at in names.values() if at.path == name]
    if len(fitting) == 1:
        return fitting[0]
    known = names if len(names) > 0 else ()
    what = "is not an effect that is undecided" if not fitting else "may mean several effects"
    hint = suggest(name, known) if known else "nothing is undecided: resume without a decision"
    raise ArgumentError(f"{name!r} {what}", hint=hint)


def _decided(scope: Scope, name: str, at: Address, said: Any) -> Decided:
    if said in (RETRY, SKIP):
        return Decided(at, said, {})
    if not isinstance(said, Mapping):
        raise ArgumentError(
            f'{name!r} is decided by "retry", by "skip", or by a mapping of the changes that it '
            f"would have made, not by {said!r}"
        )
    fields = Fields(scope.fields, scope.reserved, scope.codec)
    changes = fields.encoded(cast("Mapping[Any, Any]", said), scope.journal.store.blobs)
    return Decided(at, SKIP, changes)

"""Snapshots: a folded state as bytes, and back. A cache, always deletable.

Rules: what `load` gives is equal to what `dump` was given. A text that does not fit is a
`HistoryError`, after which the reader folds the log instead. Nothing is taken from a snapshot
that the log does not hold. Who wrote it is not known, so `check` looks whether the program can
stand there at all before anybody goes on from it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from kitchen.errors import HistoryError
from kitchen.machine.chart import ENDINGS, Program
from kitchen.machine.events import (
    Address,
    RunStarted,
    from_json,
    to_json,
)
from kitchen.machine.outstanding import outstanding
from kitchen.machine.state import (
    ACTIVE,
    READY,
    Cell,
    Control,
    Core,
    Delta,
    Failing,
    Feed,
    Fork,
    Frame,
    Halt,
    Limit,
    Once,
    Place,
    Remembered,
    ResourceState,
    StageMemo,
    Stain,
    State,
    Tried,
    Verdict,
)

# Raised whenever the layout below, or what folding makes of an event, changes.
LAYOUT = 4
_ONCE = "once"


# A deleted key has no base. (`Raw | None` would read nothing but null.)
_Change: TypeAlias = tuple[str, list[Raw], list[Delta]]


_ToldOnce: TypeAlias = tuple[list[tuple[str, str]] | None, bool]


class _Snapshot(msgspec.Struct, array_like=True):
    """The layout. Addresses are not JSON keys, so mappings by address are lists of pairs."""

    seq: int
    started: RunStarted | None
    status: str
    active: list[tuple[Address, Place]]
    frames: list[tuple[Address, Frame]]
    data: list[tuple[str, Raw, list[Delta]]]
    resources: dict[str, ResourceState]
    cut: int | None
    incarnation: int
    rewound: int
    crashes: list[tuple[Address, int]]
    gained: dict[str, Raw]
    memo: list[tuple[Address, str, Raw]]
    forks: list[tuple[Address, Fork]]
    feeds: list[tuple[Address, Feed]]
    halted: list[tuple[Address, Halt]]
    parked: tuple[Address, ...]
    overlays: list[tuple[Address, list[_Change]]]
    claims: list[tuple[Address, dict[str, Address]]]
    soiled: int
    stains: tuple[Stain, ...]
    failing: list[tuple[Address, Failing]]
    limits: list[tuple[Address, Limit]]
    tries: list[tuple[Address, Tried]]
    verdicts: list[tuple[Address, Verdict]]
    mended: int
    done: list[Address]
    compensated: bool


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Snapshot)


def dump(state: State) -> bytes:
    """The state as bytes."""
    core = state.core
    return _ENCODER.encode(
        _Snapshot(
            seq=state.seq,
            started=state.started,
            status=core.control.status,
            active=list(core.control.active.items()),
            frames=list(core.control.frames.items()),
            data=[(key, cell.base, list(cell.deltas)) for key, cell in core.data.items()],
            resources=core.resources,
            cut=core.cut,
            incarnation=state.incarnation,
            rewound=state.rewound,
            crashes=list(state.crashes.items()),
            gained=state.gained,
            memo=[(address, *_told(known)) for address, known in state.memo.items()],
            forks=list(core.control.forks.items()),
            feeds=list(core.control.feeds.items()),
            halted=list(core.control.halted.items()),
            parked=core.control.parked,
            overlays=[
                (address, [_change(key, cell) for key, cell in overlay.items()])
                for address, overlay in core.overlays.items()
            ],
            claims=list(core.claims.items()),
            soiled=core.soiled,
            stains=core.stains,
            failing=list(core.control.failing.items()),
            limits=list(core.control.limits.items()),
            tries=list(state.tries.items()),
            verdicts=list(state.verdicts.items()),
            mended=state.mended,
            done=list(state.done),
            compensated=state.compensated,
        )
    )


def _told(known: Remembered) -> tuple[str, Raw]:
    """What the memo knows of an address: the type of an event and its text, "" for a stage's."""
    if isinstance(known, StageMemo):
        return "", Raw(_ENCODER.encode(known.digests))
    if isinstance(known, Once):
        effects = known.effects
        told = None if effects is None else [(type(e).__name__, to_json(e)) for e in effects]
        return _ONCE, Raw(_ENCODER.encode((told, known.decided)))
    return type(known).__name__, Raw(to_json(known).encode())


def _known(kind: str, text: Raw) -> Remembered:
    if not kind:
        return StageMemo(msgspec.json.decode(text, type=dict[str, str]))
    if kind == _ONCE:
        told, decided = msgspec.json.decode(text, type=_ToldOnce)
        effects: Any = None if told is None else tuple(from_json(*each) for each in told)
        return Once(effects, decided)
    event = from_json(kind, bytes(text))
    if not isinstance(event, Remembered):
        raise HistoryError(f"a memo cannot hold a {kind}")
    return event


def _change(key: str, cell: Cell | None) -> _Change:
    return (key, [], []) if cell is None else (key, [cell.base], list(cell.deltas))


def load(body: bytes) -> State:
    """The state that `dump` was given.

    Raises `HistoryError` where the bytes are not a snapshot of this version.
    """
    try:
        return _loaded(_DECODER.decode(body))
    except (HistoryError, RecursionError, ValueError) as error:
        raise HistoryError(f"a snapshot does not read: {str(error)[:200]}") from None


def check(state: State, program: Program, seq: int) -> None:
    """Whether a state can be one of this program, at this seq.

    Raises `HistoryError`: it cannot. (Whether it is the one that the log gives, only folding says.)
    """
    try:
        fits = (
            state.seq == seq
            and state.core.control.status in (READY, ACTIVE, *ENDINGS)
            and 0 <= (seq if state.core.cut is None else state.core.cut) <= seq
            and _stands(state.core.control, program)
        )
        # A token that waits for what is not there shows where it is asked what it waits for.
        if fits:
            outstanding(program, state)
    except (LookupError, AssertionError, TypeError) as error:
        raise HistoryError(f"a snapshot does not fit its workflow: {error!r}") from None
    if not fits:
        raise HistoryError("a snapshot does not fit its workflow")


def _stands(control: Control, program: Program) -> bool:
    """Whether every token is on a leaf of its own node, and all loops and parallels are nodes."""
    return all(
        program.leaves[place.leaf].path == address.path and place.visit == address.visit
        for address, place in control.active.items()
    ) and all(
        address.path in program.nodes
        for address in (*control.frames, *control.forks, *control.feeds)
    )


def _loaded(found: _Snapshot) -> State:
    data = {key: Cell(base, deltas) for key, base, deltas in found.data}
    control = Control(
        found.status,
        dict(found.active),
        dict(found.frames),
        dict(found.forks),
        dict(found.feeds),
        dict(found.halted),
        found.parked,
        dict(found.failing),
        dict(found.limits),
    )
    overlays = {
        address: {key: Cell(base[0], deltas) if base else None for key, base, deltas in changes}
        for address, changes in found.overlays
    }
    return State(
        found.seq,
        found.started,
        Core(
            control,
            data,
            found.resources,
            found.cut,
            overlays,
            dict(found.claims),
            found.soiled,
            found.stains,
        ),
        found.incarnation,
        found.rewound,
        {address: _known(kind, text) for address, kind, text in found.memo},
        dict(found.crashes),
        found.gained,
        dict(found.tries),
        dict(found.verdicts),
        found.mended,
        dict.fromkeys(found.done),
        found.compensated,
    )

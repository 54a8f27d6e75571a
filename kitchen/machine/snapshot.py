"""Snapshots: a folded state as bytes, and back. A cache, always deletable.

Rules: what `load` gives is equal to what `dump` was given. A text that does not fit is a
`HistoryError`, after which the reader folds the log instead. Nothing is taken from a snapshot
that the log does not hold.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Raw

from kitchen.errors import HistoryError
from kitchen.machine.events import (
    Address,
    RunStarted,
    from_json,
    to_json,
)
from kitchen.machine.state import (
    Cell,
    Control,
    Core,
    Delta,
    Feed,
    Fork,
    Frame,
    Halt,
    Place,
    Remembered,
    ResourceState,
    StageMemo,
    Stain,
    State,
)

# Raised whenever the layout below, or what folding makes of an event, changes.
LAYOUT = 2


# A deleted key has no base. (`Raw | None` would read nothing but null.)
_Change: TypeAlias = tuple[str, list[Raw], list[Delta]]


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
        )
    )


def _told(known: Remembered) -> tuple[str, Raw]:
    """What the memo knows of an address: the type of an event and its text, "" for a stage's."""
    if isinstance(known, StageMemo):
        return "", Raw(_ENCODER.encode(known.digests))
    return type(known).__name__, Raw(to_json(known).encode())


def _known(kind: str, text: Raw) -> Remembered:
    if not kind:
        return StageMemo(msgspec.json.decode(text, type=dict[str, str]))
    event = from_json(kind, bytes(text))
    assert isinstance(event, Remembered)
    return event


def _change(key: str, cell: Cell | None) -> _Change:
    return (key, [], []) if cell is None else (key, [cell.base], list(cell.deltas))


def load(body: bytes) -> State:
    """The state that `dump` was given.

    Raises `HistoryError` where the bytes are not a snapshot of this version.
    """
    try:
        found = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HistoryError(f"a snapshot does not read: {error}") from None
    data = {key: Cell(base, deltas) for key, base, deltas in found.data}
    control = Control(
        found.status,
        dict(found.active),
        dict(found.frames),
        dict(found.forks),
        dict(found.feeds),
        dict(found.halted),
        found.parked,
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
    )

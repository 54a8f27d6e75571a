"""Edits: what a person changes in a run that goes another way, checked and encoded.

Rules:

1. They are held to what the workflow declares, as a config that is given and a stage's own changes
   are. A name that is not there is an error with the near match.
2. Where types are declared, the workflow's code must be there; where none are, the log is enough.
3. Within a parallel the state is not edited: some branches would see it, others not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from msgspec import Raw

from kitchen.errors import ArgumentError, StateError, UnknownKey
from kitchen.machine.codec import Codec
from kitchen.machine.events import NOTHING, RunEdited, RunStarted
from kitchen.machine.state import State
from kitchen.runner import config as configs
from kitchen.runner.declared import fit, state_fields, suggest
from kitchen.runner.randomness import whole
from kitchen.runner.scope import loop_variables
from kitchen.workflow.definition import Workflow


class Large(Protocol):
    """Where large values are put."""

    def put(self, data: bytes | bytearray | memoryview) -> str:
        """Keep it; its digest."""
        ...


class Edits(NamedTuple):
    """What is to be changed. `strict=False`: texts from a command line are converted."""

    config: Any = None
    state: Mapping[str, Any] | None = None
    seed: int | None = None
    strict: bool = True

    def changed(self, started: RunStarted, declared: type[Any] | None) -> Any:
        """The config that was recorded, with these changes.

        Raises `ConfigError`.
        """
        return configs.changed(started.config, declared, self.config, strict=self.strict)

    def __bool__(self) -> bool:
        return bool(self.config) or bool(self.state) or self.seed is not None


class Fields(NamedTuple):
    """What is known of a state: its declared fields, and the names of loop variables."""

    declared: Mapping[str, Any]
    reserved: Mapping[str, object]
    codec: Codec

    def encoded(self, changes: Mapping[Any, Any], blobs: Large) -> dict[str, Raw]:
        """Changes of the state; what is large is put into blobs.

        Raises `ArgumentError`, `UnknownKey`, `StateError`, `UnencodableValue`.
        """
        return {key: self._encoded(key, value, blobs) for key, value in changes.items()}

    def _encoded(self, key: Any, value: Any, blobs: Large) -> Raw:
        if not isinstance(key, str) or key in self.reserved:
            raise ArgumentError(f"{key!r} is no key of the state")
        if self.declared and key not in self.declared:
            raise UnknownKey(f"the state has no field {key!r}", hint=suggest(key, self.declared))
        fitting = fit(key, value, self.declared[key]) if key in self.declared else value
        encoded = self.codec.encode(fitting, where=f"state[{key!r}]")
        for data in encoded.blobs.values():
            blobs.put(data)
        return Raw(encoded.json)


def fields_of(workflow: Workflow[Any, Any] | None, loops: Mapping[str, tuple[str, ...]]) -> Fields:
    """What is known of a workflow's state."""
    declared = None if workflow is None else workflow.state_type
    reserved = loop_variables(loops)
    codec = Codec.for_types(*([declared] if declared is not None else []))
    return Fields(state_fields(declared, reserved), reserved, codec)


def edit(
    edits: Edits,
    started: RunStarted,
    state: State,
    workflow: Workflow[Any, Any] | None,
    fields: Fields,
    blobs: Large,
) -> RunEdited | None:
    """The event that tells the edits; None where nothing differs from what is there.

    Raises `ConfigError`, `StateError` and what `Fields.encoded` raises.
    """
    if not edits:
        return None
    seed = None if edits.seed is None else whole(edits.seed)
    seed = None if seed == started.seed else seed
    config = NOTHING  # this very object, which is left out of the log
    if edits.config:
        declared = None if workflow is None else workflow.config_type
        config = configs.record(edits.changed(started, declared))
        config = NOTHING if config == started.config else config
    changes = fields.encoded(edits.state or {}, blobs)
    if changes and state.core.control.forks:
        raise StateError(
            f"the state cannot be edited at seq {state.seq}, within a parallel",
            hint="choose a seq before the parallel was entered, or behind its join",
        )
    if not fields.declared:
        _check_keys(edits.state or {}, state)
    if seed is None and config is NOTHING and not changes:
        return None
    return RunEdited(config, seed, changes)


def _check_keys(changes: Mapping[str, Any], state: State) -> None:
    """Raises `UnknownKey` for a key that the state has not: it is a typing error more often than
    a wish, and what nobody reads would go unnoticed."""
    for key in changes:
        if key not in state.core.data:
            raise UnknownKey(
                f"the state at seq {state.seq} has no {key!r}", hint=suggest(key, state.core.data)
            )

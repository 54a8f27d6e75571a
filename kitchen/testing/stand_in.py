"""The run that a `stage_context` stands in: a scope and an attempt, made up from what a test gives.

Rules:

1. Everything is of the runner's own classes. The journal is of an empty log in memory, and its
   state is put there: the values, the open resources, the buffers of async loops.
2. Without a workflow, one is made up: the stage inside the loops that were named.
3. What does not fit is told at once, in the words of the argument that it came by.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from kitchen.adapters.event_store import in_memory
from kitchen.errors import ArgumentError, UnknownKey
from kitchen.log.journal import Journal
from kitchen.machine.cells import no_blobs
from kitchen.machine.chart import Program, compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.events import Address, StatePut
from kitchen.machine.state import Cell, Control, Core, Feed, Made, ResourceState, State
from kitchen.runner import config as configs
from kitchen.runner import items as recording
from kitchen.runner.adapters import adapters_of
from kitchen.runner.attempt import Attempt
from kitchen.runner.context import Context
from kitchen.runner.declared import field_names, initial_state, state_fields, suggest
from kitchen.runner.randomness import whole
from kitchen.runner.resources import Live, LiveResources
from kitchen.runner.scope import Scope, loop_variables
from kitchen.testing.recorded import OpenAttempt
from kitchen.workflow import check
from kitchen.workflow import ir as IR
from kitchen.workflow.definition import Locator, Workflow
from kitchen.workflow.options import plain_options
from kitchen.workflow.stage import Resource
from kitchen.workflow.where import Site

RUN = "test"
_KINDS: dict[type[Any], str] = {
    IR.StageNode: "stage",
    IR.LoopNode: "`over`",
    IR.ParallelOverNode: "`over`",
    IR.StreamLoopNode: "stream",
    IR.ConditionalNode: "predicate",
    IR.ResourceNode: "factory",
}
_PLAIN = Codec()


class Given(NamedTuple):
    """The arguments of `stage_context`."""

    config: Any
    state: Any
    resources: Mapping[Any, Any]
    items: Mapping[str, Any]
    indices: Mapping[str, int]
    options: Mapping[str, Any] | None
    adapters: Mapping[str, Any] | None
    seed: int
    path: str
    attempt: int


class StandIn(NamedTuple):
    """What a context is made of."""

    scope: Scope
    attempt: OpenAttempt
    options: Mapping[str, Any]


def stand_in(workflow: Workflow[Any, Any] | None, given: Given) -> StandIn:
    """The run around a place.

    Raises `ArgumentError`, `ConfigError`, `StateError`, `UnknownKey`.
    """
    code = _made_up(given) if workflow is None else workflow
    program = compile_workflow(code.ir)
    address = _address(program, code, given, made_up=workflow is None)
    _, config = configs.begun(given.config, code.config_type)
    reserved = loop_variables(program.loops)
    live = _GivenResources()
    scope = Scope(
        workflow=code,
        journal=Journal(in_memory(), RUN, program),
        config=config,
        pristine=copy.deepcopy(config),
        codec=Codec.for_types(*(t for t in (code.state_type,) if t is not None)),
        seed=whole(given.seed),
        adapters=adapters_of(code, config, given.adapters),
        live=live,
        fields=state_fields(code.state_type, reserved),
        reserved=reserved,
    )
    core = Core(_control(program, address), _data(scope, given.state))
    scope.journal.state = State(core=core)
    for key, value in given.resources.items():
        core.resources.update(live.give(key, value, program))
    _put_items(scope, address, given.items)
    node = program.nodes.get(address.path)
    return StandIn(scope, _attempt(scope, address, node, given.attempt), _options(node, given))


# --- the place ------------------------------------------------------------------------------------


def _made_up(given: Given) -> Workflow[Any, Any]:
    """A workflow of one stage inside the loops that were named."""
    loops = list(dict.fromkeys((*given.items, *given.indices)))
    names = given.path.split("/") if isinstance(cast("object", given.path), str) else []
    if len(names) == 1:
        names = [*loops, *names]
    site = _caller()
    for name in names or [given.path]:
        check.name(name, "stage", site)
    code = IR.CodeRef("", names[-1])
    node: IR.Node = IR.StageNode(names[-1], code, plain_options(given.options, site))
    for name in reversed(names[:-1]):
        made = IR.LoopNode(name, code) if name in loops else IR.IncludeNode(name, name)
        node = msgspec.structs.replace(made, body=(node,))
    ir = IR.WorkflowIR(RUN, (node,))
    types = (_declared("config", given.config), _declared("state", given.state))
    return Workflow(ir, IR.fingerprint(ir), {}, Locator("", RUN, ""), *types)


def _caller() -> Site:
    """The line of the test."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("kitchen."):
        frame = frame.f_back
    return Site(frame.f_code.co_filename, frame.f_lineno) if frame else Site("<unknown>", 0)


def _declared(what: str, value: Any) -> type[Any] | None:
    """The type that an instance declares; None for a mapping."""
    if value is None or isinstance(value, Mapping):
        return None
    if not isinstance(value, type):
        if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
            return cast("type[Any]", type(value))
        told = f"a {type(value).__name__}"
    else:
        told = f"the class {value.__name__}"
    raise ArgumentError(
        f"{what}= is {told}, not a mapping nor an instance of a declared type",
        hint=f"stage_context({what}={what.capitalize()}(…))",
    )


def _address(program: Program, code: Workflow[Any, Any], given: Given, *, made_up: bool) -> Address:
    path = given.path
    if made_up:
        (path,) = (at for at, node in program.nodes.items() if isinstance(node, IR.StageNode))
    elif path not in code.bindings or path not in program.loops:
        known = [at for at in code.bindings if at in program.loops]
        raise ArgumentError(
            f"path={path!r} is no place of the workflow {code.name!r} where code is called",
            hint=suggest(path, known),
        )
    around = [loop.rpartition("/")[2] for loop in program.loops[path]]
    for what, named in (("items", given.items), ("indices", given.indices)):
        for name in named:
            if name not in around:
                raise ArgumentError(
                    f"{what}= names {name!r}, and {path} is in no such loop",
                    hint=suggest(name, around),
                )
    for name, index in given.indices.items():
        if type(index) is not int or index < 0:
            raise ArgumentError(f"the index of {name!r} is a whole number from 0 on, not {index!r}")
    return Address(path, tuple(given.indices.get(name, 0) for name in around))


def _attempt(scope: Scope, address: Address, node: IR.Node | None, number: int) -> OpenAttempt:
    journal = scope.journal
    data = journal.state.core.data
    if isinstance(node, IR.StageNode):
        made = OpenAttempt(address, number, data, scope.codec, journal.fetch, writes=node.writes)
        made.only_peeks = 'has effect="once"' if node.effect == "once" else ""
        return made
    asked = "producer" if address.path.endswith(f"/{IR.PRODUCER}") else "predicate"
    kind = asked if node is None else _KINDS.get(type(node), asked)
    return OpenAttempt(address, 0, data, scope.codec, journal.fetch, kind)


def _options(node: IR.Node | None, given: Given) -> Mapping[str, Any]:
    """The options as a stage sees them: frozen, those of the test before those of the node."""
    said = node.options if isinstance(node, IR.StageNode) else {}
    if given.options is not None:
        said = plain_options(given.options, _caller())
    return _PLAIN.decode(_PLAIN.encode(said, where="options").json, no_blobs, key="options")


# --- what is there --------------------------------------------------------------------------------


def _data(scope: Scope, state: Any) -> dict[str, Cell]:
    """The state that the stage finds, put there as a stage before it would have."""
    declared = scope.workflow.state_type
    if state is not None and not isinstance(state, Mapping):
        if declared is None or type(state) is not declared:
            _declared("state", state)
            wanted = "a mapping" if declared is None else f"a {declared.__name__} or a mapping"
            raise ArgumentError(f"state= is a {type(state).__name__}; the workflow has {wanted}")
        names = (name for name in field_names(declared) if hasattr(state, name))
        values = {name: getattr(state, name) for name in names}
    else:
        values = dict(cast("Mapping[str, Any]", state or {}))
    data = {key: Cell(raw) for key, raw in initial_state(declared, scope.codec).items()}
    before = Attempt(Address("state="), 0, {}, scope.codec, scope.journal.fetch)
    ctx: Context[Any, Any] = Context(scope, before, {})
    for key, value in values.items():
        ctx.write_state(key, value)
    for effect in before.finish():
        assert isinstance(effect, StatePut)
        data[effect.key] = Cell(effect.value)
    for blob in before.blobs.values():
        scope.journal.store.blobs.put(blob)
    return data


def _control(program: Program, address: Address) -> Control:
    """The async loops around, as they stand when a paced run is there with nothing discarded."""
    control = Control()
    for depth, path in enumerate(program.loops[address.path]):
        node = program.nodes[path]
        if isinstance(node, IR.AsyncLoopNode):
            number = address.visit[depth]
            paced = max(0, number - node.buffer_size + 1)
            made = Made(number, 0, number if node.pacing == "free" else paced)
            loop = Address(path, address.visit[:depth])
            control.feeds[loop] = Feed(0, turn=number, consumed=number, made=(made,))
    return control


class _NoItem(dict[int, Any]):
    """The items of a loop of which the test gave none."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, index: int) -> Any:
        raise UnknownKey(
            f"the test has given no item of the loop {self._name!r}",
            hint=f"stage_context(items={{{self._name!r}: …}})",
        )


def _put_items(scope: Scope, address: Address, items: Mapping[str, Any]) -> None:
    """Have the items as a body sees them: decoded copies, or as they are where none can be had."""
    for depth, path in enumerate(scope.journal.program.loops[address.path]):
        name, loop = path.rpartition("/")[2], Address(path, address.visit[:depth])
        scope.items[loop] = _NoItem(name)
        if name in items:
            (item,) = recording.record([items[name]], scope.codec, loop).items
            scope.items[loop] = {address.visit[depth]: item}


class _GivenResources(LiveResources):
    """Resources that a test has opened, and will close."""

    def give(self, key: Any, value: Any, program: Program) -> dict[str, ResourceState]:
        """Have one here. Raises `ArgumentError` for what is no key."""
        if isinstance(key, Resource):
            name, declared = key.name, key.stateful
        elif isinstance(key, str):
            opened = (n for n in program.nodes.values() if isinstance(n, IR.ResourceNode))
            name, declared = key, next((n.stateful for n in opened if n.name == key), None)
        else:
            raise ArgumentError(f"resources= has the key {key!r}, which is no Resource and no name")
        live = Live(name, value, declared, contextlib.AsyncExitStack())
        live.stateful = live.stateful or declared is True  # whatever a fake of it can do
        live.warned = True  # of a fake that cannot be resumed
        self._open[name] = live
        return {name: ResourceState(name, (), 0, live.stateful)}

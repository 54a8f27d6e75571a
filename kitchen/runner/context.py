"""`Context`: what user code is handed as `ctx`.

Rules:

1. A context belongs to one attempt and is sealed with it; then everything that reads or changes
   the run raises `StaleContext`. What never changes (config, adapters, ids, logger) still reads.
2. What is read is what the log holds; what is written is recorded when the attempt is committed.
3. A stage may write. Predicates, a loop's `over` and factories may read: state, config, items,
   resources, randomness.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, cast

from kitchen.errors import StateError, UnknownKey
from kitchen.machine import lanes
from kitchen.machine.control import stoppable
from kitchen.machine.events import Address, spell
from kitchen.machine.state import Feed, Made
from kitchen.runner import randomness
from kitchen.runner.attempt import Attempt
from kitchen.runner.config import ConfigMap
from kitchen.runner.declared import fit, suggest
from kitchen.runner.resources import Resources
from kitchen.runner.scope import Scope
from kitchen.workflow.ir import PRODUCER

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import TypeVar

    ConfigT = TypeVar("ConfigT", default=ConfigMap)
    StateT = TypeVar("StateT", default="StateView")
else:
    from typing import TypeVar

    ConfigT = TypeVar("ConfigT")
    StateT = TypeVar("StateT")


class StateView(MutableMapping[str, Any]):
    """`ctx.state`: the run's durable data as a mapping whose keys are attributes too.

    What is read is frozen: changing it in place raises `FrozenValue`. Putting a value that would
    not come back exactly raises `UnencodableValue`.
    """

    __slots__ = ("_ctx",)
    if TYPE_CHECKING:
        _ctx: Context[Any, Any]

    def __init__(self, ctx: Context[Any, Any]) -> None:
        object.__setattr__(self, "_ctx", ctx)

    def __getitem__(self, key: str) -> Any:
        return self._ctx.read_state(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._ctx.write_state(key, value)

    def __delitem__(self, key: str) -> None:
        self._ctx.delete_state(key)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return self._ctx.read_state(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if hasattr(MutableMapping, key):
            raise StateError(
                f"ctx.state.{key} is a method, as ctx.state is a mapping",
                hint=f"ctx.state[{key!r}] = … works, and reads as ctx.state[{key!r}]",
            )
        self._ctx.write_state(key, value)

    def __delattr__(self, key: str) -> None:
        self._ctx.delete_state(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._ctx.has_state(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ctx.state_keys())

    def __len__(self) -> int:
        return len(self._ctx.state_keys())

    def __repr__(self) -> str:
        return f"<state: {', '.join(self) or 'empty'}>"


class Context(Generic[ConfigT, StateT]):
    """What a stage, a predicate, an `over` or a factory is handed.

    `Context[Config, State]` tells an editor the types of `ctx.config` and `ctx.state`.
    """

    __slots__ = ("_attempt", "_options", "_resources", "_rngs", "_scope", "_state")

    def __init__(self, scope: Scope, attempt: Attempt, options: Mapping[str, Any]) -> None:
        self._scope = scope
        self._attempt = attempt
        self._options = options
        self._state = StateView(self)
        self._resources: Resources | None = None
        self._rngs: dict[str, Any] = {}

    # --- what the run was given ---

    @property
    def config(self) -> ConfigT:
        """The run's immutable inputs."""
        return self._scope.config

    @property
    def adapters(self) -> Mapping[str, Any]:
        """What `run(adapters=…)` or the workflow's provider gave, by name, to be read. A name that
        is not there raises `UnknownAdapter`."""
        return self._scope.adapters

    @property
    def options(self) -> ConfigMap:
        """The stage's `options=`, read-only throughout."""
        return ConfigMap(self._options, f"the options of {self.path} have")

    # --- state ---

    @property
    def state(self) -> StateT:
        """The run's durable data."""
        return cast("StateT", self._state)

    def append(self, key: str, value: Any) -> None:
        """Add one item to the end of a list in state, recorded as that item alone."""
        self.extend(key, [value])

    def extend(self, key: str, values: Iterable[Any]) -> None:
        """Add items to the end of a list in state, recorded as those items alone."""
        self._check_key(key)
        self._attempt.append(key, self._fit(key, list(values)))

    def increment(self, key: str, by: float = 1) -> None:
        """Add to a number in state."""
        self._check_key(key)
        before = self._attempt.get(key) if self._attempt.has(key) else 0
        if isinstance(before, int | float) and isinstance(cast("object", by), int | float):
            self._fit(key, before + by)
        self._attempt.increment(key, by)

    def merge(self, key: str, entries: Mapping[Any, Any]) -> None:
        """Put entries into a mapping in state, recorded as those entries alone."""
        self._check_key(key)
        self._attempt.merge(key, self._fit(key, dict(entries)))

    def read_state(self, key: str) -> Any:
        """`ctx.state[key]`; the loop variables read as `<loop>_current` and `<loop>_index`."""
        variable = self._scope.reserved.get(key)
        if variable is not None:
            loop, what = variable
            return self.item(loop) if what == "item" else self.index(loop)
        if self._scope.fields and key not in self._scope.fields and not self._attempt.has(key):
            raise self._no_field(key)
        return self._attempt.get(key)

    def write_state(self, key: str, value: Any) -> None:
        """`ctx.state[key] = value`."""
        self._check_key(key)
        if isinstance(value, ConfigMap):
            value = value.plain()
        self._attempt.put(key, self._fit(key, value))

    def delete_state(self, key: str) -> None:
        """`del ctx.state[key]`."""
        self._check_key(key)
        self._attempt.delete(key)

    def has_state(self, key: str) -> bool:
        """`key in ctx.state`."""
        return key in self._loop_names() or self._attempt.has(key)

    def state_keys(self) -> list[str]:
        """The keys of the state, without the loop variables."""
        return self._attempt.keys()

    def _loop_names(self) -> set[str]:
        names = [path.rpartition("/")[2] for path in self._loops()]
        return {f"{name}_{what}" for name in names for what in ("current", "index")}

    def _check_key(self, key: str) -> None:
        if key in self._scope.reserved:
            loop, what = self._scope.reserved[key]
            raise StateError(
                f"state[{key!r}] is the {what} of the loop {loop!r} and cannot be written"
            )
        if self._scope.fields and key not in self._scope.fields:
            raise self._no_field(key)

    def _fit(self, key: str, value: Any) -> Any:
        declared = self._scope.fields.get(key)
        return value if declared is None else fit(key, value, declared)

    def _no_field(self, key: str) -> UnknownKey:
        state_type: Any = self._scope.workflow.state_type
        return UnknownKey(
            f"{state_type.__name__} has no field {key!r}", hint=suggest(key, self._scope.fields)
        )

    # --- where we are ---

    def item(self, loop: str | None = None) -> Any:
        """The current item of a loop around this place, the nearest if no name is given. The items
        of a `parallel(over=…)` are read the same way.

        It cannot be changed in place: containers are frozen, arrays read-only, and an object of a
        declared type that comes back changed fails the stage. Only an item that cannot be encoded
        is handed out as `over` gave it. Raises `UnknownKey`.
        """
        path, visit = self._frame(loop)
        if self._attempt.address.path == f"{path}/{PRODUCER}":
            raise UnknownKey(
                f"the item of {path} is what this producer makes",
                hint=f"ctx.index({path.rpartition('/')[2]!r}) is its number",
            )
        try:
            item = self._scope.items[Address(path, visit[:-1])][visit[-1]]
        except (KeyError, IndexError):
            if self._attempt.kind != "rollback":
                raise
            raise UnknownKey(
                f"the items of {path} are gone, as the loop has ended",
                hint="put what a rollback needs into ctx.state",
            ) from None
        return self._attempt.lend(f"item {visit[-1]} of the loop {path}", item)

    def index(self, loop: str | None = None) -> int:
        """The index of that item, from 0."""
        return self._frame(loop)[1][-1]

    def version(self, loop: str | None = None) -> int:
        """How many items of an async loop had been consumed in the state that this one was made
        from. Raises `UnknownKey`."""
        return self._made(loop)[1].version

    def staleness(self, loop: str | None = None) -> int:
        """How many items have been consumed since that state, this one not counted."""
        feed, item = self._made(loop)
        return feed.consumed - item.version

    def _made(self, loop: str | None) -> tuple[Feed, Made]:
        path, visit = self._frame(loop)
        feed = self._scope.journal.state.core.control.feeds.get(Address(path, visit[:-1]))
        item = next((m for m in feed.made if m.number == visit[-1]), None) if feed else None
        if feed is None or item is None:
            raise UnknownKey(
                f"the loop {path} has no producer whose state could be told",
                hint="ctx.version and ctx.staleness are read in the body of a wf.async_loop",
            )
        return feed, item

    def stop_loop(self) -> None:
        """End the nearest loop around this place after the current visit: what follows in the
        visit still runs. Recorded when the stage commits. Raises `StateError` outside a loop."""
        self._attempt.check_live()
        if stoppable(self._scope.journal.program, self._attempt.address) is None:
            raise StateError(f"{self.path} is in no loop that could be stopped")
        self._attempt.stop_loop()

    def _loops(self) -> tuple[str, ...]:
        attempt = self._attempt.address
        loops = self._scope.journal.program.loops.get(attempt.path, ())
        return loops[: len(attempt.visit)]

    def _frame(self, loop: str | None) -> tuple[str, tuple[int, ...]]:
        self._attempt.check_live()
        loops = self._loops()
        for depth in range(len(loops), 0, -1):
            if loop is None or loops[depth - 1].rpartition("/")[2] == loop:
                return loops[depth - 1], self._attempt.address.visit[:depth]
        where = self._attempt.address.path
        around = [path.rpartition("/")[2] for path in loops]
        if loop is None:
            raise UnknownKey(f"{where} is in no loop")
        raise UnknownKey(f"{where} is not inside a loop {loop!r}", hint=suggest(loop, around))

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._scope.run_id

    @property
    def path(self) -> str:
        """The node's path, `epochs/batches/optim_step`."""
        return self._attempt.address.path

    @property
    def visit(self) -> tuple[int, ...]:
        """The indices of the loops around it, outermost first."""
        return self._attempt.address.visit

    @property
    def attempt(self) -> int:
        """Which try of this visit it is, from 1; 0 where there are no attempts."""
        return self._attempt.number

    @property
    def incarnation(self) -> int:
        """How often the run was rewound before this."""
        return self._scope.journal.state.incarnation

    @property
    def idempotency_key(self) -> str:
        """Names this visit to the outside world; the same for each of its attempts."""
        loops = self._scope.journal.program.loops.get(self.path, ())
        origin = self._scope.origin
        where = spell(origin(self.path), self.visit, tuple(map(origin, loops)))
        return f"{self.run_id}/{where}/{self.incarnation}"

    @property
    def logger(self) -> logging.Logger:
        """The standard logger of this node."""
        return self._scope.logger(self.path)

    # --- metrics and progress ---

    def record_metric(self, name: str, value: Any, step: int | None = None) -> None:
        """Record a number. It is in the log within a second, and counts once the stage commits."""
        self._attempt.metric(name, value, step)

    def record_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record several numbers at one step."""
        for name, value in values.items():
            self._attempt.metric(name, value, step)

    def progress(self, done: float, total: float | None = None) -> None:
        """Tell whoever watches how far this stage is. Not recorded."""
        self._attempt.check_live()
        if self._scope.on_progress is not None:
            self._scope.on_progress(self._attempt.address, done, total)

    # --- resources ---

    @property
    def resources(self) -> Resources:
        """The open resources, by key or name. Reading one touches it; `peek` does not."""
        if self._resources is None:
            self._resources = Resources(self._scope.live, self._attempt, self._seen)
        return self._resources

    def _seen(self, name: str) -> Iterator[str]:
        """What a resource of that name may be called that was opened in a block around here."""
        journal, address = self._scope.journal, self._attempt.address
        for near in lanes.names_seen(journal.program, address, name):
            known = journal.state.core.resources.get(near)
            if known is not None and lanes.sees(address, known.path, known.visit):
                yield near

    # --- randomness ---

    @property
    def seed(self) -> int:
        """The seed derived for this visit: 128 bits from the run's seed, the path and the visit."""
        path, visit = self._attempt.address
        return randomness.derive(self._scope.seed, Address(self._scope.origin(path), visit))

    @property
    def rng(self) -> random.Random:
        """A generator for this visit; the same numbers on every attempt."""
        self._attempt.check_live()
        if "python" not in self._rngs:
            self._rngs["python"] = randomness.python_rng(self.seed)
        return self._rngs["python"]

    def numpy_rng(self) -> np.random.Generator:
        """A NumPy generator for this visit (one, going on from call to call)."""
        self._attempt.check_live()
        if "numpy" not in self._rngs:
            self._rngs["numpy"] = randomness.numpy_rng(self.seed)
        return self._rngs["numpy"]

    def torch_generator(self) -> Any:
        """A CPU `torch.Generator` for this visit (one, going on from call to call)."""
        self._attempt.check_live()
        if "torch" not in self._rngs:
            self._rngs["torch"] = randomness.torch_generator(self.seed)
        return self._rngs["torch"]

    def __repr__(self) -> str:
        return f"<Context of {spell(*self._attempt.address)}, attempt {self.attempt}>"

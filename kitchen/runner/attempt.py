"""An attempt: one try of one visit, and everything that user code did in it.

Rules:

1. Nothing that an attempt does reaches the run before it is committed: mutations lie in an
   overlay over the state as it was at the start, metrics in a queue, touches in a set.
2. Within one attempt only the last put of a key counts, and neighbouring appends are one event:
   what nobody could observe is not recorded.
3. A sealed attempt refuses everything with `StaleContext`. One that is to be abandoned is sealed
   first, so that its thread cannot get at a resource behind the back of a checkpoint.
4. A value read from state that is an object of a declared type is compared when the attempt
   ends: what was changed in it is recorded as a put. Other containers are frozen.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from msgspec import Raw

from kitchen.errors import StaleContext, StateError, UnencodableValue, UnknownKey
from kitchen.machine import cells
from kitchen.machine.codec import Codec
from kitchen.machine.events import (
    Address,
    Effect,
    LoopStopped,
    MetricRecorded,
    StateAppended,
    StateDeleted,
    StateIncremented,
    StateMerged,
    StatePut,
    spell,
)
from kitchen.machine.state import Cell, Delta
from kitchen.runner.declared import suggest

_CHANGING = ("stage", "rollback")
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


class Attempt:
    """What user code reads and writes while a stage, a predicate, an `over` or a factory runs.

    `only_peeks`: why it may touch no stateful resource, if it may not; `no_peeks`: nor look at any.
    `left_behind`: it was ended by us, and what it does may go on. `limit`: the cancel scope of its
    timeout, if it has one. `late`: the time limit of a block around it has passed. `past`: the run as
    it was, for what is asked again.
    """

    def __init__(
        self,
        address: Address,
        number: int,
        data: Mapping[str, Cell],
        codec: Codec,
        fetch: cells.Fetch,
        kind: str = "stage",
        writes: tuple[str, ...] | None = None,
    ) -> None:
        self.address = address
        self.number = number
        self.kind = kind
        self.touched: set[str] = set()
        self.peeked: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.metrics: deque[MetricRecorded] = deque()
        self.flushed: list[MetricRecorded] = []
        self._data = data
        self._codec = codec
        self._fetch_stored = fetch
        self._overlay: dict[str, Cell | None] = {}
        self._effects: dict[str, list[Effect]] = {}
        self._objects: dict[str, Any] = {}
        self._lent: dict[str, tuple[Any, bytes]] = {}
        self._sealed = False
        self.only_peeks, self.no_peeks = "", False
        self.left_behind = False
        self.limit: Any = None
        self.late = False
        self.past: Any = None
        self._touching = threading.Lock()
        self._writes = writes
        self._stops = False

    @property
    def seen(self) -> Mapping[str, Cell]:
        """The state as it was when the attempt began."""
        return self._data

    @property
    def looked(self) -> tuple[str, ...]:
        """The resources that were peeked at and not touched."""
        return tuple(sorted(self.peeked - self.touched))

    # --- its end ---

    def seal(self) -> None:
        """End the attempt: from here on its context refuses everything."""
        with self._touching:
            self._sealed = True

    def leave_behind(self) -> None:
        """End the attempt, whose thread goes on and cannot be stopped."""
        self.seal()
        self.left_behind = True

    def touch(self, names: Iterable[str], *, peeks: bool = False) -> None:
        """Note that these are got at, or looked at. Raises `StaleContext` once it has ended."""
        with self._touching:
            self.check_live()
            (self.peeked if peeks else self.touched).update(names)

    def revoke(self, stateful: Callable[[Iterable[str]], Sequence[str]]) -> bool:
        """End the attempt, unless it has touched a stateful resource; whether it is ended.

        What it does in a thread may go on: it gets at nothing any more.
        """
        with self._touching:
            if not stateful(self.touched):
                self._sealed = self.left_behind = True
            return self._sealed

    def check_live(self) -> None:
        """Raises `StaleContext` once the attempt has ended."""
        if self._sealed:
            raise StaleContext(
                f"ctx of {spell(*self.address)} (attempt {self.number}) was used after it had ended",
                hint="await or join what you start inside a stage before the stage returns",
            )

    def finish(self) -> tuple[Effect, ...]:
        """End the attempt; its metrics that are not yet in the log, then its mutations.

        Raises `StateError` where what may only look has changed an object of the state, or where
        an item was changed in place.
        """
        self._sealed = True
        for key in list(self._objects):
            self._keep_object(key)
        for what, (value, text) in self._lent.items():
            if self._codec.encode(value, where=what).json != text:
                raise StateError(
                    f"{what} was changed in place, which is not recorded",
                    hint="put what is to last into ctx.state",
                )
        mutations = map(_joined, self._effects.values())
        stops = (LoopStopped(),) if self._stops else ()
        return (*self.take_metrics(), *itertools.chain.from_iterable(mutations), *stops)

    def _keep_object(self, key: str) -> None:
        """Record what was changed in place in an object that was read from the state."""
        cell = self._cell(key)
        if cell is not None and key in self._objects:
            value = self._objects[key]
            if self._encode(key, value) != self._now(key, cell):
                self._check_kind(key)
                self._put(key, value)

    def take_metrics(self) -> tuple[MetricRecorded, ...]:
        """The metrics recorded since the last call."""
        taken: list[MetricRecorded] = []
        while self.metrics:
            taken.append(self.metrics.popleft())
        return tuple(taken)

    # --- reading ---

    def keys(self) -> list[str]:
        """The keys of the state as this attempt sees it."""
        self.check_live()
        known = [key for key in self._data if self._overlay.get(key, ...) is not None]
        return known + [
            key for key, cell in self._overlay.items() if cell is not None and key not in self._data
        ]

    def has(self, key: str) -> bool:
        """Whether the state has the key."""
        self.check_live()
        return self._cell(key) is not None

    def get(self, key: str) -> Any:
        """The value of a key, frozen. Raises `UnknownKey`."""
        self.check_live()
        cell = self._cell(key)
        if cell is None:
            raise UnknownKey(f"the state has no {key!r}", hint=suggest(key, self.keys()))
        if key in self._objects:
            return self._objects[key]
        if self._codec.types and cell.holds_objects():
            fresh = Cell(cell.base, cell.deltas)
            value = self._objects[key] = cells.read(fresh, self._codec, self.fetch, key)
            return value
        return cells.read(cell, self._codec, self.fetch, key)

    def lend(self, what: str, item: Any) -> Any:
        """A loop's item: frozen already, but for objects of declared types, which are lent as a
        copy that must come back as it was."""
        if not self._codec.types or type(item) in _SCALARS:
            return item
        if what not in self._lent:
            try:
                text, blobs = self._codec.encode(item, where=what)
            except UnencodableValue:
                return item  # recorded by position only: it is what `over` gave
            if b'"struct"' not in text:
                return item
            self._lent[what] = self._codec.decode(text, blobs.__getitem__), text
        return self._lent[what][0]

    def fetch(self, digest: str) -> bytes:
        """A blob, of this attempt or of the store."""
        found = self.blobs.get(digest)
        return found if found is not None else self._fetch_stored(digest)

    def _cell(self, key: str) -> Cell | None:
        if key in self._overlay:
            return self._overlay[key]
        return self._data.get(key)

    def _now(self, key: str, cell: Cell) -> bytes:
        """The text of a value; with deltas, what encoding the read value gives."""
        if not cell.deltas:
            return bytes(cell.base)
        return self._codec.encode(cells.read(cell, self._codec, self.fetch, key)).json

    # --- writing ---

    def put(self, key: str, value: Any) -> None:
        """Give a key a value. Raises `UnencodableValue`."""
        self._writable(key)
        self._put(key, value)

    def _put(self, key: str, value: Any) -> None:
        raw = Raw(self._encode(key, value))
        self._objects.pop(key, None)
        self._overlay[key] = Cell(raw)
        self._effects[key] = [StatePut(key, raw)]

    def delete(self, key: str) -> None:
        """Remove a key. Raises `UnknownKey`."""
        self._writable(key)
        if self._cell(key) is None:
            raise UnknownKey(f"the state has no {key!r}", hint=suggest(key, self.keys()))
        self._objects.pop(key, None)
        self._overlay[key] = None
        self._effects[key] = [StateDeleted(key)] if key in self._data else []

    def append(self, key: str, values: Sequence[Any]) -> None:
        """Add items to the end of a list; a key that is not there starts as an empty one."""
        cell = self._delta(key, list, "append to")
        if cell is None:
            self.put(key, list(values))
        if cell is None or not values:
            return
        raw = Raw(self._encode(key, list(values)))
        self._change(key, cell.with_delta(Delta("append", raw)), StateAppended(key, raw))

    def merge(self, key: str, entries: Mapping[Any, Any]) -> None:
        """Put entries into a mapping; a key that is not there starts as an empty one."""
        cell = self._delta(key, dict, "merge into")
        if cell is None:
            self.put(key, dict(entries))
        if cell is None or not entries:
            return
        raw = Raw(self._encode(key, dict(entries)))
        self._change(key, cell.with_delta(Delta("merge", raw)), StateMerged(key, raw))

    def increment(self, key: str, by: float) -> None:
        """Add to a number; a key that is not there starts at 0."""
        if type(by) not in (int, float):
            raise StateError(f"cannot increment state[{key!r}] by a {type(by).__name__}")
        cell = self._delta(key, (int, float), "increment")
        if cell is None:
            self.put(key, by)
            return
        raw = Raw(self._encode(key, by))
        self._change(key, cells.increment(cell, raw), StateIncremented(key, raw))

    def _delta(self, key: str, kinds: type | tuple[type, ...], verb: str) -> Cell | None:
        self._writable(key)
        self._keep_object(key)
        cell = self._cell(key)
        if cell is not None and not _takes(cell, kinds):
            value = self.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise StateError(f"cannot {verb} state[{key!r}]: it is a {type(value).__name__}")
        return cell

    def _change(self, key: str, cell: Cell, event: Effect) -> None:
        self._objects.pop(key, None)
        self._overlay[key] = cell
        self._effects.setdefault(key, []).append(event)

    def _encode(self, key: str, value: Any) -> bytes:
        encoded = self._codec.encode(value, where=f"state[{key!r}]")
        self.blobs.update(encoded.blobs)
        return encoded.json

    def _writable(self, key: str) -> None:
        self.check_live()
        self._check_kind(key)
        if not _is_text(key):
            raise StateError(f"a state key is a str that is valid Unicode, not {key!r}")

    def _check_kind(self, key: str) -> None:
        if self.kind not in _CHANGING:
            raise StateError(
                f"the {self.kind} at {spell(*self.address)} may not change state[{key!r}]",
                hint="only stages change the state; a stage before it could",
            )
        if self._writes is not None and key not in self._writes:
            raise StateError(
                f"the stage {spell(*self.address)} declares writes={list(self._writes)} and may not "
                f"change state[{key!r}]",
                hint="add the key to its writes=, or leave writes= out",
            )

    def stop_loop(self) -> None:
        """Have the nearest loop end with this visit, once the attempt is committed."""
        self.check_live()
        if self.kind != "stage":
            raise StateError(f"the {self.kind} at {spell(*self.address)} may not stop a loop")
        self._stops = True

    # --- metrics ---

    def metric(self, name: str, value: Any, step: int | None) -> None:
        """Queue a metric. `value` is anything that `float` or `int` of the field takes."""
        self.check_live()
        if self.kind != "stage":
            raise StateError(f"the {self.kind} at {spell(*self.address)} may not record metrics")
        if not name or not _is_text(name):
            raise StateError(
                f"a metric's name is a str that is valid Unicode and not empty, not {name!r}"
            )
        if type(value) not in (int, float):
            value = _number(name, value)
        if step is not None and type(step) is not int:
            step = _step(name, step)
        raw = Raw(self._codec.encode(value, where=f"metric {name!r}").json)
        self.metrics.append(MetricRecorded(name, raw, step))


def _takes(cell: Cell, kinds: type | tuple[type, ...]) -> bool:
    """Whether the text alone shows that the value takes such a delta, without reading it."""
    kind = cell.newest_kind()
    if kind is not None:
        return (list if kind == "append" else dict) is kinds
    text = bytes(cell.base)[:4]
    return (kinds is list and text[:1] == b"[") or (
        kinds is dict and text[:1] == b"{" and text != b'{"$"'
    )


def _joined(events: list[Effect]) -> Iterator[Effect]:
    """The mutations of one key, with neighbouring appends as one."""
    for kind, group in itertools.groupby(events, type):
        if kind is not StateAppended:
            yield from group
            continue
        appended = cast("list[StateAppended]", list(group))
        texts = [bytes(event.values) for event in appended]
        if len(texts) == 1 or not all(text.startswith(b"[") for text in texts):
            yield from appended  # some are references to blobs
        else:
            inner = b",".join(text[1:-1] for text in texts)
            yield StateAppended(appended[0].key, Raw(b"[%b]" % inner))


def _is_text(value: object) -> bool:
    """Whether it is a str that a log can hold: without lone surrogates."""
    return type(value) is str and (
        value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
    )


def _number(name: str, value: Any) -> int | float:
    """A NumPy or torch scalar as a Python number."""
    if isinstance(value, str | bytes):  # which `float` would read
        raise StateError(f"metric {name!r} is not a number: {value!r}")
    try:
        plain = value.item() if hasattr(value, "item") else value
        return plain if type(plain) in (int, float) else float(plain)
    except (TypeError, ValueError) as error:
        raise StateError(f"metric {name!r} is not a number: {value!r} ({error})") from None


def _step(name: str, step: Any) -> int:
    """A NumPy or torch integer as a Python one."""
    try:
        return operator.index(step)
    except TypeError:
        raise StateError(f"the step of metric {name!r} is an int, not {step!r}") from None

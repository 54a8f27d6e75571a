"""Logs as somebody else may have made them: real ones, changed at random, and what reading them does.

Rules: a seed gives the same logs in every process. A log is changed through the store's own
`append`, so that its chain is right and only its content is hostile. What comes out may be content,
or a `KitchenError` that names run and event; nothing else, within bounds of memory and of patience.

Run as a program, with a seed and a count, it tells what it met as JSON: memory is measured there, in
a process that does nothing else.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import fractions
import json
import random
import resource
import signal
import sys
import typing
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Raw

import kitchen
from kitchen.adapters.event_store import opened
from kitchen.cli import render
from kitchen.cli.detail import detail
from kitchen.errors import KitchenError
from kitchen.history.diff import compare
from kitchen.history.history import History
from kitchen.log.journal import Journal
from kitchen.log.reader import fact_of, snapshot_key
from kitchen.machine import snapshot
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec
from kitchen.machine.codec.arrays import unpack_state
from kitchen.machine.events import EVENTS
from store import MemoryStore
from store.records import NewEvent, Record
from tests.runner.running import Box, Dying, Killed, done, flow

MEGABYTE = 1024 * 1024
ROOM = 3_000 * MEGABYTE  # of addresses, in all
MOST_GROWTH = 200 * MEGABYTE  # of the peak, by one payload
PATIENCE = 30  # seconds for one payload, which is a thousand times what one takes

# --- what is changed: the logs of runs that had everything happen to them -------------------------


class Layer(msgspec.Struct, frozen=True):
    size: int = 1
    name: str = "layer"


class State(msgspec.Struct):
    n: int = 0
    layer: Layer = Layer()
    xs: list[Any] = []
    named: dict[str, Any] = {}
    many: list[Any] = []
    extra: int | None = None


VALUES: list[Any] = [
    None, True, 7, 2**70, 2**3000, 0.5, float("nan"), float("-inf"), "text", b"\x00\xff",
    (1, (2,)), {1, 2}, frozenset({"a"}), {1: "one", (2, 3): "two"}, {"$": 1, "blob": "b"}, Layer(3),
    1 + 2j, range(5), decimal.Decimal("1.50"), fractions.Fraction(1, 3), uuid.UUID(int=5),
    dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC), dt.time(1, 2), dt.date(2026, 1, 2),
    dt.timedelta(days=1, microseconds=5), np.arange(6.0).reshape(2, 3), np.float32(1.5),
    np.array(["ab", "c"]), np.zeros(2, [("a", "<i4"), ("b", "<U2")]), np.datetime64("2026-01-01"),
    b"large" * 20_000, "\ud800",
]  # fmt: skip


def work(ctx: Any) -> None:
    ctx.increment("n")
    ctx.append("xs", (ctx.item(), b"x"))
    ctx.merge("named", {f"i{ctx.item()}": [ctx.item()]})
    ctx.record_metric("size", ctx.state.n * 0.5, step=ctx.index())
    ctx.resources["box"].add()


def values(ctx: Any) -> None:
    ctx.state["many"] = VALUES
    ctx.state["extra"] = 5
    del ctx.state["extra"]


def mixed(die: Dying) -> Any:
    """Loops, choices, branches, a stream, an async loop, a resource and checkpoints."""

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("values", values)
        with wf.loop("l", over=lambda ctx: range(3)):
            wf.stage("work", work)
            with wf.conditional(lambda ctx: ctx.item() == 1, name="second"):
                wf.checkpoint()
        with wf.loop("inline", over=lambda ctx: ["a", ("b",)]):
            wf.stage("stop", lambda ctx: ctx.stop_loop())
        with wf.stream_loop("s", over=lambda ctx: iter("xy")):
            wf.stage("look", lambda ctx: ctx.record_metric("seen", ctx.index()))
        with wf.parallel("p", merge={"n": "sum"}):
            wf.stage("left", lambda ctx: ctx.increment("n"))
            with wf.branch("right"):
                wf.stage("count", lambda ctx: ctx.increment("n", 2))
        with wf.parallel("each", over=lambda ctx: [1, 2], merge={"xs": "extend"}):
            wf.stage("take", lambda ctx: ctx.append("xs", ctx.item()))
        with wf.async_loop(
            "a",
            producer=lambda ctx: ctx.index(),
            stop_when=lambda ctx: ctx.index() >= 2,
            buffer_size=2,
        ):
            wf.stage("consume", lambda ctx: ctx.increment("n", ctx.item()))
        wf.stage("die", lambda ctx: die())

    return flow(build, state=State)


def failing() -> Any:
    """A branch that fails while the other goes on."""

    def fail(ctx: Any) -> None:
        ctx.state["n"] = 1
        raise ValueError("the loss is gone")

    def build(wf: Any) -> None:
        with wf.parallel("p", on_error="finish"):
            wf.stage("good", lambda ctx: ctx.state.update(named={"a": 1}))
            wf.stage("bad", fail)

    return flow(build, state=State)


class Base(NamedTuple):
    """A log to be changed, and snapshots of it by seq."""

    store: MemoryStore
    records: list[Record]
    snapshots: dict[int, bytes]


@cache
def bases() -> list[Base]:
    """The logs."""
    killed, failed = MemoryStore(), MemoryStore()
    workflow = mixed(Dying(0))
    with contextlib.suppress(Killed):
        done(workflow, {"rate": 0.5, "names": ("a", "b")}, store=killed)
    kitchen.resume("r", workflow, store=killed)
    for _ in range(2):
        with contextlib.suppress(kitchen.RunError):
            kitchen.run(failing(), store=failed, run_id="r", if_exists="resume")
    return [_base(store) for store in (killed, failed)]


def _base(store: MemoryStore) -> Base:
    past, records = History(store, "r"), list(store.read("r"))
    return Base(
        store, records, {n: snapshot.dump(past.folded(n)) for n in range(1, len(records), 7)}
    )


@cache
def corpus() -> list[Record]:
    """Real records, and of every type that does not occur in them one that is made up."""
    found = [record for base in bases() for record in base.records]
    there = {record.type for record in found}
    for name, kind in EVENTS.items():
        if name not in there:
            text = json.dumps(_sample(kind))
            found.append(found[0]._replace(seq=5, type=name, path="l/work", payload=text))
    return found


def _sample(hint: Any) -> Any:
    """JSON that fits an annotation."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        fields = typing.get_type_hints(hint)
        info = msgspec.structs.fields(hint)
        return {f.encode_name: _sample(fields[f.name]) for f in info} | _tag(hint)
    plain = {str: "text", int: 3, float: 0.5, bool: True, Raw: [1], type(None): None}
    if hint in plain:
        return plain[hint]
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return {"key": _sample(inner[1])}
    if typing.get_origin(hint) is tuple:
        return [_sample(inner[0])]
    if isinstance(hint, type) and issubclass(hint, tuple):
        return [_sample(each) for each in typing.get_type_hints(hint).values()]
    return _sample(inner[0])


def _tag(kind: type[msgspec.Struct]) -> dict[str, Any]:
    config = kind.__struct_config__
    return {config.tag_field: config.tag} if config.tag_field else {}


# --- how it is changed ----------------------------------------------------------------------------

_DEEP = 100_000
_TAGS = [
    "float",
    "int",
    "str",
    "bytes",
    "tuple",
    "set",
    "frozenset",
    "dict",
    "struct",
    "complex",
    "range",
    "decimal",
    "fraction",
    "uuid",
    "datetime",
    "time",
    "date",
    "timedelta",
    "ndarray",
    "np",
    "tensor",
    "blob",
    "state",
    "ordered",
    "counter",
    "deque",
    "os:system",
]
_NASTY = [
    "null", "true", "0", "-1", "-0.0", "1e999", "1e308", "1" + "0" * 400, "-" + "9" * 5000,
    str(10**18), str(-(2**63)), str(2**64), '""', '"os:system"', '"../../etc/passwd"',
    '"/etc/passwd"', '"\\u001b]0;owned\\u0007"', '"\\ud800"', '"\\u0000"', '"a\\nb"', '"?end"', '"l"',
    '"l/work"', '"otherwise"', '"builtins:eval"', '"subprocess.Popen"', "[]", "{}", "[[]]", '[""]',
    '{"":{}}', '[-1]', '{"node":"stage","name":"s","body":{"module":"os","qualname":"system"}}',
    '{"node":"exec","name":"s"}', '{"as":"range","count":1000000000000000000}',
    '{"as":"blob","count":1,"blob":"../../etc/passwd"}', '{"as":"open","count":5}', '{"as":"eval"}',
    '{"module":"os","qualname":"system","file":"/etc/passwd"}', "[0,0,0,0,0,0,0,0,0,0,0,0]",
    "[9007199254740993,-5]", "[" + ",".join(["0"] * 3000) + "]", '{"a":1,"a":2}',
]  # fmt: skip
_INNER = [
    "1", "[]", '""', "[1,2,3]", '"nan:00"', '"0x' + "f" * 20_000 + '"', '"1e999999999"', "[1,0]",
    "[0,1000000000000000000,1]", "[999999999,0,0]", '"0001-01-01"', '{"a":[]}', '["k"]', "[[],[]]",
    '{"size":5}', "[1,1,1.0,true]", '{"$":"tuple","v":[1]}', "null",
]  # fmt: skip
_SHAPES = ["[1000000000000]", "[1000000000000,0]", "[0,1000000000000]", "[-1]", '"ab"', "[2,3]", "5",
           "[4294967296,4294967296]", "[1e3]", "[" + ",".join(["0"] * 99) + "]", "[true]"]  # fmt: skip
_DTYPES = ['"<f8"', '"<U1"', '"<U999999999"', '"O"', '"<V8"', '"f4,f4"', '"float64"', '"__class__"',
           '"onnx"', '"<M8[s]"', '{"base":"<U1","shape":[2]}', '{"base":"<f8","shape":[4294967296]}',
           '{"fields":[["a","<U2",0],["b","<U2",0]],"itemsize":8,"aligned":false}', "[]", "null",
           '{"fields":[["a","<f8",-8]],"itemsize":0,"aligned":true}', '"|S4"', '"<i4"']  # fmt: skip
_DIGESTS = ['"../../etc/passwd"', '"/etc/passwd"', '"' + "0" * 64 + '"', '"' + "A" * 64 + '"', "5"]
_COLUMNS: dict[str, list[Any]] = {
    "type": [*EVENTS, "os:system", "", "\x1b[31mred", "RunStarted\n", "__class__", "Event"],
    "path": ["", "l", "l/work", "../..", "/", "l//work", "\x1b]0;owned\x07", "a\nb", "p", "p/right",
             "a", "a/producer", "a/stop_when", "each", "s", "?end", "x" * 5000, "\u202e"],
    "visit": [(), (0,), (1,), (-1,), (10**18,), (0, 0), (5, 5, 5), tuple(range(200)), (2**70,)],
    "attempt": [0, 1, 2, -1, 2**62],
}  # fmt: skip


def changed_text(rng: random.Random, text: str) -> str | bytes:
    """A payload, changed in one or several places."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        how = rng.random()
        if how < 0.25:
            raw = bytearray(text.encode("utf-8", "surrogatepass"))
            _change_bytes(rng, raw)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                return bytes(raw)
        elif how < 0.27:
            level = rng.choice((90, 130, 450, 1200, _DEEP))
            opening, closing = rng.choice(
                (("[", "]"), ('{"a":', "}"), ('{"$":"tuple","v":[', "]}"))
            )
            text = _spliced(rng, text, opening * level + "1" + closing * level)
        elif how < 0.29:
            at = rng.randrange(len(text) + 1)
            return text[:at] + rng.choice(("\ud800", "\x00", "\ufeff", "\u202e")) + text[at:]
        else:
            text = _spliced(rng, text, _tagged(rng) if rng.random() < 0.5 else rng.choice(_NASTY))
    return text


def _change_bytes(rng: random.Random, raw: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0:
                raw[at:at] = bytes([rng.randrange(256)])
            case 1:
                del raw[at : at + rng.choice((1, 1, 4, 40))]
            case 2:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                raw[at:at] = raw[at : at + 30]
            case _:
                raw[at : at + 1] = rng.choice((b'"', b"}", b"]", b",", b":", b"$", b"e9", b"\\u"))


def _spliced(rng: random.Random, text: str, new: str) -> str:
    """Some value in a JSON text (or all of it) replaced, renamed, doubled or added to."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return new
    places = list(_places(tree))
    mark = "@new@"
    holder, key = rng.choice(places) if places else ([tree], 0)
    if not places:
        return new
    if isinstance(holder, list) and rng.random() < 0.3:
        holder.append(mark)
    elif isinstance(holder, dict) and rng.random() < 0.3:
        if rng.random() < 0.5:
            del holder[key]
        holder[rng.choice((*holder, "$", "v", "blob", "name", "body", "node", "key", "os"))] = mark
    else:
        holder[key] = mark
    return json.dumps(tree).replace(f'"{mark}"', new)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        if not isinstance(holder, dict | list):
            continue
        keys: Any = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def _tagged(rng: random.Random) -> str:
    """A tag of the codec with content that may have nothing to do with it."""
    members = [f'"$":"{rng.choice(_TAGS)}"', f'"v":{rng.choice(_INNER + _NASTY)}']
    for name, choices in (
        ("type", ['"Layer"', '"os.system"', '"Trap"', "5"]), ("dtype", _DTYPES), ("shape", _SHAPES),
        ("b64", ['""', '"AAAAAAAAAAAAAAAA"', '"////////"', '"%"', "7"]), ("axes", ["[0]", "[1,0]", "{}"]),
        ("blob", _DIGESTS), ("size", ["0", "100000", "-1"]), ("tensor", ['"000000"']),
        ("zone", ['"UTC"', '"../../etc/passwd"', '"Europe"', '"os"']), ("maxlen", ["1", "-1"]),
        ("offset", ["0", "1e999", "1" + "0" * 400]), ("fold", ["1", "7"]),
    ):  # fmt: skip
        if rng.random() < 0.35:
            members.append(f'"{name}":{rng.choice(choices)}')
    rng.shuffle(members)
    return "{" + ",".join(members) + "}"


def changed_columns(rng: random.Random, record: Record) -> Record:
    """A record with another type, path, visit or attempt."""
    name = rng.choice(list(_COLUMNS))
    return record._replace(**{name: rng.choice(_COLUMNS[name])})


def changed_log(rng: random.Random, base: Base) -> tuple[MemoryStore, int]:
    """A log with one event changed (or gone, doubled, moved), its chain made anew, and where."""
    at = rng.choice((0, *range(len(base.records))))
    after = list(base.records[at:])
    how = rng.random()
    if how < 0.6:
        text = changed_text(rng, after[0].payload)
        after[0] = after[0]._replace(payload=_storable(text))
    elif how < 0.85:
        after[0] = changed_columns(rng, after[0])
    elif how < 0.95:
        other = rng.choice(corpus())
        after.insert(rng.randrange(len(after) + 1), other)
    else:
        after[0:1] = []
    news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in after]
    store = base.store.truncated("r", at) if at else _empty(base)
    store.append("r", at, news) if at else store.create_run("r", "w", news)
    return store, at + 1


def _storable(text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return raw.decode(errors="replace")


def _empty(base: Base) -> MemoryStore:
    store = MemoryStore()
    store.blobs = base.store.blobs
    return store


# --- what reading it does -------------------------------------------------------------------------


class Wrong(Exception):
    """What may not come out."""


def read_payload(rng: random.Random) -> str:
    """One record changed, decoded, its values too, and told as the command line tells it."""
    record = rng.choice(corpus())
    record = record._replace(payload=changed_text(rng, record.payload))
    if rng.random() < 0.1:
        record = changed_columns(rng, record)
    blobs = bases()[0].store.blobs
    try:
        event = fact_of(record).event
    except KitchenError as error:
        text = str(error)
        if f"event {record.seq}" not in text or record.type[:99] not in text or "'r'" not in text:
            raise Wrong(f"it does not name the event: {text}") from None
        return f"payload: {type(error).__name__}"
    detail(record)
    outcome = "payload: read"
    for raw in _raws(event):
        for frozen in (True, False):
            try:
                render.jsoned(Codec().decode(raw, _fetching(blobs), frozen=frozen))
            except KitchenError as error:
                outcome = f"value: {type(error).__name__}"
    return outcome


def _fetching(blobs: Any) -> Callable[[str], bytes]:
    def fetch(digest: str) -> bytes:
        if not blobs.has(digest):
            raise kitchen.BlobLost(f"there is no blob {digest}")
        return blobs.get(digest)

    return fetch


def _raws(event: Any) -> Iterator[Raw]:
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, Raw):
            yield value
        elif isinstance(value, dict | tuple):
            yield from (v for v in (value.values() if isinstance(value, dict) else value)
                        if isinstance(v, Raw) and bytes(v))  # fmt: skip


def read_value(rng: random.Random) -> str:
    """A value or a state dict that is made of tags at random, decoded and told."""
    text = _tagged(rng)
    for _ in range(rng.randrange(4)):
        text = _spliced(rng, text, _tagged(rng))
    fetch, frozen = _fetching(bases()[0].store.blobs), rng.random() < 0.5
    try:
        if rng.random() < 0.3:
            unpack_state(f'{{"$":"state","v":{text}}}'.encode(), fetch)
        else:
            render.preview(Codec().decode(text.encode(), fetch, frozen=frozen))
    except KitchenError as error:
        return f"value: {type(error).__name__}"
    return "value: read"


def read_log(rng: random.Random) -> str:
    """One log changed, and all that `History` and `Journal` say of it."""
    base = rng.choice(bases())
    store, seq = changed_log(rng, base)
    head = store.head("r")
    return _read_all(store, seq, rng.randint(1, head) if head and rng.random() < 0.3 else None)


def _read_all(made: MemoryStore, seq: int, at: int | None) -> str:
    with opened(made) as store:
        return _read_views(store, seq, at)


def _read_views(store: Any, seq: int, at: int | None) -> str:
    past, outcome = History(store, "r"), "log: read"
    other = History(bases()[0].store, "r")
    views: list[Callable[[], Any]] = [
        lambda: past.events, lambda: past.status, lambda: past.all_metrics, lambda: past.state_at(at),
        past.tree, past.trace, lambda: compare(past, other), lambda: past.config, lambda: Journal(store, "r", compile_workflow(past.ir)).load(),
    ]  # fmt: skip
    for view in views:
        try:
            view()
        except KitchenError as error:
            outcome = f"log: {type(error).__name__}"
            named = "event" in str(error) or isinstance(
                error, kitchen.NotResumable | kitchen.StoreError
            )
            if not named or ("'r'" not in str(error) and not isinstance(error, kitchen.StoreError)):
                raise Wrong(f"it does not name the event: {error}") from None
    for record in store.read("r", after=seq - 1, until=seq):
        detail(record)
    return outcome


def read_snapshot(rng: random.Random) -> str:
    """One snapshot changed, and the state that is read behind it."""
    base = rng.choice(bases())
    seq = rng.choice(list(base.snapshots))
    text = changed_text(rng, base.snapshots[seq].decode())
    body = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    store = base.store.copy()
    program = compile_workflow(History(store, "r").ir)
    store._runs["r"].snapshots.clear()
    store.save_snapshot("r", seq, snapshot_key(program), body)
    for at in (seq, None):
        past = kitchen.history("r", store=store)
        try:
            past.state_at(at)
            render.jsoned([str(place) for place in past.folded(at).core.control.active])
        except KitchenError as error:
            return f"snapshot: {type(error).__name__}"
    return "snapshot: read, or passed over"


def fuzz(seed: int, count: int) -> dict[str, Any]:
    """Read so many hostile things; what came of it."""
    rng, outcomes = random.Random(seed), Counter[str]()
    corpus()  # made before anything is measured
    signal.signal(signal.SIGALRM, _late)
    greatest = 0
    for number in range(count):
        one = random.Random(rng.random())
        reading = one.choice((read_payload, read_payload, read_value, read_log, read_snapshot))
        before = _peak()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            outcomes[reading(one)] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}, {reading.__name__}")
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        greatest = max(greatest, _peak() - before)
        if greatest > MOST_GROWTH:
            raise Wrong(f"seed {seed}, number {number} takes {greatest // MEGABYTE} MB")
    return {"outcomes": dict(outcomes), "growth": greatest // MEGABYTE, "peak": _peak() // MEGABYTE,
            "types": len({record.type for record in corpus()})}  # fmt: skip


def _late(*_: object) -> None:
    raise SystemExit("it takes too long")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]))))

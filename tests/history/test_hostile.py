"""A store made by somebody else is harmless to read: content or a `KitchenError`, at bounded cost."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import types
from collections import Counter
from typing import Any

import numpy as np
import pytest
from msgspec import Raw

import kitchen
from kitchen.history.history import History
from kitchen.log import reader, recorded
from kitchen.log.reader import LogReader, fact_of, snapshot_key
from kitchen.machine import cells, snapshot
from kitchen.machine.chart import compile_workflow
from kitchen.machine.codec import Codec, Opaque, bounds
from kitchen.machine.codec.arrays import pack_state, unpack_state
from kitchen.machine.codec.tagging import MAX_DEPTH
from kitchen.machine.events import EVENTS
from kitchen.machine.value import Cell, Delta
from kitchen.workflow import ir as IR
from store import MemoryStore
from store.records import NewEvent, Record
from tests.history.hostile import bases
from tests.runner.running import ROOT, done, single

CODEC = Codec()
SEEDS, EACH = range(5), 2_500


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_fuzz(seed: int) -> None:
    """In a process of its own, which bounds memory and looks at its peak after each payload."""
    command = [sys.executable, "-W", "error", "-m", "tests.history.hostile", str(seed), str(EACH)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout)
    assert told["types"] == len(EVENTS)
    outcomes = Counter(told["outcomes"])
    assert outcomes.total() == EACH
    for met in ("payload: read", "payload: HistoryError", "value: CorruptValue", "value: read",
                "log: read", "log: IllegalEvent", "log: HistoryError"):  # fmt: skip
        assert outcomes[met] > 0, outcomes


# --- records ------------------------------------------------------------------------------------


def record(type_: str, payload: Any, **columns: Any) -> Record:
    made = Record("r", 7, 0, type_, "s", (), 1, payload, b"")
    return made._replace(**columns)


@pytest.mark.parametrize(
    "payload",
    ['{"key":"\ud800","value":1}', b'{"key":"k\xff","value":1}', '{"key":', "[" * 100_000, ""],
)
def test_a_payload_that_does_not_read_names_run_seq_and_type(payload: Any) -> None:
    with pytest.raises(kitchen.HistoryError, match=r"^event 7: .*StatePut.*\(run 'r'\)"):
        fact_of(record("StatePut", payload))


def test_a_message_is_of_bounded_length() -> None:
    with pytest.raises(kitchen.HistoryError) as caught:
        fact_of(record("X" * 1_000_000, "{}"))
    assert len(str(caught.value)) < 4_000


def single_run(*events: NewEvent) -> MemoryStore:
    """A run of one stage that has not ended: its beginning, and these events."""
    store = MemoryStore()
    whole = MemoryStore()
    done(single(lambda ctx: None), store=whole)
    first = next(whole.read("r"))
    begun = NewEvent(first.type, first.path, first.visit, first.attempt, first.payload)
    store.create_run("r", "w", [begun, *events])
    return store


@pytest.mark.parametrize(
    "event",
    [
        NewEvent("LoopEntered", "nowhere", (), 0, '{"items":{"as":"range","count":5}}'),
        NewEvent("ItemTaken", "s", (), 0, "{}"),
        NewEvent("ItemProduced", "s", (), 0, "{}"),
        NewEvent("BranchFailed", "s", (), 0, '{"failure":{"type":"E"}}'),
        NewEvent("ConditionEvaluated", "s", (), 0, '{"answer":true}'),
        NewEvent("StatePut", "s", (), 1, '{"key":"k","value":1}'),
    ],
    ids=lambda event: event.type,
)
def test_what_cannot_follow_names_run_seq_and_type(event: NewEvent) -> None:
    with pytest.raises(kitchen.IllegalEvent, match=rf"^event 2 \({event.type}.*\(run 'r'\)$"):
        History(single_run(event), "r").state_at()


def test_a_value_that_does_not_decode_names_the_event_that_put_it() -> None:
    broken = '{"key":"k","value":{"$":"int","v":"os:system"}}'
    store = single_run(
        NewEvent("StageStarted", "s", (), 1, "{}"),
        NewEvent("StatePut", "s", (), 1, '{"key":"k","value":1}'),
        NewEvent("StatePut", "s", (), 1, broken),
        NewEvent("StatePut", "s", (), 1, '{"key":"other","value":1}'),
    )
    with pytest.raises(kitchen.CorruptValue, match=r"^event 4 \(StatePut\): state\['k'\].*'r'"):
        History(store, "r").state_at()
    assert History(store, "r").state_at(3) == {"k": 1}


@pytest.mark.parametrize("config", ["5", '[{"a":1}]', '{"$":"int","v":1}'])
def test_a_config_that_is_none(config: str) -> None:
    store = MemoryStore()
    first = json.loads(next(single_run().read("r")).payload)
    first["config"] = json.loads(config)
    store.create_run("r", "w", [NewEvent("RunStarted", payload=json.dumps(first))])
    with pytest.raises(kitchen.CorruptValue, match=r"^event 1 \(RunStarted\): .*\(run 'r'\)"):
        _ = History(store, "r").config


def test_rewinds_behind_each_other_do_not_double_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = reader.apply

    def counting(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        real(*args, **kwargs)

    monkeypatch.setattr(reader, "apply", counting)
    count = 14
    rewinds = [NewEvent("RunRewound", payload=json.dumps({"to": n + 1})) for n in range(count)]
    state = History(single_run(*rewinds), "r").folded()
    assert state.incarnation == count
    assert calls <= 3 * count


# --- snapshots ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["of another seq", "of another workflow", "with a lost loop"])
def test_a_snapshot_that_cannot_be_one_is_passed_over(kept: str) -> None:
    base = bases()[0]
    store, program = base.store.copy(), compile_workflow(History(base.store, "r").ir)
    inside = next(r.seq for r in base.records if r.type == "StageStarted" and r.path == "s/look")
    state = LogReader(store, "r", program).state_at(inside)
    expected = state.copy()
    if kept == "of another seq":
        state.seq += 1
    elif kept == "of another workflow":
        address, place = state.core.control.active.popitem()
        state.core.control.active[address] = place._replace(leaf="nowhere")
    else:
        del state.core.control.frames[next(iter(state.core.control.frames))]
        pulling = next(n for n, leaf in program.leaves.items() if leaf.role.value == "pull")
        address, place = state.core.control.active.popitem()
        state.core.control.active[address._replace(path="s", visit=())] = place._replace(
            leaf=pulling, visit=()
        )
    store._runs["r"].snapshots.clear()
    store.save_snapshot("r", inside, snapshot_key(program), snapshot.dump(state))
    assert LogReader(store, "r", program).state_at(inside) == expected


def test_a_snapshot_whose_memo_holds_what_cannot_be_remembered() -> None:
    base = bases()[0]
    for body in base.snapshots.values():
        tree = json.loads(body)
        tree[12] = [[["l", []], "RunCompleted", {}]]
        with pytest.raises(kitchen.HistoryError, match="a snapshot does not read: a memo"):
            snapshot.load(json.dumps(tree).encode())


# --- the recorded workflow ----------------------------------------------------------------------

CODE = {"module": "os", "qualname": "system"}


def stage(name: str) -> dict[str, Any]:
    return {"node": "stage", "name": name, "body": CODE}


def loop(body: list[Any], name: str = "l", **more: Any) -> dict[str, Any]:
    return {"node": "loop", "name": name, "over": CODE, "body": body, **more}


def workflow_text(*body: Any) -> bytes:
    return json.dumps({"name": "w", "body": body}).encode()


ASYNC = {"node": "async_loop", "name": "a", "producer": CODE, "stop_when": CODE}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (workflow_text(stage("a"), stage("a")), "there twice"),
        (workflow_text(loop([stage("a"), stage("a")])), "there twice"),
        (workflow_text(stage("a/b")), "cannot be the name"),
        (workflow_text(stage("?end")), "cannot be the name"),
        (workflow_text(stage("")), "cannot be the name"),
        (workflow_text(stage("\x1b[31m")), "cannot be the name"),
        (workflow_text(stage("otherwise")), "reserved"),
        (workflow_text({**ASYNC, "body": [stage("producer")]}), "reserved"),
        (workflow_text({**ASYNC, "producers": 10**18, "buffer_size": 10**18}), "at a time"),
        (workflow_text(*(stage(f"s{n}") for n in range(100_000))), "too many nodes"),
        (workflow_text({"node": "exec", "name": "s"}), "does not read"),
        (b'{"name":"w","body":[' + b'{"node":"branch","name":"b","body":[' * 10_000, "not read"),
        (b"[" * 100_000, "does not read"),
    ],
)  # fmt: skip
def test_a_workflow_that_no_builder_made(text: bytes, why: str) -> None:
    with pytest.raises(kitchen.HistoryError, match=why):
        recorded.read_ir(text)


def test_a_workflow_that_is_nested_too_deep() -> None:
    inner: Any = stage("s")
    for _ in range(recorded.MOST_LEVELS + 1):
        inner = loop([inner])
    with pytest.raises(kitchen.HistoryError, match="levels deep"):
        recorded.read_ir(workflow_text(inner))
    legal = recorded.read_ir(workflow_text(inner["body"][0]["body"][0]))
    assert compile_workflow(legal).nodes


def test_a_workflow_of_a_run_names_its_event() -> None:
    first = json.loads(next(single_run().read("r")).payload)
    first["ir"] = json.loads(workflow_text(stage("../..")))
    store = MemoryStore()
    store.create_run("r", "w", [NewEvent("RunStarted", payload=json.dumps(first))])
    with pytest.raises(kitchen.HistoryError, match=r"^event 1 \(RunStarted\): .*\(run 'r'\)"):
        _ = History(store, "r").ir


def test_workflows_of_the_builder_are_let_through() -> None:
    for base in bases():
        ir = History(base.store, "r").ir
        assert recorded.read_ir(IR.to_json(ir)) == ir


# --- values: a small text is little work and little room ----------------------------------------


def decode(text: Any, fetch: Any = None, *, frozen: bool = True) -> Any:
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return CODEC.decode(raw, fetch or cells.no_blobs, frozen=frozen)


def test_an_array_of_text_without_bytes_has_any_shape() -> None:
    tree = {"$": "ndarray", "dtype": "<U1", "shape": [10**12, 0], "b64": ""}
    assert decode(tree).shape == (10**12, 0)


@pytest.mark.parametrize("shape", [[10**12], [-1, -1], [2**32, 2**32], [0] * 99, [True], "ab", 5])
def test_a_shape_that_lies(shape: Any) -> None:
    with pytest.raises(kitchen.CorruptValue, match="a recorded ndarray does not decode"):
        decode({"$": "ndarray", "dtype": "<f8", "shape": shape, "b64": "AAAAAAAAAAA="})


def test_text_in_an_array_that_is_none() -> None:
    raw = base64.b64encode(np.array([65, 0x110000], "<u4").tobytes()).decode()
    for dtype in ("<U1", {"fields": [["a", "<U1", 0]], "itemsize": 4, "aligned": False}):
        with pytest.raises(kitchen.CorruptValue, match="no text"):
            decode({"$": "ndarray", "dtype": dtype, "shape": [2], "b64": raw})


def test_fields_that_show_the_same_text_again_and_again() -> None:
    fields = [[f"f{n}", "<U9", 0] for n in range(9)]
    dtype = {"fields": fields, "itemsize": 36, "aligned": False}
    raw = base64.b64encode(bytes(36)).decode()
    with pytest.raises(kitchen.CorruptValue, match="overlap"):
        decode({"$": "ndarray", "dtype": dtype, "shape": [1], "b64": raw})
    names = [f"f{n}" for n in range(9)]
    spec: Any = {"names": names, "formats": ["<U9"] * 9, "offsets": [0] * 9, "itemsize": 36}
    with pytest.raises(kitchen.UnencodableValue, match="same text"):
        CODEC.encode(np.zeros(1, np.dtype(spec)))


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_keys_whose_hashes_are_chosen(kind: str) -> None:
    prime = sys.hash_info.modulus
    keys = [n * prime for n in range(1, 4_000)]
    assert len(set(map(hash, keys))) == 1
    items = [item for key in keys for item in (key, 0)] if kind == "dict" else keys
    with pytest.raises(kitchen.CorruptValue, match="the same hash"):
        decode({"$": kind, "v": items})
    few = keys[:500]
    assert decode({"$": "set", "v": few}) == set(few)


def test_objects_of_a_class_that_is_not_known_have_hashes_of_their_own() -> None:
    many = [
        Opaque("Layer", {"size": n, "tags": (n, [1]), "inner": Opaque("I", {})}) for n in range(99)
    ]
    assert len(set(map(hash, many))) == 99
    same = Opaque("L", {"a": 1, "s": frozenset({1})}), Opaque("L", {"s": {1}, "a": 1.0})
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])


def test_a_blob_that_is_named_often_is_fetched_once() -> None:
    data = b"x" * 100_000
    digest, fetched = "0" * 64, list[str]()

    def fetch(digest: str) -> bytes:
        fetched.append(digest)
        return data

    one = {"$": "bytes", "blob": digest, "size": len(data)}
    assert decode([one] * 1_000, fetch) == [data] * 1_000
    assert fetched == [digest]
    with pytest.raises(kitchen.CorruptValue, match="too often"):
        decode([{**one, "$": "str"}] * (bounds.MOST_COPIED // len(data) + 2), fetch)


def test_a_tensor_of_a_state_dict_is_taken_once() -> None:
    packed = pack_state({"w": np.arange(3.0)})
    tree = json.loads(packed.tree)
    assert list(unpack_state(packed.tree, packed.blobs.__getitem__)["w"]) == [0, 1, 2]
    tree["v"]["again"] = tree["v"]["w"]
    with pytest.raises(kitchen.CorruptValue, match="tensor that is not there"):
        unpack_state(json.dumps(tree).encode(), packed.blobs.__getitem__)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mark", ["1", '{"$":"bytes","b64":""}'])
def test_values_are_as_deep_as_what_is_encoded(mark: str, frozen: bool) -> None:
    def text(levels: int) -> bytes:
        return b"[" * levels + mark.encode() + b"]" * levels

    for levels in (MAX_DEPTH + 2, 130, 800, 100_000):
        with pytest.raises(kitchen.CorruptValue, match="too deep"):
            decode(text(levels), frozen=frozen)
    assert decode(text(MAX_DEPTH), frozen=frozen)


def test_what_is_encoded_at_the_deepest_comes_back() -> None:
    for inner in ({"odd": {1: 2}}, (b"x",), [["s"]]):
        value: Any = inner
        while True:
            try:
                text = CODEC.encode([value]).json
            except kitchen.UnencodableValue:
                break
            value = [value]
            assert decode(text) == value


def test_nothing_is_asked_of_torch_by_a_recorded_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Lazy(types.ModuleType):
        dtype = type("dtype", (), {})

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "torch", Lazy("torch"))
    with pytest.raises(kitchen.CorruptValue, match="torch has no dtype 'onnx'"):
        decode({"$": "tensor", "dtype": "onnx", "shape": [0], "b64": ""})
    assert asked == []


# --- cells --------------------------------------------------------------------------------------

ENDLESS = Raw(b'{"$":"range","v":[0,1000000000000000000,1]}')


@pytest.mark.parametrize("kind", ["append", "merge", "other"])
@pytest.mark.parametrize("base", [ENDLESS, Raw(b"5"), Raw(b'"text"'), Raw(b"null")])
def test_a_delta_to_what_is_no_list_or_mapping(kind: str, base: Raw) -> None:
    cell = Cell(base, [Delta(kind, Raw(b"[1]"))])
    with pytest.raises(kitchen.CorruptValue, match="the log would"):
        cells.read(cell, CODEC, cells.no_blobs, "k")


@pytest.mark.parametrize("kind", ["append", "merge"])
def test_a_delta_that_has_any_number_of_items(kind: str) -> None:
    cell = Cell(Raw(b"[]" if kind == "append" else b"{}"), [Delta(kind, ENDLESS)])
    with pytest.raises(kitchen.CorruptValue, match=f"{kind} a range"):
        cells.read(cell, CODEC, cells.no_blobs, "k")


@pytest.mark.parametrize(
    ("base", "by"),
    [
        ('"a"', '"b"'), ("[1]", "[2]"), ("1", "null"),
        ('{"$":"timedelta","v":[999999999,0,0]}', '{"$":"timedelta","v":[1,0,0]}'),
        ('{"$":"ndarray","dtype":"<f8","shape":[1,1],"b64":"AAAAAAAAAAA="}', "1"),
        ('{"$":"int","v":"0x' + "f" * 600 + '"}', "0.5"),
    ],
)  # fmt: skip
def test_only_numbers_are_added_up(base: str, by: str) -> None:
    with pytest.raises(kitchen.CorruptValue, match="cannot add"):
        cells.increment(Cell(Raw(base.encode())), Raw(by.encode()))

"""State dicts come back exactly, their arrays in one safetensors blob."""

from __future__ import annotations

import builtins
import collections
import random
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from kitchen.errors import CorruptValue, ResourceError, UnencodableValue
from kitchen.machine.codec import BLOB_LIMIT, Codec, blob_digests
from kitchen.machine.codec.arrays import Packed, pack_state, unpack_state


def back(packed: Packed) -> Any:
    assert set(blob_digests(packed.tree)) == set(packed.blobs)
    return unpack_state(packed.tree, packed.blobs.__getitem__)


def test_a_tree_of_everything() -> None:
    tree: dict[Any, Any] = {
        "step": 3,
        0: (np.float64(0.5), [np.arange(3), np.arange(3)]),
        "nested": {"w": np.zeros((2, 0)), "big-endian": np.arange(3, dtype=">i2")},
        "rng": random.Random(1).getstate(),
        "generator": np.random.default_rng(1).bit_generator.state,
        "nan": float("nan"),
        "raw": b"x" * (BLOB_LIMIT + 1),
        "long": "é" * BLOB_LIMIT,
        "times": np.array(["2020-01-01"], "M8[D]"),
        "table": np.zeros(2, [("a", "<i4"), ("b", "<f8", (2,))]),
        "counts": collections.Counter("aab"),
        "recent": collections.deque([1, 2], maxlen=3),
    }
    packed = pack_state(tree)
    assert len(packed.blobs) == 3
    again = back(packed)
    assert again.keys() == tree.keys()
    assert again["rng"] == tree["rng"]
    assert again["generator"] == tree["generator"]
    assert again["raw"] == tree["raw"]
    assert again["long"] == tree["long"]
    assert struct.pack("d", again["nan"]) == struct.pack("d", tree["nan"])
    assert type(again[0]) is tuple
    assert type(again[0][0]) is np.float64
    assert type(again["counts"]) is collections.Counter
    assert again["counts"] == tree["counts"]
    assert again["recent"] == tree["recent"]
    assert again["recent"].maxlen == 3
    for path in (("nested", "w"), ("nested", "big-endian"), ("times",), ("table",)):
        old: Any = tree
        new: Any = again
        for step in path:
            old, new = old[step], new[step]
        assert (new.dtype, new.shape, new.tobytes()) == (old.dtype, old.shape, old.tobytes())
    again[0][1][0][0] = 9
    assert again[0][1][1][0] == 0, "writable, and shared with nothing"
    assert pack_state(tree) == packed


def test_the_blob_is_safetensors() -> None:
    packed = pack_state({"w": np.arange(6.0).reshape(2, 3), "b": np.arange(2, dtype=np.float16)})
    (data,) = packed.blobs.values()
    tensors = safetensors.numpy.load(data)
    assert [array.tolist() for _, array in sorted(tensors.items())] == [
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        [0.0, 1.0],
    ]


def test_nothing_to_save_needs_no_blob() -> None:
    assert pack_state({"epoch": 1}) == (b'{"$":"state","v":{"epoch":1}}', {})
    assert back(pack_state({"epoch": 1})) == {"epoch": 1}


def test_ordered_dicts_keep_their_metadata() -> None:
    tree: Any = collections.OrderedDict(a=np.zeros(1))
    tree._metadata = collections.OrderedDict({"": {"version": 2}})
    again = back(pack_state(tree))
    assert isinstance(again, collections.OrderedDict)
    metadata: Any = vars(again)["_metadata"]
    assert metadata == tree._metadata
    assert isinstance(metadata, collections.OrderedDict)
    with pytest.raises(UnencodableValue):
        Codec().encode(tree)


def test_a_large_tree_becomes_a_blob() -> None:
    packed = pack_state({n: np.float64(n) for n in range(5000)} | {"w": np.zeros(3)})
    assert len(packed.tree) < 1_000
    assert len(packed.blobs) == 2
    assert back(packed)[17] == 17.0


def test_the_path_of_what_cannot_be_saved() -> None:
    with pytest.raises(UnencodableValue, match=r"session\.state_dict\(\)\['a'\]\[0\]: cannot keep"):
        pack_state({"a": [object()]}, where="session.state_dict()")


def test_a_damaged_blob_is_corrupt() -> None:
    packed = pack_state([np.zeros(100)])
    (data,) = packed.blobs.values()
    for damaged in (data[:-1], b"\xff" * len(data), data[:8] + b"!" * (len(data) - 8)):
        with pytest.raises(CorruptValue):
            unpack_state(packed.tree, lambda _, damaged=damaged: damaged)
    with pytest.raises(CorruptValue, match="no state"):
        unpack_state(b"[1]", bytes.fromhex)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_state([np.zeros(1)])
    encoded = Codec().encode(np.zeros(1))
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "safetensors":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    for attempt in (lambda: pack_state([np.zeros(1)]), lambda: back(packed)):
        with pytest.raises(ResourceError, match=r'pip install "crucible-kitchen\[local\]"'):
            attempt()
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    opaque = Codec().decode(encoded.json, bytes.fromhex)
    assert (opaque.type_name, opaque["shape"]) == ("numpy.ndarray", [1])


class TestTorch:
    @pytest.fixture
    def torch(self) -> Any:
        return pytest.importorskip("torch")

    def test_every_dtype(self, torch: Any) -> None:
        names = "bool uint8 int8 int16 int32 int64 uint16 float16 bfloat16 float32 float64 "
        names += "complex64 complex128 float8_e4m3fn float8_e5m2"
        for name in names.split():
            dtype = getattr(torch, name)
            for tensor in (
                torch.arange(6).reshape(2, 3).to(dtype),
                torch.arange(6).reshape(2, 3).to(dtype).t(),
                torch.zeros((), dtype=dtype),
                torch.zeros((2, 0), dtype=dtype),
            ):
                encoded = Codec().encode({"w": tensor})
                decoded = Codec().decode(encoded.json, encoded.blobs.__getitem__)["w"]
                for again in (back(pack_state([tensor]))[0], decoded):
                    assert type(again) is torch.Tensor
                    assert (again.dtype, again.shape) == (dtype, tensor.shape)
                    assert again.stride() == tensor.stride()
                    flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (again, tensor)]
                    assert flat[0].tolist() == flat[1].tolist()

    def test_a_training_state_goes_on_bit_for_bit(self, torch: Any) -> None:
        def session() -> tuple[Any, Any, Any]:
            torch.manual_seed(0)
            net = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)
            )
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
            return net, optimizer, schedule

        def train(live: tuple[Any, Any, Any], steps: int) -> None:
            net, optimizer, schedule = live
            for _ in range(steps):
                optimizer.zero_grad()
                net(torch.randn(16, 4)).square().mean().backward()
                optimizer.step()
                schedule.step()

        live = session()
        train(live, 3)
        packed = pack_state({n: part.state_dict() for n, part in enumerate(live)})
        generator = pack_state(torch.get_rng_state())
        train(live, 3)

        resumed = session()
        state = back(packed)
        for n, part in enumerate(resumed):
            part.load_state_dict(state[n])
        torch.set_rng_state(back(generator))
        train(resumed, 3)
        final = [pack_state([part.state_dict() for part in parts]) for parts in (live, resumed)]
        assert final[0] == final[1]

    def test_what_is_more_than_its_elements_is_refused(self, torch: Any) -> None:
        refused = [
            (torch.zeros(1, requires_grad=True), r"detach\(\)"),
            (torch.nn.Parameter(torch.zeros(1)), r"Parameter.*detach\(\)"),
            (torch.zeros(2, 2).to_sparse(), "sparse"),
            (torch.zeros(1, device="meta"), "meta"),
        ]
        for tensor, match in refused:
            with pytest.raises(UnencodableValue, match=rf"(?s){match}"):
                pack_state(tensor)

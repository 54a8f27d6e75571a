"""The state dicts of resources: a tree, and all their arrays in one safetensors blob.

Rules:

1. `unpack_state(*pack_state(x))` is x exactly, as mutable objects that nothing else holds.
2. Arrays of any size go into one blob per call, named in the order in which they are met.
   Its bytes depend on nothing but the arrays.
3. safetensors says the dtype where it knows it, for whoever opens the blob with other tools.
   What is built here follows the dtype in the tree, so others are stored as bytes.
4. The containers that torch's state dicts are made of are taken too: OrderedDict with its
   `_metadata`, Counter, deque. Classes are not: nobody declared them.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from kitchen.errors import CorruptValue, ResourceError
from kitchen.machine.codec.refusals import kind_of
from kitchen.machine.codec.tagging import BLOB_LIMIT, Tagger, dump, over_limit
from kitchen.machine.codec.tensors import Leaf
from kitchen.machine.codec.untagging import Fetch, Untagger, inner_text, parse, read_blob

_INSTALL = 'pip install "crucible-kitchen[local]"'
_SAFE_DTYPES = frozenset((
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2",
))  # fmt: skip


class Packed(NamedTuple):
    """The JSON text of a state dict, and the blobs that it refers to, by sha256."""

    tree: bytes
    blobs: Mapping[str, bytes]


def pack_state(tree: Any, *, where: str = "state_dict()") -> Packed:
    """Encode what a resource's `state_dict()` returned, or raise `UnencodableValue`."""
    leaves: dict[str, Leaf] = {}

    def sink(leaf: Leaf) -> str:
        name = f"{len(leaves):06d}"
        leaves[name] = leaf
        return name

    tagger = Tagger({}, sink)
    packed: dict[str, Any] = {"$": "state", "v": tagger.run(tree, where)}
    blobs = tagger.blobs
    if leaves:
        data = _serialize(leaves)
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        packed["tensors"] = {"blob": digest, "size": len(data)}
    text = dump(packed)
    if len(text) > BLOB_LIMIT:
        return Packed(*over_limit(text, blobs))
    return Packed(text, blobs)


def unpack_state(tree: bytes | msgspec.Raw, fetch: Fetch) -> Any:
    """The state dict that was packed: plain containers, writable arrays."""
    packed = parse(bytes(tree))
    inner = inner_text(packed, fetch)
    if inner is not None:
        packed = parse(inner)
    if kind_of(packed) is not dict or packed.get("$") != "state" or "v" not in packed:
        raise CorruptValue("what was recorded is no state of a resource")
    tensors: dict[str, bytes] = {}
    reference = packed.get("tensors")
    if reference is not None:
        if kind_of(reference) is not dict:
            raise CorruptValue("the arrays of a recorded state are no reference to a blob")
        tensors = _deserialize(read_blob(reference, fetch))
    try:
        return Untagger({}, fetch, frozen=False, tensors=tensors).run(packed["v"])
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error


def _serialize(leaves: Mapping[str, Leaf]) -> bytes:
    safetensors = _safetensors()
    specs: dict[str, Any] = {}
    for name, leaf in sorted(leaves.items()):
        known = leaf.dtype in _SAFE_DTYPES
        dtype = leaf.dtype if known else "uint8"
        shape = _dense_shape(leaf.members) if known else [len(leaf.data)]
        specs[name] = _spec(safetensors, dtype, shape, leaf.data)
    return bytes(safetensors.serialize(specs))


def _dense_shape(members: Mapping[str, Any]) -> list[int]:
    shape: list[int] = members["shape"]
    return [shape[axis] for axis in members["axes"]] if "axes" in members else shape


def _spec(safetensors: Any, dtype: str, shape: list[int], data: bytes) -> Any:
    made = getattr(safetensors, "TensorSpec", None)
    if made is None:  # before 0.8
        return {"dtype": dtype, "shape": shape, "data": data}
    # The caller's leaves keep `data` alive until it is serialized.
    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    return made(dtype=dtype, shape=shape, data_ptr=address, data_len=len(data))


def _deserialize(data: bytes) -> dict[str, bytes]:
    safetensors = _safetensors()
    try:
        return {name: bytes(view["data"]) for name, view in safetensors.deserialize(data)}
    except Exception as error:
        # Its SafetensorError derives from Exception alone.
        raise CorruptValue(f"the arrays of a recorded state do not decode: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    return safetensors


def _not_installed(error: ModuleNotFoundError) -> ResourceError:
    return ResourceError(
        f"a state with arrays needs {error.name}, which is not installed",
        hint="pip install torch" if error.name == "torch" else _INSTALL,
    )

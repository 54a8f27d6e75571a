"""One numpy array, numpy scalar or torch tensor: to members and raw bytes, and back.

Rules:

1. numpy and torch are looked up among the modules already loaded when encoding (nobody can
   hold an array of a library that is not), and imported only to build what was recorded.
2. The raw bytes are the elements in C order. An array that is dense in another order of its
   axes says so in `axes` and gets that order back: sums depend on it.
3. A dtype is kept if the one built from its description is the same dtype; otherwise the
   array is refused. No object dtypes: they hold pointers.
4. Tensors come back on the CPU, detached. One that takes part in autograd is refused, as its
   graph would be lost.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from typing import Any, NamedTuple

# (`longdouble` is left out: its size and padding differ between machines.)
_KINDS = "biufcmMSUV"
_SCALAR_KINDS = "biufcmM"
_MOST_AXES = 64
_MOST_TEXT = 4
_AS_NUMBER = {"b": bool, "i": int, "u": int, "f": float}


class Unfit(Exception):
    """An array that cannot be kept exactly: why, and what to do instead."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Leaf(NamedTuple):
    """What an array is, as JSON members with its tag, and its elements."""

    members: dict[str, Any]
    data: bytes
    dtype: str  # spelled as torch and safetensors do, "" if they have no such dtype


def leaf_of(value: Any) -> Leaf | None:
    """The leaf that `value` is, or None if it is neither array nor tensor."""
    np: Any = sys.modules.get("numpy")
    if np is not None and type(value) is getattr(np, "ndarray", None):
        return _numpy_array(value)
    torch: Any = sys.modules.get("torch")
    if torch is not None and type(value) is getattr(torch, "Tensor", None):
        return _torch_tensor(torch, value)
    return None


def scalar_of(value: Any) -> tuple[dict[str, Any], bytes | None] | None:
    """Members of a numpy scalar, with a readable `v` or else its bytes; None if not one."""
    np: Any = sys.modules.get("numpy")
    if np is None or not isinstance(value, getattr(np, "generic", ())):
        return None
    scalar: Any = value
    dtype = scalar.dtype
    if dtype.kind not in _SCALAR_KINDS or np.dtype(dtype.str).type is not type(scalar):
        raise Unfit("this numpy scalar would come back as another type", "store x.item()")
    _check_simple(dtype)
    members: dict[str, Any] = {"$": "np", "dtype": dtype.str}
    plain = _AS_NUMBER.get(dtype.kind)
    raw: bytes = scalar.tobytes()
    if plain is not None:
        number = plain(scalar)
        if plain is not float or (math.isfinite(number) and dtype.type(number).tobytes() == raw):
            return {**members, "v": number}, None
    return members, raw


def build_scalar(members: dict[str, Any], data: bytes | None) -> Any:
    """The numpy scalar that `scalar_of` described."""
    np = _import("numpy")
    dtype = _simple_dtype(np, members["dtype"], _SCALAR_KINDS)
    if data is None:
        number = members["v"]
        plain = _AS_NUMBER.get(dtype.kind)
        if plain is None or type(number) is not plain:
            raise ValueError(f"{number!r} is not a value of {dtype}")
        with np.errstate(all="ignore"):
            scalar = dtype.type(number)
        if plain(scalar) != number:
            raise ValueError(f"{number!r} is not a value of {dtype}")
        return scalar
    if len(data) != dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for a scalar of {dtype}")
    return np.ndarray((), dtype, data)[()]


def build_array(members: dict[str, Any], data: bytes, *, frozen: bool) -> Any:
    """The numpy array; a frozen one is a read-only view of `data`."""
    np = _import("numpy")
    dtype = _build_dtype(np, members["dtype"])
    shape, axes = _layout(members)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fill shape {shape} of {dtype}")
    dense = [shape[axis] for axis in axes] if axes else shape
    array = np.ndarray(dense, dtype, data)
    _check_text(np, array)
    if not frozen:
        array = array.copy(order="C")
    return array.transpose(_inverse(axes)) if axes else array


def build_tensor(members: dict[str, Any], data: bytes) -> Any:
    """The torch tensor, with memory of its own."""
    torch = _import("torch")
    name = members["dtype"]
    dtype: Any = torch.__dict__.get(name)  # asking the module itself may import a part of it
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")  # noqa: TRY004 - of a log, not a call
    shape, axes = _layout(members)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not fill shape {shape} of {dtype}")
    dense = [shape[axis] for axis in axes] if axes else shape
    if not data:
        tensor = torch.empty(dense, dtype=dtype)
    else:
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8).clone()
        tensor = flat.view(dtype).reshape(dense)
    return tensor.permute(_inverse(axes)) if axes else tensor


def _numpy_array(array: Any) -> Leaf:
    dtype = array.dtype
    members: dict[str, Any] = {"$": "ndarray", "dtype": _describe_dtype(dtype)}
    members["shape"] = list(array.shape)
    if not array.flags.c_contiguous:
        axes = _dense_axes(array.shape, array.strides)
        if array.transpose(axes).flags.c_contiguous:
            members["axes"] = axes
            array = array.transpose(axes)
    native = dtype.kind in "biufc" and not dtype.str.startswith(">")
    return Leaf(members, array.tobytes(), dtype.name if native else "")


def _torch_tensor(torch: Any, tensor: Any) -> Leaf:
    if tensor.requires_grad:
        raise Unfit("the tensor takes part in autograd", "store tensor.detach()")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise Unfit("the tensor is sparse, quantized or nested", "store tensor.to_dense()")
    if tensor.device.type == "meta":
        raise Unfit("the tensor is on the meta device and has no elements", "materialise it")
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    members: dict[str, Any] = {"$": "tensor", "dtype": name, "shape": list(tensor.shape)}
    if not tensor.is_contiguous():
        axes = _dense_axes(tensor.shape, tensor.stride())
        if tensor.permute(axes).is_contiguous():
            members["axes"] = axes
            tensor = tensor.permute(axes)
    flat = tensor.contiguous().reshape(-1)
    return Leaf(members, flat.view(torch.uint8).numpy().tobytes(), name)


def _dense_axes(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    # The stride of an axis of one element means nothing, and is not the same when read back.
    weight = [
        -stride if size > 1 else -math.inf for size, stride in zip(shape, strides, strict=True)
    ]
    return sorted(range(len(shape)), key=weight.__getitem__)


def _inverse(axes: list[int]) -> list[int]:
    return sorted(range(len(axes)), key=axes.__getitem__)


def _layout(members: dict[str, Any]) -> tuple[list[int], list[int] | None]:
    shape: list[int] = members["shape"]
    axes: list[int] | None = members.get("axes")
    if len(shape) > _MOST_AXES or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{shape!r} is no shape")
    if axes is not None and sorted(axes) != list(range(len(shape))):
        raise ValueError(f"{axes!r} are not the axes of shape {shape}")
    return shape, axes


def _check_simple(dtype: Any) -> None:
    if dtype.hasobject or dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise Unfit(f"its dtype {dtype} does not hold plain values", "store x.tolist()")
    if dtype.char in "gG":
        raise Unfit(f"{dtype} differs between machines", "store x.astype(...) of a fixed size")
    if dtype.metadata:
        raise Unfit(f"its dtype {dtype} carries metadata", "store it without, and the metadata")


def _describe_dtype(dtype: Any) -> Any:
    _check_simple(dtype)
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _describe_dtype(base), "shape": list(shape)}
    if dtype.names is None:
        description = dtype.str
    else:
        if any(len(dtype.fields[name]) > 2 for name in dtype.names):
            raise Unfit(f"its dtype {dtype} has titles", "name the fields only")
        if _text_size(dtype) > _MOST_TEXT * dtype.itemsize:
            raise Unfit(f"its dtype {dtype} shows the same text in many fields", "store it once")
        description = {
            "fields": [
                [name, _describe_dtype(dtype.fields[name][0]), dtype.fields[name][1]]
                for name in dtype.names
            ],
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
        }
    rebuilt = _build_dtype(sys.modules["numpy"], description)
    if rebuilt != dtype or rebuilt.kind != dtype.kind:
        raise Unfit(f"its dtype {dtype} would come back as {rebuilt}", "store x.astype(...)")
    return description


def _build_dtype(np: Any, description: Any) -> Any:
    if isinstance(description, str):
        return _simple_dtype(np, description, _KINDS)
    dtype = _compound_dtype(np, description)
    if dtype.itemsize == 0:  # any number of such elements takes no bytes
        raise ValueError(f"{description!r} has no size")
    if _text_size(dtype) > _MOST_TEXT * dtype.itemsize:
        raise ValueError("its fields of text overlap too often")
    return dtype


def _text_size(dtype: Any) -> int:
    """How many bytes of text an element has, counted once for each field that shows them."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _text_size(base) * math.prod(shape)
    if dtype.names is None:
        return dtype.itemsize if dtype.kind == "U" else 0
    return sum(_text_size(dtype.fields[name][0]) for name in dtype.names)


def _check_text(np: Any, array: Any) -> None:
    """Refuse what is no text, looking at code points: an array of no bytes may have any length."""
    dtype = array.dtype
    if dtype.names is not None:
        for name in dtype.names:
            _check_text(np, array[name])
    elif dtype.kind == "U" and array.size:
        points = np.ascontiguousarray(array).view(f"{dtype.str[0]}u4")
        if points.max() > sys.maxunicode:
            raise ValueError("it holds what is no text")


def _compound_dtype(np: Any, description: dict[str, Any]) -> Any:
    if "base" in description:
        return np.dtype((_build_dtype(np, description["base"]), tuple(description["shape"])))
    fields, aligned = description["fields"], description["aligned"]
    if type(aligned) is not bool:
        raise ValueError(f"{aligned!r} does not say whether a dtype is aligned")
    spec = {
        "names": [name for name, _, _ in fields],
        "formats": [_build_dtype(np, inner) for _, inner, _ in fields],
        "offsets": [offset for _, _, offset in fields],
        "itemsize": description["itemsize"],
    }
    return np.dtype(spec, align=aligned)


def _simple_dtype(np: Any, text: str, kinds: str) -> Any:
    # The pattern keeps out what numpy would evaluate, such as "f4,f4" and "O".
    if not re.fullmatch(r"[<>|][biufcmMSUV]\d{1,9}(\[\d{0,9}[A-Za-z]{1,7}\])?", text):
        raise ValueError(f"{text!r} is no dtype")
    dtype = np.dtype(text)
    if dtype.kind not in kinds or dtype.itemsize == 0 or dtype.char in "gG":
        raise ValueError(f"{text!r} is no dtype that can be kept")
    return dtype


def _import(name: str) -> Any:
    return importlib.import_module(name)

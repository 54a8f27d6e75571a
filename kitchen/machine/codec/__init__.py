"""Values to JSON text and back, exactly: what the state, the items and the checkpoints are made of.

`values` is the codec of state and items, `arrays` that of state dicts. Below both: `tagging`
(value to tree), `untagging` (tree to value), `tensors` (one array or scalar), `frozen` (what is
read from state), `declared` (the classes that may be kept), `refusals` (what is said to the rest).
"""

from kitchen.machine.codec.frozen import FrozenDict, FrozenList, FrozenSet, Opaque
from kitchen.machine.codec.values import BLOB_LIMIT, Codec, Encoded, blob_digests

__all__ = [
    "BLOB_LIMIT",
    "Codec",
    "Encoded",
    "FrozenDict",
    "FrozenList",
    "FrozenSet",
    "Opaque",
    "blob_digests",
]

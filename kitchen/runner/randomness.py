"""Randomness that needs no saving: derived from the run's seed and the address.

Rules: the same (seed, path, visit) gives the same numbers in every process, on every attempt
and behind every rewind. Different addresses give independent streams (SHA-256 is the mixer).
"""

from __future__ import annotations

import hashlib
import operator
import random
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

from kitchen.errors import ArgumentError
from kitchen.machine.events import Address

if TYPE_CHECKING:
    import numpy as np


def whole(seed: object) -> int:
    """The seed as a log has it. Raises `ArgumentError` for what is no whole number."""
    if not isinstance(seed, bool):
        try:
            return operator.index(cast("SupportsIndex", seed))
        except TypeError:
            pass
    raise ArgumentError(
        f"a seed is a whole number, not {seed!r}", hint="seed=0 is what holds without"
    )


def derive(seed: int, address: Address) -> int:
    """A seed of 128 bits for an address."""
    visit = ".".join(map(str, address.visit))
    text = f"kitchen/1\n{seed}\n{address.path}\n{visit}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "big")


def python_rng(seed: int) -> random.Random:
    """A `random.Random` for a derived seed."""
    return random.Random(seed)  # noqa: S311  (reproducible by intent)


def numpy_rng(seed: int) -> np.random.Generator:
    """A NumPy `Generator` (PCG64) for a derived seed."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def torch_generator(seed: int) -> Any:
    """A `torch.Generator` on the CPU for a derived seed."""
    torch: Any = import_module("torch")
    generator = torch.Generator()
    generator.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
    return generator


def seed_globals(seed: int) -> None:
    """Seed the global generators of Python, and of NumPy and torch where they are loaded."""
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed & 0xFFFF_FFFF)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)

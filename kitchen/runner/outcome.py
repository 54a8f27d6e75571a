"""What performing a command gives.

Rule: an outcome goes to the kernel; its blobs go to the store before the events that name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kitchen.machine.commands import Input


class Performed(NamedTuple):
    """An outcome, and the blobs that its events will name."""

    outcome: Input
    blobs: Mapping[str, bytes]

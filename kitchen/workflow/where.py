"""Where in the user's code a mistake stands.

Rules:

1. A `Site` is a file and a line of the code that called us, never of kitchen's own floor 1.
2. Every mistake in a workflow is told by `fault`: the message begins with `file:line:`, and
   a hint says what to write instead.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import msgspec

from kitchen.errors import WorkflowError

if TYPE_CHECKING:
    from types import FunctionType

_OURS = __name__.rpartition(".")[0]


class Site(msgspec.Struct, frozen=True):
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def seen_from(self, other: Site) -> str:
        """How to call this place in a message that already names `other`."""
        return f"line {self.line}" if self.file == other.file else f"{self}"


def here() -> Site:
    """The line of user code that is calling us, however deep in this package we are."""
    frame = inspect.currentframe()
    while frame is not None and _is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
    return Site(frame.f_code.co_filename, frame.f_lineno) if frame else Site("<unknown>", 0)


def site_of(function: FunctionType) -> Site:
    """Where a function is defined (its first decorator, if it has any)."""
    code = inspect.unwrap(function).__code__
    return Site(code.co_filename, code.co_firstlineno)


def fault(site: Site, message: str, hint: str) -> WorkflowError:
    """The error for a mistake at `site`, to be raised by the caller."""
    return WorkflowError(f"{site}: {message}", hint=hint)


def _is_ours(module: object) -> bool:
    # contextlib too: an ExitStack that enters a block stands between the user and us.
    return isinstance(module, str) and (
        module == _OURS or module.startswith(f"{_OURS}.") or module == "contextlib"
    )

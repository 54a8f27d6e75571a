"""The terminal of whoever runs pytest, past what is captured.

Rules: a worker of xdist has none; nor has a process without stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pytest


@contextmanager
def terminal(config: pytest.Config, *, interactive: bool = False) -> Generator[TextIO | None]:
    """Where to write what is to be seen at once; None where there is no such place, or, if it has to
    be `interactive`, where that is a file or a pipe."""
    stream = None if os.environ.get("PYTEST_XDIST_WORKER") else sys.__stderr__
    if stream is None or (interactive and not stream.isatty()):
        yield None
        return
    capturing: Any = config.pluginmanager.getplugin("capturemanager")
    if capturing is None:
        yield stream
        return
    with capturing.global_and_fixture_disabled():
        yield stream

"""What all tests share.

Rules: a test marked `anyio` runs on both event loops, as the runner must. What the tests start hears
Ctrl-C, also where a shell has put them into the background, which has its jobs ignore it. Garbage is
collected less often than by default: simulated runs keep much alive, which costs a tenth of the time.
"""

from __future__ import annotations

import gc
import signal

import pytest

gc.set_threshold(50_000, 50, 100)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop under an async test."""
    return request.param

"""What all tests share.

Rules: a test marked `anyio` runs on both event loops, as the runner must.
"""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop under an async test."""
    return request.param

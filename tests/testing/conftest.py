"""What the tests of the testing kit share: the pytest that they start is nobody's worker."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def own_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syrupy, for one, asks the environment whether it is in a worker of xdist."""
    for name in list(os.environ):
        if name.startswith("PYTEST_XDIST"):
            monkeypatch.delenv(name)

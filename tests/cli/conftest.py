"""The fixture of these tests: `kitchen`, called in a folder with a workflow in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import Kitchen


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kitchen]:
    """`kitchen` in an empty folder with a workflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KITCHEN_STORE", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield Kitchen(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("job_"):
            del sys.modules[name]

"""The sample of types is checked as a user's editor would check it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_pyright_knows_the_types() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "tests/workflow/typing_sample.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

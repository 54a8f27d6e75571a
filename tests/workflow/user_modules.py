"""Modules as a user would write them, with a mistake in them.

The line that must be named ends in `# <-`; further lines can be marked `# <1` and so on.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import textwrap
from typing import TYPE_CHECKING

import pytest

from kitchen.errors import KitchenError, WorkflowError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

PRELUDE = """\
import contextlib
from kitchen.workflow.decorator import workflow
from kitchen.workflow.stage import Resource, Stage
def work(ctx): ...
def items(ctx): return range(3)
def asked(ctx): return True
def opened(ctx): return object()
def two(ctx, more): ...
def none(): ...
def gen(ctx): yield 1
async def agen(ctx): yield 1
async def coro(ctx): ...
class Plain:
    def execute(self, ctx): ...
class Abstract(Stage): ...
class Needy(Stage):
    def __init__(self, path): ...
    def execute(self, ctx): ...
class Broken(Stage):
    def __init__(self): raise RuntimeError("no disk")
    def execute(self, ctx): ...
class Yields(Stage):
    def execute(self, ctx): yield
class Object:
    def __call__(self, ctx): yield
class Odd(Stage):
    def execute(self): ...
"""
_numbers = itertools.count()


def load(path: Path, source: str) -> ModuleType:
    """Imports a module that a user wrote."""
    name = f"user_module_{next(_numbers)}"
    file = path / f"{name}.py"
    file.write_text(PRELUDE + source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fails(path: Path, source: str) -> tuple[str, str, dict[str, int]]:
    """The message and hint of the mistake in `source`, told at the marked line."""
    source = textwrap.dedent(source)
    with pytest.raises(WorkflowError) as caught:
        load(path, source)
    lines = (PRELUDE + source).splitlines()
    marks = {
        line.rpartition("# <")[2]: number
        for number, line in enumerate(lines, start=1)
        if "# <" in line
    }
    file, line, message = str(caught.value.message).split(":", 2)
    assert (re.sub(r"\d+", "", file.rpartition("/")[2]), int(line)) == (
        "user_module_.py",
        marks["-"],
    ), str(caught.value)
    assert isinstance(caught.value, KitchenError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.hint
    assert str(caught.value).endswith(f"\n  hint: {caught.value.hint}")
    return message.strip(), caught.value.hint, marks


def in_workflow(lines: str) -> str:
    body = textwrap.indent(textwrap.dedent(lines).strip("\n"), "    ")
    return f"@workflow\ndef training(wf):\n{body}\n"

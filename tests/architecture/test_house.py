"""The house keeps its shape. Who may import whom is import-linter's; here is the rest.

Rules: everything is read from the source, so a module need not be importable to be judged. What
only shows when it runs (what `import kitchen` loads, what a wheel holds) runs in a process of
its own.
"""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kitchen import errors
from kitchen.errors import KitchenError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for room in ("kitchen", "store") for path in (ROOT / room).rglob("*.py"))
PURE = [path for path in MODULES if path.relative_to(ROOT).parts[1] in ("workflow", "machine")]

MODULE_LINES = 400
FUNCTION_LINES = 60
NAMELESS = {"utils", "util", "common", "types", "helpers", "misc"}
WORLD = {
    "anyio", "trio", "asyncio", "threading", "subprocess", "socket", "signal", "sqlite3",
    "sqlite_utils", "store", "time", "random", "secrets", "os", "pathlib", "logging", "warnings",
}  # fmt: skip
HEAVY = {
    "anyio", "asyncio", "click", "numpy", "rich", "sniffio", "sqlite3", "sqlite_utils", "store",
    "torch", "transitions", "trio",
}  # fmt: skip
# Never a dependency of ours: torch and trio are asked for only where the user has brought them, the
# last is for type checkers, which bring it along.
GUESTS = {"torch", "trio", "typing_extensions"}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_module = pytest.mark.parametrize("path", MODULES, ids=named)


@every_module
def test_a_module_is_short_documented_and_named(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MODULE_LINES
    assert ast.get_docstring(ast.parse(source)), "a module's docstring states its rules"
    assert not NAMELESS & set(path.relative_to(ROOT).with_suffix("").parts)


@every_module
def test_functions_are_short(path: Path) -> None:
    lengths = {
        f"{node.name} (line {node.lineno})": _lines(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, without those of its docstring."""
    assert node.end_lineno is not None
    length = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        assert first.end_lineno is not None
        length -= first.end_lineno - first.lineno + 1
    return length


# --- imports ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PURE, ids=named)
def test_what_is_pure_names_no_module_of_the_world(path: Path) -> None:
    """As import-linter's contract, and importing by name or for types counts too."""
    assert set(_imported(ast.parse(path.read_text()))) & WORLD == set()


def test_only_the_chart_knows_transitions() -> None:
    knows = [named(p) for p in MODULES if "transitions" in _imported(ast.parse(p.read_text()))]
    assert knows == ["kitchen/machine/chart.py"]


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = _modules([*project["dependencies"], *extras["local"]])
    known = {*sys.stdlib_module_names, "kitchen", "store", *declared, *GUESTS}
    testing = known | _modules(extras["test"])
    foreign = {
        f"{named(path)}: {name}"
        for path in MODULES
        for name in _imported(ast.parse(path.read_text()))
        if name not in (testing if named(path).startswith("kitchen/testing/") else known)
    }
    assert foreign == set()


def _modules(packages: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", name, maxsplit=1)[0].replace("-", "_") for name in packages}


def _imported(tree: ast.AST) -> Iterator[str]:
    """The top names of all that is imported, `import_module("…")` included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module.partition(".")[0]
            case _:
                pass


def test_importing_kitchen_is_light() -> None:
    code = "import kitchen, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & HEAVY == set()


def test_the_names_of_kitchen_are_what_they_are_whatever_has_been_imported() -> None:
    code = """
import kitchen, pickle
assert set(kitchen.__all__) <= set(dir(kitchen))
import kitchen.workflow.ir, kitchen.history.history, kitchen.errors
from kitchen import *
assert workflow is kitchen.workflow and workflow.__name__ == "workflow"
assert history is kitchen.history and history.__name__ == "history"
assert pickle.loads(pickle.dumps([history, workflow, Retry, KitchenError])) == [
    history, workflow, Retry, KitchenError]
from unittest import mock
for name in ("run", "history", "workflow", "Retry"):
    with mock.patch(f"kitchen.{name}", 3):
        assert getattr(kitchen, name) == 3
    assert getattr(kitchen, name) != 3
assert not hasattr(kitchen, "runs")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- errors -------------------------------------------------------------------------------------

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, BaseException) and not issubclass(cls, Warning)
}


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, tuple[str, frozenset[str]]] = {}
    above = ["KitchenError"]
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│ ]*)[├└]── (\w+)(?: \(([\w, ]+)\))?", line)
        if found:
            depth = len(found[1]) // 4 + 1
            del above[depth:]
            drawn[found[2]] = above[-1], frozenset((found[3] or "").split(", ")) - {""}
            above.append(found[2])
    real = {
        name: (
            next(base.__name__ for base in cls.__bases__ if issubclass(base, KitchenError)),
            frozenset(b.__name__ for b in cls.__bases__ if not issubclass(b, KitchenError)),
        )
        for name, cls in CLASSES.items()
        if cls is not KitchenError
    }
    assert drawn == real


@pytest.mark.parametrize("cls", [c for c in CLASSES.values() if c is not KitchenError])
def test_an_error_is_a_kitchen_error_and_a_built_in(cls: type[BaseException]) -> None:
    assert issubclass(cls, KitchenError)
    fitting = {b for b in cls.__mro__ if vars(builtins).get(b.__name__) is b}
    assert fitting - {Exception, BaseException, object}
    assert cls.__doc__


# --- the distribution -----------------------------------------------------------------------------


def test_a_wheel_holds_both_packages_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("crucible_kitchen-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"kitchen/py.typed", "store/py.typed"} <= names
    assert {named(path) for path in MODULES} <= names
    rooms = {name.partition("/")[0] for name in names}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"kitchen", "store"}

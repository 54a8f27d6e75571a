"""The reference of the testing kit names everything that a test can ask for.

Rules: what there is, the code says: `kitchen.testing.__all__`, the fixtures of the plugin and the
signatures of what they give. A fixture has a section of its own; `WHERE` says where the rest is told.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from kitchen import testing
from tests.docs.page import ROOT, sections_of

PAGE = ROOT / "docs" / "reference" / "testing.md"
PLUGIN = ROOT / "kitchen" / "testing" / "plugin.py"
FAKES = [name for name in testing.__all__ if re.fullmatch(r"Faults|faulty|Fake(?!Failure).+", name)]
WHERE = {
    "crash_matrix": "The crash matrix",
    "kitchen_histories": "Recorded histories",
    **dict.fromkeys(FAKES, "Fakes"),
}
TOLD = {  # what is read, and never made, by a test
    "RecordedRun": "Recorded histories",
    "CrashReport": "The crash matrix",
}


def fixtures() -> dict[str, str]:
    """The fixtures of the plugin, with the names of the types that they give."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(PLUGIN.read_text())):
        if isinstance(node, ast.FunctionDef) and "pytest.fixture" in map(
            ast.unparse, node.decorator_list
        ):
            assert node.returns is not None
            found[node.name] = ast.unparse(node.returns)
    return found


FIXTURES = fixtures()


def keywords(called: Any) -> set[str]:
    """What it may be called with; `**how: Unpack[How]` is the keys of `How`."""
    found: set[str] = set()
    for name, each in inspect.signature(called).parameters.items():
        if each.kind is inspect.Parameter.VAR_KEYWORD:
            keys = each.annotation.removeprefix("Unpack[").removesuffix("]")
            found |= vars(import_module(called.__module__))[keys].__annotations__.keys()
        elif each.kind is not inspect.Parameter.POSITIONAL_ONLY and name != "self":
            found.add(name)
    return found


def missing(names: set[str], section: str) -> list[str]:
    """Those that are in no code span, and in no signature, of a section."""
    text = sections_of(PAGE)[section]
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    return sorted(name for name in names if not re.search(rf"\b{name}\b", code))


def callables() -> Iterator[tuple[str, str, Any]]:
    for name, gives in FIXTURES.items():
        made = getattr(testing, gives, None)
        if isinstance(made, type) and "__call__" in vars(made):
            yield f"fixture {name}", name, made.__call__
    for name in testing.__all__:
        if name in WHERE:
            yield name, WHERE[name], getattr(testing, name)


CALLABLES = list(callables())


@pytest.mark.parametrize("name", testing.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"`(?:@?kitchen\.testing\.)?{name}\b", PAGE.read_text())


@pytest.mark.parametrize("name", FIXTURES)
def test_every_fixture_has_a_section_and_is_listed(name: str) -> None:
    sections = sections_of(PAGE)
    assert name in sections
    assert f"`{name}`" in sections["Testing"]


@pytest.mark.parametrize(
    ("section", "called"), [each[1:] for each in CALLABLES], ids=[each[0] for each in CALLABLES]
)
def test_every_keyword_is_in_the_reference(section: str, called: Any) -> None:
    assert missing(keywords(called), section) == []


@pytest.mark.parametrize("name", FAKES)
def test_every_keyword_of_a_fake_is_in_its_row(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}\((.*?)\)`", sections_of(PAGE)["Fakes"], re.MULTILINE)
    assert {each for each in keywords(getattr(testing, name)) if not re.search(each, row)} == set()


@pytest.mark.parametrize("name", TOLD)
def test_every_member_of_what_is_told_is_in_the_reference(name: str) -> None:
    assert missing(members(getattr(testing, name)), TOLD[name]) == []


def test_every_member_of_what_a_stage_recorded_is_in_the_reference() -> None:
    recorded = import_module("kitchen.testing.recorded").Recorded
    assert missing(members(recorded), "What a stage has recorded") == []


def members(cls: type[Any]) -> set[str]:
    fields = {each.name for each in dataclasses.fields(cls)}
    return fields | {name for name in vars(cls) if not name.startswith("_")}


def test_there_are_fixtures_and_what_they_are_called_with_is_found() -> None:
    assert {"golden", "run_workflow", "stage_context", "crash_matrix"} <= FIXTURES.keys()
    assert "level" in keywords(testing.Golden.__call__)
    assert {"workflow", "points"} <= keywords(testing.CrashMatrix.__call__)
    assert missing({"level", "no_such_thing"}, "golden") == ["no_such_thing"]

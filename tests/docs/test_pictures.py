"""The pictures of the docs: drawn from the code that the pages show, as it is today.

Rules: `docs/images/NAME.mmd` is what `to_mermaid()` gives for the workflow NAME of the file
`NAME.py` of a page; `NAME.svg` is that text, rendered. Where one of the two is out of date, render
it anew: `kitchen graph NAME:NAME`, Mermaid with `htmlLabels: false`, its numbers rounded to one
decimal, a white rectangle behind it all.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from tests.docs.page import PAGES, ROOT, blocks_of

if TYPE_CHECKING:
    from kitchen.workflow.definition import Workflow

IMAGES = ROOT / "docs" / "images"
DRAWN = sorted(path.stem for path in IMAGES.glob("*.mmd"))
SVG = "{http://www.w3.org/2000/svg}"
LABEL = re.compile(r'"([^"]*)"')
MOST = 100_000


def shown(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow[Any, Any]:
    """The workflow of that name, of the file of that name that a page shows."""
    wanted = f"{name}.py"
    (text,) = [b.text for page in PAGES for b in blocks_of(page) if b.rest == wanted]
    (folder / wanted).write_text(text)
    spec = importlib.util.spec_from_file_location(name, folder / wanted)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # msgspec looks up annotations there
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_there_are_pictures() -> None:
    assert "full_training" in DRAWN


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_of_the_code_of_today(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = shown(name, tmp_path, monkeypatch).to_mermaid()
    assert (IMAGES / f"{name}.mmd").read_text() == drawn


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_was_rendered_from_its_text(name: str) -> None:
    root = ElementTree.parse(IMAGES / f"{name}.svg").getroot()
    told = sorted("".join(text.itertext()).strip() for text in root.iter(f"{SVG}text"))
    labels = sorted(LABEL.findall((IMAGES / f"{name}.mmd").read_text()))
    assert [each for each in told if each] == labels


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_can_be_shown_anywhere(path: Path) -> None:
    text = path.read_text()
    assert len(text) < MOST
    assert "foreignObject" not in text  # it is not shown where SVG is an image
    assert "<script" not in text
    assert re.findall(r"(?:href|src)=|url\((?!#)|@import", text) == []
    assert "<rect" in text.split("</style>")[1][:20]  # a background: dark pages show through

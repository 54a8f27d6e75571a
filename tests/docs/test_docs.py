"""The docs are tests: what they show is run, what they list is complete, where they link exists.

Rules: `page.py` says how a page is written, so that it can be run. Pages that exist are run; the
pages of reference must exist, and name everything that there is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import pytest

import kitchen
from kitchen import errors
from kitchen.machine import events
from tests.docs.page import (
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    fits,
    sections_of,
    steps_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_ALONE = 3
REFERENCE = ROOT / "docs" / "reference"
ERRORS = [name for name in vars(errors) if re.fullmatch(r"([A-Z][a-z]+){2,}", name)]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- what they show --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    if not {"python", "console", "output"} & {block.kind for block in blocks_of(page)}:
        return
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KITCHEN_", "PYTEST_"))}
    for name in ("CI", "BUILD_NUMBER"):  # pytest shortens nothing where these are set
        environ.pop(name, None)
    environ |= {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "PYTHONHASHSEED": "0"}
    environ["PYTEST_ADDOPTS"] = "-p no:hypothesispytest"  # no page needs it, and it is slow to load
    reader = Path(__file__).with_name("reader.py")
    done = subprocess.run(
        [sys.executable, str(reader), str(page)],
        check=False,
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_hardly_anything_is_left_untested() -> None:
    reasons = [f"{named(p)}: {b.rest}" for p in PAGES for b in blocks_of(p) if b.kind == "no-test"]
    assert len(reasons) <= LEFT_ALONE, reasons


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_shown_in_elixir_is_shown_in_python(page: Path) -> None:
    following = pairwise([*blocks_of(page), None])
    alone = [one for one, other in following if one and one.kind == "elixir" and not python(other)]
    assert alone == []


def python(block: Block | None) -> bool:
    """Whether a block is Python that is run, as a cell or as a file of it."""
    if block is None:
        return False
    return block.kind == "python" or (block.kind == "file" and block.rest.endswith(".py"))


# --- what they list --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(events.EVENTS))
def test_every_event_is_in_the_reference(name: str) -> None:
    section = sections_of(REFERENCE / "events.md")[name]
    fields = [field.encode_name for field in msgspec.structs.fields(events.EVENTS[name])]
    assert [field for field in fields if f"| `{field}` |" not in section] == []


def test_the_reference_has_no_event_that_is_gone() -> None:
    titles = sections_of(REFERENCE / "events.md").keys()
    there = {name for name, value in vars(events).items() if isinstance(value, type)}
    assert {t for t in titles if re.fullmatch(r"([A-Z][a-z]+){2,}", t)} - there == set()


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_in_the_reference(name: str) -> None:
    section = sections_of(REFERENCE / "errors.md")[name]
    bases = [base.__name__ for base in vars(errors)[name].__bases__]
    assert [base for base in bases if f"`{base}`" not in section] == []


def test_every_error_has_an_entry_of_its_own_and_none_is_gone() -> None:
    titles = sections_of(REFERENCE / "errors.md").keys()
    words = {t for t in titles if re.fullmatch(r"([A-Z][a-z]+){2,}", t)}
    assert words == set(ERRORS)


@pytest.mark.parametrize("name", kitchen.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"`(?:kitchen\.)?{name}\b", (REFERENCE / "api.md").read_text())


def test_every_command_and_every_option_is_in_the_reference() -> None:
    sections = sections_of(REFERENCE / "cli.md")
    missing: list[str] = []
    for path, command in _commands():
        section = sections.get(path)
        if section is None:
            missing.append(path)
            continue
        options = [o for p in command.params if isinstance(p, click.Option) for o in p.opts]
        missing += [f"{path} {o}" for o in options if o != "--help" and f"`{o}" not in section]
    assert missing == []


def _commands() -> Iterator[tuple[str, click.Command]]:
    cli = import_module("kitchen.cli")
    groups = [value for value in vars(cli).values() if isinstance(value, click.Group)]
    assert len(groups) == 1, "kitchen.cli has the group of commands, and no other"
    (group,) = groups
    ctx = click.Context(group, info_name="kitchen")
    for name in group.list_commands(ctx):
        command: Any = group.get_command(ctx, name)
        if not command.hidden:
            yield f"kitchen {name}", command


# --- where they link -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for block in blocks_of(page):
        text = text.replace(block.text, "")
    text = re.sub(r"`[^`\n]*`", "", text)
    broken: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            broken.append(target)
    assert broken == []


# --- the reader of pages itself ---------------------------------------------------------------------


def test_an_ellipsis_stands_for_anything_and_all_else_for_itself() -> None:
    assert fits("a … c\n", "a b c\n")
    assert fits("first\n…\nlast\n", "first\n1\n2\nlast\n")
    assert fits("first\n…\nlast\n", "first\nlast\n")
    assert fits("loss ...", "loss 0.5  \n")
    assert not fits("a … c", "a b")
    assert not fits("a.c", "abc")
    assert not fits("one", "one\ntwo")


def test_blocks_and_steps_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n<!-- file: a.toml -->\n```toml\nx = 1\n```\n\n"
        "- in a list\n  ```console\n  $ echo a \\\n  > b\n  a b\n  $ false  # exit 1\n  ```\n"
    )
    file, console = blocks_of(page)
    assert file == ("file", 5, "x = 1\n", "a.toml")
    assert [tuple(step) for step in steps_of(console)] == [
        (10, "echo a \\\nb", "a b", 0),
        (13, "false  # exit 1", None, 1),
    ]


@pytest.mark.parametrize("broken", ["```bash\nls\n```\n", "```\nls\n```\n", "```python\n1\n"])
def test_a_block_that_would_not_be_tested_is_refused(tmp_path: Path, broken: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(broken)
    with pytest.raises(ValueError, match=r"page\.md:1"):
        blocks_of(page)


PAGE = """
```python
import inspect
def f(): return 1
class C:
    y = 2
print(inspect.getsource(f), inspect.getsource(C), __name__)
```

<!-- output -->
```text
def f(): return 1
 class C:
    y = 2
 __main__
```

```console
$ ls *.py; echo $KITCHEN_STORE
page.py

$ exit 3  # exit 3
```
"""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("", ""), None),
        (("y = 2\n ", "y = 3\n "), "page.md:12: not as the page says"),
        (("page.py\n", "pages.py\n"), "page.md:19: not as the page says"),
        (("# exit 3", "# exit 4"), "page.md:22: not as the page says"),
        (("def f(): return 1\nclass", "1 / 0\nclass"), 'page.py", line 4, in <module>'),
    ],
)
def test_the_reader_notices(change: tuple[str, str], told: str | None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace(*change) if told else PAGE)
    if told is None:
        test_a_page_does_what_it_says(page, tmp_path)
        return
    with pytest.raises(AssertionError) as caught:
        test_a_page_does_what_it_says(page, tmp_path)
    assert told in str(caught.value)

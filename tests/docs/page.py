"""A page of the docs, as blocks to be tested. How a page is written:

- ```` ```python ```` is executed. The blocks of a page share one namespace, as the cells of a
  notebook do, and run in order in an empty folder with KITCHEN_STORE unset. `await` is allowed.
- ```` ```console ```` holds commands, each on a line that begins with `$ ` (`> ` continues it),
  run by bash in that same folder, in order with the Python blocks. The lines under a command are
  what it must print, stdout and stderr together; `…` or `...` in a line stands for anything, and
  on a line of its own for any lines. With no lines under it, whatever is printed will do.
  A command must exit 0, or N if it ends with `# exit N`.
- `<!-- file: train.py -->` above a block of any language: it is written to that file instead.
- `<!-- output -->` above a block: it is what the Python block before it must print, `…` as above.
- `<!-- no-test: reason -->` above a block: it is left alone. There must be a reason, and few of
  these; they are counted.
- Other blocks are `toml`, `json`, `text`, `sql` or `mermaid`, and are not tested. There is no
  `bash`: a command that is shown is a command that is run.
- ```` ```elixir ```` is what our users knew before. The next block is the same in Python.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p for p in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if p.exists())
SILENT = {"toml", "json", "text", "sql", "mermaid"}

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w-]*)[^`]*")
_NOTE = re.compile(r"<!-- *(?P<kind>[\w-]+)(?:: *(?P<rest>.*?))? *-->")


class Block(NamedTuple):
    """A fenced block.

    `kind`: "python", "console", "file", "output", "elixir", "silent" or "no-test".
    """

    kind: str
    line: int  # of its first line of content
    text: str
    rest: str = ""  # the file's name, or the reason


class Step(NamedTuple):
    """A command of a console block, and what it must print; None: anything."""

    line: int
    command: str
    expected: str | None
    code: int


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page. Raises `ValueError` where one is not as it should be."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    note: re.Match[str] | None = None
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        at += 1
        if opening is None:
            line = lines[at - 1].strip()
            note = _NOTE.fullmatch(line) if line else note
            continue
        start = at
        closing = re.compile(rf" *{opening['fence'][0]}{{{len(opening['fence'])},}} *")
        while at < len(lines) and not closing.fullmatch(lines[at]):
            at += 1
        if at == len(lines):
            raise ValueError(f"{page.name}:{start}: this block does not end")
        indent = len(opening["indent"])
        text = "".join(f"{line[indent:]}\n" for line in lines[start:at])
        found.append(_block(f"{page.name}:{start}", opening["language"], note, start + 1, text))
        note = None
        at += 1
    return found


def _block(where: str, language: str, note: re.Match[str] | None, line: int, text: str) -> Block:
    if note is not None and note["kind"] in ("file", "output", "no-test"):
        kind, rest = note["kind"], note["rest"] or ""
        if kind != "output" and not rest:
            raise ValueError(f"{where}: a {kind} says which or why")
        return Block(kind, line, text, rest)
    if language in ("python", "console", "elixir"):
        return Block(language, line, text)
    if language in SILENT:
        return Block("silent", line, text)
    raise ValueError(f"{where}: no block is {language or 'without a language'!r} here")


def steps_of(block: Block) -> list[Step]:
    """The commands of a console block."""
    steps: list[Step] = []
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].startswith("$ "):
            raise ValueError(f"line {block.line + at}: a console block begins with `$ `")
        line = block.line + at
        command = lines[at][2:]
        at += 1
        while at < len(lines) and lines[at].startswith("> "):
            command += "\n" + lines[at][2:]
            at += 1
        start = at
        while at < len(lines) and not lines[at].startswith("$ "):
            at += 1
        expected = "\n".join(lines[start:at]).strip("\n") or None
        code = re.search(r"# exit (\d+)\s*$", command)
        steps.append(Step(line, command, expected, int(code[1]) if code else 0))
    return steps


def fits(expected: str, found: str) -> bool:
    """Whether a text is what was expected, `…` or `...` standing for anything."""
    pattern: list[str] = []
    for line in expected.strip("\n").splitlines():
        if line.strip() in ("…", "..."):
            pattern.append(r"(?:.*\n)*")
        else:
            parts = re.split(r"…|\.\.\.", line.rstrip())
            pattern.append(".*".join(map(re.escape, parts)) + r" *\n")
    text = "".join(f"{line.rstrip()}\n" for line in found.strip("\n").splitlines())
    return re.fullmatch("".join(pattern), text) is not None


def anchors_of(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as GitHub spells them."""
    fenced = {line for b in blocks_of(page) for line in _span(b)}
    lines = enumerate(page.read_text().splitlines(), 1)
    titles = (t[1] for n, line in lines if n not in fenced and (t := re.match(r"#+ (.+)", line)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _span(block: Block) -> range:
    return range(block.line, block.line + block.text.count("\n"))


def sections_of(page: Path) -> dict[str, str]:
    """The text under each heading, by the heading without its backticks."""
    found: dict[str, str] = {}
    title = ""
    fenced = {line for b in blocks_of(page) for line in _span(b)}
    for number, line in enumerate(page.read_text().splitlines(), 1):
        heading = re.match(r"#+ (.+)", line) if number not in fenced else None
        if heading:
            title = heading[1].replace("`", "").strip()
            if title in found:
                raise ValueError(f"{page.name}:{number}: two headings are {title!r}")
        found[title] = f"{found.get(title, '')}{line}\n"
    return found

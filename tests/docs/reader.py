"""A reader who does what a page says, in the current folder: `python reader.py page.md`.

Rules:

1. Python blocks are cells of one `__main__`. They are written to `<page>.py` at the line numbers
   that they have on the page, so `inspect.getsource` works and a traceback names the page's line.
2. The first thing that is not as the page says is printed, and ends the process with 1.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

HERE = Path(__file__).resolve().parent
SECONDS = 120


def read(page: Path) -> None:
    """Do what the page says."""
    main = ModuleType("__main__")
    main.__file__ = str(Path.cwd() / f"{page.stem}.py")
    sys.modules["__main__"] = main
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    printed = ""
    for block in blocks_of(page):
        if block.kind == "file":
            Path(block.rest).parent.mkdir(parents=True, exist_ok=True)
            Path(block.rest).write_text(block.text)
        elif block.kind == "python":
            printed = _execute(block, main, page)
        elif block.kind == "output":
            if not fits(block.text, printed):
                _stop(page, block.line, f"the Python block before it printed:\n{printed}")
        elif block.kind == "console":
            for step in steps_of(block):
                _type(step, page, environ)


def _execute(block: Block, main: ModuleType, page: Path) -> str:
    assert main.__file__ is not None
    script = Path(main.__file__)
    known = script.read_text().splitlines() if script.exists() else []
    known += [""] * (block.line - 1 - len(known))
    script.write_text("\n".join(known) + "\n" + block.text)
    source = "\n" * (block.line - 1) + block.text
    out = io.StringIO()
    try:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, script, "exec", flags=flags, dont_inherit=True)
        with contextlib.redirect_stdout(out):
            result = eval(code, vars(main))
            if inspect.iscoroutine(result):
                asyncio.run(result)
    except BaseException:
        _stop(page, block.line, f"{out.getvalue()}{traceback.format_exc()}")
    return out.getvalue()


def _type(step: Step, page: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", step.command],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        env=environ,
    )
    if done.returncode != step.code:
        told = f"exited {done.returncode}, not {step.code}"
        _stop(page, step.line, f"$ {step.command}\n{told}:\n{done.stdout}")
    if step.expected is not None and not fits(step.expected, done.stdout):
        _stop(page, step.line, f"$ {step.command}\nprinted:\n{done.stdout}")


def _stop(page: Path, line: int, message: str) -> NoReturn:
    sys.exit(f"{page.name}:{line}: not as the page says\n{message}")


if __name__ == "__main__":
    sys.path[0] = str(HERE)
    from page import Block, Step, blocks_of, fits, steps_of

    driver = sys.modules["__main__"]  # kept alive: its globals are ours
    sys.path[0] = str(Path.cwd())
    read(Path(sys.argv[1]))

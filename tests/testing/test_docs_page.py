"""What the page on testing shows, run as a project of its own, by several workers at once."""

from __future__ import annotations

import re

import pytest

from tests.docs.page import ROOT, blocks_of

PAGE = ROOT / "docs" / "how-to" / "testing.md"
TESTS = re.compile(r"^(?:async )?def test_", re.MULTILINE)


def test_the_tests_of_the_page_pass_in_several_workers(pytester: pytest.Pytester) -> None:
    files = {block.rest: block.text for block in blocks_of(PAGE) if block.kind == "file"}
    del files["test_histories.py"]  # its store is recorded by a command of the page
    for name, text in files.items():
        (pytester.path / name).write_text(text)
    count = sum(len(TESTS.findall(text)) for text in files.values())
    twice = len(TESTS.findall(files["test_async.py"]))  # on asyncio and on trio

    written = run_pytest(pytester, "--snapshot-update")
    written.assert_outcomes(passed=count + twice)
    goldens = list((pytester.path / "__golden__").rglob("*.trace"))
    compared = run_pytest(pytester, *{f"{golden.parent.name}.py" for golden in goldens})
    compared.stdout.fnmatch_lines([f"{len(goldens)} snapshots passed."])
    assert compared.ret == 0


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-n", "2", *arguments
    )

"""The plugin as pytest has it: what it costs, and whom it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LOADED = """
import json, sys

def pytest_sessionfinish(session):
    names = sorted(m for m in sys.modules if m.split(".")[0] in ROOMS)
    print("LOADED" + json.dumps(names))

ROOMS = ("kitchen", "store", "transitions", "sqlite_utils", "msgspec", "anyio", "rich", "numpy")
"""


def loaded(pytester: pytest.Pytester, *arguments: str) -> set[str]:
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-s", *arguments
    )
    result.assert_outcomes(passed=1)
    line = next(line for line in result.outlines if "LOADED" in line)
    return set(json.loads(line.partition("LOADED")[2]))


def test_where_it_is_not_used_it_is_one_module(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(LOADED)
    pytester.makepyfile("def test_nothing(): pass")
    with_it = loaded(pytester)
    without = loaded(pytester, "-p", "no:kitchen")
    assert with_it - without == {"kitchen", "kitchen.testing", "kitchen.testing.plugin"}


def test_golden_alone_is_what_imports_the_extension_of_syrupy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_a(kitchen_store):
            assert "kitchen.testing.golden" not in sys.modules

        def test_b(golden):
            assert "kitchen.testing.golden" in sys.modules
        """
    )
    pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest"
    ).assert_outcomes(passed=2)


def test_a_module_of_the_users_own_called_store_is_theirs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        store="SHELVES = 3",
        test_mine="""
        import store

        def test_mine():
            assert store.SHELVES == 3

        def test_told(kitchen_store):
            pass
        """,
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*not the event store that kitchen brings along*"])


def test_without_syrupy_the_rest_works_and_golden_says_what_it_needs(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        sitecustomize="""
        import sys

        sys.modules["syrupy"] = None
        """,
        test_mine="""
        def test_store(kitchen_store):
            assert kitchen_store.runs() == []

        def test_golden(golden):
            pass
        """,
    )
    pytester.syspathinsert()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:syrupy", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"],
        cwd=pytester.path,
        env={"PYTHONPATH": str(pytester.path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
             "PYTEST_PLUGINS": "kitchen.testing.plugin"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert "1 passed, 1 error" in done.stdout, done.stdout
    assert "pip install 'crucible-kitchen[test]'" in done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_test_has_a_store_of_its_own(pytester: pytest.Pytester, workers: str) -> None:
    pytester.makepyfile(
        """
        import os
        import kitchen
        import pytest

        @kitchen.workflow
        def nothing(wf):
            wf.stage("only", lambda ctx: None)

        @pytest.mark.parametrize("number", range(6))
        def test_alone(kitchen_store, number):
            run = kitchen.run(nothing, run_id="same")
            assert [info.run for info in kitchen_store.runs()] == ["same"]
            assert os.environ["KITCHEN_STORE"] == str(kitchen_store.path)
        """
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-n", workers
    )
    result.assert_outcomes(passed=6)

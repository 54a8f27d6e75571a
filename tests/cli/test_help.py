"""The help: complete, with an example each, and quick because it imports nothing."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from kitchen.cli import COMMANDS, cli


def _command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_summary_and_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example:\n" in result.output
    assert f"kitchen {name}" in result.output.partition("Example:")[2]
    assert "--store" in result.output
    assert "--debug" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_they_say_themselves(name: str) -> None:
    assert COMMANDS[name][1] == _command(name).short_help
    assert name in CliRunner().invoke(cli, ["--help"]).output


def test_what_is_listed_can_be_had_as_json() -> None:
    for name in (
        "runs", "show", "log", "state", "verify", "resume", "fork", "replay", "diff", "check", "gc",
    ):  # fmt: skip
        assert "--json" in CliRunner().invoke(cli, [name, "--help"]).output


def test_help_imports_neither_the_runner_nor_the_store_nor_rich() -> None:
    code = (
        "import sys; sys.argv = ['kitchen', '--help']\n"
        "from kitchen.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'anyio', 'rich', 'sqlite3', 'store', 'transitions', 'numpy', 'kitchen.api.running'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded: []" in done.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["rnu"])
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_the_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("kitchen ")

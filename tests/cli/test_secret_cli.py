"""Secrets on the command line: taken from it, and printed by no command."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from kitchen import Secret
from kitchen.cli import cli
from kitchen.cli.arguments import config_from
from kitchen.errors import ConfigError
from kitchen.runner import secret as secrets
from tests.cli.calling import Kitchen

VALUE = "sk-cli-0d4c7ab9e1"
_names = itertools.count()

MODULE = """
import os
import signal
import msgspec
import kitchen


class Config(msgspec.Struct):
    api_key: kitchen.Secret
    keys: list[kitchen.Secret] = []
    epochs: int = 1


def ask(ctx):
    key = ctx.config.api_key.reveal()
    if os.path.exists("dies"):
        os.unlink("dies")
        os.kill(os.getpid(), signal.SIGKILL)
    if not os.path.exists("mended"):
        raise PermissionError(f"401 for {key}")
    ctx.state["asked"] = True


@kitchen.workflow(config=Config)
def asking(wf):
    with wf.loop("epochs", over=lambda ctx: range(ctx.config.epochs)):
        wf.stage("ask", ask)


def broken(config):
    raise RuntimeError(f"cannot connect with {config.api_key.reveal()}")


@kitchen.workflow(config=Config, adapters=broken)
def unconnected(wf):
    wf.stage("ask", ask)


def look(ctx):
    ctx.state["length"] = len(ctx.config.api_key.reveal())


@kitchen.workflow
def untyped(wf):
    wf.stage("look", look)
"""


class Config(msgspec.Struct):
    api_key: Secret
    maybe: Secret | None = None
    keys: list[Secret] = []
    named: dict[str, Secret] = {}
    free: Any = None
    epochs: int = 1


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests print must not be searched for the values of these."""
    monkeypatch.setattr(secrets, "_known", secrets._Known())


@pytest.fixture
def module(kitchen: Kitchen) -> str:
    name = f"job_secret_{os.getpid()}_{next(_names)}"
    (kitchen.folder / f"{name}.py").write_text(MODULE)
    return name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"api_key={VALUE}"], Config(Secret(VALUE))),
        (["api_key=env:HOME"], Config(Secret(env="HOME"))),
        (['api_key={"type": "account"}'], Config(Secret('{"type": "account"}'))),
        (["api_key=[1]"], Config(Secret("[1]"))),
        (["api_key=a", "maybe=null"], Config(Secret("a"))),
        (["api_key=a", "maybe=b"], Config(Secret("a"), maybe=Secret("b"))),
        (["api_key=a", "keys=['b', 'env:HOME']"],
         Config(Secret("a"), keys=[Secret("b"), Secret(env="HOME")])),
        (["api_key=a", "named.x=env:HOME"], Config(Secret("a"), named={"x": Secret(env="HOME")})),
        (["api_key=a", "free=env:HOME"], Config(Secret("a"), free=Secret(env="HOME"))),
        (["api_key=a", "free='env:HOME'"], Config(Secret("a"), free="env:HOME")),
        (["api_key=a", "free=env:no-name"], Config(Secret("a"), free="env:no-name")),
    ],
)  # fmt: skip
def test_a_word_becomes_a_secret(words: list[str], expected: Config) -> None:
    assert config_from(words, Config) == expected


def test_without_a_type_a_variable_is_a_secret_and_a_text_a_text() -> None:
    config = config_from(["api_key=env:HOME", "other=sk-1", "quoted='env:HOME'"], None)
    assert config == {"api_key": Secret(env="HOME"), "other": "sk-1", "quoted": "env:HOME"}


def test_in_toml(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('api_key = "env:HOME"\nkeys = ["a-b-c-d"]\nnamed = {x = "y-y-y"}\n')
    assert config_from([str(file)], Config) == Config(
        Secret(env="HOME"), keys=[Secret("a-b-c-d")], named={"x": Secret("y-y-y")}
    )
    file.write_text('api_key = {"$secret" = "HOME"}\n')
    assert config_from([str(file)], None) == {"api_key": Secret(env="HOME")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["api_key=env:NOT_SET_HERE"], "the variable NOT_SET_HERE is not set"),
        (["api_key="], "config.api_key: a secret is an empty text"),
        ([f"api_key={VALUE}", "epochs=x"], "config.epochs: expected `int`"),
        ([f"api_key={VALUE}", f"epochs={VALUE}"], "config.epochs: expected `int`"),
        ([f"api_kee={VALUE}"], "no field 'api_kee'"),
        ([f"--api-key={VALUE}"], "'--api-key=…' is neither name=value"),
        ([f"api_key.a={VALUE}"], "config.api_key: expected a text for a secret, got a dict"),
    ],
)
def test_what_is_wrong_is_told_without_the_value(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from(words, Config)
    assert told in str(caught.value)
    assert VALUE not in str(caught.value)


def test_a_missing_one_is_told_before_a_store_is_made(kitchen: Kitchen, module: str) -> None:
    result = kitchen("run", f"{module}:asking", "api_key=env:NOT_SET_HERE", code=2)
    assert "config.api_key is a secret, and the variable NOT_SET_HERE is not set" in result.stderr
    assert not (kitchen.folder / "kitchen.db").exists()


def test_a_workflow_without_a_type(kitchen: Kitchen, module: str) -> None:
    kitchen("run", f"{module}:untyped", "api_key=env:HOME", "--id", "u", "-q")
    assert kitchen.json("state", "u") == {"length": len(os.environ["HOME"])}
    assert kitchen.json("show", "u")["config"] == {"api_key": {"$secret": "HOME"}}


def test_debug_does_not_show_it(kitchen: Kitchen, module: str) -> None:
    words = ["--debug", "run", f"{module}:unconnected", f"api_key={VALUE}"]
    result = CliRunner().invoke(cli, words, prog_name="kitchen")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: cannot connect with ***" in result.stderr
    assert VALUE not in result.output


COMMANDS = [
    ["show", "r"], ["show", "r", "--json"], ["log", "r"], ["log", "r", "--json"], ["state", "r"],
    ["runs"], ["runs", "--json"], ["verify"], ["graph", "r"],
]  # fmt: skip


@pytest.mark.slow
def test_killed_failed_and_resumed_nothing_tells_it(
    kitchen: Kitchen, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file with the values lies elsewhere, as it would."""
    other = "sk-second-5f20aa6b"

    def nothing_tells(*outputs: str) -> None:
        told = "".join(outputs) + "".join(kitchen(*words).output for words in COMMANDS)
        assert "$secret" in told
        stored = [f.read_bytes() for f in kitchen.folder.rglob("*") if f.is_file()]
        for value in (VALUE, other):
            assert value not in told
            assert not [content for content in stored if value.encode() in content]

    words = ["run", f"{module}:asking", f"api_key={VALUE}", f"keys=['{other}']", "--id", "r"]
    (kitchen.folder / "dies").touch()
    process = kitchen.start(*words)
    outputs = process.communicate(timeout=30)
    assert process.returncode == -9, outputs
    nothing_tells(*outputs)

    result = kitchen("resume", "r", code=2)
    assert (
        "config.api_key is a secret, and the variable KITCHEN_SECRET_API_KEY is not"
        in result.stderr
    )
    assert "config.keys[0] is a secret" in result.stderr
    monkeypatch.setenv("KITCHEN_SECRET_API_KEY", VALUE)
    monkeypatch.setenv("KITCHEN_SECRET_KEYS_0", other)
    process = kitchen.start("--debug", "resume", "r")
    outputs = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "PermissionError: 401 for ***" in outputs[1]
    nothing_tells(*outputs)

    (kitchen.folder / "mended").touch()
    monkeypatch.delenv("KITCHEN_SECRET_API_KEY")
    monkeypatch.delenv("KITCHEN_SECRET_KEYS_0")
    outputs = kitchen(*words, "--if-exists", "resume").output
    nothing_tells(outputs)
    assert kitchen.json("state", "r") == {"asked": True}

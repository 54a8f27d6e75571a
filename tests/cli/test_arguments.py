"""The config on the command line: `name=value` and TOML, typed and untyped."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from kitchen.cli.arguments import config_from, parse
from kitchen.errors import ConfigError


class Inner(msgspec.Struct, frozen=True):
    width: int = 8
    names: list[str] = []


class Config(msgspec.Struct):
    epochs: int = 1
    rate: float = 0.5
    on: bool = False
    text: str = ""
    kind: Literal["a", "b"] = "a"
    maybe: int | None = 3
    sizes: list[int] = []
    day: date | None = None
    inner: Inner = Inner()
    extra: dict[str, int] = {}
    free: Any = None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("epochs=3", Config(epochs=3)),
        ("rate=1e-3", Config(rate=1e-3)),
        ("rate=1", Config(rate=1.0)),
        ("on=true", Config(on=True)),
        ("text=3", Config(text="3")),
        ("text=[a]", Config(text="[a]")),
        ("text=a=b", Config(text="a=b")),
        ("text=x.toml", Config(text="x.toml")),
        ("text=", Config(text="")),
        ("kind=b", Config(kind="b")),
        ("maybe=null", Config(maybe=None)),
        ("maybe=7", Config(maybe=7)),
        ("sizes=[1, 2]", Config(sizes=[1, 2])),
        ("day=2026-01-31", Config(day=date(2026, 1, 31))),
        ("inner.width=4", Config(inner=Inner(4))),
        ('inner={"width": 4, "names": ["x"]}', Config(inner=Inner(4, ["x"]))),
        ("inner={width = 4}", Config(inner=Inner(4))),
        ("inner.names=['x', 'y']", Config(inner=Inner(8, ["x", "y"]))),
        ("extra.lr=2", Config(extra={"lr": 2})),
        ("free=[1, true]", Config(free=[1, True])),
    ],
)
def test_a_text_becomes_what_the_field_is(word: str, expected: Config) -> None:
    assert config_from([word], Config) == expected


@pytest.mark.parametrize(
    ("word", "told", "hint"),
    [
        ("epochs=three", "config.epochs: expected `int`", None),
        ("inner.width=x", "config.inner.width: expected `int`", None),
        ("sizes=[1, 'x']", "config.sizes[1]: expected `int`", None),
        ("kind=c", "config.kind: invalid enum value 'c'", None),
        ("epoch=3", "no field 'epoch'", "did you mean 'epochs'?"),
        ("inner.widht=3", "no field 'inner.widht'", "did you mean 'width'?"),
        ("epochs.a=3", "config.epochs: expected `int`, got `object`", None),
        ("epochs", "neither name=value nor a .toml file", "kitchen run"),
        ("=3", "neither name=value nor a .toml file", "kitchen run"),
        ("none.toml", "there is no file none.toml", "looked in"),
    ],
)
def test_what_does_not_fit_is_named(word: str, told: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from([word], Config)
    assert told in caught.value.message
    assert hint is None or (caught.value.hint is not None and hint in caught.value.hint)


def test_later_words_win_and_the_file_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("epochs = 5\nrate = 0.25\n[inner]\nwidth = 2\nnames = ['x']\n")
    words = ["inner.width=3", str(file), "rate=1", "rate=2"]
    assert config_from(words, Config) == Config(5, 2.0, inner=Inner(3, ["x"]))
    assert dict(config_from(words, None)) == {
        "epochs": 5,
        "rate": 2,
        "inner": {"width": 3, "names": ["x"]},
    }


def test_nested_names_in_a_file_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[inner]\nwidht = 2\n")
    with pytest.raises(ConfigError, match=r"no field 'inner\.widht'"):
        config_from([str(tmp_path / "c.toml")], Config)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"epochs = = 3", "not valid TOML"), (b"\xff\xfe", "not valid TOML")],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=told) as caught:
        config_from([str(file)], Config)
    assert str(file) in caught.value.message


def test_a_folder_and_two_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        config_from([str(tmp_path / "c.toml")], None)
    with pytest.raises(ConfigError, match="one config file is taken"):
        config_from(["a.toml", "b.toml"], None)


def test_a_name_is_a_value_or_a_table() -> None:
    with pytest.raises(ConfigError, match=r"a\.b is given, and a is a value already"):
        config_from(["a=1", "a.b=2"], None)
    with pytest.raises(ConfigError, match="a is given a value, and it is a table already"):
        config_from(["a.b=2", "a=1"], None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1_000", 1000),
        ("-1e-3", -1e-3),
        ("true", True),
        ("null", None),
        ("inf", float("inf")),
        ("hello world", "hello world"),
        ('"3"', "3"),
        ("'3'", "3"),
        ("[1, 'x']", [1, "x"]),
        ('{"a": 1}', {"a": 1}),
        ("{a = 1}", {"a": 1}),
        ("2026-01-31", date(2026, 1, 31)),
        ("1\nother = 2", "1\nother = 2"),
        ("[1", "[1"),
        ("", ""),
    ],
)
def test_a_value_without_a_type(text: str, value: object) -> None:
    found = parse(text)
    assert found == value
    assert type(found) is type(value)

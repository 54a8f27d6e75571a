"""Config: converted, checked, recorded with its defaults, and the same object on every resume.

What is wrong is refused before the first event, with the path of the field.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import kitchen
from kitchen.history.history import History
from store import MemoryStore
from tests.runner.running import Dying, Killed, done, failure, single


class Optimiser(msgspec.Struct):
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Kind(enum.Enum):
    SGD = "sgd"
    ADAM = "adam"


class Config(msgspec.Struct):
    epochs: int = 3
    optimiser: Optimiser = msgspec.field(default_factory=Optimiser)
    kind: Kind = Kind.ADAM
    layers: list[int] = []


@dataclasses.dataclass
class Plain:
    epochs: int
    name: str = "n"


class Exotic(msgspec.Struct):
    nan: float = math.nan
    inf: float = -math.inf
    key: bytes = b"\xff\x00"
    at: dt.datetime = dt.datetime(2026, 1, 31, 3, tzinfo=dt.UTC)
    day: dt.date = dt.date(2026, 1, 31)
    big: int = 2**62
    maybe: float | None = None


def seen(given: Any = None, **declared: Any) -> Any:
    """The config as a stage sees it."""
    found: list[Any] = []
    done(single(lambda ctx: found.append(ctx.config), **declared), given)
    return found[0]


def test_a_struct_a_mapping_and_nothing() -> None:
    assert seen(config=Config) == Config()
    assert seen({"epochs": 5}, config=Config) == Config(epochs=5)
    assert seen({"optimiser": {"rate": 0.5}}, config=Config).optimiser == Optimiser(0.5)
    assert seen(Config(kind=Kind.SGD, layers=[1]), config=Config) == Config(
        kind=Kind.SGD, layers=[1]
    )


def test_a_dataclass() -> None:
    assert seen({"epochs": 2}, config=Plain) == Plain(2)
    assert seen(Plain(2, "m"), config=Plain) == Plain(2, "m")


def test_a_mapping_reads_by_attribute() -> None:
    config = seen({"epochs": 3, "optimiser": {"rate": 0.5}, "xs": [1, {"a": 2}]})
    assert config.epochs == config["epochs"] == 3
    assert config.optimiser.rate == 0.5
    assert config == {"epochs": 3, "optimiser": {"rate": 0.5}, "xs": [1, {"a": 2}]}
    assert sorted(config) == ["epochs", "optimiser", "xs"]


def test_defaults_are_materialised_in_the_log() -> None:
    store = MemoryStore()
    done(single(lambda ctx: None, config=Config), {"epochs": 9}, store=store)
    assert History(store, "r").config == {
        "epochs": 9,
        "optimiser": {"rate": 1e-3, "betas": (0.9, 0.999)},
        "kind": "adam",
        "layers": [],
    }


@pytest.mark.parametrize("declared", [Exotic, None])
def test_values_that_json_has_no_word_for(declared: Any) -> None:
    die = Dying(0)
    found: list[Any] = []

    def body(ctx: Any) -> None:
        found.append(ctx.config)
        die()

    given = None if declared else {"nan": math.nan, "key": b"\xff", "t": (1, 2), "at": Exotic().at}
    workflow, store = single(body, config=declared), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, given, store=store)
    run = kitchen.resume("r", workflow, store=store)
    live, again = found
    assert math.isnan(live.nan)
    assert repr(live) == repr(again) == repr(run.config)
    # the same config is the same, NaN or not
    same = kitchen.run(workflow, given, store=store, run_id="r", if_exists="resume")
    assert same.status == "completed"


def refused(given: Any, declared: Any) -> str:
    store = MemoryStore()
    with pytest.raises(kitchen.ConfigError) as caught:
        done(single(lambda ctx: None, config=declared), given, store=store)
    assert store.runs() == [], "nothing was begun"
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "declared", "said"),
    [
        ({"epochs": "three"}, Config, "config.epochs: expected `int`, got `str`"),
        ({"optimiser": {"rate": "x"}}, Config, "config.optimiser.rate: expected `float`"),
        ({"layers": [1, None]}, Config, "config.layers[1]: expected `int`, got `null`"),
        ({"kind": "rmsprop"}, Config, "config.kind: invalid enum value"),
        ({"epoch": 1}, Config, "the config has no field 'epoch'\n  hint: did you mean 'epochs'?"),
        ({}, Plain, "missing required field `epochs`"),
        (3, Config, "the config is a int; expected Config or a mapping"),
        (Config(), None, "declares no config type"),
        ({"x": object()}, None, "config['x']"),
        ({"x": np.arange(3)}, None, "does not belong into a config"),
        ({"x": "y" * 70_000}, None, "larger than 64 KiB"),
        ({"x": b"y" * 70_000}, None, "larger than 64 KiB"),
    ],
)
def test_what_is_wrong_is_named_before_anything_ran(given: Any, declared: Any, said: str) -> None:
    assert said in refused(given, declared)


def test_a_type_that_does_not_come_back_is_refused_at_the_start() -> None:
    class Where(msgspec.Struct):
        path: Any = None

    assert "config" in refused(Where(Path("/tmp")), Where)


@pytest.mark.parametrize(
    ("given", "declared", "change"),
    [
        (None, Config, lambda config: setattr(config, "epochs", 4)),
        (None, Config, lambda config: config.layers.append(4)),
        (None, Config, lambda config: setattr(config.optimiser, "rate", 4.0)),
        ({"epochs": 1}, Plain, lambda config: setattr(config, "epochs", 4)),
        ({"xs": [1]}, None, lambda config: config.xs.append(2)),
        ({"a": {"b": [1]}}, None, lambda config: config.a.b.append(2)),
        ({"a": 1}, None, lambda config: setattr(config, "a", 2)),
        ({"a": {"b": 1}}, None, lambda config: setattr(config.a, "b", 2)),
    ],
)
def test_the_config_cannot_be_changed(given: Any, declared: Any, change: Any) -> None:
    told = failure(single(lambda ctx: change(ctx.config), config=declared), given)
    assert "config" in f"{told.message} {told.hint}"


def test_what_the_caller_keeps_is_not_the_config() -> None:
    given = {"xs": [1], "deep": {"a": 1}}

    def body(ctx: Any) -> None:
        given["xs"].append(2)  # type: ignore[attr-defined]
        given["deep"]["a"] = 9  # type: ignore[index, call-overload]
        assert ctx.config == {"xs": [1], "deep": {"a": 1}}

    assert done(single(body), given).status == "completed"


def test_an_unknown_entry_says_what_is_near() -> None:
    told = failure(single(lambda ctx: ctx.config.epoch), {"epochs": 1})
    assert (told.type, told.hint) == ("UnknownKey", "did you mean 'epochs'?")


def test_a_predicate_may_not_change_it_either() -> None:
    def build(wf: Any) -> None:
        with wf.conditional(lambda ctx: ctx.config.layers.append(1) or True, name="asks"):
            wf.stage("s", lambda ctx: None)

    told = failure(kitchen.workflow(config=Config, name="w")(build))
    assert told.message == "the config was changed in place"


def test_options_are_read_like_a_config() -> None:
    found: list[Any] = []

    def body(ctx: Any) -> None:
        found.append((ctx.options.scale, ctx.options["deep"]["a"], ctx.options.get("no", 1)))
        _ = ctx.options.scal

    told = failure(single(body, options={"scale": 0.5, "deep": {"a": [1]}}))
    assert found == [(0.5, [1], 1)]
    assert told.type == "UnknownKey"
    assert told.hint == "did you mean 'scale'?"


class Model(msgspec.Struct):
    width: int = 8


class Nested(msgspec.Struct):
    model: Model = msgspec.field(default_factory=Model)


def test_unknown_names_are_found_in_nested_types_too() -> None:
    with pytest.raises(kitchen.ConfigError, match=r"(?s)no field 'model.widht'.*'width'"):
        done(single(lambda ctx: None, config=Nested), {"model": {"widht": 3}})


def test_a_type_that_cannot_be_resolved_is_told() -> None:
    class Local(msgspec.Struct):
        value: int = 1

    class Lost(msgspec.Struct):
        local: Local | None = None

    with pytest.raises(kitchen.WorkflowError, match=r"annotations of .*Lost do not resolve"):
        done(single(lambda ctx: None, config=Lost))
    with pytest.raises(kitchen.UnencodableValue, match=r"annotations of .*Lost do not resolve"):
        done(single(lambda ctx: None, state=Lost))

"""`kitchen golden`: what it writes is a test that passes on the same code and fails on other code."""

from __future__ import annotations

import ast
import datetime as dt
import decimal
import fractions
import importlib
import math
import os
import random
import re
import subprocess
import sys
import uuid
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kitchen as library
from kitchen.api.golden import golden_test
from kitchen.api.literals import WIDTH, Literals, laid
from kitchen.cli.inert import inert
from kitchen.errors import ConfigError, KitchenError
from kitchen.history.golden import Telling
from kitchen.machine.codec import Codec
from kitchen.machine.events import RunStarted, from_json, to_json
from kitchen.workflow.definition import Locator
from store import open_store
from store.records import NewEvent
from tests.cli import troubled
from tests.cli.calling import Kitchen
from tests.history.hostile import bases, changed_log
from tests.runner.running import ROOT

PROJECT = """
import msgspec

import kitchen
from kitchen import Retry, Secret


class Model(msgspec.Struct, frozen=True):
    width: int = 8
    tags: frozenset[str] = frozenset()


class Config(msgspec.Struct):
    epochs: int = 2
    rate: float = 0.5
    data: bytes = b"\\x00"
    model: Model = Model()
    api_key: Secret = Secret(env="JUDGE_KEY")


def load(ctx):
    ctx.state["told"] = f"the key has {len(ctx.config.api_key.reveal()) > 3}"


def step(ctx):
    ctx.increment("total", ctx.rng.random() * ctx.config.rate)
    ctx.record_metric("loss", 1 / ctx.state["total"], step=ctx.index())


def flaky(ctx):
    if ctx.attempt == 1:
        raise ConnectionError("the service is away")
    ctx.state["id"] = ctx.run_id


def bad(ctx):
    if ctx.config.epochs == 3:
        raise ValueError(f"{__file__} does not know {ctx.config.api_key.reveal()}")


@kitchen.workflow(config=Config)
def training(wf):
    wf.stage("load", load)
    with wf.loop("epochs", over=lambda ctx: range(ctx.config.epochs)):
        wf.stage("step", step)
    wf.stage("flaky", flaky, retries=Retry(1, backoff=3_600, max_delay=3_600))
    wf.stage("bad", bad)
"""


class Project:
    """A folder with a workflow in `train.py`, where commands run in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(PROJECT)

    def write(self, source: str) -> None:
        (self.folder / "train.py").write_text(source)

    def __call__(self, *words: str, code: int = 0, **environment: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KITCHEN_", "PYTEST_"))}
        path = f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}"
        done = subprocess.run(
            [sys.executable, "-B", "-m", *words], cwd=self.folder, check=False, text=True,
            env={**kept, "PYTHONPATH": path, "NO_COLOR": "1", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def pytest(self, *words: str, code: int = 0) -> str:
        return self(
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
            "tests",
            *words,
            code=code,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_run_of_production_becomes_a_test(project: Project) -> None:
    key: dict[str, Any] = {"JUDGE_KEY": "sk-abcdefgh-4711"}
    # What failed once, for real, is not waited for again: here only the virtual clock can.
    quick = PROJECT.replace("backoff=3_600, max_delay=3_600", "backoff=0.001")
    project.write(quick)
    project("kitchen", "run", "train:training", "--id", "first", "--seed", "7", "-q", **key)
    told = project("kitchen", "golden", "first", "-o", "tests/test_training.py")
    assert told == (
        "wrote tests/test_training.py\n"
        "wrote tests/__golden__/test_training/test_first.trace\n"
        "to run it: python -m pytest tests/test_training.py\n"
    )
    source = (project.folder / "tests/test_training.py").read_text()
    title, _, rest = source.partition("\n\n")
    day = r"\d{4}-\d\d-\d\d"
    told = rf"The run 'first' of train:training, recorded {day}, as a test\. Made by `kitchen golden`\."
    assert re.fullmatch(f'"""{told}"""', title)
    assert rest == (
        "import kitchen\n"
        "\n"
        "from train import training\n"
        "\n"
        "CONFIG = {\n"
        '    "epochs": 2,\n'
        '    "rate": 0.5,\n'
        '    "data": b"\\x00",\n'
        '    "model": {"width": 8, "tags": []},\n'
        '    "api_key": kitchen.Secret(env="JUDGE_KEY"),\n'
        "}\n"
        "SEED = 7\n"
        "\n"
        "\n"
        "def test_first(run_workflow, golden, virtual_clock, monkeypatch):\n"
        "    # Neither the log nor the trace has a secret: any text that the code takes will do.\n"
        '    monkeypatch.setenv("JUDGE_KEY", "not the real one")\n'
        "    # The run waited before some attempts; on this clock that passes at once.\n"
        "    run = run_workflow("
        'training, CONFIG, seed=SEED, run_id="first", clock=virtual_clock)\n'
        "    assert run == golden\n"
    )
    written = [
        path.read_text() for path in (project.folder / "tests").rglob("*.*") if path.is_file()
    ]
    assert len(written) == 2
    assert not [text for text in written if "sk-abcdefgh" in text or str(project.folder) in text]
    assert "1 passed" in project.pytest()
    project.write(PROJECT)  # an hour between the attempts
    assert "1 passed" in project.pytest()
    project.write(PROJECT.replace("1 / ctx", "2 / ctx"))
    failed = project.pytest(code=1)
    assert "the first difference is in line" in failed
    assert "epochs[0]/step: metric loss" in failed
    project.pytest("--snapshot-update")
    assert "1 passed" in project.pytest()


def test_a_failed_run_becomes_a_test_that_expects_it(project: Project) -> None:
    source = PROJECT.replace("raise ConnectionError", "return ConnectionError")
    project.write(source)
    key: dict[str, Any] = {"JUDGE_KEY": "sk-abcdefgh-4711"}
    run = ("kitchen", "run", "train:training", "epochs=3", "-q")
    project(*run, code=1, **key)
    (line,) = project("kitchen", "runs").splitlines()[1:]
    project(
        "kitchen", "golden", line.split()[0], "-o", "tests", "--name", "known", "--level", "state"
    )
    (module,) = (project.folder / "tests").glob("*.py")
    assert re.fullmatch(r"test_training_\d{8}_\d{6}_\w{8}", module.stem)
    assert module.read_text().endswith(
        "    with pytest.raises(kitchen.RunError) as failed:\n"
        "        run_workflow(training, CONFIG, seed=SEED)\n"
        '    assert failed.value.run == golden(level="state")\n'
    )
    trace = (project.folder / "tests/__golden__" / module.stem / "test_known.trace").read_text()
    assert trace.endswith("run failed at bad: ValueError: <root>/train.py does not know ***\n")
    assert "1 passed" in project.pytest()
    project.write(source.replace("does not know", "cannot open"))
    assert "cannot open" in project.pytest(code=1)


def test_a_run_that_was_killed_and_resumed_makes_the_test_of_one_that_was_not(
    kitchen: Kitchen,
) -> None:
    from tests.cli.calling import kill

    kill(kitchen.slow_run("one"))
    kitchen("golden", "one", "-o", "tests", code=2)
    Path("slow").unlink()
    kitchen("resume", "one")
    kitchen("run", kitchen.target, "epochs=4", "batches=20", "--id", "two")
    for run in ("one", "two"):
        kitchen("golden", run, "-o", "tests", "--name", "same")
    traces = [path.read_bytes() for path in Path("tests/__golden__").rglob("*.trace")]
    assert len(traces) == 2
    assert traces[0] == traces[1]
    told = kitchen("golden", "one", "-o", "t", "--life", code=2).stderr
    assert "has a RunResumed" in told
    assert not Path("t").exists()


def test_what_is_told_is_chosen(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    words = ("--level", "events", "--round", "3", "--include", "state.n", "--include", "metric.*")
    words += ("--exclude", "config.*", "--exclude", "epochs/save", "--life")
    kitchen("golden", "one", "-o", "tests/test_it.py", *words)
    source = Path("tests/test_it.py").read_text()
    assert source.endswith(
        "    assert run == golden(\n"
        '        include=["state.n", "metric.*"],\n'
        '        exclude=["config.*", "epochs/save"],\n'
        "        round=3,\n"
        "        life=True,\n"
        "    )\n"
    )
    assert '"epochs": 2' in source
    trace = Path("tests/__golden__/test_it/test_one.trace").read_text()
    assert "config." not in trace
    assert "raw" not in trace
    assert "save" not in trace
    assert "step: n = 6" in trace
    assert (
        "fits no node" in kitchen("golden", "one", "-o", "t", "--exclude", "epoch", code=2).stderr
    )
    kitchen("golden", "one", "-o", "t", "--level", "nothing", code=2)
    kitchen("golden", "one", "-o", "t", "--round", "0", code=2)
    assert not Path("t").exists()


def test_what_is_there_is_left_unless_it_is_forced(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    kitchen("golden", "one", "-o", "tests/test_it.py")
    module, trace = Path("tests/test_it.py"), Path("tests/__golden__/test_it/test_one.trace")
    whole = module.read_text(), trace.read_text()
    module.write_text("mine")
    told = kitchen("golden", "one", "-o", "tests/test_it.py", code=2).stderr
    assert f"{trace} and {module} exists already" in told
    trace.write_text("mine too")
    module.unlink()
    kitchen("golden", "one", "-o", "tests/test_it.py", code=2)
    assert trace.read_text() == "mine too"
    assert not module.exists()
    kitchen("golden", "one", "-o", "tests/test_it.py", "--force")
    assert (module.read_text(), trace.read_text()) == whole
    assert sorted(p.name for p in Path("tests").iterdir()) == ["__golden__", "test_it.py"]


def test_what_cannot_be_written_leaves_nothing(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    Path("file").touch()
    told = kitchen("golden", "one", "-o", "file/test_it.py", code=2).stderr
    assert "the test cannot be written" in told
    Path("tests/__golden__/test_it/test_one.trace").mkdir(parents=True)
    told = kitchen("golden", "one", "-o", "tests/test_it.py", "--force", code=2).stderr
    assert "it is a folder" in told
    assert [p.name for p in Path("tests").iterdir()] == ["__golden__"]
    kitchen("golden", "one", "-o", "tests", "--name", "x" * 300, code=2)
    assert [p.name for p in Path("tests").iterdir()] == ["__golden__"]


@pytest.mark.parametrize("name", ["a b", "1 2", "x()", "größe", "a.b", "x\ny"])
def test_a_name_that_is_none(kitchen: Kitchen, name: str) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    assert (
        "is no name for a test"
        in kitchen("golden", "one", "-o", "t", "--name", name, code=2).stderr
    )
    assert not Path("t").exists()


def test_what_pytest_does_not_collect_is_said(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    assert "note: pytest collects test_*.py" in kitchen("golden", "one", "-o", "tests/it.py").stdout


# --- which runs make no test ----------------------------------------------------------------------


def refused(kitchen: Kitchen, run: str) -> str:
    told = kitchen("golden", run, "-o", "t", "--store", "kitchen.db", code=2).stderr
    assert not Path("t").exists()
    return told


def test_runs_that_have_not_come_to_their_end(kitchen: Kitchen) -> None:
    module = troubled.write(kitchen)
    Path("dies").touch()
    process = kitchen.start("run", f"{module}:pushing", "--id", "undecided", "-q")
    process.communicate()
    told = refused(kitchen, "undecided")
    assert "has not ended: it is undecided" in told
    assert "kitchen show undecided --store kitchen.db" in told
    kitchen("cancel", "undecided")
    assert "was cancelled" in refused(kitchen, "undecided")
    kitchen("run", kitchen.target, "--id", "one")
    kitchen("fork", "one", "--id", "two")
    told = refused(kitchen, "two")
    assert "it is forked" in told
    assert "kitchen resume two --store kitchen.db" in told
    kitchen("resume", "two")
    kitchen("golden", "two", "-o", "tests")  # nothing was edited: a fresh run does the same
    assert "no run 'three'" in refused(kitchen, "three")


def test_runs_that_went_another_way(kitchen: Kitchen) -> None:
    for run in ("one", "two"):
        kitchen("run", kitchen.target, "--id", run)
    kitchen("resume", "one", "--at", "20")
    assert "it was sent back, to go another way" in refused(kitchen, "one")
    kitchen("fork", "two", "--at", "20", "rate=0.3", "--id", "edited", "--run")
    assert "was edited on the way" in refused(kitchen, "edited")
    kitchen("fork", "two", "--at", "20", "--id", "other")
    kitchen("resume", "other", "--workflow", kitchen.variant(('"save"', '"keep"')))
    assert "its workflow changed on the way" in refused(kitchen, "other")
    kitchen("golden", "two", "-o", "tests")


def test_decisions_of_somebody(kitchen: Kitchen) -> None:
    module = troubled.write(kitchen)
    for run, choice in (("kept", "retry"), ("gone", "skip")):
        Path("dies").touch()
        kitchen.start("run", f"{module}:pushing", "--id", run, "-q").communicate()
        kitchen("resume", run, "--decide", f"e[0]/push={choice}", "-q")
    assert "a stage was skipped" in refused(kitchen, "gone")
    kitchen("golden", "kept", "-o", "tests/test_it.py")
    source = Path("tests/test_it.py").read_text()
    assert "    # that must not be, give fakes, adapters={…}: 'e/push'\n    run = run_w" in source


def test_a_run_that_did_something_else_when_it_ran_again(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    with open_store("kitchen.db") as store:
        news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in store.read("one")]
        news.insert(-1, NewEvent("RunRewound", "", (), 0, f'{{"to":{len(news) - 1}}}'))
        news.insert(-1, NewEvent("RewindDiverged", "epochs/save", (0,), 0, '{"key":"n"}'))
        store.create_run("two", "training", news)
    told = kitchen("golden", "two", "-o", "tests").stdout
    assert "it did something else (event" in told


# --- where the code is ----------------------------------------------------------------------------


def relocated(kitchen: Kitchen, **locators: Locator | None) -> None:
    """The same run, with other locators in its log."""
    kitchen("run", kitchen.target, "--id", "one")
    with open_store("kitchen.db") as store:
        records = list(store.read("one"))
        for run, locator in locators.items():
            begun = from_json("RunStarted", records[0].payload)
            assert isinstance(begun, RunStarted)
            begun = msgspec.structs.replace(begun, locator=locator)
            news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in records]
            news[0] = news[0]._replace(payload=to_json(begun))
            store.create_run(run, "training", news)


INJECTED = (
    Locator("os; import evil", "w", ""), Locator("", "w", ""), Locator(".evil", "w", ""),
    Locator("evil", "", ""), Locator("evil", "w()", ""), Locator("evil\nimport os", "w", ""),
    Locator("evil", "w as x\nimport os #", ""), Locator("evil", "f.<locals>.w", ""),
    Locator("evil.py", "w", ""), Locator("/tmp/evil.py", "w", ""), Locator("class", "w", ""),
    Locator("evil", "None", ""), Locator("evil", "\ufb01", ""), Locator("evil", '"""', ""),
    Locator("__main__", "w", "a\nb.py"), Locator("__main__", "w", ""), None,
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(INJECTED)))
def test_a_locator_that_is_no_name_is_refused(kitchen: Kitchen, number: int) -> None:
    relocated(kitchen, two=INJECTED[number])
    told = refused(kitchen, "two")
    assert "does not say where a test could import its workflow" in told
    assert "--workflow module:name" in told
    kitchen("golden", "two", "-o", "tests/test_it.py", "--workflow", "train.flows:training")
    assert "\nfrom train.flows import training\n" in Path("tests/test_it.py").read_text()


def test_scripts_and_names_that_are_taken(kitchen: Kitchen) -> None:
    relocated(
        kitchen,
        script=Locator("__main__", "training", "/home/u/train.py"),
        nested=Locator("train", "Flows.training", ""),
        taken=Locator("train", "golden", ""),
        collected=Locator("train", "testing", ""),
    )
    assert "--workflow train:training" in refused(kitchen, "script")
    for run, line, call in (
        ("nested", "from train import Flows", "run_workflow(Flows.training, "),
        ("taken", "from train import golden as workflow", "run_workflow(workflow, "),
        ("collected", "from train import testing as workflow", "run_workflow(workflow, "),
    ):
        kitchen("golden", run, "-o", f"tests/test_{run}.py")
        source = Path(f"tests/test_{run}.py").read_text()
        assert line in source.splitlines()
        assert call in source
    for wrong in ("train", "train.py:training", "a b:c", ":c", "a:"):
        told = kitchen("golden", "script", "-o", "t", "--workflow", wrong, code=2).stderr
        assert "nothing that a test could import" in told


def test_the_code_is_not_imported(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    (kitchen.folder / f"{kitchen.module}.py").write_text("raise SystemExit('imported')")
    sys.modules.pop(kitchen.module)
    kitchen("golden", "one", "-o", "tests")
    assert kitchen.module not in sys.modules


def test_paths_of_the_machine_that_it_ran_on(kitchen: Kitchen) -> None:
    """They stand for the project there, as pytest's root does here, unless the config has them."""
    Path("pyproject.toml").touch()
    Path("src").mkdir()
    Path("src/train.py").touch()
    there = Locator("train", "training", "/srv/job 7/src/train.py")
    relocated(kitchen, other=there, named=there)
    assert golden_test("other", "tests").trace == golden_test("one", "tests").trace
    changed = '"label":"/srv/job 7/x"'
    with open_store("kitchen.db") as store:
        for run, old in (("made", '"the path"'), ("given", '"label":null')):
            kept = [
                NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in store.read("other")
            ]
            if run == "given":
                kept[0] = kept[0]._replace(payload=kept[0].payload.replace(old, changed))
            store.create_run(run, "training", kept)
    assert "config.label = '/srv/job 7/x'" in golden_test("given", "tests").trace


# --- values ---------------------------------------------------------------------------------------

atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=6)
    | st.complex_numbers() | st.decimals(allow_nan=False) | st.fractions() | st.uuids() | st.dates() | st.timedeltas()
    | st.datetimes(timezones=st.none() | st.timezones() | st.just(dt.timezone(dt.timedelta(hours=2), 'a"b\n')))
    | st.times() | st.builds(range, st.integers(), st.integers(), st.integers(1, 9))
    | st.sampled_from(["\u202e", "\ud800", '"""', "'\"", "\\", "\r\n\x1b", -0.0, math.inf])
)  # fmt: skip
hashable = atoms | st.tuples(atoms, atoms) | st.frozensets(atoms, max_size=3)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner) | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


def evaluated(value: Any, indent: int = 0) -> Any:
    literals = Literals()
    text = laid(literals.code(value, "value"), indent)
    assert inert(text) == text
    names = {name: importlib.import_module(name) for name in literals.imports}
    return eval(compile(ast.parse(text, mode="eval"), "<value>", "eval"), names)


@settings(max_examples=400, deadline=None)
@given(values)
@example(
    [2**5000, -(2**5000), range(2**5000), decimal.Decimal("sNaN12"), -math.nan, {(): {}}, (1,)]
)
def test_a_value_is_written_as_the_code_that_makes_it(value: Any) -> None:
    made = evaluated(value)
    assert type(made) is type(value)
    # Its encoding tells types, signs of zero and time zones too; of NaN only that it is one.
    one, other = (
        re.sub(rb'"nan:[0-9a-f]+"', b'"nan"', Codec().encode(v).json) for v in (made, value)
    )
    assert one == other


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abc'", max_size=20), st.lists(st.integers(-9, 99), max_size=30)))
def test_code_is_laid_out_within_a_line(value: dict[str, list[int]]) -> None:
    literals = Literals()
    lines = laid(literals.code(value, "value"), used=9).splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert evaluated(value) == value


def test_numbers_of_numpy() -> None:
    for value in (np.float64(0.1), np.float32(1.5), np.int8(-3), np.bool_(True), np.complex64(1j)):
        made = evaluated(value)
        assert type(made) is type(value)
        assert made == value
    assert math.isnan(evaluated(np.float16("nan")))


class Layer(msgspec.Struct):
    size: int = 1


@pytest.mark.parametrize(
    "value",
    [np.arange(3), np.zeros(1), np.array(5), np.datetime64("2026-01-01"), np.str_("x"), Layer(), object(), len],
)  # fmt: skip
def test_values_that_have_no_code_are_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r'config\.layers\["a b"\]\[1\] cannot be written'):
        Literals().code({"layers": {"a b": [1, value]}}, "config")


def test_configs_without_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a config may hold, the test has, and a run of it has an equal one."""
    monkeypatch.chdir(tmp_path)

    @library.workflow(name="w")
    def flow(wf: Any) -> None:
        wf.stage("s", lambda ctx: None)

    config = {
        "sizes": (1, 2), "names": {"a", "b"}, "none": set[int](), "low": float("-inf"), "nan": math.nan,
        "day": dt.date(2026, 1, 2), "price": decimal.Decimal("1.50"), "half": fractions.Fraction(1, 2),
        "id": uuid.UUID(int=5), "at": dt.datetime(2026, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        "by": {1: [{"deep": b"x"}]}, "rate": np.float32(0.5), "keys": [library.Secret("sk-aaaa-1234")],
        "$": "odd", "quotes": '"""\'\'\'\\',
    }  # fmt: skip
    run = library.run(flow, config, store="kitchen.db", run_id="r")
    made = golden_test("r", "tests", workflow="train:flow", store="kitchen.db")
    assert "sk-aaaa" not in made.source + made.trace
    assert 'monkeypatch.setenv("KITCHEN_SECRET_KEYS_0", "not the real one")' in made.source
    tree = ast.parse(made.source)
    kept: list[ast.stmt] = [n for n in tree.body if isinstance(n, ast.Import | ast.Assign)]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(kept, []), "<test>", "exec"), names)
    monkeypatch.setenv("KITCHEN_SECRET_KEYS_0", "not the real one")
    again = library.run(flow, names["CONFIG"], store="kitchen.db", seed=names["SEED"])
    assert again.config.keys() == run.config.keys()
    assert str(again.config) == str(run.config)


# --- logs of somebody else ------------------------------------------------------------------------


def shapes(source: str) -> Iterator[str]:
    """The statements of a module, by kind."""
    for node in ast.parse(source).body:
        yield type(node).__name__


def test_nothing_of_a_log_becomes_code(kitchen: Kitchen) -> None:
    evil = '"""\nimport os\nos.system("x")\n"""\'\'\'\\'
    kitchen("run", kitchen.target, "--id", "one", f"label={evil}", 'names=["{1}", "\\u202e"]')
    with open_store("kitchen.db") as store:
        news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in store.read("one")]
        store.create_run(f"two{evil}", evil, news)
        store.create_run("x" * 100_000, "w", news)
    for run in ("one", "two", "xxx"):
        told = kitchen("golden", run, "-o", f"tests/test_{run}.py").stdout
        assert "\x1b" not in told
        source = Path(f"tests/test_{run}.py").read_text()
        kinds = ["Expr", "ImportFrom", "Assign", "Assign", "FunctionDef"]
        assert list(shapes(source)) == kinds, source
        assert "\u202e" not in source
        function = ast.parse(source).body[-1]
        assert isinstance(function, ast.FunctionDef)
        assert [type(n).__name__ for n in function.body] == ["Assign", "Assert"]
    kitchen("golden", "two", "-o", "tests")
    assert len(list(Path("tests").glob("test_*.py"))) == 4


def test_logs_that_were_changed(kitchen: Kitchen) -> None:
    rng = random.Random(11)
    made = 0
    with open_store("kitchen.db") as store:
        for base in bases():
            for digest in base.store.blobs.digests():
                store.blobs.put(base.store.blobs.get(digest))
        for number in range(150):
            log, _ = changed_log(rng, rng.choice(bases()))
            news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in log.read("r")]
            store.create_run(f"run{number:03}", "w", news)
        for number in range(150):
            try:
                test = golden_test(
                    f"run{number:03}",
                    "tests",
                    store=store,
                    workflow="train:w",
                    telling=Telling("state"),
                )
            except KitchenError:
                continue
            made += 1
            assert set(shapes(test.source)) <= {
                "Expr",
                "Import",
                "ImportFrom",
                "Assign",
                "FunctionDef",
            }
    assert made > 20

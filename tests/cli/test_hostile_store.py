"""A store made by somebody else, at the command line: nothing of it is run, and no terminal obeys it."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import kitchen as library
from kitchen.cli import cli
from kitchen.cli.inert import inert
from kitchen.runner.locate import recorded_workflow
from kitchen.workflow.definition import Locator
from store import open_store
from store.records import NewEvent
from tests.cli.calling import Kitchen
from tests.history.hostile import bases, changed_columns, changed_log
from tests.runner.running import ROOT

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPE = "\x1b]0;owned\x07\x9b31m\u202e\r"
COMMANDS = (
    ["show"], ["show", "--json"], ["log"], ["log", "--json"], ["state"], ["state", "--json"],
    ["state", "--at", "9"], ["graph"], ["graph", "--format", "tree"], ["verify"], ["verify", "--json"],
    ["show", "--tree"], ["show", "--tree", "--json"], ["trace"], ["trace", "--level", "state"],
    ["replay"], ["replay", "--json"],
)  # fmt: skip


def told(*words: str) -> str:
    """What a command prints; it must end as commands do, and print nothing that is obeyed."""
    result = CliRunner().invoke(cli, list(words), prog_name="kitchen")
    assert result.exit_code in (0, 1, 2), (words, result.output, result.exception)
    assert not isinstance(result.exception, Exception), (words, result.exception)
    assert "--debug" not in result.stderr, (
        words,
        result.stderr,
    )  # the hint of what is no KitchenError
    assert not OBEYED.search(result.stdout + result.stderr), (words, result.output[:2000])
    return result.stdout + result.stderr


def test_logs_that_were_changed(kitchen: Kitchen) -> None:
    rng = random.Random(7)
    with open_store("kitchen.db") as store:
        for base in bases():
            for digest in base.store.blobs.digests():
                store.blobs.put(base.store.blobs.get(digest))
        for number in range(150):
            made, _ = changed_log(rng, rng.choice(bases()))
            news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload) for r in made.read("r")]
            store.create_run(f"run{number:03}", "w", news)
    for number in range(150):
        for words in rng.sample(COMMANDS, 4):
            told(words[0], f"run{number:03}", *words[1:])
        told(
            "diff", f"run{number:03}", f"run{rng.randrange(150):03}", *rng.choice([[], ["--json"]])
        )
    assert "run149" in told("runs", "--all")
    told("runs", "--all", "--json")
    told("runs", "--all", "--tree")


def test_columns_that_were_changed(kitchen: Kitchen) -> None:
    rng = random.Random(8)
    with open_store("kitchen.db") as store:
        for number in range(60):
            records = list(rng.choice(bases()).records)
            at = rng.randrange(len(records))
            records[at] = changed_columns(rng, records[at])
            news = [NewEvent(r.type, r.path, r.visit, r.attempt, r.payload)
                    for r in records]  # fmt: skip
            store.create_run(f"run{number:03}", "w", news)
    for number in range(60):
        for words in rng.sample(COMMANDS, 4):
            told(words[0], f"run{number:03}", *words[1:])


def test_names_that_are_written_for_a_terminal(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one", "fail_at=4", code=1)
    sealed = kitchen("log", "one", "--json").stdout
    with open_store("kitchen.db") as store:
        news = [
            NewEvent(r.type, r.path, r.visit, r.attempt,
                     r.payload.replace("the loss is gone", "x\\u001b]0;owned\\u0007\\u009b31m")
                     .replace('"loss"', '"lo\\u001b[31mss\\u202e"')
                     .replace('"raw"', '"ra\\u009bw\\u0007"')
                     .replace('"training"', '"tra\\u001bining"'))
            for r in store.read("one")
        ]  # fmt: skip
        news.append(NewEvent("StageStarted", f"epochs/{ESCAPE}", (0,), 1))
        store.create_run(f"two{ESCAPE}", f"name{ESCAPE}", news[:-1])
        store.create_run(f"three{ESCAPE}\nfour", "x" * 1_000_000, news)
    assert sealed
    for run in ("two", "three"):
        for words in COMMANDS:
            said = told(words[0], run, *words[1:])
            assert "owned" in said or words[0] != "show" or "--tree" in words
    assert "two\\u001b]0;owned" in told("runs")
    assert len(told("runs")) < 20_000
    told("runs", "--json")
    told("show", "t")  # both: they are listed


def test_inert_text_is_the_same_json() -> None:
    text = '{"a":"\x9b\u202e\ud800\x7f","b":"é\U0001f600"}'
    assert json.loads(inert(text)) == json.loads(text)
    assert not OBEYED.search(inert(text))
    assert inert("a\tb\nc é") == "a\tb\nc é"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET payload = CAST(x'7b226b6579223a22ff227d' AS TEXT) WHERE id % 5 = 0",
        "UPDATE events SET visit = '../..'",
        "UPDATE events SET visit = '²'",
        "UPDATE events SET visit = '99999999999999999999.-1'",
        "UPDATE events SET at = 9223372036854775807",
        "UPDATE events SET at = -9223372036854775808",
        "UPDATE events SET attempt = -9223372036854775808",
        "UPDATE types SET name = CAST(x'ff1b5b33316d' AS TEXT) WHERE id = 3",
        "UPDATE paths SET name = char(27) || '[31m' || char(10) || id",
        "UPDATE runs SET name = CAST(x'1b5bff' AS TEXT)",
        "UPDATE runs SET created_at = 9223372036854775807",
        "UPDATE snapshots SET body = x'5b5b5b'",
        "UPDATE snapshots SET seq = seq + 1",
        "INSERT INTO leases VALUES ('one', -1, char(27) || '[31m', 5, char(10))",
    ],
)
def test_rows_that_no_store_writes(kitchen: Kitchen, change: str) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    db = sqlite3.connect("kitchen.db")
    for (trigger,) in db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall():
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(change)
    db.commit()
    db.close()
    for words in COMMANDS:
        told(words[0], "one", *words[1:])
    told("runs")
    told("runs", "--json")


TRAP = """
import pathlib

pathlib.Path(__file__).with_name("sprung").write_text("imported")

import msgspec

import kitchen


class Layer(msgspec.Struct, frozen=True):
    size: int = 1


class Config(msgspec.Struct):
    layer: Layer = Layer()


class State(msgspec.Struct):
    layer: Layer = Layer()
    layers: list[Layer] = []


class Sprung(Exception):
    pass


class Net:
    def state_dict(self):
        return {"w": 1}

    def load_state_dict(self, saved):
        pass


def step(ctx):
    ctx.resources["net"]
    ctx.state.layers = [Layer(2)]
    ctx.record_metric("loss", 0.5)


def fail(ctx):
    raise Sprung("as it was told to")


@kitchen.workflow(config=Config, state=State)
def trapped(wf):
    wf.resource("net", lambda ctx: Net())
    with wf.loop("l", over=lambda ctx: [Layer(5), "x"]):
        wf.stage("step", step)
        wf.checkpoint("save")
    wf.stage("fail", fail)
"""

# Reads all there is to read, in a process where the trap can be imported and anything is watched.
READING = """
import sys

import numpy, pickle
from click.testing import CliRunner

import kitchen
from kitchen.cli import cli

FORBIDDEN = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn",
             "os.fork", "socket.connect", "marshal.loads.log"}


def watch(event, args):
    if event in FORBIDDEN:
        raise SystemExit(f"{event} {args}")
    if event == "import" and "hostile_trap" in str(args[0]):
        raise SystemExit(f"import {args[0]}")
    if event in ("open", "compile", "exec") and "hostile_trap" in str(args[:2]):
        raise SystemExit(f"{event} {args}")


def unpickled(*args, **kwargs):
    raise SystemExit("something was unpickled")


class Trapped(pickle.Unpickler):  # a class, as what is imported may derive from it
    __init__ = unpickled


pickle.loads = pickle.load = unpickled
pickle.Unpickler = Trapped
sys.addaudithook(watch)
for words in WORDS:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
past = kitchen.history("one")
assert len(past.events) > 20 and past.state_at()["layers"] and past.config["layer"]
assert past.all_metrics and past.status == "failed" and past.ir and past.started.locator
for seq in range(1, len(past.events) + 1):
    past.state_at(seq)
print("read")
"""


def test_reading_imports_nothing_that_the_log_names(tmp_path: Path) -> None:
    (tmp_path / "hostile_trap.py").write_text(TRAP)
    sprung = tmp_path / "sprung"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    environment.pop("KITCHEN_STORE", None)

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip

    python("-m", "kitchen", "run", "hostile_trap:trapped", "--id", "one")
    assert sprung.exists()
    sprung.unlink()
    words = [["runs"], ["runs", "--json"], ["state", "one", "layers"]]
    words += [[w[0], "one", *w[1:]] for w in COMMANDS]
    ended = python("-c", f"WORDS = {words!r}\n{READING}")
    assert ended.stdout == "read\n", ended.stdout + ended.stderr
    assert not sprung.exists()
    # and the trap is one: to resume is to run the code that the log names
    python("-m", "kitchen", "resume", "one")
    assert sprung.exists()


@pytest.mark.parametrize(
    "locator",
    [
        Locator("./evil.py", "w", ""), Locator("/tmp/evil.py", "w", ""), Locator("evil.py", "w", ""),
        Locator("os; import evil", "w", ""), Locator("", "w", ""), Locator(".evil", "w", ""),
        Locator("evil", "", ""), Locator("evil", "w()", ""), Locator("evil:x", "w", ""),
        Locator("evil", "f.<locals>.w", ""),
    ],
)  # fmt: skip
def test_a_log_names_no_file_to_run(kitchen: Kitchen, locator: Locator) -> None:
    Path("evil.py").write_text("import pathlib\npathlib.Path('sprung').touch()\nw = 1\n")
    with pytest.raises(library.NotResumable, match=r"--workflow|is no module"):
        recorded_workflow(locator, "r")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("name", ["os:system", "builtins:eval", "sys:modules", "kitchen:Resource"])
def test_what_a_log_names_is_looked_up_and_not_called(name: str) -> None:
    module, _, qualname = name.partition(":")
    with pytest.raises(library.NotResumable, match="not a workflow"):
        recorded_workflow(Locator(module, qualname, ""), "r")

"""Mistakes around the builder: the decorator, the keys, names taken, blocks misused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from kitchen.errors import WorkflowError
from kitchen.workflow import ir
from kitchen.workflow.decorator import workflow
from tests.strategies import nothing
from tests.workflow.user_modules import PRELUDE, fails, in_workflow, load

if TYPE_CHECKING:
    from pathlib import Path

AROUND = {
    "empty": ("@workflow  # <-\ndef a(wf): ...", "the workflow 'a' is empty", "stage"),
    "async": ("@workflow  # <-\nasync def a(wf): ...", "async function", "def instead"),
    "generator": ("@workflow  # <-\ndef a(wf): yield", "generator function", "no yield"),
    "no wf": ("@workflow  # <-\ndef a(): ...", r"but takes \(\)", "WorkflowBuilder"),
    "lambda": ("workflow(lambda wf: wf.stage('a', work))  # <-", "cannot be the name", "letters"),
    "class": ("@workflow  # <-\nclass A: ...", "decorates a function", "def training"),
    "positional": ("@workflow(Plain)  # <-\ndef a(wf): ...", "decorates a function", "config="),
    "config": (
        "@workflow(config=int)  # <-\ndef a(wf): ...",
        "config= must be a msgspec.Struct class or a dataclass, not the class int",
        "class Config",
    ),
    "state": ("@workflow(state={})  # <-\ndef a(wf): ...", "not a dict", "class State"),
    "seed": ("@workflow(seed_globals=1)  # <-\ndef a(wf): ...", "seed_globals= must be", "True"),
    "compensate": ("@workflow(compensate=1)  # <-\ndef a(wf): ...", "compensate= must", "True"),
    "name": (
        "@workflow(name='a b')  # <-\ndef a(wf): ...",
        "'a b' cannot be the name of a workflow",
        "letters",
    ),
    "adapters": ("@workflow(adapters={})  # <-\ndef a(wf): ...", "not a dict", "def adapters"),
    "adapters of two": ("@workflow(adapters=two)  # <-\ndef a(wf): ...", "two takes", "config"),
    "a key": ("Resource('a', opened())  if 0 else Resource('a', 3)  # <-", "not 3", "itself"),
    "a key's name": ("Resource(opened, 'a')  # <-", "must be a str", r"Resource\("),
    "a key's factory": ("Resource('a', gen)  # <-", "generator", "contextmanager"),
    "a workflow as a body": (
        "@workflow\ndef a(wf): wf.stage('a', work)\n@workflow\ndef b(wf): wf.stage('a', a)  # <-",
        "is the workflow 'a'",
        r"wf\.include\(a, name='a'\)",
    ),
    "called": (
        "@workflow\ndef a(wf): wf.stage('a', work)\na({'epochs': 3})  # <-",
        "called as if it were a function",
        r"kitchen.run\(a, config\)",
    ),
    "after the end": (
        "@workflow\ndef a(wf):\n  globals()['kept'] = wf\n  wf.stage('a', work)\n"
        "kept.stage('b', work)  # <-",
        "'a' is built already",
        "only while",
    ),
    "a block after the end": (
        "@workflow\ndef a(wf):\n  wf.stage('a', work)\n"
        "  globals()['block'] = wf.loop('l', items)\n  block.__enter__()\n"
        "  wf.stage('a', work)\n  block.__exit__(None, None, None)\n"
        "with block:  # <-\n  ...",
        "built already",
        "only while",
    ),
    "after a failure": (
        "try:\n  @workflow\n  def a(wf):\n    globals()['kept'] = wf\n    1 / 0\n"
        "except ZeroDivisionError: ...\nkept.stage('b', work)  # <-",
        "built already",
        "only while",
    ),
    "in a helper": (
        "def helper(wf):\n  wf.stage('', work)  # <-\n@workflow\ndef a(wf): helper(wf)",
        "cannot be the name",
        "letters",
    ),
    "call of many lines": (
        "@workflow\ndef a(wf):\n  wf.stage(  # <-\n    'b',\n    two,\n  )",
        "ctx alone",
        "partial",
    ),
}


@pytest.mark.parametrize(("source", "message", "hint"), AROUND.values(), ids=AROUND.keys())
def test_a_mistake_around(source: str, message: str, hint: str, tmp_path: Path) -> None:
    told, advised, _ = fails(tmp_path, source + "\n")
    assert re.search(message, told)
    assert re.search(hint, advised)


TAKEN = {
    "stage": "wf.stage('a', work)  # <1\nwf.stage('a', work)  # <-",
    "checkpoint": "wf.resource('r', opened)\nwf.checkpoint()  # <1\nwf.checkpoint()  # <-",
    "stage after loop": (
        "with wf.loop('a', items):  # <1\n  wf.stage('a', work)\nwf.stage('a', work)  # <-"
    ),
    "resource": "wf.resource('r', opened)  # <1\nwf.resource('r', opened)  # <-",
    "resource around": (
        "wf.resource('r', opened)  # <1\n"
        "with wf.loop('m', items):\n  wf.resource('r', opened)  # <-"
    ),
    "loops": (
        "with wf.loop('a', items):  # <1\n  with wf.loop('a', items):  # <-\n"
        "    wf.stage('b', work)"
    ),
}


@pytest.mark.parametrize("source", TAKEN.values(), ids=TAKEN.keys())
def test_both_lines_of_a_name_are_told(source: str, tmp_path: Path) -> None:
    told, _, marks = fails(tmp_path, in_workflow(source))
    assert f"line {marks['1']}" in told


def test_blocks_beside_each_other_may_have_resources_of_one_name() -> None:
    """They are never open at once, but in a parallel, where each branch has its own."""

    @workflow
    def beside(wf: Any) -> None:
        with wf.loop("l", over=nothing):
            wf.resource("r", nothing)
        with wf.parallel():
            for name in "ab":
                with wf.branch(name):
                    wf.resource("r", nothing)
        wf.resource("r", nothing)

    paths = [path for path, node in ir.walk(beside.ir) if isinstance(node, ir.ResourceNode)]
    assert paths == ["l/r", "parallel/a/r", "parallel/b/r", "r"]


def test_two_conditionals_of_one_predicate(tmp_path: Path) -> None:
    told, hint, marks = fails(
        tmp_path,
        in_workflow(
            "with wf.conditional(asked):  # <1\n  wf.stage('a', work)\n"
            "with wf.conditional(asked):  # <-\n  wf.stage('a', work)"
        ),
    )
    assert told == f"conditional 'asked': the name is taken in this block by line {marks['1']}"
    assert hint == "give one of the two another name with name="


def test_a_name_taken_in_another_file(tmp_path: Path) -> None:
    helper = load(tmp_path, "def setup(wf):\n  wf.stage('a', work)\n")
    source = "def take(setup):\n  @workflow\n  def b(wf):\n    setup(wf)\n    wf.stage('a', work)\n"
    with pytest.raises(WorkflowError, match=f"{re.escape(str(helper.__file__))}:\\d+"):
        load(tmp_path, source).take(helper.setup)


def test_a_failed_block_is_no_excuse_for_another_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load(tmp_path, in_workflow("with wf.loop('a', items):\n  wf.conditional(asked)\n  1 / 0"))


def test_a_typo_in_a_method(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"hint: did you mean wf\.stage\?") as caught:
        load(tmp_path, in_workflow("wf.stages('a', work)"))
    with pytest.raises(AttributeError, match=r"hint: did you mean wf\.timeout\?"):
        load(tmp_path, in_workflow("with wf.timeouts(3): ..."))
    with pytest.raises(AttributeError, match=r"hint: did you mean wf\.on_error\?"):
        load(tmp_path, in_workflow("with wf.onerror(): ..."))
    line = PRELUDE.count("\n") + 3
    assert re.match(rf".*user_module_\d+\.py:{line}: ", str(caught.value))
    with pytest.raises(
        AttributeError, match="there are stage, loop, stream_loop, async_loop, cond"
    ):
        load(tmp_path, in_workflow("wf.zzz('a', work)"))


@pytest.mark.parametrize(
    "call", ["wf.stage('a', work, retry=3)", "wf.stage(work)", "wf.loop('a')", "wf.checkpoint(a=1)"]
)
def test_an_unknown_keyword_is_a_type_error(call: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        load(tmp_path, in_workflow(call))


def test_what_has_no_signature_is_let_through(tmp_path: Path) -> None:
    made: Any = load(
        tmp_path, in_workflow("with wf.loop('a', range):\n  wf.stage('b', print)")
    ).training
    assert set(made.bindings) == {"a", "a/b"}

"""One workflow in another: what is recorded, and what must fit."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kitchen.errors import WorkflowError
from kitchen.workflow import ir
from kitchen.workflow.decorator import workflow
from kitchen.workflow.ir import IncludeNode
from tests.strategies import nothing
from tests.workflow import samples
from tests.workflow.user_modules import fails, load

if TYPE_CHECKING:
    from pathlib import Path

    from kitchen.workflow.builder import WorkflowBuilder


def test_the_nodes_stand_under_a_path_of_their_own() -> None:
    inner = samples.full_training

    @workflow(config=samples.Config, state=samples.State)
    def outer(wf: WorkflowBuilder) -> None:
        wf.stage("load_dataset", nothing)
        wf.include(inner)
        wf.include(samples.parallel_evals, name="again")

    first, second = outer.ir.body[1:]
    assert first == IncludeNode("full_training", "full_training", inner.ir.body)
    assert second == IncludeNode("again", "parallel_evals", samples.parallel_evals.ir.body)
    assert dict(outer.bindings) == {
        "load_dataset": nothing,
        **{f"full_training/{key}": bound for key, bound in inner.bindings.items()},
        **{f"again/{key}": bound for key, bound in samples.parallel_evals.bindings.items()},
    }
    assert outer.sites["full_training/epochs"] == inner.sites["epochs"]
    assert set(outer.sites) == {"", *(path for path, _ in ir.walk(outer.ir))}


def test_the_name_and_the_workflow_are_part_of_the_shape() -> None:
    prints: set[str] = set()
    for inner, name in (
        (samples.streaming, None),
        (samples.streaming, "other"),
        (samples.off_policy_rl, "other"),
    ):

        @workflow(name="same")
        def outer(wf: WorkflowBuilder, inner: Any = inner, name: Any = name) -> None:
            wf.include(inner, name)

        prints.add(outer.fingerprint)
    assert len(prints) == 3


def test_a_workflow_with_a_resource_twice() -> None:
    @workflow
    def inner(wf: WorkflowBuilder) -> None:
        wf.resource("model", nothing)
        wf.checkpoint()

    @workflow
    def outer(wf: WorkflowBuilder) -> None:
        wf.include(inner)
        wf.include(inner, name="again")
        wf.resource("model", nothing)

    paths = [path for path, node in ir.walk(outer.ir) if isinstance(node, ir.ResourceNode)]
    assert paths == ["inner/model", "again/model", "model"]


def test_one_workflow_twice() -> None:
    @workflow
    def outer(wf: WorkflowBuilder) -> None:
        with wf.parallel():
            wf.include(samples.streaming, name="one")
            wf.include(samples.streaming, name="two")

    assert len(outer.bindings) == 2 * len(samples.streaming.bindings)


class Wider(msgspec.Struct):
    global_step: int = 0
    more: int = 0


class Settings(samples.Config):
    more: int = 0


@dataclasses.dataclass
class Plain:
    total_steps: int
    eval_every: int
    checkpoint_every: int
    epochs: int


@pytest.mark.parametrize(
    ("config", "state"),
    [(samples.Config, samples.State), (Settings, Wider), (Plain, Wider)],
)
def test_types_that_have_all_the_fields_fit(config: type[Any], state: type[Any]) -> None:
    @workflow(config=config, state=state)
    def outer(wf: WorkflowBuilder) -> None:
        wf.include(samples.conditional_steps)

    assert outer.ir.body[0].name == "conditional_steps"


def test_what_declares_nothing_fits_everywhere() -> None:
    def given(config: object) -> dict[str, Any]:
        return {}

    def other() -> dict[str, Any]:
        return {}

    @workflow(adapters=given, seed_globals=True)
    def seeded(wf: WorkflowBuilder) -> None:
        wf.include(samples.streaming)

    @workflow(config=samples.Config, adapters=other, seed_globals=True)
    def outer(wf: WorkflowBuilder) -> None:
        wf.include(seeded)

    assert outer.adapters is other


INNER = """\
import dataclasses, msgspec
class Config(msgspec.Struct):
    epochs: int = 3
    rate: float = 0.1
class Epochs(msgspec.Struct):
    epochs: int = 3
@dataclasses.dataclass
class State:
    step: int = 0
class Step(msgspec.Struct):
    step: int = 0
    loss: float = 0
def provider(): return {}
@workflow  # <1
def inner(wf):
    wf.resource('model', opened)  # <2
    with wf.loop('epochs', items):  # <3
        wf.stage('score', work, writes=['loss'])  # <4
        wf.checkpoint()  # <5
"""
MISFITS = {
    "itself a function": (
        "def plain(wf): ...\n@workflow\ndef b(wf): wf.include(plain)  # <-",
        "wf.include takes a workflow; plain is a function",
        r"decorate it with @kitchen.workflow, or call it here: plain\(wf\)",
    ),
    "a name of a workflow": (
        "@workflow\ndef b(wf): wf.include('inner')  # <-",
        "wf.include takes a workflow, not 'inner'",
        "def evaluation",
    ),
    "a class": ("@workflow\ndef b(wf): wf.include(Stage)  # <-", "not the class Stage", "incl"),
    "a bad name": (
        "@workflow\ndef b(wf): wf.include(inner, name='a/b')  # <-",
        "'a/b' cannot be the name of an include",
        "letters",
    ),
    "twice": (
        "@workflow\ndef b(wf):\n  wf.include(inner)  # <6\n  wf.include(inner)  # <-",
        "include 'inner': the name is taken in this block by line {6}",
        "with name=",
    ),
    "a reserved name": (
        "@workflow(name='producer')\ndef p(wf): wf.stage('a', work)\n@workflow\ndef b(wf):\n"
        "  with wf.async_loop('a', work, asked):  # <6\n    wf.include(p)  # <-",
        "'producer' is a reserved name in the async_loop 'a' of line {6}",
        "for the include",
    ),
    "a resource around": (
        "@workflow\ndef b(wf):\n  wf.resource('model', opened)  # <6\n  wf.include(inner)  # <-",
        "resource 'model' of line {2} in the workflow 'inner': the name is taken by the resource "
        "of line {6}",
        "while the one is open, the other could not be reached",
    ),
    "a loop around": (
        "@workflow\ndef b(wf):\n  with wf.stream_loop('epochs', gen):  # <6\n"
        "    wf.include(inner)  # <-",
        "'epochs' of line {3} in the workflow 'inner' stands inside the stream_loop 'epochs' of "
        r"line {6}, so ctx.item\('epochs'\)",
        "another name",
    ),
    "a parallel over in a loop of its name": (
        "@workflow\ndef c(wf):\n  with wf.parallel('p', over=items):  # <6\n"
        "    wf.stage('a', work)\n@workflow\ndef b(wf):\n"
        "  with wf.loop('p', items):  # <7\n    wf.include(c)  # <-",
        "'p' of line {6} in the workflow 'c' stands inside the loop 'p' of line {7}",
        "another name",
    ),
    "a cut in a parallel": (
        "@workflow\ndef b(wf):\n  with wf.parallel('p'):  # <6\n    with wf.branch('c'):\n"
        "      wf.include(inner)  # <-",
        "checkpoint 'epochs/checkpoint' of line {5} in the workflow 'inner', included here, "
        "stands inside the parallel 'p' of line {6}: there is no cut among running siblings",
        "after the parallel",
    ),
    "a cut per item": (
        "@workflow\ndef b(wf):\n  with wf.parallel('p', over=items):  # <6\n"
        "    wf.include(inner)  # <-",
        "inside the parallel 'p' of line {6}: there is no cut",
        "after the parallel",
    ),
    "a cut of nothing": (
        "@workflow\ndef b(wf):\n  wf.include(inner)\n  wf.checkpoint()  # <-",
        "there is none",
        "wf.resource",
    ),
    "a key in two branches": (
        "@workflow\ndef c(wf): wf.stage('s', work, writes=['loss'])  # <6\n@workflow\ndef b(wf):\n"
        "  with wf.parallel():  # <7\n    wf.stage('a', work, writes=['loss'])  # <8\n"
        "    wf.include(c)  # <-",
        "'a' and 'c' of the parallel 'parallel' of line {7} both write the state key 'loss': the "
        "stages 'a' of line {8} and 'c/s' of line {6}",
        "merge=",
    ),
    "a key in every instance": (
        "@workflow\ndef c(wf): wf.stage('s', work, writes=['loss'])  # <6\n@workflow\ndef b(wf):\n"
        "  with wf.parallel('p', over=items):  # <7\n    wf.include(c)  # <-",
        "the stage 'c/s' of line {6} writes the state key 'loss' in every instance of the "
        "parallel 'p' of line {7}",
        "merge=",
    ),
    "a key that the state has not": (
        "@workflow(state=State)\ndef b(wf): wf.include(inner)  # <-",
        "writes= of the stage 'epochs/score' of the workflow 'inner' of line {1} names the state "
        "key 'loss', which State has not",
        "its fields are: step",
    ),
    "no config": (
        "@workflow(config=Config)  # <6\ndef c(wf): wf.stage('a', work)\n"
        "@workflow(state=Step)\ndef b(wf): wf.include(c)  # <-",
        "the workflow 'c' of line {6} declares config=Config, and the one that includes it "
        "declares no config",
        r"@kitchen.workflow\(config=Config\) .* its fields: epochs, rate",
    ),
    "another config": (
        "@workflow(config=Config)  # <6\ndef c(wf): wf.stage('a', work)\n"
        "@workflow(config=Epochs)\ndef b(wf): wf.include(c)  # <-",
        "the workflow 'c' of line {6} declares config=Config; config=Epochs of the one that "
        "includes it lacks the field 'rate'$",
        "add what is missing to Epochs, or derive it from Config",
    ),
    "another state": (
        "@workflow(state=Step)  # <6\ndef c(wf): wf.stage('a', work)\n"
        "class Empty(msgspec.Struct): ...\n@workflow(state=Empty)\ndef b(wf): wf.include(c)  # <-",
        "line {6} declares state=Step; state=Empty .* lacks the fields 'step', 'loss'$",
        "to Empty, or derive it from Step",
    ),
    "seeded": (
        "@workflow(seed_globals=True)  # <6\ndef c(wf): wf.stage('a', work)\n"
        "@workflow\ndef b(wf): wf.include(c)  # <-",
        "the workflow 'c' of line {6} has seed_globals=True, and the one that includes it has not",
        r"@kitchen.workflow\(seed_globals=True\)",
    ),
    "compensating inside": (
        "@workflow(compensate=True)  # <6\ndef c(wf): wf.stage('a', work)\n"
        "@workflow\ndef b(wf): wf.include(c)  # <-",
        "the workflow 'c' of line {6} has compensate=True, and the one that includes it has not",
        r"@kitchen.workflow\(compensate=True\) on both, or on neither",
    ),
    "compensating outside": (
        "@workflow  # <6\ndef c(wf): wf.stage('a', work)\n"
        "@workflow(compensate=True)\ndef b(wf): wf.include(c)  # <-",
        "the workflow that includes has compensate=True, and the workflow 'c' of line {6} has not",
        r"@kitchen.workflow\(compensate=True\) on both, or on neither",
    ),
    "adapters": (
        "@workflow(adapters=provider)  # <6\ndef c(wf): wf.stage('a', work)\n"
        "@workflow\ndef b(wf): wf.include(c)  # <-",
        "the workflow 'c' of line {6} declares adapters=provider, and the one that includes it "
        "declares none",
        r"pass them on: @kitchen.workflow\(adapters=provider\)",
    ),
}


@pytest.mark.parametrize(("source", "message", "hint"), MISFITS.values(), ids=MISFITS.keys())
def test_a_workflow_that_does_not_fit(source: str, message: str, hint: str, tmp_path: Path) -> None:
    told, advised, marks = fails(tmp_path, f"{INNER}{source}\n")
    wanted = re.sub(r"\{(\d)\}", lambda mark: str(marks[mark[1]]), message)
    assert re.search(wanted, told), told
    assert re.search(hint, advised), advised


def test_a_workflow_of_another_file(tmp_path: Path) -> None:
    inner = load(tmp_path, INNER)
    line = {path: site.line for path, site in inner.inner.sites.items()}

    with pytest.raises(WorkflowError) as caught:

        @workflow
        def outer(wf: WorkflowBuilder) -> None:
            with wf.loop("epochs", samples.epochs_range):
                wf.include(inner.inner)

    told = str(caught.value)
    assert told.startswith(f"{__file__}:")
    assert f"'epochs' of {inner.__file__}:{line['epochs']} in the workflow 'inner'" in told

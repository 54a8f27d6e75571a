"""The fingerprint is the shape; provenance is the code. Both are the same everywhere."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kitchen.workflow import ir
from kitchen.workflow.ir import CodeRef
from kitchen.workflow.provenance import code_ref, simple_name
from kitchen.workflow.stage import Stage
from tests.workflow import samples

if TYPE_CHECKING:
    from kitchen.workflow.definition import Workflow

ROOT = Path(__file__).parents[2]
DUMP = """
import json
from kitchen.workflow import ir
from tests.workflow import samples
for built in samples.ALL:
    print(json.dumps([built.fingerprint, ir.to_json(built.ir).decode(), built.to_mermaid()]))
"""


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_the_same_in_every_process(seed: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", DUMP],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [json.loads(line) for line in printed.splitlines()] == [
        [built.fingerprint, ir.to_json(built.ir).decode(), built.to_mermaid()]
        for built in samples.ALL
    ]


def test_the_fingerprint_of_a_known_workflow() -> None:
    # Runs are resumed by it: if this changes, every stored run says that its workflow changed.
    assert samples.conditional_steps.fingerprint == "25cf6ed182e8d8e3"
    assert samples.full_training.fingerprint == "f899e2b75a6ea087"


SOURCE = """
from kitchen.workflow.decorator import workflow
from kitchen.workflow.stage import Stage
def over(ctx): return range({items})
class Save(Stage):
    keep = {keep}
    def execute(self, ctx): ...
def train(ctx): return {answer}
@workflow
def training(wf):
    with wf.loop("epochs", over=over):
        wf.stage("train", train, options={{"lr": {lr}}})
        wf.stage("save", Save)
"""


def version(folder: Path, name: str, **values: Any) -> Workflow[Any, Any]:
    folder.mkdir(exist_ok=True)
    file = folder / "training.py"
    file.write_text(SOURCE.format(**{"items": 3, "keep": 1, "answer": 1, "lr": 0.5, **values}))
    spec = importlib.util.spec_from_file_location("training", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # inspect finds the source of a class through its module
    sys.modules["training"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["training"]
    return module.training


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"answer": 2}, "epochs/train"),
        ({"keep": 2}, "epochs/save"),
        ({"items": 4}, "epochs"),
    ],
)
def test_editing_code_changes_provenance_alone(
    values: dict[str, int], path: str, tmp_path: Path
) -> None:
    old = version(tmp_path / "old", "old")
    new = version(tmp_path / "new", "new", **values)
    assert old.fingerprint == new.fingerprint
    assert old.ir != new.ir
    codes = [dict(_codes(each.ir)) for each in (old, new)]
    assert {at for at in codes[0] if codes[0][at] != codes[1][at]} == {path}


def _codes(root: ir.WorkflowIR) -> Any:
    for path, node in ir.walk(root):
        match node:
            case ir.StageNode():
                yield path, node.body
            case ir.LoopNode():
                yield path, node.over
            case _:
                pass


def test_the_folder_does_not_matter(tmp_path: Path) -> None:
    old = version(tmp_path / "old", "old")
    new = version(tmp_path / "new", "new")
    assert old.ir == new.ir


def test_editing_the_shape_changes_the_fingerprint(tmp_path: Path) -> None:
    old = version(tmp_path / "old", "old")
    new = version(tmp_path / "new", "new", lr=0.25)
    assert old.fingerprint != new.fingerprint


class Trainer:
    def step(self, ctx: Any) -> None: ...

    def __call__(self, ctx: Any) -> None: ...


class Kept(Stage):
    def __init__(self, keep: int = 1) -> None:
        self.keep = keep

    def execute(self, ctx: Any) -> None: ...


@functools.lru_cache
def cached(ctx: Any) -> None: ...


def test_what_wraps_code_is_looked_through() -> None:
    plain = code_ref(samples.scaled)
    assert (plain.module, plain.qualname) == ("tests.workflow.samples", "scaled")
    assert plain.digest == digest(
        'def scaled(factor: float, ctx: Any) -> None:\n    """A body for a partial."""'
    )
    assert code_ref(functools.partial(functools.partial(samples.scaled, 0.5))) == plain
    step = code_ref(Trainer().step)
    assert (step.qualname, step.digest) == (
        "Trainer.step",
        digest("def step(self, ctx: Any) -> None: ..."),
    )
    assert code_ref(functools.partial(Trainer().step)) == step == code_ref(Trainer.step)
    assert code_ref(Trainer()) == code_ref(Trainer)
    assert code_ref(Kept(3)) == code_ref(Kept)
    assert str(code_ref(samples.open_session)) == "tests.workflow.samples:open_session"
    assert code_ref(cached).digest


def test_code_without_source() -> None:
    assert code_ref(print) == CodeRef("builtins", "print")
    assert code_ref([].append) == CodeRef("", "list.append")
    made: dict[str, Any] = {"__name__": "typed"}
    exec("def train(ctx): ...\nclass Save: ...", made)
    assert code_ref(made["train"]) == CodeRef("typed", "train")
    assert code_ref(made["Save"]) == CodeRef("typed", "Save")


def test_lambdas() -> None:
    one, two = (lambda ctx: 1), (lambda ctx: 2)
    assert code_ref(one) == code_ref(two)
    held = {
        "over": lambda ctx: (
            1,
            2,
        ),
    }
    assert code_ref(held["over"]).digest
    assert simple_name(one) == "<lambda>"

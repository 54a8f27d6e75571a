"""A crash matrix is green only where it has compared something.

Rules: each workflow here has a mistake that a matrix could overlook: it ends before it does anything,
it holds what changes somewhere inside, it leaves the process changed, or it never comes to an end.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen import Context, WorkflowBuilder
from kitchen.errors import ArgumentError
from kitchen.testing import CrashMatrixFailed, VirtualClock, crash_matrix
from kitchen.testing.matrix import matrix
from kitchen.testing.matrix.contents import above, contents
from tests.crash import side_by_side
from tests.testing import sound


def quiet(ctx: Context) -> None:
    ctx.increment("n")


# --- how the whole run ends -----------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 1])
def test_a_forgotten_adapter_is_no_green_matrix(processes: int) -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(sound.priced, processes=processes)
    told = str(caught.value)
    assert told.startswith("priced: the whole run failed at rounds[0]/ask_price: ")
    assert "'price'" in caught.value.difference
    assert caught.value.place == "rounds[0]/ask_price"
    assert 'status="failed"' in (caught.value.hint or "")


def test_a_run_that_is_to_fail_and_does_not_is_told() -> None:
    with pytest.raises(CrashMatrixFailed, match="priced: the whole run completed\n") as caught:
        crash_matrix(sound.priced, adapters=sound.make_adapters, processes=0, status="failed")
    assert caught.value.hint is None


# --- what a run leaves behind in its process ------------------------------------------------------


def set_flag(ctx: Context) -> None:
    os.environ["KITCHEN_TEST_FLAG"] = "set"


def read_flag(ctx: Context) -> None:
    ctx.state["flag"] = os.environ.get("KITCHEN_TEST_FLAG", "")


@kitchen.workflow
def flags(wf: WorkflowBuilder) -> None:
    wf.stage("set_flag", set_flag)
    wf.stage("quiet", quiet)
    wf.stage("read_flag", read_flag)


def go(ctx: Context) -> None:
    os.chdir(tempfile.gettempdir())


def look_around(ctx: Context) -> None:
    ctx.state["moved"] = Path.cwd() == Path(tempfile.gettempdir())


@kitchen.workflow
def moves(wf: WorkflowBuilder) -> None:
    wf.stage("go", go)
    wf.stage("quiet", quiet)
    wf.stage("look_around", look_around)


@pytest.mark.slow
@pytest.mark.parametrize("workflow", [flags, moves], ids=lambda w: w.name)
def test_a_fresh_process_does_not_inherit_what_runs_have_left(
    workflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KITCHEN_TEST_FLAG", "")  # and puts it back
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(workflow, points=["after:3", "fresh:after:3"])
    assert caught.value.point == "fresh:after:3"


# --- what a resource holds ------------------------------------------------------------------------


class Layer:
    def __init__(self) -> None:
        self.steps = 0


class Rows(list[Any]):
    """A list of somebody's own."""


class Net:
    """Its state_dict carries nothing of what is in its containers."""

    def __init__(self, kind: str) -> None:
        layer = Layer()
        made = {"list": [layer], "dict": {"a": layer}, "deque": deque([layer]), "tuple": (layer,)}
        self.inner = made[kind]
        self.layer = [layer]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def train(ctx: Context) -> None:
    ctx.resources["net"].layer[0].steps += 1


def collect(ctx: Context) -> None:
    ctx.resources["rows"].append(Layer())


@kitchen.workflow
def in_a_list(wf: WorkflowBuilder) -> None:
    wf.resource("rows", lambda ctx: Rows(), stateful=False)
    with wf.loop("rounds", over=lambda ctx: range(3)):
        wf.stage("collect", collect)


def nets(kind: str) -> Any:
    @kitchen.workflow
    def in_a_container(wf: WorkflowBuilder) -> None:
        wf.resource("net", lambda ctx: Net(kind))
        with wf.loop("rounds", over=lambda ctx: range(3)):
            wf.stage("train", train)
            wf.checkpoint()

    return in_a_container


@pytest.mark.parametrize(
    ("kind", "part"),
    [("list", "[0]"), ("dict", "['a']"), ("deque", "[0]"), ("tuple", "[0]")],
)
def test_containers_are_looked_into(kind: str, part: str) -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(nets(kind), processes=0)
    assert f"net.inner{part}.steps, when it was closed, is 3" in caught.value.difference
    out = ["resource.net.inner", "resource.net.layer"]
    assert crash_matrix(nets(kind), processes=0, exclude=out).points > 3


def test_a_list_of_a_class_of_ones_own_is_looked_into() -> None:
    with pytest.raises(CrashMatrixFailed, match=r"rows, when it was closed, is Rows of 3"):
        crash_matrix(in_a_list, processes=0)


class Holding:
    """Of everything something."""

    def __init__(self) -> None:
        self.objects = {Layer(), Layer()}
        self.mixed = {"lock": threading.Lock(), "layer": Layer()}
        self.itself = [self]

    @functools.cached_property
    def dear(self) -> int:
        return 7

    def state_dict(self) -> dict[str, Any]:
        return {"used": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_what_an_object_holds_is_told_by_name() -> None:
    holding = Holding()
    assert holding.dear == 7
    assert contents(holding) == {
        ".state_dict()['used']": "1",
        ".objects": "set of 2",
        ".objects[…]": "[]",
        ".mixed": "dict of 2",
        ".mixed['layer'].steps": "0",
        ".itself": "list of 1",
    }
    assert above(".mixed['layer'].steps") == [".mixed", ".mixed['layer']", ".mixed['layer'].steps"]


# --- workflows that fail --------------------------------------------------------------------------


def use(ctx: Context) -> None:
    ctx.resources["layer"].steps += 1


def fail(ctx: Context) -> None:
    raise ValueError(f"not in {tempfile.mkdtemp()}/data.txt")


@contextmanager
def managed() -> Generator[Layer]:
    layer = Layer()
    try:
        yield layer
    finally:
        layer.steps = 0


@kitchen.workflow
def loses_and_fails(wf: WorkflowBuilder) -> None:
    wf.resource("layer", lambda ctx: Layer(), stateful=False)
    wf.stage("use", use)
    wf.stage("quiet", quiet)
    wf.stage("fail", fail)


@kitchen.workflow
def loses_and_leaves(wf: WorkflowBuilder) -> None:
    wf.resource("layer", lambda ctx: managed(), stateful=False)
    wf.stage("use", use)
    wf.stage("quiet", quiet)
    wf.stage("fail", fail)


@kitchen.workflow
def fails_beside(wf: WorkflowBuilder) -> None:
    """What its sibling has come to by then is chance."""
    with wf.parallel("both"):
        with wf.branch("working"):
            wf.resource("layer", lambda ctx: Layer(), stateful=False)
            with wf.loop("rounds", over=lambda ctx: range(5)):
                wf.stage("use", use)
        wf.stage("fail", fail)


@pytest.mark.parametrize("workflow", [loses_and_fails, loses_and_leaves], ids=lambda w: w.name)
def test_resources_of_a_run_that_fails_are_compared(workflow: Any) -> None:
    with pytest.raises(CrashMatrixFailed, match=r"layer\.steps, when it was closed, is 1 in the"):
        crash_matrix(workflow, processes=0, status="failed")


def test_a_failure_is_compared_but_for_what_is_chance_or_left_out() -> None:
    out = ["resource.layer"]
    for left_out in (out, [*out, "fail"]):
        report = crash_matrix(loses_and_fails, processes=0, status="failed", exclude=left_out)
        assert report.status == "failed"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_was_stopped_beside_a_failure_is_not_compared(backend: str) -> None:
    report = crash_matrix(
        fails_beside, processes=0, status="failed", exclude="both/working", backend=backend
    )
    assert report.status == "failed"


def of_another_one_each_time(ctx: Context) -> None:
    raise ValueError(f"no {os.urandom(8).hex()}")


@kitchen.workflow
def fails_by_chance(wf: WorkflowBuilder) -> None:
    wf.stage("fail", of_another_one_each_time)


def test_the_failure_of_a_node_that_is_left_out_is_not_compared() -> None:
    with pytest.raises(
        CrashMatrixFailed, match="how the run ended is failed, fail: ValueError: no"
    ):
        crash_matrix(fails_by_chance, processes=0, status="failed")
    report = crash_matrix(fails_by_chance, processes=0, status="failed", exclude="fail")
    assert report.points > 2


# --- points that kill nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("point", ["before:999", "fresh:after:40"])
def test_a_point_that_the_run_does_not_come_to_is_an_error(point: str) -> None:
    told = rf"points=\['{point}'\] names no point of this run: it makes 4 appends"
    with pytest.raises(ArgumentError, match=told):
        crash_matrix(flags, points=["before:2", point])


def test_only_what_died_is_counted() -> None:
    report = crash_matrix(side_by_side.branches, points="all", processes=0, seed=7)
    tried = report.points + report.early
    assert report.points > report.appends
    assert tried >= 2 * report.appends - 1
    assert "after a crash at 1 point, and" in str(crash_matrix(flags, points=["before:2"]))


# --- a run that does not come to its end ----------------------------------------------------------

GATE = threading.Lock()


def take_gate(ctx: Context) -> Layer:
    GATE.acquire()
    return Layer()


def free_gate(ctx: Context) -> None:
    GATE.release()


@kitchen.workflow
def holds_a_lock(wf: WorkflowBuilder) -> None:
    """A process that dies gives it back; this one does not."""
    wf.resource("gate", take_gate, stateful=False)
    wf.stage("quiet", quiet)
    wf.stage("free_gate", free_gate)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_resume_that_blocks_is_told_with_its_point(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "_PATIENCE", 1.0)
    monkeypatch.setattr(matrix, "_SLOW", 0)
    try:
        with pytest.raises(CrashMatrixFailed, match="at work after 1 s, and is left") as caught:
            crash_matrix(holds_a_lock, processes=0, points=["after:2"], backend=backend)
    finally:
        GATE.release()  # and the thread that was left behind comes to its end
    assert caught.value.point == "after:2"


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"clock": 5}, "clock= is a VirtualClock, not 5"),
        ({"prepare": "x"}, "prepare= is a function"),
        ({"status": "cancelled"}, "status= is"),
        ({"decide": 7}, "decide= is"),
        ({"decide": "perhaps"}, "decide= is"),
        ({"decide": {"rounds/publsh": "skip"}}, r"(?s)no stage with effect.*'rounds/publish'"),
        ({"decide": {"note": "skip"}}, r"(?s)no stage with effect.*rounds/publish"),
        ({"exclude": "resource.modle"}, r"(?s)fits no resource.*has no resource"),
    ],
)
def test_what_does_not_fit_is_refused(how: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        crash_matrix(sound.publishes, processes=0, **how)


def test_a_resource_that_is_left_out_is_one() -> None:
    with pytest.raises(ArgumentError, match=r"did you mean 'layer'\?"):
        crash_matrix(loses_and_fails, processes=0, exclude="resource.lair")
    for one in ("resource.layer.steps", "resource.l*", "resource.layer"):
        report = crash_matrix(loses_and_fails, processes=0, status="failed", exclude=one)
        assert report.points > 3


def put_back() -> None:
    pass


def test_the_call_that_is_named_is_the_same_one() -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(
            sound.publishes,
            {"long": "x" * 100},
            adapters=sound.make_adapters,
            processes=0,
            seed=3,
            backend="trio",
            clock=VirtualClock(),
            prepare=put_back,
            exclude=["note"],
            decide={"rounds/publish": "skip"},
        )
    told = (
        "again:     crash_matrix(publishes, config, adapters=make_adapters, seed=3, backend='trio', "
        "clock=clock, prepare=put_back, exclude=['note'], decide={'rounds/publish': 'skip'}, "
        f'points=["{caught.value.point}"])'
    )
    assert told in str(caught.value)


HERE = os.environ.setdefault("KITCHEN_TEST_PARENT", str(os.getpid())) == str(os.getpid())


@kitchen.workflow
def elsewhere(wf: WorkflowBuilder) -> None:
    wf.stage("one", lambda ctx: ctx.state.update(here=HERE))


def test_a_difference_of_fresh_processes_is_looked_for_there_again() -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(elsewhere, processes=1)
    assert "again:     crash_matrix(elsewhere, points=1, processes=1)" in str(caught.value)


def test_a_workflow_of_a_function_is_to_be_named_where_that_is() -> None:
    made = r"(?s)have it as a name of the module where its function is defined, .*soundness"
    with pytest.raises(ArgumentError, match=made):
        crash_matrix(nets("list"))

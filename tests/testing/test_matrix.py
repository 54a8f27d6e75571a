"""The crash matrix: what comes through it, what it is asked, what it tells.

Rules: what is planted to be found has a module of its own; here all is sound, or refused.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kitchen
from kitchen import WorkflowBuilder
from kitchen.errors import ArgumentError
from kitchen.testing import CrashMatrixFailed, VirtualClock, crash_matrix
from kitchen.testing.matrix import fresh
from kitchen.testing.matrix.points import Point, chosen, every_point, in_processes, point_of
from tests.crash import kitchens, side_by_side
from tests.testing import sound

ALL = kitchens.ALL + side_by_side.ALL


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("workflow", ALL, ids=lambda w: w.name)
def test_sound_workflows_of_every_construct_pass(workflow: Any, backend: str) -> None:
    report = crash_matrix(workflow, points=8, processes=0, seed=7, backend=backend)
    assert report.status == "completed"
    assert report.points + report.early >= 8
    assert report.processes == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "workflow", [kitchens.training, side_by_side.branches], ids=lambda w: w.name
)
def test_sound_workflows_pass_in_fresh_processes(workflow: Any) -> None:
    report = crash_matrix(workflow, points=2, processes=3, seed=7)
    assert report.processes == 3
    assert str(report).startswith(f"{workflow.name}: completed after {report.appends} appends; ")
    assert "\n" not in str(report)


@pytest.mark.parametrize("adapters", [sound.make_adapters, sound.make_adapters()])
def test_config_and_adapters_go_along(adapters: Any) -> None:
    report = crash_matrix(sound.priced, {"rounds": 4}, adapters=adapters, processes=1)
    assert report.points > 8


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_hours_of_waiting_pass_at_once(backend: str) -> None:
    clock = VirtualClock()
    report = crash_matrix(sound.patient, clock=clock, backend=backend, processes=1)
    assert report.status == "completed"
    assert clock.elapsed > report.points * 1800


@pytest.mark.parametrize("workflow", [sound.fails, sound.handles, sound.publishes])
def test_failures_and_effects_come_out_alike(workflow: Any) -> None:
    status = "failed" if workflow is sound.fails else "completed"
    report = crash_matrix(workflow, points="all", processes=1, status=status)
    assert report.points >= 2 * report.appends - 1
    assert report.status == status


def test_what_is_decided_of_effects_is_compared() -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(sound.publishes, processes=0, decide={"rounds/publish": "skip"})
    assert "rounds[0]/publish: " in caught.value.difference


def test_production_without_pacing_is_told_as_such() -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(sound.free, processes=0)
    assert caught.value.cause == "an async loop without pacing"
    assert crash_matrix(sound.free, processes=0, exclude=["loop", "state.got"]).points > 3


def test_an_error_of_the_resume_is_told_whole() -> None:
    with pytest.raises(CrashMatrixFailed) as caught:
        crash_matrix(sound.refuses_to_load, processes=0)
    assert "load_state_dict() of resource 'once' (Once) failed: KeyError" in str(caught.value)
    assert caught.value.cause == "a state_dict that forgets"


def test_a_process_that_hangs_is_killed_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "PATIENCE", 3.0)
    monkeypatch.setenv("KITCHEN_HANG", str(os.getpid()))
    with pytest.raises(CrashMatrixFailed, match=r"a fresh process was still at work after .* 3 s"):
        crash_matrix(sound.hangs, points=["fresh:after:2"])


def test_what_a_whole_run_raises_comes_out_as_it_is() -> None:
    with pytest.raises(kitchen.ConfigError):
        crash_matrix(sound.priced, {"rounds": "many"}, processes=0)


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int, str]] = []
    crash_matrix(kitchens.plain, points=5, processes=0, progress=lambda *each: told.append(each))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert told[-1] == (told[-1][1], told[-1][1], "compared")
    assert {"the whole run", "before:1"} <= {what for _, _, what in told}


@pytest.mark.anyio
async def test_it_works_where_an_event_loop_runs(anyio_backend: str) -> None:
    report = crash_matrix(kitchens.plain, points=4, processes=0, backend=anyio_backend)
    assert report.points >= 4


# --- points ---------------------------------------------------------------------------------------


def test_points_are_spread_over_the_whole_run() -> None:
    points = [str(each) for each in every_point(3)]
    assert points == ["before:1", "after:1", "before:2", "after:2", "before:3"]
    some = [each for each in chosen(5, 40) if each.again is None]
    assert [str(each) for each in (some[0], some[-1])] == ["before:1", "before:40"]
    assert len(some) == 5
    assert [each for each in chosen("all", 40) if each.again is None] == every_point(40)
    assert any(each.again is not None for each in chosen("all", 40))
    fresh = in_processes(4, 40)
    assert [each.moment for each in fresh] == ["after", "before"] * 2
    assert all(each.fresh and 1 < each.number < 40 for each in fresh)


@pytest.mark.parametrize("text", ["before:7", "after:1", "before:7+after:2", "fresh:after:3"])
def test_a_point_is_what_its_text_says(text: str) -> None:
    assert str(point_of(text)) == text


def test_points_may_be_a_list() -> None:
    report = crash_matrix(kitchens.plain, points=["before:7", "after:7+before:2"])
    assert (report.points, report.processes) == (2, 0)
    assert point_of("after:7+before:2") == Point("after", 7, ("before", 2))


@pytest.mark.parametrize("given", ["some", 0, -1, True, [], ["7"], ["before:0"], [7], None, 1.5])
def test_points_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(ArgumentError, match="point"):
        crash_matrix(kitchens.plain, points=given)


# --- what is refused before anything runs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"processes": -1}, "processes="),
        ({"backend": "curio"}, "backend="),
        ({"adapters": 7}, "adapters="),
        ({"exclude": ["no/such"]}, "fits no node"),
    ],
)
def test_arguments_are_checked(how: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        crash_matrix(kitchens.plain, **how)


def test_what_cannot_cross_is_refused_before_anything_runs() -> None:
    ran: list[int] = []

    @kitchen.workflow
    def local(wf: WorkflowBuilder) -> None:
        wf.stage("run", lambda ctx: ran.append(1))

    with pytest.raises(ArgumentError, match=r"(?s)cannot find the workflow 'local'.*processes=0"):
        crash_matrix(local)
    with pytest.raises(ArgumentError, match=r"(?s)the adapter 'price' cannot be sent.*function"):
        crash_matrix(sound.priced, adapters={"price": lambda n: n})
    with pytest.raises(ArgumentError, match=r"(?s)adapters= cannot be sent.*top level"):
        crash_matrix(sound.priced, adapters=lambda: {"a": 1})
    with pytest.raises(ArgumentError, match="the config cannot be sent"):
        crash_matrix(kitchens.plain, {"local": lambda: None})
    assert ran == []
    assert crash_matrix(local, processes=0).points == 4


# --- finding a workflow from a fresh process ------------------------------------------------------

SCRIPT = """
import kitchen

class Config:
    pass

@kitchen.workflow
def small(wf):
    wf.stage("one", lambda ctx: ctx.state.update(one=ctx.rng.random()))
    wf.stage("two", lambda ctx: ctx.state.update(two=ctx.state["one"] * 2))

if __name__ == "__main__":
    from kitchen.testing import crash_matrix
    print(crash_matrix(small, processes=2))
"""


def test_a_module_that_is_on_no_path_is_found_by_its_file(tmp_path: Path) -> None:
    """As pytest imports test modules, and under the names that it gives them."""
    name = "some.where.test_by_file"
    file = tmp_path / "test_by_file.py"
    file.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        assert crash_matrix(module.small, processes=1).processes == 1
    finally:
        del sys.modules[name]


def test_a_script_can_call_it(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(file)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.startswith("small: completed after 3 appends; ")
    assert done.stderr == ""

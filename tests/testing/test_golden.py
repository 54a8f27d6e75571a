"""Golden traces, as a user has them: a folder of tests, pytest, and what it prints."""

from __future__ import annotations

import random
import re
import socket
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import ArgumentError, Context, WorkflowBuilder
from kitchen.history.golden import Telling, golden_text
from kitchen.history.patterns import Patterns, patterns
from store import MemoryStore

FLOW = """
import kitchen

def train(ctx):
    ctx.increment("steps")
    ctx.record_metric("loss", ctx.rng.random() / 3, step=ctx.state["steps"])
    ctx.state["where"] = f"{ctx.run_id} in {ctx.config.out}"

def report(ctx):
    ctx.state["report"] = f"{ctx.state['steps']} steps"

@kitchen.workflow
def training(wf):
    with wf.loop("epochs", over=lambda ctx: range(ctx.config.epochs)):
        wf.stage("train", train)
    wf.stage("report", report)
"""

TESTS = """
import pytest
from flow import training

def test_whole(run_workflow, golden, tmp_path):
    run = run_workflow(training, {"epochs": 2, "out": str(tmp_path / "out")})
    assert run == golden
    assert run == golden(level="stages")
    assert run == golden(level="state", exclude=["state.where", "report"], name="short")

@pytest.mark.parametrize("epochs", [1, 2])
class TestEpochs:
    def test_some(self, epochs, run_workflow, golden):
        assert golden == run_workflow(training, {"epochs": epochs, "out": "x"})

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_in_a_loop(run_workflow_async, golden, anyio_backend):
    assert await run_workflow_async(training, {"epochs": 1, "out": "x"}) == golden
"""

OTHER = """
from flow import training

def test_other(run_workflow, golden):
    assert run_workflow(training, {"epochs": 1, "out": "x"}) == golden
"""

WHOLE = """\
workflow training, seed 0
config.epochs = 2
config.out = '<tmp>/out'
epochs: entered, 2 items, from 0 by 1
epochs[0]: item
  epochs[0]/train: started
    epochs[0]/train: metric loss = 0.0418091 at step 1
    epochs[0]/train: steps = 1
    epochs[0]/train: where = '<run> in <tmp>/out'
  epochs[0]/train: completed
epochs[1]: item
  epochs[1]/train: started
    epochs[1]/train: metric loss = 0.0192829 at step 2
    epochs[1]/train: steps + 1
    epochs[1]/train: where = '<run> in <tmp>/out'
  epochs[1]/train: completed
epochs: exited
report: started
  report: report = '2 steps'
report: completed
run completed
"""

SHORT = """\
workflow training, seed 0
config.epochs = 2
config.out = '<tmp>/out'
    epochs[0]/train: steps = 1
  epochs[0]/train: completed
    epochs[1]/train: steps + 1
  epochs[1]/train: completed
run completed
"""


def files(pytester: pytest.Pytester) -> set[str]:
    folder = pytester.path / "__golden__"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(flow=FLOW, test_flow=TESTS, test_other=OTHER)
    return pytester


def run_pytest(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    bare = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-vv")
    return pytester.runpytest_subprocess(*bare, *arguments)


FLOW_GOLDENS = {
    "test_flow/test_whole.trace",
    "test_flow/test_whole.1.trace",
    "test_flow/test_whole[short].trace",
    "test_flow/TestEpochs.test_some[1].trace",
    "test_flow/TestEpochs.test_some[2].trace",
    "test_flow/test_in_a_loop[asyncio].trace",
    "test_flow/test_in_a_loop[trio].trace",
}


def test_goldens_are_written_compared_and_updated(project: pytest.Pytester) -> None:
    missing = run_pytest(project)
    missing.assert_outcomes(failed=6)
    missing.stdout.fnmatch_lines(["*there is no golden yet: pytest --snapshot-update writes it"])
    assert not (project.path / "__golden__").exists()

    run_pytest(project, "--snapshot-update").assert_outcomes(passed=6)
    assert files(project) == FLOW_GOLDENS | {"test_other/test_other.trace"}
    folder = project.path / "__golden__" / "test_flow"
    assert (folder / "test_whole.trace").read_text() == WHOLE
    assert (folder / "test_whole[short].trace").read_text() == SHORT
    one, other = (folder / f"test_in_a_loop[{name}].trace" for name in ("asyncio", "trio"))
    assert one.read_text() == other.read_text()
    run_pytest(project, "-n", "2").assert_outcomes(passed=6)

    flow = project.path / "flow.py"
    flow.write_text(flow.read_text().replace("/ 3", "/ 4"))
    changed = run_pytest(project, "test_flow.py::test_whole")
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines([
        "*the first difference is in line 7:",
        "*golden: epochs*0*/train: metric loss = 0.0418091 at step 1",
        "*run: *epochs*0*/train: metric loss = 0.0313568 at step 1",
    ])  # fmt: skip
    run_pytest(project, "-n", "2", "--snapshot-update").assert_outcomes(passed=6)
    run_pytest(project).assert_outcomes(passed=6)


def test_only_what_a_test_module_has_no_use_for_any_more_is_removed(
    project: pytest.Pytester,
) -> None:
    run_pytest(project, "--snapshot-update")
    before = files(project)
    run_pytest(project, "test_flow.py", "-k", "whole", "--snapshot-update")
    run_pytest(project, "test_other.py", "--snapshot-update")
    assert files(project) == before
    flow = project.path / "test_flow.py"
    flow.write_text(flow.read_text().replace("def test_whole", "def test_all"))
    run_pytest(project, "test_flow.py", "--snapshot-update").assert_outcomes(passed=5)
    assert files(project) == {name.replace("test_whole", "test_all") for name in before}


def test_each_golden_has_a_file_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        flow=FLOW,
        test_names="""
        import pytest
        from flow import training

        @pytest.mark.parametrize("n", [1, 2], ids=["a/b", "ab"])
        def test_odd(n, run_workflow, golden):
            assert run_workflow(training, {"epochs": n, "out": ""}) == golden(level="stages")

        @pytest.mark.parametrize("n", [1, 2], ids=lambda n: "long" * 100 + str(n))
        def test_long(n, run_workflow, golden):
            assert run_workflow(training, {"epochs": n, "out": ""}) == golden(level="stages")

        def test_held(run_workflow, golden):
            few, many = golden(level="stages", name="few"), golden(level="state", name="many")
            run = run_workflow(training, {"epochs": 1, "out": ""})
            assert run == few
            assert run == many

        def test_twice(run_workflow, golden):
            run = run_workflow(training, {"epochs": 1, "out": ""})
            assert run == golden(name="one")
            assert run == golden(name="one")
        """,
    )
    written = run_pytest(pytester, "-W", "error", "--snapshot-update")
    written.assert_outcomes(passed=5, failed=1)
    written.stdout.fnmatch_lines(["*two goldens of this test have the name 'one'*"])
    found = {name for name in files(pytester) if "long" not in name}
    assert found == {
        f"test_names/{name}.trace"
        for name in ("test_odd[a%2Fb]", "test_odd[ab]", "test_held[few]", "test_held[many]",
                     "test_twice[one]")
    }  # fmt: skip
    assert len(files(pytester)) == 7
    assert run_pytest(pytester, "-W", "error").parseoutcomes() == {"passed": 5, "failed": 1}
    few = pytester.path / "__golden__" / "test_names" / "test_held[few].trace"
    assert "steps" not in few.read_text()


def test_the_goldens_of_a_test_that_fails_are_kept(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        flow=FLOW,
        test_fails="""
        from flow import training

        def test_two(run_workflow, golden):
            run = run_workflow(training, {"epochs": 1, "out": ""})
            assert run == golden
            assert run == golden(level="state")
        """,
    )
    run_pytest(pytester, "--snapshot-update").assert_outcomes(passed=1)
    before = files(pytester)
    test = pytester.path / "test_fails.py"
    test.write_text(test.read_text().replace("    run =", "    raise ValueError\n    run ="))
    failed = run_pytest(pytester, "--snapshot-update")
    failed.assert_outcomes(failed=1)
    failed.stdout.no_fnmatch_line("*unused*")
    assert files(pytester) == before


def test_what_is_no_run_or_not_there_is_told(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        flow=FLOW,
        test_wrong="""
        import kitchen
        from flow import training

        def test_no_run(golden):
            assert 3 == golden

        def test_level(golden):
            golden(level="stage")

        def test_pattern(golden, run_workflow):
            assert run_workflow(training, {"epochs": 1, "out": ""}) == golden(exclude="epoch/train")

        def test_elsewhere(golden, kitchen_store, tmp_path):
            run = kitchen.run(training, {"epochs": 1, "out": ""}, store=tmp_path / "other.db")
            assert run == golden

        def test_a_history_knows_its_store(golden, tmp_path):
            path = tmp_path / "other.db"
            run = kitchen.run(training, {"epochs": 1, "out": ""}, store=path)
            assert kitchen.history(run.id, store=path) == golden
        """,
    )
    result = run_pytest(pytester, "--snapshot-update")
    result.assert_outcomes(failed=4, passed=1)
    result.stdout.fnmatch_lines_random([
        "*a golden is the trace of a run, and was compared with: int*",
        "*there is no level 'stage' of a trace*",
        "*the pattern 'epoch/train' fits no node of the workflow 'training'*",
        "*did you mean 'epochs/train'?*",
        "*is not in the store of this test*",
    ])  # fmt: skip
    assert files(pytester) == {"test_wrong/test_a_history_knows_its_store.trace"}


# --- what is told ---------------------------------------------------------------------------------


def pause(longest: float = 0.003) -> float:
    """Anything: what comes of it must be the same."""
    return random.SystemRandom().random() * longest


async def slowly(ctx: Context) -> None:
    await anyio.sleep(pause())
    ctx.state[f"of_{ctx.path.rpartition('/')[2]}"] = ctx.rng.random()
    ctx.record_metric(ctx.path, ctx.rng.random())
    await anyio.sleep(pause())


def in_a_thread(ctx: Context) -> None:
    time.sleep(pause())
    ctx.append("sums", (ctx.item("shards"), ctx.rng.random()))


async def produced(ctx: Context) -> float:
    await anyio.sleep(pause())
    return ctx.rng.random() + len(ctx.state["eaten"])


async def eat(ctx: Context) -> None:
    await anyio.sleep(pause())
    ctx.append("eaten", (ctx.item(), ctx.version(), ctx.staleness()))


async def streamed(ctx: Context) -> Any:
    for number in range(4):
        await anyio.sleep(pause())
        yield number + ctx.rng.random()


@kitchen.workflow
def beside(wf: WorkflowBuilder) -> None:
    wf.stage("init", lambda ctx: ctx.state.update(eaten=[], sums=[]))
    with wf.parallel("sides", merge={"eaten": "extend"}):
        wf.stage("left", slowly)
        with wf.branch("right"):
            wf.stage("first", slowly)
            with wf.stream_loop("items", over=streamed, prefetch=2):
                wf.stage("take", lambda ctx: ctx.append("taken", ctx.item()))
        with wf.branch("made"):
            with wf.async_loop(
                "items", producer=produced, stop_when=lambda ctx: ctx.index() == 4,
                buffer_size=2, producers=2,
            ):  # fmt: skip
                wf.stage("eat", eat)
    with wf.parallel("shards", over=lambda ctx: range(3), merge={"sums": "extend"}):
        wf.stage("work", in_a_thread)


@pytest.mark.slow
def test_a_hundred_runs_with_random_delays_have_one_golden() -> None:
    told: set[str] = set()
    orders: set[tuple[Any, ...]] = set()
    for _ in range(100):
        store = MemoryStore()
        run = kitchen.run(beside, store=store)
        history = kitchen.History(store, run.id)
        told.add(golden_text(history, Telling(round=None)))
        orders.add(tuple((r.type, r.path, r.visit) for r in store.read(run.id)))
    assert len(told) == 1
    assert len(orders) > 10, "the delays were to make a difference in the log"


def once(body: Any, **given: Any) -> kitchen.History:
    @kitchen.workflow
    def small(wf: WorkflowBuilder) -> None:
        wf.stage("first", body)
        with wf.loop("rounds", over=lambda ctx: [1.23456789]):
            wf.stage("second", lambda ctx: ctx.record_metric("kept", 1))

    store = MemoryStore()
    run_id = given.pop("run_id", None)
    try:
        run_id = kitchen.run(small, given, store=store, run_id=run_id).id
    except kitchen.RunError as error:
        run_id = error.run.id
    return kitchen.History(store, run_id)


def test_what_varies_by_itself_is_hidden_also_behind_a_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-7")

    def body(ctx: Context) -> None:
        place = f"{Path.home()}/data on {socket.gethostname()}"
        ctx.state["place"] = place
        ctx.state["long"] = [ctx.run_id] * 9
        ctx.state["file"] = f"{ctx.run_id}_best.pt"
        ctx.state[f"of {ctx.run_id}"] = {ctx.run_id: 1}

    told = {golden_text(once(body), Telling(level="state")) for _ in range(2)}
    assert len(told) == 1
    text = told.pop()
    assert "place = '<home>/data on <host>'" in text
    assert "file = '<run>_best.pt'" in text


def test_a_host_that_is_called_by_a_plain_word_is_no_word_to_hide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "loss")
    text = golden_text(once(lambda ctx: ctx.state.update(loss="the loss"), loss=1), Telling())
    assert "config.loss = 1" in text
    assert "loss = 'the loss'" in text


def test_what_ended_a_block_is_told() -> None:
    def told(error: type[Exception]) -> str:
        def fail(ctx: Context) -> None:
            raise error("no")

        @kitchen.workflow
        def handled(wf: WorkflowBuilder) -> None:
            wf.stage("fail", fail)
            with wf.on_error("handler"):
                wf.stage("note", lambda ctx: None)

        store = MemoryStore()
        kitchen.run(handled, store=store, run_id="r")
        return golden_text(kitchen.History(store, "r"), Telling())

    assert "failure handled, ValueError: no" in told(ValueError)
    assert told(ValueError) != told(KeyError)


def test_a_chosen_id_is_no_word_to_hide() -> None:
    history = once(lambda ctx: ctx.state.update(a=f"{ctx.run_id} first"), run_id="first")
    assert "a = 'first first'" in golden_text(history, Telling())


def test_failures_are_hidden_too() -> None:
    def fail(ctx: Context) -> None:
        raise OSError(f"no file {Path.home()}/x of {ctx.run_id}\nand more")

    text = golden_text(once(fail), Telling())
    assert text.endswith("run failed at first: OSError: no file <home>/x of <run>\n")


def test_floats_are_rounded_before_anything_is_left_out() -> None:
    def body(by: float) -> Any:
        return lambda ctx: ctx.state.update(x=[1 / 3 + by] * 30, y=1 / 3 + by)

    exact = [golden_text(once(body(by)), Telling(round=None)) for by in (0, 1e-9)]
    rounded = [golden_text(once(body(by)), Telling(round=4)) for by in (0, 1e-9)]
    assert exact[0] != exact[1]
    assert rounded[0] == rounded[1]
    assert "y = 0.3333\n" in rounded[0]
    assert "[1.235]" in rounded[0]


@pytest.mark.parametrize(
    ("include", "exclude", "there", "gone"),
    [
        ((), "first", ["rounds[0]/second", "config.size"], ["first:"]),
        ("rounds", (), ["rounds[0]/second"], ["first:"]),
        ("rounds/second", (), ["rounds[0]/second"], ["first:", "rounds: entered"]),
        ((), ["state.*", "config.si?e"], ["first: metric", "kept"], ["a = 1", "config.size"]),
        ("state.a", (), ["a = 1", "kept", "config.size"], ["b = 2"]),
        ("metric.kept", "config.*", ["kept", "a = 1"], ["lost", "config"]),
        ((), "*/second", ["rounds[0]: item", "first:"], ["kept"]),
    ],
)
def test_patterns(include: Any, exclude: Any, there: list[str], gone: list[str]) -> None:
    def body(ctx: Context) -> None:
        ctx.state.update(a=1, b=2)
        ctx.record_metric("lost", 1)

    text = golden_text(once(body, size=1), Telling(patterns=patterns(include, exclude)))
    assert [word for word in there if word not in text] == []
    assert [word for word in gone if word in text] == []


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ({"include": "state.bset"}, "did you mean 'state.best'?"),
        ({"exclude": "state.bset"}, "did you mean 'state.best'?"),
        ({"include": "metric.loss"}, "there is metric.kept"),
        ({"exclude": "config.sise"}, "did you mean 'config.size'?"),
        ({"exclude": "resource.model"}, "no pattern resource.NAME"),
    ],
)
def test_names_that_fit_nothing(pattern: dict[str, str], told: str) -> None:
    history = once(lambda ctx: ctx.state.update(best=1), size=1)
    with pytest.raises(ArgumentError, match=re.escape(told)):
        golden_text(history, Telling(patterns=patterns(**pattern)))
    golden_text(history, Telling(patterns=patterns(exclude=["state.of_another_run", "metric.x"])))


@pytest.mark.parametrize("wrong", [3, [3], [""], ""])
def test_what_is_no_pattern_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="exclude= is a pattern or several"):
        patterns((), wrong)


def test_a_pattern_fits_a_node_and_what_is_below_it() -> None:
    only = Patterns(include=("a/*/c",))
    assert [only.shows(path) for path in ("a", "a/b", "a/b/c", "a/b/c/d", "a/b/cd", "x/b/c")] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("digits", [0, 18, True, "6"])
def test_digits_that_there_are_not(digits: Any) -> None:
    with pytest.raises(ArgumentError, match="significant digits"):
        Telling(round=digits)

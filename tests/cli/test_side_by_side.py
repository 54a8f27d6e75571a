"""What the CLI tells of branches, streams and producers."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from tests.cli.calling import DEADLINE, Kitchen

WORKFLOW = """
import kitchen


def start(ctx):
    ctx.state["seen"] = []


def numbers(ctx):
    yield from range(3)


def look(ctx):
    ctx.append("seen", ctx.item("numbers"))


def left(ctx):
    ctx.state["left"] = 1


def right(ctx):
    ctx.state["right"] = 2


def fails(ctx):
    raise ValueError("not today")


def make(ctx):
    return {"from": len(ctx.state["seen"])}


def enough(ctx):
    return len(ctx.state["seen"]) >= 5


@kitchen.workflow
def wide(wf):
    wf.stage("start", start)
    with wf.stream_loop("numbers", over=numbers):
        wf.stage("look", look)
    with wf.async_loop("made", producer=make, stop_when=enough):
        wf.stage("take", lambda ctx: ctx.append("seen", ctx.item("made")["from"]))
        wf.stage("check", lambda ctx: fails(ctx) if ctx.config.get("early") else None)
    with wf.parallel("both", on_error="finish", max_concurrency=1):
        wf.stage("left", left)
        with wf.branch("other"):
            wf.stage("right", right)
            wf.stage("fails", fails)
"""


def test_a_run_that_fails_among_branches(kitchen: Kitchen) -> None:
    kitchen.folder.joinpath("wide.py").write_text(textwrap.dedent(WORKFLOW))
    failed = kitchen("run", "wide:wide", "--id", "w", code=1)
    assert "both/other/fails failed: ValueError: not today; the others go on" in failed.stdout
    assert "run 'w' failed at both/other/fails" in failed.stderr
    assert "ValueError: not today" in failed.stderr

    log = kitchen("log", "w").stdout
    for line in (
        "LoopEntered         numbers",
        "ItemTaken           numbers[2]  2",
        'ItemProduced        made[0]/producer  {"from": 3} (from version 0)',
        "ItemDiscarded       made[2]  left",
        "BranchesStarted     both  2 branches, at most 1 at a time",
        "BranchFailed        both/other  ValueError: not today",
    ):
        assert line in log
    assert "-1 items" not in log

    shown = kitchen("show", "w").stdout
    assert "written by both/left, until it is joined\n  left  1" in shown
    assert "written by both/other, until it is joined\n  right  2" in shown
    assert kitchen.json("show", "w")["branches"] == {
        "both/left": {"left": "1"},
        "both/other": {"right": "2"},
    }


def test_a_run_that_fails_with_items_in_its_buffer(kitchen: Kitchen) -> None:
    kitchen.folder.joinpath("wide.py").write_text(textwrap.dedent(WORKFLOW))
    kitchen("run", "wide:wide", "early=true", "--id", "w", code=1)
    told = kitchen.json("show", "w")
    assert told["at"] == ["made[0]/check"]
    made = told["buffers"]["made"]
    assert made == list(range(len(made)))
    shown = kitchen("show", "w").stdout
    assert f"items made and not consumed\n  made  {', '.join(map(str, made))}" in shown


def test_a_branch_that_fails_while_another_cannot_be_stopped(kitchen: Kitchen) -> None:
    source = """
    import threading
    import kitchen

    begun, failed = threading.Event(), threading.Event()


    def slow(ctx):
        begun.set()
        failed.wait(20)


    def fails(ctx):
        begun.wait(20)
        raise ValueError("not today")


    class Watch:
        def on_facts(self, run, facts, state):
            if state.status == "failed":
                failed.set()

        def on_progress(self, *_):
            pass


    @kitchen.workflow
    def two(wf):
        with wf.parallel("p", max_concurrency=2):
            wf.stage("slow", slow)
            wf.stage("fails", fails)
    """
    kitchen.folder.joinpath("two.py").write_text(textwrap.dedent(source))
    script = "import two, kitchen.cli.plain as p; old = p.PlainLines.on_facts\n"
    script += "def told(self, *a): old(self, *a); two.Watch().on_facts(*a)\n"
    script += "p.PlainLines.on_facts = told\n"
    script += "from kitchen.cli import cli; cli(['run', 'two:two', '--id', 'w'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=kitchen.folder,
        capture_output=True,
        text=True,
    )
    assert "p/fails failed: ValueError: not today; waiting for p/slow to come back" in done.stdout
    assert "run 'w' failed at p/fails" in done.stderr


def test_a_workflow_that_a_function_made_is_found_again(kitchen: Kitchen) -> None:
    source = """
    import os
    import kitchen


    def step(ctx):
        assert os.path.exists("mended"), "not yet"


    def make(name):
        @kitchen.workflow
        def made(wf):
            wf.stage(name, step)

        return made


    small, large = make("small"), make("large")
    """
    kitchen.folder.joinpath("maker.py").write_text(textwrap.dedent(source))
    kitchen("run", "maker:large", "--id", "w", code=1)
    assert kitchen.json("show", "w")["locator"] == "maker:large"
    kitchen.folder.joinpath("mended").touch()
    assert "run w completed" in kitchen("resume", "w").stdout


@pytest.mark.parametrize("kind", ["producer", "source"])
def test_what_never_returns_does_not_keep_the_process(kitchen: Kitchen, kind: str) -> None:
    source = """
    import threading
    import kitchen

    never = threading.Event()


    def producer(ctx):
        print("waiting", flush=True)
        never.wait()


    def source(ctx):
        print("waiting", flush=True)
        never.wait()
        yield 1


    @kitchen.workflow
    def waiting(wf):
        if KIND == "producer":
            with wf.async_loop("x", producer=producer, stop_when=lambda ctx: True):
                wf.stage("s", lambda ctx: None)
        else:
            with wf.stream_loop("x", over=source):
                wf.stage("s", lambda ctx: None)
    """
    text = f"KIND = {kind!r}\n" + textwrap.dedent(source)
    kitchen.folder.joinpath("waiting.py").write_text(text)
    process = kitchen.start("run", "waiting:waiting", "--id", "w")
    assert process.stdout is not None
    while process.stdout.readline().strip() != "waiting":
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 130

"""What the CLI tells of branches, streams and producers."""

from __future__ import annotations

import textwrap

from tests.cli.calling import Kitchen

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

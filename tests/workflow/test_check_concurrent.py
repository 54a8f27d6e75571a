"""Every mistake in what runs beside each other is told at its line, with what to write instead."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.workflow.user_modules import fails, in_workflow

if TYPE_CHECKING:
    from pathlib import Path

ASYNC = "with wf.async_loop('a', work, asked, {}):  # <-\n  wf.stage('b', work)"
PARALLEL = "with wf.parallel({}):  # <-\n  wf.stage('b', work)"
OVER = "with wf.parallel('p', over=items):  # <1\n  "

LOOPS = {
    "prefetch of none": (
        "with wf.stream_loop('a', items, prefetch=0): ...  # <-",
        "prefetch= must be an int of at least 1, not 0",
        "prefetch=4",
    ),
    "prefetch of True": ("with wf.stream_loop('a', gen, True): ...  # <-", "not True", "="),
    "prefetch of a float": ("with wf.stream_loop('a', gen, 2.0): ...  # <-", "not 2.0", "="),
    "prefetch beyond": ("with wf.stream_loop('a', gen, 2**63): ...  # <-", "least 1, not 9", "="),
    "stream of items": (
        "with wf.stream_loop('a', over=[1]): ...  # <-",
        r"over= of the stream_loop 'a' must be a function of ctx, not a list",
        "lambda ctx",
    ),
    "called stream": ("with wf.stream_loop('a', gen(1)): ...  # <-", "not a gen", "lambda ctx"),
    "stream of two": ("with wf.stream_loop('a', two): ...  # <-", "ctx alone", "partial"),
    "stream without a name": (
        "with wf.stream_loop(gen, gen): ...  # <-",
        "name of a stream_loop must be a str",
        r"wf\.stream_loop\('batches'",
    ),
    "empty stream": ("with wf.stream_loop('a', gen): ...  # <-", "'a' is empty", "stage"),
    "empty async_loop": ("with wf.async_loop('a', work, asked): ...  # <-", "is empty", "stage"),
    "forgotten with": (
        "wf.async_loop('a', work, asked)  # <-\nwf.stage('b', work)",
        "the async_loop 'a' was never entered",
        r"with wf\.async_loop",
    ),
    "a generator as producer": (
        "with wf.async_loop('a', gen, asked): ...  # <-",
        "producer= of the async_loop 'a' is a generator function",
        "return one; what yields items is a wf.stream_loop",
    ),
    "an async generator as producer": (
        "with wf.async_loop('a', agen, asked): ...  # <-",
        "is a generator function",
        "stream_loop",
    ),
    "a called producer": (
        "with wf.async_loop('a', asked(1), asked): ...  # <-",
        "producer= of the async_loop 'a' must be a function of ctx, not True",
        "without calling it",
    ),
    "a producer of two": ("with wf.async_loop('a', two, asked): ...  # <-", "alone", "partial"),
    "stop_when of a generator": (
        "with wf.async_loop('a', work, gen): ...  # <-",
        "stop_when= of the async_loop 'a', gen, is a generator function",
        "True or False",
    ),
    "stop_when of none": (
        "with wf.async_loop('a', work, none): ...  # <-",
        "stop_when= of the async_loop 'a' is called with ctx alone",
        "partial",
    ),
    "no stop_when": ("with wf.async_loop('a', work, None): ...  # <-", "stop_when= .* None", "c"),
    "buffer_size": (ASYNC.format("buffer_size=0"), "buffer_size= must .* not 0", "=4"),
    "producers": (ASYNC.format("producers='2'"), "producers= must .* not '2'", "=4"),
    "more producers than room": (
        ASYNC.format("buffer_size=2, producers=3"),
        "producers=3, but buffer_size=2 lets only 2",
        "buffer_size=3",
    ),
    "max_staleness": (
        ASYNC.format("max_staleness=-1"),
        "max_staleness= must be an int of at least 0, not -1",
        "max_staleness=",
    ),
    "pacing": (
        ASYNC.format("pacing='fre'"),
        "pacing= must be 'paced' or 'free', not 'fre'",
        "did you mean 'free'?",
    ),
    "pacing of another kind": (ASYNC.format("pacing=True"), "not True", "'paced' is what holds"),
    "producer as a name": (
        "with wf.async_loop('a', work, asked):  # <1\n  wf.stage('producer', work)  # <-",
        r"'producer' is a reserved name in the async_loop 'a' of line (?P<one>\d+)",
        "another name for the stage",
    ),
    "stop_when as a name": (
        "def stop_when(ctx): ...\nwith wf.async_loop('a', work, stop_when):  # <1\n"
        "  with wf.conditional(stop_when): ...  # <-",
        r"'stop_when' is a reserved name .* of line (?P<one>\d+)",
        "for the conditional",
    ),
    "one name inside the other": (
        "with wf.stream_loop('a', items):  # <1\n  with wf.conditional(asked):\n"
        "    with wf.async_loop('a', work, asked): ...  # <-",
        r"async_loop 'a' stands inside the stream_loop 'a' of line (?P<one>\d+), so "
        r"ctx.item\('a'\) could mean either",
        "another name",
    ),
    "a parallel over in a loop of its name": (
        "with wf.async_loop('a', work, asked):  # <1\n  with wf.parallel('a', items): ...  # <-",
        r"parallel 'a' stands inside the async_loop 'a' of line (?P<one>\d+)",
        "another name",
    ),
    "a loop in a parallel over of its name": (
        "with wf.parallel('a', items):  # <1\n  with wf.loop('a', items): ...  # <-",
        r"loop 'a' stands inside the parallel 'a' of line (?P<one>\d+)",
        "another name",
    ),
}
BESIDE = {
    "two without a name": (
        "with wf.parallel():  # <1\n  wf.stage('a', work)\nwith wf.parallel(): ...  # <-",
        r"parallel 'parallel': the name is taken in this block by line (?P<one>\d+)",
        "another name with name=",
    ),
    "over without a name": (
        "with wf.parallel(over=items): ...  # <-",
        r"needs a name: ctx.item\(name\)",
        r"wf\.parallel\('evals', over=splits\)",
    ),
    "a function as a name": ("with wf.parallel(items): ...  # <-", "str, not a function", "over="),
    "over a list": ("with wf.parallel('p', [1]): ...  # <-", "over= of the parallel 'p'", "lam"),
    "empty": ("with wf.parallel(): ...  # <-", "the parallel 'parallel' is empty", "stage"),
    "at most none": (PARALLEL.format("max_concurrency=0"), "at least 1, not 0", "="),
    "at most True": (PARALLEL.format("max_concurrency=True"), "not True", "=4"),
    "at most a function of two": (
        PARALLEL.format("max_concurrency=two"),
        "max_concurrency= of the parallel 'parallel' is called with ctx alone",
        "partial",
    ),
    "at most a generator": (PARALLEL.format("max_concurrency=gen"), "generator", "an int"),
    "on_error": (
        PARALLEL.format("on_error='cancle'"),
        "on_error= must be 'cancel' or 'finish', not 'cancle'",
        "did you mean 'cancel'?",
    ),
    "merge of a list": (PARALLEL.format("merge=['a']"), "mapping .* not a list", "extend"),
    "merge of an int key": (PARALLEL.format("merge={1: 'sum'}"), "no str: 1", "merge="),
    "merge of a surrogate": (PARALLEL.format("merge={'\\ud800': 'sum'}"), "JSON cannot", "merge="),
    "merge by a typo": (
        PARALLEL.format("merge={'k': 'extnd'}"),
        r"merge=\{'k': ...\} of the parallel 'parallel': there is no reducer 'extnd'",
        "did you mean 'extend'?",
    ),
    "merge by nothing known": (PARALLEL.format("merge={'k': ''}"), "''", "sum, extend, union"),
    "merge by an int": (PARALLEL.format("merge={'k': 3}"), "reducer, not 3", "before, values"),
    "merge by a function of one": (
        PARALLEL.format("merge={'k': work}"),
        r"called with \(before, values\), but work takes \(ctx\)",
        "before, values",
    ),
    "merge by a generator": (
        PARALLEL.format("merge={'k': lambda before, values: (yield)}"),
        "is a generator function",
        "after the join",
    ),
    "merge by an async function": (
        "async def later(before, values): ...\n" + PARALLEL.format("merge={'k': later}"),
        "is an async function",
        "def merged",
    ),
    "a resource as a branch": (
        "with wf.parallel():  # <1\n  wf.resource('r', opened)  # <-",
        r"resource 'r' stands directly in the parallel 'parallel' of line (?P<one>\d+)",
        r"before the parallel, or inside the branch",
    ),
    "a checkpoint as a branch": (
        "wf.resource('r', opened)\nwith wf.parallel('p'):  # <1\n  wf.checkpoint()  # <-",
        r"checkpoint 'checkpoint' stands inside the parallel 'p' of line (?P<one>\d+): there is "
        "no cut among running siblings",
        "after the parallel",
    ),
    "a checkpoint deep in a branch": (
        "with wf.parallel('p'):  # <1\n  with wf.branch('b'):\n    wf.resource('r', opened)\n"
        "    with wf.loop('l', items):\n      with wf.conditional(asked):\n"
        "        wf.stage('a', work)\n      with wf.otherwise():\n        wf.checkpoint()  # <-",
        r"the parallel 'p' of line (?P<one>\d+): there is no cut",
        "after the parallel",
    ),
    "a checkpoint per item": (
        "wf.resource('r', opened)\n" + OVER + "wf.checkpoint()  # <-",
        r"the parallel 'p' of line (?P<one>\d+): there is no cut",
        "after the parallel",
    ),
    "a branch of nothing": (
        "with wf.branch('b'): ...  # <-",
        "branch 'b' stands in the workflow 'training', not directly in a parallel",
        r"with wf\.parallel\(\)",
    ),
    "a branch in a loop of a branch": (
        "with wf.parallel():\n  with wf.loop('l', items):\n    with wf.branch('b'): ...  # <-",
        "branch 'b' stands in the loop 'l', not directly",
        "directly in it",
    ),
    "a branch in a branch": (
        "with wf.parallel():\n  with wf.branch('a'):\n    with wf.branch('b'): ...  # <-",
        "branch 'b' stands in the branch 'a'",
        "directly in it",
    ),
    "a branch per item": (
        OVER + "with wf.branch('b'): ...  # <-",
        "in the parallel 'p', not directly in a parallel without over=",
        "leave it out",
    ),
    "two branches of a name": (
        "with wf.parallel():\n  wf.stage('b', work)  # <1\n  with wf.branch('b'): ...  # <-",
        r"branch 'b': the name is taken in this block by line (?P<one>\d+)",
        "another name",
    ),
    "a branch without a name": (
        "with wf.parallel():\n  with wf.branch(None): ...  # <-",
        "name of a branch must be a str, not None",
        "wf.branch",
    ),
    "an empty branch": (
        "with wf.parallel():\n  with wf.branch('b'): ...  # <-",
        "the branch 'b' is empty",
        "stage",
    ),
    "otherwise among branches": (
        "with wf.parallel():\n  wf.stage('a', work)\n  with wf.otherwise(): ...  # <-",
        "without a conditional",
        "next sibling",
    ),
}
WRITES = {
    "one key as a str": (
        "wf.stage('a', work, writes='loss')  # <-",
        "writes= of the stage 'a' must be state keys, not 'loss'",
        r"writes=\['loss', 'global_step'\]",
    ),
    "no keys": ("wf.stage('a', work, writes=3)  # <-", "must be state keys, not 3", "writes="),
    "a key of int": ("wf.stage('a', work, writes=[1])  # <-", "no str: 1", "writes="),
    "a surrogate": ("wf.stage('a', work, writes=['\\ud800'])  # <-", "JSON", "writes="),
    "two stages": (
        "with wf.parallel('p', merge={'l': 'sum'}):  # <1\n"
        "  wf.stage('a', work, writes=['l', 'k'])  # <2\n"
        "  wf.stage('b', work, writes=['l', 'k'])  # <-",
        r"the branches 'a' and 'b' of the parallel 'p' of line (?P<one>\d+) both write the state "
        r"key 'k': the stages 'a' of line (?P<two>\d+) and 'b' of line \d+",
        r"wf\.parallel\(merge=\{'k': 'sum'\}\) or another reducer; or write different keys",
    ),
    "at any depth": (
        "with wf.parallel():  # <1\n  with wf.branch('a'):\n    with wf.parallel('q'):\n"
        "      with wf.loop('l', items):\n        wf.stage('s', work, writes=['k'])  # <2\n"
        "  with wf.conditional(asked):\n    wf.stage('t', work)\n"
        "  with wf.otherwise():\n    wf.stage('t', work, writes=['k'])  # <-",
        r"'a' and 'asked' of the parallel 'parallel' of line (?P<one>\d+) .* 'a/q/l/s' of line "
        r"(?P<two>\d+) and 'asked/otherwise/t'",
        "merge=",
    ),
    "merged within, not without": (
        "with wf.parallel('p'):  # <1\n  with wf.parallel('q', merge={'k': 'sum'}):\n"
        "    wf.stage('a', work, writes=['k'])  # <2\n    wf.stage('b', work, writes=['k'])\n"
        "  wf.stage('c', work, writes=['k'])  # <-",
        r"the branches 'q' and 'c' of the parallel 'p' of line (?P<one>\d+) .* 'q/a' of line "
        r"(?P<two>\d+)",
        "merge=",
    ),
    "merged without, not within": (
        "with wf.parallel('p', merge={'k': 'sum'}):\n  with wf.parallel('q'):  # <1\n"
        "    wf.stage('a', work, writes=['k'])  # <2\n"
        "    wf.stage('b', work, writes=['k'])  # <-",
        r"the parallel 'q' of line (?P<one>\d+) .* 'a' of line (?P<two>\d+)",
        "merge=",
    ),
    "every instance": (
        OVER + "with wf.loop('l', items):\n    wf.stage('a', work, writes=['k'])  # <-",
        r"the stage 'l/a' writes the state key 'k' in every instance of the parallel 'p' of line "
        r"(?P<one>\d+)",
        r"wf\.parallel\('p', over=..., merge=\{'k': 'sum'\}\)",
    ),
    "every instance, merged within": (
        OVER + "with wf.parallel(merge={'k': 'sum'}):\n    wf.stage('a', work, writes=['k'])  # <-",
        r"'parallel/a' writes the state key 'k' in every instance of .* line (?P<one>\d+)",
        "merge=",
    ),
}


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        pytest.param(*case, id=name)
        for group in (LOOPS, BESIDE, WRITES)
        for name, case in group.items()
    ],
)
def test_a_mistake_beside(source: str, message: str, hint: str, tmp_path: Path) -> None:
    told, advised, marks = fails(tmp_path, in_workflow(source))
    found = re.search(message, told)
    assert found, told
    assert re.search(hint, advised), advised
    for group, mark in (("one", "1"), ("two", "2")):
        if group in found.groupdict():
            assert int(found[group]) == marks[mark]


DECLARED = """\
import dataclasses, msgspec
class State(msgspec.Struct, rename='camel'):
    global_step: int = 0
@dataclasses.dataclass
class Plain:
    loss: float = 0.0
"""
UNKNOWN = {
    "writes": (
        "State",
        "wf.stage('a', work, writes=['global_stp'])  # <-",
        "writes= of the stage 'a' names the state key 'global_stp', which State has not",
        "did you mean 'global_step'?",
    ),
    "merge": (
        "Plain",
        "with wf.parallel(merge={'zzz': sum}): ...  # <-",
        "merge= of the parallel 'parallel' names the state key 'zzz', which Plain has not",
        "its fields are: loss",
    ),
}


@pytest.mark.parametrize(
    ("state", "source", "message", "hint"), UNKNOWN.values(), ids=UNKNOWN.keys()
)
def test_a_key_that_the_declared_state_has_not(
    state: str, source: str, message: str, hint: str, tmp_path: Path
) -> None:
    declared = in_workflow(source).replace("@workflow", f"@workflow(state={state})")
    assert fails(tmp_path, DECLARED + declared)[:2] == (message, hint)


def test_a_refusal_that_is_caught_leaves_nothing_behind(tmp_path: Path) -> None:
    source = (
        "with wf.parallel():\n  wf.stage('a', work, writes=['k'])\n"
        "  try:\n    wf.stage('b', work, writes=['l', 'k'])\n  except ValueError: ...\n"
        "  wf.stage('b', work, writes=['l'])\n  wf.stage('c', work, writes=['k'])  # <-"
    )
    told, _, _ = fails(tmp_path, in_workflow(source))
    assert told.startswith("the branches 'a' and 'c'")

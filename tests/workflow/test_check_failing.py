"""Mistakes in what is said of failing: each is told at its line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.workflow.user_modules import fails, in_workflow

if TYPE_CHECKING:
    from pathlib import Path

NAMES = """\
import functools
from datetime import timedelta
from kitchen import Fatal, Retry, StageTimeout
class Executed(Stage):
    def execute(self, ctx): ...
class BadRollback(Executed):
    def rollback(self, ctx): ...
class BadValidate(Executed):
    def validate(self): ...
class NoRollback(Executed):
    rollback = None
class YieldingRollback(Executed):
    def rollback(self, ctx, error): yield
class Aware:
    def method(self, ctx): ...
    async def __call__(self, ctx): ...
"""

TERMS = {
    "a bool": ("retries=True", "retries= must be an int .* or a Retry, not True", "retries=3"),
    "too few": ("retries=-1", "not -1", r"kitchen\.Retry"),
    "a float": ("retries=1.5", "not 1.5", "retries=3"),
    "a word": ("retries='3'", "not '3'", "retries=3"),
    "the class": ("retries=Retry", "not the class Retry", "retries=3"),
    "retry of a bool": ("retries=Retry(True)", "retries= must be an int of at least 0", "retries="),
    "retry of less": ("retries=Retry(-1)", "at least 0, not -1", "retries="),
    "backoff": ("retries=Retry(1, backoff=-1)", "backoff= must be seconds, .* not -1", "backoff="),
    "backoff of nan": ("retries=Retry(1, float('nan'))", "number of at least 0, not nan", "=1"),
    "delay": ("retries=Retry(1, max_delay='1')", "max_delay= must be seconds", "max_delay=1"),
    "endless delay": ("retries=Retry(1, max_delay=float('inf'))", "not inf", "max_delay=1"),
    "enormous delay": ("retries=Retry(1, max_delay=10**400)", "must be seconds", "max_delay=1"),
    "jitter": ("retries=Retry(1, jitter=1.5)", "share, a number from 0 to 1, not 1.5", "=0.5"),
    "jitter of a bool": ("retries=Retry(1, jitter=True)", "not True", "jitter="),
    "on a word": ("retries=Retry(1, on='OSError')", "exception type .* not 'OSError'", "subclass"),
    "on an instance": ("retries=Retry(1, on=OSError())", "not an OSError", "subclasses"),
    "on nothing": ("retries=Retry(1, on=())", "names no exception", "on="),
    "on a list": ("retries=Retry(1, on=[OSError])", "tuple of them, not a list", "on="),
    "on more": ("retries=Retry(1, on=(OSError, BaseException))", "class BaseException", "subcl"),
    "on a signal": ("retries=Retry(1, on=KeyboardInterrupt)", "KeyboardInterrupt", "subclasses"),
    "on fatal": ("retries=Retry(1, on=Fatal)", "Fatal, .* never tried again", "StageTimeout"),
    "timeout of 0": ("timeout=0", "timeout= must be a number of seconds above 0, not 0", "=600"),
    "timeout below 0": ("timeout=-1.5", "above 0, not -1.5", "timeout=600"),
    "timeout of a bool": ("timeout=True", "not True", "timeout=600"),
    "timeout of a word": ("timeout='10m'", "not '10m'", "timeout=600"),
    "timeout of nan": ("timeout=float('nan')", "not nan", "timeout=600"),
    "endless timeout": ("timeout=float('inf')", "not inf", "timeout=600"),
    "enormous timeout": ("timeout=10**400", "number of seconds", "timeout=600"),
    "timedelta of 0": ("timeout=timedelta(0)", "not timedelta 0:00:00", "timeout=600"),
    "timeout without a thread": ("timeout=1, thread=False", "nothing could stop it", "async"),
    "effect": ("effect='one'", "effect= must be 'repeatable' or 'once'", "did you mean 'once'"),
    "effect of None": ("effect=None", "not None", "'repeatable' is what holds without"),
    "on_error": ("on_error='cancel'", "on_error= must be 'fail' or 'skip'", "'fail' is what"),
    "on_error near": ("on_error='skipp'", "not 'skipp'", "did you mean 'skip'"),
    "process": ("process=1", "process= must be True or False", "process=True"),
    "process alone": ("process=True, thread=False", "process=True and thread=False", "leave"),
}


@pytest.mark.parametrize(("terms", "message", "hint"), TERMS.values(), ids=TERMS.keys())
def test_a_mistake_in_what_a_stage_says(
    terms: str, message: str, hint: str, tmp_path: Path
) -> None:
    source = NAMES + in_workflow(f"wf.stage('a', work, {terms})  # <-")
    told, advised, _ = fails(tmp_path, source)
    assert re.search(message, told), told
    assert re.search(hint, advised), advised


BODIES = {
    "lambda": ("lambda ctx: 1, process=True", "with process=True is a lambda; a worker", "top"),
    "closure": ("made(), process=True", "made inside another", "top level"),
    "partial": ("functools.partial(two, 1), process=True", r"a functools\.partial", "options"),
    "bound": ("Aware().method, process=True", r"the bound method Aware\.method", "top level"),
    "object": ("Aware(), process=True", "an async function", "top level"),
    "async": ("coro, process=True", "an async function", "top level"),
    "stage": ("Executed, process=True", "the stage class Executed", "top level"),
    "instance": ("Executed(), process=True", "the stage class Executed", "top level"),
    "of an object": ("[].append, process=True", "not what .*list.append is there", "top level"),
    "not imported": ("work, process=True", r"not what user_module_\d+:work is there", "top level"),
    "rollback": (
        "BadRollback",
        r"is called with \(ctx, error\), but rollback takes \(ctx\)",
        "err",
    ),
    "validate": ("BadValidate", r"is called with ctx alone, but validate takes \(\)", "self, ctx"),
    "instance's": ("BadRollback()", "rollback of the stage 'a'", "async def rollback"),
    "no method": ("NoRollback", "rollback of the stage 'a' must be a method, not None", "def roll"),
    "generator": ("YieldingRollback", "rollback of the stage 'a' is a generator", "yield"),
    "partial in the loop": (
        "functools.partial(two, 1), timeout=1, thread=False",
        "its body is sync and has thread=False",
        "leave thread=False out",
    ),
    "stage in the loop": ("Executed, timeout=1, thread=False", "is sync", "make the body async"),
}


@pytest.mark.parametrize(("body", "message", "hint"), BODIES.values(), ids=BODIES.keys())
def test_a_body_that_does_not_fit(body: str, message: str, hint: str, tmp_path: Path) -> None:
    made = "def made():\n    def inner(ctx): ...\n    return inner\n"
    told, advised, _ = fails(tmp_path, NAMES + made + in_workflow(f"wf.stage('a', {body})  # <-"))
    assert re.search(message, told), told
    assert re.search(hint, advised), advised


BLOCKS = {
    "no seconds": ("with wf.timeout(None): ...  # <-", "seconds above 0, not None", "3600"),
    "a name": ("with wf.timeout('training'): ...  # <-", "not 'training'", "wf.timeout"),
    "a timeout's name": ("with wf.timeout(1, name='a b'): ...  # <-", "name of a timeout", "lett"),
    "no str": ("with wf.timeout(1, name=2): ...  # <-", "must be a str, not 2", "name='training'"),
    "an empty timeout": (
        "with wf.timeout(1): ...  # <-",
        "the timeout 'timeout' is empty",
        "stage",
    ),
    "two timeouts": (
        "with wf.timeout(1):  # <1\n  wf.stage('a', work)\n"
        "with wf.timeout(2):  # <-\n  wf.stage('a', work)",
        "timeout 'timeout': the name is taken in this block by line {1}",
        "with name=",
    ),
    "a timeout without with": (
        "wf.timeout(1)  # <-\nwf.stage('a', work)",
        "the timeout 'timeout' was never entered",
        "with wf.timeout",
    ),
    "a handler's name": (
        "with wf.on_error(3): ...  # <-",
        "name of an on_error must",
        "evaluation",
    ),
    "reserved": (
        "wf.stage('a', work)\nwith wf.on_error('otherwise'): ...  # <-",
        "reserved",
        "another name for the on_error",
    ),
    "first": (
        "with wf.on_error(): ...  # <-",
        "on_error 'on_error' is the first in the workflow 'training'",
        "next sibling",
    ),
    "first in a block": (
        "wf.stage('a', work)\nwith wf.loop('l', items):\n  with wf.on_error('e'): ...  # <-",
        "on_error 'e' is the first in the loop 'l'",
        "next sibling",
    ),
    "first in another": (
        "wf.stage('a', work)\nwith wf.on_error('e'):\n  with wf.on_error('f'): ...  # <-",
        "on_error 'f' is the first in the on_error 'e'",
        "next sibling",
    ),
    "behind another": (
        "wf.stage('a', work)\nwith wf.on_error(): ...  # <1\nwith wf.on_error('e'): ...  # <-",
        "on_error 'e' stands behind the on_error 'on_error' of line {1}",
        "both into one",
    ),
    "behind a skip": (
        "wf.stage('a', work, on_error='skip')  # <1\nwith wf.on_error(): ...  # <-",
        "could never run: the stage 'a' of line {1} says on_error='skip'",
        "leave one",
    ),
    "among branches": (
        "with wf.parallel():  # <1\n  wf.stage('a', work)\n  with wf.on_error(): ...  # <-",
        "directly in the parallel 'parallel' of line {1}, among its branches",
        r"wf\.branch",
    ),
    "twice the name": (
        "wf.stage('a', work)\nwith wf.on_error(): ...  # <1\nwf.stage('b', work)\n"
        "with wf.on_error(): ...  # <-",
        "on_error 'on_error': the name is taken in this block by line {1}",
        "name=",
    ),
    "the name of what it handles": (
        "wf.stage('a', work)  # <1\nwith wf.on_error('a'): ...  # <-",
        "on_error 'a': the name is taken in this block by line {1}",
        "name=",
    ),
    "before otherwise": (
        "with wf.conditional(asked):\n  wf.stage('a', work)\nwith wf.on_error('e'): ...  # <1\n"
        "with wf.otherwise():  # <-\n  wf.stage('b', work)",
        "otherwise stands behind the on_error 'e' of line {1}",
        "on_error behind both",
    ),
    "a handler without with": (
        "wf.stage('a', work)\nwf.on_error()  # <-\nwf.stage('b', work)",
        "the on_error 'on_error' was never entered",
        "with wf.on_error",
    ),
    "a cut in a handler in a parallel": (
        "wf.resource('r', opened)\nwith wf.parallel():  # <1\n  with wf.branch('b'):\n"
        "    wf.stage('a', work)\n    with wf.on_error():\n      wf.checkpoint()  # <-",
        "inside the parallel 'parallel' of line {1}: there is no cut",
        "after the parallel",
    ),
    "a resource in a timeout": (
        "with wf.timeout(1):\n  wf.resource('r', opened)\nwf.checkpoint()  # <-",
        "there is none",
        "around it",
    ),
}


@pytest.mark.parametrize(("source", "message", "hint"), BLOCKS.values(), ids=BLOCKS.keys())
def test_a_mistake_in_a_block(source: str, message: str, hint: str, tmp_path: Path) -> None:
    told, advised, marks = fails(tmp_path, in_workflow(source))
    wanted = re.sub(r"\{(\d)\}", lambda mark: str(marks[mark[1]]), message)
    assert re.search(wanted, told), told
    assert re.search(hint, advised), advised

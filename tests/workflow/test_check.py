"""Every mistake in a builder call is told at its line, and says what to write instead."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.workflow.user_modules import fails, in_workflow

if TYPE_CHECKING:
    from pathlib import Path

INSIDE = {
    "not a name": ("wf.stage(work, work)  # <-", "must be a str, not a function", r"wf\.stage\("),
    "empty name": ("wf.stage('', work)  # <-", "'' cannot be the name of a stage", "letters"),
    "a slash": ("wf.stage('a/b', work)  # <-", "'a/b' cannot be", "letters"),
    "a blank": ("with wf.loop('a b', items): ...  # <-", "name of a loop", "letters"),
    "a newline": ("wf.stage('a\\n', work)  # <-", "cannot be", "letters"),
    "a question mark": ("wf.resource('?a', opened)  # <-", "name of a resource", "letters"),
    "an option": ("wf.stage('-a', work)  # <-", "cannot be the name", "begin with"),
    "reserved": ("wf.stage('otherwise', work)  # <-", "reserved", "another name"),
    "checkpoint's name": (
        "wf.resource('a', opened)\nwf.checkpoint('')  # <-",
        "name of a checkpoint",
        "letters",
    ),
    "conditional's name": ("with wf.conditional(asked, 3): ...  # <-", "str, not 3", "name="),
    "lambda of a reserved name": (
        "def otherwise(ctx): ...\nwith wf.conditional(otherwise): ...  # <-",
        "reserved",
        "name for the conditional",
    ),
    "twice in a loop's name": (
        "wf.stage('a', work)\nwith wf.loop('a', items):  # <-\n    wf.stage('b', work)",
        "loop 'a': the name is taken",
        "another name",
    ),
    "nested loops": (
        "with wf.loop('a', items):\n  with wf.conditional(asked):\n"
        "    with wf.loop('a', items):  # <-\n      wf.stage('b', work)",
        r"ctx.item\('a'\) could mean either",
        "another name",
    ),
    "otherwise first": (
        "with wf.otherwise():  # <-\n  wf.stage('a', work)",
        "without a conditional right before",
        "wf.conditional",
    ),
    "otherwise later": (
        "with wf.conditional(asked):\n  wf.stage('a', work)\nwf.stage('b', work)\n"
        "with wf.otherwise():  # <-\n  wf.stage('c', work)",
        "without a conditional right before",
        "next sibling",
    ),
    "otherwise inside": (
        "with wf.conditional(asked):\n  with wf.otherwise():  # <-\n    wf.stage('a', work)",
        "without a conditional",
        "next sibling",
    ),
    "otherwise twice": (
        "with wf.conditional(asked):\n  wf.stage('a', work)\n"
        "with wf.otherwise():\n  wf.stage('a', work)\n"
        "with wf.otherwise():  # <-\n  wf.stage('a', work)",
        r"conditional 'asked' of line \d+ has an otherwise already",
        "nest",
    ),
    "empty loop": ("with wf.loop('a', over=items): ...  # <-", "the loop 'a' is empty", "stage"),
    "empty conditional": (
        "with wf.conditional(asked):  # <-\n  pass\nwf.stage('a', work)",
        "the conditional 'asked' is empty",
        "stage",
    ),
    "empty otherwise": (
        "with wf.conditional(asked):\n  wf.stage('a', work)\nwith wf.otherwise(): ...  # <-",
        "the otherwise is empty",
        "stage",
    ),
    "checkpoint of nothing": (
        "wf.stage('a', work)\nwf.checkpoint()  # <-",
        "there is none",
        "wf.resource",
    ),
    "checkpoint too early": (
        "wf.checkpoint()  # <-\nwf.resource('a', opened)",
        "there is none",
        "wf.resource",
    ),
    "checkpoint of a closed resource": (
        "with wf.loop('l', items):\n  wf.resource('a', opened)\nwf.checkpoint()  # <-",
        "there is none",
        "around it",
    ),
    "checkpoint of the other arm": (
        "with wf.conditional(asked):\n  wf.resource('a', opened)\n"
        "with wf.otherwise():\n  wf.checkpoint()  # <-",
        "there is none",
        "around it",
    ),
    "checkpoint of stateless": (
        "wf.resource('a', opened, stateful=False)\nwf.checkpoint()  # <-",
        "there is none",
        "wf.resource",
    ),
    "forgotten with": (
        "wf.loop('a', over=items)  # <-\nwf.stage('b', work)",
        "the loop 'a' was never entered: its `with` is missing",
        "with wf.loop",
    ),
    "forgotten with, at the end": (
        "wf.stage('b', work)\nwf.conditional(asked)  # <-",
        "the conditional 'asked' was never entered",
        "with wf.conditional",
    ),
    "forgotten with, in a block": (
        "with wf.loop('a', items):\n  wf.conditional(asked)  # <-",
        "was never entered",
        "with wf.conditional",
    ),
    "forgotten with, then otherwise": (
        "wf.conditional(asked)  # <-\nwf.stage('a', work)\nwith wf.otherwise():\n  pass",
        "was never entered",
        "with wf.conditional",
    ),
    "entered twice": (
        "block = wf.loop('a', items)\nwith block:\n  wf.stage('a', work)\n"
        "with block:  # <-\n  wf.stage('b', work)",
        "entered already",
        "call the builder again",
    ),
    "entered inside itself": (
        "block = wf.loop('a', items)\nwith block:\n  with block:  # <-\n    wf.stage('b', work)",
        "entered already",
        "call the builder again",
    ),
    "entered by hand": (
        "wf.loop('a', items).__enter__()  # <-\nwf.stage('b', work)",
        "never left",
        "with",
    ),
    "left out of order": (
        "outer, inner = wf.loop('a', items), None\nouter.__enter__()\n"
        "inner = wf.loop('b', items)\ninner.__enter__()\nwf.stage('c', work)\n"
        "outer.__exit__(None, None, None)  # <-",
        "out of order",
        "with",
    ),
    "a stack of blocks": (
        "with contextlib.ExitStack() as stack:\n  block = wf.loop('a', items)\n"
        "  stack.enter_context(block)\n  wf.stage('a', work)\n"
        "  stack.enter_context(block)  # <-",
        "entered already",
        "again",
    ),
    "if": (
        "if wf.conditional(asked):  # <-\n  wf.stage('a', work)",
        "used as a truth value",
        "with wf.conditional",
    ),
    "a bool": (
        "with wf.conditional(asked(None)):  # <-\n  wf.stage('a', work)",
        "predicate of a conditional must be a function of ctx, not True",
        "without calling it",
    ),
    "None": ("with wf.conditional(None): ...  # <-", "not None", "without calling it"),
    "a name of a function": (
        "with wf.loop('a', over='items'): ...  # <-",
        "over= of the loop 'a' must be a function of ctx, not 'items'",
        "not its name",
    ),
    "items themselves": (
        "with wf.loop('a', over=range(3)): ...  # <-",
        "function of ctx, not a range",
        "lambda ctx",
    ),
    "a called stage": ("wf.stage('a', coro(None))  # <-", "not a coroutine", "without calling"),
    "body of two": ("wf.stage('a', two)  # <-", r"two takes \(ctx, more\)", "partial"),
    "body of none": ("wf.stage('a', none)  # <-", r"none takes \(\)", r"def f\(ctx\)"),
    "an unbound method": (
        "wf.stage('a', Needy.execute)  # <-",
        r"execute takes \(self, ctx\)",
        r"def f\(ctx\)",
    ),
    "predicate of two": ("with wf.conditional(two): ...  # <-", "ctx alone", "partial"),
    "over of none": ("with wf.loop('a', none): ...  # <-", "ctx alone", "ctx"),
    "factory of two": ("wf.resource('a', two)  # <-", "factory of the resource 'a'", "partial"),
    "no factory": ("wf.resource('a')  # <-", "not None", "function itself"),
    "generator": ("wf.stage('a', gen)  # <-", "generator function", "return instead"),
    "async generator": ("wf.stage('a', agen)  # <-", "generator function", "return instead"),
    "generator object": ("wf.stage('a', Object())  # <-", "generator function", "return"),
    "generator stage": ("wf.stage('a', Yields)  # <-", "generator function", "return instead"),
    "generator predicate": ("with wf.conditional(gen): ...  # <-", "generator", "True or False"),
    "generator factory": ("wf.resource('a', gen)  # <-", "generator", "contextmanager"),
    "another class": ("wf.stage('a', Plain)  # <-", "a class that is no Stage", "Stage"),
    "abstract stage": ("wf.stage('a', Abstract)  # <-", "has no execute", "def execute"),
    "stage with arguments": ("wf.stage('a', Needy)  # <-", r"needs arguments: \(path\)", "inst"),
    "stage that fails": ("wf.stage('a', Broken)  # <-", "RuntimeError: no disk", "instance"),
    "stage without ctx": ("wf.stage('a', Odd)  # <-", r"execute takes \(\)", "ctx"),
    "thread": ("wf.stage('a', work, thread=None)  # <-", "thread= must be", "thread=True"),
    "stateful": ("wf.resource('a', opened, stateful=1)  # <-", "stateful= must", "leave it out"),
    "key with a factory": (
        "wf.resource(Resource('a', opened), opened)  # <-",
        r"Resource\('a', opened\) says by itself",
        "key alone",
    ),
    "bad key": ("wf.resource(Resource('', opened))  # <-", "name of a resource", "letters"),
    "options": ("wf.stage('a', work, options=3)  # <-", "must be a mapping, not 3", "options="),
    "an object": (
        "wf.stage('a', work, options={'m': {'n': [1, object()]}})  # <-",
        r"options\['m'\]\['n'\]\[1\] is an object, which does not come back",
        "resource",
    ),
    "a tuple": ("wf.stage('a', work, options={'t': (1,)})  # <-", r"\['t'\] is a tuple", "list"),
    "nan": ("wf.stage('a', work, options={'t': float('nan')})  # <-", "is nan", "float"),
    "big": ("wf.stage('a', work, options={'t': 2**63})  # <-", "is 9223372036854775808", "int"),
    "a surrogate": ("wf.stage('a', work, options={'t': '\\ud800'})  # <-", r"\['t'\]", "str"),
    "key of int": ("wf.stage('a', work, options={'t': {1: 2}})  # <-", "has the key 1", "str"),
    "a cycle": (
        "loop = []\nloop.append(loop)\nwf.stage('a', work, options={'t': loop})  # <-",
        r"\['t'\]\[0\] contains itself",
        "list",
    ),
}


@pytest.mark.parametrize(("source", "message", "hint"), INSIDE.values(), ids=INSIDE.keys())
def test_a_mistake_inside(source: str, message: str, hint: str, tmp_path: Path) -> None:
    told, advised, _ = fails(tmp_path, in_workflow(source))
    assert re.search(message, told)
    assert re.search(hint, advised)

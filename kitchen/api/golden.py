"""A recorded run as a test: what is to be written, as data. Nothing is written here.

Rules:

1. The log alone is read, and no code that it names is imported. It may be anybody's: what of it gets
   into Python is names that are identifiers, and what `literals.py` writes.
2. A run is refused where a fresh run of the same workflow, config and seed would not do the same, as
   far as the log tells: it has not ended, or somebody had it go another way.
3. No secret is in the log, so none can get into the test: the variables are set to a text of no use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kitchen.adapters.event_store import StoreLike, opened
from kitchen.api.golden_source import LONGEST, Module, Place, importable
from kitchen.api.literals import Literals, laid
from kitchen.errors import ArgumentError
from kitchen.history.golden import FOLDER, SUFFIX, Telling, golden_text
from kitchen.history.history import History
from kitchen.log.reader import fact_of
from kitchen.machine.codec import Codec
from kitchen.machine.events import EffectDecided, RunRewound
from kitchen.runner import hidden

_TURNS = {
    "RunEdited": "its config, seed or state was edited on the way",
    "RunRewound": "it was sent back, to go another way",
    "WorkflowChanged": "its workflow changed on the way",
    "EffectDecided": "a stage was skipped, as somebody had decided",
}
_TAKEN_UP = ("RunForked", "RunInterrupted", "RunResumed")
_PROJECT = ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg", "setup.py")
_DEEPEST = 50  # folders


class GoldenTest(NamedTuple):
    """A run as a test: `source` goes to `module`, `trace` to `golden`. `name`: that of the test."""

    run: str
    name: str
    module: Path
    source: str
    golden: Path
    trace: str
    notes: tuple[str, ...] = ()


def golden_test(
    run_id: str,
    target: str | Path,
    *,
    telling: Telling | None = None,
    workflow: str | None = None,
    name: str | None = None,
    store: StoreLike = None,
) -> GoldenTest:
    """A run as a test that does it again and compares.

    `target`: the test module, or the folder for one whose name is made of workflow and run.
    `telling`: what of the run is told. `workflow`: "module:name", where the log does not lead to it.
    `name`: that of the test, made of the run's id if left out.

    Raises `ArgumentError` where the run, or an argument, makes no test, `ConfigError` where the config
    cannot be written as Python, `UnknownRun`, `HistoryError`, `StoreError`.
    """
    telling = Telling() if telling is None else telling
    with opened(store, create=False, read_only=True) as events:
        past = History(events, run_id)
        _refuse(past, telling)
        place = _place(past, workflow)
        stem = _stem(run_id)
        function = _function(name if name is not None else stem)
        module = _module(Path(target), past, stem)
        literals = Literals()
        config = literals.code(_config(past), "config")
        hide = _hidden_folders(past, module, laid(config))
        trace = golden_text(past, telling, hide)
        # Where the id is in the trace, the test has to have it too; it may be in a digest alone.
        apart = {**hide, run_id: "<run>"}
        told = trace.partition("\n")[2]  # the first line has the workflow's name
        named = run_id in told or golden_text(past, telling, apart) != trace
        source = Module(past, place, function, telling, literals, config, named=named).source()
        golden = module.parent / FOLDER / module.stem / f"{function}.{SUFFIX}"
        return GoldenTest(
            run_id, function, module, source, golden, trace, tuple(_notes(past, module))
        )


# --- what makes no test ---------------------------------------------------------------------------


def _refuse(past: History, telling: Telling) -> None:
    """Raises `ArgumentError` where a fresh run would not do what this one did."""
    run, status = past.run_id, past.status
    _ = past.started  # a log without a beginning is told as such
    if status == "cancelled":
        raise ArgumentError(
            f"run {run!r} was cancelled, which a fresh run would not be",
            hint="make the test of a run that came to its end",
        )
    if status not in ("completed", "failed"):
        todo = {
            "running": "wait for its end",
            "undecided": f"kitchen show {run} tells what has to be decided",
        }
        raise ArgumentError(
            f"run {run!r} has not ended: it is {status}",
            hint=todo.get(status, f"resume it first: kitchen resume {run}"),
        )
    for record in past.store.read(run, types=_TURNS):
        event = fact_of(record).event
        if isinstance(event, RunRewound) and not event.asked:
            continue
        if isinstance(event, EffectDecided) and event.choice != "skip":
            continue
        raise ArgumentError(
            f"a fresh run would not do what {run!r} did: {_TURNS[record.type]} (event {record.seq})",
            hint="start a run with the config and the workflow as they are now, and make the test of that",
        )
    taken_up = past.store.latest(run, _TAKEN_UP) if telling.life else None
    if taken_up is not None:
        raise ArgumentError(
            f"the life of run {run!r} has a {taken_up.type} (event {taken_up.seq}), "
            "and that of a fresh run has not",
            hint="leave life out: what the run did is the same",
        )


def _notes(past: History, module: Path) -> Iterator[str]:
    """What to know before one relies on the test."""
    diverged = past.store.latest(past.run_id, ("RewindDiverged",))
    if diverged is not None:
        yield (
            f"when a part of this run ran again, it did something else (event {diverged.seq}): "
            "the test may fail on unchanged code"
        )
    if not (module.stem.startswith("test_") or module.stem.endswith("_test")):
        yield f"pytest collects test_*.py by itself, and {module.name} only where it is named"


# --- names ----------------------------------------------------------------------------------------


def _place(past: History, given: str | None) -> Place:
    if given is not None:
        module, _, name = given.rpartition(":")
        found = importable(module, name)
        if found is None:
            raise ArgumentError(
                f"{given[:200]!r} is nothing that a test could import",
                hint="write module:name, as in train:training",
            )
        return found
    locator = past.started.locator
    found = importable(locator.module, locator.qualname) if locator is not None else None
    if found is not None:
        return found
    script, example = "", "module:name"
    if locator is not None and locator.module == "__main__":
        script = ": it was started by a script"
        near = importable(Path(locator.file).stem, locator.qualname)
        example = str(near) if near is not None else example
    elif locator is not None:
        script = f": {str(locator)[:200]!r} is no module and name in it"
    raise ArgumentError(
        f"the log of run {past.run_id!r} does not say where a test could import its workflow{script}",
        hint=f"say where it is: --workflow {example} (in Python, workflow=)",
    )


def _stem(words: str) -> str:
    """A name made of a text of any kind."""
    return re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_")[:LONGEST].strip("_") or "run"


def _function(given: str) -> str:
    name = given if given.startswith("test_") else f"test_{given}"
    if not (name.isidentifier() and name.isascii()):
        raise ArgumentError(f"{given[:200]!r} is no name for a test", hint="as in test_training")
    return name


def _module(target: Path, past: History, stem: str) -> Path:
    """The test module: what was named, or a name of its own in the folder that was."""
    if target.suffix == ".py" and not target.is_dir():
        return target
    workflow = _stem(past.started.workflow)
    named = stem if stem.startswith(workflow) else f"{workflow}_{stem}"
    return target / f"test_{named}.py"


def _hidden_folders(past: History, module: Path, config: str) -> dict[str, str]:
    """What stands for the project's folder, here and where the run was recorded: the fixture
    `golden` does the same with pytest's root. One that the config names is named in the test too."""
    here = module.parent.absolute()
    folders = [here, *here.parents]
    root = next((f for f in folders if any((f / ini).is_file() for ini in _PROJECT)), Path.cwd())
    hide = {str(root): "<root>"}
    locator = past.started.locator
    parts = Path(locator.file).parts if locator is not None else ()
    for at in range(2, min(len(parts), _DEEPEST)):
        there = str(Path(*parts[:at]))
        # Not Path.is_file: it raises where a name is too long.
        if os.path.isfile(root.joinpath(*parts[at:])):
            return hide if there in config else {**hide, there: "<root>"}
    return hide


def _config(past: History) -> Any:
    """The config as it was recorded, with secrets in the place of their marks."""
    _ = past.config  # what does not read is told there
    return hidden.unmarked(Codec().decode(past.begun.config, past.fetch, frozen=False))

"""`kitchen run`: a new run, executed in this process.

Rules: whatever can be refused is refused before a store is made: the workflow is found and the config
converted first.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kitchen.cli import executing, options
from kitchen.errors import UnknownWorkflow

if TYPE_CHECKING:
    from kitchen.workflow.definition import Workflow


@click.command(short_help="Run a workflow to its end.")
@click.argument("target", metavar="MODULE:WORKFLOW")
@click.argument("words", metavar="[CONFIG.toml] [NAME=VALUE]...", nargs=-1)
@click.option("--id", "run_id", metavar="ID", help="The run's name [default: made up].")
@click.option("--seed", type=int, default=0, show_default=True, help="What all randomness is from.")
@click.option("--if-exists", type=click.Choice(["error", "resume"]), default="error",
              show_default=True, help="What to do where there is a run of that id.")  # fmt: skip
@executing.executed
@options.common
def run(
    target: str,
    words: tuple[str, ...],
    run_id: str | None,
    seed: int,
    if_exists: str,
    durability: str | None,
    grace: float,
    plain: bool,
    quiet: bool,
    store: str | None,
) -> None:
    """Run a workflow to its end.

    \b
    Example:
      kitchen run training:workflow config.toml epochs=3 model.width=64 --id first
    """
    from kitchen.cli.arguments import config_from
    from kitchen.cli.exits import Usage

    if run_id is not None and not run_id.strip():
        raise Usage("--id needs a name that is not empty")
    workflow = workflow_named(target)
    config = config_from(words, workflow.config_type)
    given = config if workflow.config_type is not None else dict(config)
    from kitchen.api import running as api

    with options.writing(store, create=True) as opened:
        execute = partial(
            api.run_async, workflow, given, store=opened, run_id=run_id, seed=seed,
            if_exists=if_exists, durability=durability or "process", grace=grace, signals=True,
            on_plan=None if quiet else executing.tell,
        )  # fmt: skip
        executing.execute(execute, opened, run_id, grace, plain=plain, quiet=quiet)


def workflow_named(target: str) -> Workflow[Any, Any]:
    """The workflow that `module:name` leads to.

    Raises `UnknownWorkflow`.
    """
    from kitchen.runner.locate import workflow_at

    try:
        return workflow_at(target)
    except UnknownWorkflow as error:
        for own in (Path("store.py"), Path("store", "__init__.py")):
            if own.exists() and "store" in error.message:
                error.hint = (
                    f"{own.resolve()} has the name of a package that kitchen brings along, and "
                    "`import store` finds that one; rename yours"
                )
        raise

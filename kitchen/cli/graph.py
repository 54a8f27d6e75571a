"""`kitchen graph`: a workflow as a picture in text.

Rules: a target with a colon is code, and is imported. Anything else is a run, whose workflow is
drawn as it was last recorded, without any code.
"""

from __future__ import annotations

import click

from kitchen.cli import options


@click.command(short_help="Draw a workflow, or that of a run.")
@click.argument("target")
@click.option("--format", "as_format", type=click.Choice(["mermaid", "tree"]), default="mermaid",
              show_default=True, help="A flowchart for a page, or a tree for a terminal.")  # fmt: skip
@options.common
def graph(target: str, as_format: str, store: str | None) -> None:
    """Draw a workflow, or that of a run.

    TARGET is module:workflow, or the id of a run.

    \b
    Example:
      kitchen graph training:workflow --format tree
    """
    from kitchen.cli.inert import inert
    from kitchen.workflow import diagram

    if ":" in target:
        from kitchen.cli.execute import workflow_named

        ir = workflow_named(target).ir
    else:
        with options.one_run(store, target) as history:
            ir = history.ir
    told = diagram.to_mermaid(ir) if as_format == "mermaid" else diagram.to_tree(ir)
    click.echo(inert(told), nl=False)

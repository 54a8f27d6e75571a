"""Floor 6, a face: `kitchen` on the command line.

Rules:

1. Only click is imported here. A command's module is imported when that command is called, so
   `kitchen --help` answers at once.
2. Commands that read never import user code, and never create or change a store; but for `check`
   and `replay --execute`, which are asked to look at code.
3. Every `KitchenError` is told on stderr as `error: …` and `hint: …`, without a traceback
   unless `--debug` was given, before or after the command.
4. Exit codes (`exits.py` decides):

   ====  ==================================================================================
   code  meaning
   ====  ==================================================================================
   0     completed; or what was asked for was shown or done; or `verify` and `replay` found
         nothing, `diff` no difference, `check` no run that cannot go on
   1     the run failed; or it cannot be taken up (held by another process, its code not found
         or changed, its log damaged), or its plan says so; or `verify`, `replay`, `diff` or
         `check` found something; or an export does not read
   2     the request cannot be met as it was given: unknown command, option, run or
         module:name, a config that does not fit, an id that is taken, a run that was started
         with another config, a store that is not there, not a store, newer or not writable
   3     the run was cancelled: it is over, and resuming it would not help
   4     the run waits for a decision: somebody has to say whether an effect that must not
         happen twice has happened
   130   interrupted by SIGINT (Ctrl-C); the run can be resumed, and a command that only reads
         has changed nothing
   143   interrupted by SIGTERM; the run can be resumed
   ====  ==================================================================================
"""

from __future__ import annotations

import io
import sys
from importlib import import_module

import click

from kitchen.cli.exits import guarded

# The summaries stand here so that `kitchen --help` need not import the commands; a test compares.
COMMANDS = {
    "run": ("kitchen.cli.execute:run", "Run a workflow to its end."),
    "resume": ("kitchen.cli.resume:resume", "Take a run up where it was left."),
    "fork": (
        "kitchen.cli.fork:fork",
        "Make a run that goes another way from an event of this one.",
    ),
    "cancel": ("kitchen.cli.cancel:cancel", "End a run for good."),
    "runs": ("kitchen.cli.runs:runs", "List the runs of a store."),
    "show": ("kitchen.cli.show:show", "Show where a run stands, and why."),
    "log": ("kitchen.cli.log:log", "Print a run's events, one line each."),
    "state": ("kitchen.cli.state:state", "Print a run's state, now or at any event."),
    "trace": (
        "kitchen.cli.trace:trace",
        "Print what a run did, as text that two runs can be compared by.",
    ),
    "replay": (
        "kitchen.cli.replay:replay",
        "Go through a run again, and compare with what was recorded.",
    ),
    "diff": ("kitchen.cli.diff:diff", "Tell how two runs differ."),
    "check": (
        "kitchen.cli.check:check",
        "Tell which runs can go on with a workflow as it is now.",
    ),
    "graph": ("kitchen.cli.graph:graph", "Draw a workflow, or that of a run."),
    "verify": ("kitchen.cli.verify:verify", "Check that a store holds what was written."),
    "golden": ("kitchen.cli.golden:golden", "Make a test of a run, with its golden trace."),
    "gc": ("kitchen.cli.keeping:gc", "Remove runs that are over, and blobs that no run names."),
    "export": ("kitchen.cli.keeping:export", "Write a run with its blobs to one file."),
    "import": ("kitchen.cli.keeping:import_", "Read an exported run into a store."),
}


class LazyGroup(click.Group):
    """The commands, each imported when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        with guarded(ctx):
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            found = getattr(import_module(module), attribute)
            assert isinstance(found, click.Command)
            return found

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """From the table, without importing what it names."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what it raises is told, and becomes the exit code."""
        with guarded(ctx):
            return super().invoke(ctx)


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from kitchen import __version__

        click.echo(f"kitchen {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True,
              help="Show the version and exit.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Durable training workflows: kill -9 at any moment, resume bit for bit.

    \b
    Example:
      kitchen run training:workflow epochs=3 --id first
      kitchen resume first
    """
    ctx.meta["kitchen.debug"] = debug


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a state may hold what no terminal can show
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="kitchen")

"""`kitchen log`: a run's events, one line each.

Rules:

1. What a rewind has superseded is marked `~` and dimmed; it is never left out. Where a run went
   back into such a stretch, that counts again.
2. An event that does not read is a line that says so, and the log goes on behind it.
3. `-f` asks the store for its head a few times a second and reads only what is new. It ends with
   the run, and quietly on Ctrl-C.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kitchen.cli import options

if TYPE_CHECKING:
    from kitchen.history.history import History
    from kitchen.ports.event_store import Record

POLL_SECONDS = 0.2
_BATCH, _BATCH_SIZE = 200, 1_000_000  # lines, characters
_WIDEST = 500
_STOPPED = {
    "crashed": "has crashed: no process holds it",
    "undecided": "has stopped, and waits for a decision",
}


class Wanted(NamedTuple):
    """Which events are asked for."""

    path: str | None
    types: tuple[str, ...]


@click.command(short_help="Print a run's events, one line each.")
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ",
              help="Only what came after this event.")  # fmt: skip
@click.option("--path", metavar="P", help="Only this node and those inside it.")
@click.option("--type", "types", multiple=True, metavar="T",
              help="Only events of this type; may be repeated.")  # fmt: skip
@click.option("-n", "count", type=click.IntRange(1), metavar="N", help="Only the last N.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@options.common
def log(
    run: str,
    follow: bool,
    after: int,
    path: str | None,
    types: tuple[str, ...],
    count: int | None,
    as_json: bool,
    store: str | None,
) -> None:
    """Print a run's events, one line each.

    \b
    Example:
      kitchen log first --type MetricRecorded -n 5
    """
    _check_types(types)
    with options.one_run(store, run) as history:
        wanted = Wanted(path.strip("/") if path is not None else None, types)
        printer = Printer(history, as_json=as_json)
        # Asked before reading, so that what is appended meanwhile is read by the next round.
        head = history.store.head(history.run_id)
        records: Iterable[Record] = _matching(history, after, head, wanted)
        printer.print(records if count is None else deque(records, count))
        if follow:
            _follow(history, printer, max(after, head), wanted)


def _check_types(types: tuple[str, ...]) -> None:
    from kitchen.cli.exits import Usage
    from kitchen.machine.events import EVENTS
    from kitchen.runner.config import suggest

    for name in types:
        if name not in EVENTS:
            raise Usage(f"there is no event type {name!r}", hint=suggest(name, EVENTS))


def _matching(history: History, after: int, until: int, wanted: Wanted) -> Iterator[Record]:
    types = wanted.types or None
    for record in history.store.read(history.run_id, after=after, until=until, types=types):
        path = wanted.path
        if path is None or record.path == path or record.path.startswith(f"{path}/"):
            yield record


def _follow(history: History, printer: Printer, seen: int, wanted: Wanted) -> None:
    while True:
        # The status first: what a run wrote before it ended is then read before we stop.
        status = history.status
        head = history.store.head(history.run_id)
        if head > seen:
            printer.print(_matching(history, seen, head, wanted))
            seen = head
        elif status != "running":
            if status in _STOPPED:
                click.echo(f"run {history.run_id!r} {_STOPPED[status]}", err=True)
            return
        else:
            time.sleep(POLL_SECONDS)


class Printer:
    """Prints records of one run, several at a time."""

    def __init__(self, history: History, *, as_json: bool) -> None:
        self._history = history
        self._tell = self._object if as_json else self._line

    def print(self, records: Iterable[Record]) -> None:
        """Print them all."""
        from kitchen.log.live import live

        self._live = live(self._history.store, self._history.run_id)
        lines: list[str] = []
        size = 0
        for record in records:
            lines.append(self._tell(record))
            size += len(lines[-1])
            if len(lines) >= _BATCH or size >= _BATCH_SIZE:
                click.echo("\n".join(lines))
                lines.clear()
                size = 0
        if lines:
            click.echo("\n".join(lines))

    def _line(self, record: Record) -> str:
        from kitchen.cli import render
        from kitchen.cli.detail import detail
        from kitchen.cli.inert import one_line

        counts = self._live.counts(record.seq)
        where = render.place(record.path, record.visit, self._history.loops)
        attempt = f" #{record.attempt}" if record.attempt > 1 else ""
        line = (
            f"{' ' if counts else '~'}{record.seq:>6}  {render.moment(record.at)}  "
            f"{one_line(record.type, 60):<18}  {one_line(where, _WIDEST)}{attempt}"
        )
        told = one_line(detail(record, self._history), _WIDEST)
        line = f"{line}  {told}" if told else line
        return line.rstrip() if counts else click.style(line.rstrip(), dim=True)

    def _object(self, record: Record) -> str:
        import msgspec

        from kitchen.cli import render
        from kitchen.cli.inert import inert

        told: dict[str, Any] = {
            "seq": record.seq,
            "at": render.iso(record.at),
            "type": record.type,
            "path": record.path,
            "visit": record.visit,
            "attempt": record.attempt,
            "counts": self._live.counts(record.seq),
        }
        try:
            told["event"] = msgspec.json.decode(record.payload)
        except (msgspec.DecodeError, RecursionError):
            told["unreadable"] = record.payload
        return inert(msgspec.json.encode(told).decode())

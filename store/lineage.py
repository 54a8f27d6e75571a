"""Where the events of a run lie: under its own number, and a fork's first ones under its parents'.

Rules: a fork holds no copy. Its events 1 to `seq` are those that its parent has there, which may be
a parent's parent's in turn; its own follow, and there is at least one. So a run is a row of parts,
the oldest first, and each part is owned by one run. A parent's number is always the smaller. Run
numbers are never given twice, hence what is remembered of a run holds for as long as something is
found under its number; where nothing is, its number is looked up again, as the run may have been
removed, and another of its name made, by another process. Of a fork nothing is remembered: its
first part is found even when the fork is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from store.errors import CorruptLog, UnknownRun
from store.records import graft

if TYPE_CHECKING:
    from collections.abc import Callable

    from store.connection import Gate

SHIFT = 32
MASK = (1 << SHIFT) - 1

T = TypeVar("T")

_PARTS = (
    "WITH RECURSIVE line(no, until) AS (SELECT ?, 4294967295 UNION ALL "
    "SELECT f.parent, min(l.until, f.seq) FROM line l JOIN forks f ON f.no = l.no "
    "WHERE f.parent < f.no) "
    "SELECT l.no, r.run, coalesce(f.seq, 0), l.until FROM line l "
    "LEFT JOIN runs r ON r.no = l.no LEFT JOIN forks f ON f.no = l.no ORDER BY l.no"
)
_ALONE = "SELECT no, run, 0, 4294967295 FROM runs WHERE no = ?"
_NUMBER = "SELECT no FROM runs WHERE run = ?"


class Part(NamedTuple):
    """The events behind seq `after`, up to and with `until`, and the run that owns them."""

    no: int
    run: str
    after: int
    until: int

    def key(self, seq: int) -> int:
        """The key in a file of the event with this seq."""
        return self.no << SHIFT | seq


_KINDS = (int, str, int, int)  # of a part's fields, unless the file is damaged


class Lineage(NamedTuple):
    """The parts of one run; the last is its own."""

    parts: tuple[Part, ...]

    @property
    def own(self) -> Part:
        return self.parts[-1]

    @property
    def root(self) -> str:
        """The run with whose name the chain begins."""
        return self.parts[0].run

    def owner(self, seq: int) -> Part:
        """The part that a seq belongs to; 0, before all, belongs to the first."""
        return next((part for part in self.parts if seq <= part.until), self.own)

    def between(self, after: int, until: int | None) -> list[tuple[int, int]]:
        """Where the events from behind `after` to `until` lie: behind the one key, to the other."""
        last = MASK if until is None else until
        ranges: list[tuple[int, int]] = []
        for no, _, first, end in self.parts:
            low, high = max(first, after), min(end, last)
            if low < high:
                ranges.append((no << SHIFT | low, no << SHIFT | high))
        return ranges

    def grafted(self, seq: int, chain: bytes) -> bytes:
        """What the event behind `seq` is chained to, where `chain` is that of `seq`."""
        for part in self.parts[1:]:
            if part.after == seq:
                return graft(chain, part.run)
        return chain


class Lineages:
    """Finds the parts of runs in a file."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._known: dict[str, Lineage] = {}
        self._has_forks = False

    def find(self, run: str) -> Lineage:
        """The parts of a run, as remembered; raises `UnknownRun`."""
        return self._known.get(run) or self.confirm(run)

    def confirm(self, run: str) -> Lineage:
        """The parts of a run as the file has them now; raises `UnknownRun`."""
        self._known.pop(run, None)
        line = self.of(self.number(run), run)
        if len(line.parts) == 1:
            self._known[run] = line
        return line

    def number(self, run: str) -> int:
        """The run's number as of now; raises `UnknownRun`."""
        rows = self._gate.rows(_NUMBER, (run,))
        if not rows:
            known = self._gate.rows("SELECT run, no FROM runs ORDER BY no DESC")
            now = dict(known)
            if run not in now:  # another process may just have begun it
                raise UnknownRun(run, list(now), str(self._gate.path))
            return now[run]
        return rows[0][0]

    def of(self, no: int, run: str) -> Lineage:
        """The parts of the run with this number."""
        rows = self._gate.rows(_PARTS if self.has_forks() else _ALONE, (no,))
        # the fork's name as the caller has it: damage may have made it unreadable
        parts = [Part(n, run if n == no else owner, *cut) for n, owner, *cut in rows]
        kinds = {tuple(map(type, part)) for part in parts}
        if kinds != {_KINDS} or parts[0].after:
            what = f"what run number {no} was forked of is gone, or no longer said"
            raise CorruptLog(what, where=str(self._gate.path), run=run)
        return Lineage(tuple(p for p in parts if p.no == no or p.after < p.until))

    def settled(self, run: str, look: Callable[[Lineage], T | None]) -> T | None:
        """What `look` finds; asked again where it finds nothing and the run is another by now."""
        line = self.find(run)
        while (found := look(line)) is None:
            today = self.confirm(run)
            if today == line:
                break
            line = today
        return found

    def forget(self, run: str) -> None:
        self._known.pop(run, None)

    def has_forks(self) -> bool:
        """Whether the file knows forks; one of version 1 does not, until somebody migrates it."""
        if not self._has_forks:
            self._has_forks = self._gate.rows("PRAGMA user_version")[0][0] >= 2
        return self._has_forks

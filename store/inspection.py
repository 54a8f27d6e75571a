"""Verifying a SQLite file: reads it as raw as possible and hands it to `verify`.

Rules: SQLite's own check comes first, then the text of the schema, whose triggers keep what is
recorded. Text that is no UTF-8 is read as bytes, so that it is found by its chain instead of
stopping the reader; what SQLite itself cannot read is a finding at the seq behind the last one that
it could. Seals, and which snapshot is the last, are read before the events, so that a writer at
work causes no finding. Bodies of snapshots are read one at a time. Of a fork alone, its parents are
checked as far as it shares them. Clock times are in no chain: that one was changed is not found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from store import verify
from store.errors import CorruptLog, StoreError
from store.lineage import MASK, Lineage, Part
from store.records import Finding, genesis
from store.schema import RUN_PATH_NUMBER, statements
from store.verify import RawEvent, RawSnapshot, Sealed, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.blobs import FileBlobs
    from store.connection import Gate
    from store.lineage import Lineages

_CHUNK = 2048
_RUNS = (
    "SELECT no, CAST(run AS BLOB), CAST(name AS BLOB), typeof(created_at), "
    "sealed_seq, sealed_chain, "
    "coalesce((SELECT max(seq) FROM snapshots WHERE snapshots.run = runs.no), 0) "
    "FROM runs WHERE no = coalesce(?, no) ORDER BY no"
)
_EVENTS = (
    "SELECT e.id, t.name, p.name, e.visit, e.attempt, e.payload, e.chain "
    "FROM events e LEFT JOIN types t ON t.id = e.type LEFT JOIN paths p ON p.id = e.path "
    "WHERE e.id > ? AND e.id <= ? ORDER BY e.id LIMIT ?"
)
_EVENTS_AS_BYTES = _EVENTS.replace(
    "t.name, p.name, e.visit, e.attempt, e.payload",
    "CAST(t.name AS BLOB), CAST(p.name AS BLOB), CAST(e.visit AS BLOB), e.attempt, "
    "CAST(e.payload AS BLOB)",
)
_SNAPSHOT = (
    "SELECT s.id, s.seq, e.chain, CAST(s.key AS BLOB), s.body, s.digest FROM snapshots s "
    "LEFT JOIN events e ON e.id = (s.run << 32 | s.seq) AND s.seq > 0 "
    "WHERE s.id = (SELECT min(id) FROM snapshots WHERE run = ? AND id > ?)"
)
_SEAL = "SELECT sealed_seq, sealed_chain FROM runs WHERE no = ?"
_HEAD = "SELECT max(id) FROM events WHERE id > ? AND id <= ?"
_CHAIN = "SELECT chain FROM events WHERE id = ?"
_STRAY = (
    "SELECT id >> 32, count(*) FROM events WHERE NOT EXISTS "
    "(SELECT 1 FROM runs WHERE no = id >> 32) GROUP BY 1"
)
_STRAY_FORKS = "SELECT no FROM forks WHERE no NOT IN (SELECT no FROM runs)"


def inspect(gate: Gate, lines: Lineages, blobs: FileBlobs, run: str | None) -> list[Finding]:
    gate.check()
    findings: list[Finding] = []
    if run is None:
        findings += _integrity(gate, lines)
    try:
        chosen: dict[int | None, int] = {None: MASK}  # run number -> the last seq to check
        if run is not None:
            no = lines.number(run)
            chosen = {part.no: part.until for part in _line(lines, no, run, []).parts}
        rows = [(row, until) for no, until in chosen.items() for row in gate.rows(_RUNS, (no,))]
    except StoreError as error:
        return [*findings, _unreadable(error, run)]
    verifier = Verifier(blobs)
    for row, until in rows:
        findings += _inspect_one(gate, lines, verifier, row, until)
    return findings


def _inspect_one(
    gate: Gate, lines: Lineages, verifier: Verifier, row: Any, until: int
) -> list[Finding]:
    no, run_bytes, title, clock, seq, chain, snapshot = row
    findings: list[Finding] = []
    trouble: list[Finding] = []
    name = _text(run_bytes)
    if clock != "integer" or title is None or _text(title).encode() != title:
        findings.append(Finding("head", name, None, "the row of the run is damaged"))
    line = _line(lines, no, name, findings)
    own = line.own
    sealed = Sealed(_number(seq), chain or b"", _number(snapshot))
    start: bytes | None = genesis(name)
    try:
        if own.after:
            start = _chain_at(gate, line, own.after)
            start = start if start is None else line.grafted(own.after, start)
        if until < MASK:
            last = min(sealed.seq, until)
            sealed = (
                Sealed(last, sealed.chain, 0)
                if last < until
                else Sealed(until, _chain_at(gate, line, until) or b"", 0)
            )
    except StoreError as error:
        return [*findings, _unreadable(error, name)]
    events = _events(gate, own.key(own.after), own.key(until), name, trouble)
    snapshots = _snapshots(gate, no, name, trouble)
    findings += verifier.check(line, start, events, sealed, snapshots)
    return findings + trouble


def _line(lines: Lineages, no: int, run: str, findings: list[Finding]) -> Lineage:
    """The parts of a run; its own alone, and a finding, where it is not known what it shares."""
    try:
        return lines.of(no, run)
    except StoreError as error:
        what = error.what if isinstance(error, CorruptLog) else str(error)
        findings.append(Finding("head", run, None, what))
        return Lineage((Part(no, run, 0, MASK),))


def _chain_at(gate: Gate, line: Lineage, seq: int) -> bytes | None:
    rows = gate.rows(_CHAIN, (line.owner(seq).key(seq),))
    return _chain(rows[0][0]) if rows else None


def follow(gate: Gate, lines: Lineages, run: str, after: int, until: int | None) -> list[Finding]:
    gate.check()
    after = max(0, min(after, MASK))
    trouble: list[Finding] = []
    line = _line(lines, lines.number(run), run, trouble)
    if trouble:
        return trouble
    own = line.own
    try:
        # none where the run was removed a moment ago
        seq, chain = (gate.rows(_SEAL, (own.no,)) or [(0, b"")])[0]
        last = gate.rows(_HEAD, (own.key(0), own.key(MASK)))[0][0]
        head = own.after if last is None else last & MASK
        start = _chain_at(gate, line, after) if after else genesis(line.root)
    except StoreError as error:
        return [_unreadable(error, own.run)]
    stop = head if until is None else min(head, until)
    findings = verify.follow(
        line,
        (
            event
            for low, high in line.between(after, stop)
            for event in _events(gate, low, high, own.run, trouble)
        ),
        after=after,
        start=start,
        head=head,
        until=until,
        sealed=Sealed(_number(seq), chain or b"", 0),
    )
    return [*findings, *trouble]


def _integrity(gate: Gate, lines: Lineages) -> Iterator[Finding]:
    try:
        for (line,) in gate.rows("PRAGMA integrity_check"):
            if line != "ok":
                yield Finding("integrity", None, None, f"SQLite's integrity check says: {line}")
        found = dict(gate.rows("SELECT name, CAST(sql AS BLOB) FROM sqlite_master"))
        version = gate.rows("PRAGMA user_version")[0][0]
        numbers = gate.rows(RUN_PATH_NUMBER)
        expected = statements(version, numbers[0][0] if numbers else None)
        for name, text in expected.items():
            if found.get(name) != text.encode():
                kind = text.split()[1].lower()
                what = f"the {kind} {name} is gone, or not what it was made as"
                yield Finding("integrity", None, None, what)
        for no, count in gate.rows(_STRAY):
            what = f"{count} events belong to run number {no}, whose row is gone"
            yield Finding("head", None, None, what)
        for (no,) in gate.rows(_STRAY_FORKS) if lines.has_forks() else ():
            yield Finding("head", None, None, f"run number {no} is a fork, and its row is gone")
    except StoreError as error:
        yield _unreadable(error, None)


def _unreadable(error: StoreError, run: str | None, seq: int | None = None) -> Finding:
    what = error.what if isinstance(error, CorruptLog) else str(error)
    return Finding("integrity", run, seq, f"SQLite cannot read on: {what}")


def _events(
    gate: Gate, low: int, high: int, run: str, trouble: list[Finding]
) -> Iterator[RawEvent]:
    """The events with keys above `low`, up to and with `high`."""
    while True:
        sound = True
        try:
            try:
                rows: list[Any] = gate.rows(_EVENTS, (low, high, _CHUNK))
            except CorruptLog:  # perhaps some text is no UTF-8
                sound = False
                rows = gate.rows(_EVENTS_AS_BYTES, (low, high, _CHUNK))
        except StoreError as error:
            trouble.append(_unreadable(error, run, (low & MASK) + 1))
            return
        for id_, *rest in rows:
            yield RawEvent(id_ & MASK, *rest) if sound and _is_sound(rest) else _raw(id_, *rest)
        if len(rows) < _CHUNK:
            return
        low = rows[-1][0]


def _is_sound(columns: list[Any]) -> bool:
    type_, path, visit, _, payload, chain = columns
    names = type(type_) is str and type(path) is str  # where one is gone, `_raw` says so
    return names and type(visit) is str and type(payload) is str and type(chain) is bytes


def _raw(
    id_: int, type_: Any, path: Any, visit: Any, attempt: Any, payload: Any, chain: Any
) -> RawEvent:
    """An event whose columns hold what they should not."""
    kind, place = (None if name is None else _text(name) for name in (type_, path))
    rest = _text(visit), attempt, _text(payload), _chain(chain)
    return RawEvent(id_ & MASK, kind, place, *rest)


def _snapshots(gate: Gate, no: int, run: str, trouble: list[Finding]) -> Iterator[RawSnapshot]:
    last = 0
    while True:
        try:
            rows = gate.rows(_SNAPSHOT, (no, last))
        except StoreError as error:
            trouble.append(_unreadable(error, run))
            return
        if not rows:
            return
        last, seq, chain, key, body, digest = rows[0]
        yield RawSnapshot(_number(seq), chain, _text(key), body, digest)


def _text(value: object) -> str:
    """A text as it can be shown and hashed, whatever damage has made of it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _chain(value: object) -> bytes:
    return value if type(value) is bytes else b""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0

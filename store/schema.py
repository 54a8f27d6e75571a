"""The tables of a store file, and how an old or an empty file becomes a current one.

Rules: `application_id` says that a file is ours, `user_version` which format it has; both are
looked at before anything is written, and a foreign or newer file is left untouched. All pending
migrations and both stamps are one transaction, so that a kill leaves an empty file, which the next
opening fills, or a whole store of the format that it had or of this one. A file of an older format
is migrated when it is opened for writing, and can be read as it is. An event's key is run number
<< 32 | seq, types and paths are small integers, and the view `event_log` spells them for any SQLite
tool. Events of the run as a whole have the path "", and an index of their own, which costs nothing
for the others. Triggers refuse to change or delete what was recorded; only removing whole runs lifts
some. sqlite-utils is imported only when there is something to migrate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from uuid import uuid4

from store.errors import CorruptLog, NotAStore, StoreTooNew

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

    from sqlite_utils import Database

APPLICATION_ID = 0x45765374  # "EvSt"
VERSION = 2
RUN_PATH = ""  # the path of events that concern a run as a whole
RUN_PATH_NUMBER = "SELECT id FROM paths WHERE name = ''"

_TABLES: tuple[str, ...] = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE types (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE paths (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    # sealed_*: head and chain as of an orderly moment, so that a cut-off tail is noticed
    """CREATE TABLE runs (
        no INTEGER PRIMARY KEY,
        run TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        sealed_seq INTEGER NOT NULL DEFAULT 0,
        sealed_chain BLOB
    ) STRICT""",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        type INTEGER NOT NULL,
        path INTEGER NOT NULL,
        visit TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        payload TEXT NOT NULL,
        chain BLOB NOT NULL
    ) STRICT""",
    # digest: over the chain of that seq, the key and the body
    """CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        key TEXT NOT NULL,
        pinned INTEGER NOT NULL,
        body BLOB NOT NULL,
        digest BLOB NOT NULL,
        UNIQUE (run, key, seq)
    ) STRICT""",
    # who holds a run; only the lock file says whether that is still true
    """CREATE TABLE leases (
        run TEXT PRIMARY KEY,
        pid INTEGER NOT NULL,
        host TEXT NOT NULL,
        since INTEGER NOT NULL,
        note TEXT NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE VIEW event_log AS
        SELECT r.run AS run, e.id & 4294967295 AS seq, e.at AS at, t.name AS type,
               p.name AS path, e.visit AS visit, e.attempt AS attempt, e.payload AS payload
        FROM runs r
        JOIN events e ON e.id > (r.no << 32) AND e.id < ((r.no + 1) << 32)
        JOIN types t ON t.id = e.type
        JOIN paths p ON p.id = e.path""",
)

# what is guarded, and from which statements
_KEPT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("events", ("UPDATE", "DELETE")),
    ("types", ("UPDATE", "DELETE")),
    ("paths", ("UPDATE", "DELETE")),
    ("runs", ("UPDATE OF no, run, name, created_at", "DELETE")),
    ("meta", ("UPDATE", "DELETE")),
)

# what format 2 has instead of what has the same name in format 1, or beside it
_TABLES_2: tuple[str, ...] = (
    # a number is never given twice: what remembers a removed run must not find another
    """CREATE TABLE runs (
        no INTEGER PRIMARY KEY AUTOINCREMENT,
        run TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        sealed_seq INTEGER NOT NULL DEFAULT 0,
        sealed_chain BLOB
    ) STRICT""",
    # the events of run `no` up to `seq` are those of run `parent`, a smaller number
    """CREATE TABLE forks (
        no INTEGER PRIMARY KEY,
        parent INTEGER NOT NULL,
        seq INTEGER NOT NULL
    ) STRICT""",
    """CREATE VIEW event_log AS
        WITH RECURSIVE line(run, no, until) AS (
            SELECT run, no, 4294967295 FROM runs
            UNION ALL
            SELECT l.run, f.parent, min(l.until, f.seq)
            FROM line l JOIN forks f ON f.no = l.no WHERE f.parent < f.no
        )
        SELECT l.run AS run, e.id & 4294967295 AS seq, e.at AS at, t.name AS type,
               p.name AS path, e.visit AS visit, e.attempt AS attempt, e.payload AS payload
        FROM line l
        CROSS JOIN events e ON e.id > (l.no << 32) AND e.id <= (l.no << 32 | l.until)
        JOIN types t ON t.id = e.type
        JOIN paths p ON p.id = e.path""",
)
_KEPT_2: tuple[tuple[str, tuple[str, ...]], ...] = (*_KEPT, ("forks", ("UPDATE", "DELETE")))


def state_of(db: sqlite3.Connection) -> tuple[int, int, int]:
    """application_id, user_version and the number of things in the schema, in one look."""
    row = db.execute(
        "SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_master) "
        "FROM pragma_application_id a, pragma_user_version v"
    ).fetchone()
    return row[0], row[1], row[2]


def version_of(db: sqlite3.Connection, path: Path) -> int:
    """The format of a store's file, 0 where it is empty; raises where it is no store of ours."""
    application, version, things = state_of(db)
    if application == APPLICATION_ID:
        if version > VERSION:
            raise StoreTooNew(path, version, VERSION)
        return version
    if application == 0 and version == 0 and things == 0:
        return 0
    raise NotAStore(
        path,
        f"it is another program's SQLite database (application_id 0x{application & 0xFFFFFFFF:08x} "
        f"where 0x{APPLICATION_ID:08x} was expected, {things} tables and the like)",
    )


def refuse_views(db: sqlite3.Connection, path: Path) -> None:
    """Raises `CorruptLog` where what must be a table is something else, which may never end."""
    texts = _TABLES + _TABLES_2
    tables = {text.split()[2] for text in texts if text.startswith("CREATE TABLE")}
    for name, kind in db.execute("SELECT name, type FROM sqlite_master"):
        if name in tables and kind != "table":
            raise CorruptLog(f"{name} is a {kind}, and must be a table", where=str(path))


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring an empty or older file up to date; of several processes, one does and the rest see."""
    from sqlite_utils import Database, Migrations

    migrations = Migrations("event-store")
    migrations(name="0001_tables")(_tables)
    migrations(name="0002_forks")(_forks)
    db.execute("BEGIN IMMEDIATE")
    try:
        # another process may have been faster while this one waited for the write lock
        if version_of(db, path) < VERSION:
            # inside our transaction, sqlite-utils nests by savepoints instead of its deferred BEGIN
            migrations.apply(Database(db, recursive_triggers=False, execute_plugins=False))
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def statements(version: int, run_path: int | None) -> dict[str, str]:
    """What the schema of a file is made of: the text of each table, view, index and trigger."""
    texts, kept = (_TABLES, _KEPT) if version < 2 else (_TABLES + _TABLES_2, _KEPT_2)
    named = {text.split()[2]: text for text in texts}  # the later one counts
    for table, deeds in kept:
        for deed in deeds:
            verb = deed.split()[0].lower()
            named[f"{table}_refuse_{verb}"] = (
                f"CREATE TRIGGER {table}_refuse_{verb} BEFORE {deed} ON {table} BEGIN "
                f"SELECT RAISE(ABORT, '{table} is append-only: {verb} refused'); END"
            )
    if version >= 2:
        # with a literal number, or the planner would not know that the index applies
        named["run_events"] = f"CREATE INDEX run_events ON events (path) WHERE path = {run_path}"
    return named


def _tables(database: Database) -> None:
    run = _runner(database)
    for statement in statements(1, None).values():
        run(statement)
    run("INSERT INTO meta (key, value) VALUES ('uuid', ?)", [str(uuid4())])


def _forks(database: Database) -> None:
    run = _runner(database)
    run("INSERT OR IGNORE INTO paths (name) VALUES (?)", [RUN_PATH])
    before, after = statements(1, None), statements(2, run(RUN_PATH_NUMBER).fetchone()[0])
    run("DROP VIEW event_log")
    run("CREATE TEMPORARY TABLE runs_before AS SELECT * FROM runs")
    run("DROP TABLE runs")  # with its triggers
    for name, statement in after.items():
        if before.get(name) != statement or name.startswith("runs_"):
            run(statement)
    run("INSERT INTO runs SELECT * FROM runs_before")
    run("DROP TABLE runs_before")


def _runner(database: Database) -> Callable[..., sqlite3.Cursor]:
    # sqlite-utils types this loosely
    return cast("Callable[..., sqlite3.Cursor]", database.execute)  # pyright: ignore[reportUnknownMemberType]

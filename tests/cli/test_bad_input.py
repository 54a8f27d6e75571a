"""What can be wrong from outside: one clear error each, the right code, nothing lost."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from tests.cli.calling import DEADLINE, Kitchen

READING = ["runs", "show one", "log one", "state one", "graph one", "verify"]


def _error(text: str) -> str:
    """The only error that is told."""
    assert text.count("error: ") == 1, text
    return text[text.index("error: ") :]


@pytest.mark.parametrize(
    ("target", "told", "hint"),
    [
        ("nowhere:training", "there is no module 'nowhere'", "looked in"),
        ("{module}:trainig", "the workflow 'trainig' is not there", "did you mean 'training'?"),
        ("{module}:step", "is a function, not a workflow", "training"),
        ("{module}:", "", ""),
        (":training", "names no module", "module:workflow"),
        ("nowhere.py:training", "there is no file nowhere.py", ""),
    ],
)
def test_an_unknown_workflow(kitchen: Kitchen, target: str, told: str, hint: str) -> None:
    for command in ("run", "graph"):
        error = _error(kitchen(command, target.format(module=kitchen.module), code=2).stderr)
        assert told in error
        assert hint in error
    assert not (kitchen.folder / "kitchen.db").exists()


def test_a_module_that_does_not_import(kitchen: Kitchen) -> None:
    (kitchen.folder / "job_broken.py").write_text("import kitchen\nraise RuntimeError('no GPU')\n")
    for target in ("job_broken:w", "job_broken.py:w"):
        error = _error(kitchen("run", target, code=2).stderr)
        assert "RuntimeError: no GPU" in error
        assert "--debug" in error


@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        (["epochs=many"], "config.epochs: expected `int`, got `str`", ""),
        (["model.width=x"], "config.model.width: expected `int`", ""),
        (["epoch=3"], "no field 'epoch'", "did you mean 'epochs'?"),
        (["none.toml"], "there is no file none.toml", "looked in"),
        (["bad.toml"], "bad.toml is not valid TOML", ""),
        (["wrong.toml"], "config.epochs: expected `int`", ""),
        (["word"], "'word' is neither name=value nor a .toml file", ""),
    ],
)
def test_a_config_that_does_not_fit(
    kitchen: Kitchen, words: list[str], told: str, hint: str
) -> None:
    (kitchen.folder / "bad.toml").write_text("epochs = \n")
    (kitchen.folder / "wrong.toml").write_text('epochs = "many"\n')
    error = _error(kitchen("run", kitchen.target, *words, code=2).stderr)
    assert told in error
    assert hint in error
    assert not (kitchen.folder / "kitchen.db").exists()


def _foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (a)")
    db.close()


def _newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 999")
    db.close()


@pytest.mark.parametrize("kind", ["foreign", "newer", "no database"])
def test_a_file_that_is_not_ours_to_read(kitchen: Kitchen, kind: str) -> None:
    path = kitchen.folder / "kitchen.db"
    if kind == "foreign":
        _foreign(path)
    elif kind == "newer":
        kitchen("run", kitchen.target, "--id", "one")
        _newer(path)
    else:
        path.write_text("just a text, longer than the header of a database would be" * 20)
    before = path.read_bytes()
    told = {
        "foreign": "is another program's SQLite database",
        "newer": "has format 999",
        "no database": "it is no SQLite database",
    }[kind]
    for words in [*READING, f"run {kitchen.target}", "resume one"]:
        assert told in _error(kitchen(*words.split(), code=2).stderr)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "place", ["missing/kitchen.db", "file/kitchen.db", ".", "/proc/kitchen.db"]
)
def test_a_store_that_cannot_be_written(kitchen: Kitchen, place: str) -> None:
    if place.startswith("/proc") and not sys.platform.startswith("linux"):
        pytest.skip("there is no /proc")
    (kitchen.folder / "file").write_text("a file")
    error = _error(kitchen("run", kitchen.target, "--store", place, code=2).stderr)
    assert "store" in error.lower()
    assert "Errno" not in error


def _tamper(path: Path, sql: str) -> None:
    db = sqlite3.connect(path)
    for (trigger,) in db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall():
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(sql)
    db.commit()
    db.close()


def test_an_edited_log(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    # the seq is the lower half of the key
    sql = "UPDATE events SET payload = '{\"key\": 5}' WHERE id & 4294967295 = 9"
    _tamper(kitchen.folder / "kitchen.db", sql)
    result = kitchen("verify", code=1)
    assert "chain: run 'one', seq 9: the event or its chain was changed" in result.stdout
    assert kitchen("verify", "--json", code=1).stdout.startswith("[{")
    line = kitchen("log", "one").stdout.splitlines()[8]
    assert "! event 9: the payload of a " in line
    assert "does not fit its type" in line
    error = _error(kitchen("state", "one", "--at", "10", code=1).stderr)
    assert "seq 9" in error
    assert "kitchen verify" in error


def test_a_log_whose_end_was_cut_off(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    head = kitchen.head("one")
    _tamper(kitchen.folder / "kitchen.db", "DELETE FROM events WHERE id & 4294967295 > 20")
    result = kitchen("verify", "one", code=1)
    assert f"the log ends at seq 20, and had reached seq {head}" in result.stdout
    assert len(kitchen("log", "one").stdout.splitlines()) == 20


def test_an_event_that_cannot_be_there(kitchen: Kitchen) -> None:
    from store import NewEvent, open_store

    kitchen("run", kitchen.target, "--id", "one")
    with open_store(kitchen.folder / "kitchen.db") as store:
        store.append("one", store.head("one"), [NewEvent("LoopExited", "epochs")])
    result = kitchen("verify", code=1)
    assert "history: run 'one': " in result.stdout
    assert "LoopExited" in result.stdout


def test_a_file_that_was_truncated(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "--id", "one")
    path = kitchen.folder / "kitchen.db"
    for part in ("kitchen.db-wal", "kitchen.db-shm"):
        (kitchen.folder / part).unlink(missing_ok=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = kitchen("verify", code=1)
    assert "integrity" in result.output or "damaged" in result.output


def test_a_blob_folder_that_is_gone(kitchen: Kitchen) -> None:
    (kitchen.folder / "job_large.py").write_text(
        "import kitchen\n"
        "def put(ctx):\n    ctx.state['large'] = 'x' * 100_000\n    ctx.state['n'] = 1\n"
        "@kitchen.workflow\ndef w(wf):\n    wf.stage('put', put)\n"
    )
    kitchen("run", "job_large:w", "--id", "one")
    (kitchen.folder / "kitchen.db.blobs").rename(kitchen.folder / "elsewhere")
    assert "blob-missing" in kitchen("verify", code=1).stdout
    told = kitchen.json("show", "one")["state"]
    assert told["n"] == "1"
    assert "cannot be read" in told["large"]
    assert "is missing" in _error(kitchen("state", "one", "large", code=1).stderr)


def test_a_store_py_of_the_users_own(kitchen: Kitchen) -> None:
    (kitchen.folder / "store.py").write_text("shelves = 3\n")
    for words in ("runs", f"run {kitchen.target}", f"graph {kitchen.target}", "resume x"):
        process = kitchen.start(*words.split())
        out, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 2, out + err
        assert str(kitchen.folder / "store.py") in _error(err)
        assert "rename it" in err
        assert "Traceback" not in err
    assert not (kitchen.folder / "kitchen.db").exists()


def test_code_that_imports_a_store_py_of_its_own(kitchen: Kitchen) -> None:
    (kitchen.folder / "store.py").write_text("shelves = 3\n")
    (kitchen.folder / "job_shelves.py").write_text("from store import shelves\n")
    error = _error(kitchen("run", "job_shelves:w", code=2).stderr)
    assert "rename yours" in error


def test_code_that_is_gone_or_was_changed(kitchen: Kitchen) -> None:
    kitchen("run", kitchen.target, "fail_at=2", "--id", "one", code=1)
    head = kitchen.head("one")
    source = kitchen.folder / f"{kitchen.module}.py"
    text = source.read_text()
    kitchen.forget()
    error = _error(kitchen("resume", "one", code=1).stderr)
    assert f"the workflow of run 'one' ({kitchen.target}) was not found" in error
    assert "kitchen resume one --workflow module:name" in error
    changed = kitchen.folder / "job_changed.py"
    changed.write_text(text.replace('wf.stage("step"', 'wf.stage("stride"'))
    error = _error(kitchen("resume", "one", "--workflow", "job_changed:training", code=1).stderr)
    assert "removed: epochs/batches/step" in error
    assert kitchen.head("one") == head


def test_adapters_that_fail(kitchen: Kitchen) -> None:
    (kitchen.folder / "job_adapters.py").write_text(
        "import kitchen\n"
        "def adapters():\n    raise KeyError('API_KEY')\n"
        "@kitchen.workflow(adapters=adapters)\ndef w(wf):\n    wf.stage('s', lambda ctx: None)\n"
    )
    error = _error(kitchen("run", "job_adapters:w", code=1).stderr)
    assert "API_KEY" in error
    assert "--debug" in error


def test_an_empty_id(kitchen: Kitchen) -> None:
    assert "--id needs a name" in _error(kitchen("run", kitchen.target, "--id", "", code=2).stderr)

"""gc, export and import: what goes, what stays and why, and runs taken from store to store."""

from __future__ import annotations

import pytest

from tests.cli.calling import Kitchen


@pytest.fixture
def stocked(kitchen: Kitchen) -> Kitchen:
    """The runs `a`, `b` and `c`, of which `c` failed, and a fork of `a`."""
    for name in "ab":
        kitchen("run", kitchen.target, "--id", name, "--quiet")
    kitchen("run", kitchen.target, "fail_at=4", "--id", "c", "--quiet", code=1)
    kitchen("fork", "a", "--at", "30", "--id", "d", "--quiet")
    return kitchen


def test_gc_tells_what_it_would_remove_and_does_that(stocked: Kitchen) -> None:
    words = ["gc", "--keep-last", "0"]
    plan = stocked.json(*words, "--dry-run")
    assert plan["dry_run"] is True
    assert [one["run"] for one in plan["removed"]] == ["b"]
    kept = {one["run"]: one["why"] for one in plan["kept"]}
    assert kept.keys() == {"a", "c", "d"}
    assert "forks of it stay: 'd'" in kept["a"]
    told = stocked(*words, "--dry-run").stdout
    assert told.startswith("would go\n  b  training  completed  ")
    assert f"would free: 1 run(s), {plan['events']} events, " in told
    assert len(stocked.json("runs")) == 4
    done = stocked(*words, "--compact").stdout
    assert done.startswith("removed\n  b  training")
    assert f"freed: 1 run(s), {plan['events']} events, " in done
    assert [one["id"] for one in stocked.json("runs")] == ["a", "c", "d"]
    assert stocked.json("verify") == []


def test_gc_takes_what_it_is_told_to(stocked: Kitchen) -> None:
    assert stocked.json("gc", "--older-than", "1h")["removed"] == []
    assert stocked.json("gc", "--keep-last", "0", "--workflow", "other")["removed"] == []
    words = ["gc", "--keep-last", "0", "--status", "forked", "--status", "failed"]
    assert {one["run"] for one in stocked.json(*words)["removed"]} == {"c", "d"}
    assert "freed: 0 run(s)" in stocked("gc", "--keep-last", "9").stdout


def test_gc_needs_to_be_told_what_is_not_wanted(stocked: Kitchen) -> None:
    assert "--keep-last 10" in stocked("gc", code=2).stderr
    assert "write 45m, 12h, 30d or 2w" in stocked("gc", "--older-than", "3", code=2).stderr
    assert len(stocked.json("runs")) == 4


def test_a_run_goes_from_store_to_store(stocked: Kitchen) -> None:
    told = stocked("export", "c").stdout
    head = stocked.head("c")
    assert told.startswith(f"exported c to c.kitchen: {head} events, ")
    assert "exists already" in stocked("export", "c", code=2).stderr
    assert "--replace" in stocked("export", "c", code=2).stderr
    stocked("export", "c", "--replace")
    stocked("export", "d", "-o", "fork.kitchen")
    imported = stocked("import", "c.kitchen", "--store", "other.db").stdout
    assert imported == f"imported c: {head} events\n"
    stocked("import", "fork.kitchen", "--id", "e", "--store", "other.db")
    assert [one["id"] for one in stocked.json("runs", "--store", "other.db")] == ["c", "e"]
    (stocked.folder / "mended").touch()
    for store in ("kitchen.db", "other.db"):
        stocked("resume", "c", "--store", store, "--quiet")
    stocked("diff", "c", "c", "--other", "other.db")


def test_what_cannot_be_imported_is_told(stocked: Kitchen) -> None:
    stocked("export", "a")
    assert "there is a run 'a' already" in stocked("import", "a.kitchen", code=2).stderr
    assert "there is no file b.kitchen" in stocked(
        "import", "b.kitchen", "--store", "none.db", code=2
    ).stderr  # fmt: skip
    assert not (stocked.folder / "none.db").exists()
    assert "is not a run that kitchen has exported" in stocked(
        "import", f"{stocked.module}.py", code=2
    ).stderr  # fmt: skip
    (stocked.folder / "cut.kitchen").write_bytes((stocked.folder / "a.kitchen").read_bytes()[:-40])
    stocked("import", "cut.kitchen", "--id", "x", code=2)
    assert "Did you mean" in stocked("export", "aa", code=2).stderr
    assert len(stocked.json("runs")) == 4

"""What a kill, an interruption or a rewind must not change about failures."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

import kitchen
from kitchen import Retry, Stage
from kitchen.errors import StoreError
from kitchen.machine.events import Address, RunRewound, to_json
from kitchen.runner import cancelling
from kitchen.runner.limits import executed
from store import MemoryStore, Record, open_store
from tests.runner.running import Box, Dying, Killed, done, flow, of_type, types


def test_a_failure_behind_a_rewind_ends_the_memo() -> None:
    """A stage that had come to its end fails now: what was decided behind it is asked again."""
    works, die = iter([True, False]), Dying(0)

    def maybe(ctx: Any) -> None:
        if not next(works):
            raise LookupError("gone")
        ctx.state["there"] = True

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("touch", lambda ctx: ctx.resources["box"].add() and None)
        wf.stage("maybe", maybe, on_error="skip")
        with wf.conditional(lambda ctx: "there" in ctx.state, name="there"):
            wf.stage("yes", lambda ctx: ctx.state.__setitem__("said", "yes"))
        with wf.otherwise():
            wf.stage("no", lambda ctx: ctx.state.__setitem__("said", "no"))
        wf.stage("die", lambda ctx: die())

    store, workflow = MemoryStore(), flow(build)
    with pytest.raises(Killed):
        done(workflow, store=store)
    assert kitchen.resume("r", workflow, store=store).state["said"] == "no"
    (diverged,) = of_type(store, "RewindDiverged")
    assert (diverged.path, diverged.event.key) == ("maybe", "failure")  # type: ignore[attr-defined]


class Rent(Stage):
    """Something outside, to be given back."""

    def execute(self, ctx: Any) -> None:
        ctx.resources["box"].add()

    def rollback(self, ctx: Any, error: kitchen.Failure) -> None:
        ctx.append("returned", ctx.path)


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_completed_in_a_parallel_that_failed_is_compensated(*, killed: bool) -> None:
    die = Dying(*([0] if killed else []))

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.parallel("p", max_concurrency=1):
            wf.stage("rent", Rent)
            wf.stage("bad", lambda ctx: 1 / 0)
        with wf.on_error("caught"):
            wf.stage("die", lambda ctx: die())
        wf.stage("last", lambda ctx: 1 / 0)

    store, workflow = MemoryStore(), flow(build, compensate=True)
    if killed:
        with pytest.raises(Killed):
            done(workflow, store=store)
    with pytest.raises(kitchen.RunError) as caught:
        done(workflow, store=store, if_exists="resume")
    assert list(caught.value.run.state["returned"]) == ["p/rent"]


def test_what_a_rollback_of_a_run_that_ends_might_see_half_changed_it_does_not_see() -> None:
    class Half(Stage):
        def execute(self, ctx: Any) -> None:
            ctx.resources["box"].add(100)
            raise ValueError("in the middle")

        def rollback(self, ctx: Any, error: kitchen.Failure) -> None:
            ctx.state["seen"] = ctx.resources.peek("box").value

    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        wf.stage("half", Half)

    store = MemoryStore()
    with pytest.raises(kitchen.RunError) as caught:
        done(flow(build), store=store)
    assert "seen" not in caught.value.run.state
    (undone,) = of_type(store, "StageRolledBack")
    assert "may be half changed" in undone.event.failure.message  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["retries", "skip", "plain"])
def test_an_error_made_of_a_cancellation_is_an_interruption(kind: str) -> None:
    async def slow(ctx: Any) -> None:
        if ctx.attempt > 1:
            return
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            raise ConnectionError("closed while waiting") from error

    given: dict[str, Any] = {"retries": {"retries": 1}, "skip": {"on_error": "skip"}, "plain": {}}
    workflow = flow(lambda wf: wf.stage("slow", slow, **given[kind]))
    store = MemoryStore()
    with pytest.raises(kitchen.RunInterrupted):
        done(workflow, store=store, grace=0)
    assert "StageFailed" not in types(store)
    assert kitchen.resume("r", workflow, store=store).status == "completed"


def records(*told: tuple[float, str, int]) -> Any:
    """A journal of such events: their second, their type, and what a rewind goes back to."""
    made = [
        Record(
            "r",
            seq,
            int((at + 1) * 1e9),
            kind,
            "",
            (),
            0,
            to_json(RunRewound(to)) if to else "{}",
            b"",
        )
        for seq, (at, kind, to) in enumerate(told, 1)
    ]
    read = SimpleNamespace(read=lambda run, after: iter(made[after:]))
    return SimpleNamespace(run="r", store=read, state=SimpleNamespace(seq=len(made)))


def test_a_time_limit_counts_neither_what_a_rewind_supersedes_nor_when_nobody_ran_it() -> None:
    story = (
        (0, "TimeLimitStarted", 0),
        (1, "StageStarted", 0),
        (3, "StageCompleted", 0),
        (50, "StageCompleted", 0),
        (60, "RunResumed", 0),
        (61, "RunRewound", 2),
        (63, "StageStarted", 0),
    )
    block = Address("")
    assert executed(records(*story), 1, block) == 1 + 2
    assert executed(records(*story[:5]), 1, block) == 50
    assert executed(records((5, "TimeLimitStarted", 0), (4, "StageStarted", 0)), 1, block) == 0


def test_a_retry_counts_in_the_block_and_not_behind_it() -> None:
    story = (
        (0, "TimeLimitStarted", 0),
        (1, "StageStarted", 0),
        (11, "StageFailed", 0),
        (11, "RunRewound", 2),
        (13, "StageStarted", 0),
    )
    assert executed(records(*story), 1, Address("")) == 13
    behind = (*story[:2], (5, "TimeLimitEnded", 0), (11, "StageFailed", 0), *story[3:])
    assert executed(records(*behind), 1, Address("")) == 1 + 2


def test_an_error_with_a_text_that_is_no_unicode_is_told_and_handled() -> None:
    def read(ctx: Any) -> None:
        name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
        raise ValueError(f"cannot parse {name}")

    def build(wf: Any) -> None:
        wf.stage("read", read, retries=Retry(1, backoff=0), on_error="skip")

    store = MemoryStore()
    assert done(flow(build), store=store).status == "completed"
    failed = of_type(store, "StageFailed")
    assert len(failed) == 2
    assert failed[0].event.failure.message == "cannot parse caf\\udce9.txt"  # type: ignore[attr-defined]


def test_a_store_that_cannot_be_written_is_no_handlers_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(wf: Any) -> None:
        wf.resource("box", lambda ctx: Box())
        with wf.loop("l", over=lambda ctx: range(2)):
            wf.stage("add", lambda ctx: ctx.resources["box"].add() and None)
            wf.checkpoint("save")
        with wf.on_error("caught"):
            pass

    workflow = flow(build)

    def full(names: Any, live: Any, journal: Any) -> Any:
        raise StoreError("no space left on device")

    with open_store(tmp_path / "k.db") as store:
        with monkeypatch.context() as patched:
            patched.setattr("kitchen.runner.checkpoint.save", full)
            with pytest.raises(StoreError, match="no space"):
                done(workflow, store=store)
        assert "BlockFailed" not in types(store)
        assert kitchen.resume("r", workflow, store=store).status == "completed"
        assert len(of_type(store, "StageCompleted")) >= 2


def test_a_run_whose_process_died_before_it_heard_is_cancelled_when_it_is_taken_up(
    tmp_path: Path,
) -> None:
    workflow = flow(lambda wf: wf.stage("die", lambda ctx: Dying(0)()))
    with open_store(tmp_path / "k.db") as store:
        with pytest.raises(Killed):
            done(workflow, store=store)
        file = cancelling.ask(store, "r", "me")
        assert file is not None
        with pytest.raises(kitchen.RunCancelled, match="by me"):
            kitchen.resume("r", workflow, store=store)
        assert not file.exists()


def test_a_request_to_cancel_does_not_follow_what_somebody_has_put_there(tmp_path: Path) -> None:
    with open_store(tmp_path / "k.db") as store:
        file = cancelling.request_file(store, "r")
        assert file is not None
        other = tmp_path / "other"
        other.write_text("precious")
        file.symlink_to(other)
        assert cancelling.asked(store, "r") is None
        cancelling.ask(store, "r", "me")
        assert other.read_text() == "precious"

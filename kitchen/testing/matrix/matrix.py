"""`crash_matrix`: a workflow is run whole, then killed at every point, resumed, and compared.

Rules:

1. A whole run that does not end as it is to is a failure, before all: a matrix of it would compare
   nothing. What differs between two runs that nobody killed is told as such, before anything is
   killed.
2. Most points die in this process, which is fast; some in fresh processes, since a hidden global
   survives in this one. A few die twice.
3. After a few points that failed no more are tried; the first in the order of the run is told. What
   hangs is the last.
4. A point that was named and that the run does not come to is an error, not a success.
5. What cannot cross to a fresh process is refused before anything runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from kitchen.api.running import check_workflow
from kitchen.errors import ArgumentError
from kitchen.testing.given import Adapters
from kitchen.testing.matrix.asked import Asked
from kitchen.testing.matrix.comparing import Difference, Outcome, noise_of
from kitchen.testing.matrix.crossing import parcel_of
from kitchen.testing.matrix.diagnosing import Case, causes_of
from kitchen.testing.matrix.fresh import Process
from kitchen.testing.matrix.lives import Subject, apart, quiet
from kitchen.testing.matrix.points import Point, check_points, chosen, in_processes
from kitchen.testing.matrix.report import CrashReport, ended_otherwise, failure_of
from kitchen.testing.matrix.trials import Trials
from kitchen.workflow.definition import Workflow

if TYPE_CHECKING:
    from kitchen.testing.clock.clock import VirtualClock

Progress: TypeAlias = Callable[[int, int, str], object]
"""Is told how many trials are done, of how many, and what comes next."""

_ENOUGH = 5  # points that failed
_PATIENCE, _SLOW = 60.0, 20  # seconds at least, and times those of the whole run, before one hangs
_FAR = 10  # times the appends of the whole run: such a run does not end
_UNKILLED = "two runs that nobody killed differ"
_ELSEWHERE = "a run in a fresh process differs from one in this process; nobody killed either"
_KILLED = "a run that was killed and resumed differs from the whole run"


def crash_matrix(
    workflow: Workflow[Any, Any],
    config: Any = None,
    *,
    adapters: Adapters = None,
    points: int | str | Sequence[str] = 100,
    processes: int = 2,
    seed: int = 0,
    backend: str = "asyncio",
    status: str = "completed",
    clock: VirtualClock | None = None,
    prepare: Callable[[], object] | None = None,
    exclude: str | Iterable[str] = (),
    decide: str | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CrashReport:
    """Kill a workflow at its crash points, resume it, and compare it with the whole run.

    `points`: "all" that there are (before and after each append), at most so many, spread evenly, or
    a list of those that a report has named. `processes`: so many more die by SIGKILL in processes of
    their own. `status`: how the whole run is to end, "completed" or "failed". `adapters`: a mapping,
    or a function that makes them anew for each run and resume. `prepare` puts the world outside back
    before each run. `exclude`: what is not compared: paths, "state.KEY", "metric.NAME",
    "resource.NAME", with `*`. `decide`: what is said of effects that a crash leaves undecided,
    "retry" unless given; as in `resume`. `clock`: skips what runs would wait.

    Raises `CrashMatrixFailed` where something differs or the whole run ends otherwise;
    `ArgumentError` before anything runs, or where a listed point is not come to.
    """
    check_workflow(workflow)
    listed = check_points(points)
    if type(processes) is not int or processes < 0:
        raise ArgumentError(f"processes= is a number from 0 on, not {processes!r}")
    if not isinstance(exclude, str | Sequence):
        exclude = list(exclude)
    asked = Asked(
        adapters=adapters,
        seed=seed,
        backend=backend,
        status=status,
        clock=clock,
        prepare=prepare,
        exclude=exclude,
        decide=decide,
    )
    told = asked.check(workflow.ir)
    subject = Subject(
        workflow=workflow,
        config=config,
        adapters=adapters,
        seed=seed,
        backend=backend,
        clock=clock,
        decide=decide,
    )
    if listed is not None:
        processes = sum(point.fresh for point in listed)
    with ExitStack() as stack:
        process = None
        if processes:
            folder = stack.enter_context(TemporaryDirectory(prefix="kitchen-matrix-"))
            process = Process(parcel_of(subject), Path(folder))
            stack.callback(process.close)
        stack.enter_context(quiet())
        matrix = _Matrix(asked, Trials(subject, told, prepare, process), progress)
        return apart(lambda: matrix.run(points, listed, processes))


class _Matrix:
    """One crash matrix at work."""

    def __init__(self, asked: Asked, trials: Trials, progress: Progress | None) -> None:
        self._asked = asked
        self._trials = trials
        self._progress = progress
        self._done = 0
        self._total = 3
        self._tried: list[Point] = []
        self._early: list[Point] = []
        self._failing: list[tuple[Outcome, Difference]] = []

    def run(self, points: Any, listed: list[Point] | None, processes: int) -> CrashReport:
        """The whole runs, then the points: those that were listed, or so many."""
        began = time.monotonic()
        whole = self._whole()
        self._trials.most = _FAR * whole.appends + 1_000
        tried = listed
        if tried is None:
            tried = chosen(points, whole.appends) + in_processes(processes, whole.appends)
        here = [each for each in tried if not each.fresh]
        fresh = [each for each in tried if each.fresh]
        self._total = self._done + len(here) + len(fresh)
        self._try(whole, here, _ENOUGH)
        if not any(each.hung for each, _ in self._failing):
            self._try(whole, fresh, 2)
        self._tell("compared")
        if self._failing:
            raise self._failure(whole)
        if listed is not None and self._early:
            raise ArgumentError(
                f"points={[str(each) for each in self._early]} names no point of this run: it makes "
                f"{whole.appends} appends",
                hint=f"the last is 'before:{whole.appends}'",
            )
        return CrashReport(
            self._trials.subject.workflow.name,
            whole.history.status,
            whole.appends,
            len(here) - sum(not each.fresh for each in self._early),
            len(fresh) - sum(each.fresh for each in self._early),
            len(self._early),
            time.monotonic() - began,
        )

    def _whole(self) -> Outcome:
        """The whole run; where another differs from it, nothing is killed."""
        trials = self._trials
        elsewhere = self._made("a whole run in a fresh process", fresh=True)
        began = time.monotonic()
        whole = self._made("the whole run")
        trials.patience = max(_PATIENCE, _SLOW * (time.monotonic() - began))
        assert whole is not None
        if whole.history.status != self._asked.status:
            raise ended_otherwise(trials.subject.workflow.name, whole, self._asked.status)
        other = self._made("the whole run, again")
        assert other is not None
        trials.noise = noise_of(whole, other)
        if elsewhere is not None:
            trials.noise |= noise_of(whole, elsewhere)
        for outcome, title in ((other, _UNKILLED), (elsewhere, _ELSEWHERE)):
            found = None if outcome is None else trials.difference(whole, outcome)
            if outcome is not None and found is not None:
                case = Case(trials, whole, outcome, found, elsewhere)
                raise self._told(case, "", title)
        return whole

    def _made(self, what: str, *, fresh: bool = False) -> Outcome | None:
        if fresh and self._trials.process is None:
            self._total -= 1
            return None
        self._tell(what)
        made = self._trials.run(fresh=fresh)
        self._done += 1
        for raised in made.notes("raised"):  # nothing has run, or nothing can
            raise raised
        return made

    def _try(self, whole: Outcome, points: Sequence[Point], enough: int) -> None:
        failed = 0
        for point in points:
            self._tell(str(point))
            outcome = self._trials.run(point)
            found = self._trials.difference(whole, outcome)
            self._done += 1
            self._tried.append(point)
            if not outcome.died:
                self._early.append(point)
            if found is not None:
                self._failing.append((outcome, found))
                failed += 1
                if failed == enough or outcome.hung:
                    break

    def _failure(self, whole: Outcome) -> Exception:
        self._tell("looking for the cause")
        outcome, found = min(self._failing, key=lambda each: _rank(each[0]))
        case = Case(self._trials, whole, outcome, found, None)
        here = sum(not each.fresh for each in self._tried)
        failed = [str(each.point) for each, _ in self._failing]
        counts = (
            f"{len(failed)} of {len(self._tried)} failed ({', '.join(failed)}); {here} were tried in "
            f"this process, {len(self._tried) - here} in fresh ones"
        )
        return self._told(case, counts, _KILLED)

    def _told(self, case: Case, counts: str, title: str) -> Exception:
        point = case.point
        points: dict[str, Any] = {"points": f'["{point}"]'}
        if point is None:
            points = {"points": 1, "processes": int(case.outcome is case.elsewhere)}
        subject = self._trials.subject
        again = self._asked.again(subject.workflow.name, subject.config, points)
        causes = causes_of(case)
        return failure_of(
            subject.workflow.name, case.outcome, case.found, causes, counts, title, again
        )

    def _tell(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, what)


def _rank(outcome: Outcome) -> Any:
    assert outcome.point is not None
    return outcome.point.again is not None, outcome.point.fresh, outcome.point.rank

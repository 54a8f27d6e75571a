"""Golden traces: `assert run == golden`, on syrupy.

Rules:

1. A golden is a text file of one trace, `__golden__/<test module>/<test>.trace`. It is written,
   compared, updated and found unused by syrupy, as all its snapshots are.
2. Goldens of another test module are never looked at, so never taken for unused.
3. A run is found in the store that kitchen uses by default, which is the test's own where the
   fixture `kitchen_store` is used; a `History` has its store with it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from syrupy.assertion import AssertionResult, DiffMode, SnapshotAssertion
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from kitchen.adapters.event_store import opened
from kitchen.ended import Run
from kitchen.errors import ArgumentError, UnknownRun
from kitchen.history.golden import DIGITS, FOLDER, SUFFIX, Telling, golden_text
from kitchen.history.history import History
from kitchen.history.patterns import patterns

if TYPE_CHECKING:
    import pytest
    from syrupy.location import PyTestLocation

Level: TypeAlias = Literal["stages", "state", "events"]

_ODD = re.compile(r"[^\w .,=()\[\]+@-]+")  # in the name of a file
_LONGEST = 180


class TraceExtension(SingleFileSnapshotExtension):
    """Where syrupy keeps goldens, and how it tells their differences."""

    _write_mode = WriteMode.TEXT
    file_extension = SUFFIX

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        """The folder of this test module's goldens, whatever that of other snapshots is called."""
        return str(Path(test_location.filepath).parent / FOLDER / test_location.basename)

    @classmethod
    def discovery_dirname(cls, *, test_location: PyTestLocation) -> str:
        """The folder of this test module alone."""
        return cls.dirname(test_location=test_location)

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: Any = 0) -> str:
        """The file's name, another for each test: what a file cannot be called is spelled in hex."""
        name = AbstractSyrupyExtension.get_snapshot_name(test_location=test_location, index=index)
        return file_name(name)

    @classmethod
    def matches_test_location(
        cls, *, test_location: PyTestLocation, snapshot_location: str
    ) -> bool:
        """Whether a file may have been a golden of this test: of one without parameters, each in
        its folder, as it may have been renamed. So does syrupy."""
        file = Path(snapshot_location)
        here = file.parent == Path(cls.dirname(test_location=test_location))
        several = test_location.is_item_parametrized
        return here and (not several or is_of(file.stem, file_name(test_location.snapshot_name)))

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        """The first line that differs, then all of them with a line around."""
        yield from _first_difference(str(snapshot_data), str(serialized_data))
        yield from super().diff_lines(serialized_data, snapshot_data)


class Golden(SnapshotAssertion):
    """The trace that a run is to have. `golden(level=…, …)` says what is told of it."""

    _hide: Mapping[str, str] = {}
    _names: frozenset[str] = frozenset()

    def hiding(self, texts: Mapping[str, str]) -> Golden:
        """Have what these stand for told in their place."""
        self._hide = texts
        return self

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        level: Level = "events",
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        round: int | None = DIGITS,  # noqa: A002  (the word that users look for)
        life: bool = False,
        name: str | None = None,
    ) -> Told:
        """The golden, with what is told of the run.

        `level`: "stages" (what was committed), "state" (that, and what it changed) or "events".
        `include`, `exclude`: patterns, `epochs/eval` for a node and all below it, `state.KEY`,
        `metric.NAME`, `config.KEY`, with `*`. `round`: significant digits of floats, None for all.
        `life`: crashes, rewinds and failed attempts too. `name` is part of the file's name.

        Raises `ArgumentError`.
        """
        return Told(self, Telling(level, patterns(include, exclude), round, life), name)

    def __repr__(self) -> str:
        return f"<golden of {self.test_location.snapshot_name}>"

    def __eq__(self, other: object) -> bool:
        """Compare, or write with --snapshot-update. `other` is a `Run` or a `History`.

        Raises `ArgumentError` for anything else, and where the run is not found.
        """
        return self.compare(other, Telling(), None)

    __hash__ = None

    def compare(self, other: object, telling: Telling, name: str | None) -> bool:
        """Compare what is told of a run. Raises `ArgumentError`."""
        text = self._text(other, telling)
        if name is not None:
            if name in self._names:
                raise ArgumentError(f"two goldens of this test have the name {name!r}")
            self._names |= {name}
            super().__call__(name=name)
        return self._assert(text)

    def keep(self) -> None:
        """The test has failed: what it has not come to is not unused."""
        extension, location = self.extension, self.test_location
        done = {result.snapshot_location for result in self.executions.values()}
        mine = file_name(location.snapshot_name)
        for file in Path(extension.dirname(test_location=location)).glob(f"*.{SUFFIX}"):
            if is_of(file.stem, mine) and str(file) not in done:
                self.executions[len(self.executions)] = AssertionResult(
                    str(file), file.stem, None, None, created=False, updated=False, success=False,
                    exception=None, test_location=location,
                )  # fmt: skip

    def _text(self, other: object, telling: Telling) -> str:
        if isinstance(other, History):
            return golden_text(other, telling, self._hide)
        if not isinstance(other, Run):
            raise ArgumentError(
                f"a golden is the trace of a run, and was compared with: {type(other).__name__}",
                hint="assert run == golden, with what run_workflow or kitchen.history gave",
            )
        with ExitStack() as stack:
            try:
                store = stack.enter_context(opened(create=False, read_only=True))
                past = History(store, other.id)
            except (UnknownRun, OSError) as error:
                raise ArgumentError(
                    f"run {other.id!r} is not in the store of this test",
                    hint="use the fixtures run_workflow or kitchen_store; of another store, compare "
                    "kitchen.history(run.id, store=…) with the golden",
                ) from error
            return golden_text(past, telling, self._hide)


class Told(SnapshotAssertion):
    """A golden, with what is told of the run, for one comparison or several."""

    def __init__(self, golden: Golden, telling: Telling, name: str | None) -> None:
        # It is compared, and told of, as syrupy's are; but it is no golden beside that of the test.
        self._golden, self._telling, self._name = golden, telling, name

    @property
    def name(self) -> str:
        """What syrupy calls it."""
        return self._name or self._golden.name

    def __repr__(self) -> str:
        return repr(self._golden)

    def __eq__(self, other: object) -> bool:
        """As `Golden`."""
        return self._golden.compare(other, self._telling, self._name)

    __hash__ = None

    def get_assert_diff(self, *, diff_mode: DiffMode = DiffMode.DETAILED) -> list[str]:
        """How the last comparison came out."""
        return self._golden.get_assert_diff(diff_mode=diff_mode)


def golden_of(
    request: pytest.FixtureRequest, tmp_path: Path, snapshot: SnapshotAssertion
) -> Iterator[Golden]:
    """The golden of a test, for as long as it runs."""
    made = Golden(
        session=snapshot.session,
        extension_class=TraceExtension,
        test_location=snapshot.test_location,
        update_snapshots=snapshot.update_snapshots,
        update_new_snapshots_only=snapshot.update_new_snapshots_only,
    )
    failed = request.session.testsfailed
    yield made.hiding({str(tmp_path): "<tmp>", str(request.config.rootpath): "<root>"})
    if request.session.testsfailed > failed:
        made.keep()


def file_name(name: str) -> str:
    """A test's name as a file's, another for each."""
    spelled = _ODD.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)
    if len(spelled) <= _LONGEST:
        return spelled
    return f"{spelled[:_LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def is_of(stem: str, name: str) -> bool:
    """Whether a file of that stem is the golden, or one of the goldens, of a test."""
    return stem == name or stem.startswith((f"{name}.", f"{name}["))


def _first_difference(expected: str, found: str) -> Iterator[str]:
    """Where two traces part."""
    if not expected:
        yield "there is no golden yet: pytest --snapshot-update writes it"
        return
    before, now = expected.splitlines(), found.splitlines()
    pairs = zip(before, now, strict=False)
    at = next(
        (n for n, (one, other) in enumerate(pairs) if one != other), min(len(before), len(now))
    )
    yield f"the first difference is in line {at + 1}:"
    yield f"  golden: {before[at].strip() if at < len(before) else 'ends here'}"
    yield f"  run:    {now[at].strip() if at < len(now) else 'ends here'}"
    yield ""

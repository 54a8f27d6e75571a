"""Golden traces: `assert run == golden`, on syrupy.

Rules:

1. A golden is a text file of one trace, `__golden__/<test module>/<test>.trace`. It is written,
   compared, updated and found unused by syrupy, as all its snapshots are.
2. Goldens of another test module are never looked at, so never taken for unused.
3. A run is found in the store that kitchen uses by default, which is the test's own where the
   fixture `kitchen_store` is used; a `History` has its store with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syrupy.assertion import SnapshotAssertion
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

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        """The first line that differs, then all of them with a line around."""
        yield from _first_difference(str(snapshot_data), str(serialized_data))
        yield from super().diff_lines(serialized_data, snapshot_data)


class Golden(SnapshotAssertion):
    """The trace that a run is to have. `golden(level=…, …)` says what is told of it."""

    _telling = Telling()
    _hide: Mapping[str, str] = {}

    def hiding(self, texts: Mapping[str, str]) -> Golden:
        """Have what these stand for told in their place."""
        self._hide = texts
        return self

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        level: str = "events",
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        round: int | None = DIGITS,  # noqa: A002  (the word that users look for)
        life: bool = False,
        name: str | None = None,
    ) -> Golden:
        """Say what is told in the next comparison.

        `level`: "stages" (what was committed), "state" (that, and what it changed) or "events".
        `include`, `exclude`: patterns, `epochs/eval` for a node and all below it, `state.KEY`,
        `metric.NAME`, `config.KEY`, with `*`. `round`: significant digits of floats, None for all.
        `life`: crashes, rewinds and failed attempts too. `name` is part of the file's name.

        Raises `ArgumentError`.
        """
        self._telling = Telling(level, patterns(include, exclude), round, life)
        if name is not None:
            super().__call__(name=name)
        return self

    def __repr__(self) -> str:
        return f"<golden of {self.test_location.snapshot_name}>"

    def __eq__(self, other: object) -> bool:
        """Compare, or write with --snapshot-update. `other` is a `Run` or a `History`.

        Raises `ArgumentError` for anything else, and where the run is not found.
        """
        telling, self._telling = self._telling, Telling()
        return self._assert(self._text(other, telling))

    __hash__ = None

    def _text(self, other: object, telling: Telling) -> str:
        if isinstance(other, History):
            return golden_text(other, telling, self._hide)
        if not isinstance(other, Run):
            raise ArgumentError(
                f"a golden is the trace of a run, and was compared with a {type(other).__name__}",
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


def golden_of(
    request: pytest.FixtureRequest, tmp_path: Path, snapshot: SnapshotAssertion
) -> Golden:
    """The golden of a test."""
    made = Golden(
        session=snapshot.session,
        extension_class=TraceExtension,
        test_location=snapshot.test_location,
        update_snapshots=snapshot.update_snapshots,
        update_new_snapshots_only=snapshot.update_new_snapshots_only,
    )
    base = request.config.rootpath
    return made.hiding({str(tmp_path): "<tmp>", str(base): "<root>"})


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

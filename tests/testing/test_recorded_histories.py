"""Every history that was ever stored fits the code that it names: the gate, as a user writes it."""

from __future__ import annotations

from kitchen.testing import RecordedRun, kitchen_histories


@kitchen_histories("tests/histories/*.sqlite")
def test_it_fits(recorded_run: RecordedRun) -> None:
    assert recorded_run.fits, recorded_run.why
    assert recorded_run.differences == ()

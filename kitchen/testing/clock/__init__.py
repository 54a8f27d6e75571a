"""A virtual clock: what a run would only wait for is skipped."""

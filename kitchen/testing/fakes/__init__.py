"""Fakes: a deterministic adapter for every port, and failures on demand for any object."""

"""Feeding loops whose items come one at a time: streams, and producers."""

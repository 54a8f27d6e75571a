"""Replaying with execution: what a log holds, done again beside it, and compared."""

"""Floor 2, what happens next: the pure kernel. It knows no clock, no disk and no user code."""

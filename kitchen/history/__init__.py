"""Floor 4, what happened: reading a run's log. Nothing here appends or runs user code."""

"""Floor 3½, the log as facts: reading and folding it, and the journal that appends to it."""

"""Floor 1, what to run: the DSL, the tree that it builds, its checks and its pictures."""

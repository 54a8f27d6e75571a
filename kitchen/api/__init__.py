"""Floor 5½, the verbs of kitchen, put together from the floors below. One verb, one function."""

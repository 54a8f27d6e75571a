"""Floor 5, built-in workflows: ready to run, and meant to be read and copied.

Rules:

1. A recipe uses the public names of kitchen and the adapters, as a user's own workflow would.
2. `kitchen run kitchen.recipes.<module>:<workflow> name=value …` runs it; its config says what
   can be set.
"""

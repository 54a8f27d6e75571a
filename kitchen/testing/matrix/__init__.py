"""The crash matrix: a workflow is killed at every append, resumed, and compared with the whole run."""

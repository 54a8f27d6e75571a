"""Worker processes: the bodies of stages that run in a process of their own."""

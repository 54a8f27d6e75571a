"""Floor 4, make it happen: performs what the kernel asks for, and feeds back what came of it."""

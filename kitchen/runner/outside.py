"""What an event loop waits for that is none of its own: threads, and through them processes.

Rules:

1. Each await of the runner for such a thing stands in `with outside():`. So the count is above 0
   while something outside is at work, and falls once the event loop has taken the result: not when a
   thread is done, which the loop need not have noticed yet.
2. An event loop has a thread, and a thread a count, which no other thread changes: no lock.
3. Nothing here waits, or decides anything. Who reads it is a virtual clock, which may skip the time
   until the next timer while the count is 0. Without one, it costs two additions a call.
"""

from __future__ import annotations

import threading
from typing import Any

import anyio


class Outside:
    """How much outside its event loop a thread waits for. `watched`: somebody wants to know also
    when a thread that is waited for has nothing to do for a while."""

    watched = False

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Outside:
        self.count += 1
        return self

    def __exit__(self, *told: object) -> None:
        self.count -= 1

    def more(self) -> None:
        """Something that is waited for is at work again."""
        self.count += 1

    def less(self) -> None:
        """Something that is waited for waits in its turn."""
        self.count -= 1

    async def pause(self, seconds: float) -> None:
        """Sleep for about so long, though time need not pass for that alone: on a virtual clock it
        ends when other timers have made it late enough."""
        await anyio.sleep(seconds)


class _Here(threading.local):
    def __init__(self) -> None:
        self.outside = Outside()
        self.work: Any = None


HERE = _Here()
"""What this thread has: `outside`, if it runs an event loop; `work`, what it does for another."""


def outside() -> Outside:
    """What this thread's event loop waits for. Use it as `with outside(): await …`."""
    return HERE.outside

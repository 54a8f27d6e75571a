"""A golden trace: what is told of a run in a test, and where it is kept.

Rules:

1. It is the run's trace, rounded, without what varies from run to run by itself: an id that
   was made up, the host, the user's home, and whatever else the caller names. A host that is called
   by a plain word is not hidden: "loss" is what other things are called.
2. It is kept beside the test, in `__golden__/<test module>/<test>.trace`, where syrupy looks.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitchen.errors import ArgumentError
from kitchen.history.history import History
from kitchen.history.patterns import EVERYTHING, Patterns
from kitchen.history.trace import CHANGES, Hide, check_level
from kitchen.log.reader import fact_of

FOLDER = "__golden__"
SUFFIX = "trace"
DIGITS = 6  # of a float: what other machines' arithmetic agrees on, mostly

_MADE_UP = re.compile(r".+-\d{8}-\d{6}-[0-9a-f]{8}")  # as kitchen makes up a run's id
_SHORTEST = 2  # a host called "a" is no word to look for


@dataclass(frozen=True)
class Telling:
    """What is told. `round`: significant digits of floats, None for all of them. `life`: crashes,
    rewinds and failed attempts too.

    Raises `ArgumentError` for a level or a number of digits that there is not.
    """

    level: str = "events"
    patterns: Patterns = EVERYTHING
    round: int | None = DIGITS
    life: bool = False

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.round is not None and (type(self.round) is not int or not 1 <= self.round <= 17):
            raise ArgumentError(
                f"round= is a number of significant digits from 1 to 17, or None: not {self.round!r}"
            )


def golden_text(history: History, telling: Telling, hide: Mapping[str, str] | None = None) -> str:
    """The golden trace of a run. `hide`: what stands for these texts, wherever they are found.

    Raises `ArgumentError` for a pattern that fits no node, and what reading the log raises.
    """
    _check(history, telling.patterns)
    return history.trace(
        telling.level,
        digits=telling.round,
        life=telling.life,
        patterns=telling.patterns,
        hide=hiding(history, hide or {}),
    )


def _check(history: History, told: Patterns) -> None:
    told.check(history.ir)
    kinds = told.kinds()
    if "resource" in kinds:
        raise ArgumentError(
            "a trace tells nothing of what resources hold: no pattern resource.NAME"
        )
    if "config" in kinds:
        told.check_names("config", history.config)
    if "metric" in kinds:
        told.check_names("metric", history.all_metrics)
    if "state" in kinds:
        names = set(history.begun.state)
        for record in history.store.read(history.run_id, types=CHANGES):
            event: Any = fact_of(record).event
            names.add(event.key)
        told.check_names("state", names)


def hiding(history: History, more: Mapping[str, str]) -> Hide:
    """What puts `<run>`, `<host>`, `<home>` and the like in the place of what varies."""
    varying = dict(more)
    if _MADE_UP.fullmatch(history.run_id):
        varying[history.run_id] = "<run>"
    for host in (socket.gethostname(), history.started.host.host):
        if not host.isalpha():
            varying[host] = "<host>"
    home = str(Path.home())
    if home != "/":
        varying[home] = "<home>"
    texts = sorted((text for text in varying if len(text) >= _SHORTEST), key=len, reverse=True)
    found = re.compile("|".join(_spelled(text) for text in texts) or r"(?!)")
    return lambda text: found.sub(lambda match: varying[match[0]], text)


def _spelled(text: str) -> str:
    """What finds a text: with no letter or digit around it, as a host called "train" is not the
    beginning of "training"; an id that was made up is like no other text."""
    found = re.escape(text)
    return found if _MADE_UP.fullmatch(text) else rf"(?<!\w){found}(?!\w)"

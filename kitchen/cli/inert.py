"""Text of somebody else's, made harmless for a terminal.

Rules: what a store holds is printed, and a store may come from anybody. Control characters (with
which a terminal is told to do things), marks that turn the direction of writing, and lone surrogates
are printed as `\\u001b` and the like. In JSON that is the same string; line ends and tabs stay.
"""

from __future__ import annotations

import re

_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def inert(text: str) -> str:
    """The text with nothing in it that a terminal obeys."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str, most: int) -> str:
    """The same as one line of at most so many characters."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return inert(text).replace("\n", "\\n").replace("\t", "\\t")

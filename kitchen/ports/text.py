"""What a training workflow needs of a text: its characters, and numbers for them.

Rules:

1. A corpus never changes: equal text and equal vocabulary, equal numbers, in any process.
2. Nothing random happens in it: draws go through a generator that the caller passes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class TextCorpus(Protocol):
    """A text and the alphabet that it is written in."""

    @property
    def text(self) -> str:
        """The whole text."""
        ...

    @property
    def vocab(self) -> str:
        """Each character once; a character's place is its id."""
        ...

    def encode(self, text: str) -> NDArray[Any]:
        """Ids of `text`, an integer array `[len(text)]`.

        Raises `ValueError`, naming character and place, for what is not in the vocabulary.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for. Raises `ValueError` for an id out of range."""
        ...

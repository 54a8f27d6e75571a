"""A fake of the text corpus: a few words, and numbers for their characters.

Rule: numbers are NumPy arrays, as the port says. NumPy is imported by the first call that needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kitchen.testing.fakes.faults import CrashAt, Delay, FailAt, Faults

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kitchen.testing.clock.clock import VirtualClock

_METHODS = ("encode", "decode")
_TEXT = "the quick brown fox jumps over the lazy dog\n"


class FakeTextCorpus:
    """A `TextCorpus` of the text that it is given. `vocab`: its characters, sorted, if left out.

    It may fail as `Faults` says, by "encode" and "decode". `.calls` counts.
    """

    def __init__(
        self,
        text: str = _TEXT,
        *,
        vocab: str | None = None,
        fail_at: FailAt | None = None,
        delay: Delay | None = None,
        crash_at: CrashAt | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self._faults = Faults(fail_at=fail_at, delay=delay, crash_at=crash_at, clock=clock)
        self._faults.check(_METHODS, "a FakeTextCorpus")
        self._text = text
        self._vocab = "".join(sorted(set(text))) if vocab is None else vocab

    @property
    def calls(self) -> Counter[str]:
        """How many calls each method has had, those that failed counted too."""
        return self._faults.calls

    @property
    def text(self) -> str:
        """The whole text."""
        return self._text

    @property
    def vocab(self) -> str:
        """Each character once; a character's place is its id."""
        return self._vocab

    def encode(self, text: str) -> NDArray[Any]:
        """Ids of `text`. Raises `ValueError` for a character that is not in the vocabulary."""
        with self._faults("encode"):
            return self._alphabet().encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for. Raises `ValueError` for an id out of range."""
        with self._faults("decode"):
            return self._alphabet().decode(ids)

    def _alphabet(self) -> Any:
        from kitchen.adapters.text import Alphabet  # says what to do where there is no NumPy

        return Alphabet(self._vocab)

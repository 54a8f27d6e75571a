"""Text for character models: an alphabet, a corpus with batches, and Python's own manual.

Rules:

1. Equal text gives equal ids, split and evaluation batches, in any process.
2. A batch depends on the corpus and on the `random.Random` that it is drawn through, and
   takes the same number of bits from it every time.
3. No window crosses the border between what is trained on and what is held out.
4. `pydoc_corpus` differs between Python versions, whose manuals differ: `digest` tells.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from kitchen.errors import KitchenError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from numpy.typing import NDArray


class MissingNumpy(KitchenError, ImportError):
    """NumPy is not installed; the hint says how to get it."""


try:
    import numpy as np
except ImportError as error:
    raise MissingNumpy(
        f"{__name__} needs numpy, which cannot be imported: {error}",
        hint='pip install "crucible-kitchen[local]"',
    ) from error


class TextError(KitchenError, ValueError):
    """A text, an alphabet or a request for a batch that does not fit."""


class Batch(NamedTuple):
    """What a character model learns from."""

    contexts: NDArray[Any]
    """Ids `[batch, context]`, oldest first."""
    targets: NDArray[Any]
    """Ids `[batch]`: the character that followed each context."""


class Alphabet:
    """Numbers for characters: a character's id is its place in `vocab`."""

    def __init__(self, vocab: str) -> None:
        if not vocab or len(set(vocab)) != len(vocab):
            raise TextError(f"a vocabulary has each character once, and at least one: {vocab!r}")
        self.vocab = vocab
        self._ids = {character: place for place, character in enumerate(vocab)}

    def __len__(self) -> int:
        return len(self.vocab)

    def encode(self, text: str) -> NDArray[Any]:
        """Ids of `text`, int64 `[len(text)]`."""
        try:
            return np.array([self._ids[character] for character in text], dtype=np.int64)
        except KeyError as error:
            odd = error.args[0]
            raise TextError(
                f"character {odd!r} at {text.index(odd)} is not in the vocabulary",
                hint=f"known are {self.vocab!r}",
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for."""
        characters: list[str] = []
        for place, one in enumerate(ids):
            if not 0 <= one < len(self.vocab):
                raise TextError(f"id {one} at {place} is not in 0..{len(self.vocab) - 1}")
            characters.append(self.vocab[one])
        return "".join(characters)


class CharCorpus(Alphabet):
    """Paragraphs, one in `holdout` of them kept for validation.

    Held out are whole paragraphs all over the text, so that both parts speak of the same
    things; equal paragraphs count once, so that none is in both.
    """

    def __init__(self, text: str, *, holdout: int = 10) -> None:
        if holdout < 2:
            raise TextError(f"holdout={holdout}: one paragraph in two is the most to hold out")
        paragraphs = list(dict.fromkeys(line for line in text.split("\n") if line))
        if len(paragraphs) < holdout:
            raise TextError(f"{len(paragraphs)} paragraphs cannot be split by holdout={holdout}")
        self.text = "\n".join(paragraphs) + "\n"
        super().__init__("".join(sorted(set(self.text))))
        held = [p for i, p in enumerate(paragraphs) if i % holdout == holdout - 1]
        kept = [p for i, p in enumerate(paragraphs) if i % holdout != holdout - 1]
        self.train = self.encode("\n".join(kept) + "\n")
        self.validation = self.encode("\n".join(held) + "\n")

    @property
    def digest(self) -> str:
        """SHA-256 of the text, to tell one corpus from another."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def unigram_entropy(self) -> float:
        """Nats a character for one who knows how often each occurs, and no more."""
        counts = np.bincount(self.encode(self.text))
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def batch(self, rng: random.Random, batch_size: int, context: int) -> Batch:
        """`batch_size` windows of the training part, drawn with replacement through `rng`."""
        places = _window_count(self.train, batch_size, context)
        # One draw for the whole batch: a call for each window costs more than the batch's
        # own gathering. 64 bits make the bias of the remainder (2**-45) of no account.
        bits = rng.getrandbits(64 * batch_size).to_bytes(8 * batch_size, "little")
        starts = np.frombuffer(bits, dtype="<u8") % np.uint64(places)
        return _windows(self.train, starts.astype(np.int64), context)

    def evaluation_batch(self, batch_size: int, context: int) -> Batch:
        """`batch_size` windows spread evenly over the validation part: always the same."""
        places = _window_count(self.validation, batch_size, context)
        starts = np.arange(batch_size, dtype=np.int64) * places // batch_size
        return _windows(self.validation, starts, context)


def pydoc_corpus(*, holdout: int = 10) -> CharCorpus:
    """Python's language reference as `help()` shows it: prose that every machine has."""
    from pydoc_data.topics import topics

    return CharCorpus("\n".join(_plain(topics[key]) for key in sorted(topics)), holdout=holdout)


# By code point, as the characters themselves look like their replacements: single quotation
# marks, dashes, ellipsis. Double quotation marks and asterisks go: the manual puts them around
# code and emphasis, and a context of a few characters cannot learn to close what it opened.
_TYPOGRAPHY = {0x2018: "'", 0x2019: "'", 0x2013: "-", 0x2014: "-", 0x2026: "..."} | dict.fromkeys(
    (ord('"'), ord("*"), 0x201C, 0x201D)
)
_ODD = re.compile(r"[^\n -~]")
_PROSE = 0.85
"""The share of letters and spaces from which a paragraph is prose, not code or grammar."""


def _plain(text: str) -> str:
    """The paragraphs of prose, one a line, in printable ASCII."""
    text = _ODD.sub(" ", text.translate(_TYPOGRAPHY))
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n".join(paragraph for paragraph in paragraphs if _is_prose(paragraph))


def _is_prose(paragraph: str) -> bool:
    plain = sum(character.isalpha() or character == " " for character in paragraph)
    return plain >= _PROSE * len(paragraph) and "." in paragraph


def _window_count(ids: NDArray[Any], batch_size: int, context: int) -> int:
    """How many windows of `context` ids have a successor; at least one, or an error."""
    if batch_size < 1 or context < 1:
        raise TextError(f"batch_size={batch_size} and context={context} must be at least 1")
    if context >= len(ids):
        raise TextError(f"context={context}: this part of the text has {len(ids)} characters")
    return len(ids) - context


def _windows(ids: NDArray[Any], starts: NDArray[Any], context: int) -> Batch:
    return Batch(ids[starts[:, None] + np.arange(context)], ids[starts + context])

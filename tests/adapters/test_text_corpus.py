"""Text: equal in every process, and batches that depend on the generator alone."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitchen.adapters.text import Alphabet, CharCorpus, TextError, pydoc_corpus

if TYPE_CHECKING:
    from kitchen.ports.text import TextCorpus

LINES = "\n".join(f"paragraph {n} speaks of {n * 7} things" for n in range(40))


@pytest.fixture(scope="module")
def corpus() -> CharCorpus:
    return pydoc_corpus()


def test_the_corpus_fulfils_the_port(corpus: CharCorpus) -> None:
    port: TextCorpus = corpus
    assert port.decode(port.encode(port.text[:500])) == port.text[:500]


def test_the_manual_is_plain_and_large_enough(corpus: CharCorpus) -> None:
    assert set(corpus.vocab) <= {"\n", *map(chr, range(32, 127))}
    assert list(corpus.vocab) == sorted(set(corpus.text))
    assert len(corpus.text) > 200_000
    assert "  " not in corpus.text
    assert "\n\n" not in corpus.text


def test_another_process_has_the_same_corpus(corpus: CharCorpus) -> None:
    code = "from kitchen.adapters.text import pydoc_corpus as c; print(c().digest)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == corpus.digest


def test_what_is_kept_is_prose_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = {
        "b": "Heading\n*******\n\nThe \u201cwith\u201d\n   statement \xb0 ends.\n\n   x = f(1) + g[2:3]",
        "a": "It\u2019s somewhere here \u2014 and everywhere there\u2026\n\nstmt ::= [a | b] (c)*.",
    }
    monkeypatch.setattr("pydoc_data.topics.topics", fake)
    assert (
        pydoc_corpus(holdout=2).text
        == "It's somewhere here - and everywhere there...\nThe with statement ends.\n"
    )


def test_no_paragraph_is_in_both_parts(corpus: CharCorpus) -> None:
    train, held = (corpus.decode(part).split("\n") for part in (corpus.train, corpus.validation))
    assert not set(filter(None, train)) & set(filter(None, held))
    assert 0.05 < len(corpus.validation) / len(corpus.train) < 0.2


def test_equal_paragraphs_count_once() -> None:
    assert CharCorpus(LINES + "\n" + LINES).text == CharCorpus(LINES).text


def test_batches_depend_on_the_generator_alone() -> None:
    one, two = CharCorpus(LINES), CharCorpus(LINES)
    first, second = random.Random(3), random.Random(3)
    two.batch(random.Random(9), 5, 4)
    random.seed(1)
    np.random.seed(1)
    for size in (1, 7, 64):
        for here, there in zip(one.batch(first, size, 4), two.batch(second, size, 4), strict=True):
            np.testing.assert_array_equal(here, there)
    assert first.getstate() == second.getstate()
    changed = one.batch(random.Random(4), 64, 4).contexts
    assert not np.array_equal(changed, one.batch(random.Random(3), 64, 4).contexts)


def test_windows_are_cut_from_the_part_they_belong_to() -> None:
    corpus = CharCorpus(LINES)
    parts = [corpus.batch(random.Random(0), 50, 6), corpus.evaluation_batch(50, 6)]
    for batch, ids in zip(parts, (corpus.train, corpus.validation), strict=True):
        assert batch.contexts.shape == (50, 6)
        assert batch.targets.shape == (50,)
        text = corpus.decode(ids)
        for context, target in zip(batch.contexts, batch.targets, strict=True):
            assert corpus.decode([*context, target]) in text


def test_every_window_can_be_drawn_and_none_beyond() -> None:
    corpus = CharCorpus("\n".join("abcdefghij"), holdout=2)
    context = len(corpus.train) - 2  # so that there are two windows
    seen = {bytes(row) for row in corpus.batch(random.Random(0), 200, context).contexts}
    assert len(seen) == 2


def test_evaluation_batches_stay_and_spread() -> None:
    corpus = CharCorpus(LINES)
    first, again = corpus.evaluation_batch(8, 5), corpus.evaluation_batch(8, 5)
    np.testing.assert_array_equal(first.contexts, again.contexts)
    np.testing.assert_array_equal(first.contexts[0], corpus.validation[:5])


def test_the_unigram_entropy_of_four_equal_characters() -> None:
    corpus = CharCorpus("a\nb\nc", holdout=2)  # three letters, three line ends
    expected = -(3 * (1 / 6) * np.log(1 / 6) + 0.5 * np.log(0.5))
    assert corpus.unigram_entropy == pytest.approx(expected)


@given(st.text(alphabet="abc \n", max_size=40))
def test_decode_undoes_encode(text: str) -> None:
    alphabet = Alphabet("\n abc")
    assert alphabet.decode(alphabet.encode(text)) == text


def test_what_does_not_fit_is_named() -> None:
    alphabet, corpus = Alphabet("ab"), CharCorpus(LINES)
    with pytest.raises(TextError, match=r"character 'x' at 2"):
        alphabet.encode("abx")
    with pytest.raises(TextError, match=r"id -1 at 1 is not in 0\.\.1"):
        alphabet.decode([0, -1])
    with pytest.raises(TextError, match="each character once"):
        Alphabet("aa")
    with pytest.raises(TextError, match="2 paragraphs"):
        CharCorpus("a\nb")
    with pytest.raises(TextError, match="holdout=1"):
        CharCorpus(LINES, holdout=1)
    with pytest.raises(TextError, match="batch_size=0"):
        corpus.batch(random.Random(0), 0, 4)
    with pytest.raises(TextError, match="context=100000"):
        corpus.evaluation_batch(1, 100_000)


@pytest.mark.parametrize("module", ["text", "training"])
def test_without_numpy_the_import_says_what_to_install(module: str) -> None:
    code = f"import sys; sys.modules['numpy'] = None; import kitchen.adapters.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingNumpy" in done.stderr
    assert 'pip install "crucible-kitchen[local]"' in done.stderr


def test_the_ports_need_no_numpy() -> None:
    code = (
        "import sys, kitchen.ports.text, kitchen.ports.training; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The NumPy session: right gradients, right updates, and a state that leaves nothing out."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kitchen.adapters.text import Batch, CharCorpus, TextError, pydoc_corpus
from kitchen.adapters.training import (
    GROUPS,
    NumpyCharSession,
    SessionError,
    hold_blas_to_one_thread,
    warmup_cosine,
)
from kitchen.ports.training import Stateful, TrainingSession

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = "\nabcdef"


def small(seed: int = 0, **options: Any) -> NumpyCharSession:
    sizes: dict[str, Any] = {"context": 3, "embedding": 4, "hidden": 5, **options}
    return NumpyCharSession(VOCAB, rng=np.random.default_rng(seed), **sizes)


def draw(seed: int, size: int = 6, context: int = 3) -> Batch:
    rng = np.random.default_rng(seed)
    vocab = len(VOCAB)
    return Batch(rng.integers(0, vocab, (size, context)), rng.integers(0, vocab, size))


def digest(session: NumpyCharSession) -> str:
    """A hash over every bit of the state."""
    state, seen = session.state_dict(), hashlib.sha256()
    for group in GROUPS:
        for name, array in sorted(state.pop(group).items()):
            seen.update(f"{group}.{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return seen.hexdigest() + repr(state)


def test_the_session_fulfils_the_ports() -> None:
    session: TrainingSession[Batch] = small()
    assert isinstance(session, Stateful)


def test_gradients_agree_with_finite_differences() -> None:
    session, batch, width = small(dtype="float64"), draw(1), 1e-6
    start = session.state_dict()
    for name, array in start["params"].items():  # away from the flat start: all is small there
        noise = np.random.default_rng(2).standard_normal(array.shape)
        start["params"][name] = array + 0.3 * noise
    session.load_state_dict(start)
    session.forward_backward(batch)
    gradients = session.state_dict()["gradients"]
    for name, gradient in gradients.items():
        for place in np.ndindex(gradient.shape):
            losses: list[float] = []
            for sign in (1, -1):
                moved = copy.deepcopy(start)
                moved["params"][name][place] += sign * width
                session.load_state_dict(moved)
                losses.append(session.evaluate(batch))
            slope = (losses[0] - losses[1]) / (2 * width)
            assert gradient[place] / len(batch.targets) == pytest.approx(slope, abs=1e-8), name


def test_updates_are_those_of_adam_as_published() -> None:
    session = small(dtype="float64", betas=(0.8, 0.95), epsilon=1e-3)
    mean = {name: np.zeros_like(a) for name, a in session.state_dict()["params"].items()}
    variance = copy.deepcopy(mean)
    for step, rate in enumerate((0.1, 0.02, 0.3), start=1):
        session.forward_backward(draw(step))
        before = session.state_dict()
        assert session.optim_step(rate).step == step
        after = session.state_dict()
        for name, weight in before["params"].items():
            gradient = before["gradients"][name] / 6
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            variance[name] = 0.95 * variance[name] + 0.05 * gradient**2
            corrected = mean[name] / (1 - 0.8**step)
            spread = np.sqrt(variance[name] / (1 - 0.95**step))
            expected = weight - rate * corrected / (spread + 1e-3)
            np.testing.assert_allclose(after["params"][name], expected, rtol=1e-12, atol=1e-14)


def test_a_step_by_hand() -> None:
    # Whatever the gradient, Adam's first step moves a weight by the rate, against its sign.
    session = small(dtype="float64", epsilon=1e-12)
    session.forward_backward(draw(1))
    before = session.state_dict()
    session.optim_step(0.25)
    moved = session.state_dict()["params"]["output_bias"] - before["params"]["output_bias"]
    np.testing.assert_allclose(moved, -0.25 * np.sign(before["gradients"]["output_bias"]))


def test_two_halves_are_worth_the_whole() -> None:
    whole, halves, batch = small(dtype="float64"), small(dtype="float64"), draw(1, size=10)
    whole.forward_backward(batch)
    for part in (slice(0, 3), slice(3, 10)):
        halves.forward_backward(Batch(batch.contexts[part], batch.targets[part]))
    one, two = whole.optim_step(0.1), halves.optim_step(0.1)
    assert one.examples == two.examples == 10
    assert one.grad_norm == pytest.approx(two.grad_norm)
    for name, array in whole.state_dict()["params"].items():
        np.testing.assert_allclose(array, halves.state_dict()["params"][name], rtol=1e-9)


def go_on(session: NumpyCharSession) -> str:
    """What follows the checkpoint in the tests below; also run by a fresh process."""
    for step in range(4):
        session.forward_backward(draw(10 + step, size=40))
        session.optim_step(0.01)
        session.forward_backward(draw(20 + step, size=17))
    return digest(session) + session.sample("abc", 20, random.Random(0))


def interrupted(**options: Any) -> NumpyCharSession:
    """A session that stands between `forward_backward` and `optim_step`."""
    session = small(**options)
    session.forward_backward(draw(1))
    session.optim_step(0.01)
    session.forward_backward(draw(2))
    return session


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_taken_mid_accumulation_goes_on_bit_for_bit(dtype: str) -> None:
    session = interrupted(dtype=dtype)
    state, twin = session.state_dict(), small(seed=99, dtype=dtype)
    assert state["pending_examples"] == 6
    expected = go_on(session)
    twin.load_state_dict(state)
    assert go_on(twin) == expected


def test_a_fresh_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    sizes = {"context": 3, "embedding": 24, "hidden": 256}  # large enough for BLAS's threads
    session, file = interrupted(**sizes), tmp_path / "state.npz"
    state = session.state_dict()
    arrays = {f"{group}/{name}": a for group in GROUPS for name, a in state.pop(group).items()}
    np.savez(file, allow_pickle=False, **arrays)
    code = (
        "import importlib.util as u, numpy as np, sys\n"
        "spec = u.spec_from_file_location('t', sys.argv[1])\n"
        "t = u.module_from_spec(spec); spec.loader.exec_module(t)\n"
        f"state = {state!r} | {{group: {{}} for group in t.GROUPS}}\n"
        "for key, array in np.load(sys.argv[2], allow_pickle=False).items():\n"
        "    group, name = key.split('/'); state[group][name] = array\n"
        f"session = t.small(seed=5, **{sizes!r}); session.load_state_dict(state)\n"
        "print(ascii(t.go_on(session)))"
    )
    run = [sys.executable, "-c", code, __file__, str(file)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(go_on(session))


def test_the_same_seed_gives_the_same_weights() -> None:
    assert digest(small(seed=4)) == digest(small(seed=4)) != digest(small(seed=5))


def test_state_is_copied_both_ways() -> None:
    session = interrupted()
    before, state = digest(session), session.state_dict()
    session.load_state_dict(state)
    for group in GROUPS:
        for array in state[group].values():
            array[...] = 1
    assert digest(session) == before


def test_state_is_plain() -> None:
    state = interrupted().state_dict()
    leaves = [leaf for group in GROUPS for leaf in state[group].values()]
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float32 for leaf in leaves)
    assert {type(state[name]) for name in ("step", "pending_examples", "vocab")} == {int, str}
    assert pickle.loads(pickle.dumps(state)).keys() == state.keys()


def test_evaluate_and_sample_change_nothing() -> None:
    session = interrupted()
    before, rng = digest(session), random.Random(1)
    assert session.evaluate(draw(3)) == session.evaluate(draw(3))
    assert session.sample("a", 30, rng) != session.sample("a", 30, rng)
    assert digest(session) == before


def test_samples_depend_on_the_generator_and_have_the_length_asked_for() -> None:
    session = small()
    first, again = (session.sample("", 50, random.Random(7)) for _ in range(2))
    assert first == again
    assert len(first) == 50
    assert set(first) <= set(VOCAB)
    assert session.sample("abcdef" * 5, 0, random.Random(7)) == ""


def break_state(session: NumpyCharSession, change: str) -> dict[str, Any]:
    state = session.state_dict()
    params = state["params"]
    match change:
        case "shape":
            params["hidden_bias"] = np.zeros(9, dtype=np.float32)
        case "dtype":
            state["adam_mean"]["embedding"] = state["adam_mean"]["embedding"].astype(np.float64)
        case "missing":
            del params["output_bias"]
        case "unknown":
            params["attention"] = np.zeros(1)
        case "group":
            del state["gradients"]
        case "list":
            params["hidden_bias"] = [0.0] * 5
        case "count":
            state["step"] = -1
        case "vocab":
            state["vocab"] = "\nabcdeg"
        case _:
            state["params"] = None
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"params\.hidden_bias is float32\[5\] here and float32\[9\] in the state"),
        ("dtype", r"adam_mean\.embedding is float32\[7, 4\] here and float64\[7, 4\]"),
        ("missing", r"params\.output_bias is missing from the state"),
        ("unknown", r"params\.attention is unknown here"),
        ("group", r"gradients is missing from the state"),
        ("list", r"params\.hidden_bias must be an array, and is a list"),
        ("count", r"step must be a count, and is -1"),
        ("vocab", r"vocab is '\\nabcdef' here and '\\nabcdeg' in the state"),
        ("params", r"params must be a dict of arrays, and is a NoneType"),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(change: str, message: str) -> None:
    session, other = small(), interrupted(seed=3)
    before = digest(session)
    with pytest.raises(SessionError, match=message):
        session.load_state_dict(break_state(other, change))
    assert digest(session) == before


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (draw(1, context=2), r"targets \[batch\].*these are \(6, 2\) and \(6,\)"),
        (draw(1, size=0), "at least 1"),
        (Batch(draw(1).contexts - 1, draw(1).targets), r"contexts reach from -1 to"),
        (Batch(draw(1).contexts, draw(1).targets + 7), r"has 0\.\.6"),
        (Batch(draw(1).contexts, draw(1).targets * 1.0), "targets must be integers"),
    ],
)
def test_a_batch_that_does_not_fit_changes_nothing(batch: Batch, message: str) -> None:
    session = small()
    before = digest(session)
    with pytest.raises(SessionError, match=message):
        session.forward_backward(batch)
    with pytest.raises(SessionError, match=message):
        session.evaluate(batch)
    assert digest(session) == before


def test_requests_that_make_no_sense_are_refused() -> None:
    session = small()
    with pytest.raises(SessionError, match="no gradient is pending at step 0"):
        session.optim_step(0.1)
    session.forward_backward(draw(1))
    for rate in (-0.1, math.nan, math.inf):
        with pytest.raises(SessionError, match="learning_rate"):
            session.optim_step(rate)
    assert session.pending_examples == 6
    with pytest.raises(TextError, match="'x' at 1"):
        session.sample("ax", 5, random.Random(0))
    with pytest.raises(SessionError, match="temperature=0"):
        session.sample("a", 5, random.Random(0), temperature=0)
    with pytest.raises(SessionError, match="hidden=0"):
        small(hidden=0)


def test_a_diverged_session_says_nan_instead_of_stopping_half_way() -> None:
    session = small()
    for step in range(3):
        session.forward_backward(draw(step))
        session.optim_step(1e38)
    assert not math.isfinite(session.forward_backward(draw(3)).loss)
    assert len(session.sample("a", 5, random.Random(0))) == 5


def test_the_loss_starts_at_chance_and_falls_below_the_unigram_entropy() -> None:
    corpus = pydoc_corpus()
    session = NumpyCharSession(
        corpus.vocab, rng=np.random.default_rng(0), context=6, embedding=16, hidden=64
    )
    rng, held_out = random.Random(0), corpus.evaluation_batch(512, 6)
    assert session.evaluate(held_out) == pytest.approx(math.log(len(corpus.vocab)), abs=0.05)
    for step in range(300):
        session.forward_backward(corpus.batch(rng, 64, 6))
        session.optim_step(warmup_cosine(step, 300, 1e-2, warmup=20))
    assert session.evaluate(held_out) < corpus.unigram_entropy - 0.5


def test_the_learning_rate_goes_up_in_a_line_and_down_as_a_cosine() -> None:
    rates = [warmup_cosine(step, 110, 2.0, warmup=10) for step in range(111)]
    assert rates[:2] == pytest.approx([0.2, 0.4])
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == 0.0
    assert warmup_cosine(500, 110, 2.0) == 0.0


def test_openblas_is_held_to_one_thread() -> None:
    config: Any = np.show_config(mode="dicts")
    if "openblas" not in config["Build Dependencies"]["blas"]["name"] or sys.platform == "win32":
        pytest.skip("this numpy has another BLAS")
    assert hold_blas_to_one_thread()


def test_a_corpus_of_few_characters_will_do() -> None:
    corpus = CharCorpus("\n".join(f"{n} and {n + 1}" for n in range(30)))
    session = NumpyCharSession(corpus.vocab, rng=np.random.default_rng(0), context=2)
    session.forward_backward(corpus.batch(random.Random(0), 4, 2))
    assert session.optim_step(1e-3).examples == 4

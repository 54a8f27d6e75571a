"""A character language model in NumPy: small enough to read, real enough to resume.

Rules:

1. The model is that of Bengio, Ducharme, Vincent and Jauvin, "A Neural Probabilistic
   Language Model" (JMLR 3, 2003), over characters and without its direct connections: the
   last `context` characters, each by its embedding, one tanh layer, a softmax. It is trained
   by Adam with bias correction (Kingma and Ba, ICLR 2015, algorithm 1).
2. On one machine, equal state and equal calls give equal bits, in any process. So OpenBLAS
   is held to one thread, in the whole process, once a session is opened: how it shares a
   product among threads, and so the order of additions, is not promised to stay. At these
   sizes more threads cost half as much CPU again.
3. All that a later bit depends on is in `state_dict`: weights, both moments, gradients not
   yet applied, counts. Gradients are kept as sums over examples and averaged when applied.
4. A call either happens as a whole or raises and changes nothing. A loss that is NaN or
   infinite is a result, not an error.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from typing import TYPE_CHECKING, Any, Literal, cast

from kitchen.adapters.text import Alphabet, Batch  # first, as it says what to do without NumPy
from kitchen.errors import KitchenError
from kitchen.ports.training import OptimResult, StepResult

# isort: split
import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

GROUPS = ("params", "adam_mean", "adam_variance", "gradients")
"""The state's groups of arrays. Each has one array a weight, shaped like the weight."""

_QUIET = np.errstate(all="ignore")
# A diverged loss is a result, to be seen as NaN: as a warning that somebody turned into an
# exception it would stop an update half way.


class SessionError(KitchenError, ValueError):
    """A batch, a state or a request that does not fit the session; nothing was changed."""


class NumpyCharSession:
    """A `TrainingSession[Batch]` on one CPU core.

    Weights: `embedding [vocab, embedding]`, `hidden_weight [context * embedding, hidden]`,
    `hidden_bias [hidden]`, `output_weight [hidden, vocab]`, `output_bias [vocab]`.
    """

    def __init__(
        self,
        vocab: str,
        *,
        rng: np.random.Generator,
        context: int = 8,
        embedding: int = 24,
        hidden: int = 384,
        dtype: Literal["float32", "float64"] = "float32",
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        sizes = {"context": context, "embedding": embedding, "hidden": hidden}
        if small := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
            raise SessionError(f"sizes must be at least 1: {', '.join(small)}")
        hold_blas_to_one_thread()
        self.alphabet = Alphabet(vocab)
        self.context = context
        self.betas = betas
        self.epsilon = epsilon
        self.step = 0
        self.pending_examples = 0
        width = context * embedding
        shapes = {
            "embedding": (len(vocab), embedding),
            "hidden_weight": (width, hidden),
            "hidden_bias": (hidden,),
            "output_weight": (hidden, len(vocab)),
            "output_bias": (len(vocab),),
        }
        # Each group is one flat array, so that Adam is a few passes over all weights at once;
        # the names are views into it.
        total = sum(math.prod(shape) for shape in shapes.values())
        self._flat = {group: np.zeros(total, dtype=dtype) for group in GROUPS}
        self._named = {group: _views(self._flat[group], shapes) for group in GROUPS}
        params = self._named["params"]
        params["embedding"][...] = rng.standard_normal((len(vocab), embedding)) * 0.5
        params["hidden_weight"][...] = rng.standard_normal((width, hidden)) / math.sqrt(width)
        # Nearly flat at first: the loss starts at log(vocab), not above it.
        params["output_weight"][...] = rng.standard_normal((hidden, len(vocab))) * 0.01

    @_QUIET
    def forward_backward(self, batch: Batch, /) -> StepResult:
        """Add the gradient of `batch` (contexts `[batch, context]`, targets `[batch]`)."""
        contexts, targets = self._checked(batch)
        params, gradients = self._named["params"], self._named["gradients"]
        inputs, hidden, log_probs = self._forward(contexts)
        rows = np.arange(len(targets))
        loss = -float(log_probs[rows, targets].mean())

        d_logits = np.exp(log_probs)
        d_logits[rows, targets] -= 1
        d_hidden = (d_logits @ params["output_weight"].T) * (1 - hidden * hidden)
        d_inputs = d_hidden @ params["hidden_weight"].T
        gradients["output_weight"] += hidden.T @ d_logits
        gradients["output_bias"] += d_logits.sum(axis=0)
        gradients["hidden_weight"] += inputs.T @ d_hidden
        gradients["hidden_bias"] += d_hidden.sum(axis=0)
        # The rows of one character add up; as a product with a one-hot matrix that is many
        # times faster than np.add.at.
        one_hot = np.zeros((contexts.size, len(self.alphabet)), dtype=d_inputs.dtype)
        one_hot[np.arange(contexts.size), contexts.ravel()] = 1
        gradients["embedding"] += one_hot.T @ d_inputs.reshape(contexts.size, -1)
        self.pending_examples += len(targets)
        return StepResult(loss=loss, examples=len(targets))

    @_QUIET
    def optim_step(self, learning_rate: float) -> OptimResult:
        """One update by Adam with the mean of the pending gradients."""
        if not (math.isfinite(learning_rate) and learning_rate >= 0):
            raise SessionError(f"learning_rate={learning_rate} is not a finite rate of 0 or more")
        if not self.pending_examples:
            raise SessionError(
                f"no gradient is pending at step {self.step}",
                hint="call forward_backward before optim_step",
            )
        weights, mean, variance, gradient = (self._flat[group] for group in GROUPS)
        examples, self.pending_examples, self.step = self.pending_examples, 0, self.step + 1
        gradient /= examples
        norm = _norm(gradient)
        beta1, beta2 = self.betas
        mean *= beta1
        mean += (1 - beta1) * gradient
        variance *= beta2
        variance += (1 - beta2) * np.square(gradient)
        # The two corrections as scalars, instead of two more passes over every weight.
        rate = learning_rate / (1 - beta1**self.step)
        scale = 1 / math.sqrt(1 - beta2**self.step)
        weights -= rate * mean / (np.sqrt(variance) * scale + self.epsilon)
        gradient[...] = 0
        return OptimResult(self.step, learning_rate, norm, examples)

    @_QUIET
    def evaluate(self, batch: Batch, /) -> float:
        """Mean cross-entropy of `batch` in nats a character."""
        contexts, targets = self._checked(batch)
        _, _, log_probs = self._forward(contexts)
        return -float(log_probs[np.arange(len(targets)), targets].mean())

    @_QUIET
    def sample(
        self, prompt: str, n_chars: int, rng: random.Random, *, temperature: float = 0.5
    ) -> str:
        """`n_chars` characters after `prompt`; a `temperature` below 1 keeps to the likely.

        A prompt shorter than the context is preceded by line ends, as a paragraph is.
        """
        if n_chars < 0 or not (math.isfinite(temperature) and temperature > 0):
            raise SessionError(f"n_chars={n_chars} or temperature={temperature} is too small")
        vocab = self.alphabet.vocab
        padding = [max(0, vocab.find("\n"))] * self.context
        ids: list[int] = padding + self.alphabet.encode(prompt).tolist()
        start = len(ids)
        for _ in range(n_chars):
            _, _, log_probs = self._forward(np.array([ids[-self.context :]]))
            # In float64, so that the shares add up to one; the last bound is open above.
            scores = log_probs[0].astype(np.float64) / temperature
            bounds: NDArray[Any] = np.cumsum(np.exp(scores - scores.max()))
            chosen = int(np.searchsorted(bounds, rng.random() * float(bounds[-1]), side="right"))
            ids.append(min(chosen, len(vocab) - 1))
        return self.alphabet.decode(ids[start:])

    def state_dict(self) -> dict[str, Any]:
        """Copies: a dict of arrays for each of `GROUPS`, `step`, `pending_examples`, `vocab`."""
        state: dict[str, Any] = {
            group: {name: array.copy() for name, array in arrays.items()}
            for group, arrays in self._named.items()
        }
        counts = {"step": self.step, "pending_examples": self.pending_examples}
        return state | counts | {"vocab": self.alphabet.vocab}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy in what `state_dict` gave; `SessionError` lists everything that differs."""
        if differences := self._differences(state_dict):
            raise SessionError(
                "the state does not fit this session: " + "; ".join(differences),
                hint="open the session with the sizes, dtype and vocabulary it was saved with",
            )
        for group, arrays in self._named.items():
            for name, array in arrays.items():
                array[...] = state_dict[group][name]
        self.step = state_dict["step"]
        self.pending_examples = state_dict["pending_examples"]

    def _forward(self, contexts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Inputs `[batch, context * embedding]`, hidden `[batch, hidden]`, log-probabilities."""
        params = self._named["params"]
        inputs = params["embedding"][contexts].reshape(len(contexts), -1)
        hidden = np.tanh(inputs @ params["hidden_weight"] + params["hidden_bias"])
        logits = hidden @ params["output_weight"] + params["output_bias"]
        logits -= logits.max(axis=1, keepdims=True)
        return inputs, hidden, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def _checked(self, batch: Batch) -> Batch:
        contexts, targets = batch
        size = len(targets)
        if size < 1 or contexts.shape != (size, self.context) or targets.shape != (size,):
            raise SessionError(
                f"a batch has contexts [batch, {self.context}] and targets [batch], batch at "
                f"least 1; these are {contexts.shape} and {targets.shape}"
            )
        for name, ids in (("contexts", contexts), ("targets", targets)):
            if ids.dtype.kind not in "iu":
                raise SessionError(f"{name} must be integers, and are {ids.dtype}")
            if ids.min() < 0 or ids.max() >= len(self.alphabet):  # -1 would wrap silently
                raise SessionError(
                    f"{name} reach from {ids.min()} to {ids.max()}; the vocabulary "
                    f"has 0..{len(self.alphabet) - 1}"
                )
        return batch

    def _differences(self, state: Mapping[str, Any]) -> list[str]:
        """What keeps `state` from being loaded, one line each."""
        found = _name_differences("", {*GROUPS, "step", "pending_examples", "vocab"}, set(state))
        for group in GROUPS:
            if group in state:
                found += _array_differences(group, self._named[group], state[group])
        for name in ("step", "pending_examples"):
            value = state.get(name, 0)
            if type(value) is not int or value < 0:
                found.append(f"{name} must be a count, and is {value!r}")
        if (vocab := state.get("vocab", self.alphabet.vocab)) != self.alphabet.vocab:
            found.append(f"vocab is {self.alphabet.vocab!r} here and {vocab!r} in the state")
        return found


def warmup_cosine(step: int, total: int, peak: float, warmup: int = 100) -> float:
    """The learning rate at `step` of `total`: up to `peak` in a line, down to 0 as a cosine."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def hold_blas_to_one_thread() -> bool:
    """Tell NumPy's OpenBLAS to use one thread in this process; whether that was possible.

    NumPy has no call for it, and the environment variable is read before we are. Another
    BLAS (Accelerate, MKL), or Windows, is left alone: set its own variable there.
    """
    package = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
    core = importlib.import_module(f"{package}._multiarray_umath")
    # Looking a name up in an extension finds what is in the libraries that it is linked to.
    library = ctypes.CDLL(cast("str", core.__file__))
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("64_", ""):
            function = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if function is not None:
                function(1)
                return True
    return False


def _norm(flat: NDArray[Any]) -> float:
    squares: NDArray[Any] = flat * flat
    return math.sqrt(float(squares.sum(dtype=np.float64)))


def _views(flat: NDArray[Any], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    views: Arrays = {}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views


def _name_differences(prefix: str, here: set[str], given: set[str]) -> list[str]:
    return [f"{prefix}{name} is missing from the state" for name in sorted(here - given)] + [
        f"{prefix}{name} is unknown here" for name in sorted(given - here)
    ]


def _array_differences(group: str, here: Arrays, given: Any) -> list[str]:
    if not isinstance(given, dict):
        return [f"{group} must be a dict of arrays, and is a {type(given).__name__}"]
    arrays = cast("dict[str, Any]", given)
    found = _name_differences(f"{group}.", set(here), set(arrays))
    for name in sorted(here.keys() & arrays.keys()):
        mine, given_array = here[name], arrays[name]
        if not isinstance(given_array, np.ndarray):
            found.append(f"{group}.{name} must be an array, and is a {type(given_array).__name__}")
            continue
        other = cast("NDArray[Any]", given_array)
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            found.append(
                f"{group}.{name} is {mine.dtype}{list(mine.shape)} here and "
                f"{other.dtype}{list(other.shape)} in the state"
            )
    return found

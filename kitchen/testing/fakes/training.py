"""A fake of the training session: a model of a few weights, whole in its state.

Rules:

1. Pure Python, and only arithmetic that IEEE 754 rounds exactly (no `exp`): equal calls give equal
   bits on every machine.
2. Any batch will do that could be kept in a run's state: a class is made of each example's digest. So
   a fake takes the batches of the code that is tested, and tells them apart.
3. All that a later bit depends on is in `state_dict`, and each part of it shows: an update that was
   lost or done twice, a gradient that was forgotten, momentum that was not saved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from kitchen.errors import KitchenError
from kitchen.machine.codec import Codec
from kitchen.ports.training import OptimResult, StepResult
from kitchen.testing.fakes.faults import CrashAt, Delay, FailAt, Faults

if TYPE_CHECKING:
    import random

    from kitchen.testing.clock.clock import VirtualClock

BatchT = TypeVar("BatchT")

_METHODS = (
    "forward_backward", "optim_step", "evaluate", "sample", "state_dict", "load_state_dict",
)  # fmt: skip
_WIDTH = 4
_MOMENTUM = 0.5
_VECTORS = ("weights", "momentum", "gradients")
_COUNTS = ("pending_examples", "step")
_VOCAB = "\n" + "".join(map(chr, range(32, 127)))
_CODEC = Codec()


class FakeSessionError(KitchenError, ValueError):
    """A batch, a state or a request that does not fit the fake; nothing was changed."""


class FakeTrainingSession(Generic[BatchT]):
    """A `TrainingSession` that learns in microseconds, without NumPy: for a resource factory in tests.

    A batch is whatever the code that is tested uses: a list, an array, a text; its items are the
    examples. Of a mapping, or a named tuple, the rows are: `{"x": …, "y": …}`. The loss is the mean
    squared distance between the weights and what the examples want: it falls as it should. `seed`: of
    the first weights. `vocab`: the characters that `sample` knows and gives.

    It may fail as `Faults` says, by the names of its methods; what fails has changed nothing.
    `.calls` counts.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        vocab: str = _VOCAB,
        fail_at: FailAt | None = None,
        delay: Delay | None = None,
        crash_at: CrashAt | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        self._faults = Faults(fail_at=fail_at, delay=delay, crash_at=crash_at, clock=clock)
        self._faults.check(_METHODS, "a FakeTrainingSession")
        self._state: dict[str, Any] = {
            "weights": _wanted(f"seed {seed}".encode()),
            "momentum": [0.0] * _WIDTH,
            "gradients": [0.0] * _WIDTH,
            "pending_examples": 0,
            "step": 0,
            "vocab": vocab,
        }

    @property
    def calls(self) -> Counter[str]:
        """How many calls each method has had, those that failed counted too."""
        return self._faults.calls

    @property
    def step(self) -> int:
        """How many updates the weights have had."""
        return self._state["step"]

    @property
    def pending_examples(self) -> int:
        """How many examples are in the gradient that is not applied yet."""
        return self._state["pending_examples"]

    def forward_backward(self, batch: BatchT, /) -> StepResult:
        """Add the batch's gradient to what is pending. Raises `ValueError` for what is no batch."""
        with self._faults("forward_backward"):
            examples = [_wanted(each) for each in _digests(batch)]
            state = self._state
            loss = self._loss(examples)
            for wanted in examples:
                pull = [w - t for w, t in zip(state["weights"], wanted, strict=True)]
                state["gradients"] = _sum(state["gradients"], pull)
            state["pending_examples"] += len(examples)
            return StepResult(loss, len(examples))

    def optim_step(self, learning_rate: float) -> OptimResult:
        """Apply the mean of what is pending, and clear it. Raises `ValueError` where nothing is, and
        for a rate that is negative or not finite."""
        with self._faults("optim_step"):
            state, pending = self._state, self._state["pending_examples"]
            if not (math.isfinite(learning_rate) and learning_rate >= 0):
                raise FakeSessionError(
                    f"learning_rate must be finite and not negative, and is {learning_rate!r}"
                )
            if not pending:
                raise FakeSessionError(
                    f"no gradient is pending at step {state['step']}",
                    hint="call forward_backward first",
                )
            mean = [gradient / pending for gradient in state["gradients"]]
            state["momentum"] = _sum([_MOMENTUM * m for m in state["momentum"]], mean)
            moved = [-learning_rate * m for m in state["momentum"]]
            state["weights"] = _sum(state["weights"], moved)
            state["gradients"], state["pending_examples"] = [0.0] * _WIDTH, 0
            state["step"] += 1
            norm = math.sqrt(_squares(mean))
            return OptimResult(state["step"], learning_rate, norm, pending)

    def evaluate(self, batch: BatchT, /) -> float:
        """The batch's loss. Raises `ValueError` for what is no batch."""
        with self._faults("evaluate"):
            return self._loss([_wanted(each) for each in _digests(batch)])

    def sample(self, prompt: str, n_chars: int, rng: random.Random) -> str:
        """Characters that depend on weights, prompt and `rng`. Raises `ValueError` for a character
        that is not in the vocabulary."""
        with self._faults("sample"):
            vocab, weights = self._state["vocab"], self._state["weights"]
            for place, character in enumerate(prompt):
                if character not in vocab:
                    raise FakeSessionError(
                        f"character {character!r} at {place} is not in the vocabulary",
                        hint=f"known are {vocab!r}",
                    )
            last, given = vocab.index(prompt[-1]) if prompt else 0, ""
            for _ in range(n_chars):
                turn = int(rng.random() * len(vocab))
                share = weights[(last + turn) % _WIDTH]
                step = int(abs(share) * 1e6) if math.isfinite(share) else 0
                last = (last + turn + step) % len(vocab)
                given += vocab[last]
            return given

    def state_dict(self) -> dict[str, Any]:
        """All of it, copied."""
        with self._faults("state_dict"):
            return _copied(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Become what `state_dict` was taken from. Raises `ValueError` for what does not fit."""
        with self._faults("load_state_dict"):
            self._check(state_dict)
            self._state = _copied(state_dict)

    def _loss(self, examples: list[list[float]]) -> float:
        weights = self._state["weights"]
        apart = [[w - t for w, t in zip(weights, wanted, strict=True)] for wanted in examples]
        total = 0.0
        for each in apart:
            total += _squares(each) / 2
        return total / len(examples)

    def _check(self, given: Mapping[str, Any]) -> None:
        odd = sorted(self._state.keys() ^ given.keys())
        if odd:
            what = "missing from the state" if odd[0] in self._state else "unknown here"
            raise FakeSessionError(f"{odd[0]} is {what}")
        for name in _VECTORS:
            vector = given[name]
            if not _is_vector(vector):
                raise FakeSessionError(f"{name} must be {_WIDTH} floats, and is {vector!r}")
        for name in _COUNTS:
            count = given[name]
            if not (isinstance(count, int) and count >= 0):
                raise FakeSessionError(f"{name} must be a count, and is {count!r}")
        if given["vocab"] != self._state["vocab"]:
            raise FakeSessionError(
                f"vocab is {self._state['vocab']!r} here and {given['vocab']!r} in the state"
            )


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(each) if name in _VECTORS else each for name, each in state.items()}


def _is_vector(given: Any) -> bool:
    """Whether it is a list of as many floats as there are weights."""
    if not isinstance(given, list):
        return False
    found = cast("list[object]", given)
    return len(found) == _WIDTH and all(isinstance(each, float) for each in found)


def _sum(one: list[float], other: list[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _squares(vector: list[float]) -> float:
    total = 0.0
    for each in vector:
        total += each * each
    return total


def _wanted(digest_of: bytes) -> list[float]:
    """Weights between -1 and 1, made of a digest."""
    digest = sha256(digest_of).digest()
    parts = [digest[8 * place : 8 * place + 4] for place in range(_WIDTH)]
    return [int.from_bytes(part, "big") / 2**31 - 1 for part in parts]


def _digests(batch: object) -> list[bytes]:
    """What tells each example of a batch from others. Raises `FakeSessionError`."""
    try:
        digests = [_digest(each) for each in _examples(batch)]
    except (TypeError, ValueError) as error:
        raise FakeSessionError(
            f"this is no batch: {error}",
            hint="a batch is iterable, of values that ctx.state could hold",
        ) from error
    if not digests:
        raise FakeSessionError("a batch needs at least 1 example, and this one is empty")
    return digests


def _examples(batch: Any) -> Iterable[Any]:
    """The items of a batch; the rows, where it has named columns."""
    if isinstance(batch, Mapping):
        return zip(*cast("Mapping[Any, Any]", batch).values(), strict=True)
    if hasattr(batch, "_fields"):
        return zip(*batch, strict=True)
    if not isinstance(batch, Collection) and not hasattr(batch, "__getitem__"):
        raise TypeError(f"a {type(batch).__name__} can be read once, or not at all")
    return cast("Iterable[Any]", batch)


def _digest(example: object) -> bytes:
    encoded = _CODEC.encode(example, where="example")
    return sha256(bytes(encoded.json) + "".join(sorted(encoded.blobs)).encode()).digest()

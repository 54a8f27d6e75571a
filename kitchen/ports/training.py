"""What a training session offers: gradients, updates, a loss, a sample, and its whole state.

Rules:

1. `forward_backward` adds to the gradients and leaves the weights alone; `optim_step`
   applies the gradients and clears them. A checkpoint may fall between the two, so pending
   gradients are part of the state.
2. `evaluate` and `sample` change nothing that `state_dict` would show.
3. A session holds no random state: what is random is drawn from a generator passed in.
4. State given out is a copy, and state taken in is copied.
5. Every method is synchronous and may be called from any thread, one call at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import random

BatchT_contra = TypeVar("BatchT_contra", contravariant=True)


class StepResult(NamedTuple):
    """What one `forward_backward` measured, before any update."""

    loss: float
    """Mean cross-entropy in nats an example; NaN and infinities are passed on as they are."""
    examples: int
    """How many examples were in the batch."""


class OptimResult(NamedTuple):
    """What one `optim_step` did."""

    step: int
    """How many updates the weights have had, this one counted."""
    learning_rate: float
    """The rate that was applied."""
    grad_norm: float
    """L2 norm of the mean gradient over all weights."""
    examples: int
    """How many examples the gradient was averaged over."""


@runtime_checkable
class Stateful(Protocol):
    """A live object that can be saved and put back exactly.

    This is PyTorch's protocol, `torch.distributed.checkpoint.stateful.Stateful`, so whatever
    follows that one is a resource that can be checkpointed here.
    """

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: nested dicts of arrays and scalars."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Become what `state_dict` was taken from. Raises, and changes nothing, on a misfit."""
        ...


class TrainingSession(Stateful, Protocol[BatchT_contra]):
    """A language model in training, together with its optimiser.

    `BatchT_contra` is the backend's own batch type. A batch that does not fit the model is a
    `ValueError` that leaves the session as it was.
    """

    def forward_backward(self, batch: BatchT_contra, /) -> StepResult:
        """Compute the batch's loss and add its gradient to what is pending.

        Gradients count by example: two halves of a batch are worth what the whole is.
        """
        ...

    def optim_step(self, learning_rate: float) -> OptimResult:
        """Apply the pending gradient's mean once, and clear it.

        `learning_rate` is finite and not negative. Raises `ValueError` when it is not, and
        when nothing is pending.
        """
        ...

    def evaluate(self, batch: BatchT_contra, /) -> float:
        """Mean cross-entropy of the batch in nats an example. Changes nothing."""
        ...

    def sample(self, prompt: str, n_chars: int, rng: random.Random) -> str:
        """`n_chars` characters that may follow `prompt`, which is not repeated.

        The text depends on weights, prompt and `rng` only. Raises `ValueError` on a character
        of the prompt that the model does not know.
        """
        ...

"""A character-level language model, trained on Python's own manual.

    kitchen run kitchen.recipes.char_lm:char_lm epochs=2 text=shakespeare.txt

Rules:

1. The weights and the optimiser live in the session, a stateful resource: a checkpoint saves
   them, and after a crash the run is rewound to the last one.
2. The corpus is a resource that holds nothing worth saving, as it can be read again. What was
   read at first is told by its digest in the state; another text is refused at every opening.
3. All randomness comes through `ctx`, derived from the run's seed and the place in the run. So
   equal seed, text and machine make equal weights, however often the run was killed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

import kitchen
from kitchen import Context, Resource, WorkflowBuilder
from kitchen.adapters.text import CharCorpus, pydoc_corpus
from kitchen.adapters.training import NumpyCharSession, warmup_cosine

Count = Annotated[int, msgspec.Meta(ge=1)]


class CharLMConfig(msgspec.Struct, frozen=True):
    """What can be set. The defaults take about 10 s and reach 1.35 nats a character."""

    text: str = ""
    """A text file in UTF-8; Python's manual if left out."""
    epochs: Count = 4
    batches: Count = 600
    """Batches in an epoch; each is one update of the weights."""
    batch_size: Count = 256
    context: Count = 8
    """How many characters the model sees before the one that it guesses."""
    embedding: Count = 24
    hidden: Count = 384
    learning_rate: float = 8e-3
    """The peak, after `warmup` updates; from there it falls to 0 as a cosine."""
    warmup: int = 100
    evaluate_every: Count = 100
    evaluate_on: Count = 2048
    checkpoint_every: Count = 200
    prompt: str = ""
    """What the samples go on from; a new paragraph if left out."""
    temperature: float = 0.5


class CharLMState(msgspec.Struct):
    """What the log keeps of a run."""

    corpus_digest: str = ""
    step: int = 0
    best_validation_loss: float = float("inf")
    samples: list[str] = []
    """What the model said after each epoch, and at the end at greater length."""
    weights_digest: str = ""


Ctx = Context[CharLMConfig, CharLMState]


class CorpusChanged(kitchen.KitchenError, ValueError):
    """The text is not the one that the run was started with."""


# --- the live things --------------------------------------------------------------------------


def read_corpus(config: CharLMConfig) -> CharCorpus:
    """The text that the config names."""
    return CharCorpus(Path(config.text).read_text("utf-8")) if config.text else pydoc_corpus()


def open_corpus(ctx: Ctx) -> CharCorpus:
    """The corpus, if it is still the one that `note_corpus` saw. Raises `CorpusChanged`."""
    corpus = read_corpus(ctx.config)
    if corpus.digest == ctx.state.corpus_digest:
        return corpus
    if ctx.config.text:
        source, remedy = ctx.config.text, "put the old text back and resume"
    else:  # each Python has a manual of its own
        source, remedy = "Python's manual", "resume with the Python that started the run"
    raise CorpusChanged(
        f"{source} is not the text that run {ctx.run_id!r} was started with\n"
        f"  then: sha256 {ctx.state.corpus_digest}\n  now:  sha256 {corpus.digest}",
        hint=f"{remedy}, or start a new run",
    )


def open_session(ctx: Ctx) -> NumpyCharSession:
    """A new model. On resume, what was saved is loaded into it."""
    config = ctx.config
    return NumpyCharSession(
        ctx.resources[CORPUS].vocab,
        rng=ctx.numpy_rng(),
        context=config.context,
        embedding=config.embedding,
        hidden=config.hidden,
    )


CORPUS = Resource("corpus", open_corpus, stateful=False)
SESSION = Resource("session", open_session)


# --- the stages -------------------------------------------------------------------------------


def note_corpus(ctx: Ctx) -> None:
    """What every opening of the corpus is compared with, so it comes before the first."""
    corpus = read_corpus(ctx.config)
    corpus.encode(ctx.config.prompt)  # a character that is not in the text is told now, not later
    ctx.state.corpus_digest = corpus.digest


def train_batch(ctx: Ctx) -> None:
    """One batch, one update."""
    config, session = ctx.config, ctx.resources[SESSION]
    batch = ctx.resources[CORPUS].batch(ctx.rng, config.batch_size, config.context)
    total = config.epochs * config.batches
    rate = warmup_cosine(ctx.state.step, total, config.learning_rate, config.warmup)

    loss = session.forward_backward(batch).loss
    session.optim_step(rate)

    ctx.state.step += 1
    ctx.record_metrics({"loss": loss, "learning_rate": rate}, step=ctx.state.step)


def evaluate(ctx: Ctx) -> None:
    """The loss on what is held out. It changes nothing in the session, so it may `peek`."""
    held_out = ctx.resources[CORPUS].evaluation_batch(ctx.config.evaluate_on, ctx.config.context)
    loss = ctx.resources.peek(SESSION).evaluate(held_out)
    ctx.state.best_validation_loss = min(loss, ctx.state.best_validation_loss)
    ctx.record_metric("validation_loss", loss, step=ctx.state.step)


def speak(ctx: Ctx) -> None:
    """Let the model go on from the prompt."""
    config, session = ctx.config, ctx.resources.peek(SESSION)
    said = session.sample(
        config.prompt, ctx.options.length, ctx.rng, temperature=config.temperature
    )
    ctx.append("samples", config.prompt + said)


def note_weights(ctx: Ctx) -> None:
    """The weights themselves are in the checkpoint; their digest is here to compare runs by."""
    ctx.state.weights_digest = digest_of_weights(ctx.resources.peek(SESSION))


def digest_of_weights(session: NumpyCharSession) -> str:
    """SHA-256 over every bit of the weights, by name."""
    seen = hashlib.sha256()
    for name, array in sorted(session.state_dict()["params"].items()):
        seen.update(f"{name} {array.dtype} {array.shape}\n".encode())
        seen.update(array.tobytes())
    return seen.hexdigest()


# --- the decisions ----------------------------------------------------------------------------


def epochs(ctx: Ctx) -> range:
    """The epochs' numbers."""
    return range(ctx.config.epochs)


def batches(ctx: Ctx) -> range:
    """The batches' numbers; what is in one is drawn through its `ctx.rng`."""
    return range(ctx.config.batches)


def evaluation_due(ctx: Ctx) -> bool:
    """Every so often."""
    return ctx.state.step % ctx.config.evaluate_every == 0


def checkpoint_due(ctx: Ctx) -> bool:
    """As often as one is willing to lose what came since."""
    return ctx.state.step % ctx.config.checkpoint_every == 0


# --- the workflow -----------------------------------------------------------------------------


@kitchen.workflow(config=CharLMConfig, state=CharLMState)
def char_lm(wf: WorkflowBuilder) -> None:
    """Train, look, save; speak after each epoch."""
    wf.stage("note_corpus", note_corpus)
    wf.resource(CORPUS)
    wf.resource(SESSION)
    with wf.loop("epochs", over=epochs):
        with wf.loop("batches", over=batches):
            wf.stage("train_batch", train_batch)
            with wf.conditional(evaluation_due):
                wf.stage("evaluate", evaluate)
            with wf.conditional(checkpoint_due):
                wf.checkpoint("checkpoint")
        wf.stage("speak", speak, options={"length": 60})
    wf.checkpoint("final")
    wf.stage("last_words", speak, options={"length": 320})
    wf.stage("note_weights", note_weights)

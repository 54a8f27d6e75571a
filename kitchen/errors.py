"""Every exception of the core. (An adapter may have its own; they derive from these.)

Rules:

1. Each derives from `KitchenError`, and from the built-in that fits it, so that
   `except ValueError` and `except KitchenError` both mean what a reader expects.
2. A message says what happened, where, what was expected and found. What to do next is
   the `hint`, printed on a line of its own.
3. Nothing here imports the rest of kitchen.

The tree::

    KitchenError
    ├── ArgumentError (ValueError, TypeError) an argument of a verb that cannot be used
    ├── WorkflowError (ValueError)            a mistake in how a workflow is written
    │   └── UnknownWorkflow (LookupError)     module:name does not lead to a workflow
    ├── ConfigError (ValueError)              a config that does not fit its type
    ├── StateError (TypeError)                what was done to ctx.state cannot be kept
    │   ├── UnencodableValue                  a value that would not come back exactly
    │   └── FrozenValue                       a value read from state changed in place
    ├── UnknownKey (KeyError, AttributeError) no such state key, option or config field
    ├── UnknownAdapter (KeyError)             the run has no such adapter
    ├── UnknownResource (KeyError)            no such resource is open here
    ├── StaleContext (RuntimeError)           a ctx used after its attempt ended
    ├── Fatal (RuntimeError)                  raised by a stage: do not try again
    ├── StageTimeout (TimeoutError)           an attempt, or a block, took too long
    ├── StageRefused (ValueError)             its own validation refused a stage
    ├── WorkerLost (RuntimeError)             the worker process of a stage died
    ├── ResourceError (RuntimeError)          a resource failed to open, save, load or close
    ├── ItemsError (ValueError)               a loop's items cannot be had (again)
    ├── RunError (RuntimeError)               the run failed; `.run` has the details
    ├── RunInterrupted (RuntimeError)         the run was asked to stop, and did
    ├── RunCancelled (RuntimeError)           the run was ended for good, from outside
    ├── UnknownRun (LookupError)              no run of that id in the store
    ├── RunExists (ValueError)                the id is taken
    ├── RunMismatch (ValueError)              if_exists="resume" with another config or seed
    ├── RunHeld (RuntimeError)                another process is executing the run
    ├── RunLost (RuntimeError)                another process appended: we own it no longer
    ├── NotResumable (RuntimeError)           this run cannot go on, and why
    │   ├── EffectUndecided                   somebody has to say whether an effect has happened
    │   └── WorkflowChanged (ValueError)      the recorded history is not legal on this code
    ├── HistoryError (ValueError)             the log says what cannot be
    │   ├── IllegalEvent                      an event that the machine does not allow there
    │   └── CorruptValue                      a recorded value that does not decode
    ├── IllegalOutcome (RuntimeError)         an outcome that no outstanding command asked for
    └── StoreError (OSError)                  the store cannot be opened, read or written
        ├── ForeignStore                      not a store, or made by a newer version
        ├── CorruptStore                      damaged or edited
        ├── RunInUse                          it has forks, which would lose their beginning
        └── BlobLost                          a large value is not where it should be

and one warning, `NotResumableWarning` (UserWarning).
"""

from __future__ import annotations

from typing import Any


class NotResumableWarning(UserWarning):
    """A run uses a resource that has no `state_dict`: what it holds is lost at a crash."""


class KitchenError(Exception):
    """The root of everything kitchen raises.

    `hint` says what to do next; it is part of `str(error)`.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ArgumentError(KitchenError, ValueError, TypeError):
    """An argument of one of kitchen's verbs that cannot be used."""


class WorkflowError(KitchenError, ValueError):
    """A workflow that cannot be built. The message starts with file and line of the call."""


class UnknownWorkflow(WorkflowError, LookupError):
    """`module:name` does not lead to a workflow."""


class ConfigError(KitchenError, ValueError):
    """A config that does not fit the workflow's config type; the message names the field."""


class StateError(KitchenError, TypeError):
    """What was done to `ctx.state` cannot be recorded."""


class UnencodableValue(StateError):
    """A value that would not come back exactly; the message names the key and inner path."""


class FrozenValue(StateError):
    """A value read from state was changed in place, which would not be recorded."""


class UnknownKey(KitchenError, KeyError, AttributeError):
    """No such key in the state, the config or the options."""


class UnknownAdapter(KitchenError, KeyError):
    """The run was given no adapter of that name, and its workflow makes none."""


class UnknownResource(KitchenError, KeyError):
    """No resource of that name is open here."""


class StaleContext(KitchenError, RuntimeError):
    """A context was used after the attempt it belonged to had ended."""


class Fatal(KitchenError, RuntimeError):
    """Raised by a stage: do not try again, whatever its `retries` say."""


class StageTimeout(KitchenError, TimeoutError):
    """An attempt of a stage, or a block, took longer than its timeout."""


class StageRefused(KitchenError, ValueError):
    """A stage's own `validate` refused it; it was not executed."""


class WorkerLost(KitchenError, RuntimeError):
    """The worker process of a stage ended before it had answered."""


class ResourceError(KitchenError, RuntimeError):
    """A resource failed to open, to save, to load or to close."""


class ItemsError(KitchenError, ValueError):
    """A loop's items cannot be had, or are not what was recorded."""


class RunError(KitchenError, RuntimeError):
    """The run failed. `run` is the `Run`, with the state it reached."""

    def __init__(self, message: str, *, run: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.run = run


class RunInterrupted(KitchenError, RuntimeError):
    """The run was asked to stop, and did so at a consistent place. `run` can be resumed."""

    def __init__(
        self, message: str, *, run: Any = None, signal: str = "SIGINT", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.run = run
        self.signal = signal


class RunCancelled(KitchenError, RuntimeError):
    """The run was ended for good by somebody else. `run` is the `Run`, with the state it reached."""

    def __init__(self, message: str, *, run: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.run = run


class UnknownRun(KitchenError, LookupError):
    """The store has no run of that id."""


class RunExists(KitchenError, ValueError):
    """A run of that id is there already."""


class RunMismatch(KitchenError, ValueError):
    """`if_exists="resume"` found the run, with another workflow, config or seed."""


class RunHeld(KitchenError, RuntimeError):
    """Another process is executing the run; the message says who, where and since when."""


class RunLost(KitchenError, RuntimeError):
    """Somebody else appended to the run, so this process owns it no longer."""


class NotResumable(KitchenError, RuntimeError):
    """The run cannot go on; the message says why."""


class EffectUndecided(NotResumable):
    """A stage with effect="once" was stopped in the middle: whether its effect has happened, and
    whether to try again or to skip it, somebody has to say."""


class WorkflowChanged(NotResumable, ValueError):
    """The recorded history is not legal on the workflow as it is now."""


class HistoryError(KitchenError, ValueError):
    """A log says what cannot be."""


class IllegalEvent(HistoryError):
    """An event that the machine does not allow where it stands."""


class CorruptValue(HistoryError):
    """A recorded value that does not decode."""


class IllegalOutcome(KitchenError, RuntimeError):
    """The kernel was told of something that it had not asked for: a fault of kitchen."""


class StoreError(KitchenError, OSError):
    """The store cannot be opened, read or written."""


class ForeignStore(StoreError):
    """The file is no store, or one that a newer version wrote."""


class CorruptStore(StoreError):
    """The store is damaged, or was edited."""


class RunInUse(StoreError):
    """A run cannot be removed, as others are forks of it."""


class BlobLost(StoreError):
    """A large value is not beside the store where it should be."""

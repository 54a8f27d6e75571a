"""`stage_context`: a `ctx` that is not of a run, to call the code of one place as a function.

Rules:

1. It is the runner's own context. What a stage reads and writes goes through the codec, and is
   refused, as in a run; only the run around it is made up (`stand_in`), and nothing is in a log.
2. Random numbers, the seed and the idempotency key follow from seed, path and visit, as in a run.
3. What it was given stays the test's: resources are not closed, and no factory is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, TypeVar, Unpack, overload

from kitchen.errors import WorkflowError
from kitchen.runner import randomness
from kitchen.runner.config import ConfigMap
from kitchen.runner.context import Context, StateView
from kitchen.runner.scope import Scope, config_untouched
from kitchen.testing.given import Adapters, adapters_of
from kitchen.testing.recorded import OpenAttempt, Recorded
from kitchen.testing.stand_in import Given, stand_in
from kitchen.workflow.definition import Workflow

C = TypeVar("C")
S = TypeVar("S")


class StageContext(Context[C, S]):
    """A `ctx` as `stage_context` makes it. `recorded` tells what was recorded through it."""

    __slots__ = ("_progress",)

    def __init__(self, scope: Scope, attempt: OpenAttempt, options: Mapping[str, Any]) -> None:
        super().__init__(scope, attempt, options)
        self._progress: list[tuple[float, float | None]] = []
        scope.on_progress = lambda _, done, total: self._progress.append((done, total))

    @property
    def recorded(self) -> Recorded:
        """What the stage has recorded so far; it may be asked at any time.

        Raises `StateError` and `WorkflowError` where the commit would: an item, or the config, was
        changed in place.
        """
        attempt = self._attempt
        assert isinstance(attempt, OpenAttempt)
        told = attempt.so_far(self._progress)
        if not config_untouched(self._scope):
            raise WorkflowError(
                "the config was changed in place",
                hint="the config is a run's immutable input; what changes belongs into ctx.state",
            )
        return told


class Around(TypedDict, total=False):
    """The arguments of `stage_context` on which no type depends."""

    resources: Mapping[Any, Any] | None
    items: Mapping[str, Any] | None
    indices: Mapping[str, int] | None
    options: Mapping[str, Any] | None
    adapters: Adapters
    seed: int
    path: str
    attempt: int


class StageContexts:
    """The fixture `stage_context`: `ctx = stage_context(config=…, state=…)`, then `train(ctx)`."""

    @overload
    def __call__(
        self,
        *,
        workflow: Workflow[C, S],
        config: C | Mapping[str, Any] | None = None,
        state: S | Mapping[str, Any] | None = None,
        **around: Unpack[Around],
    ) -> StageContext[C, S]: ...
    @overload
    def __call__(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        **around: Unpack[Around],
    ) -> StageContext[ConfigMap, StateView]: ...
    @overload
    def __call__(
        self, *, config: Mapping[str, Any] | None = None, state: S, **around: Unpack[Around]
    ) -> StageContext[ConfigMap, S]: ...
    @overload
    def __call__(
        self, *, config: C, state: Mapping[str, Any] | None = None, **around: Unpack[Around]
    ) -> StageContext[C, StateView]: ...
    @overload
    def __call__(self, *, config: C, state: S, **around: Unpack[Around]) -> StageContext[C, S]: ...
    def __call__(
        self,
        *,
        workflow: Workflow[Any, Any] | None = None,
        config: Any = None,
        state: Any = None,
        resources: Mapping[Any, Any] | None = None,
        items: Mapping[str, Any] | None = None,
        indices: Mapping[str, int] | None = None,
        options: Mapping[str, Any] | None = None,
        adapters: Adapters = None,
        seed: int = 0,
        path: str = "stage",
        attempt: int = 1,
    ) -> StageContext[Any, Any]:
        """A `ctx` for a stage, a predicate, an `over`, or the `execute` of a `Stage`.

        `config` and `state`: instances of the declared types, or mappings. `resources`: live objects
        by key or name. `items`: the item of each loop around, by its name, outermost first;
        `indices`: the index of each, 0 where it is not said (random numbers go by the indices).
        `path`: where the stage stands; without a workflow its last name will do, and the loops
        are put before it. With a `workflow` the path is one of its nodes', and what the workflow
        says of that node holds: its types, its options, `writes=`, `effect=`, and that predicates
        and loops only look. `adapters`: a mapping, or a function of no arguments that makes one;
        where none are given, those that the workflow makes. The run is called "test".

        Raises `ArgumentError`, `ConfigError`, `StateError`, `UnknownKey`.
        """
        given = Given(
            config, state, resources or {}, items or {}, indices or {}, options,
            adapters_of(adapters), seed, path, attempt,
        )  # fmt: skip
        made = stand_in(workflow, given)
        ctx: StageContext[Any, Any] = StageContext(made.scope, made.attempt, made.options)
        if made.scope.workflow.ir.seed_globals and path not in made.scope.journal.program.lanes:
            randomness.seed_globals(ctx.seed)
        return ctx

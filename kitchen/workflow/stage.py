"""What a workflow is made of: stages with a class of their own, and typed resource keys.

Rules:

1. A `Stage` is a body with a name of its own kind: it holds settings, never a run's state.
2. A `Resource` is a key. It is equal to any other of its name, holds nothing that is open,
   and tells a type checker what `ctx.resources[key]` is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from kitchen.workflow import check
from kitchen.workflow.provenance import simple_name
from kitchen.workflow.where import here

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

T = TypeVar("T")


class Stage(ABC):
    """A stage as a class. `wf.stage` takes the class or an instance of it.

    The class is instantiated once, without arguments, when the workflow is built, and one
    instance serves every run: keep in `ctx.state` what belongs to a run.
    """

    def validate(self, ctx: Any) -> Any:  # noqa: B027 - without one of its own, nothing is asked
        """Asked before the first attempt: raise, or return a message (a `str`), to refuse.

        A plain or an `async` method. A stage that refuses has failed, and is not executed.
        """

    @abstractmethod
    def execute(self, ctx: Any) -> Any:
        """Does the work; a plain or an `async` method."""

    def rollback(self, ctx: Any, error: Any) -> Any:  # noqa: B027 - nor anything done
        """Called after this stage has failed for good; a plain or an `async` method.

        `error` is a `kitchen.Failure`: the exception as text, the same live and after a crash. It
        may change `ctx.state`, and only peek at stateful resources (where the run ends, not even
        that). It may be called more than once. With `@workflow(compensate=True)` it is also called
        when a later stage has failed the run.
        """


class Resource(Generic[T]):
    """The typed key of a live object: `SESSION = Resource("session", open_session)`.

    `factory(ctx)` opens it: it returns the object, or an awaitable of it, or a context
    manager (plain or async) that gives it and closes it again. `stateful` says whether the
    object must have `state_dict`; None leaves that to the object.

    Raises `WorkflowError` where the name or the factory cannot be used.
    """

    __slots__ = ("_factory", "_name", "_stateful")

    # The order is the meaning: the first of these that fits is what T is taken from.
    @overload
    def __init__(
        self,
        name: str,
        factory: Callable[[Any], Awaitable[T]],
        *,
        stateful: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        factory: Callable[[Any], AbstractAsyncContextManager[T, Any]],
        *,
        stateful: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        factory: Callable[[Any], AbstractContextManager[T, Any]],
        *,
        stateful: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        factory: Callable[[Any], T],
        *,
        stateful: bool | None = None,
    ) -> None: ...
    def __init__(
        self, name: str, factory: Callable[[Any], Any], *, stateful: bool | None = None
    ) -> None:
        site = here()
        self._name = check.name(name, "resource", site)
        self._factory = check.factory(factory, name, site)
        self._stateful = check.stateful(stateful, site)

    @property
    def name(self) -> str:
        """The name, under which the log knows the resource."""
        return self._name

    @property
    def factory(self) -> Callable[[Any], Any]:
        """What opens it."""
        return self._factory

    @property
    def stateful(self) -> bool | None:
        """Whether it must have `state_dict`; None leaves that to the object."""
        return self._stateful

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Resource):
            return NotImplemented
        return self._name == other._name

    def __hash__(self) -> int:
        return hash((Resource, self._name))

    def __repr__(self) -> str:
        said = "" if self._stateful is None else f", stateful={self._stateful}"
        return f"Resource({self._name!r}, {simple_name(self._factory)}{said})"

"""What a crash matrix is asked: its arguments checked, and told again as a call.

Rules:

1. What is wrong is an `ArgumentError` before anything runs, with the near match of a name.
2. A call says all that was given and that is not so anyway: short plain values as they are, anything
   else by the name of the function, or of the argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from kitchen.errors import ArgumentError
from kitchen.history.patterns import Patterns, patterns
from kitchen.runner.declared import suggest
from kitchen.runner.randomness import whole
from kitchen.testing.given import Adapters, check_adapters, check_clock
from kitchen.testing.matrix.lives import path_of
from kitchen.workflow.ir import ResourceNode, StageNode, WorkflowIR, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from kitchen.testing.clock.clock import VirtualClock

_SHORT = 60  # characters of a value in a call
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `crash_matrix` that a call must have again, in its order."""

    adapters: Adapters = None
    seed: int = 0
    backend: str = "asyncio"
    status: str = "completed"
    clock: VirtualClock | None = None
    prepare: Callable[[], object] | None = None
    exclude: str | Iterable[str] = ()
    decide: str | Mapping[str, Any] | None = None

    def check(self, ir: WorkflowIR) -> Patterns:
        """What is left out. Raises `ArgumentError` for what does not fit."""
        self._check_kinds()
        told = patterns(exclude=self.exclude)
        told.check(ir)
        nodes = list(walk(ir))
        resources = [node.name for _, node in nodes if isinstance(node, ResourceNode)]
        for one in told.exclude:
            _check_resource(one, resources)
        if isinstance(self.decide, Mapping):
            once = [
                path
                for path, node in nodes
                if isinstance(node, StageNode) and node.effect == "once"
            ]
            for name in self.decide:
                _check_effect(name, once)
        return told

    def _check_kinds(self) -> None:
        if self.backend not in ("asyncio", "trio"):
            raise ArgumentError(f'backend= is "asyncio" or "trio", not {self.backend!r}')
        if self.status not in ("completed", "failed"):
            raise ArgumentError(f'status= is "completed" or "failed", not {self.status!r}')
        check_adapters(self.adapters)
        check_clock(self.clock)
        whole(self.seed)
        if not (self.prepare is None or callable(self.prepare)):
            raise ArgumentError(f"prepare= is a function of no arguments, not {self.prepare!r}")
        if not (self.decide in (None, "retry", "skip") or isinstance(self.decide, Mapping)):
            raise ArgumentError(
                f'decide= is "retry", "skip", or a mapping of paths to these, not {self.decide!r}'
            )

    def again(self, name: str, config: Any, points: Mapping[str, Any]) -> str:
        """The same call for other points."""
        given = [name]
        if config is not None:
            given.append(_shown("config", config))
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value != field.default:
                given.append(f"{field.name}={_shown(field.name, value)}")
        given += [f"{key}={value}" for key, value in points.items()]
        return f"crash_matrix({', '.join(given)})"


def _check_resource(pattern: str, names: Sequence[str]) -> None:
    """`resource.NAME` and all of it, `resource.NAME.ATTR`, where there is such a resource."""
    kind, _, rest = pattern.partition(".")
    name = rest.partition(".")[0].partition("[")[0]
    if kind == "resource" and name not in names and not set(rest) & set("*?["):
        raise ArgumentError(
            f"the pattern {pattern!r} fits no resource of the workflow",
            hint=_suggested(name, names, "resource"),
        )


def _check_effect(name: str, known: Sequence[str]) -> None:
    path = path_of(str(name))
    if path not in known:
        raise ArgumentError(
            f'decide= names {name!r}, which is no stage with effect="once"',
            hint=_suggested(path, known, 'stage with effect="once"'),
        )


def _suggested(name: str, known: Sequence[str], what: str) -> str:
    return suggest(name, known) if known else f"the workflow has no {what}"


def _shown(name: str, value: Any) -> str:
    own = getattr(value, "__name__", "")
    if callable(value) and isinstance(own, str) and own.isidentifier():
        return own
    return repr(value) if _is_plain(value) and len(repr(value)) <= _SHORT else name


def _is_plain(value: object) -> bool:
    if type(value) is dict:
        known = cast("dict[Any, Any]", value)
        return all(_is_plain(each) for pair in known.items() for each in pair)
    if type(value) in (list, tuple):
        return all(_is_plain(each) for each in cast("list[Any]", value))
    return type(value) in _PLAIN

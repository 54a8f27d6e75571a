"""How often a stage is tried, and after what.

Rules:

1. `Retry` is what an author writes, `ir.Retries` what is recorded of it. The exception types
   themselves stay here; the tree has their names.
2. What the core of kitchen raises is a mistake, or `Fatal`, and trying again would not help. But
   for an attempt that took too long (`StageTimeout`), or whose process died (`WorkerLost`).
3. An exception group is tried again if it is named, or if everything in it would be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from kitchen.errors import Fatal, KitchenError, StageTimeout, WorkerLost
from kitchen.workflow import check
from kitchen.workflow.concurrent import count
from kitchen.workflow.ir import Retries
from kitchen.workflow.where import fault, here

if TYPE_CHECKING:
    from kitchen.workflow.where import Site

Kinds: TypeAlias = type[Exception] | tuple[type[Exception], ...]
_GONE_NEXT_TIME = (StageTimeout, WorkerLost)
_ON = "on=(ConnectionError, TimeoutError)"


@dataclass(frozen=True, slots=True)
class Retry:
    """Further attempts of a stage that raised: `retries=Retry(3, on=ConnectionError)`.

    `retries`: how many. Before number n a stage waits `backoff` * 2 ** (n - 1) seconds, at most
    `max_delay` of them, give or take the share `jitter` of it. `on`: after which exceptions.

    Raises `WorkflowError` where an argument cannot be used.
    """

    retries: int
    backoff: float = 1.0
    max_delay: float = 60.0
    jitter: float = 0.1
    on: Kinds = (Exception,)

    def __post_init__(self) -> None:
        site = here()
        kept = {
            "retries": count(self.retries, "retries", site, least=0),
            "backoff": number(self.backoff, "backoff", "seconds", site),
            "max_delay": number(self.max_delay, "max_delay", "seconds", site),
            "jitter": number(self.jitter, "jitter", "a share", site, most=1.0),
            "on": _kinds(self.on, site),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    def wants(self, error: BaseException) -> bool:
        """Whether a stage that raised this is to be tried again, while attempts are left."""
        if _refused(error):
            return False
        if isinstance(error, self.on):
            return True
        inside = _inside(error)
        return inside is not None and all(map(self.wants, inside))

    @property
    def ir(self) -> Retries:
        """What is recorded of it."""
        kinds = cast("tuple[type[Exception], ...]", self.on)
        return Retries(
            retries=self.retries,
            backoff=self.backoff,
            max_delay=self.max_delay,
            jitter=self.jitter,
            # an order has no meaning here, and is no part of the fingerprint
            on=() if Exception in kinds else tuple(sorted({each.__qualname__ for each in kinds})),
        )


def retry(value: object, site: Site) -> Retry | None:
    """What `retries=` says; None for no further attempt. Raises `WorkflowError`."""
    if not isinstance(value, Retry):
        if type(value) is not int or not 0 <= value < 2**63:
            raise fault(
                site,
                f"retries= must be an int of at least 0 or a Retry, not {check.told(value)}",
                "retries=3, or retries=kitchen.Retry(3, backoff=2.0, on=ConnectionError)",
            )
        value = Retry(value)
    return value if value.retries else None


def number(value: object, keyword: str, unit: str, site: Site, *, most: float = math.inf) -> float:
    """A finite number from 0 to `most`. Raises `WorkflowError`."""
    if type(value) in (int, float):
        given = as_float(cast("float", value))
        if math.isfinite(given) and 0 <= given <= most:
            return given
    upto = "of at least 0" if math.isinf(most) else f"from 0 to {most:g}"
    raise fault(
        site,
        f"{keyword}= must be {unit}, a number {upto}, not {check.told(value)}",
        f"{keyword}={min(most, 2.0) / 2:g}",
    )


def as_float(value: float) -> float:
    """The number as a float; infinity for an int that is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _kinds(value: object, site: Site) -> tuple[type[Exception], ...]:
    given = cast("tuple[Any, ...]", value if isinstance(value, tuple) else (value,))
    if not given:
        raise fault(site, "on= names no exception, so nothing would be tried again", _ON)
    return tuple(_kind(each, site) for each in given)


def _kind(value: object, site: Site) -> type[Exception]:
    kind = cast("type[object]", value) if isinstance(value, type) else object
    if not issubclass(kind, Exception):
        raise fault(
            site,
            f"on= must be an exception type or a tuple of them, not {check.told(value)}",
            f"{_ON}: subclasses of Exception",
        )
    if issubclass(kind, KitchenError) and _is_mistake(kind) and kind is not KitchenError:
        raise fault(
            site,
            f"on= names {kind.__name__}, an error of kitchen's, which is never tried again",
            "name what the stage's own code raises; kitchen.StageTimeout and kitchen.WorkerLost may be "
            "named too",
        )
    return kind


def _refused(error: BaseException) -> bool:
    """Whether this is never tried again, whatever `on` says."""
    inside = _inside(error)
    if inside is not None:
        return any(map(_refused, inside))
    if isinstance(error, KitchenError):
        return _is_mistake(type(error))
    return not isinstance(error, Exception)


def _is_mistake(kind: type[Exception]) -> bool:
    """Whether it is the core's own error, or `Fatal`: an adapter's may well be gone the next time."""
    own = kind.__module__ == KitchenError.__module__ or issubclass(kind, Fatal)
    return own and not issubclass(kind, _GONE_NEXT_TIME)


def _inside(error: BaseException) -> tuple[Exception, ...] | None:
    """What a group of exceptions holds; None for what is none."""
    if not isinstance(error, ExceptionGroup):
        return None
    return cast("ExceptionGroup[Exception]", error).exceptions

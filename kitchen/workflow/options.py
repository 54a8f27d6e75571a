"""A stage's options: plain data that is part of the IR.

Rules:

1. What is let through comes back from JSON exactly as it was. So types are exact: a NumPy
   float, an enum member or a tuple is a subclass or a lookalike of what comes back, and is
   refused.
2. What is kept is a copy. Nothing that the author still holds can change the IR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from kitchen.workflow.check import told
from kitchen.workflow.where import fault

if TYPE_CHECKING:
    from kitchen.workflow.where import Site


def plain_options(value: object, site: Site) -> dict[str, Any]:
    """A copy of the options. Raises `WorkflowError`, which names the key at fault."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        hint = "options={'lr_scale': 0.5}"
        raise fault(site, f"options= must be a mapping, not {told(value)}", hint)
    given = dict(cast("Mapping[Any, Any]", value))
    problem = _problem(given, "options", ())
    if problem:
        raise fault(
            site,
            f"{problem}, which does not come back from JSON as it was",
            "options hold None, bool, int, float, str, list and dict with str keys; "
            "what is live is a resource, and a secret belongs into the config",
        )
    return msgspec.json.decode(msgspec.json.encode(given))


def _problem(value: object, at: str, around: tuple[int, ...]) -> str | None:
    """What is wrong with a value, with the path to it; None if nothing is."""
    if id(value) in around:
        return f"{at} contains itself"
    inside = (*around, id(value))
    if type(value) is dict:
        for key, item in cast("dict[object, object]", value).items():
            if not _is_plain(key) or not isinstance(key, str):
                return f"{at} has the key {key!r}"
            if problem := _problem(item, f"{at}[{key!r}]", inside):
                return problem
        return None
    if type(value) is list:
        each = enumerate(cast("list[object]", value))
        found = (_problem(item, f"{at}[{index}]", inside) for index, item in each)
        return next(filter(None, found), None)
    return None if _is_plain(value) else f"{at} is {told(value)}"


def _is_plain(value: object) -> bool:
    """Whether this is one of the leaves that JSON has."""
    kind = type(value)
    if kind is float:
        return math.isfinite(cast("float", value))
    if kind is int:  # what SQLite and other readers of the log can hold
        return -(2**63) <= cast("int", value) < 2**63
    if kind is str:
        return not any("\ud800" <= char <= "\udfff" for char in cast("str", value))
    return value is None or kind is bool

"""What differs between two versions of a workflow, node by node, in words.

Rules:

1. Nodes are told apart by path. A node that was renamed is the same node, with what is below it.
2. Code is the same where its qualified name and its source are. A script is the same module under
   any name, so the module is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kitchen.workflow import ir as IR
from kitchen.workflow.ir import WorkflowIR

_OF_ALL = ("name", "seed_globals", "compensate", "config", "state")
_CHILDREN = frozenset({"then", "otherwise", "branches"})
_NONE: Mapping[str, str] = {}


def differences(
    old: WorkflowIR, new: WorkflowIR, renamed: Mapping[str, str] = _NONE
) -> tuple[str, ...]:
    """What differs, sorted. `renamed`: new paths by old ones, each with all that is below it."""
    before = {moved(path, renamed): (path, node) for path, node in IR.walk(old)}
    after = dict(IR.walk(new))
    told = [
        f"changed: {name} of the workflow"
        for name in _OF_ALL
        if _code(getattr(old, name)) != _code(getattr(new, name))
    ]
    told += [f"removed: {path}" for now, (path, _) in before.items() if now not in after]
    told += [f"added: {path}" for path in after if path not in before]
    for now in before.keys() & after.keys():
        was, node = before[now]
        told += _changed(node, after[now], now)
        if was in renamed:
            told.append(f"renamed: {was} -> {now}")
    kept = [path for path in before if path in after]
    if kept != [path for path in after if path in before]:
        told.append("the order of the nodes")
    return tuple(sorted(told))


def moved(path: str, renamed: Mapping[str, str]) -> str:
    """A path, as it is after a renaming of it or of what it is in: the nearest one counts."""
    kept = path
    while kept:
        if kept in renamed:
            return renamed[kept] + path[len(kept) :]
        kept = kept.rpartition("/")[0]
    return path


def _changed(was: Any, now: Any, path: str) -> list[str]:
    """What differs between two versions of a node whose path is now this."""
    if type(was) is not type(now):
        return [f"changed kind: {path}"]
    before, after = _own(was), _own(now)
    if before == after:
        return []
    return [f"changed: {path} ({', '.join(name for name in after if before[name] != after[name])})"]


def _own(node: Any) -> dict[str, Any]:
    """A node's own fields, without its children, and without its name, which its path tells."""
    inner = _CHILDREN if isinstance(node, IR.StageNode) else _CHILDREN | {"body"}
    return {
        name: _code(getattr(node, name))
        for name in node.__struct_fields__
        if name != "name" and name not in inner
    }


def _code(value: Any) -> Any:
    """A value, as it is compared."""
    if isinstance(value, dict):  # the reducers of a parallel, or a stage's options
        return {key: _code(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, IR.Reducer):
        return value.name, _code(value.code)
    return (value.qualname, value.digest) if isinstance(value, IR.CodeRef) else value

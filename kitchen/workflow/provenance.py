"""Provenance: which code of the user's a node runs.

Rules:

1. A `CodeRef` depends on the source text alone: not on addresses, hash seeds, file
   locations, or the arguments inside a partial. It is equal in every process and on every
   machine that has the same source.
2. What wraps code is looked through: partials, bound methods, decorators that set
   `__wrapped__`. An instance (a stage, a callable object) is known by its whole class.
3. Where there is no source (built-ins, code typed into an interpreter), the digest is "".
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import textwrap
import tokenize
from types import MethodType
from typing import Any, cast

from kitchen.workflow.ir import CodeRef


def code_ref(code: Any) -> CodeRef:
    """Where a callable, a stage or a class was found, and a digest of its source."""
    found = _unwrapped(code)
    module = getattr(found, "__module__", None) or ""
    return CodeRef(str(module), str(found.__qualname__), _digest(found))


def simple_name(code: Any) -> str:
    """The bare name of a callable, as its author wrote it; "<lambda>" for a lambda."""
    return str(_unwrapped(code).__qualname__).rpartition(".")[2]


def _unwrapped(code: Any) -> Any:
    """The function or class that stands behind a callable; it has a `__qualname__`."""
    while True:
        if isinstance(code, functools.partial):
            code = cast("functools.partial[Any]", code).func
        elif isinstance(code, MethodType):
            code = code.__func__
        elif isinstance(getattr(code, "__qualname__", None), str):
            return code
        else:
            return cast("type[Any]", type(code))


def _digest(code: Any) -> str:
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return ""
    text = textwrap.dedent(source).strip()
    # surrogatepass: a source file may hold what UTF-8 cannot, and a digest must not fail.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

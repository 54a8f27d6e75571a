"""What a live object holds, as texts that are the same where it holds the same.

Rules:

1. A stateful object is told by its `state_dict()`, key by key. What else it and any other object
   holds is told by its attributes, as far as they can be told: what does not encode is left out.
2. An attribute that is an object itself is looked into, a few levels deep, and so is a list, a dict
   or the like; a generator of random numbers is told by its state.
3. What a class declares to be a cache (`functools.cached_property`) is left out.
4. Looking changes nothing, and nothing that goes wrong at it is raised.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, cast

from kitchen.history.values import short, tree_of
from kitchen.machine.codec import Codec
from kitchen.machine.codec.arrays import pack_state
from kitchen.runner.resources import is_stateful

_DEEPEST = 3
_MOST = 300  # attributes of one object
_CODEC = Codec()
_ORDERED = (list, tuple, deque)
_MANY = (dict, AbstractSet, *_ORDERED)
STATE = ".state_dict()"


def contents(value: object, known: Collection[int] = ()) -> dict[str, str]:
    """What an object holds, by name: `.state_dict()['used']`, `.used`, `[0].used`, or "" where it is a
    value.

    `known`: the ids of objects that are told elsewhere.
    """
    found: dict[str, str] = {}
    try:
        if is_stateful(value):
            found.update(_state(value))
    except Exception as error:  # its methods may do what they like
        found[STATE] = f"raised {type(error).__name__}: {error}"
    plain = told(value)
    if plain is not None:
        found[""] = plain
        return found
    with suppress(Exception):  # somebody may change it meanwhile
        for name, text in _inside(value, "", {*known} - {id(value)}, 0):
            found[name] = text
            if len(found) > _MOST:
                break
    return found


def above(item: str) -> list[str]:
    """What a name is part of, itself included: `.layers`, `.layers[0]`, `.layers[0].rate`."""
    ends = [n for n, sign in enumerate(item) if sign in ".[" and n > 0]
    return [item[:end] for end in (*ends, len(item))]


def told(value: Any) -> str | None:
    """A value in a line, the same wherever it is the same; None where it cannot be told."""
    if isinstance(value, random.Random):
        value = value.getstate()
    elif isinstance(getattr(getattr(value, "bit_generator", None), "state", None), Mapping):
        value = value.bit_generator.state  # NumPy's
    for encode in (lambda: _CODEC.encode(value).json, lambda: pack_state(value).tree):
        try:
            return short(tree_of(encode()))
        except Exception:  # noqa: S112  (not by this one, then)
            continue
    return None


def _state(value: Any) -> dict[str, str]:
    state: Any = value.state_dict()
    whole = told(state)
    if not isinstance(state, Mapping):
        return {} if whole is None else {STATE: whole}
    entries = cast("Mapping[Any, Any]", state)
    found = {f"{STATE}[{key!r}]": told(each) for key, each in entries.items()}
    return {name: text for name, text in found.items() if text is not None}


def _inside(value: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, str]]:
    """What a value is made of that cannot be told as a whole."""
    if id(value) in seen or depth > _DEEPEST:
        return
    seen.add(id(value))
    if isinstance(value, _MANY):
        many = cast("Collection[Any]", value)
        yield name, f"{type(many).__name__} of {len(many)}"
    for key, each in _parts(value):
        inner = f"{name}{key}"
        text = told(each)
        if text is not None:
            yield inner, text
        elif isinstance(each, _MANY) or _is_own(each):
            yield from _inside(each, inner, seen, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Its entries, in their order, and its attributes. Those of a set have no order and no name."""
    if isinstance(value, dict):
        for key, each in list(cast("dict[Any, Any]", value).items())[:_MOST]:
            name = told(key)
            if name is not None:
                yield f"[{name}]", each
    elif isinstance(value, _ORDERED):
        for number, each in enumerate(list(cast("list[Any]", value))[:_MOST]):
            yield f"[{number}]", each
    elif isinstance(value, AbstractSet):
        texts = [told(each) for each in list(cast("AbstractSet[Any]", value))]
        yield "[…]", sorted(text for text in texts if text is not None)[:_MOST]
    for key, each in _fields(value).items():
        yield f".{key}", each


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    made = dict(cast("dict[str, Any]", getattr(value, "__dict__", {})))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else tuple(slots):
            if not key.startswith("__") and hasattr(value, key):
                made[key] = getattr(value, key)
        for key, each in cls.__dict__.items():
            if isinstance(each, functools.cached_property):
                made.pop(key, None)
    return made


def _is_own(value: Any) -> bool:
    """Whether it is an instance of a class of somebody's own, not of Python's library."""
    kind = cast("type[Any]", type(value))
    if isinstance(value, type) or callable(value):
        return False
    return kind.__module__.partition(".")[0] not in sys.stdlib_module_names

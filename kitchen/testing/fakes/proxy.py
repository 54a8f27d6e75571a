"""The proxy that `faulty` makes: an object's methods with faults, and all else as it is.

Rules:

1. Methods are attributes of the proxy's class, found wherever Python looks for them: `isinstance`
   with a Protocol, `hasattr`, `with`, `for`, `len()`.
2. Everything else is read from, and written to, the object inside.
3. It is neither copied nor pickled: a twin would count calls of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

from kitchen.testing.fakes.faults import Faults

# Looked up on the class: `__getattr__` is not asked for these. What every object has is left alone.
_SPECIAL = frozenset(
    f"__{name}__"
    for name in (
        "call", "len", "getitem", "setitem", "delitem", "contains", "iter", "next", "reversed",
        "enter", "exit", "aenter", "aexit", "aiter", "anext", "await", "bool", "int", "float",
        "index", "eq", "ne", "lt", "le", "gt", "ge", "hash", "add", "radd", "sub", "rsub", "mul",
        "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "matmul", "neg", "abs",
    )
)  # fmt: skip


def proxy(thing: object, faults: Faults) -> Any:
    """An object that does what `thing` does, with these faults. Raises `ArgumentError`."""
    methods = _methods_of(thing)
    faults.check(methods, _told(thing))
    namespace: dict[str, Any] = {name: _faulty(name, methods[name]) for name in methods}
    namespace["__slots__"] = ()
    if "__eq__" in namespace and getattr(type(thing), "__hash__", None) is None:
        namespace["__hash__"] = None
    cls = type(f"Faulty{type(thing).__name__}", (_Proxy,), namespace)
    return cls(thing, faults)


def _methods_of(thing: object) -> dict[str, bool]:
    """The names of its methods, and whether each is async."""
    own = {name for each in type(thing).__mro__[:-1] for name in vars(each)}
    found: dict[str, bool] = {}
    for name in dir(thing):
        if name.startswith("__") and (name not in _SPECIAL or name not in own):
            continue
        if isinstance(inspect.getattr_static(thing, name, None), property):
            continue  # it may do something when it is read
        method = getattr(thing, name, None)
        if callable(method):
            found[name] = inspect.iscoroutinefunction(method)
    return found


def _told(thing: object) -> str:
    return getattr(thing, "__name__", None) or type(thing).__name__


def _faulty(name: str, is_async: bool) -> Any:
    """A method of a proxy."""
    if is_async:

        async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            thing, faults = _inside(self)
            async with faults(name):
                return await getattr(thing, name)(*args, **kwargs)

        call_async.__name__ = name
        return call_async

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        thing, faults = _inside(self)
        with faults(name):
            given = getattr(thing, name)(*args, **kwargs)
        # Who enters, or iterates, what gives itself is to go on with the proxy.
        return self if given is thing else given

    call.__name__ = name
    return call


def _inside(proxy: Any) -> tuple[Any, Faults]:
    return object.__getattribute__(proxy, "_inside_")


def _no_twin(proxy: Any, done: str) -> TypeError:
    return TypeError(
        f"faulty({_told(_inside(proxy)[0])}) cannot be {done}, as it counts the calls of one object; "
        "have a function at the top level of a module make it where it is used"
    )


class _Proxy:
    """What all proxies have. In slots, as its `__dict__` is that of the object inside."""

    __slots__ = ("__weakref__", "_inside_")

    def __init__(self, thing: object, faults: Faults) -> None:
        object.__setattr__(self, "_inside_", (thing, faults))

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _inside(self)[0].__class__

    @property
    def __dict__(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _inside(self)[0].__dict__

    def __getattr__(self, name: str) -> Any:
        return getattr(_inside(self)[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_inside(self)[0], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_inside(self)[0], name)

    def __copy__(self) -> Any:
        raise _no_twin(self, "copied")

    def __deepcopy__(self, memo: Any) -> Any:
        raise _no_twin(self, "copied")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise _no_twin(self, "pickled")

    def __repr__(self) -> str:
        return f"faulty({_inside(self)[0]!r})"

    def __dir__(self) -> list[str]:
        return dir(_inside(self)[0])

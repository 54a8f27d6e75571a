"""What a run and its worker processes say to each other.

Rules:

1. Pickles go through a socket between two processes of one run, and nowhere else. Functions and
   classes go by reference, so what a worker is to find must stand at the top level of a module.
2. The script that was started is `__main__` here and `__mp_main__` there, so that what stands under
   `if __name__ == "__main__":` runs here alone; each side reads either name as its own. A worker
   imports it only if something in it is asked for.
3. A `Secret` in what a stage is made of goes along with its value: only the socket sees it.
4. An exception that does not come back from a pickle is told in text.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from kitchen.errors import WorkflowError
from kitchen.machine.events import Address, Failure, Visit
from kitchen.machine.state import Feed
from kitchen.runner.secret import Secret
from kitchen.workflow.ir import Node

CLOSED = 70
"""The exit code of a worker that has no connection any more, though the run lives."""

_MAIN = ("__main__", "__mp_main__")
_DEEPEST = 20  # causes of causes
_NO_BLOBS: Mapping[str, bytes] = {}
_importing: list[str] = []
_imported: list[ModuleType] = []


class Main(NamedTuple):
    """The script that was started: its file, and the package that it is in, if any."""

    file: str
    package: str | None


class Item(NamedTuple):
    """A loop's current item: as text with its blobs, or else pickled; or why it is neither."""

    text: bytes = b""
    blobs: Mapping[str, bytes] = _NO_BLOBS
    pickled: bytes = b""
    problem: str = ""


class Work(NamedTuple):
    """One attempt of one visit, as a worker needs it.

    `body`, `config`, `state_type` and `wants` are pickled one by one. `data` has for each key the
    base and the deltas of its cell. `nodes` are the loops around, without what is in them.
    """

    address: Address
    number: int
    writes: tuple[str, ...] | None
    body: bytes
    config: bytes
    state_type: bytes
    wants: bytes
    options: bytes
    data: dict[str, tuple[bytes, tuple[tuple[str, bytes], ...]]]
    loops: tuple[str, ...]
    nodes: dict[str, Node]
    items: dict[Address, Item]
    feeds: dict[Address, Feed]
    reserved: dict[str, tuple[str, str]]
    run_id: str
    seed: int
    origins: dict[str, str]
    incarnation: int
    seed_globals: bool
    event_loop: str
    levels: dict[str, int]
    main: Main | None

    @property
    def visit(self) -> Visit:
        """The indices of the loops around."""
        return self.address.visit


class Told(NamedTuple):
    """An exception: pickled (empty where it does not come back), in text, and what it came from."""

    pickled: bytes
    text: str
    cause: Told | None
    context: Told | None
    quiet: bool


class Reply(NamedTuple):
    """What came of an attempt. `effects`: the type and the JSON of each.

    `wanted`: whether the retry policy wants what was raised.
    """

    effects: tuple[tuple[str, str], ...]
    blobs: dict[str, bytes]
    failure: Failure | None = None
    error: Told | None = None
    wanted: bool = False


# --- pickles --------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Secret:
            given = {"env": obj.env} if obj.env is not None else {"value": obj.reveal()}
            return _secret, (given,)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, main: Callable[[], ModuleType]) -> None:
        super().__init__(io.BytesIO(text))
        self._main = main

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name not in _MAIN:
            return super().find_class(module_name, global_name)
        found: Any = self._main()
        for part in global_name.split("."):
            found = getattr(found, part)
        return found


def _secret(given: dict[str, str]) -> Secret:
    return Secret(**given)


def pack(value: Any) -> bytes:
    """A value as a pickle. Raises what pickling raises, which may be anything."""
    text = io.BytesIO()
    _Pickler(text, pickle.HIGHEST_PROTOCOL).dump(value)
    return text.getvalue()


def unpack(text: bytes, main: Callable[[], ModuleType]) -> Any:
    """The value. `main`: what stands for `__main__`. Raises what unpickling raises."""
    return _Unpickler(text, main).load()


def this_main() -> ModuleType:
    """The script that this process was started with."""
    return sys.modules["__main__"]


def names_main(text: bytes) -> bool:
    """Whether a pickle may lead to something in the script that was started."""
    return any(name.encode() in text for name in _MAIN)


# --- the script that was started ------------------------------------------------------------------


def import_main(main: Main | None) -> ModuleType:
    """The script that the run was started with, imported here; `__main__` from now on."""
    if _imported:  # or as far as it came
        return _imported[0]
    if main is None:
        raise ModuleNotFoundError("the run was not started with a script")
    module = ModuleType("__mp_main__")
    module.__file__ = main.file
    module.__package__ = main.package
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    _imported.append(module)
    _importing.append(main.file)
    try:
        with open(main.file, "rb") as source:
            code = compile(source.read(), main.file, "exec")
        exec(code, module.__dict__)  # noqa: S102  (the user's own script, as Python runs it)
    finally:
        _importing.pop()
    return module


def check_not_importing() -> None:
    """Raises `WorkflowError` where a worker process is importing the script that was started."""
    if _importing:
        raise WorkflowError(
            f"{_importing[0]} starts a run wherever it is imported, and a worker process imports it",
            hint='put the call under `if __name__ == "__main__":`',
        )


# --- exceptions -----------------------------------------------------------------------------------


def told(error: BaseException, main: Callable[[], ModuleType], depth: int = 0) -> Told:
    """The exception and what it came from."""
    pickled = b""
    try:
        text = pack(error)
        if type(unpack(text, main)) is type(error):
            pickled = text
    except Exception:  # an exception's class may do what it likes
        pickled = b""
    inner = [error.__cause__, error.__context__]
    cause, context = (
        None if each is None or depth == _DEEPEST else told(each, main, depth + 1) for each in inner
    )
    text = f"{type(error).__qualname__}: {_text(error)}"
    return Told(pickled, text, cause, context, error.__suppress_context__)


def error_of(given: Told, main: Callable[[], ModuleType]) -> BaseException | None:
    """The exception; None where it did not come back. Its causes are told in any case."""
    error: Any = None
    if given.pickled:
        try:
            error = unpack(given.pickled, main)
        except Exception:  # its class is not here, say
            return None
    if isinstance(error, BaseException):
        error.__cause__ = _cause(given.cause, main)
        error.__context__ = _cause(given.context, main)
        error.__suppress_context__ = given.quiet
        return error
    return None


def _cause(given: Told | None, main: Callable[[], ModuleType]) -> BaseException | None:
    return None if given is None else error_of(given, main) or RuntimeError(given.text)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # as above
        return "<its text cannot be had>"

"""The text of a test module that does a recorded run again, and compares it with its golden trace.

Rules: what is written of the log is names that are identifiers (`Place`), and what `literals.py`
writes. Names that the module needs itself, or that mean something to pytest, are not taken by what
is imported from the user.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from datetime import UTC, datetime
from keyword import iskeyword
from typing import Any, NamedTuple
from unicodedata import normalize

from kitchen.api.literals import Code, Literals, call, laid, text
from kitchen.errors import ConfigError
from kitchen.history.golden import Telling
from kitchen.history.history import History
from kitchen.log.reader import fact_of
from kitchen.workflow.ir import StageNode, walk

LONGEST = 100  # characters of an id that is shown

_STANDARD = ("datetime", "decimal", "fractions", "uuid", "zoneinfo")
_OWN_NAMES = frozenset(
    (*dir(builtins), "CONFIG", "SEED", "kitchen", "numpy", "pytest", *_STANDARD,
     "run_workflow", "golden", "virtual_clock", "monkeypatch", "run", "failed")
)  # fmt: skip
_TAKEN_BY_PYTEST = ("test", "Test", "pytest", "setup", "setUp", "teardown", "tearDown")


class Place(NamedTuple):
    """Where a test imports the workflow from: `from module import first`, and what is in it."""

    module: str
    first: str
    rest: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}:{'.'.join((self.first, *self.rest))}"


def importable(module: str, name: str) -> Place | None:
    """The place, if both are names as they stand in an import."""
    names = [*module.split("."), *name.split(".")]
    # Python would import what the name normalises to, which is another one.
    plain = all(n.isidentifier() and not iskeyword(n) and n == normalize("NFKC", n) for n in names)
    if not plain or module == "__main__" or module.endswith(".py"):
        return None
    first, *rest = name.split(".")
    return Place(module, first, tuple(rest))


class Module(NamedTuple):
    """The parts of a test module. `named`: whether the run's id is in its trace."""

    past: History
    place: Place
    function: str
    telling: Telling
    literals: Literals
    config: Code
    named: bool

    def source(self) -> str:
        """The text. Raises `ConfigError` where Python would not read it: brackets nested too deep."""
        source = "\n".join([*self._lines(), ""])
        try:
            compile(source, "<test>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"the config cannot be written as Python: {error}") from None
        return source

    def _lines(self) -> Iterator[str]:
        yield f'"""{self._title()}"""'
        yield ""
        yield from self._imports()
        yield ""
        yield f"CONFIG = {laid(self.config, used=9)}"
        yield f"SEED = {laid(self.literals.code(self.past.begun.seed, 'seed'))}"
        yield from ("", "")
        asked = {
            "run_workflow": True,
            "golden": True,
            "virtual_clock": self._waited,
            "monkeypatch": bool(self.literals.variables),
        }
        fixtures = [name for name, wanted in asked.items() if wanted]
        yield f"def {self.function}({', '.join(fixtures)}):"
        yield from self._body()

    def _title(self) -> str:
        run = repr(self.past.run_id[:LONGEST]).replace("\\", "\\\\").replace('"', '\\"')
        first = next(iter(self.past.store.read(self.past.run_id, until=1)))
        day = f"{datetime.fromtimestamp(first.at // 1_000_000_000, UTC):%Y-%m-%d}"
        made = "Made by `kitchen golden`."
        return f"The run {run} of {self.place}, recorded {day}, as a test. {made}"

    def _imports(self) -> Iterator[str]:
        wanted = {*self.literals.imports, *(("kitchen", "pytest") if self._failed else ())}
        ours = [name for name in _STANDARD if name in wanted]
        for block in (ours, sorted(wanted - set(ours))):
            yield from (f"import {name}" for name in block)
            if block:
                yield ""
        alias = "" if self._bound == self.place.first else f" as {self._bound}"
        yield f"from {self.place.module} import {self.place.first}{alias}"

    def _body(self) -> Iterator[str]:
        if self.literals.variables:
            yield "    # Neither the log nor the trace has a secret: any text that the code takes will do."
        for variable in self.literals.variables:
            yield f'    monkeypatch.setenv({text(variable)}, "not the real one")'
        once = [p for p, n in walk(self.past.ir) if isinstance(n, StageNode) and n.effect == "once"]
        if once:
            shown = ", ".join(repr(path)[:LONGEST] for path in once[:5])
            yield '    # These stages have effect="once", and the test does what they do again. Where'
            yield f"    # that must not be, give fakes, adapters={{…}}: {shown}"
        if self._waited:
            yield "    # The run waited before some attempts; on this clock that passes at once."
        if self._failed:
            yield "    with pytest.raises(kitchen.RunError) as failed:"
            yield f"        {laid(self._call(), 8)}"
            yield f"    assert failed.value.run == {laid(self._golden(), 4, 27)}"
        else:
            yield f"    run = {laid(self._call(), 4, 6)}"
            yield f"    assert run == {laid(self._golden(), 4, 14)}"

    def _call(self) -> Code:
        arguments: list[tuple[str, Code]] = [
            ("", ".".join((self._bound, *self.place.rest))), ("", "CONFIG"), ("seed", "SEED"),
        ]  # fmt: skip
        if self.named:
            arguments.append(("run_id", text(self.past.run_id)))
        if self._waited:
            arguments.append(("clock", "virtual_clock"))
        return call("run_workflow", arguments)

    def _golden(self) -> Code:
        """The golden, with what is not as it is by itself."""
        usual = _told(Telling())
        told = {n: value for n, value in _told(self.telling).items() if value != usual[n]}
        if not told:
            return "golden"
        return call("golden", [(n, self.literals.code(value, n)) for n, value in told.items()])

    @property
    def _failed(self) -> bool:
        return self.past.status == "failed"

    @property
    def _waited(self) -> bool:
        """Whether the run waited for another attempt, which a test need not."""
        retries = self.past.store.read(self.past.run_id, types=("RetryScheduled",))
        return any(getattr(fact_of(record).event, "delay", 0) > 0 for record in retries)

    @property
    def _bound(self) -> str:
        """What the workflow is called in the test: as where it comes from, if that is free."""
        first = self.place.first
        taken = first in _OWN_NAMES or first.startswith(_TAKEN_BY_PYTEST)
        return "workflow" if taken else first


def _told(telling: Telling) -> dict[str, Any]:
    """The arguments of the fixture `golden` that say the same."""
    include, exclude = telling.patterns
    return {
        "level": telling.level,
        "include": list(include),
        "exclude": list(exclude),
        "round": telling.round,
        "life": telling.life,
    }

"""`faulty`: failures of a user's own objects, which stay what they are otherwise."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import kitchen
from kitchen.errors import ArgumentError
from kitchen.ports.training import Stateful
from kitchen.testing import FakeFailure, Faults, SimulatedCrash, VirtualClock, crash_matrix, faulty
from store import MemoryStore


class Client:
    """An adapter as users write them: sync and async methods, an attribute, special methods."""

    retries = 3

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.open = False

    def send(self, text: str, *, twice: bool = False) -> int:
        self.sent += [text] * (2 if twice else 1)
        return len(self.sent)

    async def fetch(self, text: str) -> str:
        await anyio.lowlevel.checkpoint()
        self.sent.append(text)
        return text.upper()

    def send_all(self, texts: list[str]) -> None:
        for text in texts:
            self.send(text)

    @property
    def last(self) -> str:
        return self.sent[-1]

    @staticmethod
    def version() -> str:
        return "1"

    def __len__(self) -> int:
        return len(self.sent)

    def __iter__(self) -> Any:
        return iter(self.sent)

    def __enter__(self) -> Client:
        self.open = True
        return self

    def __exit__(self, *told: object) -> None:
        self.open = False

    def __call__(self, text: str) -> str:
        return text[::-1]


class Weights:
    def __init__(self) -> None:
        self.w = 0.0

    def update(self) -> None:
        self.w += 1.5

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.w = state_dict["w"]


@kitchen.workflow
def updating(wf: kitchen.WorkflowBuilder) -> None:
    wf.stage("update", lambda ctx: None)


def test_what_does_not_fail_is_as_it_was() -> None:
    inner = Client()
    client = faulty(inner, fail_at={"send": 9})
    assert client.send("a", twice=True) == 2
    assert (client.retries, client.last, client.version()) == (3, "a", "1")
    assert (len(client), list(client), client("ab")) == (2, ["a", "a"], "ba")
    client.sent = []
    assert inner.sent == []
    assert isinstance(client, Client)
    assert "Client" in repr(client)
    with pytest.raises(AttributeError, match="missing"):
        _ = client.missing  # type: ignore[attr-defined]


def test_the_nth_call_fails_and_has_changed_nothing() -> None:
    faults = Faults(fail_at={"send": [2, 4]})
    client = faulty(Client(), faults=faults)
    assert client.send("a") == 1
    with pytest.raises(FakeFailure, match="send was to fail"):
        client.send("b")
    assert client.send("c") == 2
    with pytest.raises(FakeFailure):
        client.send("d")
    assert client.sent == ["a", "c"]
    assert faults.calls == {"send": 4}


@pytest.mark.parametrize("raised", [ConnectionError, ConnectionError("gone"), StopIteration])
def test_what_is_raised_may_be_said(raised: Any) -> None:
    client = faulty(Client(), fail_at={"send": {1: raised}})
    expected = raised if isinstance(raised, type) else type(raised)
    with pytest.raises(expected):
        client.send("a")
    assert client.send("a") == 1


@pytest.mark.anyio
async def test_async_methods_fail_alike() -> None:
    client = faulty(Client(), fail_at={"fetch": 2}, crash_at={"fetch": "after:3"})
    assert await client.fetch("a") == "A"
    with pytest.raises(FakeFailure):
        await client.fetch("b")
    with pytest.raises(SimulatedCrash):
        await client.fetch("c")
    assert client.sent == ["a", "c"]


def test_a_crash_is_before_or_after() -> None:
    for moment, sent in (("before", []), ("after", ["a"])):
        client = faulty(Client(), crash_at={"send": (1, moment)})
        with pytest.raises(SimulatedCrash, match=f"{moment} call 1 of send"):
            client.send("a")
        assert client.sent == sent


def test_special_methods_fail_too_and_who_enters_has_the_proxy() -> None:
    client = faulty(Client(), fail_at={"__call__": 1, "__exit__": 1, "send": 1})
    with pytest.raises(FakeFailure, match="__call__"):
        client("a")
    entered = client.__enter__()
    assert client.open
    with pytest.raises(FakeFailure, match="send"):
        entered.send("a")
    with pytest.raises(FakeFailure, match="__exit__"), client:
        client.send("a")
    assert client.open


def test_what_an_object_calls_on_itself_is_not_counted() -> None:
    client = faulty(Client(), fail_at={"send": 1})
    client.send_all(["a", "b"])
    assert client.sent == ["a", "b"]


def test_faults_are_given_as_one_thing_or_each_by_itself() -> None:
    with pytest.raises(ArgumentError, match="faults="):
        faulty(Client(), faults=Faults(fail_at={"send": 2}), delay=1.0)


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_neither_copied_nor_pickled(twin: Callable[[Any], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"faulty\(Client\) cannot be .* at the top level of a module"
    ):
        twin(faulty(Client()))


def test_what_cannot_cross_to_a_fresh_process_is_told() -> None:
    with pytest.raises(
        ArgumentError, match=r"the adapter 'c' .*faulty\(Client\) cannot be"
    ) as error:
        crash_matrix(updating, adapters={"c": faulty(Client())}, processes=1)
    assert "a function that makes the adapters" in (error.value.hint or "")


@pytest.mark.parametrize("argument", ["fail_at", "delay", "crash_at"])
def test_a_method_that_is_not_there_is_refused(argument: str) -> None:
    faults: dict[str, Any] = {argument: {"sendd": 1}}
    with pytest.raises(
        ArgumentError, match=f"{argument} names 'sendd', and Client has no"
    ) as error:
        faulty(Client(), **faults)
    assert error.value.hint == "did you mean 'send'?"


@pytest.mark.parametrize(
    "options",
    [
        {"fail_at": {"send": 0}},
        {"fail_at": {"send": "3"}},
        {"fail_at": {"send": {1: "no"}}},
        {"fail_at": {"send": True}},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": {"send": "long"}},
        {"crash_at": {"send": "during:3"}},
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"send|delay"):
        faulty(Client(), **options)


def test_a_stateful_object_stays_stateful() -> None:
    weights = faulty(Weights(), fail_at={"update": 2})
    assert isinstance(weights, Stateful)
    weights.update()
    twin = Weights()
    twin.load_state_dict(weights.state_dict())
    assert twin.w == weights.w == 1.5
    weights.load_state_dict({"w": 7.0})
    assert weights.w == 7.0


def test_a_delay_takes_time_on_the_clock_that_is_given() -> None:
    clock = VirtualClock()
    client = faulty(Client(), delay={"send": 3600}, clock=clock)
    client.send("a")
    client("b")
    assert 3600 <= clock.elapsed < 3700


def test_without_a_clock_it_takes_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    faulty(Client(), delay=0.5).send("a")
    assert slept == [0.5]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_delays_in_a_run_are_skipped_wherever_they_are(backend: str) -> None:
    clock = VirtualClock()
    client = faulty(Client(), delay=1000, clock=clock)

    async def in_the_loop(_: Any) -> None:
        client.send("a")
        await client.fetch("b")

    @kitchen.workflow
    def sending(wf: kitchen.WorkflowBuilder) -> None:
        wf.stage("thread", lambda _: client.send("c"))
        wf.stage("loop", in_the_loop)

    async def main() -> None:
        await kitchen.run_async(sending, store=MemoryStore())

    anyio.run(main, backend=backend, backend_options=clock.backend_options(backend))
    assert 3000 <= clock.elapsed < 3100
    assert client.sent == ["c", "a", "b"]


def test_a_resource_that_crashes_is_brought_back_as_its_checkpoint_had_it() -> None:
    made: list[Weights] = []

    def open_weights(_: Any) -> Weights:
        crash_at = {"update": "after:3"} if not made else None
        made.append(faulty(Weights(), crash_at=crash_at))
        return made[-1]

    @kitchen.workflow
    def updating(wf: kitchen.WorkflowBuilder) -> None:
        wf.resource("weights", open_weights)
        for number in range(4):
            wf.stage(f"update{number}", lambda ctx: ctx.resources["weights"].update())
            wf.checkpoint(f"checkpoint{number}")

    store = MemoryStore()
    with pytest.raises(SimulatedCrash):
        kitchen.run(updating, store=store, run_id="r")
    assert made[0].w == 4.5
    kitchen.resume("r", updating, store=store)
    assert [weights.w for weights in made] == [4.5, 6.0]


def test_what_is_counted_is_no_part_of_what_the_object_holds() -> None:
    inner = Client()
    client = faulty(inner, fail_at={"send": 2})
    client.send("a")
    assert vars(client) == vars(inner) == {"sent": ["a"], "open": False}

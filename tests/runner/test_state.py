"""`ctx.state`: what is put is recorded, what is read is what the log holds, nothing is lost silently.

1. Mapping and attributes; declared fields are checked, in puts and in deltas.
2. Deltas are recorded as deltas; what nobody could observe is coalesced.
3. Containers that were read refuse to be changed; declared objects that were changed are recorded.
4. Loop variables are read by name, cannot be written, and are gone with their loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

import kitchen
from kitchen.history.history import History
from kitchen.machine import cells
from store import MemoryStore
from tests.runner.running import done, failure, flow, of_type, single, types


class Layer(msgspec.Struct):
    size: int = 0
    names: list[str] = []


class State(msgspec.Struct):
    step: int = 0
    rate: float = 0.5
    history: list[float] = []
    scores: dict[str, int] = {}
    layer: Layer = msgspec.field(default_factory=lambda: Layer(3))
    layers: list[Layer] = []
    name: str | None = None


class Needed(msgspec.Struct, kw_only=True):
    late: int
    early: int = 1


@dataclass
class Plain:
    step: int = 0
    seen: list[int] = field(default_factory=list)


def final(body: Any, **declared: Any) -> dict[str, Any]:
    return dict(done(single(body, **declared)).state)


def refused(body: Any, **declared: Any) -> tuple[str, str]:
    """The type and the text of what the stage was refused with."""
    told = failure(single(body, **declared))
    return told.type, f"{told.message}\n{told.hint}"


def effects(body: Any, **declared: Any) -> list[tuple[str, Any]]:
    """The state events of a run of one stage: (type, payload)."""
    store = MemoryStore()
    done(single(body, **declared), store=store)
    return [
        (record.type, record.event)
        for record in of_type(
            store, "StatePut", "StateDeleted", "StateAppended", "StateIncremented", "StateMerged"
        )
    ]


# --- reading and writing --------------------------------------------------------------------------


def test_attributes_and_mapping_are_the_same_thing() -> None:
    def body(ctx: Any) -> None:
        ctx.state.a = 1
        assert ctx.state["a"] == 1
        ctx.state["b"] = [1, 2]
        assert ctx.state.b == [1, 2]
        assert list(ctx.state) == ["a", "b"]
        assert len(ctx.state) == 2
        assert "a" in ctx.state
        assert "c" not in ctx.state
        assert ctx.state.get("c", 9) == 9
        ctx.state.update(c=3)
        assert ctx.state.pop("c") == 3
        assert ctx.state.setdefault("d", 4) == 4
        assert not hasattr(ctx.state, "c")

    assert final(body) == {"a": 1, "b": [1, 2], "d": 4}


def test_a_missing_key_says_what_is_near() -> None:
    def body(ctx: Any) -> None:
        ctx.state.global_step = 1
        _ = ctx.state["globl_step"]

    assert refused(body) == (
        "UnknownKey",
        "the state has no 'globl_step'\ndid you mean 'global_step'?",
    )


@pytest.mark.parametrize("how", ["attribute", "item", "delete"])
def test_a_missing_key_is_the_builtin_that_fits(how: str) -> None:
    def body(ctx: Any) -> None:
        ask: Any = {
            "attribute": lambda: ctx.state.nothing,
            "item": lambda: ctx.state["nothing"],
            "delete": lambda: ctx.state.pop("nothing"),
        }[how]
        with pytest.raises(AttributeError if how == "attribute" else KeyError):
            ask()

    final(body)


def test_delete() -> None:
    def build(wf: Any) -> None:
        wf.stage("put", lambda ctx: ctx.state.update(a=1, b=2, c=3))
        wf.stage("delete", delete)

    def delete(ctx: Any) -> None:
        del ctx.state["a"]
        del ctx.state.b
        assert list(ctx.state) == ["c"]
        ctx.state.b = 5
        ctx.state.new = 1
        del ctx.state.new

    store = MemoryStore()
    assert dict(done(flow(build), store=store).state) == {"b": 5, "c": 3}
    deleted = [record.event.key for record in of_type(store, "StateDeleted")]  # type: ignore[attr-defined]
    assert deleted == ["a"], "a key that came and went within one attempt is not told"


def test_a_put_breaks_aliasing() -> None:
    def body(ctx: Any) -> None:
        mine = {"a": [1]}
        ctx.state.mine = mine
        mine["a"].append(2)
        assert ctx.state.mine == {"a": [1]}
        array = np.arange(3)
        ctx.state.array = array
        array[0] = 9
        assert list(ctx.state.array) == [0, 1, 2]

    assert final(body)["mine"] == {"a": [1]}


def test_you_read_what_the_log_holds() -> None:
    """The very types come back, within the attempt as behind it."""
    values = [(1, 2), {1: "a"}, b"x", float("nan"), -0.0, 2**70, None, {"a": (1,)}]

    def body(ctx: Any) -> None:
        ctx.state["v"] = values
        assert repr(list(ctx.state["v"])) == repr(values)

    def build(wf: Any) -> None:
        wf.stage("s", body)
        wf.stage("t", lambda ctx: ctx.state.update(told=repr(list(ctx.state["v"]))))

    store = MemoryStore()
    run = done(flow(build), store=store)
    assert run.state["told"] == repr(values)
    assert repr(list(History(store, "r").state_at()["v"])) == repr(values)


def test_what_would_not_come_back_is_refused_with_key_and_path() -> None:
    def body(ctx: Any) -> None:
        ctx.state["config"] = {"a": [1, object()]}

    kind, told = refused(body)
    assert kind == "UnencodableValue"
    assert "state['config']['a'][1]" in told


@pytest.mark.parametrize("key", [1, "\udcff", None])
def test_a_key_is_a_text(key: Any) -> None:
    def body(ctx: Any) -> None:
        ctx.state[key] = 2

    assert refused(body)[0] == "StateError"


def test_many_appends_are_one_event() -> None:
    def build(wf: Any) -> None:
        wf.stage("first", lambda ctx: ctx.state.update(xs=[]))
        wf.stage("second", lambda ctx: [ctx.append("xs", i) for i in range(5_000)][:0])
        wf.stage("third", lambda ctx: [ctx.append("xs", b"x" * 70_000) for _ in range(2)][:0])

    store = MemoryStore()
    run = done(flow(build), store=store)
    assert run.state["xs"] == [*range(5_000), b"x" * 70_000, b"x" * 70_000]
    assert [r.path for r in of_type(store, "StateAppended")] == ["second", "third"]


def test_a_failed_attempt_changes_nothing_and_tells_what_it_would_have() -> None:
    def body(ctx: Any) -> None:
        ctx.state.update(a=1)
        ctx.append("xs", 1)
        raise ValueError("no")

    store = MemoryStore()
    with pytest.raises(kitchen.RunError) as caught:
        done(single(body), store=store)
    assert dict(caught.value.run.state) == {}
    (failed,) = of_type(store, "StageFailed")
    told = [msgspec.json.decode(raw) for raw in failed.event.discarded]  # type: ignore[attr-defined]
    assert [(entry["type"], entry["event"]["key"]) for entry in told] == [
        ("StatePut", "a"),
        ("StatePut", "xs"),
    ]


# --- deltas ---------------------------------------------------------------------------------------


def test_deltas_are_recorded_as_deltas() -> None:
    def build(wf: Any) -> None:
        wf.stage("first", lambda ctx: ctx.state.update(n=1, xs=[0], m={"a": 1}))
        wf.stage("second", second)

    def second(ctx: Any) -> None:
        ctx.increment("n")
        ctx.increment("n", 0.5)
        ctx.append("xs", 1)
        ctx.append("xs", (2, 3))
        ctx.extend("xs", [])
        ctx.extend("xs", [4, 5])
        ctx.merge("m", {"b": 2})
        ctx.merge("m", {"a": 3})
        assert ctx.state.n == 2.5
        assert ctx.state.xs == [0, 1, (2, 3), 4, 5]
        assert ctx.state.m == {"a": 3, "b": 2}

    store = MemoryStore()
    assert dict(done(flow(build), store=store).state) == {
        "n": 2.5,
        "xs": [0, 1, (2, 3), 4, 5],
        "m": {"a": 3, "b": 2},
    }
    told = [record.type for record in of_type(store, *DELTAS) if record.path == "second"]
    # neighbouring appends are one event
    assert told == ["StateIncremented"] * 2 + ["StateAppended"] + ["StateMerged"] * 2


DELTAS = ("StatePut", "StateAppended", "StateIncremented", "StateMerged")


def test_a_delta_on_a_new_key_starts_it() -> None:
    def body(ctx: Any) -> None:
        ctx.append("xs", 1)
        ctx.increment("n", 2)
        ctx.merge("m", {1: 2})
        ctx.append("xs", 2)

    assert final(body) == {"xs": [1, 2], "n": 2, "m": {1: 2}}


def test_only_the_last_put_of_a_key_is_recorded() -> None:
    def body(ctx: Any) -> None:
        for value in range(5):
            ctx.state.a = value
        ctx.state.b = 1
        ctx.state.a = 9

    told = effects(body)
    assert [(kind, event.key, bytes(event.value)) for kind, event in told] == [
        ("StatePut", "a", b"9"),
        ("StatePut", "b", b"1"),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda ctx: ctx.append("s", 1), "cannot append to state['s']: it is a str"),
        (lambda ctx: ctx.increment("s"), "cannot increment state['s']: it is a str"),
        (lambda ctx: ctx.merge("s", {}), "cannot merge into state['s']: it is a str"),
        (lambda ctx: ctx.increment("flag"), "cannot increment state['flag']: it is a bool"),
        (lambda ctx: ctx.increment("new", "1"), "cannot increment state['new'] by a str"),
    ],
)
def test_a_delta_that_does_not_fit(body: Any, said: str) -> None:
    def whole(ctx: Any) -> None:
        ctx.state.update(s="text", flag=True)
        body(ctx)

    kind, told = refused(whole)
    assert kind == "StateError"
    assert said in told


# --- declared state -------------------------------------------------------------------------------


def test_declared_fields_have_their_defaults_from_the_start() -> None:
    store = MemoryStore()
    run = done(single(lambda ctx: None, state=State), store=store)
    assert run.state.step == 0
    assert run.state.layer == Layer(3)
    assert run.state.history == []
    assert "required" not in done(single(lambda ctx: None, state=Needed)).state
    assert History(store, "r").state_at(1)["rate"] == 0.5


def test_a_field_without_default_is_absent_until_it_is_put() -> None:
    def body(ctx: Any) -> None:
        assert "late" not in ctx.state
        with pytest.raises(AttributeError):
            _ = ctx.state.late
        ctx.state.late = 2

    assert final(body, state=Needed) == {"early": 1, "late": 2}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (lambda ctx: ctx.state.update(step="x"), "state.step: expected `int`, got `str`"),
        (lambda ctx: setattr(ctx.state, "rate", None), "state.rate: expected `float`, got `null`"),
        (lambda ctx: ctx.state.update(history=[1, "x"]), "state.history[1]: expected `float`"),
        (lambda ctx: ctx.append("history", "x"), "state.history[0]: expected `float`, got `str`"),
        (lambda ctx: ctx.extend("history", [1.0, None]), "state.history[1]: expected `float`"),
        (lambda ctx: ctx.merge("scores", {"a": "b"}), "expected `int`, got `str`"),
        (lambda ctx: ctx.increment("step", 0.5), "state.step: expected `int`, got `float`"),
    ],
)
def test_a_wrong_type_is_refused_at_the_put(body: Any, said: str) -> None:
    kind, told = refused(body, state=State)
    assert kind == "StateError"
    assert said in told


def test_an_increment_that_is_refused_is_not_made() -> None:
    def body(ctx: Any) -> None:
        with pytest.raises(kitchen.StateError):
            ctx.increment("step", 0.5)
        ctx.increment("step", 2)

    assert final(body, state=State)["step"] == 2


@pytest.mark.parametrize("how", ["put", "attribute", "read", "append", "increment", "merge"])
def test_an_unknown_field_says_what_is_near(how: str) -> None:
    def body(ctx: Any) -> None:
        {
            "put": lambda: ctx.state.update(stp=1),
            "attribute": lambda: setattr(ctx.state, "stp", 1),
            "read": lambda: ctx.state.stp,
            "append": lambda: ctx.append("stp", 1),
            "increment": lambda: ctx.increment("stp"),
            "merge": lambda: ctx.merge("stp", {}),
        }[how]()

    kind, told = refused(body, state=State)
    assert kind == "UnknownKey"
    assert "State has no field 'stp'" in told
    assert "did you mean 'step'?" in told


def test_a_dataclass_declares_state_too() -> None:
    def body(ctx: Any) -> None:
        ctx.state.step += 1
        ctx.append("seen", 4)

    assert final(body, state=Plain) == {"step": 1, "seen": [4]}
    assert refused(lambda ctx: ctx.state.update(step="x"), state=Plain)[0] == "StateError"


def test_a_renamed_field_keeps_its_attribute() -> None:
    class Renamed(msgspec.Struct, rename="camel"):
        global_step: int = 0

    def body(ctx: Any) -> None:
        ctx.state.global_step += 1

    assert final(body, state=Renamed) == {"global_step": 1}


def test_a_field_that_a_mapping_method_would_hide_is_refused() -> None:
    class Hidden(msgspec.Struct):
        items: list[int] = []

    with pytest.raises(kitchen.WorkflowError, match=r"Hidden has a field 'items'.*is a method"):
        final(lambda ctx: None, state=Hidden)


# --- changes in place -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("put", "change"),
    [
        ([1], lambda value: value.append(2)),
        ([1], lambda value: value.__setitem__(0, 2)),
        ({"a": 1}, lambda value: value.update(b=2)),
        ({"a": [1]}, lambda value: value["a"].append(2)),
        ({1}, lambda value: value.add(2)),
        (([1],), lambda value: value[0].append(2)),
    ],
)
@pytest.mark.parametrize("when", ["at once", "later"])
def test_containers_cannot_be_changed_in_place(put: Any, change: Any, when: str) -> None:
    def first(ctx: Any) -> None:
        ctx.state.v = put
        if when == "at once":
            change(ctx.state.v)

    def build(wf: Any) -> None:
        wf.stage("first", first)
        wf.stage("second", lambda ctx: change(ctx.state.v))

    assert failure(flow(build)).type == "FrozenValue"


def test_augmented_assignment_is_refused_with_what_to_do() -> None:
    def body(ctx: Any) -> None:
        ctx.state.xs = [1]
        ctx.state.xs += [2]

    kind, told = refused(body)
    assert kind == "FrozenValue"
    assert "ctx.append('xs', x)" in told


def test_arrays_are_read_only() -> None:
    def body(ctx: Any) -> None:
        ctx.state.a = np.arange(20_000)
        with pytest.raises(ValueError, match="read-only"):
            ctx.state.a[0] = 1

    assert final(body)["a"][0] == 0


def test_declared_objects_changed_in_place_are_recorded() -> None:
    def build(wf: Any) -> None:
        wf.stage("first", first)
        wf.stage("second", lambda ctx: ctx.state.layer.names.append("b"))
        wf.stage("only_looks", lambda ctx: ctx.state.layer.size)

    def first(ctx: Any) -> None:
        ctx.state.layer.size += 1
        ctx.state.layer.names.append("a")
        assert ctx.state.layer == Layer(4, ["a"])
        ctx.state.layers = [Layer(1)]
        ctx.state.layers[0].size = 7

    store = MemoryStore()
    run = done(flow(build, state=State), store=store)
    assert run.state.layer == Layer(4, ["a", "b"])
    assert run.state.layers == [Layer(7)]
    assert {r.path for r in of_type(store, "StatePut")} == {"first", "second"}


def test_an_object_changed_before_a_delta_is_recorded_as_well() -> None:
    def body(ctx: Any) -> None:
        ctx.state.layers = [Layer(1)]
        ctx.state.layers[0].size = 5
        ctx.append("layers", Layer(9))
        ctx.state.layers[1].size = 10

    assert final(body, state=State)["layers"] == [Layer(5), Layer(10)]


Builder = Callable[[Any], None]


def _predicate(change: Any) -> Builder:
    def build(wf: Any) -> None:
        with wf.conditional(change, name="asks"):
            wf.stage("s", lambda ctx: None)

    return build


def _over(change: Any) -> Builder:
    def build(wf: Any) -> None:
        with wf.loop("asks", over=change):
            wf.stage("s", lambda ctx: None)

    return build


def _factory(change: Any) -> Builder:
    def build(wf: Any) -> None:
        wf.resource("asks", change, stateful=False)
        wf.stage("s", lambda ctx: None)

    return build


@pytest.mark.parametrize("place", [_predicate, _over, _factory])
@pytest.mark.parametrize(
    "change",
    [
        lambda ctx: ctx.state.update(step=1),
        lambda ctx: ctx.append("history", 1.0),
        lambda ctx: setattr(ctx.state.layer, "size", 9) or [True],
        lambda ctx: ctx.record_metric("m", 1),
    ],
    ids=["put", "append", "object", "metric"],
)
def test_only_stages_write(place: Any, change: Any) -> None:
    told = failure(flow(place(change), state=State))
    assert told.type == "StateError"
    assert "asks" in told.message


# --- loop variables -------------------------------------------------------------------------------


def looped(body: Any, after: Any = None, **declared: Any) -> Any:
    def build(wf: Any) -> None:
        with wf.loop("outer", over=lambda ctx: ["a", "b"]):
            with wf.loop("inner", over=lambda ctx: range(5, 7)):
                wf.stage("s", body)
        if after is not None:
            wf.stage("after", after)

    return flow(build, **declared)


def test_loop_variables_are_read_from_state() -> None:
    def body(ctx: Any) -> None:
        state = ctx.state
        assert "outer_current" in state
        assert "inner_index" in state
        assert "outer_current" not in list(state)
        told = (state.outer_current, state["outer_index"], state.inner_current, state.inner_index)
        assert told == (ctx.item("outer"), ctx.index("outer"), ctx.item(), ctx.index("inner"))
        ctx.append("told", told)

    run = done(looped(body))
    assert run.state["told"] == [("a", 0, 5, 0), ("a", 0, 6, 1), ("b", 1, 5, 0), ("b", 1, 6, 1)]
    assert list(run.state) == ["told"]


def test_loop_variables_work_with_a_declared_state() -> None:
    run = done(
        looped(lambda ctx: ctx.append("history", float(ctx.state.inner_current)), state=State)
    )
    assert run.state.history == [5.0, 6.0, 5.0, 6.0]


@pytest.mark.parametrize(
    "write",
    [
        lambda ctx: ctx.state.update(inner_current=1),
        lambda ctx: setattr(ctx.state, "outer_index", 1),
        lambda ctx: ctx.increment("outer_index"),
        lambda ctx: ctx.state.pop("outer_index"),
    ],
)
def test_loop_variables_cannot_be_written(write: Any) -> None:
    told = failure(looped(write))
    assert told.type == "StateError"
    assert "cannot be written" in told.message


def test_loop_variables_are_gone_when_the_loop_ends() -> None:
    def after(ctx: Any) -> None:
        assert "outer_current" not in ctx.state
        assert ctx.state.get("outer_current", "gone") == "gone"
        _ = ctx.state.outer_current

    told = failure(looped(lambda ctx: None, after))
    assert told.type == "UnknownKey"
    assert "after is not inside a loop 'outer'" in told.message


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda ctx: ctx.item("innr"), "did you mean 'inner'?"),
        (lambda ctx: ctx.index("nothing"), "there are: outer, inner"),
    ],
)
def test_an_unknown_loop_says_what_is_near(ask: Any, said: str) -> None:
    told = failure(looped(ask))
    assert told.type == "UnknownKey"
    assert told.hint == said


def test_no_loop_around() -> None:
    assert failure(single(lambda ctx: ctx.item())).message == "s is in no loop"


def test_reading_appends_nothing() -> None:
    store = MemoryStore()
    done(single(lambda ctx: (ctx.state.step, list(ctx.state.items())), state=State), store=store)
    assert types(store) == ["RunStarted", "StageStarted", "StageCompleted", "RunCompleted"]


# --- small courtesies -----------------------------------------------------------------------------


class Numbers(msgspec.Struct):
    loss: float = 0.0
    count: int = 0
    history: list[float] = []


def test_numpy_scalars_go_into_fields_of_python_numbers() -> None:
    def body(ctx: Any) -> None:
        ctx.state.loss = np.float32(0.5)
        ctx.state.count = np.int64(3)

    run = done(single(body, state=Numbers))
    assert type(run.state.loss) is float
    assert type(run.state.count) is int
    with pytest.raises(kitchen.RunError, match=r"state\.count: expected `int`, got `float`"):
        done(single(lambda ctx: setattr(ctx.state, "count", np.float64(0.5)), state=Numbers))


def test_a_part_of_the_config_can_be_kept() -> None:
    def body(ctx: Any) -> None:
        ctx.state["model"] = ctx.config.model

    run = done(single(body), {"model": {"layers": [1, 2], "of": {"k": 1}}})
    assert run.state["model"] == {"layers": [1, 2], "of": {"k": 1}}


def test_an_unknown_option_is_told_as_an_option() -> None:
    with pytest.raises(kitchen.RunError, match="the options of s have no 'lenght'"):
        done(single(lambda ctx: ctx.options.lenght, options={"length": 1}))


def test_a_field_that_a_loop_variable_hides_is_refused() -> None:
    class Hidden(msgspec.Struct):
        epochs_index: int = 0

    def build(wf: Any) -> None:
        with wf.loop("epochs", over=lambda ctx: range(1)):
            wf.stage("s", lambda ctx: None)

    with pytest.raises(kitchen.WorkflowError, match="epochs_index is a loop variable"):
        done(flow(build, state=Hidden))


def test_frozen_values_of_declared_state_name_their_key() -> None:
    def body(ctx: Any) -> None:
        ctx.append("history", 1.0)
        ctx.state.history.append(2.0)

    with pytest.raises(kitchen.RunError, match="'history'"):
        done(single(body, state=Numbers))


def test_appending_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append to a long list must not decode the list."""

    def body(ctx: Any) -> None:
        def no_reading(*_: Any, **__: Any) -> Any:
            raise AssertionError("read")

        with monkeypatch.context() as patched:
            patched.setattr(cells, "read", no_reading)
            ctx.append("history", 1.0)
            ctx.append("history", 2.0)

    assert done(single(body, state=Numbers)).state.history == [1.0, 2.0]


def test_the_error_of_a_failed_run_has_its_cause() -> None:
    def body(ctx: Any) -> None:
        raise ValueError("boom")

    with pytest.raises(kitchen.RunError) as caught:
        done(single(body))
    assert isinstance(caught.value.__cause__, ValueError)

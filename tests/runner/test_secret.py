"""Secrets: revealed by whoever asks, shown by nothing, and in no file of a store.

Each value that is looked for is made for its test. What is looked for in files is the value, its
hash, and the base64 of it.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import os
import pickle
import pprint
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import kitchen
from kitchen import Secret
from kitchen.history.history import History
from kitchen.runner import secret as secrets
from kitchen.runner.config import convert, record
from kitchen.runner.failure import describe
from kitchen.runner.secret import redacted
from store import MemoryStore, open_store
from tests.runner.running import Dying, Killed, done, failure, flow, log, python, script, single

VALUE = "sk-test-6b1e0d9f44"


class Service(msgspec.Struct):
    token: Secret
    url: str = "https://example.org"


class Config(msgspec.Struct):
    api_key: Secret
    epochs: int = 3
    maybe: Secret | None = None
    spare: list[Secret] = []
    named: dict[str, Secret] = {}
    service: Service | None = None
    free: Any = None


class FromEnvironment(msgspec.Struct):
    api_key: Secret = Secret(env="TEST_API_KEY")
    epochs: int = 3


@dataclasses.dataclass
class Plain:
    api_key: Secret
    epochs: int = 3


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests print must not be searched for the values of these."""
    monkeypatch.setattr(secrets, "_known", secrets._Known())


def traces(value: str) -> list[bytes]:
    """What would give a value away."""
    plain = value.encode()
    return [plain, base64.b64encode(plain), hashlib.sha256(plain).hexdigest().encode()]


def clean(content: bytes, *values: str) -> None:
    for value in values:
        for trace in traces(value):
            assert trace not in content


# --- the class --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        format,
        pprint.pformat,
        "{:>40}".format,
        "{!r}".format,
        lambda secret: "%s and %r" % (secret, secret),  # noqa: UP031
        lambda secret: repr({"a": [secret], "b": {secret}}),
        lambda secret: repr(Config(secret, spare=[secret], named={"k": secret})),
        lambda secret: repr(Plain(secret)),
        lambda secret: repr(dataclasses.asdict(Plain(secret))),
        lambda secret: repr(convert({"a": {"b": secret}}, None)),
        lambda secret: repr([getattr(secret, name) for name in Secret.__slots__]),
        lambda secret: repr([copy.copy(secret), copy.deepcopy([secret])]),
        lambda secret: repr([pickle.dumps(secret, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)]),
        lambda secret: repr(secret.__reduce_ex__(4)) + repr(secret.__getstate__()),
    ],
)
def test_nothing_shows_the_value(show: Callable[[Secret], str]) -> None:
    assert Secret(VALUE).reveal() == VALUE
    shown = show(Secret(VALUE))
    assert shown
    clean(shown.encode(), VALUE)


@pytest.mark.parametrize(
    "take",
    [json.dumps, msgspec.json.encode, msgspec.to_builtins, len, iter, bytes, lambda s: "a" + s],
)
def test_what_cannot_leave_it_out_is_refused(take: Callable[[Secret], Any]) -> None:
    with pytest.raises(TypeError) as caught:
        take(Secret(VALUE))
    clean("".join(traceback.format_exception(caught.value)).encode(), VALUE)


def test_two_are_equal_by_their_values_and_the_hash_tells_none() -> None:
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret(VALUE + "x")
    assert Secret("é\udcff") == Secret("é\udcff")
    assert Secret(VALUE) != VALUE
    assert Secret(env="ONE") == Secret(env="ONE")
    assert Secret(env="ONE") != Secret(env="OTHER")
    assert Secret(env="ONE") != Secret("ONE")
    assert hash(Secret(VALUE)) == hash(Secret("another")) == hash(Secret(env="ONE"))


def test_it_cannot_be_changed() -> None:
    secret = Secret(VALUE)
    for change in (
        lambda: setattr(secret, "_variable", "OTHER"),
        lambda: setattr(secret, "note", 1),
        lambda: delattr(secret, "_given"),
    ):
        with pytest.raises(AttributeError, match="cannot be changed"):
            change()
    assert secret.reveal() == VALUE


def test_a_variable_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Secret(env="TEST_API_KEY")
    assert (repr(secret), secret.env) == ("Secret(env='TEST_API_KEY')", "TEST_API_KEY")
    for value in ("first-49c1", "second-07aa"):
        monkeypatch.setenv("TEST_API_KEY", value)
        assert secret.reveal() == value
        assert redacted(f"<{value}>") == "<***>"
    for empty in (lambda: monkeypatch.setenv("TEST_API_KEY", ""), monkeypatch.undo):
        empty()
        with pytest.raises(kitchen.ConfigError, match="the variable TEST_API_KEY is not set"):
            secret.reveal()


@pytest.mark.parametrize("wrong", [{}, {"value": "a", "env": "B"}, {"env": "no-name"},
                                   {"value": ""}, {"value": 3}, {"env": 3}])  # fmt: skip
def test_what_is_no_secret_is_refused(wrong: Any) -> None:
    with pytest.raises(kitchen.ConfigError):
        Secret(**wrong)


def test_a_pickle_carries_the_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", VALUE)
    assert pickle.loads(pickle.dumps(Secret(env="TEST_API_KEY"))).reveal() == VALUE
    with pytest.raises(kitchen.ConfigError, match="a pickle does not carry its value"):
        pickle.loads(pickle.dumps(Secret(VALUE))).reveal()

    def body(ctx: Any) -> None:
        again = pickle.loads(pickle.dumps(ctx.config))
        monkeypatch.setenv("KITCHEN_SECRET_API_KEY", "from-the-environment")
        assert ctx.config.api_key.reveal() == VALUE
        assert again.api_key.reveal() == "from-the-environment"

    done(single(body, config=Config), {"api_key": VALUE})


# --- a config ---------------------------------------------------------------------------------------

VALUES = [f"{VALUE}-{place}" for place in ("top", "maybe", "one", "two", "named", "nested", "free")]


def full(values: list[str] = VALUES) -> dict[str, Any]:
    top, maybe, one, two, named, nested, free = values
    return {
        "api_key": top,
        "maybe": maybe,
        "spare": [one, Secret(two)],
        "named": {"open-ai": named},
        "service": {"token": nested},
        "free": {"deep": (Secret(free), 1)},
    }


MARKED = {
    "api_key": {"$secret": "KITCHEN_SECRET_API_KEY"},
    "epochs": 3,
    "maybe": {"$secret": "KITCHEN_SECRET_MAYBE"},
    "spare": [{"$secret": "KITCHEN_SECRET_SPARE_0"}, {"$secret": "KITCHEN_SECRET_SPARE_1"}],
    "named": {"open-ai": {"$secret": "KITCHEN_SECRET_NAMED_OPEN_AI"}},
    "service": {
        "token": {"$secret": "KITCHEN_SECRET_SERVICE_TOKEN"},
        "url": "https://example.org",
    },
    "free": {"deep": ({"$secret": "KITCHEN_SECRET_FREE_DEEP_0"}, 1)},
}
VARIABLES = [
    "KITCHEN_SECRET_" + name
    for name in ("API_KEY", "MAYBE", "SPARE_0", "SPARE_1", "NAMED_OPEN_AI", "SERVICE_TOKEN",
                 "FREE_DEEP_0")
]  # fmt: skip


def revealed(config: Any) -> list[str]:
    found = [config.api_key, config.maybe, *config.spare, config.named["open-ai"]]
    found += [config.service.token, config.free["deep"][0]]
    return [secret.reveal() for secret in found]


@pytest.mark.parametrize("declared", [Config, None])
def test_stages_see_the_values_and_the_log_the_marks(declared: Any) -> None:
    seen: list[Any] = []
    store = MemoryStore()
    config = full()
    if declared is None:
        config = {
            **config, "epochs": 3, "api_key": Secret(VALUES[0]), "maybe": Secret(VALUES[1]),
            "spare": [Secret(VALUES[2]), Secret(VALUES[3])], "named": {"open-ai": Secret(VALUES[4])},
            "service": {"token": Secret(VALUES[5]), "url": "https://example.org"},
        }  # fmt: skip
    run = done(single(lambda ctx: seen.append(revealed(ctx.config)), config=declared), config,
               store=store)  # fmt: skip
    assert seen == [VALUES]
    assert History(store, "r").config == MARKED
    clean(repr(run.config).encode(), *VALUES)


def test_a_dataclass_and_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", VALUE)
    seen: list[Any] = []
    body = single(lambda ctx: seen.append(ctx.config.api_key.reveal()), config=Plain)
    done(body, Plain(Secret(VALUE)))
    done(body, {"api_key": "env:TEST_API_KEY"})
    store = MemoryStore()
    workflow = single(lambda ctx: seen.append(ctx.config.api_key.reveal()), config=FromEnvironment)
    run = done(workflow, store=store)
    assert seen == [VALUE] * 3
    assert History(store, "r").config == {"api_key": {"$secret": "TEST_API_KEY"}, "epochs": 3}
    assert run.config == FromEnvironment()


class Renamed(msgspec.Struct, rename="kebab"):
    api_key: Secret
    batch_size: int = 8


def test_fields_go_by_the_names_that_a_config_has() -> None:
    workflow, store = single(lambda ctx: None, config=Renamed), MemoryStore()
    done(workflow, {"api-key": VALUE}, store=store)
    marked = {"api-key": {"$secret": "KITCHEN_SECRET_API_KEY"}, "batch-size": 8}
    assert History(store, "r").config == marked
    again = done(workflow, {"api-key": VALUE}, store=store, if_exists="resume")
    assert again.status == "completed"
    with pytest.raises(kitchen.RunMismatch, match=r"config\.batch_size: recorded 8, asked for 9"):
        done(workflow, {"api-key": VALUE, "batch-size": 9}, store=store, if_exists="resume")


def test_a_set_of_texts_is_refused_at_the_start() -> None:
    class Pool(msgspec.Struct):
        keys: set[Secret]

    with pytest.raises(kitchen.ConfigError, match="reading the config back") as caught:
        done(single(lambda ctx: None, config=Pool), {"keys": [VALUE, f"{VALUE}-2"]})
    clean(str(caught.value).encode(), VALUE)


def test_what_a_log_says_of_a_config_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in zip(VARIABLES, VALUES, strict=True):
        monkeypatch.setenv(variable, value)
    for declared in (Config, None):
        seen: list[Any] = []
        done(
            single(lambda ctx, seen=seen: seen.append(revealed(ctx.config)), config=declared),
            MARKED,
        )
        assert seen == [VALUES]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"api_key": 31415926}, "config.api_key: expected a text for a secret, got a int"),
        ({"api_key": VALUE, "spare": [[VALUE]]}, "config.spare[0]: expected a text for a secret"),
        ({"api_key": None}, "config.api_key: expected a text for a secret, got a NoneType"),
        ({"api_key": ""}, "config.api_key: a secret is an empty text"),
        ({"api_key": f"env:{VALUE}"}, "config.api_key: env: is followed by the name"),
        ({"api_key": VALUE, "epochs": "x"}, "config.epochs: expected `int`"),
        (
            {"api_key": VALUE, "named": {"a-b": VALUE, "a_b": VALUE}},
            "both be looked for in KITCHEN_",
        ),
        ({"api_kee": VALUE}, "no field 'api_kee'"),
        ({"api_key": VALUE, "free": object()}, "the config cannot be recorded"),
        ({}, "missing required field `api_key`"),
    ],
)
def test_what_is_wrong_is_told_without_the_value(given: Any, said: str) -> None:
    store = MemoryStore()
    with pytest.raises(kitchen.ConfigError) as caught:
        done(single(lambda ctx: None, config=Config), given, store=store)
    assert said in str(caught.value)
    clean("".join(traceback.format_exception(caught.value)).encode(), VALUE)
    assert "31415926" not in str(caught.value)
    assert store.runs() == []


class Thing:
    pass


class Odd(msgspec.Struct):
    thing: Thing


def test_other_types_that_msgspec_does_not_know_are_taken_as_before() -> None:
    thing = Thing()
    assert convert({"thing": thing}, Odd).thing is thing
    with pytest.raises(kitchen.ConfigError, match=r"config\.thing: expected `Thing`, got `str`"):
        convert({"thing": "x"}, Odd)


def test_a_config_that_holds_itself_is_told() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(kitchen.ConfigError, match="contains itself"):
        record(convert({"loop": loop}, None))


@pytest.mark.parametrize(
    "config",
    [
        {"$secret": "NAME"},
        {"a": {"$secret": "no name"}, "b": {"$secret": "NAME", "c": 1}, "c": {"$secret": None}},
    ],
)
def test_an_entry_that_is_called_like_a_mark_and_is_none(config: dict[str, Any]) -> None:
    store = MemoryStore()
    done(single(lambda ctx: None), config, store=store)
    assert History(store, "r").config == config


@pytest.mark.parametrize("other", [Secret("another-10d3"), Secret(env="ANOTHER")])
def test_a_stage_that_puts_another_secret_into_the_config_is_told(other: Secret) -> None:
    body = single(lambda ctx: setattr(ctx.config, "api_key", other), config=Config)
    assert failure(body, {"api_key": VALUE}).message == "the config was changed in place"


# --- a resume ---------------------------------------------------------------------------------------


def crashed(declared: Any, config: Any) -> tuple[Any, MemoryStore, list[Any]]:
    """A run that died once in its stage, and what the stage has seen."""
    die, seen = Dying(0), list[Any]()

    def body(ctx: Any) -> None:
        die()
        seen.append(ctx.config)

    workflow, store = single(body, config=declared), MemoryStore()
    with pytest.raises(Killed):
        done(workflow, config, store=store)
    return workflow, store, seen


@pytest.mark.parametrize("variables", [VARIABLES, []])
def test_a_resume_reads_the_environment(
    variables: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow, store, seen = crashed(Config, full())
    head = store.head("r")
    others = [f"other-{number}-77e2" for number in range(7)]
    for variable, value in zip(VARIABLES if variables else [], others, strict=bool(variables)):
        monkeypatch.setenv(variable, value)
    if variables:
        kitchen.resume("r", workflow, store=store)
        assert revealed(seen[0]) == others
        return
    with pytest.raises(kitchen.ConfigError) as caught:
        kitchen.resume("r", workflow, store=store)
    for variable in VARIABLES:
        assert f"the variable {variable} is not set" in str(caught.value)
    assert "config.named.open-ai is a secret" in str(caught.value)
    assert store.head("r") == head, "it was told before the run was taken up"
    assert History(store, "r").status == "crashed"  # which needs none
    assert History(store, "r").config == MARKED


def test_at_the_start_a_missing_one_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_API_KEY", raising=False)
    store = MemoryStore()
    with pytest.raises(
        kitchen.ConfigError, match=r"config\.api_key is a secret.*TEST_API_KEY is no"
    ):
        done(single(lambda ctx: None, config=FromEnvironment), store=store)
    assert store.runs() == []


def test_the_same_command_again_has_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow, store, seen = crashed(Config, full())
    rotated = [f"{value}-rotated" for value in VALUES]
    done(workflow, full(rotated), store=store, if_exists="resume")
    assert revealed(seen[0]) == rotated
    # and a completed run needs none
    assert kitchen.resume("r", workflow, store=store).status == "completed"


class Written(msgspec.Struct):
    api_key: Secret = Secret("hard-coded-52ab")


def test_a_default_with_a_value_is_there_again() -> None:
    workflow, store, seen = crashed(Written, None)
    done(workflow, store=store, if_exists="resume")
    assert seen[0].api_key.reveal() == "hard-coded-52ab"


@pytest.mark.parametrize("other", ["another-b2a1", Secret(env="SET_HERE"), "env:SET_HERE"])
def test_secrets_make_no_mismatch_and_are_not_shown_in_one(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_HERE", "from-set-here")
    workflow, store, seen = crashed(Config, {"api_key": VALUE})
    with pytest.raises(kitchen.RunMismatch) as caught:
        done(workflow, {"api_key": other, "service": {"token": VALUE}}, store=store,
             if_exists="resume")  # fmt: skip
    told = str(caught.value)
    assert "config.service" in told
    assert "config.api_key" not in told
    clean(told.encode(), VALUE, "another-b2a1", "from-set-here")
    done(workflow, {"api_key": other}, store=store, if_exists="resume")
    assert seen[0].api_key.reveal() == (
        "another-b2a1" if other == "another-b2a1" else "from-set-here"
    )


def test_a_field_that_has_become_a_secret_can_be_resumed() -> None:
    class Before(msgspec.Struct):
        api_key: str

    _, store, _ = crashed(Before, {"api_key": VALUE})
    seen: list[Any] = []
    after = single(lambda ctx: seen.append(ctx.config.api_key.reveal()), config=Config)
    with pytest.raises(kitchen.ConfigError, match="does not fit Optional any more"):
        kitchen.resume("r", single(lambda ctx: None, config=Optional), store=store)
    kitchen.resume("r", after, store=store)
    assert seen == [VALUE]


class Optional(msgspec.Struct):
    token: Secret | None = None


# --- failures ---------------------------------------------------------------------------------------

AWKWARD = "sk \"quoted\" 'and' \\ é\n  second line of it\n"


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def chained(value: str) -> BaseException:
    try:
        try:
            raise KeyError(value)
        except KeyError as error:
            raise RuntimeError("while") from error
    except RuntimeError as error:
        return error


def noted(value: str) -> BaseException:
    error = ValueError("x")
    error.add_note(f"with {value}")
    return error


@pytest.mark.parametrize("value", [VALUE, AWKWARD])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: ValueError(f"401 for {value}"),
        lambda value: ValueError(value.strip()),
        KeyError,
        lambda value: ValueError({"Authorization": f"Bearer {value}"}),
        lambda value: ValueError(value.encode("utf-8", "surrogatepass")),
        lambda value: ValueError(json.dumps({"key": value})),
        lambda value: ValueError(msgspec.json.encode({"key": value}).decode()),
        lambda value: ValueError(f"https://example.org/?key={quote(value)}"),
        lambda value: kitchen.ConfigError("no", hint=f"try {value}"),
        lambda value: kitchen.ConfigError(f"no {value}"),
        chained,
        noted,
        lambda value: ExceptionGroup(
            "two", [ValueError(value), ExceptionGroup("b", [KeyError(value)])]
        ),
        lambda value: ValueError("x" * 7_990 + value + "y" * 20_000),
    ],
)
def test_a_failure_does_not_tell_it(make: Callable[[str], BaseException], value: str) -> None:
    Secret(value)
    told = describe(raised(make(value)))
    text = "\n".join((told.type, told.message, told.traceback, told.hint))
    assert "***" in text
    for line in value.strip().splitlines():
        for form in (line, repr(line)[1:-1], json.dumps(line)[1:-1], quote(line)):
            assert form.strip() not in text
    for part in ("6b1e0d9f", "second"):
        assert part not in text


def test_a_failed_run_has_it_neither_in_its_log_nor_in_its_error() -> None:
    value = f"{VALUE}-failing"
    store = MemoryStore()

    def body(ctx: Any) -> None:
        key = ctx.config.api_key.reveal()
        ctx.record_metric("loss", 1.0)
        raise ExceptionGroup("all", [ValueError(f"401: {key}")])

    with pytest.raises(kitchen.RunError) as caught:
        done(single(body, config=Config), {"api_key": value}, store=store)
    assert caught.value.run.failure.message == "all (1 sub-exception)"
    assert "401: ***" in caught.value.run.failure.traceback
    clean(str(caught.value).encode(), value)
    clean(repr([(r.event, r) for r in log(store)]).encode(), value)


def test_a_value_of_a_variable_is_known_before_it_is_revealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_API_KEY", "read-by-a-library-0c9d")

    def body(ctx: Any) -> None:
        raise ValueError(os.environ["TEST_API_KEY"])

    assert failure(single(body, config=FromEnvironment)).message == "***"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("it's-a-key", repr('it\'s-a-key is "no" key')),
        ("a/b c+d==", quote("key=a/b c+d==", safe="")),
        ("a/b c+d==", quote("https://example.org/a/b c+d==")),
        ("a/b c+d==", f"https://example.org?{urlencode({'key': 'a/b c+d=='})}"),
        ("ключ", repr("ключ".encode())),
        ("ключ", json.dumps("ключ")),
        ("from-a-file\n", "no from-a-file here"),
    ],
)
def test_it_is_found_as_others_write_it(value: str, text: str) -> None:
    assert "***" not in redacted(text)
    Secret(value)
    assert "***" in redacted(text)


def test_short_ones_are_left() -> None:
    assert Secret("abc").reveal() == "abc"
    assert redacted("abc abcd") == "abc abcd"
    Secret("abcd")
    Secret("abcd-ef")
    assert redacted("abc abcd abcd-ef") == "abc *** ***"


@given(st.text(min_size=4, max_size=30))
def test_no_value_is_left_in_a_text(value: str) -> None:
    assume("*" not in value)
    known = secrets._Known()
    known.add(value)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(secrets, "_known", known)
        for text in (value, repr(value), json.dumps(value), f"<{value}>", repr({"a": [value]})):
            assert value not in redacted(text)
            if len(value.strip()) >= 4 and "'" not in value:
                assert repr(value)[1:-1] not in redacted(text)


# --- where a secret has no place --------------------------------------------------------------------


@pytest.mark.parametrize(
    "put",
    [
        lambda ctx, secret: ctx.state.update(key=secret),
        lambda ctx, secret: ctx.state.update(deep={"a": [1, secret]}),
        lambda ctx, secret: ctx.append("keys", secret),
        lambda ctx, secret: ctx.extend("keys", [secret]),
        lambda ctx, secret: ctx.merge("keys", {"a": secret}),
    ],
)
def test_the_state_takes_none(put: Callable[[Any, Secret], None]) -> None:
    told = failure(
        single(lambda ctx: put(ctx, ctx.config.api_key), config=Config), {"api_key": VALUE}
    )
    assert told.type == "UnencodableValue"
    assert "a secret belongs into no log" in told.hint


def test_a_metric_is_none() -> None:
    body = single(lambda ctx: ctx.record_metric("m", ctx.config.api_key), config=Config)
    assert "'m' is not a number: Secret('***')" in failure(body, {"api_key": VALUE}).message


def test_options_take_none() -> None:
    with pytest.raises(kitchen.WorkflowError, match="a secret belongs into the config") as caught:
        single(lambda ctx: None, options={"key": [Secret(VALUE)]})
    assert "options['key'][0]" in str(caught.value)


def test_a_loop_over_secrets_leaves_nothing_of_them_in_the_log() -> None:
    seen: list[str] = []

    def build(wf: Any) -> None:
        with wf.loop("keys", over=lambda ctx: ctx.config.spare):
            wf.stage("use", lambda ctx: seen.append(ctx.item().reveal()))

    store = MemoryStore()
    done(flow(build, config=Config), {"api_key": VALUE, "spare": VALUES}, store=store)
    assert seen == VALUES
    clean(repr(log(store)).encode(), VALUE, *VALUES)


def test_a_producer_makes_none() -> None:
    def build(wf: Any) -> None:
        with wf.async_loop("keys", producer=lambda ctx: ctx.config.api_key, stop_when=bool):
            wf.stage("use", lambda ctx: None)

    told = failure(flow(build, config=Config), {"api_key": VALUE})
    assert "a secret belongs into no log" in f"{told.message} {told.hint}"


# --- the files of a store ---------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from typing import Any
import msgspec
import kitchen

class Service(msgspec.Struct):
    token: kitchen.Secret

class Config(msgspec.Struct):
    api_key: kitchen.Secret
    keys: list[kitchen.Secret]
    named: dict[str, kitchen.Secret]
    service: Service
    fallback: kitchen.Secret = kitchen.Secret(env="FALLBACK_KEY")

class Client:
    def __init__(self, key):
        self.key = key
        self.calls = 0
    def __repr__(self):
        return f"Client({self.key!r})"
    def call(self):
        self.calls += 1
        if not os.path.exists("mended"):
            raise PermissionError(f"401 for {self!r}")
        return "ok"
    def state_dict(self):
        return {"calls": self.calls}
    def load_state_dict(self, saved):
        self.calls = saved["calls"]

def adapters(config):
    key = kitchen.Secret(env="ADAPTER_KEY").reveal()
    return {"client": Client(key), "other": Client(config.api_key.reveal())}

def values(config):
    found = [config.api_key, *config.keys, *config.named.values(), config.service.token,
             config.fallback]
    return [secret.reveal() for secret in found]

def work(ctx):
    assert len(values(ctx.config)) == 6
    ctx.resources["client"].calls += 1
    ctx.append("seen", "x" * 70_000)
    ctx.record_metric("seen", 1)

def die(ctx):
    if not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

def fail(ctx):
    try:
        if not os.path.exists("mended"):
            raise ExceptionGroup("several", [ValueError(value) for value in values(ctx.config)])
    except ExceptionGroup as error:
        told = f"none of {values(ctx.config)} is taken by {dict(ctx.adapters)}"
        raise RuntimeError(told) from error
    ctx.adapters["other"].call()

@kitchen.workflow(config=Config, adapters=adapters)
def flow(wf):
    wf.resource("client", lambda ctx: Client(ctx.config.api_key.reveal()))
    with wf.loop("rounds", over=lambda ctx: range(2)):
        wf.stage("work", work)
        wf.checkpoint()
        wf.stage("die", die)
    with wf.parallel("beside"):
        wf.stage("fail", fail)
        wf.stage("idle", lambda ctx: None)
    wf.stage("call", lambda ctx: ctx.adapters["client"].call())

if __name__ == "__main__":
    given = [os.environ[f"GIVEN_{n}"] for n in range(5)]
    kitchen.run(flow, {"api_key": given[0], "keys": given[1:3], "named": {"a": given[3]},
                       "service": {"token": given[4]}},
                store="k.db", run_id="r", if_exists="resume")
    print("done")
"""


def test_adapters_leave_nothing_in_the_log() -> None:
    """Their keys need not be secrets for that, as long as no exception tells them."""

    class Client:
        def __init__(self, key: str) -> None:
            self.key = key

        def __repr__(self) -> str:
            return f"Client({self.key!r})"

    def body(ctx: Any) -> None:
        assert ctx.adapters["a"].key == "adapter-key-31d2"
        ctx.adapters["missing"].call()

    for asked in ({"adapters": {"a": Client("adapter-key-31d2")}}, {}):
        store = MemoryStore()
        provider = (lambda: {"a": Client("adapter-key-31d2")}) if not asked else None
        workflow = single(body, adapters=provider, options={"x": 1})
        with pytest.raises(kitchen.RunError):
            done(workflow, store=store, **asked)
        clean(repr(log(store)).encode(), "adapter-key-31d2")
        assert "Client" not in repr(log(store))


@pytest.mark.slow
def test_no_file_of_a_store_has_a_value(tmp_path: Path) -> None:
    """Killed, taken up, failed with the values in its messages, mended, completed."""
    values = [f"value-{number}-9e8d7c" for number in range(7)]
    environment = {f"GIVEN_{number}": value for number, value in enumerate(values[:5])}
    environment |= {"FALLBACK_KEY": values[5], "ADAPTER_KEY": values[6]}
    path = script(tmp_path, SCRIPT)

    def start(code: int) -> str:
        process = python([path], tmp_path, environment)
        out, errors = process.communicate()
        assert process.returncode == code, errors
        for file in tmp_path.rglob("*"):
            if file.is_file():
                clean(file.read_bytes(), *values)
        return out

    start(-signal.SIGKILL)
    assert {"k.db", "k.db-wal", "k.db.lock"} <= {file.name for file in tmp_path.iterdir()}
    assert list((tmp_path / "k.db.blobs").rglob("*"))
    start(1)
    with open_store(tmp_path / "k.db") as store:
        past = History(store, "r")
        assert past.status == "failed"
        events: list[Any] = [r.event for r in past.events]
        told = [e.failure for e in events if type(e).__name__ in ("StageFailed", "RunFailed")]
        assert "***" in told[-1].message
        assert "ValueError: ***" in told[-1].traceback
        assert past.config["fallback"] == {"$secret": "FALLBACK_KEY"}
    (tmp_path / "mended").touch()
    assert start(0) == "done\n"

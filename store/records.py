"""What goes into a store and what comes out of it: plain values, no behaviour of a database.

Rules: a payload is JSON text and stays text here. A visit is a tuple of ints in Python and text
like "2.17" in a file ('' when empty). `chain` ties an event to everything before it in its run:
blake2b over the previous chain and the event without its clock time, so that two runs that did
the same have the same chain, and an edit, a gap or a swap cannot hide.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal, NamedTuple

CHAIN_BYTES = 16

# "process" survives the death of the process at any moment, "power" that of the machine too
Durability = Literal["process", "power"]


class NewEvent(NamedTuple):
    """An event on its way into a log; the store adds run, seq, time and chain."""

    type: str
    path: str = ""
    visit: tuple[int, ...] = ()
    attempt: int = 0
    payload: str = "{}"


class Record(NamedTuple):
    """An event as a log holds it; `at` is in nanoseconds since the epoch."""

    run: str
    seq: int
    at: int
    type: str
    path: str
    visit: tuple[int, ...]
    attempt: int
    payload: str
    chain: bytes


class Owner(NamedTuple):
    """Who holds a run; `since` is in nanoseconds since the epoch, 0 where it is not known."""

    pid: int
    host: str
    since: int
    note: str


class RunInfo(NamedTuple):
    """A run at a glance; `owner` is None unless a living process holds it now.

    A fork has a `parent`, whose events up to `forked_at` are its own first ones.
    """

    run: str
    name: str
    created_at: int
    head: int
    owner: Owner | None
    parent: str | None = None
    forked_at: int = 0


class Removed(NamedTuple):
    """How much `remove_runs` has removed; events that a fork shared count with their owner."""

    runs: int
    events: int
    snapshots: int


class Finding(NamedTuple):
    """Something that `verify` or `check` found wrong.

    `kind` is one of: integrity, gap, chain, payload, head, snapshot, blob-missing, blob-corrupt.
    """

    kind: str
    run: str | None
    seq: int | None
    what: str

    def __str__(self) -> str:
        place = "" if self.run is None else f"run {self.run!r}"
        place += "" if self.seq is None else f", seq {self.seq}"
        return f"{place}: {self.what}" if place else self.what


def durability_of(word: str) -> Durability:
    if word not in ("process", "power"):
        raise ValueError(f"durability is {word!r}; expected 'process' or 'power'")
    return word


def spell_visit(visit: tuple[int, ...]) -> str:
    return ".".join(map(str, visit))


def parse_visit(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("."))) if text else ()


def genesis(run: str) -> bytes:
    """The chain before a run's first event: equal events of two runs must not look the same."""
    return blake2b(run.encode(), digest_size=CHAIN_BYTES, person=b"event-store run").digest()


def graft(chain: bytes, run: str) -> bytes:
    """What a fork's first own event is chained to: `chain` is its parent's where they part."""
    body = chain + run.encode()
    return blake2b(body, digest_size=CHAIN_BYTES, person=b"event-store fork").digest()


def link(
    previous: bytes, seq: int, type_: str, path: str, visit: str, attempt: int, payload: str
) -> bytes:
    """The chain of one event; the lengths make the joined text unambiguous, payload last."""
    body = f"{seq} {attempt} {visit} {len(type_)} {len(path)}\n{type_}{path}{payload}"
    return blake2b(previous + body.encode(), digest_size=CHAIN_BYTES).digest()


def tie(chain: bytes, key: str, body: bytes) -> bytes:
    """What ties a snapshot to the history it was folded from: `chain` is that of its seq."""
    name = key.encode()
    digest = blake2b(digest_size=CHAIN_BYTES, person=b"event-store snap")
    digest.update(b"%d %d\n" % (len(chain), len(name)))
    digest.update(chain + name)
    digest.update(body)
    return digest.digest()


def fits(root: str, seq: int, chain: bytes | None, key: str, body: bytes, digest: bytes) -> bool:
    """Whether a snapshot was made of the history that ends with `chain`, None where it is gone.

    `root` is the run with whose name the chain begins.
    """
    if seq == 0:
        chain = genesis(root)
    if type(chain) is not bytes or type(body) is not bytes:  # gone, or damaged
        return False
    return tie(chain, key, body) == digest

"""Feeds: which productions of an async loop are due, and what they see.

Rules:

1. Production k is due once turn k - buffer_size has ended, so at most `buffer_size` items are
   made or being made, the one that is consumed included. A *turn* is an item consumed, or found
   too old and discarded.
2. Being made are the first `producers` of those due and not made. That follows from the feed alone,
   so nothing needs to record that a production began.
3. "paced": production k sees the state as turn k - buffer_size left it (the first ones as the
   loop was entered), whenever it runs. "free": the latest.
4. While a checkpoint is due, and once the loop is to end, nothing further is begun. But where
   productions own a stateful resource, a paced loop that ends makes all that were due: how often
   the resource was used must not depend on chance. A free one lets go of what is being made.
5. A production that fails takes its place in the buffer, and fails the loop at its turn: whether an
   item that nobody consumes was begun is chance. But where productions own a resource, what failed
   may have left it half changed, so there the loop fails at once.
"""

from __future__ import annotations

from typing import NamedTuple

from kitchen.machine.chart import Program
from kitchen.machine.events import Address, Failure
from kitchen.machine.state import Control, Feed, Made
from kitchen.workflow.ir import PRODUCER, AsyncLoopNode


class Seen(NamedTuple):
    """What a production sees: the state at `seq` (None: the latest), and its version."""

    seq: int | None
    version: int


def node_of(program: Program, path: str) -> AsyncLoopNode:
    """The async loop at a path."""
    node = program.nodes[path]
    assert isinstance(node, AsyncLoopNode)
    return node


def production(loop: Address, index: int) -> Address:
    """The address of a production."""
    return Address(f"{loop.path}/{PRODUCER}", (*loop.visit, index))


def loop_of(address: Address) -> Address:
    """The loop of a production, or of a `stop_when`. (The loop itself may have such a name too.)"""
    return Address(address.path.rpartition("/")[0], address.visit[:-1])


def being_made(node: AsyncLoopNode, feed: Feed) -> tuple[int, ...]:
    """The indices of the productions that are under way."""
    if feed.stop and node.pacing == "free":
        return ()
    bound = min(
        limit for limit in (feed.turn + node.buffer_size, feed.hold, feed.last) if limit is not None
    )
    there = {made.number for made in feed.made}
    open_ones = (index for index in range(feed.turn, bound) if index not in there)
    return tuple(index for _, index in zip(range(node.producers), open_ones, strict=False))


def all_being_made(program: Program, control: Control) -> list[Address]:
    """The addresses of all productions that are under way, loop by loop."""
    found: list[Address] = []
    for loop, feed in control.feeds.items():
        found += [production(loop, i) for i in being_made(node_of(program, loop.path), feed)]
    return found


def seen(node: AsyncLoopNode, feed: Feed, index: int) -> Seen:
    """What the production of that index sees."""
    if node.pacing == "free":
        return Seen(None, feed.consumed)
    turn = index - node.buffer_size
    if turn < 0:
        return Seen(feed.entered, 0)
    return Seen(*feed.ended[turn - feed.turn])


def next_item(feed: Feed) -> Made | None:
    """The item of this turn, if it is made."""
    return next((made for made in feed.made if made.number == feed.turn), None)


def first_item(feed: Feed) -> Made | None:
    """The item that is discarded next: where the loop is left, some before it may not be made."""
    return next(iter(feed.made), None) if feed.stop else next_item(feed)


def stale(node: AsyncLoopNode, feed: Feed, item: Made) -> bool:
    """Whether more items than allowed were consumed since the state that it was made from."""
    limit = node.max_staleness
    return limit is not None and feed.consumed - item.version > limit


def add(feed: Feed, item: Made, *, owned: bool) -> Feed:
    """The feed with one more item in its buffer."""
    made = tuple(sorted((*feed.made, item), key=lambda each: each.number))
    return feed._replace(made=made, owned=feed.owned or owned)


def end_turn(node: AsyncLoopNode, feed: Feed, seq: int, *, consumed: bool) -> Feed:
    """The feed once the item of this turn is done with, at `seq`."""
    count = feed.consumed + consumed
    return feed._replace(
        turn=feed.turn + 1,
        consumed=count,
        made=tuple(made for made in feed.made if made.number > feed.turn),
        ended=(*feed.ended, (seq, count))[-node.buffer_size :],
    )


def stop(node: AsyncLoopNode, feed: Feed) -> Feed:
    """The feed once it is known that its loop will end with this turn."""
    if feed.stop:
        return feed
    under_way = being_made(node, feed)
    last = under_way[-1] + 1 if under_way else feed.turn
    if feed.owned:
        last = feed.turn + node.buffer_size
    return feed._replace(stop=True, last=last)


def broken(node: AsyncLoopNode, feed: Feed) -> Failure | None:
    """Why the item of this turn could not be made, if that is so."""
    item = next_item(feed)
    return None if item is None or stale(node, feed, item) else item.failure


def make_again(control: Control) -> None:
    """What could not be made is due once more."""
    for loop, feed in control.feeds.items():
        if any(item.failure is not None for item in feed.made):
            made = tuple(item for item in feed.made if item.failure is None)
            control.feeds[loop] = feed._replace(made=made)


def hold(program: Program, control: Control) -> None:
    """Begin nothing further: a checkpoint is due."""
    for loop, feed in control.feeds.items():
        under_way = being_made(node_of(program, loop.path), feed)
        held = under_way[-1] + 1 if under_way else feed.turn
        control.feeds[loop] = feed._replace(hold=held)


def release(control: Control) -> None:
    """Go on: the checkpoint is saved."""
    for loop, feed in control.feeds.items():
        if feed.hold is not None:
            control.feeds[loop] = feed._replace(hold=None)

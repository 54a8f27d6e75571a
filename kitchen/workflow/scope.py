"""What one block of a workflow holds while it is being written.

Rules:

1. Everything below a block is known by its path from that block: lines, bindings, writes. When
   the block ends, the block around it takes them over under the block's segment.
2. The block around is asked before it takes anything over: a refusal leaves nothing behind.
3. Two branches of one parallel that say they write one key, and all the instances of a parallel
   over, need a `merge` for it. What an inner parallel merged is one write of its branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kitchen.workflow.definition import Binding
from kitchen.workflow.ir import Node, join
from kitchen.workflow.where import Site, fault

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Written:
    """A stage that says it writes a key. `site`: the call that put it here; `own`: its line."""

    path: str
    site: Site
    own: Site

    def under(self, segment: str) -> Written:
        """The same, seen from the block around."""
        return replace(self, path=join(segment, self.path))

    @property
    def branch(self) -> str:
        """The child of the block that holds this, in which the stage stands."""
        return self.path.partition("/")[0]


@dataclass(slots=True)
class Scope:
    """What one block holds so far. `segment`: the part of the path its children stand under.

    `has_item`: ctx.item(name) is read in it. `forks`: each of its children is a branch.
    `may_be_empty`: it says something without a node in it.
    """

    kind: str
    name: str
    site: Site
    segment: str = ""
    nodes: list[Node] = field(default_factory=list[Node])
    sites: dict[str, Site] = field(default_factory=dict[str, Site])
    resources: dict[str, Site] = field(default_factory=dict[str, Site])
    bindings: dict[str, Binding] = field(default_factory=dict[str, Binding])
    writes: dict[str, Written] = field(default_factory=dict[str, Written])
    merge: frozenset[str] = frozenset()
    can_save: bool = False
    has_item: bool = False
    forks: bool = False
    may_be_empty: bool = False

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r}" if self.name else f"the {self.kind}"

    def refuse_empty(self) -> None:
        """Refuses a block that says nothing."""
        if not self.nodes and not self.may_be_empty:
            hint = "put a stage into it, or leave it out"
            raise fault(self.site, f"{self} is empty", hint)

    def refuse_writes(self, found: Mapping[str, Written]) -> None:
        """Refuses keys that another branch of this parallel says it writes too."""
        if not self.forks:
            return
        for key, second in found.items():
            first = self.writes.get(key)
            if first is None or first.branch == second.branch or key in self.merge:
                continue
            site = second.site
            raise fault(
                site,
                f"the branches {first.branch!r} and {second.branch!r} of {self} of "
                f"{self.site.seen_from(site)} both write the state key {key!r}: the stages "
                f"{first.path!r} of {first.own.seen_from(site)} and {second.path!r} of "
                f"{second.own.seen_from(site)}",
                f"say what becomes of both, wf.parallel(merge={{{key!r}: 'sum'}}) or another "
                "reducer; or write different keys",
            )

    def refuse_own_writes(self) -> None:
        """Refuses keys that every instance of this parallel over says it writes."""
        if self.forks or self.kind != "parallel":
            return
        for key, written in self.writes.items():
            if key in self.merge:
                continue
            site = written.site
            own = "" if written.own == site else f" of {written.own.seen_from(site)}"
            raise fault(
                site,
                f"the stage {written.path!r}{own} writes the state key {key!r} in every instance "
                f"of {self} of {self.site.seen_from(site)}",
                f"say what becomes of all their values: wf.parallel({self.name!r}, over=..., "
                f"merge={{{key!r}: 'sum'}}) or another reducer",
            )

    def take_over(self, inner: Scope) -> None:
        """What an ended block inside this one held is known here from now on."""
        for path, site in inner.sites.items():
            self.sites[join(inner.segment, path)] = site
        for path, binding in inner.bindings.items():
            # "" is the block's own: a loop's over, a conditional's predicate. What begins with
            # "?" belongs to it too.
            own = path.startswith("?")
            self.bindings[inner.segment + path if own else join(inner.segment, path)] = binding
        for key, written in inner.writes.items():
            self.writes.setdefault(key, written.under(inner.segment))

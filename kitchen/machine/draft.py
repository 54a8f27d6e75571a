"""The decision as it grows: a draft of the control, and the facts and commands so far.

Rules:

1. A draft moves by the facts that are added to it, with the function that folding uses.
2. `settle` takes every token that has landed on until it waits for a command: the next item of a
   collection, a decision that the memo holds and the end of the run need no asking.
3. A parallel is kept full: while branches wait and fewer run than may, the next is begun. When
   all are done it is joined, at once if nothing has to be reduced or compared.
4. What a failure ends is `failures`' business. Behind a rewind, what has failed is not asked again.
5. A command that too many processes died of is not asked for again: that ends the run instead.
6. A stage whose effect must not happen twice is not asked for where it is known what it had done.
"""

from __future__ import annotations

from collections.abc import Collection

from kitchen.errors import IllegalOutcome
from kitchen.machine import commands as C
from kitchen.machine import events as E
from kitchen.machine import failures, feeds, lanes, stages
from kitchen.machine.chart import Program
from kitchen.machine.commands import Command, Input
from kitchen.machine.control import (
    CONTROL,
    advance,
    next_branch,
    running,
)
from kitchen.machine.events import Address, Event, Fact, Visit, spell
from kitchen.machine.failures import CRASH_BUDGET, died_too_often, spot
from kitchen.machine.layout import Role
from kitchen.machine.outstanding import command_at, is_ended, is_halted, within
from kitchen.machine.state import ACTIVE, Fork, Once, Place, State, Verdict
from kitchen.workflow.ir import StreamLoopNode, TimeoutNode

# Events without fields, made once.
_TAKEN, _EXITED, _STALE = E.ItemTaken(), E.LoopExited(), E.ItemDiscarded()
_ENTERED, _STOPPED = E.LoopEntered(E.OpenItems()), E.ConditionEvaluated(True)
_BEGUN, _FINISHED, _JOINED = E.BranchStarted(), E.BranchCompleted(), E.BranchesJoined()

_CERTAIN: dict[Role, Event] = {
    Role.END: E.RunCompleted(),
    Role.FINISH: _FINISHED,
    Role.DISARM: E.TimeLimitEnded(),
    Role.BEGIN: _ENTERED,
}


class Draft:
    """The decision as it grows, on a copy of where the run stands."""

    __slots__ = (
        "commands",
        "control",
        "facts",
        "filling",
        "given",
        "going",
        "known",
        "memo",
        "program",
        "seq",
        "state",
    )

    def __init__(self, program: Program, state: State, given: Input) -> None:
        self.program = program
        self.state = state
        self.given = given
        self.control = state.core.control.copy()
        self.facts: list[Fact] = []
        self.commands: list[Command] = []
        self.memo = state.memo
        self.known = True
        self.going = True
        self.seq = state.seq
        self.filling: set[Address] = set()

    def emit(
        self, event: Event, path: str = "", visit: Visit = (), attempt: int = 0
    ) -> tuple[Address, ...]:
        """Add a fact, and let it move the draft; where tokens have newly landed."""
        fact = Fact(event, path, visit, attempt)
        self.facts.append(fact)
        self.seq += 1
        if type(event) in CONTROL:
            return advance(self.program, self.control, fact, self.seq)
        return ()

    def add(self, facts: list[Fact]) -> None:
        """Add facts that move nothing."""
        self.facts += facts
        self.seq += len(facts)

    def place(self, address: Address, *roles: Role) -> Place:
        """The token at an address, if it rests on a leaf of such a role."""
        place = self.control.active.get(address)
        if place is None or not self.goes_on(address):
            raise self.refusal(address, place)
        if self.program.leaves[place.leaf].role not in roles:
            raise self.refusal(address, place)
        return place

    def goes_on(self, address: Address) -> bool:
        """Whether the run goes on, and no branch around the address has failed."""
        return self.control.status == ACTIVE and not is_halted(self.control, address)

    def attempt(self, address: Address, attempt: int) -> None:
        place = self.place(address, Role.STAGE)
        if not place.open or place.attempt != attempt:
            raise self.refusal(address, place)

    def refusal(self, address: Address | None, place: Place | None) -> IllegalOutcome:
        where = "the run" if address is None else spell(*address)
        role = self.program.leaves[place.leaf].role.value if place else "nothing"
        detail = f" (attempt {place.attempt}, {'open' if place.open else 'ended'})" if place else ""
        return IllegalOutcome(
            f"{type(self.given).__name__} for {where} was not asked for: the run is "
            f"{self.control.status} at seq {self.state.seq}, and active there is {role}{detail}",
            hint="this is a fault of kitchen; please report it with the log",
        )

    def touch(self, names: Collection[str], address: Address, attempt: int = 0) -> tuple[str, ...]:
        """Tell first touches, also on each side of a parallel; the names that are stateful."""
        if not names:
            return ()
        core = self.state.core
        known = self.state.stateful(names)
        for name in known:
            sides = lanes.around(self.program, address)
            claimed = all(
                f"resource {name}" in core.claims.get(lanes.owner_of(lane, address.visit), ())
                for lane, _ in sides
            )
            if not core.resources[name].touched or not claimed:
                self.emit(E.ResourceTouched(name), *address, attempt)
        return known

    def looked(self, names: Collection[str], address: Address) -> tuple[str, ...]:
        """What is to be told of peeks: at stateful resources, by one of several sides."""
        if not names or address.path not in self.program.lanes:
            return ()
        return self.state.stateful(names)

    def clash(
        self,
        address: Address,
        keys: Collection[str] = (),
        touched: Collection[str] = (),
        looked: Collection[str] = (),
    ) -> E.Failure | None:
        """The failure that it is to write these keys and use these resources here, if it is."""
        core = self.state.core
        if not core.claims:
            return None
        uses = self.state.stateful(touched), self.state.stateful(looked)
        found = lanes.conflict(self.program, core, address, keys, *uses)
        return None if found is None else lanes.told(self.program, found)

    # --- going on where nothing has to be asked ---

    def settle(self, landed: tuple[Address, ...]) -> None:
        """From where tokens landed, decide what needs no asking, until each waits for a command."""
        while landed and self.control.status == ACTIVE:
            for other in landed[1:]:
                self.settle((other,))
            landed = self._step(landed[0])

    def _step(self, address: Address) -> tuple[Address, ...]:
        """One thing that needs no asking; where that led."""
        place = self.control.active[address]
        role = self.program.leaves[place.leaf].role
        if self.state.verdicts:
            stands = spot(self.program, self.control, address, place)
            verdict = self.state.verdicts.get(stands)
            if verdict is not None:
                self.judge(verdict)
                return ()
        if role is Role.STAGE:
            return stages.begin(self, address, place)
        if role is Role.TAKE and (failure := self._broken(address)):
            self.fail(feeds.production(address, self.control.feeds[address].turn), failure)
            return ()
        decided = self._decided(address, role)
        if decided is not None:
            event, visit = decided
            landed = self.emit(event, address.path, visit)
            if role is Role.FORK:
                self.fill(address)
            elif role is Role.FINISH:
                self.fill(self._parallel(address))
            return landed
        command = command_at(self.program, self.control, address, place)
        return () if command is None else self.ask(address, command)

    def _decided(self, address: Address, role: Role) -> tuple[Event, Visit] | None:
        """The event that takes a token on without asking anybody, if there is one."""
        path, visit = address
        certain = _CERTAIN.get(role)
        if certain is not None:
            return certain, visit
        match role:
            case Role.NEXT:
                frame = self.control.frames[address]
                if frame.current + 1 < frame.total and not frame.stop:
                    return _TAKEN, (*visit, frame.current + 1)
                return _EXITED, visit
            case Role.ARM:
                node = self.program.nodes[path]
                assert isinstance(node, TimeoutNode)
                return E.TimeLimitStarted(node.seconds), visit
            case Role.ENTER if isinstance(self.program.nodes[path], StreamLoopNode):
                return _ENTERED, visit
            case Role.TURN if self.control.feeds[feeds.loop_of(address)].stop:
                return _STOPPED, visit
            case Role.TAKE:
                return self._taken(address)
            case Role.ENTER | Role.ASK | Role.TURN | Role.FORK if known := self._known(address):
                return known, visit
            case _:
                return None

    def _broken(self, loop: Address) -> E.Failure | None:
        return feeds.broken(feeds.node_of(self.program, loop.path), self.control.feeds[loop])

    def _taken(self, loop: Address) -> tuple[Event, Visit] | None:
        """The consumer goes on with the next item, if it is made."""
        feed = self.control.feeds[loop]
        item = feeds.next_item(feed)
        if item is None:
            return None
        old = feeds.stale(feeds.node_of(self.program, loop.path), feed, item)
        return (_STALE if old else _TAKEN), (*loop.visit, item.number)

    def ask(self, address: Address, command: Command, attempt: int = 0) -> tuple[()]:
        """Have a command performed, unless too many processes died of it already."""
        times = self.state.crashes.get(address, 0) if self.state.crashes else 0
        if times >= CRASH_BUDGET:  # no handler's business: what comes out must not depend on kills
            failures.end(self, address, died_too_often(times))
            return ()
        if attempt:
            self.emit(stages.STARTED, *address, attempt)
        self.commands.append(command)
        return ()

    def _known(self, address: Address) -> E.Event | None:
        """A decision that the memo holds and that touched nothing."""
        known = self.memo.get(address)
        asked = (E.ConditionEvaluated, E.LoopEntered, E.BranchesStarted, E.ItemProduced)
        return known if isinstance(known, asked) and not known.touched else None

    # --- parallels ---

    def fill(self, parallel: Address) -> None:
        """Begin branches as long as more may run; join when all are done."""
        if parallel in self.filling:
            return  # the loop below goes on by itself: a thousand branches, one stack frame
        self.filling.add(parallel)
        fork = self._begin(parallel)
        self.filling.discard(parallel)
        if fork is None or not self.goes_on(parallel):
            return
        if fork.done < fork.total:
            if fork.started == fork.total and not running(
                self.program, self.control, parallel, fork
            ):
                failures.fail_parallel(self, parallel)
        elif lanes.merged_keys(self.program, parallel.path) or self.in_branch(parallel):
            if C.JoinBranches(parallel) not in self.commands:
                self.ask(parallel, C.JoinBranches(parallel))
        else:
            self.settle(self.emit(_JOINED, *parallel))

    def _begin(self, parallel: Address) -> Fork | None:
        """Begin branches as long as more may run; how the parallel then stands."""
        control = self.control
        while (fork := control.forks.get(parallel)) and control.status == ACTIVE:
            branch = next_branch(self.program, control, parallel, fork)
            full = running(self.program, control, parallel, fork) >= fork.limit
            if branch is None or full or is_halted(control, parallel):
                break
            again = branch in control.parked
            self.settle(self.emit(_BEGUN, *branch))
            if again:
                self.go_on(branch)
        return fork

    def go_on(self, branch: Address | None = None) -> None:
        """From every active place, or those in a branch: take it up again."""
        control = self.control
        standing = list(control.failing)
        for parallel in list(control.forks) if self.state.verdicts else ():
            verdict = self.state.verdicts.get(parallel)
            here = branch is None or within(parallel, branch)
            if here and verdict is not None and self.goes_on(parallel):
                self.judge(verdict)
        for address, place in list(control.active.items()):
            here = branch is None or within(address, branch)
            if here and control.active.get(address) is place and self.goes_on(address):
                self.settle((address,))
        for parallel in list(control.forks):
            if branch is None or within(parallel, branch):
                self.fill(parallel)
        for block in standing:
            here = branch is None or within(block, branch)
            going = control.status == ACTIVE and block in control.failing
            if here and going and not is_ended(control, block):
                failures.unwind(self, block)

    def in_branch(self, address: Address) -> bool:
        """Whether an address lies in a branch."""
        return any(lane.data for lane, _ in lanes.around(self.program, address))

    def _parallel(self, branch: Address) -> Address:
        parallel = lanes.parallel_of(self.program, branch)
        assert parallel is not None
        return parallel

    # --- async loops ---

    def produce(self, asked: set[Address]) -> None:
        """Have made what is due, but for what has been asked for; what the memo holds is not made
        again."""
        while self.control.status == ACTIVE:
            under_way = feeds.all_being_made(self.program, self.control)
            due = next((a for a in under_way if a not in asked), None)
            if due is None:
                return
            asked.add(due)
            if is_halted(self.control, due):
                continue
            known = self._known(due)
            if known is None:
                self.ask(due, C.Produce(due))
            else:
                self.emit(known, *due)
                self.arrived(feeds.loop_of(due))

    def arrived(self, loop: Address) -> None:
        """An item was made: who waited for it, or for the last one to be made, goes on."""
        for address, place in list(self.control.active.items()):
            role = self.program.leaves[place.leaf].role
            if role is Role.SAVE or (address == loop and role in (Role.TAKE, Role.LEAVE)):
                self.settle((address,))

    # --- failures ---

    def fail(
        self, address: Address, failure: E.Failure, touched: Collection[str] = (), seq: int = 0
    ) -> None:
        """What follows from a failure for good at an address."""
        target = failures.target_of(self.program, self.control, address)
        failures.fail(self, target, address, failure, touched, seq)

    def judge(self, verdict: Verdict) -> None:
        """It has failed before a rewind, so it fails."""
        target = failures.Target(verdict.ends, verdict.block)
        failures.fail(self, target, verdict.at, verdict.failure, undo=verdict.undo, judged=True)

    def rewind(self, names: Collection[str], address: Address, seq: int) -> None:
        """Go back to the latest cut not after `seq`: at an address, these were left half changed."""
        to = self.state.cut_before(seq)
        where = spell(*address, self.program.loops.get(address.path))
        why = (
            f"{where} failed, and {', '.join(names) or 'a loop'} was touched: what came after event {to} is "
            f"done again, {self.seq - to} events"
        )
        self.known = self.going = False
        self.commands.clear()
        self.emit(E.RunRewound(to, tuple(names), why))

    def diverge(self, address: Address, key: str, recorded: str, found: str) -> None:
        """Tell that the past did not come out the same; from here on the memo is void."""
        self.memo = {at: o.unsure() for at, o in self.memo.items() if isinstance(o, Once)}
        self.emit(E.RewindDiverged(key, recorded, found), *address)

"""The ring under Hypothesis: anything that can happen happens, in any order, and the promises hold.

The rules are what callers, agents, operators, the log and time can do to the core; `tests.core.world`
checks the invariants at every effect, and after calm.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from coordinator.core import inputs
from coordinator.core.inputs import WaitFor
from coordinator.core.states import State
from dtp import Decision, Gtrid, Outcome, Reason, Vote, Xid
from tests.core.servers import Server
from tests.core.world import ID, NAMES, World

names = st.sampled_from(NAMES)
# The newest transactions most often; 0 is the newest.
recent = st.integers(0, 5)
waits = st.sampled_from(WaitFor)
keys = st.sampled_from(("", "", "k", "l"))
timeouts = st.sampled_from((None, 0.5, 60.0))
# Mostly yes: transactions that always fail find little.
votes = st.sampled_from((Vote.OK,) * 6 + (Vote.READ_ONLY, Vote.ROLLBACK))
deliveries = st.lists(
    st.tuples(st.sampled_from(("execute", "report", "report", "flush", "fence", "scan")), names, votes),
    min_size=5,
    max_size=25,
)
outcomes = st.sampled_from((None, *Outcome))


class Ring(RuleBasedStateMachine):
    """One world and all that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.gtrids: list[str] = []
        self.bits = 0
        for name in NAMES:
            self.world.connect(self.world.servers[name])
        self.world._deliver_all()

    def teardown(self) -> None:
        self.world.settle()
        self.world.check_final()

    def gtrid(self, back: int) -> str:
        """A transaction: often one that is open, the newest first; sometimes one that nobody has begun."""
        newest = self.gtrids[::-1]
        return newest[back] if back < len(newest) else str(Gtrid(ID, 1, 999))

    def feed(self, event: inputs.Input) -> None:
        before = set(self.world.core.open)
        self.world.feed(event)
        self.gtrids += [g for g in self.world.core.open if g not in before]

    # Callers

    @rule(timeout=timeouts, key=keys, content=st.booleans())
    def begin(self, timeout: float | None, key: str, content: bool) -> None:
        self.bits = (self.bits + 7919) % 65536
        self.world.key = key
        ticket = self.world.new_ticket("")
        self.feed(inputs.BeginRequested(ticket, timeout, self.bits, True, key, b"AB" if content else b"CD"))

    @rule(
        branches=st.lists(names, max_size=3),
        in_order=st.booleans(),
        key=keys,
        wait=waits,
        room=st.integers(0, 9),
    )
    def run_at_once(self, branches: list[str], in_order: bool, key: str, wait: WaitFor, room: int) -> None:
        self.world.key = key
        ticket = self.world.new_ticket("")
        run = tuple(inputs.RunBranch(name, None) for name in branches)
        self.feed(inputs.RunRequested(ticket, run, None, wait, in_order, 1, room > 0, key, b"AB"))

    @rule(back=recent, name=names)
    def enlist(self, back: int, name: str) -> None:
        server = self.world.servers[name]
        if server.connected and self.gtrids:
            server.enlist(self.gtrid(back))
            self.feed(server.reports.pop())

    @rule(back=recent, wait=waits)
    def commit(self, back: int, wait: WaitFor) -> None:
        gtrid = self.gtrid(back)
        self.feed(inputs.CommitRequested(self.world.new_ticket(gtrid), gtrid, wait))

    @rule(workers=st.sets(names, min_size=1), key=keys, wait=waits, timeout=timeouts)
    def transact(self, workers: set[str], key: str, wait: WaitFor, timeout: float | None) -> None:
        """The usual: begin, work at some participants, commit."""
        count = len(self.gtrids)
        self.begin(timeout, key, True)
        if len(self.gtrids) > count:
            for name in sorted(workers):
                self.enlist(0, name)
                self.execute(name, Vote.OK, 1)
            self.commit(0, wait)

    @rule(back=recent)
    def roll_back(self, back: int) -> None:
        gtrid = self.gtrid(back)
        self.feed(inputs.RollbackRequested(self.world.new_ticket(gtrid), gtrid))

    @precondition(lambda self: self.world.waiting)
    @rule(index=recent)
    def leave(self, index: int) -> None:
        ticket = sorted(self.world.waiting)[index % len(self.world.waiting)]
        gtrid = self.world.waiting[ticket]
        waiters = self.world.core.open[gtrid].waiters if gtrid in self.world.core.open else ()
        if any(w.ticket == ticket for w in waiters):
            self.feed(inputs.CallerLeft(gtrid, ticket))
            del self.world.waiting[ticket]

    # Operators

    @rule(back=recent, action=st.sampled_from(Decision))
    def resolve(self, back: int, action: Decision) -> None:
        gtrid = self.gtrid(back)
        self.feed(inputs.ResolveRequested(self.world.new_ticket(gtrid), gtrid, action, "why", "who"))

    @rule(back=recent)
    def forget(self, back: int) -> None:
        heuristic = [g for g, t in self.world.core.open.items() if t.state is State.HEURISTIC]
        gtrid = heuristic[back % len(heuristic)] if heuristic else self.gtrid(back)
        self.feed(inputs.ForgetRequested(self.world.new_ticket(gtrid), gtrid))

    @rule(name=names)
    def recover(self, name: str) -> None:
        self.feed(inputs.RecoveryRequested(name))

    @precondition(lambda self: any(s.prepared() for s in self.world.servers.values()))
    @rule(index=recent, state=st.sampled_from(("committed", "rolled_back")), everywhere=st.booleans())
    def interfere(self, index: int, state: str, everywhere: bool) -> None:
        prepared = [(s, str(x.ours())) for s in self.world.servers.values() for x in s.prepared()]
        chosen, gtrid = prepared[index % len(prepared)]
        for server, other in prepared:
            if other == gtrid and (everywhere or server is chosen):
                server.interfere(gtrid, state)
        self.world.interfered.add(gtrid)

    # Agents

    @rule(name=names, vote=votes, busy=st.integers(0, 5))
    def execute(self, name: str, vote: Vote, busy: int) -> None:
        server = self.world.servers[name]
        if server.commands:
            server.execute(vote, busy == 0)

    @rule(steps=deliveries)
    def deliver(self, steps: list[tuple[str, str, Vote]]) -> None:
        """Some of what is under way arrives."""
        for what, name, vote in steps:
            if what == "execute":
                self.execute(name, vote, 1)
            elif what == "report":
                self.report(name, False)
            elif what == "flush":
                self.world.flush(1)
            elif what == "fence" and self.world.fences:
                self.world.answer_fence(0)
            elif what == "scan" and self.world.scans:
                self.world.answer_scan(0)

    @rule(steps=deliveries)
    def deliver_more(self, steps: list[tuple[str, str, Vote]]) -> None:
        """The same again: a rule for each thing that goes wrong would leave little that goes well."""
        self.deliver(steps)

    @rule(vote=votes, name=names, flush=st.booleans())
    def deliver_all(self, vote: Vote, name: str, flush: bool) -> None:
        """Everything arrives, and one participant votes as it likes; perhaps nothing becomes durable."""
        for _ in range(3):
            for server in self.world.servers.values():
                while server.commands:
                    server.execute(vote if server.name == name else Vote.OK, False)
                while server.reports:
                    self.feed(server.reports.popleft())
            if flush:
                self.world.flush(9)
        while self.world.fences:
            self.world.answer_fence(0)
        while self.world.scans:
            self.world.answer_scan(0)

    @rule(name=names)
    def execute_late(self, name: str) -> None:
        if self.world.servers[name].zombies:
            self.world.servers[name].execute_late()

    @rule(name=names, all_=st.booleans())
    def report(self, name: str, all_: bool) -> None:
        reports = self.world.servers[name].reports
        while reports:
            self.feed(reports.popleft())
            if not all_:
                break

    @rule(back=recent, name=names, vote=st.sampled_from(Vote))
    def stray_vote(self, back: int, name: str, vote: Vote) -> None:
        """A vote from someone who was not asked, or a second one."""
        gtrid = self.gtrid(back)
        transaction = self.world.core.open.get(gtrid)
        branch = transaction.branches.get(name) if transaction else None
        if branch is None or not branch.sent or branch.vote is not None:
            before = self.picture()
            self.feed(inputs.BranchVoted(name, self.world.servers[name].link, gtrid, vote))
            assert self.picture() == before

    @rule(back=recent, name=names, outcome=outcomes)
    def stray_end(self, back: int, name: str, outcome: Outcome | None) -> None:
        """An end of a branch that was not asked to end."""
        gtrid = self.gtrid(back)
        transaction = self.world.core.open.get(gtrid)
        if transaction is None or transaction.state is State.ACTIVE or name not in transaction.branches:
            before = self.picture()
            self.feed(inputs.BranchFinished(name, self.world.servers[name].link, gtrid, outcome))
            assert self.picture() == before

    @rule(name=names, pairs=st.lists(st.tuples(recent, recent), max_size=4))
    def tell_waits(self, name: str, pairs: list[tuple[int, int]]) -> None:
        """Who waits for whom at a participant, true or not."""
        waits = tuple(inputs.Wait(self.gtrid(waiter), self.gtrid(blocker)) for waiter, blocker in pairs)
        self.feed(inputs.WaitsReported(name, self.world.servers[name].link, waits))

    @rule(name=names, executed=st.integers(0, 3))
    def lose(self, name: str, executed: int) -> None:
        server = self.world.servers[name]
        if server.connected:
            self.world.lose(server, executed)
        else:
            self.feed(inputs.AgentLost(name, 0, "no answer"))

    @rule(name=names)
    def connect(self, name: str) -> None:
        self.world.connect(self.world.servers[name])

    @precondition(lambda self: self.world.fences)
    @rule(index=st.integers(0, 9), held=st.integers(0, 9))
    def answer_fence(self, index: int, held: int) -> None:
        index %= len(self.world.fences)
        if held:
            self.world.answer_fence(index)
        else:
            fence = self.world.fences.pop(index)
            self.feed(inputs.AgentHeld(fence.participant, fence.link, Reason.PARTICIPANT_MISMATCH, "another"))

    @precondition(lambda self: self.world.scans)
    @rule(index=st.integers(0, 9))
    def look(self, index: int) -> None:
        self.world.look(index % len(self.world.scans))

    @precondition(lambda self: self.world.scans)
    @rule(index=st.integers(0, 9), epoch=st.integers(1, 99), bytes_=st.binary(max_size=24))
    def answer_scan(self, index: int, epoch: int, bytes_: bytes) -> None:
        """The scan also lists what is not ours to touch: others' branches, and ids never given by the log."""
        others = (
            Xid(1, bytes_, b"0001"),
            Xid.of(str(Gtrid("othr", epoch, 1 << 16)), 1),
            Xid.of(str(Gtrid(ID, self.world.epoch + epoch, 1 << 16)), 1),
            Xid.of(str(Gtrid(ID, self.world.epoch, 1 << 40)), 2),
        )
        before = {g for s in self.world.servers.values() for g, _ in s.commands}
        self.world.answer_scan(index % len(self.world.scans), others)
        after = {g for s in self.world.servers.values() for g, _ in s.commands}
        assert not {x.gtrid.decode("latin-1") for x in others} & (after - before)

    # The log, the process and time

    @rule(count=st.integers(1, 3))
    def flush(self, count: int) -> None:
        self.world.flush(count)

    @rule()
    def rotate(self) -> None:
        self.world.rotate()

    @rule(surviving=st.integers(0, 3))
    def crash(self, surviving: int) -> None:
        self.world.crash(surviving)

    @rule(really=st.integers(0, 9))
    def drain(self, really: int) -> None:
        if really == 7:
            self.feed(inputs.DrainStarted())

    @rule(seconds=st.sampled_from((0.0, 0.3, 1.0, 6.0, 30.0)))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.feed(inputs.TimePassed())

    def picture(self) -> object:
        """The live state, to compare."""
        return [
            (
                g,
                t.state,
                t.decision,
                [(b.participant, b.vote, b.outcome, b.sent) for b in t.branches.values()],
            )
            for g, t in self.world.core.open.items()
        ]


TestRing = Ring.TestCase
TestRing.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_the_final_check_finds_half_a_commit() -> None:
    world = World()
    gtrid = str(Gtrid(ID, 1, 1 << 16))
    for name, state in (("p1", "committed"), ("p2", "rolled_back")):
        server: Server = world.servers[name]
        server.branches[gtrid] = state
        server.worked.add(gtrid)
        world.key_of[gtrid] = ""
    with pytest.raises(AssertionError, match="not atomic"):
        world.check_final()

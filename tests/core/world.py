"""A world for the core: servers, a log that becomes durable when the test says so, and the invariants.

Every effect goes through `World.feed`, which performs it here and checks what must hold at that moment;
`check_final` checks what must hold after calm. The checks know the protocol's promises, not its code.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.codec import decode_all, encode
from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.records import CommitRecord, EpochRecord, ParticipantRecord, Record
from coordinator.core.replay import Replayed, replay
from coordinator.core.settings import Settings
from coordinator.core.states import ENDS, TRANSITIONS, State
from dtp import Decision, Outcome, Reason, Vote, Xid
from dtp.errors import INDEFINITE
from tests.core.servers import Server

ID = "test"
NAMES = ("p1", "p2", "p3")
# Small bounds, so that they are reached.
SETTINGS = Settings(ID, default_timeout=10.0, max_transactions=12, max_branches=2, keep_ended_count=3)


@dataclass(frozen=True)
class Checkpoint:
    """The live state, in the log behind the records that it stands for; once durable it replaces them."""

    records: list[Record]


class World:
    """One coordinator after the other, over the same servers and the same log."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.servers = {name: Server(name, number) for number, name in enumerate(NAMES, 1)}
        self.log: list[Record | Checkpoint] = [
            ParticipantRecord(s.name, s.number) for s in self.servers.values()
        ]
        self.durable = len(self.log)
        self.epoch = 0
        self.ticket = 0
        self.waiting: dict[int, str] = {}  # ticket -> gtrid, or "" where the answer tells it
        self.told: dict[str, set[Outcome]] = defaultdict(set)
        self.commands: dict[str, set[type]] = defaultdict(set)
        self.key_of: dict[str, str] = {}
        self.key = ""  # of the request at hand
        self.interfered: set[str] = set()
        self.heuristic: set[str] = set()
        self.told_at_last: dict[str, set[Outcome]] = defaultdict(set)
        self.numbers: dict[str, set[int]] = defaultdict(set)  # of the participants of a transaction
        self.unlogged: set[str] = set()  # open at a crash that left no record of them
        self.forgotten: set[str] = set()  # and the operator was told so
        self.rotations = 0
        self.start()

    def start(self) -> None:
        """A process begins with what is in the log."""
        self.epoch += 1
        self.log.append(EpochRecord(ID, self.epoch, 7 * self.epoch, self.now))
        self.durable = len(self.log)
        self.forced: deque[tuple[int, int]] = deque()
        self.states: dict[str, State] = {}
        self.begun: set[str] = set()
        self.fences: list[effects.Fence] = []
        self.scans: list[tuple[effects.Scan, float, tuple[Xid, ...] | None]] = []
        self.waiting.clear()
        replayed = self.replayed(self.records())
        self.core = Coordinator(SETTINGS, self.epoch, replayed, NAMES, self.now)
        self.states = {gtrid: t.state for gtrid, t in self.core.open.items()}
        self.rotate(at_once=True)

    def records(self, count: int | None = None) -> list[Record]:
        """What a start would read of the first `count` items of the log."""
        found: list[Record] = []
        for item in self.log[:count]:
            if isinstance(item, Checkpoint):
                found = list(item.records)
            else:
                found.append(item)
        return found

    @staticmethod
    def replayed(records: Iterable[Record]) -> Replayed:
        """Through the bytes of the log, as a start does."""
        return replay(decode_all(ID, [encode(record) for record in records]))

    def crash(self, surviving: int) -> None:
        """The process dies; `surviving` records beyond the durable ones happen to be on disk."""
        left: list[Record] = self.records(self.durable + surviving)
        logged = {str(r.id) for r in left if not isinstance(r, (EpochRecord, ParticipantRecord))}
        self.unlogged |= set(self.core.open) - logged
        self.log = list(left)
        for server in self.servers.values():
            server.crash()
        self.start()

    def rotate(self, at_once: bool | None = None) -> None:
        """The log begins anew with a checkpoint; the same transactions must come out of it.

        Where it is not durable at once, it waits behind the records before it, as in the real log.
        Every other one does, where nothing is asked for.
        """
        self.rotations += 1
        if at_once is None:
            at_once = self.rotations % 2 == 0
        checkpoint = self.core.checkpoint()
        self._check_checkpoint(self.replayed(self.records()), self.replayed(checkpoint))
        if at_once:
            self.log = list(checkpoint)
            self.durable = len(self.log)
            self.forced = deque((number, len(self.log)) for number, _ in self.forced)
        elif not any(isinstance(item, Checkpoint) for item in self.log):  # one at a time
            self.log.append(Checkpoint(checkpoint))

    def _check_checkpoint(self, before: Replayed, after: Replayed) -> None:
        for gtrid, transaction in self.core.open.items():
            if transaction.decision is not Decision.COMMIT or transaction.one_phase or transaction.forgotten:
                continue
            assert after.transactions[gtrid].decision is Decision.COMMIT, gtrid
            assert after.transactions[gtrid].participants == before.transactions[gtrid].participants, gtrid
        assert before.numbers == after.numbers
        assert before.nonces == after.nonces
        assert set(after.transactions) <= set(self.core.open)
        assert not self.forgotten & set(after.transactions), "a checkpoint brings back what was forgotten"
        for gtrid, found in after.transactions.items():
            if gtrid in before.transactions:
                assert found.heuristic == before.transactions[gtrid].heuristic, gtrid

    def _settle_checkpoint(self) -> None:
        """A durable checkpoint takes the place of what was before it."""
        for index, item in enumerate(self.log[: self.durable]):
            if isinstance(item, Checkpoint):
                shift = len(item.records) - index - 1
                self.log = [*item.records, *self.log[index + 1 :]]
                self.durable += shift
                self.forced = deque((number, position + shift) for number, position in self.forced)
                return

    def flush(self, count: int) -> None:
        """The next `count` forced records are durable, and all that was appended before them."""
        number = 0
        for _ in range(min(count, len(self.forced))):
            number, position = self.forced.popleft()
            self.durable = max(self.durable, position)
        if not self.forced:
            self.durable = len(self.log)
        self._settle_checkpoint()
        if number:
            self.feed(inputs.RecordsDurable(number))

    def feed(self, event: inputs.Input) -> list[effects.Effect]:
        """One input; its effects are performed and checked in order."""
        found = self.core.step(event, self.now)
        for effect in found:
            self._perform(effect)
        assert self.core.next_wakeup is None or self.core.next_wakeup > self.now
        assert set(self.core._context.keys.values()) <= set(self.core.open), "keys of what has ended"
        assert not self.forgotten & set(self.core.open), "forgotten, and there again"
        return found

    def new_ticket(self, gtrid: str) -> int:
        """A caller comes."""
        self.ticket += 1
        self.waiting[self.ticket] = gtrid
        return self.ticket

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Write():
                self.log.append(effect.record)
            case effects.Force():
                self.log.append(effect.record)
                self.forced.append((effect.number, len(self.log)))
            case effects.Send():
                self._sent(effect)
            case effects.Reply():
                self._replied(effect)
            case effects.Changed():
                self._changed(effect)
            case effects.Fence():
                self.fences.append(effect)
            case effects.Scan():
                self.scans.append((effect, self.now, None))
            case effects.Alert(kind=effects.AlertKind.HEURISTIC):
                self.heuristic.add(effect.gtrid)

    def decided_to_commit(self, gtrid: str) -> bool:
        """The log has, durably, a COMMIT record."""
        records = self.records(self.durable)
        return any(isinstance(r, CommitRecord) and str(r.id) == gtrid for r in records)

    def _sent(self, effect: effects.Send) -> None:
        server, command = self.servers[effect.participant], effect.command
        state = self.core.participants[server.name].state.value
        assert server.connected, effect
        assert state == "UP" or isinstance(command, effects.Enlisted), effect
        if not isinstance(command, effects.Enlisted):
            assert effect.gtrid.startswith(f"k1{ID}"), effect
            kinds = self.commands[effect.gtrid]
            kinds.add(type(command))
            if isinstance(command, (effects.Run, effects.Prepare)):
                self.numbers[effect.gtrid] |= set(command.participants)
            both = {effects.Commit, effects.Rollback} <= kinds
            # What a person had rolled back, and its server lost, is rolled back again.
            assert not both or effect.gtrid in self.interfered, f"both ends sent: {effect.gtrid}"
            if command == effects.Commit():
                assert self.decided_to_commit(effect.gtrid), effect
        server.commands.append((effect.gtrid, command))

    def _replied(self, effect: effects.Reply) -> None:
        asked = self.waiting.pop(effect.ticket)  # KeyError: a second answer
        match effect.answer:
            case effects.Begun(already_committed=False, gtrid=gtrid):
                assert gtrid in self.core.open
            case effects.Decided(gtrid=gtrid, outcome=outcome, completed=completed):
                assert asked in ("", gtrid)
                assert outcome is not Outcome.UNKNOWN
                self.told[gtrid].add(outcome)
                if completed:
                    self.told_at_last[gtrid].add(outcome)
                if outcome is Outcome.COMMITTED:
                    self._told_committed(gtrid)
            case effects.Accepted(gtrid=gtrid) if gtrid not in self.core.open:
                self.states.pop(gtrid, None)
                ended = self.core.ended.get(gtrid)
                if ended is not None and ended.state is State.HEURISTIC:
                    self.forgotten.add(gtrid)
            case effects.Refused(reason=reason):
                assert reason not in INDEFINITE or reason is Reason.OUTCOME_UNKNOWN

    def _told_committed(self, gtrid: str) -> None:
        """Only after a durable COMMIT record, a one-phase commit, or where nothing was left to decide."""
        if gtrid in self.interfered or self.decided_to_commit(gtrid):
            return
        for server in self.servers.values():
            if gtrid in server.worked:
                assert server.branches[gtrid] in ("committed", "read_only"), (gtrid, server.name)

    def _changed(self, effect: effects.Changed) -> None:
        gtrid = effect.gtrid
        if effect.before is None:
            assert gtrid not in self.begun, f"{gtrid} begun twice"
            self.begun.add(gtrid)
            self.key_of[gtrid] = self.key
        elif gtrid in self.states:
            assert effect.before is self.states[gtrid]
            assert effect.before not in ENDS or effect.before is effect.state, f"{gtrid} left an end"
        if effect.before is effect.state:  # what was forced is durable, and may be told
            assert effect.state is State.HEURISTIC or self.decided_to_commit(gtrid), gtrid
            return
        if effect.before is not None:
            assert effect.state in TRANSITIONS[effect.before].values()
        if effect.state in (State.COMMITTED, State.ROLLED_BACK):
            self.states.pop(gtrid, None)
        else:
            self.states[gtrid] = effect.state

    # Calm

    def settle(self) -> None:
        """All participants are up, everything arrives, everything is durable, time passes."""
        if self.core._context.log_lost:  # people have looked into it; only a restart ends that
            self.crash(surviving=0)
        for server in self.servers.values():
            if self.core.participants[server.name].state.value == "HOLD":
                self.lose(server, executed=0)
        for _ in range(40):
            for server in self.servers.values():
                self.connect(server)
            self._deliver_all()
            self.now += 2.5
            self.feed(inputs.TimePassed())

    def _deliver_all(self) -> None:
        for _ in range(200):
            self.flush(100)
            while self.fences:
                self.answer_fence(0)
            while self.scans:
                self.answer_scan(0)
            for server in self.servers.values():
                while server.commands:
                    server.execute(Vote.OK, busy=False)
                while server.reports:
                    self.feed(server.reports.popleft())
            if not (
                self.forced or self.fences or self.scans or any(s.commands for s in self.servers.values())
            ):
                return
        raise AssertionError("the core and the agents never stop talking")

    def connect(self, server: Server) -> None:
        """A connection stands, where there is none."""
        if not server.connected:
            server.link += 1
            server.connected = True
            self.feed(inputs.AgentConnected(server.name, server.link))

    def lose(self, server: Server, executed: int) -> None:
        """The connection breaks; the first `executed` commands had arrived, their answers are lost."""
        for _ in range(min(executed, len(server.commands))):
            server.execute(Vote.OK, busy=False)
        server.commands.clear()
        server.connected = False
        self.fences = [f for f in self.fences if f.participant != server.name]
        self.feed(inputs.AgentLost(server.name, server.link, "lost"))

    def answer_fence(self, index: int) -> None:
        """The agent has shut older epochs out."""
        fence = self.fences.pop(index)
        server = self.servers[fence.participant]
        server.fence(self.epoch)
        self.feed(inputs.AgentFenced(server.name, fence.link, "model", True, "nowhere"))

    def look(self, index: int) -> None:
        """XA RECOVER runs at the server; the answer is under way."""
        scan, started_at, found = self.scans[index]
        if found is None:
            self.scans[index] = (scan, started_at, self.servers[scan.participant].prepared())

    def answer_scan(self, index: int, extra: tuple[Xid, ...] = ()) -> None:
        """The answer arrives, perhaps with branches of others."""
        self.look(index)
        scan, started_at, found = self.scans.pop(index)
        assert found is not None
        self.feed(inputs.AgentScanned(scan.participant, scan.link, started_at, found + extra, 0, 0))

    def check_final(self) -> None:
        """What must hold after calm."""
        rest = {g: t.state for g, t in self.core.open.items() if t.state is not State.HEURISTIC}
        assert not rest, rest
        assert not self.waiting, f"never answered: {self.waiting}"
        for gtrid in self.begun:
            assert self.states.get(gtrid) in (None, State.HEURISTIC), "room never given back"
        for server in self.servers.values():
            ours = [x for x in server.prepared() if str(x.ours()) not in self.core.open]
            assert not ours, f"left prepared: {ours}"
        for gtrid in {g for server in self.servers.values() for g in server.branches}:
            self._check_outcome(gtrid)
        committed = {
            g for s in self.servers.values() for g, state in s.branches.items() if state == "committed"
        }
        keys = [self.key_of[g] for g in committed - self.unlogged if self.key_of[g]]
        assert len(keys) == len(set(keys)), "an idempotency key has committed twice"

    def _check_outcome(self, gtrid: str) -> None:
        states = {s.branches[gtrid] for s in self.servers.values() if gtrid in s.worked} - {"read_only"}
        if "committed" not in states:
            states.discard("active")  # an agent ends it, when its session does
        if gtrid in self.interfered:
            if gtrid not in self.unlogged:  # of those no restart can know who took part
                self._check_interfered(gtrid, states)
            return
        assert gtrid not in self.heuristic, gtrid
        assert len(states) <= 1, f"{gtrid} is not atomic: {states}"
        if states:  # else it changed nothing, its end is not forced, and a restart may presume abort
            assert len(self.told[gtrid]) <= 1, f"{gtrid} told as {self.told[gtrid]}"
        if Outcome.COMMITTED in self.told[gtrid]:
            assert states <= {"committed"}, f"{gtrid} told COMMITTED: {states}"
        if Outcome.ROLLED_BACK in self.told[gtrid]:
            assert "committed" not in states, f"{gtrid} told ROLLED_BACK"

    def _check_interfered(self, gtrid: str, states: set[str]) -> None:
        """Others ended a branch: what was told at last, and what is listed, is what the servers say."""
        if len(states) > 1:
            assert gtrid in self.heuristic, f"{gtrid}: {states}, and nobody was told"
        listed = self.core.open.get(gtrid)
        told = self.told_at_last[gtrid] | ({listed.outcome} if listed is not None else set())
        told |= {outcome for outcome in self.told[gtrid] if outcome.heuristic}  # whenever that was
        parts = {s.number: s.branches.get(gtrid) for s in self.servers.values() if gtrid in s.worked}
        # A branch that changed nothing, or never came to work, may count as either.
        undone = any(parts.get(number) != "committed" for number in {*parts, *self.numbers[gtrid]})
        truth = {
            Outcome.COMMITTED: states <= {"committed"},
            Outcome.HEURISTIC_COMMIT: states == {"committed"},
            Outcome.HEURISTIC_MIXED: "committed" in states and undone,
            Outcome.ROLLED_BACK: "committed" not in states,
            Outcome.HEURISTIC_ROLLBACK: "committed" not in states,
        }
        for outcome in told:
            assert truth[outcome], f"{gtrid} told {outcome.value}: {parts}"
        if len(states) > 1:
            assert told <= {Outcome.HEURISTIC_MIXED}, f"{gtrid} told {told}: {parts}"

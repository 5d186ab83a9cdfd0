"""The language of the scenarios: one verb, one small handler, one input to the core (or few).

    start NAME...            a coordinator begins with an empty log; numbers in this order
    up NAME...               connect, fence and scan without finding anything
    connect | fenced | held | lost NAME [link=N]
    scan NAME [BRANCH...] [ago=SECONDS] [link=N]
                             XA RECOVER has listed: 1.2@1, or GTRID.BQUAL:FORMAT for any other
    plan NAME [BRANCH...]    what reconciling would do
    begin [key=K] [content=C] [timeout=S] [room=no]
    run NAME... [key=K] [content=C] [wait=decided] [order=yes] [timeout=S]
    commit | rollback T [wait=decided]
    enlist NAME T
    vote NAME T OK | READ_ONLY | ROLLBACK [REASON] [results=yes]
    finish NAME T OUTCOME | none
    waits NAME [T>T | T>prepared | T>CONNECTION]...
                             its agent tells who waits there now
    resolve T COMMIT | ROLLBACK
    forget T
    recover NAME
    durable [N]              forced records up to N (default: all) are on disk
    tick SECONDS             time passes; the core is woken when it has asked for it
    drain
    checkpoint               the live state as records
    restart [survive=N]      kill -9; N records that were not durable survived
    list                     what is open

T is EPOCH.COUNTER. Callers get tickets #1, #2, ... in their order.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.codec import decode_all, encode
from coordinator.core import effects, inputs
from coordinator.core.coordinator import Coordinator
from coordinator.core.records import EpochRecord, ParticipantRecord, Record
from coordinator.core.replay import replay
from coordinator.core.settings import Settings
from dtp import Decision, Gtrid, Outcome, Reason, Vote, Xid
from tests.scenarios import trace

ID = "test"


class Scenario:
    """One coordinator, its log and its clock. `do` runs one line and returns the trace of it."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.epoch = 0
        self.ticket = 0
        self.log: list[Record] = []
        self.durable_to = 0
        self.forced: list[tuple[int, int]] = []
        self.names: list[str] = []
        self.links: dict[str, int] = {}
        self.lines: list[str] = []

    def do(self, line: str) -> str:
        """Run one command."""
        verb, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        VERBS[verb](self, [word for word in words if "=" not in word], options)
        lines, self.lines = self.lines, []
        return "".join(f"{text}\n" for text in lines)

    def feed(self, event: inputs.Input) -> None:
        """One input to the core; its effects are noted and, where they concern the log, performed."""
        for effect in self.core.step(event, self.now):
            self.lines.append(trace.effect(effect))
            if isinstance(effect, (effects.Write, effects.Force)):
                self.log.append(effect.record)
            if isinstance(effect, effects.Force):
                self.forced.append((effect.number, len(self.log)))

    def begin_epoch(self) -> None:
        """A process starts with what is on disk."""
        self.epoch += 1
        self.log.append(EpochRecord(ID, self.epoch, self.epoch, self.now))
        replayed = replay(decode_all(ID, [encode(record) for record in self.log]))
        settings = Settings(ID, max_branches=3, keep_ended_count=2)
        self.core = Coordinator(settings, self.epoch, replayed, self.names, self.now)
        self.log = self.core.checkpoint()
        self.durable_to = len(self.log)
        self.forced.clear()
        self.links.clear()

    def new_ticket(self) -> int:
        self.ticket += 1
        return self.ticket

    def id(self, text: str) -> Gtrid:
        epoch, counter = text.split(".")
        return Gtrid.make(ID, int(epoch), int(counter), 0)

    def gtrid(self, text: str) -> str:
        return str(self.id(text))

    def branches(self, words: list[str]) -> tuple[Xid, ...]:
        return tuple(self.branch(word) for word in words)

    def branch(self, word: str) -> Xid:
        if "@" in word:
            text, number = word.split("@")
            return Xid.of(self.gtrid(text), int(number))
        rest, format_id = word.rsplit(":", 1)
        gtrid, bqual = rest.rsplit(".", 1)
        return Xid(int(format_id), gtrid.encode(), bqual.encode())


Words, Options = list[str], dict[str, str]


def start(s: Scenario, words: Words, options: Options) -> None:
    s.names = words
    s.log = [ParticipantRecord(name, number) for number, name in enumerate(words, 1)]
    s.begin_epoch()


def up(s: Scenario, words: Words, options: Options) -> None:
    for name in words:
        connect(s, [name], {})
        fenced(s, [name], {})
        scan(s, [name], {})


def connect(s: Scenario, words: Words, options: Options) -> None:
    s.links[words[0]] = s.links.get(words[0], 0) + 1
    s.feed(inputs.AgentConnected(words[0], s.links[words[0]]))


def _link(s: Scenario, name: str, options: Options) -> int:
    return int(options.get("link", s.links.get(name, 0)))


def fenced(s: Scenario, words: Words, options: Options) -> None:
    committed = s.gtrid(options["committed"]) if "committed" in options else ""
    link = _link(s, words[0], options)
    s.feed(inputs.AgentFenced(words[0], link, "model", True, "nowhere", committed))


def held(s: Scenario, words: Words, options: Options) -> None:
    message = "the agent has seen a later epoch"
    s.feed(inputs.AgentHeld(words[0], _link(s, words[0], options), Reason.STALE_EPOCH, message))


def lost(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.AgentLost(words[0], _link(s, words[0], options), "connection reset"))


def scan(s: Scenario, words: Words, options: Options) -> None:
    asked = s.now - float(options.get("ago", 0))
    found = s.branches(words[1:])
    s.feed(inputs.AgentScanned(words[0], _link(s, words[0], options), asked, found, 0, 0))


def plan(s: Scenario, words: Words, options: Options) -> None:
    s.lines += [trace.plan_item(item) for item in s.core.plan(words[0], s.branches(words[1:]))]


def begin(s: Scenario, words: Words, options: Options) -> None:
    timeout = float(options["timeout"]) if "timeout" in options else None
    key, content = options.get("key", ""), options.get("content", "").encode()
    s.feed(inputs.BeginRequested(s.new_ticket(), timeout, 0, "room" not in options, key, content))


def run(s: Scenario, words: Words, options: Options) -> None:
    branches = tuple(inputs.RunBranch(name, f"({name}'s work)") for name in words)
    timeout = float(options["timeout"]) if "timeout" in options else None
    key, content = options.get("key", ""), options.get("content", "").encode()
    in_order = "order" in options
    s.feed(
        inputs.RunRequested(
            s.new_ticket(), branches, timeout, _wait(options), in_order, 0, True, key, content
        )
    )


def _wait(options: Options) -> inputs.WaitFor:
    return inputs.WaitFor[options.get("wait", "completed").upper()]


def commit(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.CommitRequested(s.new_ticket(), s.gtrid(words[0]), _wait(options)))


def rollback(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.RollbackRequested(s.new_ticket(), s.gtrid(words[0])))


def enlist(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.BranchEnlisted(words[0], s.links[words[0]], s.gtrid(words[1])))


def vote(s: Scenario, words: Words, options: Options) -> None:
    name, text, choice, *reason = words
    failure = inputs.Failure(Reason(reason[0]), "it says why") if reason else None
    results = f"{name}'s rows" if "results" in options else None
    in_doubt = "in_doubt" in options
    s.feed(inputs.BranchVoted(name, s.links[name], s.gtrid(text), Vote[choice], failure, results, in_doubt))


def finish(s: Scenario, words: Words, options: Options) -> None:
    name, text, what = words
    outcome = None if what == "none" else Outcome[what]
    s.feed(inputs.BranchFinished(name, s.links[name], s.gtrid(text), outcome))


def waits(s: Scenario, words: Words, options: Options) -> None:
    name, *pairs = words
    found = []
    for waiter, blocker in (pair.split(">") for pair in pairs):
        gtrid = s.gtrid(blocker) if "." in blocker else ""
        connection = int(blocker) if blocker.isdigit() else 0
        found.append(inputs.Wait(s.gtrid(waiter), gtrid, blocker == "prepared", connection))
    s.feed(inputs.WaitsReported(name, s.links[name], tuple(found)))


def resolve(s: Scenario, words: Words, options: Options) -> None:
    action = Decision[words[1]]
    s.feed(inputs.ResolveRequested(s.new_ticket(), s.gtrid(words[0]), action, "they said so", "ann"))


def forget(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.ForgetRequested(s.new_ticket(), s.gtrid(words[0])))


def recover(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.RecoveryRequested(words[0]))


def durable(s: Scenario, words: Words, options: Options) -> None:
    number = int(words[0]) if words else max((number for number, _ in s.forced), default=0)
    s.durable_to = max([s.durable_to, *(position for n, position in s.forced if n <= number)])
    s.forced = [(n, position) for n, position in s.forced if n > number]
    s.feed(inputs.RecordsDurable(number))


def tick(s: Scenario, words: Words, options: Options) -> None:
    until = s.now + float(words[0])
    while (wakeup := s.core.next_wakeup) is not None and wakeup <= until:
        s.now = max(s.now, wakeup)
        before = len(s.lines)
        s.feed(inputs.TimePassed())
        if len(s.lines) > before:
            s.lines.insert(before, f"  (after {s.now - until + float(words[0]):g} s)")
    s.now = until


def drain(s: Scenario, words: Words, options: Options) -> None:
    s.feed(inputs.DrainStarted())


def checkpoint(s: Scenario, words: Words, options: Options) -> None:
    s.log = s.core.checkpoint()
    s.durable_to = len(s.log)
    s.lines += [f"  {trace.record(record)}" for record in s.log]


def restart(s: Scenario, words: Words, options: Options) -> None:
    del s.log[s.durable_to + int(options.get("survive", 0)) :]
    s.begin_epoch()
    s.lines += [f"  {trace.record(record)}" for record in s.log]


def list_(s: Scenario, words: Words, options: Options) -> None:
    for gtrid, t in s.core.open.items():
        ends = ", ".join(
            f"{b.participant} {b.outcome.value if b.outcome else '?'}" for b in t.branches.values()
        )
        blocked = ", blocked" if s.core.blocked(t) else ""
        outcome = f" {t.outcome.value}" if t.outcome is not Outcome.UNKNOWN else ""
        s.lines.append(f"  {trace.short(gtrid)} {t.state.value}{outcome}{blocked}: {ends or 'no branch'}")


Handler = Callable[[Scenario, Words, Options], None]
VERBS: dict[str, Handler] = {
    handler.__name__.rstrip("_"): handler
    for handler in (
        *(start, up, connect, fenced, held, lost, scan, plan, begin, run, commit, rollback, enlist, vote),
        *(finish, waits, resolve, forget, recover, durable, tick, drain, checkpoint, restart, list_),
    )
}

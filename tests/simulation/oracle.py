"""The oracle: judges a run by what servers, disks and clients' ledgers say. It knows the bytes of the log
and of the ids, and nothing of the logic that it judges.

While the run goes on:
 I3  a client is never told COMMITTED and ROLLED_BACK of the same transaction;
 I5  a decision that was acknowledged as durable is in what the next life reads, unless it had ended;
 I6  no branch of an epoch below a fence is started or prepared after the fence was acknowledged;
 I7  nothing is acknowledged after a failed flush; no COMMIT is sent to a server before its record is durable;
 XID no verb names an XID that is not the agent's own participant's;
 HEURISTIC no outcome is called heuristic but for branches that operators or lost logs have touched.
At rest (world.py brings it about): `judge`.
"""

from __future__ import annotations

import re
import struct
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tests.simulation.ledger import Attempt, Work

if TYPE_CHECKING:
    from tests.simulation.agents import AgentNode
    from tests.simulation.coordinators import CoordinatorNode
    from tests.simulation.world import World

_VERB = re.compile(r"XA (\w+) X'([0-9a-f]*)',X'([0-9a-f]*)',(\d+)( ONE PHASE)?")
_PREPARE, _COMMIT = 3, 4  # docs/protocol.md
_HEAD = struct.Struct("<QIH")  # docs/wal-format.md: sequence, epoch, kind
PRIVATE = 1_000


class Oracle:
    """Collects violations."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[str] = []
        self.tampered: set[str] = set()  # gtrids that operators have touched
        self.decided_before: set[str] = set()  # those of them that were decided and open then
        self.unrecorded: set[str] = set()  # those of them that no log had an open record of
        self.one_phase: set[str] = set()  # gtrids of one branch, whose agent decides
        self._acknowledged: dict[str, set[str]] = {}  # coordinator id -> gtrids decided durably
        self._ended: dict[str, set[str]] = {}
        self._failed: set[str] = set()
        self._fences: dict[tuple[str, str], int] = {}
        self._epochs: dict[str, int] = {}
        self._lost: set[str] = set()  # decisions that a restored log lacks and a witness row gives away

    # reporting

    def violated(self, rule: str, what: str) -> None:
        """Note a violation, once."""
        text = f"{rule}: {what}"
        self._world.trace("ORACLE", "VIOLATION", text)
        if text not in self.violations and len(self.violations) < 20:
            self.violations.append(text)

    def violated_by_exception(self, where: str) -> None:
        """The same, for an exception that is being handled."""
        lines = traceback.format_exc().strip().splitlines()
        self.violated("ERROR", f"{where}: {lines[-1]} ({' '.join(lines[-3].split())})")

    # the coordinator's log

    def started(self, node: CoordinatorNode, core: Any) -> None:
        before = self._epochs.get(node.id, 0)
        if core.epoch <= before and not node.log_was_lost:
            self.violated("I6", f"{node.name} began epoch {core.epoch} after {before}")
        self._epochs[node.id] = max(before, core.epoch)
        self._failed.discard(node.id)

    def appended(self, node: CoordinatorNode, record: Any) -> None:
        if type(record).__name__ in ("EndRecord", "ForgetRecord"):
            self._ended.setdefault(node.id, set()).add(str(record.id))

    def changed(self, node: CoordinatorNode, effect: Any) -> None:
        """A transaction has changed; the same state twice: the core acts on its decision as durable."""
        if effect.before is effect.state and effect.state.value == "COMMITTING":
            self._acknowledged.setdefault(node.id, set()).add(effect.gtrid)

    def durable(self, node: CoordinatorNode, number: int) -> None:
        if node.id in self._failed:
            self.violated("I7", f"{node.name}: a record was acknowledged after the log had failed")

    def log_failed(self, node: CoordinatorNode, error: BaseException) -> None:
        self._failed.add(node.id)
        if not isinstance(error, OSError):
            self.violated("ERROR", f"{node.name}: ended by {type(error).__name__}: {error}")

    def replayed(self, node: CoordinatorNode, replayed: Any) -> None:
        """A new life has read the log."""
        if node.log_was_lost:
            self._acknowledged.pop(node.id, None)
            return
        committed = {
            gtrid
            for gtrid, entry in replayed.transactions.items()
            if entry.heuristic or (entry.decision is not None and entry.decision.value == "COMMIT")
        }
        for gtrid in self._acknowledged.get(node.id, set()) - self._ended.get(node.id, set()) - committed:
            self.violated("I5", f"{node.name} does not know the decision on {gtrid}, which was durable")

    def alerted(self, node: CoordinatorNode, alert: Any) -> None:
        kind = alert.kind.value
        self._world.counters[f"alert {kind}"] += 1
        if kind == "HEURISTIC" and alert.gtrid not in self.tampered and not node.log_was_lost:
            self.violated("HEURISTIC", f"{node.name}: {alert.gtrid} at {alert.participant}: {alert.message}")
        if kind == "HOLD" and not self._is_justified(node, alert.message):
            self.violated("HOLD", f"{node.name}: {alert.participant} {alert.gtrid}: {alert.message}")

    def _is_justified(self, node: CoordinatorNode, message: str) -> bool:
        """A log was lost, or a person has committed what no log has a record of."""
        if node.log_was_lost:
            node.on_hold = True
            return True
        if any(gtrid in message for gtrid in self.tampered):
            node.on_hold = True
        return node.on_hold

    def log_restored(self, node: CoordinatorNode, backup: dict[str, bytes]) -> None:
        """A backup is put in the log's place.

        One witness row of a lost decision gives it away, if it is higher than every PREPARE of its epoch in
        the backup (docs/decisions/0004-epoch-nonce.md).
        """
        node.log_was_lost = True
        decided = self._acknowledged.pop(node.id, set()) - self.tampered
        begun = {a.gtrid for w in self._world.works for a in w.attempts if a.gtrid[2:6] == node.id}
        old = {gtrid for gtrid in decided | begun if _holds(backup.values(), gtrid, _PREPARE)}
        lost = {g for g in decided if all(g > other for other in old if other[:10] == g[:10])}
        rows = self._world.witnesses()
        if any(len(rows.get(gtrid, ())) for gtrid in lost - self.one_phase):
            self._lost |= lost
            self._world.counters["logs restored, decisions lost"] += 1

    def tamper(self, node: CoordinatorNode, gtrid: str) -> None:
        """A person ends a prepared branch by hand. Does the coordinator have a decision on it?"""
        self.tampered.add(gtrid)
        is_ended = gtrid in self._ended.get(node.id, ())
        if is_ended or not _holds(node.disk.durable_bytes(), gtrid, _PREPARE):
            self.unrecorded.add(gtrid)
        driver = node.driver if node.alive else None
        transaction = driver.core.open.get(gtrid) if driver is not None else None
        if transaction is not None and transaction.decision is not None and transaction.durable:
            self.decided_before.add(gtrid)

    # the agents' queries

    def asked(self, node: AgentNode, sql: str) -> None:
        """A query is about to be sent."""
        found = _VERB.match(sql)
        if found is None:
            return
        verb, gtrid = found[1], bytes.fromhex(found[2]).decode("latin-1")
        number = int(bytes.fromhex(found[3]) or b"0", 36)
        coordinator = self._world.coordinators.get(gtrid[2:6])
        if coordinator is None or found[4] != "1" or len(gtrid) != 20:
            self.violated("XID", f"{node.name} asks for {sql}")
            return
        wanted = self._world.number_of(coordinator, node.participant)
        if wanted is not None and wanted != number:
            self.violated("XID", f"{node.name} asks for participant {number}'s branch: {sql}")
        fence = self._fences.get((coordinator.id, node.participant), 0)
        if verb in ("START", "PREPARE") and int(gtrid[6:10], 36) < fence:
            self.violated("I6", f"{node.name} sends {verb} of {gtrid} below the fence {fence}")
        decided = gtrid in self._acknowledged.get(coordinator.id, ()) and gtrid not in self.tampered
        if verb == "ROLLBACK" and decided:
            self.violated("I2", f"{node.name} rolls back {gtrid}, which is durably decided to commit")
        if verb == "ROLLBACK" and gtrid in self._lost:
            self.violated("LOST", f"{node.name} rolls back {gtrid}, whose decision was lost with the log")
        if coordinator.log_was_lost or gtrid in self.one_phase:
            return
        if verb == "COMMIT" and not self._on_disk(coordinator, gtrid, _COMMIT):
            self.violated("I7", f"{node.name} commits {gtrid}, whose COMMIT record is not on disk")

    def _on_disk(self, node: CoordinatorNode, gtrid: str, kind: int) -> bool:
        return _holds(node.disk.durable_bytes(), gtrid, kind)

    def answered(self, node: AgentNode, sql: str, result: Any) -> None:
        """A query was answered."""
        found = _VERB.match(sql)
        if found is not None and type(result).__name__ == "Ok":
            self._world.counters[f"xa {found[1].lower()}{(found[5] or '').lower()}"] += 1

    def fenced(self, coordinator: str, node: AgentNode, epoch: int) -> None:
        """An agent tells a coordinator that its fence stands: nothing below it works any more."""
        key = (coordinator, node.participant)
        self._fences[key] = max(epoch, self._fences.get(key, 0))
        number = self._world.number_of(self._world.coordinators[coordinator], node.participant)
        for branch in node.server.branches.values():
            gtrid = branch.xid.gtrid.decode("latin-1")
            below = gtrid[2:6] == coordinator and int(gtrid[6:10], 36) < epoch
            if below and branch.xid.number == number and branch.state.value in ("ACTIVE", "IDLE"):
                self.violated("I6", f"{node.name}: {gtrid} is {branch.state.value} after the fence {epoch}")

    # clients

    def told(self, attempt: Attempt, outcome: str) -> None:
        node = self._world.coordinators.get(attempt.gtrid[2:6])
        if attempt.gtrid in self.tampered or (node is not None and node.log_was_lost):
            return
        if {"COMMITTED", "ROLLED_BACK"} <= attempt.outcomes:
            self.violated("I3", f"{attempt.gtrid} was told {attempt.told}")
        if outcome.startswith("HEURISTIC"):
            self.violated("HEURISTIC", f"{attempt.gtrid} was told {outcome}")

    # at rest

    def judge(self) -> None:
        """Everything has come to rest: compare the servers with each other and with the ledgers."""
        witnesses = self._world.witnesses()
        for work in self._world.works:
            if not self._world.coordinators[work.coordinator].log_was_lost:
                self._judge_work(work, witnesses)

    def _is_touched(self, work: Work) -> bool:
        """An operator has ended a branch of it, or may have: of one whose id its client has never heard."""
        if any(attempt.gtrid in self.tampered for attempt in work.attempts):
            return True
        return bool(self._world.unknown_tampered) and any(not attempt.gtrid for attempt in work.attempts)

    def _is_unrecorded(self, work: Work) -> bool:
        known = {attempt.gtrid for attempt in work.attempts}
        return bool(self.unrecorded & (known | self._world.unknown_tampered))

    def _judge_work(self, work: Work, witnesses: dict[str, set[str]]) -> None:
        counts = {name: self._world.private(name, PRIVATE + work.number) for name in self._world.agents}
        touched = self._is_touched(work)
        seen = {counts[name] for name in work.writes}
        name = f"work {work.number} ({', '.join(a.gtrid or '?' for a in work.attempts)})"
        # A branch of which no log has a record, committed by hand: nobody can know that its key was used.
        most = 2 if touched and self._is_unrecorded(work) else 1
        for participant, count in counts.items():
            if count > most or (count and participant not in work.writes):
                self.violated("I2", f"{name} was done {count} times at {participant}")
        if len(seen) > 1 and not touched:
            self.violated("I2", f"{name} was done in part: {counts}")
        done = max(seen, default=0) > 0
        told = [outcome for attempt in work.attempts for outcome in attempt.outcomes]
        if not touched and work.writes:
            if "COMMITTED" in told and not done:
                self.violated("I3", f"{name}: a client was told COMMITTED, and it is nowhere")
            all_refused = all(a.outcomes == {"ROLLED_BACK"} or a.refused for a in work.attempts)
            if done and all_refused and work.attempts:
                self.violated("I3", f"{name}: every attempt was rolled back or refused, and it is there")
            if done and not work.asked:
                self.violated("I2", f"{name} is there, and nobody asked for it")
        if touched:
            self._judge_tampered(work, witnesses, is_even=len(seen) == 1)
            return
        for attempt in work.attempts:
            there = witnesses.get(attempt.gtrid, set())
            no = attempt.doomed or attempt.refused or attempt.outcomes == {"ROLLED_BACK"}
            if there and attempt.gtrid and no:
                self.violated("I3", f"{attempt} has committed at {sorted(there)}")
            if attempt.outcomes == {"COMMITTED"} and work.writes and not there and not self._is_purged():
                self.violated("I3", f"{attempt} was told COMMITTED, and no server has a witness row of it")

    def _is_purged(self) -> bool:
        return self._world.plan.witness_retention < 60

    def _judge_tampered(self, work: Work, witnesses: dict[str, set[str]], is_even: bool) -> None:
        """Differences between servers must be known to the coordinator."""
        if is_even and self._is_purged():
            return  # the work is everywhere or nowhere; its witness rows need not be purged everywhere yet
        for attempt in work.attempts:
            there = witnesses.get(attempt.gtrid, set())
            mixed = attempt.gtrid in self.decided_before and there and there != set(work.writes)
            if mixed and self._world.coordinators[work.coordinator].on_hold:
                continue  # its log has no record of what a hand has done: that holds everything
            if mixed and not self._world.known_as_heuristic(attempt.gtrid):
                self.violated("HEURISTIC", f"{attempt} is mixed, and its coordinator does not say so")
            wrong = any(
                completed and not outcome.startswith("HEUR") for _, outcome, completed in attempt.told
            )
            if mixed and wrong:
                self.violated("HEURISTIC", f"{attempt} is mixed, and a client was told otherwise")


def _holds(files: Iterable[bytes | bytearray], gtrid: str, kind: int) -> bool:
    """Whether a log's bytes have a record of a transaction."""
    head = _HEAD.pack(int(gtrid[10:], 36), int(gtrid[6:10], 36), kind)
    return any(head in content for content in files)

"""One global transaction and its branches: plain mutable state, no decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coordinator.core.effects import Rejection
from coordinator.core.inputs import Failure, RunBranch, WaitFor
from coordinator.core.records import PrepareRecord
from coordinator.core.states import ENDS, State
from dtp import BranchState, Decision, Gtrid, Outcome, Vote
from dtp.outcome import combine

# What the branches heard so far amount to, and one more may make another of.
_MAY_CHANGE = (Outcome.HEURISTIC_COMMIT, Outcome.HEURISTIC_ROLLBACK, Outcome.HEURISTIC_HAZARD)


@dataclass(slots=True)
class Branch:
    """One participant's part.

    Attributes:
        started: the branch may exist at its server.
        sent: a command is out and its answer is awaited.
        overlooked: a whole scan has come since the command went out, and no answer.
        attempts: of phase 2, so far.
        retry_at: when phase 2 is to be asked again, or None.
    """

    participant: str
    number: int
    state: BranchState = BranchState.NON_EXISTENT
    vote: Vote | None = None
    outcome: Outcome | None = None
    started: bool = True
    sent: bool = False
    overlooked: bool = False
    attempts: int = 0
    retry_at: float | None = None
    last_failure: Failure | None = None
    results: Any = None

    @property
    def open(self) -> bool:
        """Phase 2 has not finished this branch."""
        return self.outcome is None and self.vote is not Vote.READ_ONLY


@dataclass(slots=True)
class Waiter:
    """A caller that waits for the outcome."""

    ticket: int
    wait_for: WaitFor


@dataclass(slots=True)
class Transaction:
    """One global transaction.

    Attributes:
        deadline: after it the transaction is rolled back, unless it is decided.
        one_phase: the only branch's agent decides; no PREPARE, no log.
        prepare_written: the log has a PREPARE record, so an END record will follow.
        durable: the decision (or the heuristic record) that was forced is on disk.
        queue: branches of an in-order Run that have not been started.
        recovered: read from the log, or found by a scan, after a restart.
        orphan: found by a scan; the log has no record of it.
        forgotten: its FORGET record is on its way to the disk.
        timeline: (when, what, participant), for people.
    """

    gtrid: str
    id: Gtrid
    begun_at: float
    deadline: float
    entered_at: float
    state: State = State.ACTIVE
    branches: dict[str, Branch] = field(default_factory=dict)
    idempotency_key: str = ""
    fingerprint: bytes = b""
    decision: Decision | None = None
    durable: bool = True
    one_phase: bool = False
    one_shot: bool = False
    prepare_written: bool = False
    rejection: Rejection | None = None
    outcome: Outcome = Outcome.UNKNOWN
    queue: list[RunBranch] = field(default_factory=list)
    order: tuple[str, ...] = ()
    waiters: list[Waiter] = field(default_factory=list)
    recovered: bool = False
    orphan: bool = False
    forgotten: bool = False
    decided_at: float = 0.0
    ended_at: float = 0.0
    timeline: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Nothing more will happen, but for FORGET."""
        return self.state in ENDS

    @property
    def in_doubt(self) -> bool:
        """A branch is or may be prepared, and its end is still open."""
        if self.state is State.PREPARING:
            return any(branch.state is BranchState.PREPARED for branch in self.branches.values()) or (
                self.one_phase
            )
        return self.state in (State.COMMITTING, State.ROLLING_BACK)

    @property
    def sure_outcome(self) -> Outcome:
        """How a decided transaction ended or surely will, given what its branches have said so far.

        UNKNOWN where others have ended one branch and another is still open: they may have ended that one
        too, in the same way or not. Only a mixed outcome stays one whatever the rest says.
        """
        if self.outcome is not Outcome.UNKNOWN:
            return self.outcome
        assert self.decision is not None
        known = [branch.outcome for branch in self.branches.values() if branch.outcome is not None]
        so_far = combine(self.decision, known)
        is_open = any(branch.open for branch in self.branches.values())
        return Outcome.UNKNOWN if is_open and so_far in _MAY_CHANGE else so_far

    @property
    def numbers(self) -> tuple[int, ...]:
        """The participants' numbers."""
        return tuple(branch.number for branch in self.branches.values())

    @property
    def prepare_record(self) -> PrepareRecord:
        """What the log keeps from the beginning of phase 1 until END."""
        return PrepareRecord(self.id, self.numbers, self.begun_at, self.idempotency_key, self.fingerprint)

    def note(self, now: float, what: str, participant: str = "") -> None:
        """Add a line to the timeline (bounded: a branch that is retried for days does not grow it)."""
        if len(self.timeline) < 200:
            self.timeline.append((now, what, participant))

"""Inputs of the core: what has happened, as values. All names are in the past.

`ticket` names a waiting caller; the core gives it back in a Reply. `payload` and `results` are
opaque to the core. `link` is the number of the connection to an agent that an input came from, so
that late news from a broken connection can be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtp import Decision, Outcome, Reason, Vote, Xid
from dtp.term import Term


class WaitFor(Term):
    """What a caller of Commit or Run waits for."""

    DECIDED = "DECIDED"
    COMPLETED = "COMPLETED"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a branch could not do what was asked."""

    reason: Reason
    message: str
    errno: int = 0
    statement: int | None = None


@dataclass(frozen=True, slots=True)
class BeginRequested:
    """`room`: the log has reserved room for the transaction's records (R11 of docs/wal-format.md)."""

    ticket: int
    timeout_seconds: float | None
    random_bits: int
    room: bool
    idempotency_key: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class RunBranch:
    """One branch of a one-shot transaction."""

    participant: str
    payload: Any
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class RunRequested:
    ticket: int
    branches: tuple[RunBranch, ...]
    timeout_seconds: float | None
    wait_for: WaitFor
    in_order: bool
    random_bits: int
    room: bool
    idempotency_key: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class CommitRequested:
    ticket: int
    gtrid: str
    wait_for: WaitFor


@dataclass(frozen=True, slots=True)
class RollbackRequested:
    ticket: int
    gtrid: str


@dataclass(frozen=True, slots=True)
class ResolveRequested:
    ticket: int
    gtrid: str
    action: Decision
    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class ForgetRequested:
    ticket: int
    gtrid: str


@dataclass(frozen=True, slots=True)
class RecoveryRequested:
    """An operator wants what waits for this participant tried now, not after the pause."""

    participant: str


@dataclass(frozen=True, slots=True)
class CallerLeft:
    """The caller behind `ticket` no longer waits. The transaction goes on."""

    gtrid: str
    ticket: int


@dataclass(frozen=True, slots=True)
class DrainStarted:
    """The process is to stop: nothing new begins."""


@dataclass(frozen=True, slots=True)
class AgentConnected:
    participant: str
    link: int


@dataclass(frozen=True, slots=True)
class AgentFenced:
    """`last_committed`: the highest gtrid of ours, with several participants, that is committed there."""

    participant: str
    link: int
    server: str
    witness: bool
    address: str
    last_committed: str = ""


@dataclass(frozen=True, slots=True)
class AgentHeld:
    """The agent refused the fence: it remembers a higher epoch or another log."""

    participant: str
    link: int
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class AgentScanned:
    """What XA RECOVER listed. `started_at`: when the scan was asked for."""

    participant: str
    link: int
    started_at: float
    prepared: tuple[Xid, ...]
    blocked_sessions: int
    ghosts: int


@dataclass(frozen=True, slots=True)
class AgentLost:
    """The connection broke or could not be made."""

    participant: str
    link: int
    error: str


@dataclass(frozen=True, slots=True)
class BranchEnlisted:
    participant: str
    link: int
    gtrid: str


@dataclass(frozen=True, slots=True)
class BranchVoted:
    """`in_doubt`: it votes ROLLBACK, and may be prepared all the same. It is to be rolled back."""

    participant: str
    link: int
    gtrid: str
    vote: Vote
    failure: Failure | None = None
    results: Any = None
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class BranchFinished:
    """`outcome` None: not done, or not known yet; to be asked again."""

    participant: str
    link: int
    gtrid: str
    outcome: Outcome | None
    failure: Failure | None = None
    results: Any = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A branch waits for a lock. For what the fields mean see Wait in participant_agent.proto."""

    gtrid: str
    blocker: str = ""
    prepared: bool = False
    connection_id: int = 0
    account: str = ""


@dataclass(frozen=True, slots=True)
class WaitsReported:
    """All lock waits of our branches at a participant, as its agent has seen them now."""

    participant: str
    link: int
    waits: tuple[Wait, ...]


@dataclass(frozen=True, slots=True)
class RecordsDurable:
    """Every record up to the one with `number` is on disk."""

    number: int


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The wake-up that the core asked for."""


Input = (
    BeginRequested
    | RunRequested
    | CommitRequested
    | RollbackRequested
    | ResolveRequested
    | ForgetRequested
    | RecoveryRequested
    | CallerLeft
    | DrainStarted
    | AgentConnected
    | AgentFenced
    | AgentHeld
    | AgentScanned
    | AgentLost
    | BranchEnlisted
    | BranchVoted
    | BranchFinished
    | WaitsReported
    | RecordsDurable
    | TimePassed
)

"""Effects of the core: what is to be done, as values. All names are imperative.

The driver performs them in order. Ordering rule: the core emits an effect of a transaction only
when every record that this transaction forced before is durable, so a driver need not know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coordinator.core.inputs import RunBranch
from coordinator.core.records import Record
from coordinator.core.states import State
from dtp import Outcome, Reason
from dtp.term import Term


@dataclass(frozen=True, slots=True)
class Write:
    """Append a record. `kick` starts a flush; without it the record goes with the next one."""

    record: Record
    kick: bool


@dataclass(frozen=True, slots=True)
class Force:
    """Append a record and report RecordsDurable(number) when it is on disk."""

    record: Record
    number: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a transaction was rolled back."""

    reason: Reason
    message: str
    participant: str = ""
    errno: int = 0
    statement: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Start, statements, end and prepare (or commit in one phase) in one command."""

    branch: RunBranch
    participants: tuple[int, ...]
    remaining_seconds: float
    one_phase: bool


@dataclass(frozen=True, slots=True)
class Prepare:
    participants: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    one_phase: bool = False


@dataclass(frozen=True, slots=True)
class Rollback:
    """`why`: for a client whose statement is under way there."""

    why: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Enlisted:
    """The answer to an agent's news of a new branch."""

    accepted: bool
    reason: Reason | None
    remaining_seconds: float


Command = Run | Prepare | Commit | Rollback | Enlisted


@dataclass(frozen=True, slots=True)
class Send:
    """Send one command to the participant's agent, over its present connection."""

    participant: str
    gtrid: str
    command: Command


@dataclass(frozen=True, slots=True)
class Begun:
    gtrid: str
    timeout_seconds: float
    already_committed: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """How a transaction ended, or that its end is sure. `results`: (participant, results) in order."""

    gtrid: str
    outcome: Outcome
    completed: bool
    rejection: Rejection | None = None
    results: tuple[tuple[str, Any], ...] = ()
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """An operator's request is durable and under way."""

    gtrid: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The request changed nothing (or, where the reason is not definite, its outcome is unknown)."""

    reason: Reason
    message: str
    gtrid: str = ""


Answer = Begun | Decided | Accepted | Refused


@dataclass(frozen=True, slots=True)
class Reply:
    ticket: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Fence:
    """Fence the agent with this epoch and report AgentFenced, AgentHeld or AgentLost."""

    participant: str
    number: int
    link: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Open the command stream."""

    participant: str
    link: int


@dataclass(frozen=True, slots=True)
class Scan:
    """Ask for XA RECOVER and report AgentScanned or AgentLost. Without `fenced` it only inspects."""

    participant: str
    link: int
    fenced: bool


class AlertKind(Term):
    HEURISTIC = "HEURISTIC"
    HOLD = "HOLD"
    HELD_BRANCH = "HELD_BRANCH"
    ORPHAN = "ORPHAN"
    PROTOCOL = "PROTOCOL"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that people should see: logged and counted."""

    kind: AlertKind
    message: str
    gtrid: str = ""
    participant: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """A transaction has entered a state; `seconds` is the time it spent in the one before.

    The same state twice: it is durable now, and may be told.
    """

    gtrid: str
    before: State | None
    state: State
    seconds: float


Effect = Write | Force | Send | Reply | Fence | Attach | Scan | Alert | Changed

"""What the SDK says to the servers and in which order, without saying it. Pure.

A flow is a generator. It yields a Call or a Pause, is sent a Reply for each, and returns its
result or raises the caller's error. Time comes in with the replies. A driver performs the steps
(`xacoord.driver` blocks; an asynchronous one awaits), so every rule below exists once.

This file has the flows that cannot leave an outcome open; `xacoord.settlement` has the others.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Reason
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from xacoord.errors import AlreadyCommitted, InDoubt, RolledBack, TransactionError
from xacoord.faults import Fault
from xacoord.result import Result
from xacoord.status import TransactionStatus, decode_outcome, decode_rejection, decode_status
from xacoord.verdict import error_of, rolled_back_by, settle

T = TypeVar("T")
Method: TypeAlias = Literal["Begin", "Run", "Commit", "Rollback", "Get", "Execute"]

# Reasons of a rollback that says nothing new: it was asked for, or no reason is known any more.
_BY_THIS_CALL = frozenset({Reason.ROLLED_BACK_BY_REQUEST, Reason.ALREADY_ROLLED_BACK})

# What the coordinator uses where a request names no time-out.
SERVER_DEFAULT_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """Make a unary call.

    Attributes:
        method: of the coordinator, or Execute of the agent at `address`.
        request: the request.
        timeout_seconds: the call's deadline from now.
        address: "host:port" of an agent, or "" for the coordinator.
    """

    method: Method
    request: Any
    timeout_seconds: float
    address: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a step.

    Attributes:
        started: when the step began, in seconds of a monotonic clock.
        now: when it ended.
        message: the response of a call that succeeded.
        fault: why a call failed, or None.
    """

    started: float
    now: float
    message: Any = None
    fault: Fault | None = None


Flow: TypeAlias = Generator[Call | Pause, Reply, T]


@dataclass(frozen=True, slots=True)
class Begun:
    """A transaction that has begun.

    Attributes:
        gtrid: its id.
        timeout_seconds: what the server grants.
        deadline: on the driver's clock.
        addresses: participant -> agent's address, where they were asked for.
    """

    gtrid: str
    timeout_seconds: float
    deadline: float
    addresses: dict[str, str]


def begin(request: pb.BeginRequest, grace_seconds: float) -> Flow[Begun]:
    """Begin a transaction. A failure is always definite: no work has been given away yet."""
    reply = yield Call("Begin", request, grace_seconds)
    if reply.fault is not None:
        raise error_of(reply.fault)
    response: pb.BeginResponse = reply.message
    if response.already_committed:
        raise AlreadyCommitted(response.gtrid)
    timeout_seconds = SERVER_DEFAULT_TIMEOUT_SECONDS
    if response.HasField("timeout"):
        timeout_seconds = response.timeout.seconds + response.timeout.nanos / 1e9
    return Begun(
        gtrid=response.gtrid,
        timeout_seconds=timeout_seconds,
        deadline=reply.now + timeout_seconds,
        addresses=_addresses(response),
    )


def read_directory(grace_seconds: float) -> Flow[dict[str, str]]:
    """The agents' addresses, while a transaction is under way.

    Only Begin tells them, so a transaction is begun and rolled back; it never has a branch.
    """
    request = pb.BeginRequest(directory=True)
    request.timeout.seconds = 1
    reply = yield Call("Begin", request, grace_seconds)
    if reply.fault is not None:
        raise error_of(reply.fault)
    yield Call("Rollback", pb.RollbackRequest(gtrid=reply.message.gtrid), grace_seconds)
    return _addresses(reply.message)


def execute(
    request: agent_pb.ExecuteRequest, participant: str, address: str, timeout_seconds: float
) -> Flow[list[Result]]:
    """Run statements in a branch. Any failure dooms the transaction: the caller must roll it back.

    Raises:
        RolledBack: in the sense of "cannot commit any more".
    """
    reply = yield Call("Execute", request, timeout_seconds, address)
    if reply.fault is not None:
        raise rolled_back_by(reply.fault, request.gtrid, participant)
    return [Result(result) for result in reply.message.results]


def rollback(gtrid: str, grace_seconds: float) -> Flow[TransactionError | None]:
    """Roll back a transaction of which no Commit was sent.

    Returns None where it is rolled back or will be by its time-out (a failed call changes
    nothing about that), RolledBack where the coordinator had done it before, which says why, or
    an error that says how it ended otherwise.
    """
    reply = yield Call("Rollback", pb.RollbackRequest(gtrid=gtrid), grace_seconds)
    if reply.fault is not None:
        if reply.fault.reason in {Reason.ALREADY_COMMITTED, Reason.DECISION_CONTRADICTED}:
            return AlreadyCommitted(gtrid, "someone else has decided to commit the transaction")
        if reply.fault.reason == Reason.TRANSACTION_NOT_ACTIVE:
            return InDoubt(f"someone else is committing it: ask tm.status({gtrid!r})", gtrid)
        return None
    outcome = decode_outcome(reply.message.outcome)
    rejection = decode_rejection(reply.message)
    try:
        settled = settle(gtrid, outcome, reply.message.completed, rejection)
    except RolledBack as error:
        return None if error.reason in _BY_THIS_CALL else error
    except TransactionError as error:
        return error
    return None if settled is None else AlreadyCommitted(gtrid, "someone else has committed the transaction")


def status(gtrid: str, grace_seconds: float) -> Flow[TransactionStatus]:
    """What is known of a transaction."""
    reply = yield Call("Get", pb.GetRequest(gtrid=gtrid), grace_seconds)
    if reply.fault is not None:
        raise error_of(reply.fault, gtrid)
    return decode_status(reply.message)


def _addresses(response: pb.BeginResponse) -> dict[str, str]:
    pairs: Iterable[pb.ParticipantAddress] = response.participants
    return {pair.participant: pair.address for pair in pairs}

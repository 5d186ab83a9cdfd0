"""Commit and Run: the two calls whose answer may be lost, and how the outcome becomes known then. Pure.

Commit:

1. Commit is sent. An outcome in the answer is the end of it.
2. A *definite* error of this first Commit: it never took effect and no other was sent. The
   transaction is rolled back (should that call fail too, its time-out does it): RolledBack.
3. Anything else leaves the outcome open. For `grace_seconds` the coordinator is asked with Get,
   with growing pauses. Where it still shows ACTIVE the Commit never arrived and is repeated,
   which the protocol allows. Of a repeated Commit only outcomes and the reasons that say "rolled
   back" count: a definite refusal of the second says nothing about the first.
4. Still open: InDoubt.

Run, where no answer arrives:

1. A definite error of the first Run: nothing was done.
2. The gtrid is known (from the error): as 3 and 4 above, without repeating anything.
3. There is an idempotency key: Run is repeated with the same key. The server joins a call that
   is under way, replays one that committed, and runs anew one that was rolled back or never
   arrived; so it is done once at most. All repeats end within one grace time after the first
   one's deadline.
4. Neither: InDoubt without a gtrid.
"""

from __future__ import annotations

from types import MappingProxyType

from coordinator.v1 import coordinator_pb2 as pb
from dtp import Outcome, Reason
from xacoord.errors import InDoubt
from xacoord.faults import Fault
from xacoord.flows import SERVER_DEFAULT_TIMEOUT_SECONDS, Call, Flow, Pause, Reply
from xacoord.result import Result, RunResult
from xacoord.status import decode_outcome, decode_rejection
from xacoord.verdict import ROLLED_BACK_REASONS, Settled, error_of, rolled_back_by, settle

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5


def commit(
    request: pb.CommitRequest, timeout_seconds: float, grace_seconds: float, worked: bool
) -> Flow[Settled]:
    """Commit a transaction and find out how it ended.

    Args:
        request: the request.
        timeout_seconds: the transaction's remaining time.
        grace_seconds: added to it for the answer; also how long an open outcome is asked for.
        worked: statements were run in it; without any, having no branches is no error.

    Raises:
        RolledBack, HeuristicMixed, InDoubt.
    """
    gtrid = request.gtrid
    reply = yield Call("Commit", request, timeout_seconds + grace_seconds)
    settled = _settle_commit(reply, gtrid)
    if settled is not None:
        return settled
    fault = reply.fault
    if fault is not None and fault.definite and _refused(fault):
        if fault.reason == Reason.NO_BRANCHES and not worked:
            return Settled(completed=True)
        yield Call("Rollback", pb.RollbackRequest(gtrid=gtrid), grace_seconds)
        raise rolled_back_by(fault, gtrid)
    return (yield from _ask(gtrid, reply, grace_seconds, request))


def run(request: pb.RunRequest, grace_seconds: float) -> Flow[RunResult]:
    """Run a whole transaction and find out how it ended.

    Raises:
        RolledBack, HeuristicMixed, InDoubt, Unavailable, InvalidRequest, IdempotencyMismatch,
        IdempotencyInProgress.
    """
    timeout_seconds = SERVER_DEFAULT_TIMEOUT_SECONDS
    if request.HasField("timeout"):
        timeout_seconds = max(0.0, request.timeout.seconds + request.timeout.nanos / 1e9)
    reply = yield Call("Run", request, timeout_seconds + grace_seconds)
    fault = reply.fault
    if fault is not None and fault.definite:
        raise error_of(fault)
    last_start = reply.now + grace_seconds
    until = reply.started + timeout_seconds + 2 * grace_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        fault = reply.fault
        if fault is None:
            return (yield from _run_result(reply, grace_seconds))
        if fault.reason in ROLLED_BACK_REASONS:
            raise rolled_back_by(fault, fault.gtrid)
        if fault.reason == Reason.IDEMPOTENCY_MISMATCH:
            raise error_of(fault)
        if fault.gtrid:
            settled = yield from _ask(fault.gtrid, reply, grace_seconds, None)
            return RunResult(fault.gtrid, Outcome.COMMITTED, settled.completed)
        if not request.idempotency_key:
            raise InDoubt(
                f"the answer was lost ({fault.message}), and without an idempotency key the transaction "
                "cannot be found again: look at the data, and give a key next time"
            )
        if reply.now + pause >= last_start:
            raise InDoubt(
                f"the answer was lost ({fault.message}): repeat the same run with the same idempotency key"
            )
        reply = yield Pause(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        reply = yield Call("Run", request, until - reply.now)


def _run_result(reply: Reply, grace_seconds: float) -> Flow[RunResult]:
    response: pb.RunResponse = reply.message
    outcome = decode_outcome(response.outcome)
    settled = settle(response.gtrid, outcome, response.completed, decode_rejection(response))
    if settled is None:
        settled = yield from _ask(response.gtrid, reply, grace_seconds, None)
    return RunResult(
        gtrid=response.gtrid,
        outcome=Outcome.COMMITTED,
        completed=settled.completed,
        replayed=response.replayed,
        results=MappingProxyType(
            {
                branch.participant: tuple(Result(result) for result in branch.results)
                for branch in response.results
            }
        ),
    )


def _ask(gtrid: str, reply: Reply, grace_seconds: float, repeat: pb.CommitRequest | None) -> Flow[Settled]:
    """Ask how `gtrid` ended, for `grace_seconds` from `reply` on; `repeat` is sent where it never arrived."""
    until = reply.now + grace_seconds
    pause = FIRST_PAUSE_SECONDS
    why = reply.fault.message if reply.fault is not None else "the coordinator does not know it yet"
    while True:
        reply = yield Call("Get", pb.GetRequest(gtrid=gtrid), until - reply.now)
        if reply.fault is None:
            transaction = reply.message.transaction
            completed = transaction.state == pb.STATE_COMMITTED and not transaction.in_doubt
            outcome = decode_outcome(transaction.outcome)
            settled = settle(gtrid, outcome, completed, decode_rejection(transaction))
            if settled is not None:
                return settled
            if repeat is not None and transaction.state == pb.STATE_ACTIVE and reply.now < until:
                reply = yield Call("Commit", repeat, until - reply.now)
                settled = _settle_commit(reply, gtrid)
                if settled is not None:
                    return settled
        if reply.now + pause >= until:
            raise InDoubt(f"the outcome is not known yet ({why}): ask tm.status({gtrid!r}) later", gtrid)
        reply = yield Pause(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _settle_commit(reply: Reply, gtrid: str) -> Settled | None:
    """What the answer to any Commit, first or repeated, settles; None: nothing."""
    fault = reply.fault
    if fault is None:
        response: pb.CommitResponse = reply.message
        outcome = decode_outcome(response.outcome)
        return settle(gtrid, outcome, response.completed, decode_rejection(response))
    if fault.reason == Reason.ALREADY_COMMITTED:
        return Settled(completed=False)
    if fault.definite and fault.reason in ROLLED_BACK_REASONS:
        raise rolled_back_by(fault, gtrid)
    return None


def _refused(fault: Fault) -> bool:
    """True where a definite error of the first Commit means that the transaction cannot commit any more.

    Not so: reasons that may also follow somebody else's commit (Get tells), and a Commit that could not
    be sent (the coordinator may be back within the grace time, and then Commit is repeated).
    """
    if fault.transport:
        return fault.status != "UNAVAILABLE"
    return fault.reason not in {Reason.TRANSACTION_NOT_ACTIVE, Reason.DECISION_CONTRADICTED}

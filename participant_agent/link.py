"""Link: one attached coordinator: what is to be reported to it, and what waits for its answers.

Reports are batched naturally: all that gathered while the last message was written goes into the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dtp import Reason, Vote, XacoordError
from participant_agent.core.errors import Failure
from participant_agent.core.finish import Finished, State
from participant_agent.core.waits import Wait
from participant_agent.core.work import Voted
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.values import result_message

_VOTES: dict[Vote, pb.Vote.ValueType] = {
    Vote.OK: pb.VOTE_OK,
    Vote.READ_ONLY: pb.VOTE_READ_ONLY,
    Vote.ROLLBACK: pb.VOTE_ROLLBACK,
}
_STATES: dict[State, pb.FinishedState.ValueType] = {
    State.COMMITTED: pb.FINISHED_STATE_COMMITTED,
    State.ROLLED_BACK: pb.FINISHED_STATE_ROLLED_BACK,
    State.RETRY: pb.FINISHED_STATE_RETRY,
    State.HEURISTIC_COMMIT: pb.FINISHED_STATE_HEURISTIC_COMMIT,
    State.HEURISTIC_ROLLBACK: pb.FINISHED_STATE_HEURISTIC_ROLLBACK,
    State.HEURISTIC_HAZARD: pb.FINISHED_STATE_HEURISTIC_HAZARD,
}
_MAX_MESSAGE_BYTES = 3_800_000
MAX_WAITS = 5_000


def failure_message(failure: Failure | None) -> pb.Failure | None:
    """A failure on the wire."""
    if failure is None:
        return None
    retryable = XacoordError(failure.reason, "").retryable
    return pb.Failure(
        reason=failure.reason.value,
        message=failure.message,
        retryable=retryable,
        errno=failure.errno,
        statement=failure.statement,
    )


def report_message(gtrid: str, result: Voted | Finished) -> pb.Report:
    """A result on the wire."""
    results = [result_message(ok) for ok in result.results]
    failure = failure_message(result.failure)
    if isinstance(result, Voted):
        return pb.Report(
            gtrid=gtrid,
            voted=pb.Voted(
                vote=_VOTES[result.vote], failure=failure, results=results, in_doubt=result.in_doubt
            ),
        )
    return pb.Report(
        gtrid=gtrid, finished=pb.Finished(state=_STATES[result.state], failure=failure, results=results)
    )


def waits_message(waits: tuple[Wait, ...]) -> pb.Waits:
    """A snapshot of lock waits on the wire."""
    return pb.Waits(
        waits=[
            pb.Wait(
                gtrid=wait.gtrid,
                blocker=wait.blocker,
                prepared=wait.prepared,
                connection_id=wait.connection_id,
                account=wait.account,
            )
            for wait in waits[:MAX_WAITS]
        ]
    )


class Link:
    """The stream of one coordinator."""

    def __init__(self, coordinator_id: str, epoch: int) -> None:
        self.coordinator_id = coordinator_id
        self.epoch = epoch
        self.closed: XacoordError | None = None
        self._outbox: list[pb.Report] = []
        self._waits: pb.Waits | None = None
        self._told_waits = False
        self._filled = asyncio.Event()
        self._enlisting: dict[str, asyncio.Future[pb.Enlisted]] = {}

    def report(self, gtrid: str, result: Voted | Finished) -> None:
        """Send what became of a branch."""
        self.put(report_message(gtrid, result))

    def put(self, report: pb.Report) -> None:
        """Send a report with the next message. Reports to a closed link are lost; the coordinator asks
        again."""
        if self.closed is None:
            self._outbox.append(report)
            self._filled.set()

    def tell_waits(self, waits: tuple[Wait, ...]) -> None:
        """Tell all lock waits of now; that there are none is told once."""
        if self.closed is None and (waits or self._told_waits):
            self._told_waits = bool(waits)
            self.put_waits(waits_message(waits))

    def put_waits(self, waits: pb.Waits) -> None:
        """Send them with the next message, instead of what was to be sent before."""
        self._waits = waits
        self._filled.set()

    def enlist(self, gtrid: str) -> asyncio.Future[pb.Enlisted]:
        """Tell the coordinator of a new branch; the future is its answer.

        It fails with COORDINATOR_UNAVAILABLE where the stream has ended, or ends first.
        """
        future: asyncio.Future[pb.Enlisted] = asyncio.get_running_loop().create_future()
        if self.closed is not None:
            _abandon(future)
            return future
        self._enlisting[gtrid] = future
        self.put(pb.Report(gtrid=gtrid, enlist=pb.Enlist()))
        return future

    def enlisted(self, gtrid: str, answer: pb.Enlisted) -> bool:
        """The coordinator's answer; False where nobody waits for it."""
        future = self._enlisting.pop(gtrid, None)
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    def close(self, error: XacoordError) -> None:
        """End the stream with `error`; those that wait for answers get COORDINATOR_UNAVAILABLE."""
        if self.closed is not None:
            return
        self.closed = error
        self._filled.set()
        for future in self._enlisting.values():
            if not future.done():
                _abandon(future)
        self._enlisting.clear()

    async def messages(self) -> AsyncIterator[pb.AttachResponse]:
        """What to send, until the link is closed."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            if self.closed is not None:
                return
            reports, self._outbox = self._outbox, []
            waits, self._waits = self._waits, None
            for message in _split(reports):
                yield message
            if waits is not None:  # behind the reports: what has voted since waits no more
                yield pb.AttachResponse(waits=waits)


def _abandon(future: asyncio.Future[pb.Enlisted]) -> None:
    future.set_exception(
        XacoordError(Reason.COORDINATOR_UNAVAILABLE, "the coordinator's stream ended; begin again")
    )
    future.exception()  # it may be that nobody waits any more


def _split(reports: list[pb.Report]) -> list[pb.AttachResponse]:
    """One message unless rows of several branches would exceed what a message may hold."""
    message = pb.AttachResponse(reports=reports)
    if len(reports) < 2 or message.ByteSize() < _MAX_MESSAGE_BYTES:
        return [message] if reports else []
    middle = len(reports) // 2
    return _split(reports[:middle]) + _split(reports[middle:])

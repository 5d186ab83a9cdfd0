"""Service: the Coordinator gRPC service. It checks requests, asks the driver, converts answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from coordinator import convert, validation
from coordinator.agents import LinkDown
from coordinator.core import inputs
from coordinator.core.effects import Begun, Decided
from coordinator.core.transaction import Transaction
from coordinator.evidence import judge
from coordinator.runtime import Runtime
from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as rpc
from dtp import Gtrid, Outcome, Reason, XacoordError
from dtp.xid import RANDOM_BITS
from shell.streams import ANSWER_OVERHEAD, Method, Streams

MAX_ANSWER_BYTES = 16 << 20
_DEFAULT_PAGE = 100
_MAX_PAGE = 1_000

Context = grpc.aio.ServicerContext[Any, Any]


class CoordinatorService(rpc.CoordinatorServicer):
    """What applications call."""

    def __init__(self, runtime: Runtime, randbits: Callable[[int], int] = secrets.randbits) -> None:
        self._runtime = runtime
        self._randbits = randbits
        self._driver = runtime.driver
        self._core = runtime.driver.core
        methods: dict[str, Method] = {
            "begin": self.Begin,
            "run": self.Run,
            "commit": self.Commit,
            "rollback": self.Rollback,
            "get": self.Get,
        }
        self.streams = Streams(pb.Answer, methods, MAX_ANSWER_BYTES - ANSWER_OVERHEAD)

    async def Session(self, requests: AsyncIterator[pb.SessionRequest], context: Context) -> Any:
        """Many calls on one stream; its messages come serialised."""
        async for message in self.streams.serve(requests):
            yield message

    def _check_ready(self) -> None:
        reason = self._runtime.not_ready
        if reason and not reason.startswith("the log's disk"):  # that one has a reason of its own, LOG_FULL
            raise XacoordError(Reason.NOT_READY, f"not ready: {reason}; try again")

    def _gtrid(self, text: str) -> str:
        return validation.gtrid(text, self._core.settings.coordinator_id)

    async def Begin(self, request: pb.BeginRequest, context: Context) -> pb.BeginResponse:
        """Give a transaction its id."""
        self._check_ready()
        validation.idempotency(request.idempotency_key, request.fingerprint)
        timeout = validation.timeout(request.timeout if request.HasField("timeout") else None)
        answer = await self._driver.ask_new(
            lambda ticket, room: inputs.BeginRequested(
                ticket,
                timeout,
                self._randbits(RANDOM_BITS),
                room,
                request.idempotency_key,
                request.fingerprint,
            )
        )
        assert isinstance(answer, Begun)
        return pb.BeginResponse(
            gtrid=answer.gtrid,
            timeout=convert.duration(answer.timeout_seconds),
            already_committed=answer.already_committed,
            participants=self._directory() if request.directory else None,
        )

    def _directory(self) -> list[pb.ParticipantAddress]:
        links = self._driver.links
        return [
            pb.ParticipantAddress(participant=name, address=participant.address or links[name].address)
            for name, participant in self._core.participants.items()
            if name in links
        ]

    async def Run(self, request: pb.RunRequest, context: Context) -> pb.RunResponse:
        """All branches with their statements, decided in one call."""
        self._check_ready()
        validation.idempotency(request.idempotency_key)
        branches = validation.branches(request)
        wait_for = validation.wait_for(request.wait_for)
        timeout = validation.timeout(request.timeout if request.HasField("timeout") else None)
        fingerprint = validation.run_fingerprint(request) if request.idempotency_key else b""
        answer = await self._driver.ask_new(
            lambda ticket, room: inputs.RunRequested(
                ticket,
                branches,
                timeout,
                wait_for,
                request.in_order,
                self._randbits(RANDOM_BITS),
                room,
                request.idempotency_key,
                fingerprint,
            )
        )
        assert isinstance(answer, Decided)
        return convert.run_response(answer)

    async def Commit(self, request: pb.CommitRequest, context: Context) -> pb.CommitResponse:
        """Prepare everywhere and decide."""
        gtrid = self._gtrid(request.gtrid)
        wait_for = validation.wait_for(request.wait_for)
        try:
            answer = await self._driver.ask(
                lambda ticket: inputs.CommitRequested(ticket, gtrid, wait_for), gtrid
            )
        except XacoordError as error:
            return pb.CommitResponse(
                outcome=convert.OUTCOMES[await self._from_evidence(error, gtrid)], completed=True
            )
        assert isinstance(answer, Decided)
        return convert.commit_response(answer)

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:
        """Roll back everywhere."""
        gtrid = self._gtrid(request.gtrid)
        try:
            answer = await self._driver.ask(lambda ticket: inputs.RollbackRequested(ticket, gtrid), gtrid)
        except XacoordError as error:
            outcome = await self._from_evidence(error, gtrid)
            if outcome is Outcome.COMMITTED:
                raise XacoordError(Reason.ALREADY_COMMITTED, "it has committed", gtrid=gtrid) from error
            return pb.RollbackResponse(outcome=convert.OUTCOMES[outcome], completed=True)
        assert isinstance(answer, Decided)
        if answer.outcome is Outcome.COMMITTED:
            raise XacoordError(Reason.ALREADY_COMMITTED, "it has committed", gtrid=gtrid)
        return convert.rollback_response(answer)

    async def _from_evidence(self, error: XacoordError, gtrid: str) -> Outcome:
        """The outcome of a transaction that is no longer known here, or an error that says so."""
        if error.reason is not Reason.UNKNOWN_TRANSACTION or not self._core.knows_id(Gtrid.parse(gtrid)):
            raise error
        outcome = await self._ask_witnesses(gtrid)
        if outcome is Outcome.UNKNOWN:
            raise XacoordError(
                Reason.OUTCOME_UNKNOWN,
                "the log has dropped it and the witness rows do not tell; see coordctl participants",
                gtrid=gtrid,
            ) from error
        return outcome

    async def _ask_witnesses(self, gtrid: str) -> Outcome:
        """From the witness rows. Only participants that this epoch has fenced count."""

        async def look(name: str) -> int | None:
            link = self._driver.links.get(name)
            if link is None or not self._core.is_up(name):
                return None
            try:
                return await link.lookup(gtrid)
            except (LinkDown, grpc.aio.AioRpcError):
                return None

        return judge(await asyncio.gather(*(look(name) for name in self._core.participants)))

    def _find(self, gtrid: str) -> Transaction | None:
        return self._core.open.get(gtrid) or self._core.ended.get(gtrid)

    def message(self, transaction: Transaction) -> pb.Transaction:
        """One transaction as a message."""
        return convert.transaction_message(self._core, transaction, self._driver.clock())

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """What is known of a transaction."""
        gtrid = self._gtrid(request.gtrid)
        transaction = self._find(gtrid)
        if transaction is not None:
            return pb.GetResponse(
                transaction=self.message(transaction), evidence="log" if transaction.recovered else "live"
            )
        if not self._core.knows_id(Gtrid.parse(gtrid)):
            raise XacoordError(
                Reason.UNKNOWN_TRANSACTION, "this coordinator has never given that id", gtrid=gtrid
            )
        outcome = await self._ask_witnesses(gtrid)
        state = {
            Outcome.COMMITTED: pb.STATE_COMMITTED,
            Outcome.ROLLED_BACK: pb.STATE_ROLLED_BACK,
        }.get(outcome, pb.STATE_UNSPECIFIED)
        return pb.GetResponse(
            transaction=pb.Transaction(gtrid=gtrid, state=state, outcome=convert.OUTCOMES[outcome]),
            evidence="witness rows",
        )

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """Open transactions and the last ended ones, the newest first."""
        size = request.page_size or _DEFAULT_PAGE
        if size > _MAX_PAGE:
            raise XacoordError(Reason.INVALID_REQUEST, f"page_size {size}; give 1 to {_MAX_PAGE}")
        if request.page_token:
            self._gtrid(request.page_token)
        now = self._driver.clock()
        least_age = validation.seconds(request.older_than, "older_than")
        if least_age < 0:
            raise XacoordError(Reason.INVALID_REQUEST, "older_than must not be negative")
        states = set(request.states)
        found: list[pb.Transaction] = []
        known = {**self._core.ended, **self._core.open}
        for gtrid in sorted(known, reverse=True):
            transaction = known[gtrid]
            if request.page_token and gtrid >= request.page_token:
                continue
            if now - transaction.begun_at < least_age:
                continue
            if request.in_doubt and not transaction.in_doubt:
                continue
            message = convert.transaction_message(self._core, transaction, now)
            if states and message.state not in states:
                continue
            if len(found) == size:
                return pb.ListResponse(transactions=found, next_page_token=found[-1].gtrid)
            found.append(message)
        return pb.ListResponse(transactions=found)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """A transaction's states as they change."""
        gtrid = self._gtrid(request.gtrid)
        transaction = self._find(gtrid)
        if transaction is None:
            response = await self.Get(pb.GetRequest(gtrid=gtrid), context)
            yield pb.WatchResponse(transaction=response.transaction)
            return
        changed = self._driver.watch(gtrid)
        try:
            while True:
                # Not looked for again: a slow reader hears the end of one that is forgotten by then.
                changed.clear()
                # Before the yield: it may end while a slow reader takes an earlier state.
                told_its_end = transaction.ended
                yield pb.WatchResponse(transaction=self.message(transaction))
                if told_its_end:
                    return
                await changed.wait()
        finally:
            self._driver.unwatch(gtrid, changed)

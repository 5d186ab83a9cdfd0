"""Clients: they do work in one-shot and interactive transactions, over the generated stubs or over Session
streams, and note what they hear.

Fault model: a client vanishes at any place or at any time; it repeats what it got no answer to (Commit, Get,
and Run with its key, never Run without one); it is late, rolls back, commits a branch that failed, and asks
twice at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as coordinator_rpc
from participant_agent.v1 import participant_agent_pb2 as agent_pb
from participant_agent.v1 import participant_agent_pb2_grpc as agent_rpc
from participant_agent.v1 import statement_pb2
from tests.simulation.calls import channel
from tests.simulation.ledger import Attempt, Work
from tests.simulation.process import Process
from tests.simulation.streams import StreamingStub

if TYPE_CHECKING:
    from tests.simulation.world import World

_PATIENCE = 8
_STREAMING = 0.4  # of the clients
PRIVATE = 1_000
SHARED = 3
_CROWDED = 2  # of them, where everybody wants the same
_UNFIT = "UPDATE {p}.account SET balance = balance + 1 WHERE id = 999"  # there is no such row


def definite(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """The reason of an error, and whether it says that what was asked certainly did not happen."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason, info.metadata["definite"] == "true"
    return error.code().name, False


class Client:
    """One application process that does some work and ends."""

    def __init__(self, world: World, number: int, coordinator: str) -> None:
        self.world = world
        self.random: Random = world.stream(f"client {number}")
        self.coordinator = coordinator
        self.name = f"client-{number}"
        self.done = False
        self.process = Process(world.loop, self.name, self.name)
        world.network.client(self.process)
        self.process.on_end.append(lambda: world.trace(self.name, "vanished", self.process.died_at_place))

    def start(self, works: int) -> None:
        self.process.spawn(self._main(works))

    async def _think(self) -> None:
        seconds = self.random.random() * self.world.plan.think_seconds
        if not self.world.calm:  # then there is a time by which everything has to have ended
            await asyncio.sleep(seconds)

    async def _main(self, works: int) -> None:
        self._connect()
        for _ in range(works):
            await self._think()
            if not self.world.calm:
                await self._one()
        self.done = True

    async def _one(self) -> None:
        random = self.random
        names = list(self.world.agents)
        count = min(len(names), random.choice((1, 2, 2, 2, 3, 3)))
        chosen = random.sample(names, count)
        readers = random.sample(chosen, 1) if count > 1 and random.random() < 0.15 else []
        key = ""
        if random.random() < self.world.plan.keys:
            key = f"key-{self.name}-{len(self.world.works)}"
        writes = tuple(name for name in chosen if name not in readers)
        work = self.world.new_work(self.coordinator, writes, key)
        if random.random() < 0.5:
            await self._one_shot(work, chosen)
        else:
            await self._interactive(work, chosen)
        work.ended = True

    async def audit(self, works: list[Work]) -> None:
        """Ask for every transaction until it is known; everything is at rest."""
        self._connect()
        purged = self.world.plan.witness_retention < 60
        excused = purged or self.world.coordinators[self.coordinator].on_hold
        for work in works:
            for attempt in work.attempts:
                known = not attempt.gtrid or await self._get_in_the_end(attempt, 1 if excused else _PATIENCE)
                if not known and not excused:
                    self.world.oracle.violated("LIVENESS", f"Get does not know {attempt}")
        self.done = True

    async def _get_in_the_end(self, attempt: Attempt, times: int) -> bool:
        for _ in range(times):
            if await self.get(attempt):
                return True
            await asyncio.sleep(1.0)  # a connection that was half open is just noticed
        return False

    def _connect(self) -> None:
        network = self.world.network
        self.stub: Any = coordinator_rpc.CoordinatorStub(  # type: ignore[no-untyped-call]
            channel(network, self.world.coordinators[self.coordinator].address)
        )
        self.agents: dict[str, Any] = {
            name: agent_rpc.ParticipantAgentStub(channel(network, node.address))  # type: ignore[no-untyped-call]
            for name, node in self.world.agents.items()
        }
        if self.world.stream(f"streams of {self.name}").random() < _STREAMING:
            self.stub = StreamingStub(network, self.process, self.stub, pb)
            self.agents = {
                name: StreamingStub(network, self.process, stub, agent_pb)
                for name, stub in self.agents.items()
            }

    # statements

    def _statements(self, work: Work, participant: str, fail: bool) -> list[statement_pb2.Statement]:
        random = self.random
        if participant not in work.writes:
            sql = f"SELECT balance FROM {participant}.account WHERE id = {self._shared()}"
            return [statement_pb2.Statement(sql=sql)]
        update = f"UPDATE {participant}.account SET balance = balance + 1 WHERE id = "
        found = [statement_pb2.Statement(sql=f"{update}{PRIVATE + work.number}", expect_rows=1)]
        if random.random() < 0.6 or self.world.plan.crowded:
            found.append(statement_pb2.Statement(sql=f"{update}{self._shared()}", expect_rows=1))
        if not work.key and random.random() < 0.3:
            sql = f"INSERT INTO {participant}.transfer (id, amount) VALUES ('{work.number}', 1)"
            found.append(statement_pb2.Statement(sql=sql))
        if fail:
            twice = f"INSERT INTO {participant}.transfer (id, amount) VALUES ('twice', 1)"
            unfit = statement_pb2.Statement(sql=_UNFIT.format(p=participant), expect_rows=1)
            found.append(unfit if random.random() < 0.5 else statement_pb2.Statement(sql=twice))
        return found

    def _shared(self) -> int:
        """A row that others want, too."""
        return self.random.randint(1, _CROWDED if self.world.plan.crowded else SHARED)

    def _timeout(self) -> Duration | None:
        if self.random.random() < 0.5:
            return None
        duration = Duration()
        duration.FromNanoseconds(int(1e9 * self.random.choice((0.5, 2.0, 5.0, 20.0))))
        return duration

    def _fails(self) -> bool:
        return self.random.random() < self.world.plan.failing_statements

    # one shot

    async def _one_shot(self, work: Work, chosen: list[str]) -> None:
        random = self.random
        request = pb.RunRequest(
            branches=[
                pb.RunBranch(
                    participant=name,
                    statements=self._statements(work, name, self._fails()),
                    read_only=name not in work.writes and random.random() < 0.5,
                )
                for name in chosen
            ],
            idempotency_key=work.key,
            wait_for=random.choice((pb.WAIT_FOR_DECIDED, pb.WAIT_FOR_COMPLETED)),
            in_order=random.random() < 0.3,
        )
        timeout = self._timeout()
        if timeout is not None:
            request.timeout.CopyFrom(timeout)
        work.asked = True
        for _ in range(6 if work.key else 1):
            if work.key and random.random() < 0.2:
                again = asyncio.ensure_future(self._run(work, request))
                await self._run(work, request)
                known = await again
            else:
                known = await self._run(work, request)
            if known:
                return
            await asyncio.sleep(random.random() * 2.0)

    async def _run(self, work: Work, request: pb.RunRequest) -> bool:
        """Whether the work is over: committed, or refused for good."""
        attempt = work.attempt()
        try:
            response = await self.stub.Run(request, timeout=self.random.choice((1.0, 5.0, 40.0)))
        except grpc.aio.AioRpcError as error:
            return await self._after_error(attempt, error, work)
        self._hear(attempt, response)
        if response.rejection.ByteSize():
            self.world.counters[f"rejected {response.rejection.reason}"] += 1
        return attempt.outcomes == {"COMMITTED"} or not work.key or self.random.random() < 0.5

    async def _after_error(self, attempt: Attempt, error: grpc.aio.AioRpcError, work: Work) -> bool:
        reason, sure = definite(error)
        self.world.trace(self.name, "hears", reason, "definite" if sure else "")
        self.world.counters[f"refused {reason}"] += 1
        if reason.startswith("IDEMPOTENCY") or reason == "HEURISTIC_OUTCOME":
            return reason != "IDEMPOTENCY_IN_PROGRESS"
        attempt.refused = sure
        return False

    def _hear(self, attempt: Attempt, response: Any) -> None:
        outcome = pb.Outcome.Name(response.outcome).removeprefix("OUTCOME_")
        gtrid = getattr(response, "gtrid", "")
        if gtrid and attempt.gtrid and attempt.gtrid != gtrid:
            self.world.oracle.violated("I3", f"{attempt.gtrid} was answered as {gtrid}")
        attempt.gtrid = attempt.gtrid or gtrid
        self.told(attempt, outcome, response.completed)

    def told(self, attempt: Attempt, outcome: str, completed: bool) -> None:
        """Note an outcome."""
        self.world.trace(self.name, "is told", outcome, attempt.gtrid, "completed" if completed else "")
        if outcome not in ("UNKNOWN", "UNSPECIFIED"):
            attempt.told.append((self.world.loop.time(), outcome, completed))
            self.world.counters[f"told {outcome}"] += 1
            self.world.oracle.told(attempt, outcome)
        else:
            self.world.counters["told UNKNOWN"] += 1

    # interactive

    async def _interactive(self, work: Work, chosen: list[str]) -> None:
        random = self.random
        attempt = work.attempt()
        if not await self._begin(work, attempt):
            return
        failed = False
        for name in chosen:
            for _ in range(random.choice((1, 1, 2))):
                fine = await self._execute(work, attempt, name)
                failed = failed or not fine
                if failed:
                    break
            if failed:
                break
            if random.random() < 0.3:
                await self._think()
        if failed and not attempt.doomed:
            await self._roll_back(attempt)  # nobody knows what it did: never commit that
            return
        if random.random() < (0.7 if failed else 0.1):
            await self._roll_back(attempt)
            return
        if random.random() < 0.05:
            return  # it vanishes; the deadline is for it
        work.asked = True
        await self._commit(attempt)

    async def _begin(self, work: Work, attempt: Attempt) -> bool:
        request = pb.BeginRequest(idempotency_key=work.key, fingerprint=work.key.encode()[:32])
        timeout = self._timeout()
        if timeout is not None:
            request.timeout.CopyFrom(timeout)
        for _ in range(4):
            try:
                response = await self.stub.Begin(request, timeout=5.0)
            except grpc.aio.AioRpcError as error:
                reason, _ = definite(error)
                self.world.trace(self.name, "hears", reason)
                self.world.counters[f"refused {reason}"] += 1
                await asyncio.sleep(self.random.random() * 2.0)
                continue
            attempt.gtrid = response.gtrid
            self.world.trace(self.name, "has begun", attempt.gtrid)
            if response.already_committed:
                self.told(attempt, "COMMITTED", completed=False)
            return not response.already_committed
        return False

    async def _execute(self, work: Work, attempt: Attempt, name: str) -> bool:
        random = self.random
        fail = self._fails()
        if name in attempt.enlisted and name in work.writes:
            sql = f"UPDATE {name}.account SET balance = balance + 1 WHERE id = {self._shared()}"
            statements = [statement_pb2.Statement(sql=sql)]
            if fail:
                statements.append(statement_pb2.Statement(sql=_UNFIT.format(p=name), expect_rows=1))
        else:
            statements = self._statements(work, name, fail)
        request = agent_pb.ExecuteRequest(
            gtrid=attempt.gtrid,
            participant=name,
            statements=statements,
            read_only=name not in work.writes and random.random() < 0.3,
        )
        try:
            await self.agents[name].Execute(request, timeout=random.choice((0.5, 10.0, 30.0)))
        except grpc.aio.AioRpcError as error:
            reason, _ = definite(error)
            self.world.trace(self.name, "hears", reason, f"of {attempt.gtrid} at {name}")
            self.world.counters[f"execute {reason}"] += 1
            # Only of a branch that the coordinator has heard of is it sure that it will refuse.
            known = name in attempt.enlisted
            attempt.doomed = known and reason in ("STATEMENT_FAILED", "EXPECTATION_FAILED", "BRANCH_DOOMED")
            return False
        if fail and name in work.writes:
            self.world.oracle.violated("CLIENT", f"{attempt.gtrid}: a statement that must fail did not")
        attempt.enlisted.add(name)
        return True

    async def _roll_back(self, attempt: Attempt) -> None:
        for _ in range(self.random.choice((1, 3))):
            try:
                request = pb.RollbackRequest(gtrid=attempt.gtrid)
                timeout = self.random.choice((1.0, 10.0))
                self._hear(attempt, await self.stub.Rollback(request, timeout=timeout))
                return
            except grpc.aio.AioRpcError as error:
                reason, _ = definite(error)
                self.world.trace(self.name, "hears", reason, f"of {attempt.gtrid}")
                self.world.counters[f"rollback refused {reason}"] += 1
                if reason == "ALREADY_COMMITTED":
                    self.told(attempt, "COMMITTED", completed=False)
                    return
            await asyncio.sleep(self.random.random() * 2.0)

    async def _commit(self, attempt: Attempt) -> None:
        random = self.random
        request = pb.CommitRequest(
            gtrid=attempt.gtrid, wait_for=random.choice((pb.WAIT_FOR_DECIDED, pb.WAIT_FOR_COMPLETED))
        )
        if random.random() < 0.05:
            self._beside(self._roll_back(attempt))
        for _ in range(5):
            if random.random() < 0.1:
                self._beside(self._try(attempt, self.stub.Commit(request, timeout=5.0)))
            if await self._try(attempt, self.stub.Commit(request, timeout=random.choice((0.5, 5.0, 40.0)))):
                return
            await asyncio.sleep(random.random() * 2.0)
            if random.random() < 0.5 and await self.get(attempt):
                return

    def _beside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it at the same time as what comes next."""
        self.process.spawn(work)

    async def _try(self, attempt: Attempt, call: Awaitable[Any]) -> bool:
        try:
            self._hear(attempt, await call)
        except grpc.aio.AioRpcError as error:
            reason, sure = definite(error)
            self.world.trace(self.name, "hears", reason, "definite" if sure else "", f"of {attempt.gtrid}")
            self.world.counters[f"commit refused {reason}"] += 1
            attempt.refused = attempt.refused or sure
            return sure
        return bool(attempt.told)

    async def get(self, attempt: Attempt) -> bool:
        """Ask what became of it; whether that is known."""
        try:
            response = await self.stub.Get(pb.GetRequest(gtrid=attempt.gtrid), timeout=5.0)
        except grpc.aio.AioRpcError as error:
            reason, _ = definite(error)
            self.world.trace(self.name, "hears", reason, f"of {attempt.gtrid}")
            self.world.counters[f"get refused {reason}"] += 1
            return False
        outcome = pb.Outcome.Name(response.transaction.outcome).removeprefix("OUTCOME_")
        self.told(attempt, outcome, completed=False)
        return outcome not in ("UNKNOWN", "UNSPECIFIED")

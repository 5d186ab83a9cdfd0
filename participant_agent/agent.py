"""Agent: one participant's agent: fences, links, branches and what has to happen now and then.

Lifecycle:
 1. connect the control connection, find out the server, create the agent's tables, preflight;
 2. take the participant's lock and end the sessions of a former agent (core/sessions.py);
 3. load the fences; serve.
When the control connection is lost, serving stops, every branch that was not prepared is gone with its
session, and 2 and 3 are done again. Prepared branches stay on the server; commands finish them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from dtp import BranchState, Gtrid, Reason, XacoordError
from participant_agent import store
from participant_agent.branches import Branches
from participant_agent.config import Config
from participant_agent.control import Control, StartError
from participant_agent.core import preflight, recall, recovery
from participant_agent.core.effects import Ok
from participant_agent.core.engine import Engine
from participant_agent.core.errors import Failure
from participant_agent.core.finish import Finished, names_of
from participant_agent.core.preflight import Check, Severity
from participant_agent.core.recovery import Fenced, Scanned
from participant_agent.core.registry import Execute, Perform, Refuse
from participant_agent.core.work import Statement, Voted
from participant_agent.fences import Fences, check_coordinator_id, check_identity
from participant_agent.link import Link
from participant_agent.pool import Pool, with_raw_cells
from participant_agent.purge import Purge
from participant_agent.session import Connect, Session, Target
from participant_agent.v1 import participant_agent_pb2 as pb
from participant_agent.waits import Waits
from shell.failpoints import Failpoints

LinkT = TypeVar("LinkT", bound=Link)

FINISHERS = 16
_GRACE_SECONDS = 2.0
_TICK_SECONDS = 0.25
_TRIM_EVERY = 120
_ENLIST_SECONDS = 10.0
_CONTROL_SECONDS = 10.0

# Of the sessions that read evidence, whatever clients' statements have: at READ UNCOMMITTED the witness row
# of a branch that is only prepared would count as committed. Each of their queries is a transaction of its
# own, so none reads an old snapshot; and at READ COMMITTED a server with binlog_format = STATEMENT writes
# nothing (1665).
_EVIDENCE_ISOLATION = "REPEATABLE-READ"


class PreflightError(StartError):
    """The server is not fit; `checks` has the findings."""

    def __init__(self, checks: list[Check]) -> None:
        refusals = [f"{c.name}: {c.found}; {c.fix}" for c in checks if c.severity is Severity.REFUSE]
        super().__init__("the server is refused: " + " | ".join(refusals))
        self.checks = checks


def target_of(config: Config, isolation: str) -> Target:
    """How sessions connect, and what they set up. `isolation`: "" keeps the server's."""
    mysql, sessions = config.mysql, config.sessions
    arguments: dict[str, Any] = {
        "user": mysql.user,
        "password": mysql.secret(),
        "connect_timeout": mysql.connect_timeout_seconds,
    }
    if mysql.unix_socket:
        arguments["unix_socket"] = mysql.unix_socket
    else:
        arguments |= {"host": mysql.host, "port": mysql.port}
    if mysql.database:
        arguments["database"] = mysql.database
    set_up = [
        f"SET SESSION lock_wait_timeout = {sessions.lock_wait_seconds}, "
        f"innodb_lock_wait_timeout = {sessions.lock_wait_seconds}, time_zone = '+00:00'"
    ]
    if isolation:
        set_up.append(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation.replace('-', ' ')}")
    limits = config.limits
    return Target(
        arguments, tuple(set_up), sessions.statement_timeout_seconds, limits.result_rows, limits.result_bytes
    )


class Agent:
    """One participant's agent. `await start()`, then the methods behind the service, then `await stop()`.

    Args:
        connect: opens sessions; the simulation has its own.
    """

    def __init__(
        self, config: Config, failpoints: Failpoints | None, log: Any, connect: Connect = Session.open
    ) -> None:
        self.config = config
        self.log = log
        name, sessions = config.agent.participant, config.sessions
        target = target_of(config, _EVIDENCE_ISOLATION)
        self.control = Control(
            with_raw_cells(target, _CONTROL_SECONDS),
            name,
            config.agent.take_over_seconds,
            failpoints,
            log,
            connect,
        )
        wait = sessions.acquire_timeout_seconds
        clients = target_of(config, sessions.isolation)
        self.workers = Pool(clients, name, 0, sessions.max, sessions.warm, wait, connect)
        self.finishers = Pool(target, name, sessions.max, FINISHERS, 2, wait, connect)
        self.fences = Fences(config, self.control)
        self.links: dict[str, Link] = {}
        self.branches = Branches(
            self.control,
            self.workers,
            self.finishers,
            names_of(lambda: self.engine, lambda c: self.fences[c].number, self.fences.evidence),
            self._report,
            log,
        )
        self.purge = Purge(config, self.control, self.fences, self.finishers, self.branches.spawn, log)
        self.waits = Waits(
            self.branches,
            self.control,
            self.finishers,
            self.links,
            lambda: self.engine,
            config.witness_table,
            name,
            lambda: self.serving.is_set(),
            log,
        )
        self.serving = asyncio.Event()
        self.draining = False
        self._fencing = asyncio.Lock()
        self._background: list[asyncio.Task[None]] = []
        self._unseen_logged = False

    # -- lifecycle
    # --------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The server's make."""
        assert self.control.server is not None
        return self.control.server.engine

    @property
    def reading(self) -> tuple[bool, bool, str]:
        """How statements are to be read: backslashes escape, double quotes are for names, our schema's name
        (guard.guard)."""
        modes = self.control.server.sql_mode.split(",") if self.control.server is not None else []
        schema = self.config.mysql.schema
        return "NO_BACKSLASH_ESCAPES" not in modes, "ANSI_QUOTES" in modes, schema

    async def start(self) -> list[Check]:
        """Make this the participant's agent; returns what preflight found.

        Raises:
            PreflightError: the server is not fit.
            StartError: another agent holds the participant.
            ConnectError: the server cannot be reached.
        """
        await self.control.connect()
        checks = await self.check()
        if any(check.severity is Severity.REFUSE for check in checks):
            raise PreflightError(checks)
        ended = await self.control.take_over()
        await self._begin_serving()
        self.log.info("serving", ended_sessions=ended, engine=self.engine.value)
        loop = asyncio.get_running_loop()
        self._background = [
            loop.create_task(self.control.keep(self._control_lost, self._begin_serving)),
            loop.create_task(self.control.beat()),
            loop.create_task(self._tick()),
            loop.create_task(self.waits.run()),
        ]
        return checks

    async def check(self) -> list[Check]:
        """Create the tables where they are missing and run preflight on the connected control connection."""
        assert self.control.server is not None
        await self.control.drive(store.create(self.config.mysql.schema))
        return await self.control.drive(
            preflight.preflight(
                self.control.server,
                self.config.mysql.schema,
                self.config.witness.enabled,
                self.config.preflight.allow,
            )
        )

    async def _begin_serving(self) -> None:
        server = self.control.server
        assert server is not None
        for pool in (self.workers, self.finishers):
            pool.retarget(
                self.control.connection_id,
                self.control.token_lock,
                server.net_buffer_length,
                server.sql_mode,
            )
        self.branches.all_sessions_ended()
        await self.fences.load()
        self.serving.set()

    def _control_lost(self) -> None:
        self.log.warning("control connection lost; not serving")
        self.serving.clear()
        for link in list(self.links.values()):
            link.close(XacoordError(Reason.SERVER_UNAVAILABLE, "the agent lost its server"))
        self.links.clear()
        self.branches.control_lost()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            ticks += 1
            for entry in self.branches.registry.overdue(loop.time()):
                entry.deadline = None
                entry.doom = entry.doom or Failure(
                    Reason.DEADLINE_PASSED, "the transaction's deadline passed"
                )
                self.branches.roll_back(entry)
            if ticks % _TRIM_EVERY == 0:
                self.workers.trim()
                self.finishers.trim()

    async def stop(self) -> None:
        """End in order: no new calls, let commands end, roll back what is ACTIVE, close."""
        self.draining = True
        await self.branches.drain(10.0)
        for link in list(self.links.values()):
            link.close(XacoordError(Reason.DRAINING, "the agent is stopping"))
        for task in self._background:
            task.cancel()
        self.serving.clear()
        self.control.close()

    def _require_serving(self) -> None:
        if self.draining:
            raise XacoordError(Reason.DRAINING, "the agent is stopping; retry when it is back")
        if not self.serving.is_set():
            raise XacoordError(Reason.SERVER_UNAVAILABLE, "the agent has no connection to its server; retry")

    # -- fences
    # -----------------------------------------------------------------------------------------------------

    def purge_below(self, coordinator_id: str, below: str) -> None:
        """Every transaction below `below` has ended for good. Raises INVALID_GTRID."""
        self.purge.below(coordinator_id, below)
        self.branches.registry.forget_below(coordinator_id, below)

    def server_info(self) -> pb.ServerInfo:
        """What coordinators want to know about the server."""
        server = self.control.server
        assert server is not None
        return pb.ServerInfo(
            engine=server.engine.value,
            version=server.version,
            identity=server.identity,
            witness=self.config.witness.enabled,
            address=self.config.address,
        )

    async def fence(self, request: pb.FenceRequest) -> tuple[int, str]:
        """Raise the fence and end what works below it.

        Returns how many sessions were ended, and what the coordinator's log must know (last_committed).
        """
        self._require_serving()
        async with self._fencing:
            await self.fences.raise_to(request)
            link = self.links.get(request.coordinator_id)
            if link is not None and link.epoch < request.epoch:
                del self.links[request.coordinator_id]
                link.close(XacoordError(Reason.STALE_EPOCH, f"epoch {request.epoch} was fenced"))
            ended = await self.branches.drop_lower_epochs(request.coordinator_id, request.epoch)
        table = self.config.witness_table
        last = recovery.last_committed(table, request.coordinator_id, request.number)
        return ended, await self.control.drive(last)

    def attach(self, hello: pb.Hello, make: Callable[[str, int], LinkT]) -> LinkT:
        """A coordinator's new stream, made from its id and epoch; an older one ends.

        Raises:
            XacoordError: the hello is not the fence's.
        """
        self._require_serving()
        check_identity(hello.coordinator_id, hello.epoch, hello.log_identity)
        fence = self.fences.of(hello.coordinator_id, hello.epoch)
        if fence.log_identity != hello.log_identity:
            raise XacoordError(Reason.LOG_IDENTITY_CHANGED, "the log identity is not the fenced one")
        older = self.links.pop(hello.coordinator_id, None)
        if older is not None:
            older.close(XacoordError(Reason.STALE_EPOCH, "a newer stream of this coordinator was attached"))
        link = make(hello.coordinator_id, hello.epoch)
        self.links[hello.coordinator_id] = link
        return link

    def attached_epoch(self, coordinator_id: str) -> int:
        """The epoch of the coordinator's stream that is open now, 0 where none is."""
        link = self.links.get(coordinator_id)
        return link.epoch if link is not None and link.closed is None else 0

    def detach(self, link: Link) -> None:
        """The stream ended. Branches stay; those of clients end with their deadline."""
        link.close(XacoordError(Reason.COORDINATOR_UNAVAILABLE, "the stream ended"))
        if self.links.get(link.coordinator_id) is link:
            del self.links[link.coordinator_id]

    def _report(self, coordinator_id: str, gtrid: str, result: Voted | Finished) -> None:
        link = self.links.get(coordinator_id)
        if link is not None:
            link.report(gtrid, result)

    # -- clients
    # ----------------------------------------------------------------------------------------------------

    async def execute(self, gtrid: str, statements: tuple[Statement, ...], read_only: bool) -> Sequence[Ok]:
        """Run a client's statements; their results.

        Cancelling the call kills the statement and dooms the branch.
        """
        self._require_serving()
        parsed = Gtrid.parse(gtrid)
        self.fences.of(parsed.coordinator_id, parsed.epoch)
        link = self.links.get(parsed.coordinator_id)
        if link is None:
            raise XacoordError(
                Reason.COORDINATOR_UNAVAILABLE,
                "the coordinator is not attached to this agent; retry",
                gtrid=gtrid,
            )
        command = Execute(statements, read_only)
        action = self.branches.registry.arrive(gtrid, parsed.coordinator_id, parsed.epoch, command)
        if isinstance(action, Refuse):
            raise _as_error(action.failure, gtrid)
        assert isinstance(action, Perform)
        entry = action.entry
        self.branches.begun.set()
        working = asyncio.ensure_future(self._execute(action, command, link))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            entry.doom = entry.doom or Failure(Reason.BRANCH_LOST, "the client cancelled its call")
            if working.done():  # its last statement has just ended, and nobody heard how
                self.branches.roll_back(entry)
            else:
                self.branches.spawn(self.branches.kill(entry))
            working.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise

    async def _execute(self, action: Perform, command: Execute, link: Link) -> Sequence[Ok]:
        entry = action.entry
        enlisting = link.enlist(entry.gtrid) if entry.work is None else None
        try:
            worked = await self.branches.statements(entry, command)
            if worked.failure is None and enlisting is not None:
                refusal = await self._accepted(enlisting)
                if refusal is not None:
                    entry.doom = entry.doom or refusal
                if entry.doom is not None:
                    worked = await self.branches.give_up(entry, worked)
            if worked.failure is not None:
                raise _as_error(worked.failure, entry.gtrid)
            if enlisting is not None:
                remaining = enlisting.result().remaining_milliseconds / 1000
                entry.deadline = asyncio.get_running_loop().time() + remaining + _GRACE_SECONDS
            return worked.results
        finally:
            self.branches.finish_command(entry)

    async def _accepted(self, enlisting: asyncio.Future[pb.Enlisted]) -> Failure | None:
        """None where the coordinator accepted the branch, else why not."""
        try:
            answer = await asyncio.wait_for(asyncio.shield(enlisting), _ENLIST_SECONDS)
        except TimeoutError:
            return Failure(Reason.COORDINATOR_UNAVAILABLE, "the coordinator did not answer in time")
        except XacoordError as error:
            return Failure(error.reason, error.message)
        if answer.accepted:
            return None
        known = answer.reason in Reason.__members__
        reason = Reason(answer.reason) if known else Reason.TRANSACTION_NOT_ACTIVE
        return Failure(reason, "the coordinator did not accept the branch: the transaction is not active")

    # -- recovery
    # ---------------------------------------------------------------------------------------------------

    async def scan(self, coordinator_id: str, epoch: int) -> Scanned:
        """What XA RECOVER lists. `epoch` 0: an inspection."""
        self._require_serving()
        if epoch:
            check_coordinator_id(coordinator_id)
            self.fences.of(coordinator_id, epoch)
        prepared = BranchState.PREPARED
        sessions = [e.session for e in self.branches.registry.entries.values() if e.state is prepared]
        owners = tuple(s.connection_id for s in sessions if isinstance(s, Session))
        scanned = await self.control.drive(recovery.scan(self.engine, owners))
        if scanned.unseen and not self._unseen_logged:
            self._unseen_logged = True
            self.log.warning("the account lacks privileges for part of a scan", unseen=scanned.unseen)
        return scanned

    async def lookup(self, coordinator_id: str, gtrids: Sequence[str]) -> list[recovery.Lookup]:
        """Evidence about transactions, one a gtrid."""
        self._require_serving()
        self._check_gtrids(coordinator_id, gtrids)
        fence = self.fences.get(coordinator_id)
        if fence is None:
            return [recovery.Lookup.NONE for _ in gtrids]
        before = set(self.branches.registry.entries)
        evidence = await self.control.drive(
            recovery.lookup(
                self.engine,
                self.config.witness_table,
                lambda: self.fences[coordinator_id].purged_to,
                fence.number,
                tuple(dict.fromkeys(gtrids)),
            )
        )
        live = before | set(self.branches.registry.entries)
        undecided, committed = recovery.Lookup.UNDECIDED, recovery.Lookup.COMMITTED
        return [undecided if g in live and evidence[g] != committed else evidence[g] for g in gtrids]

    async def recall(
        self, coordinator_id: str, gtrids: Sequence[str]
    ) -> tuple[Fenced | None, str, list[recall.Recollection]]:
        """What is remembered of a coordinator, its last witness row of several participants, and what each
        gtrid has left here."""
        self._require_serving()
        check_coordinator_id(coordinator_id)
        self._check_gtrids(coordinator_id, gtrids)
        fence = self.fences.get(coordinator_id)
        if fence is None:
            unknown = recall.Recollection(recovery.Lookup.NONE, prepared=False)
            return None, "", [unknown for _ in gtrids]
        table = self.config.witness_table
        last = await self.control.drive(recovery.last_committed(table, coordinator_id, fence.number))
        before = set(self.branches.registry.entries)
        procedure = recall.recall(
            self.engine,
            table,
            lambda: self.fences[coordinator_id].purged_to,
            fence.number,
            tuple(dict.fromkeys(gtrids)),
        )
        session = await self.finishers.acquire()
        clean = False
        try:
            found = await self.control.drive(procedure, session)
            clean = True
        finally:
            (self.finishers.release if clean else self.finishers.discard)(session)
        live = before | set(self.branches.registry.entries)
        for gtrid in live & set(found):
            if found[gtrid].state is not recovery.Lookup.COMMITTED:
                found[gtrid] = replace(found[gtrid], state=recovery.Lookup.UNDECIDED)
        return fence, last, [found[gtrid] for gtrid in gtrids]

    def _check_gtrids(self, coordinator_id: str, gtrids: Sequence[str]) -> None:
        if len(gtrids) > 1000:
            raise XacoordError(Reason.INVALID_REQUEST, f"{len(gtrids)} gtrids; one call takes at most 1,000")
        for gtrid in gtrids:
            if Gtrid.parse(gtrid).coordinator_id != coordinator_id:
                raise XacoordError(Reason.INVALID_GTRID, "a gtrid of another coordinator", gtrid=gtrid)


def _as_error(failure: Failure, gtrid: str) -> XacoordError:
    metadata = {}
    if failure.errno:
        metadata["errno"] = str(failure.errno)
    if failure.statement is not None:
        metadata["statement"] = str(failure.statement)
    return XacoordError(failure.reason, failure.message, gtrid=gtrid, metadata=metadata)
